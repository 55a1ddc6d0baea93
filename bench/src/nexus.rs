//! A slice over loopback, from another process.
//!
//! | case | limit |
//! |---|---|
//! | feed, by gRPC and by lane, one stream | one bare TCP stream of the same bytes, received and discarded |
//! | feed, by gRPC and by lane, four streams | four of them |
//! | feed, by lane under TLS | one bare rustls stream, received and discarded |
//! | feed, by lane, packed as it goes | inflating the same parcels, by one thread |
//! | fetch from a peer, from its page cache and from its disk | its files by `sendfile` over one connection, written by O_DIRECT |
//! | memory of 32 slow streams | the budget and 64 MiB |
mod bare;
mod certificates;
mod feed;
mod holder;
mod other;
mod peer;
mod slow;
mod source;

use std::io;
use std::rc::Rc;

use crate::Bench;
use crate::disk::Folder;
use crate::frame::{Case, Frame, Knobs};
use feed::{FeedPair, Way};
use holder::Residence;
use peer::PeerPair;

pub(crate) use other::serve_if_asked;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Feeds and fetches of one size each.
pub(crate) struct NexusBench {
    folder: Rc<Folder>,
    feed_bytes: u64,
    peer_bytes: u64,
    slow_bytes: u64,
}

impl NexusBench {
    pub(crate) fn new(knobs: &mut Knobs, folder: Rc<Folder>) -> NexusBench {
        NexusBench {
            folder,
            feed_bytes: knobs.knob("feed_bytes", (32 * MIB, GIB)),
            peer_bytes: knobs.knob("peer_bytes", (32 * MIB, GIB)),
            slow_bytes: knobs.knob("slow_bytes", (128 * MIB, GIB)),
        }
    }

    fn case(name: &str, against: &'static str, goal: f64, fresh_bytes: u64) -> Case {
        let name = name.to_owned();
        Case { bench: "nexus", name, against, goal: Some(goal), fresh_bytes, is_one_busy_thread: false }
    }
}

impl Bench for NexusBench {
    fn run(&self, frame: &mut Frame) -> io::Result<()> {
        let seed = frame.seed();
        let folder = |name: &str| self.folder.join(&format!("nexus-{}", name.replace([' ', ','], "-")));
        let plain = Way { lane: true, tls: false, lz4: false };
        let (grpc, tls, lz4) =
            (Way { lane: false, ..plain }, Way { tls: true, ..plain }, Way { lz4: true, ..plain });
        for (name, against, way, streams, goal) in [
            ("feed by gRPC, 1 at once", "bare TCP", grpc, 1, 0.35),
            ("feed by lane, 1 at once", "bare TCP", plain, 1, 0.6),
            ("feed by gRPC, 4 at once", "bare TCP", grpc, 4, 0.35),
            ("feed by lane, 4 at once", "bare TCP", plain, 4, 0.7),
            ("feed by lane, TLS", "bare rustls", tls, 1, 0.7),
            ("feed by lane, LZ4", "inflating", lz4, 1, 0.6),
        ] {
            let case = NexusBench::case(name, against, goal, self.feed_bytes);
            frame.case(case, || FeedPair::new(&folder(name), seed, self.feed_bytes, streams, way))?;
        }
        for (name, residence) in
            [("fetch from page cache", Residence::PageCache), ("fetch from disk", Residence::Disk)]
        {
            let case = NexusBench::case(name, "sendfile", 0.9, 0);
            frame.case(case, || PeerPair::new(&folder(name), seed, self.peer_bytes, residence))?;
        }
        frame.gauge(slow::CASE, || slow::pull(&folder("slow"), seed, self.slow_bytes))
    }
}
