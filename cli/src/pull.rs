//! `pelton pull`: a slice from another worker into the cache, as it is there.

use std::fmt;
use std::time::{Duration, Instant};

use clap::Args;
use pelton::nexus::peer::Fetched;
use pelton::units::{Size, count};
use pelton::{Fingerprint, Key};
use serde::Serialize;

use crate::cache::{self, CacheOptions};
use crate::failure::Failure;
use crate::load::runtime;
use crate::peer::{Bar, PeerOptions};
use crate::stdout;

/// The command line of `pull`.
#[derive(Args)]
pub(crate) struct Pull {
    /// The slice, as domain/view@clock#slice
    key: Key,
    #[command(flatten)]
    peer: PeerOptions,
    /// Only this generation of it, as 64 hexadecimal digits [default: what is there]
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<Fingerprint>,
    #[command(flatten)]
    cache: CacheOptions,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

impl Pull {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let bar = Bar::new("pulling");
        let holder = self.peer.holder("pull", &bar)?;
        let runtime = runtime()?;
        let cache = cache::open(self.cache.config()?)?;
        let started = Instant::now();
        let fetched = runtime.block_on(holder.fetch(&cache, &self.key, self.fingerprint));
        bar.end();
        let fetched = fetched.map_err(|error| Failure::cache(&error))?;
        stdout::tell(&Outcome::new(&fetched, started.elapsed()), self.json)
    }
}

/// How a pull ended.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// It was there before, and nothing came.
    Exists,
    /// It came, and would survive a power cut.
    Durable,
}

/// What is said about a pull.
#[derive(Serialize)]
struct Outcome {
    key: String,
    state: State,
    fingerprint: String,
    count: u64,
    bytes: u64,
    regions: usize,
    /// What came over the wire of its files.
    bytes_fetched: u64,
    /// `null` if nothing came.
    seconds: Option<f64>,
}

impl Outcome {
    fn new(fetched: &Fetched, took: Duration) -> Outcome {
        let manifest = &fetched.manifest;
        Outcome {
            key: manifest.key().to_string(),
            state: if fetched.was_here { State::Exists } else { State::Durable },
            fingerprint: manifest.fingerprint().to_string(),
            count: manifest.blob_count(),
            bytes: manifest.blob_bytes(),
            regions: manifest.regions().len(),
            bytes_fetched: fetched.bytes,
            seconds: (!fetched.was_here).then_some(took.as_secs_f64()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.key)?;
        match self.state {
            State::Exists => write!(f, "is there already, nothing was pulled: ")?,
            State::Durable => {
                let seconds = Duration::from_secs_f64(self.seconds.unwrap_or(0.0));
                write!(f, "durable after {seconds:.1?}: ")?;
            }
        }
        let regions = count(self.regions as u64, "region");
        write!(f, "{regions}, {}, {}", count(self.count, "blob"), Size(self.bytes))
    }
}
