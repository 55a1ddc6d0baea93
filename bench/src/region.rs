//! Encoding, verifying and iterating one region in memory, on one core.
//!
//! No disk, no threads, nothing mapped: this measures the bytes alone. Whatever stands above them (loading,
//! scanning) can't be faster.
//!
//! | case | limit |
//! |---|---|
//! | encode 64 KiB blobs | the same copies, without cells and checksums |
//! | verify all blocks | the raw checksum, and a plain sum of the same bytes |
//! | iterate blobs and sum them | the same sum over the bare body |
mod encode;
mod iterate;
mod sample;
mod verify;

use std::io;
use std::ops::RangeInclusive;

use pelton_region_format::Crc32c;

use crate::Bench;
use crate::frame::{Case, Failure, Frame, Knobs};
use encode::{Encode, NoChecksum};
use iterate::Iterate;
use sample::Sample;
use verify::{AgainstRaw, AgainstSum, Verify};

/// Blobs of the cases that don't say otherwise.
const BLOB_BYTES: u32 = 64 << 10;

/// One region, and the pieces it is encoded in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegionBench {
    /// More than the caches hold, at its real size.
    region_bytes: usize,
    /// As large as the pieces that go to a disk.
    piece_bytes: usize,
}

impl RegionBench {
    pub(crate) fn new(knobs: &mut Knobs) -> RegionBench {
        let mut bytes = |name, pair| usize::try_from(knobs.knob(name, pair)).expect("addresses have 64 bits");
        RegionBench {
            region_bytes: bytes("region_bytes", (16 << 20, 1 << 30)),
            piece_bytes: bytes("piece_bytes", (8 << 20, 8 << 20)),
        }
    }

    fn sample(&self, seed: u64, lengths: RangeInclusive<u32>) -> Result<Sample, Failure> {
        Sample::build(seed, self.region_bytes, self.piece_bytes, lengths)
    }
}

impl Bench for RegionBench {
    fn run(&self, frame: &mut Frame) -> io::Result<()> {
        let seed = frame.seed();
        let RegionBench { region_bytes, piece_bytes } = *self;

        let copies = |name: &str, goal| case(name, "64 KiB copies", Some(goal));
        frame.case(copies("encode, no checksum", 0.9), || {
            Encode::<NoChecksum>::new(seed, region_bytes, piece_bytes)
        })?;
        frame.case(copies("encode, CRC-32C", 0.6), || {
            Encode::<Crc32c>::new(seed, region_bytes, piece_bytes)
        })?;

        let sample = || self.sample(seed, BLOB_BYTES..=BLOB_BYTES);
        frame.case(case("verify blocks", "raw CRC-32C", Some(0.95)), || {
            Verify::<AgainstRaw>::new(sample()?)
        })?;
        // A CRC can keep up with a sum only where one instruction folds 64 bytes.
        let goal = has_vpclmulqdq().then_some(0.8);
        if goal.is_none() {
            frame.say("no VPCLMULQDQ here: verifying has no goal against a sum")?;
        }
        frame.case(case("verify blocks", "plain u64 sum", goal), || Verify::<AgainstSum>::new(sample()?))?;

        for (name, lengths, goal) in [
            ("iterate 64 KiB", 65_536..=65_536, Some(0.95)),
            ("iterate 4 KiB", 4096..=4096, Some(0.95)),
            ("iterate 256 bytes", 256..=256, Some(0.9)),
            // Each blob's end is a branch that no processor foresees: shown, not held to anything.
            ("iterate 128 to 384 bytes", 128..=384, None),
        ] {
            frame.case(case(name, "plain u64 sum", goal), || Iterate::new(self.sample(seed, lengths)?))?;
        }
        Ok(())
    }
}

fn case(name: &str, against: &'static str, goal: Option<f64>) -> Case {
    // All buffers are touched before the first run.
    Case { bench: "region", name: name.to_owned(), against, goal, fresh_bytes: 0, is_one_busy_thread: true }
}

fn has_vpclmulqdq() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("vpclmulqdq");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}
