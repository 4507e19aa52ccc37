//! Registering a holdout: the stream of its items, the split, the commitment, the blob.
//!
//! The labels leave this module encrypted or not at all. What is slow happens here, beside the
//! writer: the writer only checks that no other holdout came in between.

use std::{collections::HashSet, num::NonZero, sync::Arc, thread};

use evidenceos_kernel::{
    bits::MicroBits,
    command::{Command, PutHoldout},
    evidence::Strategy,
    holdout::{Description, Holdout, HoldoutStatus, MAX_ITEMS, NullSpec, Policy, PolicyError},
    id::{Digest, Fingerprint, HoldoutId},
    planner,
    price::{Multiplicity, SettlementPrices},
    refusal::Refusal,
    split,
};
use evidenceos_proto::{self as wire, put_holdout_request::Part};
use tonic::{Status, Streaming};

use super::{
    parse,
    status::{internal, invalid, refused, vault_failed},
};
use crate::{
    agreement,
    keys::Keys,
    runner::yield_to_serving,
    vault::{Binding, Items, OpenHoldout, Vault},
};

/// The largest piece of a stream.
const MAX_CHUNK_BYTES: usize = 1 << 20;

/// A holdout as it was sent, checked field by field.
pub struct Submitted {
    reference: String,
    item_order_hash: Option<Digest>,
    policy: wire::HoldoutPolicy,
    null_spec: NullSpec,
    labels: Vec<u8>,
    units: Option<Vec<u64>>,
    item_ids: Vec<[u8; 16]>,
    fresh_items: bool,
    /// All that was sent, for the request's fingerprint.
    content: Vec<u8>,
}

impl Submitted {
    /// Reads the header and the items.
    pub async fn receive(stream: &mut Streaming<wire::PutHoldoutRequest>) -> Result<Self, Status> {
        let header = first(stream.message().await?)?;
        let mut submitted = Self::from_header(&header)?;
        while let Some(message) = stream.message().await? {
            submitted.add(&header, &next(message)?)?;
        }
        submitted.must_be_whole(&header)
    }

    /// What [`Submitted::receive`] makes of the same messages.
    pub(super) fn of(
        messages: impl IntoIterator<Item = wire::PutHoldoutRequest>,
    ) -> Result<Self, Status> {
        let mut messages = messages.into_iter();
        let header = first(messages.next())?;
        let mut submitted = Self::from_header(&header)?;
        for message in messages {
            submitted.add(&header, &next(message)?)?;
        }
        submitted.must_be_whole(&header)
    }

    /// The labels and the units.
    pub(super) fn items(&self) -> (&[u8], Option<&[u64]>) {
        (&self.labels, self.units.as_deref())
    }

    /// The policy and the null spec for so many sealed units.
    pub(super) fn rules(&self, sealed_units: u64) -> Result<(Policy, NullSpec), Status> {
        let (policy, _) = policy(&self.policy, &self.null_spec, sealed_units)?;
        Ok((policy, self.null_spec.clone()))
    }

    fn must_be_whole(mut self, header: &wire::PutHoldoutHeader) -> Result<Self, Status> {
        let (said, came) = (header.items, self.labels.len());
        if came as u64 != said {
            let rule = format!("says {said}, but {came} labels came");
            return Err(invalid("items", &rule));
        }
        self.content = prost::Message::encode_to_vec(header);
        Ok(self)
    }

    fn from_header(header: &wire::PutHoldoutHeader) -> Result<Self, Status> {
        if !(1..=MAX_ITEMS).contains(&header.items) {
            let rule = format!("must be 1 to {MAX_ITEMS}, not {}", header.items);
            return Err(invalid("items", &rule));
        }
        let spec = header.null_spec.as_ref().ok_or_else(|| {
            invalid(
                "null_spec",
                "is required: say p0, the accuracy that proves nothing",
            )
        })?;
        Ok(Self {
            reference: parse::reference("holdout_ref", &header.holdout_ref)?,
            item_order_hash: parse::maybe_digest("item_order_hash", &header.item_order_hash)?,
            policy: header.policy.clone().unwrap_or_default(),
            null_spec: null_spec(spec)?,
            labels: Vec::new(),
            units: header.has_units.then(Vec::new),
            item_ids: Vec::new(),
            fresh_items: header.fresh_items,
            content: Vec::new(),
        })
    }

    fn add(
        &mut self,
        header: &wire::PutHoldoutHeader,
        chunk: &wire::PutHoldoutChunk,
    ) -> Result<(), Status> {
        let count = chunk.labels.len();
        if count > MAX_CHUNK_BYTES || (self.labels.len() + count) as u64 > header.items {
            return Err(invalid(
                "labels",
                "are more than the header's items, or than 1 MiB a chunk",
            ));
        }
        if let Some(bad) = chunk.labels.iter().position(|label| *label > 1) {
            let item = self.labels.len() + bad;
            return Err(invalid(
                "labels",
                &format!("must be 0 or 1; item {item} is not"),
            ));
        }
        let units = self.units.as_ref().map_or(0, |_| count);
        if chunk.units.len() != units {
            return Err(invalid(
                "units",
                "must be one for each label where the header has units, else none",
            ));
        }
        let ids = if header.has_item_ids { count * 16 } else { 0 };
        if chunk.item_id_digests.len() != ids {
            return Err(invalid(
                "item_id_digests",
                "must be 16 bytes for each label where the header has item ids, else none",
            ));
        }
        self.labels.extend_from_slice(&chunk.labels);
        if let Some(all) = &mut self.units {
            all.extend_from_slice(&chunk.units);
        }
        let (digests, _) = chunk.item_id_digests.as_chunks::<16>();
        self.item_ids.extend_from_slice(digests);
        Ok(())
    }

