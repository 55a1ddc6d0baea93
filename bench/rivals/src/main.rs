//! What others do with the same bytes: DoGet of Arrow Flight over loopback, from another process, beside bare TCP.
//!
//! `pelton-bench nexus` holds its feeds to the same bare TCP, so that the ratios of both programs may be compared. What
//! is sent is the same: blobs of 64 KiB from 64 MiB that no core's cache holds, a MiB at a time. Flight's batches are
//! decoded and let go; a feed's end in a slice.
//!
//! `pelton-bench-rivals [PAIRS [MIB]]`: so many pairs of runs (7) of so many MiB (512), after one pair that is not counted.
#![forbid(unsafe_code)]

mod bare;
mod flight;

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Says that this process is the one that sends.
const ASKED: &str = "PELTON_RIVALS_SENDS";

pub(crate) const BLOB_BYTES: usize = 64 << 10;
const BLOBS: usize = 1024;
/// What one message holds.
pub(crate) const BATCH_BYTES: usize = 1 << 20;

fn main() -> Result<(), Failure> {
    if std::env::var_os(ASKED).is_some() {
        return send();
    }
    let number = |place: usize, default: u64| match std::env::args().nth(place) {
        Some(text) => text.parse(),
        None => Ok(default),
    };
    let (pairs, bytes) = (number(1, 7)?.max(1), number(2, 512)?.max(1) << 20);
    compare(pairs, bytes)
}

fn compare(pairs: u64, bytes: u64) -> Result<(), Failure> {
    let mut child = Command::new(std::env::current_exe()?)
        .env(ASKED, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line)?;
    let (bare, flight) = line.trim().split_once(' ').ok_or("the other process has failed")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;

    println!("{pairs} pairs of runs of {} MiB", bytes >> 20);
    let (mut rates, mut limits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..=pairs {
        let limit = timed(bytes, || bare::receive(bare, bytes))?;
        let subject = timed(bytes, || flight::get(&runtime, flight, bytes))?;
        if pair > 0 {
            let gb_per_s = |time: Duration| bytes as f64 / 1e9 / time.as_secs_f64();
            rates.push(gb_per_s(subject));
            limits.push(gb_per_s(limit));
            ratios.push(limit.as_secs_f64() / subject.as_secs_f64());
        }
    }
    let (rate, limit, ratio) = (median(&mut rates), median(&mut limits), median(&mut ratios));
    println!("arrow-flight DoGet {rate:.2} GB/s, bare TCP {limit:.2} GB/s");
    println!("ratio {ratio:.3}, from {:.2} to {:.2}", ratios[0], ratios[ratios.len() - 1]);
    // It ends with its standard input.
    drop(child.stdin.take());
    child.wait()?;
    Ok(())
}

fn timed(bytes: u64, run: impl FnOnce() -> Result<u64, Failure>) -> Result<Duration, Failure> {
    let begun = Instant::now();
    let came = run()?;
    let took = begun.elapsed();
    if came == bytes { Ok(took) } else { Err(format!("{came} bytes came, asked for were {bytes}").into()) }
}

/// Of one value at least. Leaves them in order.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The other process, until its standard input ends.
fn send() -> Result<(), Failure> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    let all: Vec<u8> = (0..BLOBS * BLOB_BYTES / 4).flat_map(|_| next().to_le_bytes()).collect();
    let all = Arc::new(all);
    let bare = bare::serve(all.clone())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let flight = flight::serve(&runtime, &all)?;
    println!("{bare} {flight}");
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
