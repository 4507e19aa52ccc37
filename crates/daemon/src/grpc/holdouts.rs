//! Holdouts over gRPC.

use evidenceos_kernel::{
    bits::MicroBits,
    holdout::{Holdout, NarrowerBudgets},
    id::HoldoutId,
};
use evidenceos_proto as wire;
use tonic::{Status, Streaming};

use super::{
    call::{Call, Pieces},
    parse, registration, render,
    status::{invalid, refused},
};
use crate::services::Services;

/// The largest budget that a double carries exactly in millionths.
const MAX_BITS: f64 = 9_007_199_254.0;

/// `PutHoldout`: registers a holdout from a stream of its description and labels.
pub async fn put(
    services: &Services,
    mut call: Call<Streaming<wire::PutHoldoutRequest>>,
) -> Result<wire::PutHoldoutResponse, Status> {
    // This comes before anything is read: labels are large.
    let may = call.principal.caller.must_operate();
    may.map_err(|refusal| refused(&refusal))?;
    let key = call.key("PutHoldout")?;
    let submission = registration::receive(&mut call.message).await?;
    call.subject.is_holdout(&submission.reference);
    let holdout = services.holdouts.put(&call.principal, key, submission);
    Ok(wire::PutHoldoutResponse {
        holdout: Some(render::holdout(holdout.await?)),
    })
}

/// `GetHoldout`: one holdout, by name or id, with its meters and the caller's own meters.
pub async fn get(
    services: &Services,
    call: Call<wire::GetHoldoutRequest>,
) -> Result<wire::GetHoldoutResponse, Status> {
    let name = &call.message.holdout;
    let holdout = services.holdouts.get(&call.principal, name).await?;
    Ok(wire::GetHoldoutResponse {
        holdout: Some(render::holdout(holdout)),
    })
}

/// `ListHoldouts`: a page of holdouts in the order of their registration.
pub async fn list(
    services: &Services,
    call: Call<wire::ListHoldoutsRequest>,
) -> Result<wire::ListHoldoutsResponse, Status> {
    let request = call.message;
    let (first, size) = parse::page(request.page_size, &request.page_token)?;
    let (holdouts, next) = services
        .holdouts
        .list(&call.principal, first.unwrap_or(0), size)
        .await?;
    Ok(wire::ListHoldoutsResponse {
        holdouts: holdouts.into_iter().map(render::holdout).collect(),
        next_page_token: next.map_or_else(String::new, |seq| seq.to_string()),
    })
}

/// `RetireHoldout`: the holdout takes no more claims; runs under way settle.
pub async fn retire(
    services: &Services,
    call: Call<wire::RetireHoldoutRequest>,
) -> Result<wire::RetireHoldoutResponse, Status> {
    let stamp = call.stamp("RetireHoldout")?;
    let wire::RetireHoldoutRequest { holdout, reason } = call.message;
    let retired = services
        .holdouts
        .retire(&call.principal, stamp, &holdout, reason);
    Ok(wire::RetireHoldoutResponse {
        holdout: Some(render::holdout(retired.await?)),
    })
}

/// `WithdrawHoldout`: withdraws a holdout that has released nothing.
pub async fn withdraw(
    services: &Services,
    call: Call<wire::WithdrawHoldoutRequest>,
) -> Result<wire::WithdrawHoldoutResponse, Status> {
    let stamp = call.stamp("WithdrawHoldout")?;
    let wire::WithdrawHoldoutRequest { holdout, reason } = call.message;
    let withdrawn = services
        .holdouts
        .withdraw(&call.principal, stamp, &holdout, reason);
    Ok(wire::WithdrawHoldoutResponse {
        holdout: Some(render::holdout(withdrawn.await?)),
    })
}

/// `OpenHoldout`: makes a retired holdout's labels public and streams its opening.
pub async fn open(
    services: &Services,
    call: Call<wire::OpenHoldoutRequest>,
) -> Result<Pieces<wire::OpenHoldoutResponse>, Status> {
    let stamp = call.stamp("OpenHoldout")?;
    let name = &call.message.holdout;
    let opening = services.holdouts.open(&call.principal, stamp, name).await?;
    Ok(render::pieces(opening, |chunk| wire::OpenHoldoutResponse {
        chunk,
    }))
}

