//! `pelton pull`: a slice from another worker into the cache, as it is there.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Args;
use pelton::nexus::Dial;
use pelton::nexus::peer::{FetchOptions, Fetched, Holder};
use pelton::units::{Size, count};
use pelton::{Durability, Fingerprint, Key};
use serde::Serialize;

use crate::cache::{self, CacheOptions};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::stdout::Stdout;
use crate::tls::TlsOptions;

/// The command line of `pull`.
#[derive(Args)]
pub(crate) struct Pull {
    /// The slice, as domain/view@clock#slice
    key: Key,
    /// Where the other worker listens
    #[arg(long, value_name = "HOST:PORT")]
    peer: String,
    #[command(flatten)]
    tls: TlsOptions,
    /// Only this generation of it, as 64 hexadecimal digits [default: what is there]
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<Fingerprint>,
    /// How many regions come at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    streams: u8,
    #[command(flatten)]
    cache: CacheOptions,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

impl Pull {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let security = self.tls.client(&["pull"])?;
        let dial = Dial::new(&self.peer, security).map_err(|error| Failure::cache(&error))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime =
            runtime.map_err(|error| Failure::Cache(format!("the system gave no threads: {error}")))?;
        let cache = cache::open(self.cache.config()?)?;
        let started = Instant::now();
        let bar = Arc::new(Bar::default());
        let mut options = FetchOptions::default();
        options.streams = self.streams.into();
        options.durability = Durability::Wait;
        let told = bar.clone();
        options.on_progress = Some(Arc::new(move |progress| told.show(progress.bytes, progress.bytes_total)));
        let fetch = Holder::new(dial, options);
        let fetched = runtime.block_on(fetch.fetch(&cache, &self.key, self.fingerprint));
        bar.end();
        let fetched = fetched.map_err(|error| Failure::cache(&error))?;
        let outcome = Outcome::new(&fetched, started.elapsed());
        let mut stdout = Stdout::open()?;
        match self.json {
            true => stdout.line(serde_json::to_string(&outcome).expect("it has nothing that JSON lacks"))?,
            false => stdout.line(&outcome)?,
        }
        stdout.flush()
    }
}

/// The bar: made when it is known how much comes.
#[derive(Default)]
struct Bar {
    shown: Mutex<(Option<Progress>, u64)>,
}

impl Bar {
    fn show(&self, bytes: u64, bytes_total: u64) {
        let mut shown = self.shown.lock().expect("nothing panics under it");
        let (bar, before) = &mut *shown;
        let bar = bar.get_or_insert_with(|| Progress::new("pulling", Some(bytes_total)));
        if bytes > *before {
            bar.advance((bytes - *before) as usize);
            *before = bytes;
        }
    }

    fn end(&self) {
        let bar = self.shown.lock().expect("nothing panics under it").0.take();
        drop(bar); // Outside of the lock: it waits for its thread.
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
