//! `pelton repair`: a damaged slice of the cache made whole with another worker's blocks.

use std::fmt;
use std::time::{Duration, Instant};

use clap::Args;
use pelton::Key;
use pelton::nexus::peer::Repaired;
use pelton::units::{Size, count};
use serde::Serialize;

use crate::cache::{self, CacheOptions};
use crate::failure::Failure;
use crate::load::runtime;
use crate::peer::{Bar, PeerOptions};
use crate::stdout;

/// The command line of `repair`.
#[derive(Args)]
pub(crate) struct Repair {
    /// The slice, as domain/view@clock#slice
    key: Key,
    #[command(flatten)]
    peer: PeerOptions,
    #[command(flatten)]
    cache: CacheOptions,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

impl Repair {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let bar = Bar::new("repairing");
        let holder = self.peer.holder("repair", &bar)?;
        let runtime = runtime()?;
        let cache = cache::open_existing(self.cache.config()?)?;
        let started = Instant::now();
        let repaired = runtime.block_on(holder.repair(&cache, &self.key));
        bar.end();
        let repaired = repaired.map_err(|error| Failure::cache(&error))?;
        stdout::tell(&Outcome::new(&self.key, &repaired, started.elapsed()), self.json)
    }
}

/// How a repair ended.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// Nothing was damaged.
    Whole,
    /// What was damaged came from the peer.
    Repaired,
}

/// What is said about a repair.
#[derive(Serialize)]
struct Outcome {
    key: String,
    state: State,
    /// Damaged blocks, and headers with ends, that came from the peer.
    stretches: u64,
    bytes_fetched: u64,
    /// What was good here.
    bytes_kept: u64,
    seconds: f64,
}

impl Outcome {
    fn new(key: &Key, repaired: &Repaired, took: Duration) -> Outcome {
        let Repaired { stretches, bytes_fetched, bytes_kept, .. } = *repaired;
        let state = if stretches > 0 { State::Repaired } else { State::Whole };
        let (key, seconds) = (key.to_string(), took.as_secs_f64());
        Outcome { key, state, stretches, bytes_fetched, bytes_kept, seconds }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = Size(self.bytes_kept);
        match self.state {
            State::Whole => write!(f, "{}: was whole, nothing came from the peer: {kept}", self.key),
            State::Repaired => {
                let took = Duration::from_secs_f64(self.seconds);
                let (places, fetched) = (count(self.stretches, "damaged place"), Size(self.bytes_fetched));
                write!(
                    f,
                    "{}: repaired after {took:.1?}: {places}, {fetched} from the peer; {kept} kept",
                    self.key
                )
            }
        }
    }
}
