//! A loader of one's own: `cargo run --example custom_loader`.
//!
//! Nothing is loaded by hand here: whoever leases a slice that is not there has it filled, once for all who want it. What
//! loaders may rely on is told in docs/loaders.md.
use std::error::Error;
use std::path::Path;

use pelton::{Cache, Counts, Fill, Fingerprint, FoldError, Key, LoadPlan, Loader, LoaderError, View, Want};

const SLICES: u32 = 3;
const NUMBERS: u64 = 30_000;
const THREADS: u64 = 2;

/// Multiples of the key's clock. Slice `n` has every third of them, beginning with the n-th.
struct Multiples;

impl Loader for Multiples {
    fn plan(&self, key: &Key) -> Result<LoadPlan, LoaderError> {
        if key.slice() >= SLICES {
            return Err(LoaderError::NotThere);
        }
        // All that decides the blobs. What is there with the same fingerprint is not loaded again.
        let fingerprint = Fingerprint::builder()
            .source("multiples, version 1")
            .number("up to", NUMBERS)
            .text("key", &key.to_string());
        let mut plan = LoadPlan::new(fingerprint.finish());
        plan.expected_bytes = Some(8 * NUMBERS / u64::from(SLICES));
        Ok(plan)
    }

    fn fill(&self, fill: &Fill) -> Result<Counts, LoaderError> {
        // Any number of threads may send. Each packs blobs into parcels of its own.
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..THREADS).map(|thread| scope.spawn(move || send(fill, thread))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("sending does not panic"))
        })?;
        Ok(Counts { expected: Some(NUMBERS / u64::from(SLICES)), ..Counts::default() })
    }
}

fn send(fill: &Fill, thread: u64) -> Result<(), LoaderError> {
    let mut packer = fill.packer();
    let mine = (u64::from(fill.key().slice())..NUMBERS).step_by(SLICES as usize);
    for number in mine.skip(thread as usize).step_by(THREADS as usize) {
        packer.push(&(number * fill.key().clock()).to_le_bytes())?;
    }
    packer.finish()
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("the multiples of 2 add up to {}", run(Path::new("pelton-data"))?);
    Ok(())
}

/// The sum over all slices of one generation.
pub(crate) fn run(spindle: &Path) -> Result<u64, Box<dyn Error>> {
    let cache = Cache::builder()
        .spindle(spindle, None)
        .loader("multiples", Multiples)
        .view(View::new("example/multiples".parse()?).loader("multiples"))
        .open()?;
    let mut sum = 0;
    for slice in 0..SLICES {
        let lease = cache.lease(&Key::new("example", "multiples", 2, slice)?, Want::Latest, None)?;
        sum += lease.scan(
            |blobs, sum: &mut u64| {
                while let Some(blob) = blobs.next()? {
                    *sum += u64::from_le_bytes(blob.try_into().map_err(FoldError::caller)?);
                }
                Ok(())
            },
            |a, b| a + b,
        )?;
    }
    Ok(sum)
}
