//! `pelton scan`: slices of the cache, read where they lie.

mod op;
mod target;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use pelton::{Cache, ScanOptions, ScanReport, SnapStatus, Want, Way};
use serde::Serialize;

use crate::cache::{self, CacheOptions};
use crate::failure::{Failure, shown};
use crate::progress::Progress;
use crate::stdout::Stdout;
use op::{Op, Tally};
use pelton::units::{Size, count, grouped};
use target::Target;

/// How long a slice that is not in memory may take to come there, with what its bytes add at the rate of a
/// slow disk. Without an end, memory that others hold would be waited for forever.
const WARM_TIME_MIN: Duration = Duration::from_secs(10);
const WARM_BYTES_PER_SECOND: u64 = 32 << 20;

/// The command line of `scan`.
#[derive(Args)]
pub(crate) struct Scan {
    /// What to scan, as domain/view@clock#slice; without a slice all of them, without a clock the newest
    key: Target,
    /// What to find out: count, bytes, crc32c, or grep:TEXT
    #[arg(long, default_value = "count")]
    op: Op,
    /// How many threads scan [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(flatten)]
    cache: CacheOptions,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

impl Scan {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut config = self.cache.config()?;
        let spindles: Vec<PathBuf> = config.spindles.iter().map(|spindle| spindle.path.clone()).collect();
        if let Some(count) = self.threads {
            config.scan_threads = Some(count.into());
        }
        let cache = cache::open_existing(config)?;
        let found = self.key.choose(cache.search(self.key.view())).map_err(|why| {
            let spindles: Vec<String> = spindles.iter().map(|path| shown(path)).collect();
            Failure::Cache(format!("{} {why} (looked in {})", self.key, spindles.join(", ")))
        })?;
        let mut outcome = Outcome::new(&self.op, &found);
        let bytes_total = found.iter().map(|status| status.blob_bytes).sum();
        let progress = Arc::new(Progress::new("scanning", Some(bytes_total)));
        for status in &found {
            self.scan(&cache, status, &progress, &mut outcome)?;
        }
        drop(progress);
        let mut stdout = Stdout::open()?;
        match self.json {
            true => stdout.line(serde_json::to_string(&outcome).expect("it has nothing that JSON lacks"))?,
            false => stdout.line(&outcome)?,
        }
        stdout.flush()
    }

    fn scan(
        &self,
        cache: &Cache,
        status: &SnapStatus,
        progress: &Arc<Progress>,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let snap = cache.snap(&status.key);
        let wait = WARM_TIME_MIN + Duration::from_secs(status.file_bytes / WARM_BYTES_PER_SECOND);
        let lease =
            snap.lease(Want::Latest, Some(Instant::now() + wait)).map_err(|error| Failure::cache(&error))?;
        let (op, progress) = (self.op.clone(), progress.clone());
        let (tally, report) = lease
            .scan_with(
                ScanOptions::default(),
                move |blobs, tally: &mut Tally| op.fold(blobs, tally, &progress),
                Tally::merge,
            )
            .map_err(|error| Failure::cache(&error))?;
        outcome.add(&tally, &report);
        // The next slice may need the memory.
        drop(lease);
        snap.evict();
        Ok(())
    }
}

/// What a scan found, and how it went.
#[derive(Serialize)]
struct Outcome {
    key: String,
    slices: usize,
    count: u64,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    crc32c: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    matches: Option<u64>,
    report: Report,
}

/// How the scan went, all slices together.
#[derive(Default, Serialize)]
struct Report {
    region_bytes: u64,
    /// By where they were: memory of our own, mapped files, the disk.
    image_bytes: u64,
    map_bytes: u64,
    stream_bytes: u64,
    wall_seconds: f64,
    cpu_seconds: f64,
    waited_seconds: f64,
    faults_major: u64,
    /// Of the slice whose regions took least alike.
    skew: f64,
    threads: usize,
    threads_pinned: usize,
}

impl Outcome {
    fn new(op: &Op, found: &[SnapStatus]) -> Outcome {
        let key = match found {
            [one] => one.key.to_string(),
            many => {
                let key = &many[0].key;
                format!("{}/{}@{}", key.domain(), key.view(), key.clock())
            }
        };
        Outcome {
            key,
            slices: found.len(),
            count: 0,
            bytes: 0,
            crc32c: matches!(op, Op::Crc32c).then_some(0),
            matches: matches!(op, Op::Grep(_)).then_some(0),
            report: Report::default(),
        }
    }

    fn add(&mut self, tally: &Tally, scan: &ScanReport) {
        self.count += tally.count;
        self.bytes += tally.bytes;
        if let Some(crc32c) = &mut self.crc32c {
            *crc32c = crc32c.wrapping_add(tally.crc32c);
        }
        if let Some(matches) = &mut self.matches {
            *matches += tally.matches;
        }
        let report = &mut self.report;
        report.region_bytes += scan.region_bytes;
        report.image_bytes += scan.bytes_by(Way::Image);
        report.map_bytes += scan.bytes_by(Way::Map);
        report.stream_bytes += scan.bytes_by(Way::Stream);
        report.wall_seconds += scan.wall.as_secs_f64();
        report.cpu_seconds += scan.cpu.as_secs_f64();
        report.waited_seconds += scan.waited.as_secs_f64();
        report.faults_major += scan.faults_major;
        report.skew = report.skew.max(scan.skew());
        report.threads = report.threads.max(scan.threads);
        report.threads_pinned = report.threads_pinned.max(scan.threads_pinned);
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slices = count(self.slices as u64, "slice");
        write!(f, "{}: {slices}, {}, {}", self.key, count(self.count, "blob"), Size(self.bytes))?;
        if let Some(crc32c) = self.crc32c {
            write!(f, ", crc32c {crc32c}")?;
        }
        if let Some(matches) = self.matches {
            write!(f, ", {} with the text", grouped(matches))?;
        }
        let Report { region_bytes, wall_seconds, threads, .. } = self.report;
        let (regions, wall) = (Size(region_bytes), Duration::from_secs_f64(wall_seconds));
        write!(f, "; scanned {regions} of regions in {wall:.1?} on {}", count(threads as u64, "thread"))
    }
}
