//! `pelton load`: blobs into slices of the cache.
//!
//! ```text
//! a source ─parcels─▶ pull.rs ──────────────────────────┐
//! files of the library ─blobs─▶ slices.rs ─parcels─▶ the cache
//!     └─▶ fingerprint: is it there already?
//! ```

mod pull;
mod slices;
mod target;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use pelton::{Cache, Config, Durability, Fingerprint, Key, LoadPlan, SealedSlice};
use serde::Serialize;

use crate::cache::{self, CacheOptions};
use crate::failure::{Failure, shown};
use crate::progress::Progress;
use crate::region::alignment;
use crate::stdout;
use crate::tls::TlsOptions;
use crate::usage::usage;
use pelton::files::{self, FileFormat, Input};
use pelton::units::{Size, count};
pub(crate) use pull::runtime;
use rustix::rand::{GetRandomFlags, getrandom};
use slices::OpenSlices;
use target::Target;

/// The command line of `load`.
#[derive(Args)]
pub(crate) struct Load {
    /// The slices to load, as domain/view@clock; or one of them, as domain/view@clock#slice
    key: Target,
    /// Where the blobs come from: a file, a pipe, all files of a folder, - for standard input, or a source
    #[arg(long, value_name = "FILE|DIR|-|nexus://HOST:PORT")]
    from: PathBuf,
    /// How they stand there. A source sends blobs as such
    #[arg(long, value_enum, required_unless_present_any = ["insecure", "tls_ca"])]
    format: Option<Format>,
    #[command(flatten)]
    tls: TlsOptions,
    /// Over how many slices blobs are dealt [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    slices: Option<u32>,
    /// Over how many regions each slice is dealt [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    regions: Option<u32>,
    /// Blobs begin at multiples of this file offset: a power of two, 8 to 4096
    #[arg(long, value_name = "BYTES", value_parser = alignment)]
    align: Option<u32>,
    /// How parcels are packed on their way
    #[arg(long, value_enum, default_value_t = Codec::None)]
    codec: Codec,
    /// How blobs are dealt over the regions of a slice
    #[arg(long, value_enum, default_value_t = Deal::RoundRobin)]
    deal: Deal,
    /// Says that it worked only when the slices would survive a power cut
    #[arg(long)]
    durable: bool,
    /// What decides the blobs, as 64 hexadecimal digits [default: made of the input]
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<Fingerprint>,
    #[command(flatten)]
    cache: CacheOptions,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

/// How blobs stand in an input.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Each blob is a line; the line feed at its end does not belong to it
    Lines,
    /// Each blob is a length (u32, little-endian) and its bytes
    Framed,
    /// Each file is one blob
    Raw,
    /// Each file is a region file, of either version
    Region,
}

impl From<Format> for FileFormat {
    fn from(format: Format) -> FileFormat {
        match format {
            Format::Lines => FileFormat::Lines,
            Format::Framed => FileFormat::Framed,
            Format::Raw => FileFormat::Raw,
            Format::Region => FileFormat::Region,
        }
    }
}

/// How parcels are packed on their way.
#[derive(Clone, Copy, ValueEnum)]
enum Codec {
    /// As they are
    None,
    /// LZ4
    Lz4,
    /// Zstandard
    #[cfg(feature = "zstd")]
    Zstd,
}

impl Codec {
    /// As it is called in fingerprints.
    fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Lz4 => "lz4",
            #[cfg(feature = "zstd")]
            Codec::Zstd => "zstd",
        }
    }
}

impl From<Codec> for pelton::Codec {
    fn from(codec: Codec) -> pelton::Codec {
        match codec {
            Codec::None => pelton::Codec::None,
            Codec::Lz4 => pelton::Codec::Lz4,
            #[cfg(feature = "zstd")]
            Codec::Zstd => pelton::Codec::Zstd,
        }
    }
}

/// How blobs are dealt over the regions of a slice.
#[derive(Clone, Copy, ValueEnum)]
enum Deal {
    /// One after the other
    RoundRobin,
    /// Each to the region with the fewest bytes
    LeastBytes,
}

impl From<Deal> for pelton::Deal {
    fn from(deal: Deal) -> pelton::Deal {
        match deal {
            Deal::RoundRobin => pelton::Deal::RoundRobin,
            Deal::LeastBytes => pelton::Deal::LeastBytes,
        }
    }
}

