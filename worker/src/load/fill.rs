//! A load as its loader sees it: where blobs go, and whether anybody still wants them.

use std::time::Instant;

use pelton_region_format::Key;

use crate::budget::buffers::{BufferGrant, Buffers};
use crate::load::LoaderError;
use crate::scan::cancel::CancelToken;
use crate::scan::patience::Patience;
use crate::slice::parcel::{Parcel, ParcelBuilder};
use crate::slice::plan::LoadPlan;
use crate::slice::writer::{LoadError, RegionIntake, SliceWriter};
use crate::waits::Pending;

/// A parcel goes off when the next blob would make it larger. A blob that is larger travels alone.
const PARCEL_BYTES: usize = 1 << 20;

/// One load, for the loader that fills it. Any number of threads may use it at once.
#[derive(Debug)]
pub struct Fill {
    writer: SliceWriter,
    plan: LoadPlan,
    cancel: CancelToken,
}

impl Fill {
    pub(crate) fn new(writer: SliceWriter, plan: LoadPlan, cancel: CancelToken) -> Fill {
        Fill { writer, plan, cancel }
    }

    /// The slice to load.
    pub fn key(&self) -> &Key {
        self.writer.key()
    }

    /// What the loader has planned.
    pub fn plan(&self) -> &LoadPlan {
        &self.plan
    }

    /// Cancelled when nobody wants the load any more, or it is over otherwise: what is sent then is refused. A loader that
    /// waits for its source looks at it now and then.
    pub fn cancel(&self) -> &CancelToken {
        &self.cancel
    }

    /// Until when all of it must have been taken: that of the plan.
    pub fn deadline(&self) -> Option<Instant> {
        self.plan.deadline
    }

    /// Copies a parcel's blobs into the slice. Waits while memory or a disk's queue is used up: that is what slows a fast
    /// source down.
    ///
    /// # Errors
    /// [`LoadError`], as of [`SliceWriter::queue_parcel`].
    pub fn queue_parcel(&self, parcel: Parcel) -> Result<(), LoadError> {
        self.writer.queue_parcel(parcel)
    }

    /// The same with a deadline for this parcel, as of [`SliceWriter::queue_parcel_until`].
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn queue_parcel_until(&self, parcel: Parcel, deadline: Option<Instant>) -> Result<(), LoadError> {
        self.writer.queue_parcel_until(parcel, deadline)
    }

    /// [`Self::queue_parcel`] as a future, as of [`SliceWriter::queue_parcel_async`].
    pub fn queue_parcel_async(&self, parcel: Parcel) -> Pending<Result<(), LoadError>> {
        self.writer.queue_parcel_async(parcel)
    }

    /// Takes in one of the plan's [sealed](LoadPlan::sealed) regions, as of [`SliceWriter::region_intake`].
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn region_intake(&self, index: u32) -> Result<RegionIntake, LoadError> {
        self.writer.region_intake(index)
    }

    /// What parcels may use: for who takes a parcel's memory before the parcel comes.
    pub fn buffers(&self) -> Buffers {
        self.writer.buffers()
    }

    /// [`Self::queue_parcel`] for a parcel whose memory was taken before it came, as of [`SliceWriter::queue_paid`].
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn queue_paid(&self, parcel: Parcel, paid: BufferGrant) -> Result<(), LoadError> {
        self.writer.queue_paid(parcel, paid)
    }

    /// Gathers single blobs into parcels. Each thread takes one of its own.
    pub fn packer(&self) -> Packer<'_> {
        Packer { fill: self, parcel: ParcelBuilder::default() }
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience { cancel: Some(self.cancel.clone()), ..Patience::until(self.plan.deadline) }
    }

    pub(crate) fn into_writer(self) -> SliceWriter {
        self.writer
    }
}

/// Gathers blobs into parcels of about a MiB, and sends them.
#[derive(Debug)]
#[must_use = "what was pushed last is sent by `finish`"]
pub struct Packer<'f> {
    fill: &'f Fill,
    parcel: ParcelBuilder,
}

impl Packer<'_> {
    /// One blob more. Waits as [`Fill::queue_parcel`] does, when a parcel is full.
    ///
    /// # Errors
    /// [`LoaderError`], for `?`: the blob is too long, the cache does not take the parcel, or the load is cancelled.
    pub fn push(&mut self, blob: &[u8]) -> Result<(), LoaderError> {
        if !self.parcel.is_empty() && self.parcel.bytes() + blob.len() > PARCEL_BYTES {
            self.send()?;
        }
        Ok(self.parcel.push(blob)?)
    }

    /// Sends what is left.
    ///
    /// # Errors
    /// [`LoaderError`].
    pub fn finish(mut self) -> Result<(), LoaderError> {
        if self.parcel.is_empty() { Ok(()) } else { self.send() }
    }

    fn send(&mut self) -> Result<(), LoaderError> {
        if self.fill.cancel.is_cancelled() {
            return Err(LoaderError::Cancelled);
        }
        // The next one will be about as large.
        let room = self.parcel.bytes().min(PARCEL_BYTES);
        let full = std::mem::replace(&mut self.parcel, ParcelBuilder::with_capacity(room));
        Ok(self.fill.queue_parcel(full.finish())?)
    }
}
