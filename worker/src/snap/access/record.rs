//! The bytes of an access log: a head, then records that each hang on the one before.

use pelton_region_format::{Key, crc32c};
use serde::{Deserialize, Serialize};

use super::Facts;

const MAGIC: [u8; 8] = *b"pelton A";
/// Which format this crate writes.
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 16;
/// Before the body: length and kind.
const START_BYTES: usize = 5;
const CRC_BYTES: usize = 4;
/// A key has a few hundred bytes at most.
const BODY_BYTES_MAX: usize = 4096;

const KIND_SNAP: u8 = 1;
const KIND_ERASED: u8 = 2;
// Kind 3 said something of views. No release has written it, and readers skip it.

/// What one record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Snap(Key, Facts),
    Erased(Key),
}

/// How the bytes of a log end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    /// In the middle of a record, or of the head.
    Cut,
    Damaged {
        offset: u64,
    },
    Newer {
        found: u32,
    },
}

/// Version 1. Fields are only added, at the end; a reader without them leaves them.
#[derive(Serialize, Deserialize)]
struct SnapBody {
    key: String,
    pinned: bool,
    queried_at_ms: Option<u64>,
    leases: u64,
    evicts: u64,
    flushes: u64,
    failures: u32,
    next_load_at_ms: Option<u64>,
}

/// Puts records one after the other.
pub(super) struct Encoder {
    pub(super) bytes: Vec<u8>,
    /// What the next record hangs on.
    pub(super) crc: u32,
}

impl Encoder {
    /// Begins with the head.
    pub(super) fn of_a_new_file() -> Encoder {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let crc = crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Encoder { bytes, crc }
    }

    /// Goes on after a record, or a head, with this checksum.
    pub(super) fn after(crc: u32) -> Encoder {
        Encoder { bytes: Vec::new(), crc }
    }

    pub(super) fn push(&mut self, record: &Record) {
        let encoded = match record {
            Record::Snap(key, facts) => {
                let body = SnapBody {
                    key: key.to_string(),
                    pinned: facts.pinned,
                    queried_at_ms: facts.queried_at_ms,
                    leases: facts.leases,
                    evicts: facts.evicts,
                    flushes: facts.flushes,
                    failures: facts.failures,
                    next_load_at_ms: facts.next_load_at_ms,
                };
                match facts.gap_ms {
                    0 => postcard::to_stdvec(&body),
                    gap_ms => postcard::to_stdvec(&(body, gap_ms)),
                }
            }
            Record::Erased(key) => postcard::to_stdvec(&key.to_string()),
        };
        let kind = match record {
            Record::Snap(..) => KIND_SNAP,
            Record::Erased(_) => KIND_ERASED,
        };
        self.push_raw(kind, &encoded.expect("plain values in memory always encode"));
    }

    pub(super) fn push_raw(&mut self, kind: u8, body: &[u8]) {
        assert!((1..=BODY_BYTES_MAX).contains(&body.len()), "names are short");
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        self.bytes.push(kind);
        self.bytes.extend_from_slice(body);
        self.crc = record_crc(self.crc, &self.bytes[start..]);
        self.bytes.extend_from_slice(&self.crc.to_le_bytes());
    }
}

/// Reads records as far as they hold.
pub(super) fn decode(bytes: &[u8], mut take: impl FnMut(Record)) -> Ending {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let start = &bytes[..bytes.len().min(MAGIC.len())];
    if !MAGIC.starts_with(start) {
        return Ending::Damaged { offset: 0 };
    }
    if bytes.len() < HEAD_BYTES {
        return Ending::Cut;
    }
    if word(12) != crc32c(&bytes[..12]) {
        return Ending::Damaged { offset: 8 };
    }
    match word(8) {
        VERSION => {}
        0 => return Ending::Damaged { offset: 8 },
        found => return Ending::Newer { found },
    }
    let (mut offset, mut crc) = (HEAD_BYTES, word(12));
    while offset < bytes.len() {
        let left = bytes.len() - offset;
        if left < START_BYTES {
            return Ending::Cut;
        }
        let damaged = Ending::Damaged { offset: offset as u64 };
        let length = word(offset) as usize;
        if !(1..=BODY_BYTES_MAX).contains(&length) {
            return damaged;
        }
        if left < START_BYTES + length + CRC_BYTES {
            return Ending::Cut;
        }
        let body = offset + START_BYTES..offset + START_BYTES + length;
        let found = word(body.end);
        if found != record_crc(crc, &bytes[offset..body.end]) {
            return damaged;
        }
        match read(bytes[offset + 4], &bytes[body.clone()]) {
            Ok(record) => record.into_iter().for_each(&mut take),
            // Somebody has summed up nonsense.
            Err(_) => return damaged,
        }
        (offset, crc) = (body.end + CRC_BYTES, found);
    }
    Ending::Whole
}

fn record_crc(before: u32, record: &[u8]) -> u32 {
    crc32c(&[&before.to_le_bytes(), record].concat())
}

struct Nonsense;

/// What a body says, if its kind is known.
fn read(kind: u8, body: &[u8]) -> Result<Option<Record>, Nonsense> {
    let key = |text: &str| text.parse::<Key>().map_err(|_| Nonsense);
    // What stands behind the fields that are known here a later version has added.
    match kind {
        KIND_SNAP => {
            let (snap, rest): (SnapBody, _) = postcard::take_from_bytes(body).map_err(|_| Nonsense)?;
            // It was added, and is left out where it is not known.
            let gap_ms = match rest {
                [] => 0,
                rest => postcard::take_from_bytes(rest).map_err(|_| Nonsense)?.0,
            };
            let facts = Facts {
                pinned: snap.pinned,
                queried_at_ms: snap.queried_at_ms,
                gap_ms,
                leases: snap.leases,
                evicts: snap.evicts,
                flushes: snap.flushes,
                failures: snap.failures,
                next_load_at_ms: snap.next_load_at_ms,
            };
            Ok(Some(Record::Snap(key(&snap.key)?, facts)))
        }
        KIND_ERASED => {
            let (text, _): (String, _) = postcard::take_from_bytes(body).map_err(|_| Nonsense)?;
            Ok(Some(Record::Erased(key(&text)?)))
        }
        _ => Ok(None),
    }
}
