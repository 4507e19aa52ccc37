//! Entries that concern no holdout: decisions of the gate, policies, and credit.

use evidenceos_kernel::{
    account::MAX_CREDIT,
    decision::{BatchRecorded, DecisionId},
    id::OwnerTag,
    in_force::PoliciesStated,
    record::RecordError,
};

use super::{Event, Replay};
use crate::{
    fault::{Check, Fault},
    fields::{Fields, value},
};

/// The low bits of a decision's number count from 0; the high bits number the daemon's starts.
const COUNTING_BITS: u32 = 40;

impl Replay {
    /// Checks that batches follow one another without a gap; after a new start of the daemon, the count begins at 0
    /// under a higher number of starts.
    pub(super) fn decisions(&mut self, entry: &[u8]) -> Result<(), Fault> {
        let batch = BatchRecorded::parse(entry)?.batch;
        let begins_a_start = batch.first.0.trailing_zeros() >= COUNTING_BITS;
        let follows = match self.next_decision {
            None => true,
            Some(next) => batch.first == next || begins_a_start && batch.first > next,
        };
        // Whatever this batch states, the next one is measured by it, so that one gap is one
        // finding.
        self.next_decision = Some(DecisionId(batch.last().0.saturating_add(1)));
        Check::Decisions.holds(
            follows,
            "first_decision_hex follows the last decision of the batch before, or begins a later start of the daemon",
        )?;
        Check::Decisions.holds(
            batch.first.0 >> COUNTING_BITS == batch.last().0 >> COUNTING_BITS,
            "all decisions of a batch are of one start of the daemon",
        )
    }

    pub(super) fn policies(&mut self, index: u64, entry: &[u8]) -> Result<(), Fault> {
        let in_force = PoliciesStated::parse(entry)?.in_force;
        self.events.push((index, Event::Policies(in_force)));
        let before = std::mem::replace(&mut self.in_force, in_force);
        Check::Policies.holds(
            before != in_force,
            "policies are stated only if they changed",
        )
    }
}

pub(super) fn credit_granted(mut fields: Fields) -> Result<(), Fault> {
    let owner = fields.text("owner_tag_hex")?;
    OwnerTag::from_hex(&owner).ok_or_else(|| RecordError::Field("owner_tag_hex".to_owned()))?;
    let amount = fields.int("amount")?;
    fields.public_text("reason")?;
    fields.int("granted_unix_ms")?;
    fields.finish()?;
    Check::Credit.holds(
        (1..=MAX_CREDIT).contains(&amount),
        "amount is at least 1 credit",
    )
}

pub(super) fn accounts_imported(mut fields: Fields) -> Result<(), Fault> {
    let accounts = fields.int("accounts")?;
    fields.digest("file_sha256_hex")?;
    fields.public_text("reason")?;
    fields.int("imported_unix_ms")?;
    fields.finish()?;
    if accounts <= u64::from(u32::MAX) {
        Ok(())
    } else {
        Err(value("accounts", "must be below 2^32").into())
    }
}
