//! What a scan finds out.

use std::str::FromStr;

use memchr::memmem::Finder;
use pelton::{Blobs, FoldError, crc32c};

use crate::progress::Progress;

/// Progress is told in steps of so many bytes: for each blob it would cost more than some scans.
const PROGRESS_BYTES: u64 = 1 << 20;

/// What a scan finds out. All of them count blobs and their bytes, which costs next to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Count,
    Bytes,
    /// The sum of the blobs' CRC-32Cs: it does not depend on how they were dealt.
    Crc32c,
    /// How many blobs contain a text.
    Grep(Vec<u8>),
}

/// What was found in a region, or in all so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) count: u64,
    pub(super) bytes: u64,
    pub(super) crc32c: u64,
    pub(super) matches: u64,
}

impl Tally {
    pub(super) fn merge(a: Tally, b: Tally) -> Tally {
        Tally {
            count: a.count + b.count,
            bytes: a.bytes + b.bytes,
            crc32c: a.crc32c.wrapping_add(b.crc32c),
            matches: a.matches + b.matches,
        }
    }
}

impl Op {
    /// Adds a region's blobs to the tally.
    pub(super) fn fold(
        &self,
        blobs: &mut Blobs<'_>,
        tally: &mut Tally,
        progress: &Progress,
    ) -> Result<(), FoldError> {
        // Decided once, outside of the loop over blobs.
        match self {
            Op::Count | Op::Bytes => each(blobs, tally, progress, |_, _| {}),
            Op::Crc32c => each(blobs, tally, progress, |blob, tally| {
                tally.crc32c = tally.crc32c.wrapping_add(crc32c(blob).into());
            }),
            Op::Grep(text) => {
                let finder = Finder::new(text);
                each(blobs, tally, progress, |blob, tally| {
                    tally.matches += u64::from(finder.find(blob).is_some());
                })
            }
        }
    }
}

#[inline]
fn each(
    blobs: &mut Blobs<'_>,
    tally: &mut Tally,
    progress: &Progress,
    look: impl Fn(&[u8], &mut Tally),
) -> Result<(), FoldError> {
    let mut told = tally.bytes;
    while let Some(blob) = blobs.next()? {
        tally.count += 1;
        tally.bytes += blob.len() as u64;
        look(blob, tally);
        if tally.bytes - told >= PROGRESS_BYTES {
            progress.advance((tally.bytes - told) as usize);
            told = tally.bytes;
        }
    }
    progress.advance((tally.bytes - told) as usize);
    Ok(())
}

impl FromStr for Op {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Op, &'static str> {
        match (text, text.strip_prefix("grep:")) {
            ("count", _) => Ok(Op::Count),
            ("bytes", _) => Ok(Op::Bytes),
            ("crc32c", _) => Ok(Op::Crc32c),
            (_, Some("")) => Err("expected a text after grep:"),
            (_, Some(text)) => Ok(Op::Grep(text.into())),
            _ => Err("expected count, bytes, crc32c or grep:TEXT"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ops_are_read_from_their_names() {
        assert_eq!("crc32c".parse(), Ok(Op::Crc32c));
        assert_eq!("grep:a:b".parse(), Ok(Op::Grep(b"a:b".to_vec())));
        for text in ["", "grep", "grep:", "sum", "Count"] {
            assert!(text.parse::<Op>().is_err(), "{text:?}");
        }
    }
}
