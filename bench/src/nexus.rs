//! A slice over loopback, from another process.
//!
//! | case | limit |
//! |---|---|
//! | feed, by gRPC and by lane, one stream | one bare TCP stream of the same bytes, received and discarded |
//! | feed, by gRPC and by lane, four streams | four of them |
mod feed;
mod source;

use std::io;
use std::rc::Rc;

use crate::Bench;
use crate::disk::Folder;
use crate::frame::{Case, Frame, Knobs};
use feed::FeedPair;

pub(crate) use source::serve_if_asked;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Feeds of one size.
pub(crate) struct NexusBench {
    folder: Rc<Folder>,
    feed_bytes: u64,
}

impl NexusBench {
    pub(crate) fn new(knobs: &mut Knobs, folder: Rc<Folder>) -> NexusBench {
        NexusBench { folder, feed_bytes: knobs.knob("feed_bytes", (32 * MIB, GIB)) }
    }
}

impl Bench for NexusBench {
    fn run(&self, frame: &mut Frame) -> io::Result<()> {
        let seed = frame.seed();
        for (streams, lane, goal) in [(1, false, 0.35), (1, true, 0.6), (4, false, 0.35), (4, true, 0.7)] {
            let way = if lane { "lane" } else { "gRPC" };
            let case = Case {
                bench: "nexus",
                name: format!("feed by {way}, {streams} at once"),
                against: "bare TCP",
                goal: Some(goal),
                fresh_bytes: self.feed_bytes,
                is_one_busy_thread: false,
            };
            let folder = self.folder.join(&format!("nexus-{way}-{streams}"));
            frame.case(case, || FeedPair::new(&folder, seed, self.feed_bytes, streams, lane))?;
        }
        Ok(())
    }
}
