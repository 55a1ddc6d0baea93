//! Measures Pelton beside what limits it, in the same run.
//!
//! A figure alone says little on a shared machine: rates drift by a factor of two, ratios of
//! neighbours hold. So every case is a pair, a *limit* (the plain copy, the bare sum) and a *subject*
//! (our code over the same bytes), run in turn, and what counts is the ratio.
//!
//! `frame` knows how to measure and to print; each benchmark is a file of its own beside it. To add
//! one: a module with a type that implements [`Bench`], a name in [`Which`], a line in
//! [`Which::benches`].
//!
//! Exit codes: 0 if everything ran and every answer was right, whether goals were met or not (figures
//! are no timed tests); 1 if a run failed; 2 for wrong usage.
#![forbid(unsafe_code)]

mod disk;
mod flip;
mod frame;
mod load;
mod nexus;
mod region;
mod restart;
mod scan;
mod tender;
mod words;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use clap::{Parser, ValueEnum};

use crate::disk::Folder;
use crate::frame::{Format, Frame, Knobs, Primer, Report, Setting, Size};

/// One subcommand: takes its knobs first, then runs its cases.
///
/// Taking comes first for all benchmarks, so that a misspelt `--set` ends before anything runs.
pub(crate) trait Bench {
    fn run(&self, frame: &mut Frame) -> io::Result<()>;
}

/// Measure Pelton beside what limits it
#[derive(Debug, Parser)]
#[command(name = "pelton-bench", version)]
struct Arguments {
    /// Which benchmark to run
    #[arg(value_enum)]
    bench: Which,
    /// Take the small value of every knob: shows that the benchmark runs, not how fast Pelton is
    #[arg(long)]
    small: bool,
    /// Give a knob another value, such as `region_bytes=256MiB`
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<Setting>,
    /// Run only the cases whose name contains this text
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// How many pairs of runs each case has, after one that is not counted
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// What the data is made from
    #[arg(long, value_name = "N", default_value_t = 7)]
    seed: u64,
    /// Where the files of the benchmarks go, in a folder of their own that is removed at the end; beside
    /// this program by default
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Print one JSON line for each case instead of the table, and everything else on stderr
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    /// Encoding, verifying and iterating a region in memory, on one core
    Region,
    /// The tender's decision over many snaps, on one core
    Tender,
    /// Scanning a slice, warm and cold
    Scan,
    /// Loading a slice: until scannable, until durable, from LZ4, and its memory
    Load,
    /// A slice from another process: fed, and fetched from a peer
    Nexus,
    /// Letting go of a mapped slice and taking it up again
    Flip,
    /// Opening a cache with many slices, the first lease, and what leases and idle slices cost
    Restart,
    /// Every benchmark
    All,
}

impl Which {
    fn benches(self, knobs: &mut Knobs, folder: &Rc<Folder>) -> Vec<Box<dyn Bench>> {
        match self {
            Which::Region => vec![Box::new(region::RegionBench::new(knobs))],
            Which::Tender => vec![Box::new(tender::TenderBench::new(knobs))],
            Which::Scan => vec![Box::new(scan::ScanBench::new(knobs, folder.clone()))],
            Which::Load => vec![Box::new(load::LoadBench::new(knobs, folder.clone()))],
            Which::Nexus => vec![Box::new(nexus::NexusBench::new(knobs, folder.clone()))],
            Which::Flip => vec![Box::new(flip::FlipBench::new(knobs, folder.clone()))],
            Which::Restart => vec![Box::new(restart::RestartBench::new(knobs, folder.clone()))],
            // The first looks at the memory of the process, which others leave with the allocator.
            Which::All => [
                Which::Restart,
                Which::Region,
                Which::Tender,
                Which::Scan,
                Which::Load,
                Which::Nexus,
                Which::Flip,
            ]
            .into_iter()
            .flat_map(|which| which.benches(knobs, folder))
            .collect(),
        }
    }
}

fn main() -> ExitCode {
    if let Some(code) = nexus::serve_if_asked() {
        return code;
    }
    match run(Arguments::parse()) {
        Ok(code) => code,
        // Whoever read our output has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pelton-bench: could not write the results: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> io::Result<ExitCode> {
    let size = if arguments.small { Size::Small } else { Size::Real };
    let format = if arguments.json { Format::Json } else { Format::Table };

    let mut knobs = Knobs::new(size, arguments.settings);
    let primer = Primer::new(&mut knobs);
    let folder = match Folder::new(arguments.folder.as_deref()) {
        Ok(folder) => Rc::new(folder),
        Err(error) => {
            eprintln!(
                "pelton-bench: could not make a folder for the files: {error}; choose one with --folder"
            );
            return Ok(ExitCode::FAILURE);
        }
    };
    let benches = arguments.bench.benches(&mut knobs, &folder);
    if let Err(error) = knobs.check() {
        eprintln!("pelton-bench: {error}");
        return Ok(ExitCode::from(2));
    }

    let report = Report::new(format);
    report.say(frame::machine())?;
    report.say(folder.describe())?;
    report.say(format!("seed {}, {} pairs of runs for each case", arguments.seed, arguments.runs))?;
    report.say(&knobs)?;

    let mut frame = Frame::new(arguments.seed, arguments.runs, arguments.only, primer, report)?;
    for bench in benches {
        bench.run(&mut frame)?;
    }
    let all_passed = frame.finish()?;
    Ok(if all_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