    /// Keyed, since a plain digest of labels would be an oracle about them.
    pub fn fingerprint(&self, keys: &Keys) -> Fingerprint {
        let mut content = self.content.clone();
        content.extend_from_slice(&self.labels);
        for unit in self.units.iter().flatten() {
            content.extend_from_slice(&unit.to_be_bytes());
        }
        content.extend(self.item_ids.iter().flatten());
        Fingerprint::of(keys.keyed("put_holdout", &content).as_bytes())
    }

    /// Splits, commits to and stores the items; returns the command that registers them, and what
    /// its custodian should know.
    ///
    /// Blocking: a million items take a second.
    pub fn prepare(
        &self,
        keys: &Keys,
        vault: &Vault,
        others: &[Arc<Holdout>],
    ) -> Result<(Command, Vec<String>), Status> {
        let labels_key = keys.keyed("labels", &self.labels);
        let secret = evidenceos_keys::draw().map_err(|error| internal(&error))?;
        let items = Items {
            secret: *secret,
            labels: self.labels.clone(),
            units: self.units.clone(),
            item_ids: keyed_ids(keys, &self.item_ids)?,
        };
        let compared = check_overlap(vault, &items, others, self.fresh_items)?;
        let share = self.policy.answer_share_micros.unwrap_or(200_000);
        if share >= evidenceos_kernel::holdout::MICROS {
            return Err(invalid(
                "policy.answer_share_micros",
                "must be below 1000000: some items must stay sealed",
            ));
        }
        let open = OpenHoldout::new(items, share)
            .ok_or_else(|| invalid("units", "have too many different sizes"))?;
        let split = open.split();
        let (policy, warnings) = policy(&self.policy, &self.null_spec, split.sealed_units)?;
        let distinct: HashSet<u64> = open.items().units().into_iter().collect();
        let description = Description {
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
        };
        let binding = Binding {
            reference: &self.reference,
            policy: &description.policy,
        };
        let blob = vault
            .put(open.items(), binding)
            .map_err(|error| vault_failed(&error))?;
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
        Ok((Command::PutHoldout(Box::new(put)), warnings))
    }
}

/// The header, which comes first.
fn first(message: Option<wire::PutHoldoutRequest>) -> Result<wire::PutHoldoutHeader, Status> {
    match message.and_then(|message| message.part) {
        Some(Part::Header(header)) => Ok(header),
        Some(Part::Chunk(_)) | None => {
            Err(invalid("header", "must be the first message of the stream"))
        }
    }
}

/// A chunk, of which all other messages are.
fn next(message: wire::PutHoldoutRequest) -> Result<wire::PutHoldoutChunk, Status> {
    match message.part {
        Some(Part::Chunk(chunk)) => Ok(chunk),
        Some(Part::Header(_)) | None => Err(invalid("chunk", "only chunks may follow the header")),
    }
}

fn keyed_ids(keys: &Keys, digests: &[[u8; 16]]) -> Result<Vec<[u8; 16]>, Status> {
    let mut ids: Vec<[u8; 16]> = digests
        .iter()
        .map(|digest| {
            let mut short = [0; 16];
            short.copy_from_slice(&keys.keyed("item", digest).0[..16]);
            short
        })
        .collect();
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(invalid(
            "item_id_digests",
            "name an item twice; every item id must be its own",
        ));
    }
    Ok(ids)
}

/// Metering is per item: an item in two holdouts would be metered twice. A shared item id is
/// refused here; whether label columns agree is for the kernel to charge and to refuse.
///
/// A thousand columns of a million labels take seconds of a processor: every processor compares its share,
/// and gives way to what serves.
fn check_overlap(
    vault: &Vault,
    items: &Items,
    others: &[Arc<Holdout>],
    fresh_items: bool,
) -> Result<Vec<(HoldoutId, bool)>, Status> {
    let column = (!fresh_items).then(|| agreement::Candidate::new(&items.labels));
    let others: Vec<&Holdout> = others
        .iter()
        .map(Arc::as_ref)
        .filter(|other| other.status != HoldoutStatus::Withdrawn)
        .filter(|other| column.is_some() || share_ids(items, other))
        .collect();
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
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
    let compared: Vec<Vec<Option<(HoldoutId, bool)>>> = compared.map_err(|status| *status)?;
    Ok(compared.into_iter().flatten().flatten().collect())
}

/// Whether both have ids for their items.
fn share_ids(items: &Items, other: &Holdout) -> bool {
    other.has_item_ids && !items.item_ids.is_empty()
}

