//! Loads a slice from a source that speaks Feed.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use pelton::nexus::feed::{FeedError, FeedFrom, FeedOptions, Puller};
use pelton::nexus::{Codec, Dial};
use pelton::{Cache, CancelToken, Fingerprint, Key, SealedSlice};

use super::{Load, Outcome, is_there, random};
use crate::cache;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::say;
use crate::usage::usage;

/// How often a load is begun, where its source can't go on after a stream that broke in the middle.
const LOADS_MAX: u32 = 3;

/// The `HOST:PORT` of a source; nothing for files.
pub(super) fn address(from: &Path) -> Option<&str> {
    from.to_str()?.strip_prefix("nexus://")
}

/// Pulls the slice.
pub(super) fn run(load: &Load, address: &str) -> Result<(), Failure> {
    let security = load.tls.client(&["load"])?;
    check(load)?;
    let dial = Dial::new(address, security).map_err(|error| Failure::cache(&error))?;
    let cache = cache::open(load.cache.config()?)?;
    // What a source would send can't be known before, so it is never taken for something else.
    let fingerprint: Fingerprint = match load.fingerprint {
        Some(fingerprint) => fingerprint,
        None => random()?,
    };
    let keys = load.key.keys(1);
    if is_there(&cache, &load.key, &keys, fingerprint) {
        return load.tell(&Outcome::of_cache(&cache, &load.key, fingerprint));
    }
    let started = Instant::now();
    let runtime = runtime()?;
    let sources = [FeedFrom::new(dial)];
    let mut loads = 0;
    let sealed = loop {
        loads += 1;
        match pull(load, &cache, &keys[0], fingerprint, &runtime, &sources) {
            Ok(sealed) => break sealed,
            Err(error) if loads < LOADS_MAX && error.helps_anew() => {
                let error = Failure::cache(&error);
                say(&format_args!("{error}; what has come of it is given up, and it begins anew"));
            }
            Err(error) => return Err(Failure::cache(&error)),
        }
    };
    load.close(&cache, &keys, fingerprint, vec![sealed], started)
}

/// One load of the slice. Whatever ends it early, nothing of it is left.
fn pull(
    load: &Load,
    cache: &Cache,
    key: &Key,
    fingerprint: Fingerprint,
    runtime: &tokio::runtime::Runtime,
    sources: &[FeedFrom],
) -> Result<SealedSlice, Box<FeedError>> {
    let refuse = |source| FeedError::Load { key: key.clone(), source };
    let writer = cache.snap(key).open_for_writes(load.plan(fingerprint, None)).map_err(refuse)?;
    let progress = Arc::new(Progress::new("loading", None));
    let shown = Arc::clone(&progress);
    let mut options = FeedOptions::default();
    options.profile.codecs = vec![load.codec.into()];
    let puller = Puller::new(runtime.handle().clone())
        .options(options)
        .on_parcel(move |_, bytes| shown.advance(usize::try_from(bytes).unwrap_or(usize::MAX)));
    let counts = puller.pull(&writer, fingerprint, sources, None, &CancelToken::new())?;
    drop((puller, progress));
    let mut sealed = writer.wait_for_writes().map_err(refuse)?;
    sealed.tell(counts);
    Ok(sealed)
}

fn check(load: &Load) -> Result<(), Failure> {
    let refuse = |message: &str| Err(usage(&["load"], message.to_owned()));
    if load.format.is_some() {
        return refuse("a source sends blobs as such, so --format has no meaning; leave it out");
    }
    if load.slices.is_some_and(|slices| slices > 1) {
        return refuse(
            "a source gives one slice at a time; load each by its own key, as domain/view@clock#slice",
        );
    }
    Ok(())
}

/// Serves this command's sockets.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    threads.map_err(|error| Failure::Cache(format!("the system gave no threads for sockets: {error}")))
}

impl From<super::Codec> for Codec {
    fn from(codec: super::Codec) -> Codec {
        match codec {
            super::Codec::None => Codec::None,
            super::Codec::Lz4 => Codec::Lz4,
            #[cfg(feature = "zstd")]
            super::Codec::Zstd => Codec::Zstd,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_named_by_its_scheme_and_everything_else_is_a_file() {
        assert_eq!(address(Path::new("nexus://127.0.0.1:7")), Some("127.0.0.1:7"));
        assert_eq!(address(Path::new("nexus:/127.0.0.1:7")), None);
        assert_eq!(address(Path::new("./nexus://x")), None);
    }
}
