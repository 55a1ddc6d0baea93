//! What a scan finds out.

use std::io::BufRead;
use std::str::FromStr;

use pelton::{Blobs, FoldError, crc32c};

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
    pub(super) fn fold(&self, blobs: &mut Blobs<'_>, tally: &mut Tally) -> Result<(), FoldError> {
        // Decided once, outside of the loop over blobs.
        match self {
            Op::Count | Op::Bytes => each(blobs, tally, |_, _| {}),
            Op::Crc32c => each(blobs, tally, |blob, tally| {
                tally.crc32c = tally.crc32c.wrapping_add(crc32c(blob).into());
            }),
            Op::Grep(text) => each(blobs, tally, |blob, tally| {
                tally.matches += u64::from(contains(blob, text));
            }),
        }
    }
}

#[inline]
fn each(blobs: &mut Blobs<'_>, tally: &mut Tally, look: impl Fn(&[u8], &mut Tally)) -> Result<(), FoldError> {
    while let Some(blob) = blobs.next()? {
        tally.count += 1;
        tally.bytes += blob.len() as u64;
        look(blob, tally);
    }
    Ok(())
}

/// Whether the text stands somewhere in the bytes.
fn contains(bytes: &[u8], text: &[u8]) -> bool {
    let Some((&first, others)) = text.split_first() else { return true };
    let mut rest = bytes;
    // Leaps from one candidate to the next with the processor's widest steps, unlike `windows`.
    while rest.len() >= text.len() {
        let skipped = rest.skip_until(first).expect("memory can be read");
        if skipped > 0 && rest.starts_with(others) && bytes[bytes.len() - rest.len() - 1] == first {
            return true;
        }
    }
    false
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
    fn contains_agrees_with_a_plain_search() {
        // All texts of up to four letters in all bytes of up to seven, over two letters.
        let words =
            |len: u32| (0..1u32 << len).map(move |n| (0..len).map(move |i| b'a' + (n >> i & 1) as u8));
        for bytes in (0..8).flat_map(words).map(Iterator::collect::<Vec<u8>>) {
            for text in (1..5).flat_map(words).map(Iterator::collect::<Vec<u8>>) {
                let expected = bytes.windows(text.len()).any(|window| window == text);
                assert_eq!(contains(&bytes, &text), expected, "{text:?} in {bytes:?}");
            }
        }
    }

    #[test]
    fn ops_are_read_from_their_names() {
        assert_eq!("crc32c".parse(), Ok(Op::Crc32c));
        assert_eq!("grep:a:b".parse(), Ok(Op::Grep(b"a:b".to_vec())));
        for text in ["", "grep", "grep:", "sum", "Count"] {
            assert!(text.parse::<Op>().is_err(), "{text:?}");
        }
    }
}