/// `RotateHoldoutKey`: encrypts all holdouts under a new key.
pub async fn rotate_key(
    services: &Services,
    call: Call<wire::RotateHoldoutKeyRequest>,
) -> Result<wire::RotateHoldoutKeyResponse, Status> {
    let key = call.key("RotateHoldoutKey")?;
    let rekeyed = services.holdouts.rotate_key(&call.principal, key).await?;
    Ok(wire::RotateHoldoutKeyResponse {
        holdouts: rekeyed.holdouts,
        place: rekeyed.place,
    })
}

/// `GetHoldoutPoolBudgets`: the budgets in force, of settlements or of each principal's answers.
pub async fn budgets(
    services: &Services,
    call: Call<wire::GetHoldoutPoolBudgetsRequest>,
) -> Result<wire::GetHoldoutPoolBudgetsResponse, Status> {
    let scope = Scope::parse(&call.message.scope)?;
    let id = holdout_id(&call.message.holdout_id)?;
    let holdout = services.holdouts.state_of(id).await?;
    Ok(wire::GetHoldoutPoolBudgetsResponse {
        budgets: Some(shown_budgets(&holdout, scope)),
    })
}

/// `SetHoldoutPoolBudgets`: narrows budgets, or restores them up to the registered ones.
pub async fn set_budgets(
    services: &Services,
    call: Call<wire::SetHoldoutPoolBudgetsRequest>,
) -> Result<wire::SetHoldoutPoolBudgetsResponse, Status> {
    let request = &call.message;
    let scope = Scope::parse(&request.scope)?;
    let stamp = call.stamp("SetHoldoutPoolBudgets")?;
    // `amount` is bounded, so the cast cuts off less than a millionth of a bit.
    let bits = request
        .new_k_bits_budget
        .map(|bits| amount("new_k_bits_budget", bits))
        .transpose()?
        .map(|bits| MicroBits((bits * 1e6) as u64));
    let credit = request
        .new_access_credit_budget
        .map(|credit| amount("new_access_credit_budget", credit))
        .transpose()?
        .map(|credit| credit as u64);
    let narrower = NarrowerBudgets {
        sealed: bits.filter(|_| scope.has_global()),
        principal_answers: bits.filter(|_| scope.has_principals()),
        credit,
    };
    let id = holdout_id(&request.holdout_id)?;
    let set = services
        .holdouts
        .set_budgets(&call.principal, stamp, id, narrower);
    Ok(wire::SetHoldoutPoolBudgetsResponse {
        budgets: Some(shown_budgets(&set.await?, scope)),
    })
}

fn holdout_id(hex: &str) -> Result<HoldoutId, Status> {
    HoldoutId::from_typed_hex(hex).ok_or_else(|| invalid("holdout_id", "must be 64 hex digits"))
}

fn amount(field: &str, amount: f64) -> Result<f64, Status> {
    if (0.0..=MAX_BITS).contains(&amount) {
        Ok(amount)
    } else {
        Err(invalid(field, "must be a number from 0 to 9007199254"))
    }
}

/// The pools of a budget, in the published words: those of the whole holdout are for settlements,
/// those of each principal for answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Global,
    PerPrincipal,
    Both,
}

impl Scope {
    fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "global" => Ok(Self::Global),
            "per_principal" => Ok(Self::PerPrincipal),
            "both" => Ok(Self::Both),
            _ => Err(invalid("scope", "must be global, per_principal or both")),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::PerPrincipal => "per_principal",
            Self::Both => "both",
        }
    }

    fn has_global(self) -> bool {
        self != Self::PerPrincipal
    }

    fn has_principals(self) -> bool {
        self != Self::Global
    }
}

fn shown_budgets(holdout: &Holdout, scope: Scope) -> wire::HoldoutPoolBudgets {
    let bits = if scope.has_global() {
        holdout.sealed_budget()
    } else {
        holdout.principal_answer_budget()
    };
    wire::HoldoutPoolBudgets {
        holdout_id: holdout.id.to_hex(),
        scope: scope.as_str().to_owned(),
        k_bits_budget: Some(bits.0 as f64 / 1e6),
        access_credit_budget: holdout.narrower.credit.map(|credit| credit as f64),
    }
}
