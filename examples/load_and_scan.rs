//! Loads words into a slice, and scans it where it lies: `cargo run --example load_and_scan`.
use std::error::Error;
use std::path::Path;

use pelton::{Cache, Durability, Fingerprint, Key, LoadPlan, ParcelBuilder, Want};

fn main() -> Result<(), Box<dyn Error>> {
    let found = run(Path::new("pelton-data"))?;
    println!("{found} of the words have an r");
    Ok(())
}

/// How many of the words have an r.
pub(crate) fn run(spindle: &Path) -> Result<usize, Box<dyn Error>> {
    let cache = Cache::builder().spindle(spindle, None).open()?;
    let key: Key = "example/words@1#0".parse()?;

    // The fingerprint stands for what decides the blobs. Another one makes other blobs.
    let mut plan = LoadPlan::new(Fingerprint::builder().source("words, version 1").finish());
    plan.durability = Durability::Wait; // Closing returns when the slice would survive a power cut.
    let writer = cache.snap(&key).open_for_writes(plan)?;
    let mut parcel = ParcelBuilder::default();
    for word in ["spindle", "region", "parcel", "slice", "impeller"] {
        parcel.push(word.as_bytes())?;
    }
    writer.queue_parcel(parcel.finish())?;
    writer.wait_for_writes()?.close_for_writes()?;

    // Every region is folded by a thread of its own; what they found is added up.
    let lease = cache.lease(&key, Want::Latest, None)?;
    let found = lease.scan(
        |blobs, found: &mut usize| {
            while let Some(blob) = blobs.next()? {
                *found += usize::from(blob.contains(&b'r'));
            }
            Ok(())
        },
        |a, b| a + b,
    )?;
    Ok(found)
}
