//! Iterating the blobs of a warm region and summing them, against the same sum over the bare body.

use std::hint::black_box;

use pelton::{FormatError, RegionView};

use super::sample::Sample;
use crate::frame::{Answers, Failure, Pair, Stopwatch};
use crate::words::sum_words;

/// Both sides pass the whole body, and rates are in its bytes. The bare sum takes lengths and
/// padding in, so the answers differ; each is compared with its own.
pub(super) struct Iterate {
    sample: Sample,
}

impl Iterate {
    pub(super) fn new(sample: Sample) -> Result<Iterate, Failure> {
        Ok(Iterate { sample })
    }
}

impl Pair for Iterate {
    fn bytes(&self) -> u64 {
        self.sample.body().len() as u64
    }

    fn expected(&self) -> Answers {
        Answers { limit: self.sample.body_sum(), subject: self.sample.blobs_sum }
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let body = black_box(self.sample.body());
        Ok(stopwatch.time(|| sum_words(body)))
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let view = black_box(self.sample.view()?);
        Ok(stopwatch.time(|| sum_blobs(&view))?)
    }
}

fn sum_blobs(view: &RegionView<'_>) -> Result<u64, FormatError> {
    let mut blobs = view.blobs();
    let mut sum = 0u64;
    while let Some(blob) = blobs.next()? {
        sum = sum.wrapping_add(sum_words(blob));
    }
    Ok(sum)
}
