//! What has come, on its way into a slice: off the runtime's threads.

use std::sync::mpsc as blocking;

use pelton_nexus_proto::feed::{Tally, Totals};
use pelton_nexus_proto::messages::Reason;
use pelton_nexus_proto::{Codec, Parcel};
use pelton_worker::{BufferGrant, Buffers, Fill, LoadError, SliceWriter};
use tokio::sync::mpsc;

use super::credit::Credit;
use crate::told::told;

/// What the stream gives to whoever puts it into the slice.
pub(crate) enum Job {
    /// The next parcel, with the memory that was taken for it.
    Parcel { parcel: Parcel, paid: Credit },
    /// There are no more.
    Close { totals: Totals, tally: Tally },
}

/// What the stream is told of it.
pub(crate) enum Report {
    /// So many parcels of this stream are in the slice; the last one cost so much.
    Queued { parcels: u64, cost: u64 },
    /// The slice has taken everything.
    Closed,
    /// It has not, and why.
    Failed { reason: Reason, text: String },
}

/// The stream's end of it.
pub(crate) struct Intake {
    pub(crate) jobs: blocking::Sender<Job>,
    pub(crate) reports: mpsc::UnboundedReceiver<Report>,
}

/// The slice's end of it.
pub(crate) struct Outtake {
    jobs: blocking::Receiver<Job>,
    reports: mpsc::UnboundedSender<Report>,
    /// How many parcels are in the slice, from its start.
    parcels: u64,
}

/// What parcels are put into.
#[derive(Clone, Copy)]
pub(crate) enum Target<'t> {
    Fill(&'t Fill),
    Writer(&'t SliceWriter),
}

/// Both ends, for a stream that begins behind so many parcels. What is queued is bounded by credit.
pub(crate) fn intake(parcels: u64) -> (Intake, Outtake) {
    let (jobs, outtake_jobs) = blocking::channel();
    let (outtake_reports, reports) = mpsc::unbounded_channel();
    (Intake { jobs, reports }, Outtake { jobs: outtake_jobs, reports: outtake_reports, parcels })
}

impl Outtake {
    /// Puts into the slice what comes, until the stream has ended. Says what the source has told at its end; nothing if
    /// it broke off.
    ///
    /// # Errors
    /// [`LoadError`]: the slice does not take a parcel. The stream is told; what else comes is dropped.
    pub(crate) fn run(
        &mut self,
        target: Target<'_>,
        on_parcel: impl Fn(u64, u64),
    ) -> Result<Option<(Totals, Tally)>, LoadError> {
        while let Ok(job) = self.jobs.recv() {
            match job {
                Job::Parcel { parcel, paid } => {
                    let (cost, blobs) = (parcel.cost(), u64::from(parcel.blob_count()));
                    let bytes = parcel.inflated_bytes();
                    if let Err(error) = target.queue(parcel, paid.into_memory()) {
                        self.fail(&error);
                        return Err(error);
                    }
                    self.parcels += 1;
                    on_parcel(blobs, bytes);
                    self.report(Report::Queued { parcels: self.parcels, cost });
                }
                Job::Close { totals, tally } => return Ok(Some((totals, tally))),
            }
        }
        Ok(None)
    }

    /// How many parcels are in the slice.
    pub(crate) fn parcels(&self) -> u64 {
        self.parcels
    }

    /// All of it is the cache's now.
    pub(crate) fn closed(&self) {
        self.report(Report::Closed);
    }

    /// The slice does not take it.
    pub(crate) fn fail(&self, error: &LoadError) {
        let reason = match error {
            LoadError::Parcel { .. } => Reason::Damaged,
            LoadError::Late { .. } => Reason::Deadline,
            // Somebody has ended the load, who has told why.
            LoadError::Over { .. } => Reason::Cancelled,
            LoadError::Closed { .. } | LoadError::Starting { .. } => Reason::Unavailable,
            LoadError::ParcelTooLarge { .. }
            | LoadError::Memory { .. }
            | LoadError::NoSpindle { .. }
            | LoadError::TooMuch { .. }
            | LoadError::Busy { .. } => Reason::ResourceExhausted,
            _ => Reason::Internal,
        };
        self.report(Report::Failed { reason, text: told(error) });
    }

    fn report(&self, report: Report) {
        // If the stream has ended meanwhile, its end is what counts.
        let _ = self.reports.send(report);
    }
}

impl Target<'_> {
    pub(crate) fn buffers(self) -> Buffers {
        match self {
            Target::Fill(fill) => fill.buffers(),
            Target::Writer(writer) => writer.buffers(),
        }
    }

    /// The parcel as the cache knows it: the same bytes. Its checksum was compared; the cache inflates it and compares
    /// all lengths before it takes a blob.
    fn queue(self, parcel: Parcel, paid: BufferGrant) -> Result<(), LoadError> {
        let codec = match parcel.codec() {
            Codec::Lz4 => pelton_worker::Codec::Lz4,
            #[cfg(feature = "zstd")]
            Codec::Zstd => pelton_worker::Codec::Zstd,
            // A codec that this build lacks was not agreed on.
            _ => pelton_worker::Codec::None,
        };
        // A size beyond memory is none that a parcel can have: the cache says so.
        let inflated_bytes = usize::try_from(parcel.inflated_bytes()).unwrap_or(usize::MAX);
        let blob_count = parcel.blob_count();
        let parcel = pelton_worker::Parcel::packed(codec, blob_count, inflated_bytes, parcel.into_body());
        match self {
            Target::Fill(fill) => fill.queue_paid(parcel, paid),
            Target::Writer(writer) => writer.queue_paid(parcel, paid),
        }
    }
}
