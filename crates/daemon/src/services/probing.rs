//! Detects callers that create and execute too many claims.
//!
//! Leakage is metered in bits and work in credit. This is a third limit, against a submitter that
//! keeps the server busy with cheap probes. It is the gate's detector with its own rules: claims
//! differ from one another by nature. Operators are not counted.

use std::{sync::Arc, time::Duration};

use evidenceos_access::Principal;
use evidenceos_driver::clock::Clock;
use evidenceos_gate::{probes::Probes, recorder::Recorder};
use evidenceos_kernel::{
    decision::{DecisionId, DecisionRecord, Gate},
    id::Digest,
    probe::{Call, Level, Rules, RulesError},
};

use super::Error;

/// How long the refusal of a frozen caller waits to be recorded.
const PATIENCE: Duration = Duration::from_secs(2);

/// The detector for claims.
pub struct Probing {
    probes: Probes,
    freezes: bool,
    retry_after: Duration,
    recorder: Arc<Recorder>,
    clock: Arc<Clock>,
}

/// A call that is counted.
pub(super) struct Counted {
    pub(super) method: &'static str,
    /// The digest of the claim's subject.
    pub(super) topic: Digest,
    /// Distinguishes claims: equal claims have equal digests.
    pub(super) claim: Digest,
}

impl Counted {
    /// The record for the log.
    fn record(
        &self,
        principal: &Principal,
        decided_unix_ms: u64,
        decision: &str,
        reason: &str,
    ) -> DecisionRecord {
        DecisionRecord {
            id: DecisionId::default(),
            gate: Gate::Claim,
            decided_unix_ms,
            owner: principal.caller.tag,
            tool_name: self.method.to_owned(),
            params_hash: self.claim,
            session_hash: None,
            agent_hash: None,
            decision: decision.to_owned(),
            reason: reason.to_owned(),
            policies: Digest([0; 32]),
            policy: None,
            output_hash: None,
            reply_receipt: None,
            preflight_receipt: None,
            salt: Default::default(),
        }
    }
}

impl Probing {
    /// A detector with these rules. A throttled caller is told when to retry, and conspicuous calls
    /// are recorded. Unless it `freezes`, a caller that goes on stays throttled.
    ///
    /// # Errors
    /// If the rules are invalid.
    pub fn new(
        rules: Rules,
        freezes: bool,
        retry_after: Duration,
        recorder: Arc<Recorder>,
        clock: Arc<Clock>,
    ) -> Result<Self, RulesError> {
        Ok(Self {
            probes: Probes::of_claims(rules)?,
            freezes,
            retry_after,
            recorder,
            clock,
        })
    }

    /// Counts a call, and refuses it if there are too many.
    ///
    /// # Errors
    /// [`Error::Throttled`] or [`Error::Frozen`].
    pub(super) async fn must_not_probe(
        &self,
        principal: &Principal,
        call: Counted,
    ) -> Result<(), Error> {
        if principal.caller.operator {
            return Ok(());
        }
        let observed = self.probes.observe(&Call {
            principal: principal.caller.tag,
            // Claims have no sessions: all claims of a caller count together.
            operation: [0; 16],
            topic: short(&call.topic),
            hash: short(&call.claim),
        });
        let at = self.clock.now_unix_ms();
        let record = |decision, reason| call.record(principal, at, decision, reason);
        let level = if self.freezes {
            observed.level
        } else {
            observed.level.min(Level::Throttle)
        };
        match level {
            Level::Clean => Ok(()),
            Level::Throttle => Err(Error::Throttled {
                retry_after: self.retry_after,
            }),
            // As published: the call is let through and recorded.
            Level::Escalate => {
                // A full queue counts what it loses.
                let _ = self.recorder.note(record("ALLOW", "PROBE_ESCALATE"));
                Ok(())
            }
            Level::Freeze => {
                let noted = self
                    .recorder
                    .note_durably(PATIENCE, record("DENY", "PROBE_FREEZE"))
                    .await;
                // The caller is refused in any case: a full recorder must let no call through.
                if let Err(why) = noted {
                    tracing::warn!(?why, "cannot record the refusal of a caller that probes");
                }
                Err(Error::Frozen)
            }
        }
    }
}

/// The first bytes of a digest, to distinguish values.
fn short(digest: &Digest) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest.0[..8]);
    u64::from_be_bytes(bytes)
}
