//! The operations of `pelton ls`, `flush` and the others, for whoever asks the node.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pelton_nexus_proto::messages::admin_server::Admin;
use pelton_nexus_proto::messages::operate_message::Kind;
use pelton_nexus_proto::messages::{
    DrainReply, DrainRequest, LeaseInfo, ListLeasesRequest, OperateMessage, OperateProgress, OperateRequest,
    OperateSummary, Operation as Asked, Outcome,
};
use pelton_region_format::KeyPattern;
use pelton_worker::units::{Size, count};
use pelton_worker::{By, Cache, OnProgress, OnResult, Operation, Selected, Selection, SnapState};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status};

use super::gate::{needed_by, permit};
use super::state::State;
use super::wire::{Listed, Operated, Understood, read_pattern};
use crate::door::Caller;

/// How often a long operation says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Serves operators.
pub(super) struct Operators {
    cache: Cache,
    state: Arc<State>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Sender = mpsc::UnboundedSender<Result<OperateMessage, Status>>;

impl Operators {
    pub(super) fn new(cache: Cache, state: Arc<State>) -> Operators {
        Operators { cache, state }
    }

    /// Looks at the cache on a thread where one may wait: just after the start, what lies on the disks is still read.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Cache) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let cache = self.cache.clone();
        let looked = tokio::task::spawn_blocking(move || look(&cache)).await;
        looked.map_err(|_| Status::internal("looking at the cache has failed"))
    }

    async fn search(&self, selection: Selection) -> Result<Answers<OperateMessage>, Status> {
        let by = selection.by;
        let found = self.look(move |cache| cache.select(&selection)).await?;
        let matched = found.iter().map(|one| one.snaps.len() as u64).sum();
        let summary = OperateSummary { matched, done: matched, ..OperateSummary::default() };
        let listed = found.into_iter().map(move |one| match by {
            By::Generation => Listed::generation(&one),
            _ => Listed::from(&one),
        });
        let snaps = listed.map(|listed| Kind::Snap(listed.into_message()));
        let messages = snaps.chain([Kind::Summary(summary)]).map(|kind| Ok(message(kind)));
        // Made one by one, as they are sent.
        Ok(Box::pin(tokio_stream::iter(messages)))
    }

    async fn act(
        &self,
        understood: Understood,
        operation: Operation,
        auditor: Auditor,
    ) -> Result<Answers<OperateMessage>, Status> {
        let Understood { selection, mut options, confirmed, .. } = understood;
        let removes = matches!(operation, Operation::Flush | Operation::Erase);
        let (asked, wants_check) = (selection.clone(), removes && !options.dry_run && !confirmed);
        let found = self.look(move |cache| {
            let found = cache.select(&asked);
            if let Some(what) = wants_check.then(|| more_than_half(cache, &found, operation)).flatten() {
                return Err(Status::failed_precondition(what));
            }
            let snaps = found.iter().map(|one| one.snaps.len() as u64).sum();
            Ok((snaps, found.iter().map(Selected::file_bytes).sum()))
        });
        let (snaps, bytes_total): (u64, u64) = found.await??;
        let progress = OperateProgress { snaps_matched: snaps, bytes_total, ..OperateProgress::default() };
        let tally = Arc::new(Tally { counts: Mutex::new((OperateSummary::default(), progress)) });

        // Unbounded, but holds no more than what the operation itself would return.
        let (sender, answers) = mpsc::unbounded_channel();
        let (told, cache, results) = (Arc::clone(&tally), self.cache.clone(), sender.clone());
        options.on_progress = Some(OnProgress::new(move |bytes| told.lock().1.bytes_done += bytes));
        let told = Arc::clone(&tally);
        options.on_result = Some(OnResult::new(move |result| {
            let operated = Operated::from(result);
            let afterwards = match (operation, &operated.outcome) {
                (Operation::Erase, super::OperatedOutcome::Done) => SnapState::Gone,
                _ => cache.snap(&result.key).status().state,
            };
            let snap = operated.into_message(afterwards);
            told.add(snap.outcome(), snap.moved_bytes);
            let _ = results.send(Ok(message(Kind::Snap(snap))));
        }));
        let dry_run = options.dry_run;
        let operating = self.cache.operate_async(&selection, operation, &options);
        // What they send is all sent when the operation is over.
        drop(options);
        tokio::spawn(async move {
            let ended = follow(operating, &tally, &sender).await;
            let summary = tally.lock().0;
            if !dry_run {
                auditor.operated(&summary, ended);
            }
            let _ = sender.send(Ok(message(Kind::Summary(summary))));
        });
        Ok(Box::pin(UnboundedReceiverStream::new(answers)))
    }
}

/// Waits for an operation, and says now and then how far it is. Whether it came to its end: who asks no longer ends it.
async fn follow<T>(operating: impl Future<Output = T> + Unpin, tally: &Tally, sender: &Sender) -> bool {
    let mut operating = operating;
    let mut every = tokio::time::interval(PROGRESS_EVERY);
    every.tick().await;
    loop {
        tokio::select! {
            _ = &mut operating => return true,
            () = sender.closed() => return false,
            _ = every.tick() => {
                let progress = tally.lock().1;
                let _ = sender.send(Ok(message(Kind::Progress(progress))));
            }
        }
    }
}

/// What has come of an operation so far.
struct Tally {
    counts: Mutex<(OperateSummary, OperateProgress)>,
}