/// Whether another holdout's column agrees, if that is asked.
fn check_against(
    vault: &Vault,
    items: &Items,
    column: Option<&agreement::Candidate>,
    other: &Holdout,
) -> Result<Option<(HoldoutId, bool)>, Box<Status>> {
    let theirs = vault
        .read(&other.blob, Binding::of(other))
        .map_err(|error| Box::new(internal(&error)))?;
    if share_ids(items, other) && items.shares_item_with(&theirs) {
        return Err(Box::new(refused(&Refusal::HoldoutExists(format!(
            "some of these items are in holdout {:?} already; leakage is metered per item, so an item is in one holdout only",
            other.reference
        )))));
    }
    Ok(column.map(|column| (other.id, column.agrees_with(&theirs.labels))))
}

fn null_spec(spec: &wire::NullSpec) -> Result<NullSpec, Status> {
    if !matches!(spec.kind.as_str(), "" | "accuracy") {
        return Err(invalid("null_spec.kind", "only \"accuracy\" is offered"));
    }
    let strategy = match spec.strategy.as_str() {
        "" | "grid" => Strategy::Grid,
        "fixed_alternative" => Strategy::FixedAlternative {
            p1_micros: spec.p1_micros,
        },
        _ => {
            return Err(invalid(
                "null_spec.strategy",
                "must be \"grid\" or \"fixed_alternative\"",
            ));
        }
    };
    let expires = spec
        .expires_unix
        .map(|expires| parse::public_int("null_spec.expires_unix", expires))
        .transpose()?;
    NullSpec::accuracy(spec.p0_micros, strategy, expires)
        .map_err(|error| broken("null_spec", error))
}

fn policy(
    asked: &wire::HoldoutPolicy,
    null_spec: &NullSpec,
    sealed_units: u64,
) -> Result<(Policy, Vec<String>), Status> {
    let alpha_micros = asked.alpha_micros.unwrap_or(50_000);
    let proposal = planner::proposed_sealed_budget(
        sealed_units,
        null_spec.p0_micros,
        null_spec.strategy,
        alpha_micros.clamp(1, 999_999),
    )
    .map_err(|error| invalid("null_spec", &error.to_string()))?;
    let mut policy = Policy::with_sealed_budget(proposal.budget);
    policy.alpha_micros = alpha_micros;
    policy.levels = small("policy.levels", asked.levels)?;
    let set = |field: &mut MicroBits, value: Option<u64>| {
        if let Some(value) = value {
            *field = MicroBits(value);
        }
    };
    set(&mut policy.answer_budget, asked.answer_budget_microbits);
    set(
        &mut policy.principal_answer_budget,
        asked.principal_answer_budget_microbits,
    );
    set(&mut policy.sealed_budget, asked.sealed_budget_microbits);
    set(&mut policy.level_width, asked.level_width_microbits);
    policy.answer_share_micros = asked
        .answer_share_micros
        .unwrap_or(policy.answer_share_micros);
    policy.max_symbols = asked.max_symbols.unwrap_or(policy.max_symbols);
    policy.settlement_prices = match (asked.fixed_settlement_bits, asked.learned_settlement_bits) {
        (None, None) => policy.settlement_prices,
        (Some(bits), None) => SettlementPrices::Fixed {
            certified_bits: small("policy.fixed_settlement_bits", bits)?,
        },
        (None, Some(bits)) => SettlementPrices::Learned {
            c0_bits: small("policy.learned_settlement_bits", bits)?,
        },
        (Some(_), Some(_)) => {
            return Err(invalid(
                "policy",
                "has fixed and learned settlement prices; choose one",
            ));
        }
    };
    policy.multiplicity = match asked.multiplicity.as_str() {
        "" => Multiplicity::default(),
        name => Multiplicity::parse(name)
            .ok_or_else(|| invalid("policy.multiplicity", "must be each, fwer or fdr"))?,
    };
    for table in &asked.answer_prices {
        let prices = table
            .prices_microbits
            .iter()
            .map(|price| MicroBits(*price))
            .collect();
        if policy
            .answer_prices
            .0
            .insert(table.n_symbols, prices)
            .is_some()
        {
            return Err(invalid(
                "policy.answer_prices",
                "has two tables for one alphabet",
            ));
        }
    }
    policy.principal_sealed_budget = Some(
        asked
            .principal_sealed_budget_microbits
            .map_or_else(|| policy.proposed_fence(), MicroBits),
    );
    policy.validate().map_err(|error| broken("policy", error))?;
    let mut warnings = Vec::new();
    if proposal.hardly_certifiable {
        warnings.push(format!(
            "on {sealed_units} sealed units even an accuracy halfway between p0 and 1 could hardly be certified; register more items, or a lower p0"
        ));
    }
    Ok((policy, warnings))
}

fn small(field: &str, value: u32) -> Result<u8, Status> {
    u8::try_from(value).map_err(|_| invalid(field, "must be below 256"))
}

fn broken(whole: &str, error: PolicyError) -> Status {
    invalid(&format!("{whole}.{}", error.field), &error.rule)
}