impl Load {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if let Some(address) = pull::address(&self.from) {
            return pull::run(&self, address);
        }
        let format = FileFormat::from(self.check()?);
        let slices = self.slices.unwrap_or(1);
        let inputs = match self.from == Path::new("-") {
            true => vec![Input::stdin()],
            false => files::find(&self.from)?,
        };
        let config = self.cache.config()?;
        self.check_apart(&config)?;
        let cache = cache::open(config)?;
        let fingerprint = match self.fingerprint {
            Some(fingerprint) => fingerprint,
            None => self.fingerprint_of(&inputs, format, slices)?,
        };
        let keys = self.key.keys(slices);
        if is_there(&cache, &self.key, &keys, fingerprint) {
            return self.tell(&Outcome::of_cache(&cache, &self.key, fingerprint));
        }

        let started = Instant::now();
        let bytes_known: Option<u64> = inputs.iter().map(Input::len).sum();
        let plan = self.plan(fingerprint, bytes_known.map(|bytes| bytes / u64::from(slices)));
        let mut open = OpenSlices::open(&cache, &keys, &plan, self.codec.into())?;
        let progress = Progress::new("loading", bytes_known);
        for input in &inputs {
            format.walk(input, &mut |bytes| progress.advance(bytes.len()), &mut |blob| open.push(blob))?;
            input.check_unchanged()?;
        }
        // All are sealed before the first is closed: what fails until then leaves the old slices in place.
        let sealed = open.seal()?;
        drop(progress);
        self.close(&cache, &keys, fingerprint, sealed, started)
    }

    fn plan(&self, fingerprint: Fingerprint, expected_bytes: Option<u64>) -> LoadPlan {
        let mut plan = LoadPlan::new(fingerprint);
        plan.regions = Some(self.regions.unwrap_or_else(cores));
        plan.deal = self.deal.into();
        plan.alignment = self.align.unwrap_or(plan.alignment);
        plan.expected_bytes = expected_bytes;
        if self.durable {
            plan.durability = Durability::Wait;
        }
        plan
    }

    /// Hands the sealed slices to the cache, and says when they are what was asked for.
    fn close(
        &self,
        cache: &Cache,
        keys: &[Key],
        fingerprint: Fingerprint,
        mut sealed: Vec<SealedSlice>,
        started: Instant,
    ) -> Result<(), Failure> {
        let mut outcome = Outcome::of_load(self.state(), &self.key, fingerprint, &sealed);
        // Slice 0 is committed after all others: a generation that has it is complete.
        let first = sealed.remove(0);
        for slice in sealed {
            slice.close_for_writes().map_err(|error| Failure::cache(&error))?;
        }
        if !self.durable {
            // Sealed is scannable; what is left is the way to the disk.
            outcome.seconds = Some(started.elapsed().as_secs_f64());
            self.tell(&outcome)?;
            sync(cache)?;
        }
        first.close_for_writes().map_err(|error| Failure::cache(&error))?;
        sync(cache)?;
        remove_others(cache, &self.key, keys)?;
        if self.durable {
            outcome.seconds = Some(started.elapsed().as_secs_f64());
            self.tell(&outcome)?;
        }
        Ok(())
    }

    /// What can be read only once gets a random one, so it is never taken for something else.
    fn fingerprint_of(
        &self,
        inputs: &[Input],
        format: FileFormat,
        slices: u32,
    ) -> Result<Fingerprint, Failure> {
        let progress = Progress::new("fingerprinting", inputs.iter().map(Input::len).sum());
        let seen = &mut |bytes: &[u8]| progress.advance(bytes.len());
        match files::fingerprint(inputs, format, self.codec.name(), slices, seen)? {
            Some(fingerprint) => Ok(fingerprint),
            None => random(),
        }
    }

    /// How blobs stand in the files.
    fn check(&self) -> Result<Format, Failure> {
        let refuse = |message: &str| Err(usage(&["load"], message.to_owned()));
        if self.tls.is_given() {
            return refuse(
                "--tls-* or --insecure is for a source, as nexus://HOST:PORT; leave it out for files",
            );
        }
        let Some(format) = self.format else { return refuse("files need --format") };
        if self.slices.is_some() && matches!(self.key, Target::Slice(_)) {
            return refuse("the key names one slice, so --slices has no meaning; leave out one of them");
        }
        if format == Format::Region && self.from == Path::new("-") {
            return refuse("a region file is read from both ends, so it can't come from standard input");
        }
        Ok(format)
    }

    /// Refuses to load the cache's own files, which the next load would find to be others.
    fn check_apart(&self, config: &Config) -> Result<(), Failure> {
        let Ok(from) = self.from.canonicalize() else { return Ok(()) }; // Standard input, for example.
        let inside = |spindle: &&PathBuf| spindle.canonicalize().is_ok_and(|path| path.starts_with(&from));
        match config.spindles.iter().map(|spindle| &spindle.path).find(inside) {
            Some(spindle) => {
                let spindle = shown(spindle);
                Err(Failure::file(
                    &self.from,
                    format!("holds the cache's own folder {spindle}; choose others with --spindle"),
                ))
            }
            None => Ok(()),
        }
    }

    fn state(&self) -> State {
        if self.durable { State::Durable } else { State::Scannable }
    }

    fn tell(&self, outcome: &Outcome) -> Result<(), Failure> {
        // At once: without --durable the commit is still to come.
        stdout::tell(outcome, self.json)
    }
}

