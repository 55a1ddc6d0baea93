//! A damaged slice, made whole from what is good here and a peer's blocks for the rest.
//!
//! Nothing is patched: all of its regions are built as fresh files, in a load of their own, and a new manifest takes the
//! place of the old one. Until then what is here stays as it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pelton_region_format::Key;
use pelton_worker::{
    Cache, CancelToken, Durability, IntakeError, RegionIntake, RegionOutlet, SliceOutlet, Want,
};

use super::error::FetchError;
use super::fetch::{CancelOnDrop, Holder, Session, block_end};
use super::line::Line;
use super::manifest::PeerManifest;

/// What a repair has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Repaired {
    /// How many stretches came from the peer: damaged blocks, and headers with ends.
    pub stretches: u64,
    /// How many bytes they had.
    pub bytes_fetched: u64,
    /// How many bytes were good here.
    pub bytes_kept: u64,
}

impl Holder {
    /// Builds a slice that is here anew, of its own good blocks and of the peer's where they are damaged. Takes disk space
    /// for all of it beside what is there, and is done when the new files are durable.
    ///
    /// The peer must have the same slice: the same fingerprint and the same regions.
    ///
    /// Dropping the future ends it, and leaves what was there.
    ///
    /// # Errors
    /// [`FetchError`]. What is here is as it was.
    pub async fn repair(&self, cache: &Cache, key: &Key) -> Result<Repaired, FetchError> {
        let cancel = CancelToken::new();
        let _cancels = CancelOnDrop(cancel.clone());
        let peer = || self.dial.address().into_boxed_str();
        let lost = |text: &str| {
            let (key, text) = (key.clone(), text.to_owned());
            FetchError::Lost { peer: peer(), key, region: 0, offset: 0, text }
        };
        // Just after the start it waits for a disk.
        let (here, of, deadline) = (cache.clone(), key.clone(), self.options.deadline);
        let outlet = tokio::task::spawn_blocking(move || here.outlet(&of, Want::Latest, deadline)).await;
        let outlet = outlet
            .map_err(|_| lost("a bug in pelton: looking at the slice panicked"))?
            .map_err(|source| FetchError::NothingHere { peer: peer(), source: Box::new(source) })?;
        let session = self.session(key, cancel).await?;
        let manifest = session.manifest(Some(outlet.fingerprint())).await?;
        if manifest.region_count() != outlet.region_count()
            || !manifest.regions().iter().map(|region| region.index).eq(outlet.region_indexes())
        {
            let text = "its regions are not those that are here".to_owned();
            return Err(FetchError::Manifest { peer: peer(), key: key.clone(), text });
        }
        let cache = cache.clone();
        let mend = move || Mend::new(outlet, session.options.deadline).run(&session, &cache, &manifest);
        let mended = tokio::task::spawn_blocking(mend).await;
        mended.unwrap_or_else(|_| Err(lost("a bug in pelton: the repair panicked")))
    }
}

/// One repair under way.
struct Mend {
    outlet: SliceOutlet,
    deadline: Option<std::time::Instant>,
    stretches: AtomicU64,
    bytes_fetched: AtomicU64,
    bytes_kept: AtomicU64,
}

impl Mend {
    fn new(outlet: SliceOutlet, deadline: Option<std::time::Instant>) -> Mend {
        let zero = AtomicU64::default;
        Mend { outlet, deadline, stretches: zero(), bytes_fetched: zero(), bytes_kept: zero() }
    }

    fn run(self, session: &Session, cache: &Cache, manifest: &PeerManifest) -> Result<Repaired, FetchError> {
        let mut plan = manifest.plan();
        plan.durability = Durability::Wait;
        plan.write_path = session.options.write_path;
        plan.deadline = self.deadline;
        let refuse = |error| session.subject.load(error);
        let writer = cache.snap(manifest.key()).open_for_writes(plan).map_err(refuse)?;
        let open = |index| writer.region_intake(index);
        let take = |session: &Session, line: &mut Line<'_>, intake: &mut RegionIntake| {
            self.mend_region(session, line, intake)
        };
        session.take_all(manifest.fingerprint(), manifest.regions(), &open, &take)?;
        session.check()?;
        writer.wait_for_writes().and_then(|sealed| sealed.close_for_writes()).map_err(refuse)?;
        Ok(Repaired {
            stretches: self.stretches.into_inner(),
            bytes_fetched: self.bytes_fetched.into_inner(),
            bytes_kept: self.bytes_kept.into_inner(),
        })
    }

    fn mend_region(
        &self,
        session: &Session,
        line: &mut Line<'_>,
        intake: &mut RegionIntake,
    ) -> Result<(), FetchError> {
        let index = intake.region().index;
        let local = match self.outlet.region(index, self.deadline) {
            // Whole, but not what the peer has under that number: all of it comes from there.
            Ok(local) => Some(Arc::new(local)).filter(|local| local.region() == intake.region()),
            // Its header or end is damaged, or its disk does not give it.
            Err(error) => {
                tracing::info!(%error, region = index, "a region is fetched as a whole");
                None
            }
        };
        let Some(local) = local else {
            let bytes = intake.region().file_bytes;
            session.take(line, intake)?;
            self.fetched(bytes);
            return Ok(());
        };
        while let Some(wanted) = intake.wanted() {
            session.check()?;
            let end = block_end(intake.region(), wanted.start).min(wanted.end);
            let range = wanted.start..end;
            let bytes = end - wanted.start;
            if self.keep(session, &local, intake, range.clone())? {
                self.bytes_kept.fetch_add(bytes, Ordering::Relaxed);
                continue;
            }
            if intake.wanted().is_none_or(|wanted| wanted.start != range.start) {
                // Its header or end, which was whole when it was opened. Then nothing here is worth a look.
                session.take(line, intake)?;
                self.fetched(intake.region().file_bytes);
                return Ok(());
            }
            // The block is wanted once more, from its start.
            line.fetch_by_grpc(intake, range)?;
            self.fetched(bytes);
        }
        Ok(())
    }

    /// Copies a stretch from here. Says whether it was good.
    fn keep(
        &self,
        session: &Session,
        local: &RegionOutlet,
        intake: &mut RegionIntake,
        range: std::ops::Range<u64>,
    ) -> Result<bool, FetchError> {
        let Ok(bytes) = local.read(range.start, range.end, self.deadline) else { return Ok(false) };
        if bytes.len() as u64 != range.end - range.start {
            return Ok(false);
        }
        match intake.put(&bytes) {
            Ok(()) => {
                session.received(bytes.len() as u64);
                Ok(true)
            }
            Err(IntakeError::Load(error)) => Err(session.subject.load(error)),
            Err(_) => Ok(false),
        }
    }

    fn fetched(&self, bytes: u64) {
        self.stretches.fetch_add(1, Ordering::Relaxed);
        self.bytes_fetched.fetch_add(bytes, Ordering::Relaxed);
    }
}
