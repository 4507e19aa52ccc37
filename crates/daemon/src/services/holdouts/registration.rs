//! A registration: the overlap with other holdouts, the split, the commitment, the blob.
//!
//! The labels leave this module only encrypted. The slow work happens here, beside the writer: the
//! writer only checks that no other holdout came in between.

use std::{collections::HashSet, num::NonZero, sync::Arc, thread};

use evidenceos_access::Owners;
use evidenceos_custody::{Binding, Items, OpenHoldout, Vault, agreement};
use evidenceos_driver::priority::yield_to_serving;
use evidenceos_kernel::{
    command::{Command, HoldoutCommand, PutHoldout},
    holdout::{AskedPolicy, Description, Holdout, HoldoutStatus, Policy, PolicyError},
    id::{Digest, Fingerprint, HoldoutId},
    null::NullSpec,
    refusal::Refusal,
    split,
};

use crate::services::Error;

/// A holdout as it was sent, checked field by field.
pub struct Submission {
    /// The name by which claims refer to it.
    pub reference: String,
    /// Digest of the order of its items, if the custodian states one.
    pub item_order_hash: Option<Digest>,
    /// The requested budgets and prices.
    pub policy: AskedPolicy,
    /// The null hypothesis that a claim must refute.
    pub null_spec: NullSpec,
    /// One label an item, 0 or 1.
    pub labels: Vec<u8>,
    /// The unit of each item, if items belong together.
    pub units: Option<Vec<u64>>,
    /// Digests of the items' ids, if they have any.
    pub item_ids: Vec<[u8; 16]>,
    /// Whether the custodian declares that the items are in no other holdout; the log publishes
    /// this.
    pub fresh_items: bool,
    /// The rest of the request, for its fingerprint.
    pub content: Vec<u8>,
}

impl Submission {
    /// Keyed, since a plain digest of labels would be an oracle about them.
    pub fn fingerprint(&self, owners: &Owners) -> Fingerprint {
        let mut content = self.content.clone();
        content.extend_from_slice(&self.labels);
        for unit in self.units.iter().flatten() {
            content.extend_from_slice(&unit.to_be_bytes());
        }
        content.extend(self.item_ids.iter().flatten());
        Fingerprint::of(owners.keyed("put_holdout", &content).as_bytes())
    }

    /// Splits, commits to and stores the items; returns the command that registers them, and
    /// warnings for the custodian.
    ///
    /// Blocking: a million items take a second.
    pub fn prepare(
        &self,
        owners: &Owners,
        vault: &Vault,
        others: &[Arc<Holdout>],
    ) -> Result<(Command, Vec<String>), Error> {
        let labels_key = owners.keyed("labels", &self.labels);
        let secret = evidenceos_keys::draw().map_err(|error| Error::Fault(error.to_string()))?;
        let items = Items {
            secret: *secret,
            labels: self.labels.clone(),
            units: self.units.clone(),
            item_ids: keyed_ids(owners, &self.item_ids)?,
        };
        // Nothing is stored for items that are registered already.
        let compared = check_overlap(vault, &items, others, self.fresh_items)?;
        let share = self.policy.answer_share_micros().map_err(broken_policy)?;
        let open = OpenHoldout::new(items, share)
            .ok_or_else(|| Error::field("units", "have too many different sizes"))?;
        let units = open.split().sealed_units;
        let asked = &self.policy;
        let (policy, warnings) = asked
            .for_units(&self.null_spec, units)
            .map_err(broken_policy)?;
        let description = self.describe(&open, policy);
        let binding = Binding {
            reference: &self.reference,
            policy: &description.policy,
        };
        // The blob is durable before the row that names it. After a crash in between, the next
        // start deletes the blob.
        let blob = vault.put(open.items(), binding)?;
        let put = PutHoldout {
            reference: self.reference.clone(),
            description,
            blob,
            labels_key,
            has_item_ids: !open.items().item_ids.is_empty(),
            // Each registration raises it by one.
            generation: others.len() as u64,
            compared,
        };
        Ok((HoldoutCommand::Put(Box::new(put)).into(), warnings))
    }

