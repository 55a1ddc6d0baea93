//! Another worker that slices come from: what `pull` and `repair` say of it, and how far they are.

use std::sync::{Arc, Mutex};

use clap::Args;
use pelton::Durability;
use pelton::nexus::Dial;
use pelton::nexus::peer::{FetchOptions, Holder};

use crate::failure::Failure;
use crate::progress::Progress;
use crate::tls::TlsOptions;

/// The options that say which worker it is, and how to speak to it.
#[derive(Args)]
pub(crate) struct PeerOptions {
    /// Where the other worker listens
    #[arg(long, value_name = "HOST:PORT")]
    peer: String,
    #[command(flatten)]
    tls: TlsOptions,
    /// How many regions come at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    streams: u8,
}

impl PeerOptions {
    /// The worker, with a bar that shows what comes; it goes away when `end` is called. `command` is for what makes no
    /// sense.
    pub(crate) fn holder(&self, command: &str, bar: &Arc<Bar>) -> Result<Holder, Failure> {
        let security = self.tls.client(&[command])?;
        let dial = Dial::new(&self.peer, security).map_err(|error| Failure::cache(&error))?;
        let mut options = FetchOptions::default();
        options.streams = self.streams.into();
        options.durability = Durability::Wait;
        let told = bar.clone();
        options.on_progress = Some(Arc::new(move |progress| told.show(progress.bytes, progress.bytes_total)));
        Ok(Holder::new(dial, options))
    }
}

/// The bar: made when it is known how much comes.
pub(crate) struct Bar {
    doing: &'static str,
    shown: Mutex<(Option<Progress>, u64)>,
}

impl Bar {
    pub(crate) fn new(doing: &'static str) -> Arc<Bar> {
        Arc::new(Bar { doing, shown: Mutex::default() })
    }

    fn show(&self, bytes: u64, bytes_total: u64) {
        let mut shown = self.shown.lock().expect("nothing panics under it");
        let (bar, before) = &mut *shown;
        let bar = bar.get_or_insert_with(|| Progress::new(self.doing, Some(bytes_total)));
        if bytes > *before {
            bar.advance((bytes - *before) as usize);
            *before = bytes;
        }
    }

    pub(crate) fn end(&self) {
        let bar = self.shown.lock().expect("nothing panics under it").0.take();
        drop(bar); // Outside of the lock: it waits for its thread.
    }
}