fn random() -> Result<Fingerprint, Failure> {
    let mut bytes = [0; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())
            .map_err(|error| Failure::Cache(format!("the system gave no random numbers: {error}")))?;
    }
    Ok(Fingerprint::from_bytes(bytes))
}

/// Waits until slices that were closed are on the disk.
fn sync(cache: &Cache) -> Result<(), Failure> {
    cache.sync(None).map_err(|error| Failure::cache(&error))
}

/// Whether exactly these slices are there, each with the fingerprint.
fn is_there(cache: &Cache, target: &Target, keys: &[Key], fingerprint: Fingerprint) -> bool {
    let found = cache.search(&target.pattern());
    let all = |key: &Key| {
        found
            .iter()
            .any(|status| status.key == *key && status.durable && status.fingerprint == Some(fingerprint))
    };
    found.len() == keys.len() && keys.iter().all(all)
}

/// Removes slices of the generation that the load has not made: it had more of them before.
fn remove_others(cache: &Cache, target: &Target, keys: &[Key]) -> Result<(), Failure> {
    for status in cache.search(&target.pattern()) {
        if !keys.contains(&status.key) {
            cache.snap(&status.key).flush(None).map_err(|error| Failure::cache(&error))?;
        }
    }
    Ok(())
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(1024) as u32)
}

/// How a load ended.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// It was there before, and nothing was loaded.
    Exists,
    /// It can be scanned.
    Scannable,
    /// It would survive a power cut.
    Durable,
}

/// What is said about a load.
#[derive(Serialize)]
struct Outcome {
    key: String,
    state: State,
    fingerprint: String,
    count: u64,
    bytes: u64,
    slices: Vec<SliceOutcome>,
    /// From the first byte read; `null` if nothing was loaded.
    seconds: Option<f64>,
}

#[derive(Serialize)]
struct SliceOutcome {
    key: String,
    count: u64,
    bytes: u64,
}

impl Outcome {
    fn new(
        state: State,
        target: &Target,
        fingerprint: Fingerprint,
        slices: impl Iterator<Item = (Key, u64, u64)>,
    ) -> Outcome {
        let slices: Vec<SliceOutcome> =
            slices.map(|(key, count, bytes)| SliceOutcome { key: key.to_string(), count, bytes }).collect();
        Outcome {
            key: target.to_string(),
            state,
            fingerprint: fingerprint.to_string(),
            count: slices.iter().map(|slice| slice.count).sum(),
            bytes: slices.iter().map(|slice| slice.bytes).sum(),
            slices,
            seconds: None,
        }
    }

    fn of_load(state: State, target: &Target, fingerprint: Fingerprint, sealed: &[SealedSlice]) -> Outcome {
        let slices = sealed.iter().map(|slice| (slice.key().clone(), slice.blob_count(), slice.blob_bytes()));
        Outcome::new(state, target, fingerprint, slices)
    }

    fn of_cache(cache: &Cache, target: &Target, fingerprint: Fingerprint) -> Outcome {
        let slices = cache
            .search(&target.pattern())
            .into_iter()
            .map(|status| (status.key, status.blob_count, status.blob_bytes));
        Outcome::new(State::Exists, target, fingerprint, slices)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = Duration::from_secs_f64(self.seconds.unwrap_or(0.0));
        write!(f, "{}: ", self.key)?;
        match self.state {
            State::Exists => write!(f, "is there already, nothing was loaded: ")?,
            State::Scannable => write!(f, "scannable after {seconds:.1?}: ")?,
            State::Durable => write!(f, "durable after {seconds:.1?}: ")?,
        }
        let slices = count(self.slices.len() as u64, "slice");
        write!(f, "{slices}, {}, {}", count(self.count, "blob"), Size(self.bytes))
    }
}