    /// The log's description of the items.
    fn describe(&self, open: &OpenHoldout, policy: Policy) -> Description {
        let split = open.split();
        let distinct: HashSet<u64> = open.items().units().into_iter().collect();
        Description {
            items: open.labels().len() as u64,
            units: distinct.len() as u64,
            answer_items: split.answer_items,
            sealed_items: split.sealed_items,
            sealed_units: split.sealed_units,
            item_order_hash: self.item_order_hash,
            commitment_root: open.commitment_root(),
            secret_commitment: Digest(split::secret_commitment(&open.items().secret)),
            policy,
            null_spec: self.null_spec.clone(),
            fresh_items: self.fresh_items,
            replaces: None,
        }
    }
}

fn broken_policy(error: PolicyError) -> Error {
    Refusal::field(&format!("policy.{}", error.field), error.rule).into()
}

fn keyed_ids(owners: &Owners, digests: &[[u8; 16]]) -> Result<Vec<[u8; 16]>, Error> {
    let mut ids: Vec<[u8; 16]> = digests
        .iter()
        .map(|digest| {
            let mut short = [0; 16];
            short.copy_from_slice(&owners.keyed("item", digest).0[..16]);
            short
        })
        .collect();
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Error::field(
            "item_id_digests",
            "name an item twice; give every item its own id",
        ));
    }
    Ok(ids)
}

/// Metering is per item: an item in two holdouts would be metered twice. A shared item id is refused here;
/// if label columns agree, the kernel charges or refuses.
///
/// A thousand columns of a million labels take seconds of processor time: every processor compares a
/// share, and gives way to threads that serve.
fn check_overlap(
    vault: &Vault,
    items: &Items,
    others: &[Arc<Holdout>],
    fresh_items: bool,
) -> Result<Vec<(HoldoutId, bool)>, Error> {
    // If the custodian declares the items fresh, in public, their labels are not compared.
    let column = (!fresh_items).then(|| agreement::Candidate::new(&items.labels));
    let others: Vec<&Holdout> = others
        .iter()
        .map(Arc::as_ref)
        .filter(|other| other.status != HoldoutStatus::Withdrawn)
        .filter(|other| column.is_some() || share_ids(items, other))
        .collect();
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    // `chunks` panics for a length of zero, which the first holdout would give it.
    let share = others.len().div_ceil(processors).max(1);
    let compare = |others: &[&Holdout]| {
        yield_to_serving();
        let others = others.iter();
        others
            .map(|other| check_against(vault, items, column.as_ref(), other))
            .collect::<Result<Vec<_>, _>>()
    };
    let compared: Result<Vec<_>, _> = thread::scope(|scope| {
        let shares: Vec<_> = others
            .chunks(share)
            .map(|others| scope.spawn(move || compare(others)))
            .collect();
        let joined = shares.into_iter().map(|share| {
            let panicked = |panic| std::panic::resume_unwind(panic);
            share.join().unwrap_or_else(panicked)
        });
        joined.collect()
    });
    let compared: Vec<Vec<Option<(HoldoutId, bool)>>> = compared?;
    Ok(compared.into_iter().flatten().flatten().collect())
}

/// Whether both have ids for their items.
fn share_ids(items: &Items, other: &Holdout) -> bool {
    other.has_item_ids && !items.item_ids.is_empty()
}

/// Whether another holdout's column agrees, if the columns are to be compared.
fn check_against(
    vault: &Vault,
    items: &Items,
    column: Option<&agreement::Candidate>,
    other: &Holdout,
) -> Result<Option<(HoldoutId, bool)>, Error> {
    let theirs = vault
        .read(&other.blob, Binding::of(other))
        .map_err(|error| Error::Fault(error.to_string()))?;
    if share_ids(items, other) && items.shares_item_with(&theirs) {
        return Err(Refusal::HoldoutExists(format!(
            "some of these items are in holdout {:?} already; leakage is metered per item, so an item is in one holdout only",
            other.reference
        ))
        .into());
    }
    Ok(column.map(|column| (other.id, column.agrees_with(&theirs.labels))))
}
