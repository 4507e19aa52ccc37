//! Builders for the tests of this workspace: callers, claims, registrations, reports of runs, and
//! rows in place of a store.
//!
//! Only dev-dependencies switch the feature `testing` on: no release has this module. It makes no
//! assertions. The subject of a test belongs in the test; this module has what all tests would
//! repeat.

use std::collections::HashMap;

use crate::{
    account::Account,
    bits::MicroBits,
    claim::{Artifact, Claim, ClaimState, Lane, ModuleFacts, RunCredit, Terms},
    command::{
        Caller, ClaimCommand, Command, PutHoldout, Remembered, Request, RunEnd, RunReport, Stamp,
    },
    evidence::Strategy,
    holdout::{Description, Policy, PrincipalPool},
    id::{ClaimId, Digest, Fingerprint, HoldoutId, OwnerTag, Question, RequestKey},
    null::NullSpec,
    record::AnswerTally,
    score::{Score, SizeClass},
    state::{Changes, Key, Stage},
};

/// The engine of every guest.
pub const ENGINE: &str = "test-engine";
/// The time at which a world starts, in Unix milliseconds.
pub const START_UNIX_MS: u64 = 1_700_000_000_000;
/// The alphabet of every claim.
pub const SYMBOLS: u32 = 4;
/// Items, and units, of the answer part of [`description`].
pub const ANSWER_ITEMS: u64 = 200;
/// Items, and units, of the sealed part of [`description`].
pub const SEALED_ITEMS: u64 = 800;

/// A caller with every role.
pub const OPERATOR: Caller = Caller {
    tag: OwnerTag([0xff; 16]),
    operator: true,
    auditor: true,
};

/// The n-th submitter's tag.
#[must_use]
pub fn owner(n: u8) -> OwnerTag {
    OwnerTag([n; 16])
}

/// The n-th submitter, without a role.
#[must_use]
pub fn submitter(n: u8) -> Caller {
    caller(owner(n))
}

/// The submitter with this tag, without a role.
#[must_use]
pub fn caller(tag: OwnerTag) -> Caller {
    Caller {
        tag,
        operator: false,
        auditor: false,
    }
}

/// This many whole bits, in microbits.
#[must_use]
pub fn bits(bits: u64) -> MicroBits {
    MicroBits::from_bits(bits)
}

/// The null "the chance of a right prediction is at most a half", bet against on the grid.
///
/// # Panics
/// Never: a half is a chance.
#[must_use]
pub fn coin(expires_unix: Option<u64>) -> NullSpec {
    NullSpec::accuracy(500_000, Strategy::Grid, expires_unix).expect("a half is a chance")
}

/// A holdout of 800 sealed items and, unless the policy allows no questions, 200 answer items.
/// Each item is a unit; the null spec is [`coin`].
#[must_use]
pub fn description(policy: Policy) -> Description {
    let answer_items = match policy.answer_share_micros {
        0 => 0,
        _ => ANSWER_ITEMS,
    };
    Description {
        items: answer_items + SEALED_ITEMS,
        units: answer_items + SEALED_ITEMS,
        answer_items,
        sealed_items: SEALED_ITEMS,
        sealed_units: SEALED_ITEMS,
        item_order_hash: None,
        commitment_root: Digest::of(b"commitment"),
        secret_commitment: Digest::of(b"secret"),
        policy,
        null_spec: coin(None),
        fresh_items: false,
        replaces: None,
    }
}

/// The registration of a first holdout. Its name stands in for its labels.
#[must_use]
pub fn put(reference: &str, description: Description) -> PutHoldout {
    PutHoldout {
        reference: reference.to_owned(),
        description,
        blob: Digest::of(b"blob"),
        labels_key: Digest::of(reference.as_bytes()),
        has_item_ids: false,
        generation: 0,
        compared: Vec::new(),
    }
}

/// Terms of a claim that may ask questions, at the default significance level and without levels.
#[must_use]
pub fn terms(owner: OwnerTag, name: &str, holdout: HoldoutId, null_spec_hash: Digest) -> Terms {
    Terms {
        owner,
        claim_name: name.to_owned(),
        holdout,
        null_spec_hash,
        alpha_micros: 50_000,
        levels: 0,
        oracle_id: "builtin.accuracy".to_owned(),
        oracle_num_symbols: SYMBOLS,
        epoch_size: 0,
        epoch_config_ref: String::new(),
        lane: Lane::Fast,
        access_credit: 0,
        max_answer_microbits: None,
        output_schema_id: String::new(),
        dependency_merkle_root: None,
    }
}

/// A claim as it stands after its creation, by its number in the store.
#[must_use]
pub fn claim(seq: u64, owner: OwnerTag) -> Claim {
    let name = format!("claim {seq}");
    Claim {
        seq,
        id: ClaimId(Digest::of(name.as_bytes()).0),
        terms: terms(owner, &name, HoldoutId([1; 32]), Digest::of(b"null")),
        state: ClaimState::Uncommitted,
        created_unix_ms: START_UNIX_MS,
        commitment: None,
        seal_hash: None,
        settlement: None,
        revocation: None,
        requests: Vec::new(),
        displaced_requests: false,
        credit: RunCredit::default(),
    }
}

