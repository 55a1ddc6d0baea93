//! Loading deflated parcels until the slice can be scanned, against merely inflating them.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use pelton::{Durability, Parcel, WritePath};

use super::GIB;
use crate::disk::{Blobs, PackedParcel, Store, sum_blobs};
use crate::frame::{Answers, Failure, Memory, Pair, Stopwatch};

/// As many threads hand parcels over, which inflates and copies them, as inflate on the other side.
pub(super) struct Lz4 {
    store: Store,
    blobs: Blobs,
    threads: usize,
    packed: Vec<PackedParcel>,
    /// Copies of them, of the next run.
    parcels: Vec<Parcel>,
    rooms: Vec<Memory>,
    expected: Answers,
}

impl Lz4 {
    pub(super) fn new(folder: &Path, blobs: Blobs, threads: usize) -> Result<Lz4, Failure> {
        let store = Store::open(folder, 2 * blobs.bytes() + GIB)?;
        let (packed, subject) = blobs.packed_parcels();
        let room = packed.iter().map(|parcel| parcel.inflated_bytes).max().expect("there is a blob at least");
        let rooms = (0..threads).map(|_| Ok(Memory::zeroed(room)?)).collect::<Result<_, Failure>>()?;
        let limit = packed.iter().map(|parcel| parcel.inflated_bytes as u64).sum();
        let parcels = packed.iter().map(PackedParcel::parcel).collect();
        let expected = Answers { limit, subject };
        Ok(Lz4 { store, blobs, threads, packed, parcels, rooms, expected })
    }
}

impl Pair for Lz4 {
    /// Inflated.
    fn bytes(&self) -> u64 {
        self.blobs.bytes()
    }

    fn expected(&self) -> Answers {
        self.expected
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let next = AtomicUsize::new(0);
        let (packed, next) = (&self.packed, &next);
        stopwatch.time(|| {
            std::thread::scope(|scope| {
                let inflate = |room: &mut Memory| {
                    let mut bytes = 0;
                    while let Some(parcel) = packed.get(next.fetch_add(1, Ordering::Relaxed)) {
                        bytes += parcel.inflate(room)? as u64;
                    }
                    Ok::<_, Failure>(bytes)
                };
                let threads: Vec<_> =
                    self.rooms.iter_mut().map(|room| scope.spawn(move || inflate(room))).collect();
                threads.into_iter().map(|thread| thread.join().expect("inflating does not panic")).sum()
            })
        })
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let plan = Store::plan(WritePath::Image, Durability::Background);
        let parcels = std::mem::take(&mut self.parcels);
        let sealed = stopwatch.time(|| self.store.seal(plan, parcels, self.threads))?;
        sealed.close_for_writes()?;
        let sum = sum_blobs(&self.store.lease()?)?;
        self.store.flush()?;
        self.parcels = self.packed.iter().map(PackedParcel::parcel).collect();
        Ok(sum)
    }
}