impl Tally {
    fn add(&self, outcome: Outcome, bytes: u64) {
        let mut counts = self.lock();
        let (summary, progress) = &mut *counts;
        summary.matched += 1;
        progress.snaps_done += 1;
        match outcome {
            Outcome::Done | Outcome::Leaving => {
                summary.done += 1;
                summary.moved_bytes += bytes;
            }
            Outcome::Unchanged => summary.unchanged += 1,
            Outcome::Refused => summary.refused += 1,
            Outcome::Damaged => summary.damaged += 1,
            Outcome::Failed | Outcome::Unspecified => summary.failed += 1,
        }
    }

    fn lock(&self) -> MutexGuard<'_, (OperateSummary, OperateProgress)> {
        // Numbers only: a panic leaves at worst one of them behind.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says what a flush or erase of these would do, if that is more than half of what there is: that is more often a slip than
/// a wish.
pub fn more_than_half(cache: &Cache, found: &[Selected], operation: Operation) -> Option<String> {
    let sum = |found: &[Selected]| {
        let bytes = |snap: &pelton_worker::SnapStatus| snap.file_bytes.max(snap.memory_bytes);
        found.iter().flat_map(|one| &one.snaps).map(bytes).sum::<u64>()
    };
    let (part, whole) = (sum(found), sum(&cache.select(&Selection::new(KeyPattern::ALL))));
    if part <= whole / 2 {
        return None;
    }
    let slices = found.iter().map(|one| one.snaps.len() as u64).sum();
    Some(format!(
        "that would {} {}, {} of the {} in the cache",
        if operation == Operation::Flush { "flush" } else { "erase" },
        count(slices, "slice"),
        Size(part),
        Size(whole),
    ))
}

/// Who asked for what, for the one line that is kept of it.
struct Auditor {
    who: String,
    from: String,
    asked: Asked,
    pattern: String,
    filters: String,
}

impl Auditor {
    /// Flush and erase leave a line, whatever came of them.
    fn operated(&self, summary: &OperateSummary, ended: bool) {
        let Auditor { who, from, asked, pattern, filters } = self;
        let what = match asked {
            Asked::Flush => "flush",
            Asked::Erase => "erase",
            _ => return,
        };
        let OperateSummary { matched, done, unchanged, refused, failed, moved_bytes, .. } = *summary;
        tracing::info!(
            target: AUDIT, %who, %from, %pattern, %filters, matched, done, unchanged, refused, failed,
            bytes = moved_bytes, ended, "{what}"
        );
    }
}

/// Where audit lines go.
const AUDIT: &str = "pelton::audit";

#[tonic::async_trait]
impl Admin for Operators {
    type OperateStream = Answers<OperateMessage>;

    async fn operate(
        &self,
        request: Request<OperateRequest>,
    ) -> Result<Response<Self::OperateStream>, Status> {
        let (who, from) = who(&request);
        let caller = request.extensions().get::<Caller>().cloned();
        let understood = Understood::read(request.get_ref())?;
        let name = understood.asked.as_str_name().trim_start_matches("OPERATION_").to_ascii_lowercase();
        permit(caller.as_ref(), needed_by(understood.asked), &name)?;
        let answers = match understood.operation {
            None => self.search(understood.selection).await?,
            Some(operation) => {
                let (pattern, filters) =
                    (understood.selection.pattern.to_string(), understood.selection.filters.to_string());
                let auditor = Auditor { who, from, asked: understood.asked, pattern, filters };
                self.act(understood, operation, auditor).await?
            }
        };
        Ok(Response::new(answers))
    }

    type ListLeasesStream = Answers<LeaseInfo>;

    async fn list_leases(
        &self,
        request: Request<ListLeasesRequest>,
    ) -> Result<Response<Self::ListLeasesStream>, Status> {
        let pattern = read_pattern(&request.get_ref().pattern, true)?;
        let leases = self.look(move |cache| {
            let mut leases = cache.leases();
            leases.retain(|lease| pattern.matches(&lease.key));
            let snaps = cache.search(&pattern);
            let snaps: HashMap<_, _> = snaps.iter().map(|snap| (&snap.key, snap)).collect();
            let info = |lease: &pelton_worker::LeaseStatus| {
                let same = snaps.get(&lease.key).filter(|snap| snap.fingerprint == Some(lease.fingerprint));
                LeaseInfo {
                    key: lease.key.to_string(),
                    fingerprint: lease.fingerprint.as_bytes().to_vec(),
                    age_ms: u64::try_from(lease.since.elapsed().as_millis()).unwrap_or(u64::MAX),
                    memory_bytes: same.map_or(0, |snap| snap.memory_bytes),
                }
            };
            leases.iter().map(info).collect::<Vec<_>>()
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(leases.await?.into_iter().map(Ok)))))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainReply>, Status> {
        let (who, from) = who(&request);
        let deadline_ms = request.get_ref().deadline_ms;
        let wait = (deadline_ms > 0).then(|| Duration::from_millis(deadline_ms));
        tracing::info!(target: AUDIT, %who, %from, deadline_ms, "drain");
        let drained = self.state.drain(wait).await;
        Ok(Response::new(DrainReply { streams_cut: drained.calls_cut, leases_left: drained.leases_left }))
    }
}

fn who<T>(request: &Request<T>) -> (String, String) {
    let caller = request.extensions().get::<Caller>();
    let from = caller.map_or_else(String::new, |caller| caller.address.to_string());
    (caller.map_or_else(String::new, Caller::name), from)
}

fn message(kind: Kind) -> OperateMessage {
    OperateMessage { kind: Some(kind) }
}
