//! The bytes of a slice's metrics, as they stand beside its files: a version, then a postcard record.
//!
//! No checksum: they stand in a file that has one.

use serde::{Deserialize, Serialize};

use super::{BlobSizes, LoadFacts, Moment, SliceMetrics};

const VERSION: u32 = 1;

/// Version 1. Fields are never added to it nor changed: that makes version 2.
#[derive(Serialize, Deserialize)]
struct Record {
    blob_count: u64,
    blob_bytes: u64,
    blob_squares: u128,
    regions: u64,
    rejected: u64,
    expected: u64,
    potential: u64,
    cold: Option<(u64, u64)>,
    warm: Option<(u64, u64)>,
    warm_count: u64,
    evict_count: u64,
    flush_count: u64,
}

/// Why bytes are not metrics. They are advice: do without them, nothing else is harmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// Made by something else, or changed since.
    #[error("the metrics of a slice are damaged: {what}")]
    Damaged {
        /// What does not hold.
        what: String,
    },
    /// Leave them as they are.
    #[error("the metrics of a slice have format {found}, this version knows {VERSION}")]
    Newer {
        /// The version that wrote them.
        found: u32,
    },
}

impl SliceMetrics {
    /// The bytes to store.
    pub fn encode(&self) -> Vec<u8> {
        let pair = |moment: Option<Moment>| moment.map(|moment| (moment.at_ms, moment.took_ms));
        let record = Record {
            blob_count: self.load.blobs.count,
            blob_bytes: self.load.blobs.bytes,
            blob_squares: self.load.blobs.squares,
            regions: self.load.regions,
            rejected: self.load.rejected,
            expected: self.load.expected,
            potential: self.load.potential,
            cold: pair(self.cold),
            warm: pair(self.warm),
            warm_count: self.warm_count,
            evict_count: self.evict_count,
            flush_count: self.flush_count,
        };
        postcard::to_stdvec(&(VERSION, record)).expect("plain values in memory always encode")
    }

    /// Reads what [`SliceMetrics::encode`] wrote.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub fn decode(bytes: &[u8]) -> Result<SliceMetrics, MetricsError> {
        let damaged = |what: &str| MetricsError::Damaged { what: what.to_owned() };
        let (version, body): (u32, _) =
            postcard::take_from_bytes(bytes).map_err(|error| damaged(&error.to_string()))?;
        match version {
            VERSION => (),
            0 => return Err(damaged("there is no format 0")),
            found => return Err(MetricsError::Newer { found }),
        }
        let (record, rest): (Record, _) =
            postcard::take_from_bytes(body).map_err(|error| damaged(&error.to_string()))?;
        if !rest.is_empty() {
            return Err(damaged("there is more than a record"));
        }
        let moment = |pair: Option<(u64, u64)>| pair.map(|(at_ms, took_ms)| Moment { at_ms, took_ms });
        Ok(SliceMetrics {
            load: LoadFacts {
                blobs: BlobSizes {
                    count: record.blob_count,
                    bytes: record.blob_bytes,
                    squares: record.blob_squares,
                },
                regions: record.regions,
                rejected: record.rejected,
                expected: record.expected,
                potential: record.potential,
            },
            cold: moment(record.cold),
            warm: moment(record.warm),
            warm_count: record.warm_count,
            evict_count: record.evict_count,
            flush_count: record.flush_count,
        })
    }
}
