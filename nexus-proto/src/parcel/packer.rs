//! Packs blobs into parcels of a good size, and not too late.

use std::time::{Duration, Instant};

use pelton_region_format::{BlockChecksum, Crc32c};

use super::{Codec, LENGTH_BYTES, Parcel, ParcelError, Rooms, body};
use crate::limits::{Limit, Limits};

/// How parcels are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackerOptions {
    /// A parcel is ready when it has so many bytes inflated. From 1 KiB to [`PackerOptions::TARGET_BYTES_MAX`].
    pub target_bytes: usize,
    /// A parcel is ready when its first blob has waited so long.
    pub wait_max: Duration,
    /// How it is packed.
    pub codec: Codec,
}

impl PackerOptions {
    /// The largest target: with all that stands around the body a message stays below 4 MiB.
    pub const TARGET_BYTES_MAX: usize = (4 << 20) - (4 << 10);
    /// The smallest target that makes sense: below it there are more messages than data.
    pub const TARGET_BYTES_MIN: usize = 1 << 10;
}

impl Default for PackerOptions {
    fn default() -> PackerOptions {
        // 1 MiB: large enough that a message's own costs vanish, small enough for the cores' caches.
        PackerOptions { target_bytes: 1 << 20, wait_max: Duration::from_millis(50), codec: Codec::None }
    }
}

/// A sum has a beginning and an end, which small blobs would pay for one by one.
const SUMMED_AT_ONCE: usize = 32 << 10;

/// Collects blobs and gives parcels: when they have their size, when the first blob has waited long enough,
/// or when asked.
///
/// Invariant: between calls, what is collected is below the target. A blob that does not fit goes alone, after
/// what came before it, so blobs keep their order.
///
/// Packing takes time: call it where that hurts nobody, not where sockets are served.
#[derive(Debug)]
pub struct ParcelPacker {
    options: PackerOptions,
    limits: Limits,
    blob_count: u32,
    body: Vec<u8>,
    rooms: Rooms,
    /// Of the body, as far as it is summed.
    sum: Crc32c,
    summed: usize,
    /// When the first of the collected blobs came.
    since: Option<Instant>,
}

impl ParcelPacker {
    /// Starts with nothing. A target outside its bounds is moved to the nearer one.
    pub fn new(mut options: PackerOptions, limits: Limits) -> ParcelPacker {
        let (min, max) = (PackerOptions::TARGET_BYTES_MIN, PackerOptions::TARGET_BYTES_MAX);
        options.target_bytes = options.target_bytes.clamp(min, max);
        ParcelPacker {
            options,
            limits,
            blob_count: 0,
            body: Vec::new(),
            rooms: Rooms::default(),
            sum: Crc32c::default(),
            summed: 0,
            since: None,
        }
    }

    /// Shares rooms with other packers: what one does not need another one may use.
    pub fn rooms(self, rooms: Rooms) -> ParcelPacker {
        ParcelPacker { rooms, ..self }
    }

    /// Takes a blob. Parcels that are ready by it are put behind `ready`, in order.
    ///
    /// # Errors
    /// [`ParcelError::Limit`] or [`ParcelError::BlobTooLong`]: the blob can't be sent at all. It is not taken,
    /// and the packer goes on: count it as rejected, or end the stream.
    pub fn push(&mut self, blob: &[u8], now: Instant, ready: &mut Vec<Parcel>) -> Result<(), ParcelError> {
        let needed = LENGTH_BYTES + blob.len();
        self.limits.check(Limit::ParcelBytes, needed as u64)?;
        if self.body.len() + needed > self.options.target_bytes {
            self.finish(ready)?;
        }
        if needed > self.options.target_bytes {
            ready.push(Parcel::of_blob(self.options.codec, blob)?);
            return Ok(());
        }
        if self.blob_count == 0 {
            self.body = self.rooms.take(self.options.target_bytes);
            self.since = Some(now);
        }
        body::push_blob(&mut self.body, blob)?;
        self.blob_count += 1;
        if self.body.len() - self.summed >= SUMMED_AT_ONCE {
            self.sum_up();
        }
        if self.body.len() == self.options.target_bytes {
            self.finish(ready)?;
        }
        Ok(())
    }

    /// When what is collected must go, full or not. Call [`ParcelPacker::on_time`] then.
    pub fn due(&self) -> Option<Instant> {
        Some(self.since? + self.options.wait_max)
    }

    /// Puts what is collected behind `ready` if its time is over.
    ///
    /// # Errors
    /// As [`ParcelPacker::finish`].
    pub fn on_time(&mut self, now: Instant, ready: &mut Vec<Parcel>) -> Result<(), ParcelError> {
        match self.due() {
            Some(due) if due <= now => self.finish(ready),
            _ => Ok(()),
        }
    }

    /// Puts what is collected behind `ready`. The packer can be used again.
    ///
    /// # Errors
    /// [`ParcelError::Codec`] if the codec is not built in or has no memory. What was collected is lost then.
    pub fn finish(&mut self, ready: &mut Vec<Parcel>) -> Result<(), ParcelError> {
        self.since = None;
        let blob_count = std::mem::take(&mut self.blob_count);
        if blob_count > 0 {
            self.sum_up();
            let (body, codec) = (std::mem::take(&mut self.body), self.options.codec);
            let sum = (self.summed == body.len()).then(|| self.sum.take());
            self.summed = 0;
            ready.push(Parcel::deflate_in(codec, blob_count, body, sum, &self.rooms)?);
        }
        Ok(())
    }

    /// Sums what was copied last, while it is in the processor's cache. What a codec packs is summed by whoever sends it.
    fn sum_up(&mut self) {
        if self.options.codec == Codec::None {
            self.sum.update(&self.body[self.summed..]);
            self.summed = self.body.len();
        }
    }

    /// How many bytes are collected, lengths included.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }
}
