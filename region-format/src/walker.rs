//! Follows a body's cells through chunks of any size, and checks them on the way.

use crate::body::{END_MARK, LENGTH_BYTES, Span, bad_length, check_span_end, first_after};
use crate::decoder::{BlobFragment, Verified};
use crate::error::{FormatError, Place, damaged};
use crate::frame::Frame;
use crate::header::Version;
use crate::limits::BLOB_BYTES_MAX;
use crate::page::check_zero;
use crate::sections::{BlobIndex, IndexCheck, LengthHistogram, SectionKind};
use crate::trailer::Counts;

/// Why a walk stopped: the bytes, or whoever takes the blobs.
pub(crate) enum Halt<E> {
    Format(FormatError),
    Sink(E),
}

impl<E> From<FormatError> for Halt<E> {
    fn from(error: FormatError) -> Halt<E> {
        Halt::Format(error)
    }
}

/// How a walk knows that it is at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpanEnd {
    /// The bytes end: version 1.
    Open,
    /// The end mark comes, nobody knows where: version 2 in a stream.
    Mark,
    /// The end mark stands at the span's end, which is the body's.
    Body,
    /// The span ends before a blob that is not part of it.
    Within,
}

/// The state of a walk between two chunks.
#[derive(Debug)]
pub(crate) struct Walker<'f> {
    span: Span,
    span_end: SpanEnd,
    /// The file offset of the next byte.
    at: u64,
    /// Where the current blob begins; while in its head, where it will.
    first: u64,
    number: u64,
    step: Step,
    counts: Counts,
    histogram: LengthHistogram,
    index: Option<IndexCheck<'f>>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Padding,
    Length { word: [u8; 4], have: usize },
    Bytes { len: u32, done: u32 },
    End,
}

