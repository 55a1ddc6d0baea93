//! Where an operation is done: on a cache that is opened for it, or on a node that runs.

use std::sync::Arc;

use clap::Args;
use pelton::nexus::Dial;
use pelton::nexus::messages::LeaseInfo;
use pelton::nexus::node::{AskError, Listed, NodeClient, Operated, RemoteOptions, more_than_half};
use pelton::{
    By, Cache, Fingerprint, KeyPattern, OnProgress, Operation, OperationOptions, Selected, Selection,
};
use tokio::runtime::Runtime;

use crate::failure::{Failure, one_line, reason};
use crate::progress::Progress;
use crate::tls::TlsOptions;

/// The node, if it is one.
#[derive(Args)]
pub(super) struct NodeOptions {
    /// Ask the node that "pelton serve" runs there, instead of opening a cache
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["spindles", "memory", "config"])]
    node: Option<String>,
    #[command(flatten)]
    tls: TlsOptions,
}

/// Where an operation is done.
pub(super) enum Place {
    Here(Cache),
    There(Box<Remote>),
}

/// A node, and what it takes to wait for it.
pub(super) struct Remote {
    runtime: Runtime,
    client: NodeClient,
}

/// How an operation is done.
#[derive(Default)]
pub(super) struct How {
    pub(super) dry_run: bool,
    /// Also if it removes more than half of what there is.
    pub(super) confirmed: bool,
    pub(super) rate: Option<u64>,
    pub(super) progress: Option<Arc<Progress>>,
}

/// A lease that somebody holds.
pub(super) struct Leased {
    pub(super) key: String,
    pub(super) fingerprint: String,
    pub(super) held: std::time::Duration,
}

impl NodeOptions {
    /// Connects to the node, if there is one.
    pub(super) fn connect(&self, command: &str) -> Result<Option<Remote>, Failure> {
        let Some(address) = &self.node else {
            return match self.tls.is_given() {
                true => {
                    Err(crate::usage::usage(&[command], "--tls-* and --insecure go with --node".to_owned()))
                }
                false => Ok(None),
            };
        };
        let security = self.tls.client(&[command])?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| Failure::Cache(format!("no connection: {}", reason(&error))))?;
        let dial = Dial::new(address, security).map_err(|error| Failure::cache(&error))?;
        let client = runtime.block_on(NodeClient::connect(&dial));
        let client = client.map_err(|error| Failure::cache(&error))?;
        Ok(Some(Remote { runtime, client }))
    }
}

impl Place {
    pub(super) fn select(&self, selection: &Selection) -> Result<Vec<Listed>, Failure> {
        match self {
            Place::Here(cache) => {
                let listed = |one: &Selected| match selection.by {
                    By::Generation => Listed::generation(one),
                    _ => Listed::from(one),
                };
                Ok(cache.select(selection).iter().map(listed).collect())
            }
            Place::There(remote) => remote.runtime.block_on(remote.client.select(selection)).map_err(refusal),
        }
    }

    /// How many bytes the files have that a selection finds.
    pub(super) fn file_bytes(&self, selection: &Selection) -> Result<u64, Failure> {
        Ok(self.select(selection)?.iter().map(|one| one.file_bytes).sum())
    }

    /// What came of it, in the order of the keys.
    pub(super) fn operate(
        &self,
        selection: &Selection,
        operation: Operation,
        how: &How,
    ) -> Result<Vec<Operated>, Failure> {
        match self {
            Place::Here(cache) => {
                let removes = matches!(operation, Operation::Flush | Operation::Erase);
                if removes && !how.dry_run && !how.confirmed {
                    let what = more_than_half(cache, &cache.select(selection), operation);
                    what.map_or(Ok(()), |what| Err(unconfirmed(&what)))?;
                }
                let mut options = OperationOptions::default();
                (options.dry_run, options.rate) = (how.dry_run, how.rate);
                options.on_progress = how.progress.as_ref().map(follow);
                let results = cache.operate(selection, operation, &options);
                Ok(results.iter().map(Operated::from).collect())
            }
            Place::There(remote) => {
                let mut options = RemoteOptions::default();
                (options.dry_run, options.confirmed, options.rate) = (how.dry_run, how.confirmed, how.rate);
                let mut told = 0;
                let operating = remote.client.operate(selection, operation, &options, |progress| {
                    if let Some(bar) = &how.progress {
                        bar.advance(
                            usize::try_from(progress.bytes_done.saturating_sub(told)).unwrap_or(usize::MAX),
                        );
                    }
                    told = progress.bytes_done;
                });
                let mut results = remote.runtime.block_on(operating).map_err(refusal)?;
                // As keys are ordered, numbers by their value.
                results.sort_by_key(|result| result.key.parse::<pelton::Key>().ok());
                Ok(results)
            }
        }
    }

    /// Waits until what was done is on the disks. A node sees to that itself.
    pub(super) fn close(self) -> Result<(), Failure> {
        match self {
            Place::Here(cache) => cache.close(None).map_err(|error| Failure::cache(&error)),
            Place::There(_) => Ok(()),
        }
    }

    pub(super) fn leases(&self, pattern: &KeyPattern) -> Result<Vec<Leased>, Failure> {
        match self {
            Place::Here(cache) => {
                let leases = cache.leases().into_iter().filter(|lease| pattern.matches(&lease.key));
                Ok(leases
                    .map(|lease| Leased {
                        key: lease.key.to_string(),
                        fingerprint: lease.fingerprint.to_string(),
                        held: lease.since.elapsed(),
                    })
                    .collect())
            }
            Place::There(remote) => {
                let leases = remote.runtime.block_on(remote.client.leases(pattern)).map_err(refusal)?;
                Ok(leases.into_iter().map(Leased::from).collect())
            }
        }
    }
}

impl From<LeaseInfo> for Leased {
    fn from(lease: LeaseInfo) -> Leased {
        let fingerprint = <[u8; 32]>::try_from(&*lease.fingerprint).map(Fingerprint::from_bytes);
        Leased {
            key: one_line(&lease.key),
            fingerprint: fingerprint.map_or_else(|_| "?".to_owned(), |fingerprint| fingerprint.to_string()),
            held: std::time::Duration::from_millis(lease.age_ms),
        }
    }
}

/// Moves a bar.
fn follow(progress: &Arc<Progress>) -> OnProgress {
    let progress = progress.clone();
    OnProgress::new(move |bytes| progress.advance(usize::try_from(bytes).unwrap_or(usize::MAX)))
}

fn unconfirmed(what: &str) -> Failure {
    Failure::Cache(format!("{}: give --yes to do so, or --dry-run to see which", one_line(what)))
}

fn refusal(error: AskError) -> Failure {
    match &error {
        AskError::Unconfirmed { why } => unconfirmed(why),
        error => Failure::cache(error),
    }
}
