//! Several threads load one slice, each from a source of its own: `cargo run --example producers`.
//!
//! A writer may be shared. Each producer fills parcels of its own, packs them, and hands them on; where the disk
//! is slower than the producers, `queue_parcel` makes them wait, and memory stays within its budget.
use std::error::Error;
use std::path::Path;
use std::thread;

use pelton::{Cache, Codec, Durability, Fingerprint, Key, LoadPlan, ParcelBuilder, SliceWriter, Want};

const PRODUCERS: u64 = 4;
const READINGS: u64 = 10_000;
const PARCEL_BYTES: usize = 64 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let (count, sum) = run(Path::new("pelton-data"))?;
    println!("{count} readings, {sum} in all");
    Ok(())
}

/// How many readings there are, and their sum.
pub(crate) fn run(spindle: &Path) -> Result<(u64, u64), Box<dyn Error>> {
    let cache = Cache::builder().spindle(spindle, None).open()?;
    let key: Key = "example/readings@1#0".parse()?;
    let mut plan = LoadPlan::new(Fingerprint::builder().source("readings, version 1").finish());
    plan.durability = Durability::Wait; // Closing returns when the slice would survive a power cut.
    let writer = cache.snap(&key).open_for_writes(plan)?;
    thread::scope(|scope| {
        let produce = |sensor| {
            scope.spawn({
                let writer = &writer;
                move || produce(sensor, writer)
            })
        };
        let producers: Vec<_> = (0..PRODUCERS).map(produce).collect();
        producers.into_iter().try_for_each(|producer| producer.join().expect("producers do not panic"))
    })
    .map_err(|error| error.to_string())?;
    writer.wait_for_writes()?.close_for_writes()?;

    let lease = cache.lease(&key, Want::Latest, None)?;
    let found = lease.scan(
        |blobs, (count, sum): &mut (u64, u64)| {
            while let Some(blob) = blobs.next()? {
                *count += 1;
                *sum += blob.iter().map(|&byte| u64::from(byte)).sum::<u64>();
            }
            Ok(())
        },
        |a, b| (a.0 + b.0, a.1 + b.1),
    )?;
    Ok(found)
}

/// Reads one sensor, and sends what it says.
fn produce(sensor: u64, writer: &SliceWriter) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut parcel = ParcelBuilder::default();
    for reading in 0..READINGS {
        if parcel.bytes() >= PARCEL_BYTES {
            writer.queue_parcel(std::mem::take(&mut parcel).deflate(Codec::Lz4)?)?;
        }
        parcel.push(&[sensor as u8, (reading % 100) as u8])?;
    }
    writer.queue_parcel(parcel.deflate(Codec::Lz4)?)?;
    Ok(())
}
