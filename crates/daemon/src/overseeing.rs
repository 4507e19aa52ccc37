//! The checks on a run: the policy modules, which may veto its judgement, and the counts.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use evidenceos_custody::{Ended, Overseer, Vetoed};
use evidenceos_gate::policies::{Policies, Settling, Verdict, settlement_input};
use evidenceos_kernel::id::ClaimId;
use evidenceos_sandbox::Ran;

use crate::metrics::{Metrics, RunCount};

/// Asks the policy modules in force, and counts runs.
pub struct Overseeing {
    pub policies: Arc<ArcSwap<Policies>>,
    pub metrics: Arc<Metrics>,
}

impl Overseer for Overseeing {
    fn needed_module(&self, was_compiled: bool) {
        self.metrics.needed_module(was_compiled);
    }

    fn veto(&self, ended: &Ended<'_>) -> Option<Vetoed> {
        let policies = self.policies.load();
        if policies.oracles().is_empty() {
            return None;
        }
        let Ended {
            work,
            ran,
            output,
            charged,
        } = ended;
        let input = settlement_input(&Settling {
            claim: &work.claim,
            holdout_ref: &work.reference,
            holdout_alpha_micros: work.description.policy.alpha_micros,
            output,
            oracle_calls: ran.oracle_calls,
            answers_charged_microbits: charged.get(),
            fuel: ran.fuel_used,
            memory_pages: ran.memory_pages,
        });
        let (veto, deferred) = match policies.decide(&input) {
            Verdict::Approve => return None,
            Verdict::Defer(veto) => (veto, true),
            Verdict::Reject(veto) => (veto, false),
        };
        tracing::info!(oracle = %veto.oracle_id, claim = %work.claim.id, deferred, "a policy module keeps a claim from being judged");
        Some(Vetoed {
            code: veto.reason_code,
            deferred,
        })
    }

    fn ran(&self, claim: ClaimId, ran: &Ran, took: Duration, veto: Option<Vetoed>) {
        let vetoed = veto.map(|veto| veto.deferred);
        let count = RunCount::new(&ran.end, ran.fuel_used, took, vetoed);
        self.metrics.ran(claim, count);
    }
}
