//! The stream of a registration: the header, then the items in chunks.

use evidenceos_kernel::{
    bits::MicroBits,
    evidence::Strategy,
    holdout::{AskedPolicy, MAX_ITEMS, PolicyError},
    null::NullSpec,
    price::{AnswerPrices, Multiplicity, SettlementPrices},
};
use evidenceos_proto::{self as wire, put_holdout_request::Part};
use tonic::{Status, Streaming};

use super::{parse, status::invalid};
use crate::services::Submission;

/// The largest piece of a stream.
const MAX_CHUNK_BYTES: usize = 1 << 20;

/// Reads the header and the items.
pub async fn receive(
    stream: &mut Streaming<wire::PutHoldoutRequest>,
) -> Result<Submission, Status> {
    let header = first(stream.message().await?)?;
    let mut submission = from_header(&header)?;
    while let Some(message) = stream.message().await? {
        add(&mut submission, &header, &next(message)?)?;
    }
    must_be_whole(submission, &header)
}

/// Parses the messages that [`receive`] gets.
pub fn of(
    messages: impl IntoIterator<Item = wire::PutHoldoutRequest>,
) -> Result<Submission, Status> {
    let mut messages = messages.into_iter();
    let header = first(messages.next())?;
    let mut submission = from_header(&header)?;
    for message in messages {
        add(&mut submission, &header, &next(message)?)?;
    }
    must_be_whole(submission, &header)
}

fn must_be_whole(
    mut submission: Submission,
    header: &wire::PutHoldoutHeader,
) -> Result<Submission, Status> {
    let (said, came) = (header.items, submission.labels.len());
    // A stream that ends early without an error must not register only some of the labels.
    if came as u64 != said {
        let rule = format!("is {said}, but the stream had {came} labels");
        return Err(invalid("items", &rule));
    }
    submission.content = prost::Message::encode_to_vec(header);
    Ok(submission)
}

fn from_header(header: &wire::PutHoldoutHeader) -> Result<Submission, Status> {
    if !(1..=MAX_ITEMS).contains(&header.items) {
        let rule = format!("must be 1 to {MAX_ITEMS}, not {}", header.items);
        return Err(invalid("items", &rule));
    }
    let spec = header.null_spec.as_ref().ok_or_else(|| {
        invalid(
            "null_spec",
            "is required: give p0, the accuracy that proves nothing",
        )
    })?;
    Ok(Submission {
        reference: parse::reference("holdout_ref", &header.holdout_ref)?,
        item_order_hash: parse::maybe_digest("item_order_hash", &header.item_order_hash)?,
        policy: policy(header.policy.as_ref().unwrap_or(&Default::default()))?,
        null_spec: null_spec(spec)?,
        labels: Vec::new(),
        units: header.has_units.then(Vec::new),
        item_ids: Vec::new(),
        fresh_items: header.fresh_items,
        content: Vec::new(),
    })
}

fn add(
    submission: &mut Submission,
    header: &wire::PutHoldoutHeader,
    chunk: &wire::PutHoldoutChunk,
) -> Result<(), Status> {
    let count = chunk.labels.len();
    // Each piece is bounded before it is kept, so that memory holds no more than the header says.
    if count > MAX_CHUNK_BYTES || (submission.labels.len() + count) as u64 > header.items {
        return Err(invalid(
            "labels",
            "are more than the header's items, or than 1 MiB a chunk",
        ));
    }
    if let Some(bad) = chunk.labels.iter().position(|label| *label > 1) {
        let item = submission.labels.len() + bad;
        return Err(invalid(
            "labels",
            &format!("must be 0 or 1; item {item} is not"),
        ));
    }
    let units = submission.units.as_ref().map_or(0, |_| count);
    if chunk.units.len() != units {
        return Err(invalid(
            "units",
            "must be one for each label if the header has units, otherwise none",
        ));
    }
    let ids = if header.has_item_ids { count * 16 } else { 0 };
    if chunk.item_id_digests.len() != ids {
        return Err(invalid(
            "item_id_digests",
            "must be 16 bytes for each label if the header has item ids, otherwise none",
        ));
    }
    submission.labels.extend_from_slice(&chunk.labels);
    if let Some(all) = &mut submission.units {
        all.extend_from_slice(&chunk.units);
    }
    let (digests, _) = chunk.item_id_digests.as_chunks::<16>();
    submission.item_ids.extend_from_slice(digests);
    Ok(())
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

/// A chunk; every message after the first must be one.
fn next(message: wire::PutHoldoutRequest) -> Result<wire::PutHoldoutChunk, Status> {
    match message.part {
        Some(Part::Chunk(chunk)) => Ok(chunk),
        Some(Part::Header(_)) | None => Err(invalid("chunk", "only chunks may follow the header")),
    }
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

fn policy(asked: &wire::HoldoutPolicy) -> Result<AskedPolicy, Status> {
    Ok(AskedPolicy {
        answer_share_micros: asked.answer_share_micros,
        answer_budget: asked.answer_budget_microbits.map(MicroBits),
        principal_answer_budget: asked.principal_answer_budget_microbits.map(MicroBits),
        sealed_budget: asked.sealed_budget_microbits.map(MicroBits),
        principal_sealed_budget: asked.principal_sealed_budget_microbits.map(MicroBits),
        answer_prices: answer_prices(&asked.answer_prices)?,
        settlement_prices: settlement_prices(asked)?,
        levels: small("policy.levels", asked.levels)?,
        level_width: asked.level_width_microbits.map(MicroBits),
        alpha_micros: asked.alpha_micros,
        multiplicity: match asked.multiplicity.as_str() {
            "" => Multiplicity::default(),
            name => Multiplicity::parse(name)
                .ok_or_else(|| invalid("policy.multiplicity", "must be each, fwer or fdr"))?,
        },
        max_symbols: asked.max_symbols,
    })
}

fn settlement_prices(asked: &wire::HoldoutPolicy) -> Result<Option<SettlementPrices>, Status> {
    match (asked.fixed_settlement_bits, asked.learned_settlement_bits) {
        (None, None) => Ok(None),
        (Some(bits), None) => Ok(Some(SettlementPrices::Fixed {
            certified_bits: small("policy.fixed_settlement_bits", bits)?,
        })),
        (None, Some(bits)) => Ok(Some(SettlementPrices::Learned {
            c0_bits: small("policy.learned_settlement_bits", bits)?,
        })),
        (Some(_), Some(_)) => Err(invalid(
            "policy",
            "has fixed and learned settlement prices; choose one",
        )),
    }
}

fn answer_prices(tables: &[wire::AnswerPriceTable]) -> Result<AnswerPrices, Status> {
    let mut prices = AnswerPrices::default();
    for table in tables {
        let of = table.prices_microbits.iter().map(|price| MicroBits(*price));
        if prices.0.insert(table.n_symbols, of.collect()).is_some() {
            return Err(invalid(
                "policy.answer_prices",
                "has two tables for one alphabet",
            ));
        }
    }
    Ok(prices)
}

fn small(field: &str, value: u32) -> Result<u8, Status> {
    u8::try_from(value).map_err(|_| invalid(field, "must be below 256"))
}

fn broken(whole: &str, error: PolicyError) -> Status {
    invalid(&format!("{whole}.{}", error.field), &error.rule)
}
