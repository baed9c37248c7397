//! The turn of one lease among gateways, and the ledger that goes with it.
//!
//! A replica is written into the ledger, as the one in hand, before it is taken down, and who has the turn next sees to it first:
//! takes down the very run that is named there, if that is not done, and waits for what comes of it. So it does no harm if a
//! gateway that was taken for dead still is about to do so: never more than one replica is down. See [`crate::platform::coordination`].

use std::sync::Arc;

use tokio::time::Instant;

use super::attempt::{Attempt, ORDER_PATIENCE, ORDER_RETRY};
use super::job::{ReplicaOutcome, RestartJob};
use super::manager::Shared;
use super::record::{InProgress, RestartRecord};
use crate::model::id::LeaseId;
use crate::model::time::LogTime;
use crate::platform::Error;
use crate::platform::coordination::{LeaseLock, LockState};

/// Why nothing more is begun.
pub(super) const SHUTTING_DOWN: &str = "the gateway is shutting down";

/// Why nothing is begun.
const NO_TURN: &str = "the gateways could not agree whose turn it is";

/// See above.
pub(super) struct RestartLock {
    shared: Arc<Shared>,
    lease: LeaseId,
    turn: Box<dyn LeaseLock>,
    /// As it was read last, and with what has come of it since if the turn is ours.
    ledger: RestartRecord,
    is_mine: bool,
}

// === impl RestartLock ===

impl RestartLock {
    pub(super) fn new(shared: Arc<Shared>, lease: LeaseId, turn: Box<dyn LeaseLock>) -> Self {
        Self { shared, lease, turn, ledger: RestartRecord::default(), is_mine: false }
    }

    /// Takes the turn, unless another gateway tells everything that `round` wants to know first.
    ///
    /// # Errors
    /// Why `round` cannot go on, for the caller.
    pub(super) async fn take(&mut self, round: &RestartJob) -> Result<(), String> {
        while !self.is_mine {
            self.queue(round).await?;
            if round.is_over() {
                return Ok(());
            }
            let Some(hand) = self.ledger.hand.as_ref().and_then(|hand| hand.request(&self.lease)) else {
                break;
            };
            tracing::info!(lease = %self.lease, replica = %hand.replica, "going on with a restart that was begun elsewhere");
            let closed = self.shared.closed.clone();
            let attempt = async {
                let verdict = match Attempt::again(&self.shared, hand).await {
                    Ok(attempt) => Self::keep(&mut self.turn, &mut self.is_mine, attempt.carry_out()).await,
                    Err(why) => Err(why),
                };
                verdict.map_or_else(ReplicaOutcome::Failed, |()| ReplicaOutcome::Active)
            };
            let verdict = tokio::select! {
                biased;
                () = closed.cancelled() => return Err(SHUTTING_DOWN.to_owned()),
                verdict = attempt => verdict,
            };
            tracing::info!(lease = %self.lease, verdict = ?verdict, "what was begun elsewhere is over");
            self.ledger.judge(&verdict);
            self.apply(round);
        }
        Ok(())
    }

    /// Waits until the turn is ours, or `round` is over.
    async fn queue(&mut self, round: &RestartJob) -> Result<(), String> {
        let (closing, mut silent_since, mut told) = (self.shared.closing.clone(), Instant::now(), None);
        loop {
            let look = tokio::select! {
                biased;
                () = closing.cancelled() => return Err(SHUTTING_DOWN.to_owned()),
                look = self.turn.acquire_or_observe() => look,
            };
            match look {
                Ok(LockState::Held(note)) => {
                    self.is_mine = true;
                    self.read(&note);
                    self.apply(round);
                    return Ok(());
                }
                Ok(LockState::Others { holder, note }) => {
                    silent_since = Instant::now();
                    self.read(&note);
                    self.apply(round);
                    if told.as_ref() != Some(&holder) {
                        tracing::info!(lease = %self.lease, holder, "another gateway restarts replicas of this lease; waiting");
                        told = Some(holder);
                    }
                }
                Err(error) if error.is_retryable() && silent_since.elapsed() < ORDER_PATIENCE => {
                    tracing::warn!(lease = %self.lease, %error, "whose turn it is could not be found out; asking again");
                    tokio::time::sleep(ORDER_RETRY).await;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(lease = %self.lease, error, "whose turn it is cannot be found out");
                    return Err(NO_TURN.to_owned());
                }
            }
            if round.is_over() {
                return Ok(());
            }
        }
    }

    fn read(&mut self, note: &str) {
        self.ledger = RestartRecord::read(note).unwrap_or_else(|| {
            tracing::warn!(lease = %self.lease, "what another gateway has written about restarts cannot be read");
            RestartRecord::default()
        });
    }

    /// Has `round` know what has come of it at other gateways.
    fn apply(&self, round: &RestartJob) {
        let call = round.request.id.as_ref().and_then(|id| self.ledger.call(id));
        let Some(call) = call else { return };
        if !call.is(&round.request) {
            let why = "another gateway was given the same request_id for other replicas".to_owned();
            for part in &round.parts {
                self.shared.leave(&self.lease, part, &ReplicaOutcome::NotAttempted(why.clone()));
            }
            return;
        }
        for (replica, verdict) in call.verdicts() {
            let part = round.parts.iter().find(|part| part.replica == replica && !part.cell.initialized());
            if let (Some(part), Some(verdict)) = (part, verdict) {
                self.shared.leave(&self.lease, part, &verdict);
            }
        }
    }

    /// Writes down what is about to be taken down. `false`: the turn is lost, and nothing may be.
    pub(super) async fn begin(&mut self, round: &RestartJob, attempt: &Attempt) -> bool {
        let now = LogTime::now().parts().0;
        self.ledger.put(round, now);
        self.ledger.hand = Some(InProgress::new(&attempt.request, round.request.id.as_ref()));
        let note = self.ledger.note(now);
        self.is_mine = match self.turn.write_payload(note).await {
            Ok(()) => true,
            Err(error) => lost(&error),
        };
        self.is_mine
    }

    /// What was to be taken down will not be.
    pub(super) fn spare(&mut self) {
        self.ledger.hand = None;
    }

    /// Holds on to the turn while `attempt` goes on, if that can be.
    pub(super) async fn carry_out(&mut self, attempt: Attempt) -> Result<(), String> {
        Self::keep(&mut self.turn, &mut self.is_mine, attempt.carry_out()).await
    }

    /// What was in hand has its verdict.
    pub(super) fn judge(&mut self, verdict: &ReplicaOutcome) {
        self.ledger.judge(verdict);
    }

    async fn keep<T>(turn: &mut Box<dyn LeaseLock>, is_mine: &mut bool, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        if *is_mine {
            tokio::select! {
                done = &mut work => return done,
                error = turn.renew_until_lost() => *is_mine = lost(&error),
            }
        }
        // What is in hand is seen to its end: others know of it.
        work.await
    }

    /// The round is over, or cannot go on: gives the turn back, if it is ours.
    pub(super) async fn leave(&mut self, round: &RestartJob) {
        if !std::mem::take(&mut self.is_mine) {
            return;
        }
        let now = LogTime::now().parts().0;
        self.ledger.put(round, now);
        let note = self.ledger.note(now);
        if let Err(error) = self.turn.release(note).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(lease = %self.lease, error, "the turn was not given back; it will run out");
        }
    }
}

fn lost(error: &Error) -> bool {
    tracing::warn!(
        error = error as &dyn std::error::Error,
        "the turn is lost; nothing is taken down before it comes again"
    );
    false
}
