//! The lease of a cluster on all its hosts, as long as a piece of work lasts.
//!
//! Taken on every host that answers before the work begins, again with every new session of a host, renewed
//! while the work goes on, given back at its end. A host that does not answer keeps no lease for us until it does; the session
//! that reaches it later takes it first. See [`dmup_wire::lease`] for what a host makes of it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dmup_core::ids::{ClusterName, HostId};
use dmup_exec::ports::{Certainty, EffectError};
use dmup_wire::lease::{Holder, LeaseAsk, LeaseOrder, LeaseSeen};
use dmup_wire::message::{Outcome, RefusalKind, Request};
use futures::future::join_all;

use crate::agent_session::{AgentSession, SessionError};
use crate::fleet::{Fleet, Host, unfitting};
use crate::ssh::ReachError;

/// A lease expires so long after its holder was last heard of.
const TTL_S: u32 = 120;
/// Often enough that one lost word does no harm.
const RENEWED_EVERY: Duration = Duration::from_secs(40);
/// Somebody else's window is waited for on the host (100 s there).
const TAKING: Duration = Duration::from_secs(150);
/// A moment's word with a file system that is busy.
const WORD: Duration = Duration::from_secs(10);
/// Asked before each effect of DM: a host that was cut off must not hold the others up.
const ASKING: Duration = Duration::from_secs(3);

/// Who takes a lease of what.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claim {
    /// The cluster.
    pub cluster: ClusterName,
    /// Us.
    pub holder: Holder,
}

/// Why work did not begin: somebody else has the cluster.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{host}: {}", .why.observed)]
pub struct NotOurs {
    /// The host that said so.
    pub host: HostId,
    /// In its words.
    pub why: EffectError,
    /// How the lease is there, if the host said.
    pub seen: Option<LeaseSeen>,
}

/// What a host made of a claim.
enum Taking {
    Taken,
    /// The host cannot keep one: a full disk, no home. Work must be possible there all the same.
    NotKept(String),
    NotOurs(Box<LeaseSeen>),
}

impl Fleet {
    /// Does work with the lease of all hosts that can be reached. `note` is told of hosts that can keep none.
    ///
    /// # Errors
    ///
    /// [`NotOurs`]: the work has not begun.
    pub async fn with_lease<T>(
        &self,
        claim: Claim,
        note: impl Fn(String),
        work: impl Future<Output = T>,
    ) -> Result<T, Box<NotOurs>> {
        *self.claim.write().unwrap_or_else(PoisonError::into_inner) = Some(claim);
        let taken = self.take_everywhere(&note).await;
        if taken.is_err() {
            self.give_back().await;
        }
        taken?;
        let outcome = tokio::select! {
            outcome = work => outcome,
            never = self.keep_renewing() => match never {},
        };
        self.give_back().await;
        Ok(outcome)
    }