/// Creates the claim of these terms.
#[must_use]
pub fn create(terms: Terms) -> Command {
    ClaimCommand::Create {
        id: terms.claim_id(),
        principal: format!("principal-{}", terms.owner.0[0]),
        terms: Box::new(terms),
    }
    .into()
}

/// The module of this name, as an artifact.
#[must_use]
pub fn wasm(module: &str) -> Artifact {
    Artifact {
        kind: "wasm".to_owned(),
        hash: Digest::of(module.as_bytes()),
        parent: None,
    }
}

/// Commits a claim to the module of this name; `asks` says whether it asks questions.
#[must_use]
pub fn commit(claim: ClaimId, module: &str, asks: bool) -> Command {
    commit_with(claim, module, asks, Vec::new())
}

/// The same, with artifacts beside the module.
#[must_use]
pub fn commit_with(
    claim: ClaimId,
    module: &str,
    asks: bool,
    mut artifacts: Vec<Artifact>,
) -> Command {
    let wasm = wasm(module);
    let hash = wasm.hash;
    artifacts.push(wasm);
    ClaimCommand::Commit {
        claim,
        artifacts,
        module: ModuleFacts {
            hash,
            len: 100,
            asks,
            submits: true,
        },
    }
    .into()
}

/// The command that seals a claim.
#[must_use]
pub fn seal(claim: ClaimId) -> Command {
    ClaimCommand::Seal { claim }.into()
}

/// Starts a claim's run.
#[must_use]
pub fn execute(claim: ClaimId) -> Command {
    ClaimCommand::Execute { claim }.into()
}

/// The command that revokes a claim for a fixed reason.
#[must_use]
pub fn revoke(claim: ClaimId) -> Command {
    ClaimCommand::Revoke {
        claim,
        reason: "a leak in the training rows".to_owned(),
    }
    .into()
}

/// The record of a run that emits its output, asks nothing and predicts the given number of the
/// 800 sealed items right.
#[must_use]
pub fn report(right: u64) -> RunReport {
    RunReport {
        end: RunEnd::Emitted(vec![1]),
        answers: AnswerTally {
            n_symbols: SYMBOLS,
            ..AnswerTally::default()
        },
        score: Some(Score {
            classes: vec![SizeClass {
                size: 1,
                units: SEALED_ITEMS,
                right,
            }],
        }),
        fuel: 7,
        pages: 17,
        trace_hash: Digest::of(b"trace"),
        trace_len: 5,
    }
}

/// A stamp for a caller's request id and content.
#[must_use]
pub fn stamp(caller: Caller, id: &str, content: &str) -> Stamp {
    let mut key = caller.tag.0.to_vec();
    key.extend_from_slice(id.as_bytes());
    Stamp {
        key: RequestKey(Fingerprint::of(&key).0),
        fingerprint: Fingerprint::of(content.as_bytes()),
    }
}

/// The rows of a store, as maps that give a stage what it asks for.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    pub claims: HashMap<ClaimId, Claim>,
    /// Leakage of principals' claims about holdouts.
    pub pools: HashMap<(HoldoutId, OwnerTag), PrincipalPool>,
    /// Results under request ids.
    pub remembered: HashMap<RequestKey, Remembered>,
    pub accounts: HashMap<OwnerTag, Account>,
    /// The claims that were judged first for their question.
    pub questions: HashMap<Question, ClaimId>,
}

impl Rows {
    /// Gives a stage all rows that a request needs.
    pub fn load(&self, stage: &mut Stage<'_>, request: &Request) {
        loop {
            let missing = stage.missing(request);
            if missing.is_empty() {
                return;
            }
            for key in missing {
                self.supply(stage, key);
            }
        }
    }

    /// Gives a stage one row, or that there is none.
    pub fn supply(&self, stage: &mut Stage<'_>, key: Key) {
        match key {
            Key::Claim(id) => stage.supply_claim(id, self.claims.get(&id).cloned()),
            Key::Pool(holdout, owner) => {
                stage.supply_pool(holdout, owner, self.pools.get(&(holdout, owner)).copied());
            }
            Key::Remembered(key) => {
                stage.supply_remembered(key, self.remembered.get(&key).cloned());
            }
            Key::Account(owner) => {
                stage.supply_account(owner, self.accounts.get(&owner).cloned());
            }
            Key::Question(question) => {
                stage.supply_question(question, self.questions.get(&question).copied());
            }
        }
    }

    /// Merges the changes of a batch.
    pub fn merge(&mut self, changes: &Changes) {
        for claim in changes.new_claims.iter().chain(&changes.claims) {
            self.claims.insert(claim.id, claim.clone());
        }
        for (holdout, owner, pool) in &changes.pools {
            self.pools.insert((*holdout, *owner), *pool);
        }
        self.remembered.extend(changes.remembered.iter().cloned());
        for account in changes.new_accounts.iter().chain(&changes.accounts) {
            self.accounts.insert(account.owner, account.clone());
        }
        self.questions.extend(changes.questions.iter().copied());
    }
}
