//! Loads and scans without blocking a thread, and without a runtime: `cargo run --example async_load`.
//!
//! Every operation that may wait has a form that is a future. Any runtime can poll it; here a dozen lines do. Two
//! producers share one thread, and each has one parcel under way: where the disk is slower, their futures wait, and
//! memory stays within its budget. Dropping a future cancels what it stands for.
use std::error::Error;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use pelton::{
    Cache, Event, Fingerprint, FoldError, Key, LoadError, LoadPlan, ParcelBuilder, SliceWriter, Want,
};

const PARCELS: u64 = 50;
const NUMBERS: u64 = 100;

fn main() -> Result<(), Box<dyn Error>> {
    println!("the numbers add up to {}", run(Path::new("pelton-data"))?);
    Ok(())
}

/// The sum of all numbers that were loaded.
pub(crate) fn run(spindle: &Path) -> Result<u64, Box<dyn Error>> {
    let cache = Cache::builder().spindle(spindle, None).open()?;
    block_on(load_and_scan(&cache))
}

async fn load_and_scan(cache: &Cache) -> Result<u64, Box<dyn Error>> {
    let mut events = cache.events();
    let key: Key = "example/numbers@1#0".parse()?;
    let plan = LoadPlan::new(Fingerprint::builder().source("numbers, version 1").finish());
    let writer = cache.snap(&key).open_for_writes_async(plan).await?;
    join(produce(&writer, 0), produce(&writer, 1)).await?;
    writer.wait_for_writes_async().await?.close_for_writes_async().await?;

    let lease = cache.lease_async(&key, Want::Latest, None).await?;
    let sum = lease.scan_async(
        |blobs, sum: &mut u64| {
            while let Some(blob) = blobs.next()? {
                *sum += u64::from_le_bytes(blob.try_into().map_err(FoldError::caller)?);
            }
            Ok(())
        },
        |a, b| a + b,
    );
    let sum = sum.await?;
    // It is on its way to the disk; an event tells when it would survive a power cut.
    while let Some(event) = events.next().await {
        match event {
            Event::Durable { .. } => return Ok(sum),
            Event::CommitFailed { why, .. } => return Err(why.into()),
            _ => {}
        }
    }
    Err("the cache was closed".into())
}

/// Sends the even or the odd numbers.
async fn produce(writer: &SliceWriter, odd: u64) -> Result<(), LoadError> {
    for parcel in 0..PARCELS {
        let mut blobs = ParcelBuilder::default();
        for number in 0..NUMBERS {
            blobs.push(&(2 * (parcel * NUMBERS + number) + odd).to_le_bytes()).expect("numbers are small");
        }
        writer.queue_parcel_async(blobs.finish()).await?;
    }
    Ok(())
}

/// Both futures on one thread, until both have ended or one has failed.
async fn join<E>(
    a: impl Future<Output = Result<(), E>>,
    b: impl Future<Output = Result<(), E>>,
) -> Result<(), E> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut a_done, mut b_done) = (false, false);
    poll_fn(move |context| {
        if !a_done && let Poll::Ready(result) = a.as_mut().poll(context) {
            result?;
            a_done = true;
        }
        if !b_done && let Poll::Ready(result) = b.as_mut().poll(context) {
            result?;
            b_done = true;
        }
        if a_done && b_done { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// All the runtime there is: polls, and parks the thread until somebody wakes it.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}
