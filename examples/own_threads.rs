//! Scans with threads of the caller's own, one region each: `cargo run --example own_threads`.
//!
//! An engine that has its threads already takes a lease apart into partitions. The cache then starts no scan
//! thread at all.
use std::error::Error;
use std::path::Path;
use std::thread;

use pelton::{
    Cache, Durability, Fingerprint, Key, Lease, LoadPlan, ParcelBuilder, Partition, ScanError, Want,
};

fn main() -> Result<(), Box<dyn Error>> {
    println!("the longest number has {} digits", run(Path::new("pelton-data"))?);
    Ok(())
}

/// How long the longest blob is.
pub(crate) fn run(spindle: &Path) -> Result<usize, Box<dyn Error>> {
    let cache = Cache::builder().spindle(spindle, None).open()?;
    let key: Key = "example/numbers@1#0".parse()?;
    let mut plan = LoadPlan::new(Fingerprint::builder().source("numbers, version 1").finish());
    plan.regions = Some(4); // As many as threads will scan.
    plan.durability = Durability::Wait;
    let writer = cache.snap(&key).open_for_writes(plan)?;
    let mut parcel = ParcelBuilder::default();
    for number in 0..100_000 {
        parcel.push(number.to_string().as_bytes())?;
    }
    writer.queue_parcel(parcel.finish())?;
    writer.wait_for_writes()?.close_for_writes()?;

    let lease = cache.lease(&key, Want::Latest, None)?;
    Ok(longest(&lease)?)
}

fn longest(lease: &Lease) -> Result<usize, ScanError> {
    thread::scope(|scope| {
        let scan = |partition: Partition| scope.spawn(move || longest_of(&partition));
        let threads: Vec<_> = lease.partitions().map(scan).collect();
        let results = threads.into_iter().map(|thread| thread.join().expect("a fold's panic is an error"));
        results.reduce(|a, b| Ok(a?.max(b?))).unwrap_or(Ok(0))
    })
}

fn longest_of(partition: &Partition) -> Result<usize, ScanError> {
    partition.fold(|blobs, longest: &mut usize| {
        while let Some(blob) = blobs.next()? {
            *longest = blob.len().max(*longest);
        }
        Ok(())
    })
}
