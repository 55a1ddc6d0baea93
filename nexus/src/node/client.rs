//! Asking a node what an operator wants to know, and to do.

use std::time::Duration;

use pelton_nexus_proto::messages::admin_client::AdminClient;
use pelton_nexus_proto::messages::operate_message::Kind;
use pelton_nexus_proto::messages::{
    DrainRequest, LeaseInfo, ListLeasesRequest, OperateMessage, OperateRequest,
};
use pelton_nexus_proto::plain;
use pelton_region_format::KeyPattern;
use pelton_worker::{Operation, Selection};
use tonic::codec::Streaming;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::state::Drained;
use super::wire::{Listed, Operated, Progressed, RemoteOptions, request};
use crate::dial::{Dial, DialError};

/// A node somewhere else, for operators.
#[derive(Clone)]
pub struct NodeClient {
    address: String,
    admin: AdminClient<Channel>,
}

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The certificate's role does not allow it. Ask with another.
    #[error("{address} refuses: {why}")]
    Forbidden {
        /// Which node.
        address: String,
        /// What it needs.
        why: String,
    },
    /// It would remove more than half of what there is. Nothing was done: ask again, confirmed.
    #[error("{why}")]
    Unconfirmed {
        /// What it would do.
        why: String,
    },
    /// It does not serve now. Ask again later, or another.
    #[error("{address} does not serve: {why}")]
    Unavailable {
        /// Which node.
        address: String,
        /// Why.
        why: String,
    },
    /// The answer broke off. What was done is not known in full: look.
    #[error("the answer of {address} broke off, so what it has done is not known in full: {why}")]
    Broken {
        /// Which node.
        address: String,
        /// Why.
        why: String,
    },
    /// It did not understand, or something went wrong there.
    #[error("{address} could not do it: {why}")]
    Other {
        /// Which node.
        address: String,
        /// What it says.
        why: String,
    },
}

impl NodeClient {
    /// Connects.
    ///
    /// # Errors
    /// [`DialError`]
    pub async fn connect(dial: &Dial) -> Result<NodeClient, DialError> {
        let admin = AdminClient::new(dial.channel().await?);
        Ok(NodeClient { address: dial.address(), admin })
    }

    /// What a selection finds now, in the order of the keys.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn select(&self, selection: &Selection) -> Result<Vec<Listed>, AskError> {
        let request = request(selection, None, &RemoteOptions::default());
        let mut listed = Vec::new();
        self.ask(request, |kind| {
            if let Kind::Snap(snap) = kind {
                listed.push(Listed::from_message(snap));
            }
        })
        .await?;
        Ok(listed)
    }

    /// Does something to all slices that a selection finds, and says for each what came of it, in the order in which it was
    /// done.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn operate(
        &self,
        selection: &Selection,
        operation: Operation,
        options: &RemoteOptions,
        mut on_progress: impl FnMut(Progressed),
    ) -> Result<Vec<Operated>, AskError> {
        let request = request(selection, Some(operation), options);
        let mut operated = Vec::new();
        self.ask(request, |kind| match kind {
            Kind::Snap(snap) => operated.push(Operated::from_message(snap)),
            Kind::Progress(progress) => on_progress(progress.into()),
            Kind::Summary(_) => {}
        })
        .await?;
        Ok(operated)
    }

    /// Who holds leases, the oldest first.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn leases(&self, pattern: &KeyPattern) -> Result<Vec<LeaseInfo>, AskError> {
        let request = ListLeasesRequest { pattern: pattern.to_string() };
        let answer = self.admin.clone().list_leases(request).await;
        let mut answers = answer.map_err(|status| self.error(status, false))?.into_inner();
        let mut leases = Vec::new();
        while let Some(lease) = answers.message().await.map_err(|status| self.error(status, true))? {
            leases.push(lease);
        }
        Ok(leases)
    }

    /// Has the node take nothing new, wait so long for what is under way, and end.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn drain(&self, wait: Option<Duration>) -> Result<Drained, AskError> {
        let deadline_ms = wait.map_or(0, |wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1));
        let answer = self.admin.clone().drain(DrainRequest { deadline_ms }).await;
        let reply = answer.map_err(|status| self.error(status, false))?.into_inner();
        Ok(Drained { calls_cut: reply.streams_cut, leases_left: reply.leases_left })
    }

    /// Asks, and hands on what comes until the summary: without one the answer is broken.
    async fn ask(&self, request: OperateRequest, mut on: impl FnMut(Kind)) -> Result<(), AskError> {
        let answer = self.admin.clone().operate(request).await;
        let mut answers: Streaming<OperateMessage> =
            answer.map_err(|status| self.error(status, false))?.into_inner();
        let mut is_whole = false;
        while let Some(message) = answers.message().await.map_err(|status| self.error(status, true))? {
            let Some(kind) = message.kind else { continue };
            is_whole = matches!(kind, Kind::Summary(_));
            on(kind);
        }
        match is_whole {
            true => Ok(()),
            false => Err(AskError::Broken { address: self.address.clone(), why: "it has no end".to_owned() }),
        }
    }

    fn error(&self, status: Status, begun: bool) -> AskError {
        let (address, why) = (self.address.clone(), plain(status.message()));
        match status.code() {
            _ if begun => AskError::Broken { address, why },
            Code::PermissionDenied => AskError::Forbidden { address, why },
            Code::FailedPrecondition => AskError::Unconfirmed { why },
            Code::Unavailable => AskError::Unavailable { address, why },
            _ => AskError::Other { address, why },
        }
    }
}