    async fn take_everywhere(&self, note: &impl Fn(String)) -> Result<(), Box<NotOurs>> {
        let all = self.hosts.iter().map(|(id, host)| async move {
            // Whoever has a session already takes it on that; a new one does so by itself.
            let session = host.session.lock().await.clone();
            match session.filter(|session| session.why_broken().is_none()) {
                Some(session) => (id, self.take_on(host, &session).await),
                None => match self.hello(id).await {
                    Ok(_) => (id, Ok(Taking::Taken)),
                    Err(error) => (id, Err(error)),
                },
            }
        });
        for (id, taking) in join_all(all).await {
            match taking {
                Ok(Taking::Taken) => {}
                Ok(Taking::NotKept(why)) => note(format!("{id} keeps no lease: {why}")),
                Ok(Taking::NotOurs(seen)) => {
                    return Err(not_ours(id, words(&seen), Some(*seen)));
                }
                Err(ReachError::Superseded { observed, .. }) => {
                    return Err(not_ours(id, observed, None));
                }
                // The command has its own way with hosts that do not answer.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Takes the lease on a new session, if there is a claim.
    pub(crate) async fn take_on_new(
        &self,
        host: &Host,
        session: &AgentSession,
    ) -> Result<(), ReachError> {
        let superseded = |observed| ReachError::Superseded {
            address: host.address.id.as_str().to_owned(),
            observed,
        };
        match self.take_on(host, session).await? {
            Taking::Taken | Taking::NotKept(_) => Ok(()),
            Taking::NotOurs(seen) => Err(superseded(words(&seen))),
        }
    }

    async fn take_on(&self, host: &Host, session: &AgentSession) -> Result<Taking, ReachError> {
        let address = || host.address.id.as_str().to_owned();
        let Some(claim) = self.claim() else { return Ok(Taking::Taken) };
        let after = Some(host.token.load(Ordering::SeqCst)).filter(|token| *token > 0);
        let ask = LeaseAsk::Take { holder: claim.holder.clone(), ttl_s: TTL_S, after };
        match session.request(&order(&claim, ask), TAKING).await {
            Ok(Outcome::Lease(seen)) if seen.mine => {
                host.token.store(seen.token, Ordering::SeqCst);
                Ok(Taking::Taken)
            }
            Ok(Outcome::Lease(seen)) => Ok(Taking::NotOurs(Box::new(seen))),
            Ok(_) => Err(ReachError::Bootstrap {
                address: address(),
                observed: "the agent gave an answer to something else".to_owned(),
            }),
            Err(SessionError::Refused(refusal)) => match refusal.kind {
                RefusalKind::Superseded | RefusalKind::TooSlow => Err(ReachError::Superseded {
                    address: address(),
                    observed: refusal.to_string(),
                }),
                RefusalKind::BadRequest
                | RefusalKind::Precondition
                | RefusalKind::Permission
                | RefusalKind::NoSpace
                | RefusalKind::Content
                | RefusalKind::System => Ok(Taking::NotKept(refusal.to_string())),
            },
            Err(SessionError::NotSent(observed) | SessionError::Unknown(observed)) => {
                Err(ReachError::Channel { address: address(), observed })
            }
        }
    }

    async fn keep_renewing(&self) -> Infallible {
        loop {
            tokio::time::sleep(RENEWED_EVERY).await;
            // Whoever lost it learns so from the next effect.
            self.renew_on_live(WORD).await;
        }
    }

    /// What hosts with a live session say to a renewal.
    async fn renew_on_live(&self, limit: Duration) -> BTreeMap<HostId, Result<(), SessionError>> {
        let Some(claim) = self.claim() else { return BTreeMap::new() };
        let renew = order(&claim, LeaseAsk::Renew { ttl_s: TTL_S });
        let all = self.hosts.iter().map(|(id, host)| {
            let renew = &renew;
            async move {
                if host.token.load(Ordering::SeqCst) == 0 {
                    return None;
                }
                // A host that is being connected to takes it anew in a moment.
                let session = host.session.try_lock().ok()?.clone()?;
                session.why_broken().is_none().then_some(())?;
                let answer = session.request(renew, limit).await.map(drop);
                Some((id.clone(), answer))
            }
        });
        join_all(all).await.into_iter().flatten().collect()
    }

    /// Whether the lease is still ours, by every host that has a live session, else by the first that can be reached again.
    pub(crate) async fn confirm_lease(&self) -> Result<(), EffectError> {
        if self.claim().is_none() {
            return Ok(());
        }
        let failed = |place: &str, observed: String, certainty| EffectError {
            attempted: "make sure that the cluster is still ours".to_owned(),
            place: place.to_owned(),
            observed,
            certainty,
        };
        let mut is_confirmed = false;
        for (host, answer) in self.renew_on_live(ASKING).await {
            match answer {
                Ok(()) => is_confirmed = true,
                Err(SessionError::Refused(refusal)) => {
                    if refusal.kind == RefusalKind::Superseded {
                        let observed = refusal.to_string();
                        return Err(failed(host.as_str(), observed, Certainty::Superseded));
                    }
                }
                Err(SessionError::NotSent(_) | SessionError::Unknown(_)) => {}
            }
        }
        let had: Vec<&HostId> = self
            .hosts
            .iter()
            .filter(|(_, host)| host.token.load(Ordering::SeqCst) > 0)
            .map(|(id, _)| id)
            .collect();
        // No host could keep one: then there is nobody to ask.
        if is_confirmed || had.is_empty() {
            return Ok(());
        }
        let mut last = String::new();
        for host in had {
            // A new session takes the lease, or is told that it is somebody else's.
            match self.hello(host).await {
                Ok(_) => return Ok(()),
                Err(ReachError::Superseded { observed, .. }) => {
                    return Err(failed(host.as_str(), observed, Certainty::Superseded));
                }
                Err(error) => last = error.to_string(),
            }
        }
        Err(failed("the hosts", last, Certainty::NotSent))
    }

    /// Ends the lease where there is a session; elsewhere it expires.
    async fn give_back(&self) {
        let Some(claim) = self.claim.write().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        let back = order(&claim, LeaseAsk::GiveBack);
        join_all(self.hosts.values().map(|host| async {
            let session = host.session.lock().await.clone();
            if host.token.swap(0, Ordering::SeqCst) > 0
                && let Some(session) = session
            {
                // Best effort: it expires by itself.
                drop(session.request(&back, WORD).await);
            }
        }))
        .await;
    }

    fn claim(&self) -> Option<Claim> {
        self.claim.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How the lease of a cluster is on a host.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn look_at_lease(
        &self,
        host: &HostId,
        cluster: &ClusterName,
    ) -> Result<LeaseSeen, EffectError> {
        self.ask_about_lease(host, cluster, "look at the lease", LeaseAsk::Look).await
    }

    /// Takes the lease from whoever has it on a host: nothing of theirs happens there any more.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn break_lease(
        &self,
        host: &HostId,
        cluster: &ClusterName,
        by: &str,
    ) -> Result<LeaseSeen, EffectError> {
        let ask = LeaseAsk::Break { by: by.to_owned() };
        self.ask_about_lease(host, cluster, "break the lease", ask).await
    }

    async fn ask_about_lease(
        &self,
        host: &HostId,
        cluster: &ClusterName,
        attempted: &str,
        ask: LeaseAsk,
    ) -> Result<LeaseSeen, EffectError> {
        let request = Request::Lease(LeaseOrder { cluster: cluster.clone(), ask });
        let outcome = self.request(host, attempted, &request, WORD).await?;
        let Outcome::Lease(seen) = outcome else { return Err(unfitting(attempted, host)) };
        Ok(seen)
    }
}

fn order(claim: &Claim, ask: LeaseAsk) -> Request {
    Request::Lease(LeaseOrder { cluster: claim.cluster.clone(), ask })
}

fn not_ours(host: &HostId, observed: String, seen: Option<LeaseSeen>) -> Box<NotOurs> {
    let why = EffectError {
        attempted: "take the lease".to_owned(),
        place: host.as_str().to_owned(),
        observed,
        certainty: Certainty::Superseded,
    };
    Box::new(NotOurs { host: host.clone(), why, seen })
}

/// Who has it, as a sentence; ages by the host's own clock.
fn words(seen: &LeaseSeen) -> String {
    let Some(holder) = &seen.holder else { return "nobody has it".to_owned() };
    let ago = (seen.clock_ms - seen.since_ms) / 1000;
    let left = (seen.until_ms - seen.clock_ms) / 1000;
    format!(
        "`{}` of {} has it since {ago} s, and for {left} s more unless it goes on",
        holder.what, holder.who
    )
}