impl<'f> Walker<'f> {
    /// Starts at file offset `at`, in or before the padding of the span's first blob.
    pub(crate) fn new(span: Span, at: u64, span_end: SpanEnd) -> Walker<'f> {
        let mut walker = Walker {
            span,
            span_end,
            at,
            first: span.start,
            number: span.first_number,
            step: Step::Padding,
            counts: Counts::default(),
            histogram: LengthHistogram::default(),
            index: None,
        };
        let nothing_follows = span_end == SpanEnd::Body && span.is_empty() && span.first_number > 0;
        if (span_end == SpanEnd::Within && span.is_empty()) || nothing_follows {
            walker.step = Step::End;
        }
        walker
    }

    /// Compares the index with the blobs, too.
    pub(crate) fn with_index(mut self, index: Option<BlobIndex<'f>>) -> Walker<'f> {
        self.index = index.map(|index| IndexCheck::new(index, self.span.start));
        self
    }

    /// The file offset of the next byte it expects.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.step, Step::End)
    }

    /// Whether no blob is begun: where version 1 may end.
    pub(crate) fn is_between_blobs(&self) -> bool {
        matches!(self.step, Step::Padding | Step::Length { have: 0, .. })
    }

    /// Takes bytes until they are used up or the span ends, and says how many it took.
    pub(crate) fn walk<E>(
        &mut self,
        bytes: &[u8],
        sink: &mut impl FnMut(BlobFragment<'_>) -> Result<(), E>,
    ) -> Result<usize, Halt<E>> {
        let mut rest = bytes;
        loop {
            match self.step {
                Step::Padding => {
                    let len = (self.first - LENGTH_BYTES - self.at).min(rest.len() as u64) as usize;
                    let zeros = self.take(&mut rest, len);
                    check_zero(Place::Blob(self.number), self.at - len as u64, zeros)?;
                    if self.at == self.first - LENGTH_BYTES {
                        self.step = Step::Length { word: [0; 4], have: 0 };
                    } else {
                        return Ok(bytes.len());
                    }
                }
                Step::Length { mut word, have } => {
                    let len = rest.len().min(word.len() - have);
                    word[have..have + len].copy_from_slice(self.take(&mut rest, len));
                    if have + len < word.len() {
                        self.step = Step::Length { word, have: have + len };
                        return Ok(bytes.len());
                    }
                    self.begin(u32::from_le_bytes(word))?;
                }
                Step::Bytes { len, done } => {
                    let taken = self.take(&mut rest, (len - done) as usize);
                    let after = done + taken.len() as u32;
                    // An empty blob has one fragment; no other fragment is empty.
                    if !taken.is_empty() || len == 0 {
                        let fragment = BlobFragment { number: self.number, len, offset: done, bytes: taken };
                        self.step = Step::Bytes { len, done: after };
                        sink(fragment).map_err(Halt::Sink)?;
                    }
                    if after < len {
                        return Ok(bytes.len());
                    }
                    self.end_blob()?;
                }
                Step::End => return Ok(bytes.len() - rest.len()),
            }
        }
    }

    /// The error that says what is missing here.
    pub(crate) fn cut(&self) -> FormatError {
        let place = Place::Blob(self.number);
        let (offset, found, expected) = match self.step {
            Step::Padding | Step::End => (self.at, 0, self.first.saturating_sub(self.at)),
            Step::Length { have, .. } => (self.first - LENGTH_BYTES, have as u64, LENGTH_BYTES),
            Step::Bytes { len, done } => (self.first, done.into(), len.into()),
        };
        FormatError::Truncated { place, offset, found, expected }
    }

    /// Compares the counts of a whole body with those of the frame.
    pub(crate) fn check_counts(&self, frame: &Frame<'_>) -> Result<(), FormatError> {
        let (found, expected) = (self.counts, frame.trailer().counts());
        let offset = frame.trailer().body_end;
        for (what, found, expected) in [
            ("number of blobs", found.blobs, expected.blobs),
            ("bytes of blobs", found.bytes, expected.bytes),
            ("shortest blob", found.shortest.into(), expected.shortest.into()),
            ("longest blob", found.longest.into(), expected.longest.into()),
        ] {
            if found != expected {
                return Err(damaged(Place::Body, what, offset, found, expected));
            }
        }
        if let Some(section) = frame.section(SectionKind::LENGTH_HISTOGRAM) {
            let expected = frame.histogram().map_or([0; 32], LengthHistogram::counts);
            for (counter, (found, expected)) in (0..).zip(self.histogram.counts().into_iter().zip(expected)) {
                if found != expected {
                    let place = Place::Section(section.kind.0);
                    return Err(damaged(place, "a counter", section.offset + 8 * counter, found, expected));
                }
            }
        }
        match &self.index {
            Some(index) => index.finish(),
            None => Ok(()),
        }
    }

    pub(crate) fn verified(&self, version: Version, file_bytes: u64, blocks: u64) -> Verified {
        Verified { version, file_bytes, blob_count: self.counts.blobs, blob_bytes: self.counts.bytes, blocks }
    }

    fn take<'b>(&mut self, rest: &mut &'b [u8], len: usize) -> &'b [u8] {
        let (taken, after) = rest.split_at(len.min(rest.len()));
        *rest = after;
        self.at += taken.len() as u64;
        taken
    }

    /// The length of the next blob is there; or the end mark.
    fn begin(&mut self, len: u32) -> Result<(), FormatError> {
        if len == END_MARK && matches!(self.span_end, SpanEnd::Mark | SpanEnd::Body) {
            if self.span_end == SpanEnd::Body {
                check_span_end(&self.span, self.first, self.number)?;
            }
            self.step = Step::End;
            return Ok(());
        }
        if self.first >= self.span.end {
            return Err(damaged(Place::Body, "end mark", self.first - LENGTH_BYTES, len, END_MARK));
        }
        let room = (self.span.end - self.first).saturating_sub(LENGTH_BYTES);
        if len > BLOB_BYTES_MAX || u64::from(len) > room {
            return Err(bad_length(self.number, self.first, len, room));
        }
        if let Some(index) = &mut self.index {
            index.pass(self.number, self.first)?;
        }
        self.counts.add(len);
        self.histogram.add(len);
        self.step = Step::Bytes { len, done: 0 };
        Ok(())
    }

    fn end_blob(&mut self) -> Result<(), FormatError> {
        self.number += 1;
        self.first = first_after(self.at, self.span.alignment);
        self.step = Step::Padding;
        if self.first >= self.span.end && self.span_end == SpanEnd::Within {
            check_span_end(&self.span, self.first, self.number)?;
            self.step = Step::End;
        }
        Ok(())
    }
}
