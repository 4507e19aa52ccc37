//! Every call, from every kind of caller, against the one table that users read.

use std::{collections::BTreeMap, pin::Pin};

use evidenceos_daemon::{Running, grpc::rules::RULES};
use evidenceos_proto::{self as wire, evidence_os_client::EvidenceOsClient};
use prost::bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tonic::{Code, Status, transport::Channel};

use crate::{
    harness::{Client, block_on, header, judged, labels, predictions, refused, terms},
    secure::Home,
};

const DOCUMENT: &str = include_str!("../../../../docs/security.md");

/// What the table says of one call.
struct Row {
    needs: String,
    /// Whose claims it is for: `–`, `own`, or `own, auditor`.
    whose: String,
}

/// The table of `docs/security.md`: its rows begin with the name of a call as code.
fn table() -> BTreeMap<String, Row> {
    let rows = DOCUMENT.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let call = cells.next()?.strip_suffix('`')?;
        // The tables of ports and paths begin likewise.
        call.starts_with(char::is_uppercase).then_some(())?;
        let needs = cells.next()?.trim().to_owned();
        let whose = cells.next()?.trim_end_matches('|').trim().to_owned();
        Some((call.to_owned(), Row { needs, whose }))
    });
    rows.collect()
}

#[test]
fn the_table_that_users_read_is_the_one_that_is_enforced() {
    let read: BTreeMap<_, _> = table()
        .into_iter()
        .map(|(call, row)| (call, row.needs))
        .collect();
    let enforced: BTreeMap<_, _> = RULES
        .iter()
        .map(|(call, needs)| ((*call).to_owned(), needs.word().to_owned()))
        .collect();
    assert_eq!(read, enforced);
}

/// What the requests name.
#[derive(Clone)]
struct Names {
    claim: Bytes,
    holdout: wire::Holdout,
    module: Bytes,
    /// Makes what is created new.
    fresh: String,
}

type Called = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;
type Call = fn(EvidenceOsClient<Channel>, &Names) -> Called;

macro_rules! calls {
    ($($name:literal: $method:ident, $make:expr;)*) => {
        [$(($name, (|mut client: EvidenceOsClient<Channel>, names: &Names| {
            let make: fn(&Names) -> _ = $make;
            let request = make(names);
            Box::pin(async move { client.$method(request).await.map(drop) })
        }) as Call)),*]
    };
}

/// A request of each call that a caller with every right would have answered, or refused for the
/// state of things alone.
fn calls() -> BTreeMap<&'static str, Call> {
    BTreeMap::from(calls! {
        "Health": health, |_| wire::HealthRequest {};
        "GetServerInfo": get_server_info, |_| wire::GetServerInfoRequest {};
        "GetPublicKey": get_public_key, |_| wire::GetPublicKeyRequest::default();
        "GetSignedTreeHead": get_signed_tree_head, |_| wire::GetSignedTreeHeadRequest {};
        "GetCheckpoint": get_checkpoint, |_| wire::GetCheckpointRequest {};
        "GetInclusionProof": get_inclusion_proof, |_| wire::GetInclusionProofRequest::default();
        "GetConsistencyProof": get_consistency_proof, |_| wire::GetConsistencyProofRequest {
            first_tree_size: 1,
            second_tree_size: 2,
        };
        "ListEntries": list_entries, |_| wire::ListEntriesRequest::default();
        "GetRevocationFeed": get_revocation_feed, |_| wire::GetRevocationFeedRequest::default();
        "WatchRevocations": watch_revocations, |_| wire::WatchRevocationsRequest {};
        "ListLogKeys": list_log_keys, |_| wire::ListLogKeysRequest {};
        "ListHoldouts": list_holdouts, |_| wire::ListHoldoutsRequest::default();
        "GetHoldout": get_holdout, |names| wire::GetHoldoutRequest {
            holdout: names.holdout.holdout_ref.clone(),
        };
        "CreateClaim": create_claim, |names| wire::CreateClaimRequest {
            topic_id: Sha256::digest(&names.fresh).to_vec().into(),
            holdout_handle_id: names.holdout.holdout_id.clone(),
            phys_hir_hash: vec![1; 32].into(),
            oracle_num_symbols: 2,
            alpha: 0.05,
            ..Default::default()
        };
        "CreateClaimV2": create_claim_v2, |names| terms(&names.fresh, &names.holdout.holdout_ref);
        "CommitArtifacts": commit_artifacts, |names| wire::CommitArtifactsRequest {
            claim_id: names.claim.clone(),
            artifacts: vec![wire::Artifact {
                artifact_hash: Sha256::digest(&names.module).to_vec().into(),
                kind: "wasm".to_owned(),
                ..Default::default()
            }],
            wasm_module: names.module.clone(),
        };
        "Freeze": freeze, |names| wire::FreezeRequest { claim_id: names.claim.clone() };
        "FreezeGates": freeze_gates, |names| wire::FreezeGatesRequest { claim_id: names.claim.clone() };
        "Seal": seal, |names| wire::SealRequest { claim_id: names.claim.clone() };
        "SealClaim": seal_claim, |names| wire::SealClaimRequest { claim_id: names.claim.clone() };
        "ExecuteClaim": execute_claim, |names| wire::ExecuteClaimRequest {
            claim_id: names.claim.clone(),
            ..Default::default()
        };
        "ExecuteClaimV2": execute_claim_v2, |names| wire::ExecuteClaimV2Request {
            claim_id: names.claim.clone(),
        };
        "RevokeClaim": revoke_claim, |names| wire::RevokeClaimRequest {
            claim_id: names.claim.clone(),
            reason: "a test".to_owned(),
        };
        "GetClaim": get_claim, |names| wire::GetClaimRequest { claim_id: names.claim.clone() };
        "ListClaims": list_claims, |_| wire::ListClaimsRequest::default();
        "GetCapsule": get_capsule, |names| wire::GetCapsuleRequest { claim_id: names.claim.clone() };
        "FetchCapsule": fetch_capsule, |names| wire::FetchCapsuleRequest {
            claim_id: names.claim.clone(),
            ..Default::default()
        };
        "FetchTrace": fetch_trace, |names| wire::FetchTraceRequest { claim_id: names.claim.clone() };
        "OpenHoldout": open_holdout, |_| wire::OpenHoldoutRequest { holdout: "opened".to_owned() };
        "PutHoldout": put_holdout, |names| {
            use wire::put_holdout_request::Part;
            let chunk = wire::PutHoldoutChunk {
                labels: labels(&names.fresh).into(),
                ..Default::default()
            };
            tokio_stream::iter(
                [Part::Header(header(&names.fresh)), Part::Chunk(chunk)]
                    .map(|part| wire::PutHoldoutRequest { part: Some(part) }),
            )
        };
        "RetireHoldout": retire_holdout, |_| wire::RetireHoldoutRequest {
            holdout: "retired".to_owned(),
            reason: "a test".to_owned(),
        };
        "WithdrawHoldout": withdraw_holdout, |_| wire::WithdrawHoldoutRequest {
            holdout: "withdrawn".to_owned(),
            reason: "a test".to_owned(),
        };
        "RotateHoldoutKey": rotate_holdout_key, |_| wire::RotateHoldoutKeyRequest {};
        "GrantCredit": grant_credit, |_| wire::GrantCreditRequest::default();
        "SetCreditLimit": set_credit_limit, |_| wire::SetCreditLimitRequest::default();
        "SetHoldoutPoolBudgets": set_holdout_pool_budgets, |_| wire::SetHoldoutPoolBudgetsRequest::default();
        "GetHoldoutPoolBudgets": get_holdout_pool_budgets, |_| wire::GetHoldoutPoolBudgetsRequest::default();
        "GetAccount": get_account, |_| wire::GetAccountRequest::default();
        "ListAccounts": list_accounts, |_| wire::ListAccountsRequest::default();
        "WatchAccounts": watch_accounts, |_| wire::WatchAccountsRequest::default();
        "ExportAccounts": export_accounts, |_| wire::ExportAccountsRequest::default();
        "ConfirmClock": confirm_clock, |_| wire::ConfirmClockRequest::default();
    })
}

/// How far a call got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Nobody knows whose it is.
    NoName,
    /// The caller may not make it.
    NoRole,
    /// It names a claim that is none, or not the caller's.
    NoClaim,
    /// It was answered, or refused for something else.
    Reached,
}

fn outcome(result: &Result<(), Status>) -> Outcome {
    let Err(status) = result else {
        return Outcome::Reached;
    };
    let own = status.metadata().get("x-evidenceos-code");
    let own = own.expect("each refusal has a code of ours");
    match (status.code(), own.to_str().expect("ASCII")) {
        (Code::Unauthenticated, "UNAUTHENTICATED") => Outcome::NoName,
        (Code::PermissionDenied, "ROLE_REQUIRED") => Outcome::NoRole,
        (Code::NotFound, "CLAIM_NOT_FOUND") => Outcome::NoClaim,
        (
            Code::Unauthenticated | Code::PermissionDenied | Code::Internal | Code::Unavailable,
            _,
        ) => {
            panic!("{status:?}")
        }
        _ => Outcome::Reached,
    }
}

/// Who calls; each has a certificate that says so, but for the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    WithoutCertificate,
    WithoutRole,
    Stranger,
    Auditor,
    Owner,
    Operator,
}

const EVERYBODY: [Who; 6] = [
    Who::WithoutCertificate,
    Who::WithoutRole,
    Who::Stranger,
    Who::Auditor,
    Who::Owner,
    Who::Operator,
];

const POLICY: &str = r#"
default = "none"
[[rule]]
uri = "spiffe://lab/submitter/"
roles = ["submitter"]
[[rule]]
uri = "spiffe://lab/auditor"
roles = ["auditor"]
[[rule]]
uri = "spiffe://lab/operator"
roles = ["operator"]
"#;

impl Who {
    fn uri(self) -> Option<&'static str> {
        Some(match self {
            Self::WithoutCertificate => return None,
            Self::WithoutRole => "spiffe://lab/submitter",
            Self::Stranger => "spiffe://lab/submitter/stranger",
            Self::Auditor => "spiffe://lab/auditor",
            Self::Owner => "spiffe://lab/submitter/owner",
            Self::Operator => "spiffe://lab/operator",
        })
    }

    fn meets(self, needs: &str) -> bool {
        match needs {
            "nobody" | "known" => true,
            "any role" => self != Self::WithoutRole,
            "submitter" => matches!(self, Self::Stranger | Self::Owner | Self::Operator),
            "auditor" => matches!(self, Self::Auditor | Self::Operator),
            "operator" => self == Self::Operator,
            other => panic!("no such need: {other}"),
        }
    }

    /// What the document promises him.
    fn promised(self, row: &Row) -> Outcome {
        if self == Self::WithoutCertificate && row.needs != "nobody" {
            return Outcome::NoName;
        }
        if !self.meets(&row.needs) {
            return Outcome::NoRole;
        }
        let is_his = match row.whose.as_str() {
            "–" => true,
            "own" => matches!(self, Self::Owner | Self::Operator),
            "own, auditor" => self != Self::Stranger,
            other => panic!("no such word: {other}"),
        };
        if is_his {
            Outcome::Reached
        } else {
            Outcome::NoClaim
        }
    }
}

struct World {
    _home: Home,
    _running: Running,
    clients: BTreeMap<Who, Client>,
    holdout: wire::Holdout,
}

impl World {
    async fn new() -> Self {
        let home = Home::new();
        let mut settings = home.tls(false);
        settings.auth_policy = Some(home.file("policy.toml", POLICY));
        let running = home.start(&settings).await;
        let mut clients = BTreeMap::new();
        for who in EVERYBODY {
            let leaf = who.uri().map(|uri| home.client(uri));
            clients.insert(who, home.connect(&running, leaf.as_ref()).await);
        }
        let operator = clients.get_mut(&Who::Operator).expect("there");
        for name in ["opened", "retired"] {
            operator.put_default(name).await;
        }
        let holdout = operator.put_default("h").await;
        let retire = wire::RetireHoldoutRequest {
            holdout: "opened".to_owned(),
            reason: "to open it".to_owned(),
        };
        operator
            .inner
            .retire_holdout(retire)
            .await
            .expect("retired");
        let open = wire::OpenHoldoutRequest {
            holdout: "opened".to_owned(),
        };
        operator.inner.open_holdout(open).await.expect("opened");
        Self {
            _home: home,
            _running: running,
            clients,
            holdout,
        }
    }

    fn client(&self, who: Who) -> Client {
        self.clients[&who].clone()
    }

    fn names(&self, claim: Bytes, fresh: String) -> Names {
        Names {
            claim,
            holdout: self.holdout.clone(),
            module: judged(&predictions("h", 2)).into(),
            fresh,
        }
    }
}

#[test]
fn every_call_is_open_to_exactly_those_whom_the_table_names() {
    block_on(async {
        let world = World::new().await;
        let module = judged(&predictions("h", 2));
        let (claim, _) = world.client(Who::Owner).run("c", "h", &module).await;
        let calls = calls();
        let mut wrong = Vec::new();
        for (name, row) in table() {
            let call = calls.get(name.as_str()).expect("each call is tried");
            for who in EVERYBODY {
                let names = world.names(claim.clone(), format!("{name}-{who:?}"));
                let result = call(world.client(who).inner, &names).await;
                let (is, promised) = (outcome(&result), who.promised(&row));
                if is != promised {
                    wrong.push(format!(
                        "{name} by {who:?}: {is:?}, not {promised:?}: {result:?}"
                    ));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(calls.len(), RULES.len());
    });
}

#[test]
fn anothers_claim_looks_exactly_like_none_and_stays_what_it_is() {
    block_on(async {
        let world = World::new().await;
        let module = judged(&predictions("h", 2));
        let mut owner = world.client(Who::Owner);
        let sealed = owner.sealed("sealed", "h", &module).await;
        let (settled, _) = owner.run("settled", "h", &module).await;
        let none = Bytes::from_static(&[7; 32]);
        let calls = calls();
        let claims = table();
        let claims = claims.iter().filter(|(_, row)| row.whose != "–");
        for (name, _) in claims {
            for claim in [&sealed, &settled] {
                let before = owner.get(claim).await.expect("his own");
                let mut seen = Vec::new();
                for id in [claim, &none] {
                    let names = world.names(id.clone(), format!("{name}-twin"));
                    let result =
                        calls[name.as_str()](world.client(Who::Stranger).inner, &names).await;
                    let status = result.expect_err(name);
                    let message = status.message().replace(&hex::encode(id), "ID");
                    assert_ne!(message, status.message(), "the id is all that differs");
                    let mut metadata = status.metadata().clone();
                    metadata.remove("date");
                    // Each answer has one of its own.
                    metadata.remove("x-request-id");
                    let details = status.details().to_vec();
                    seen.push((status.code(), message, details, format!("{metadata:?}")));
                }
                assert_eq!(seen[0], seen[1], "{name}");
                assert_eq!(owner.get(claim).await.expect("his own"), before, "{name}");
            }
        }
    });
}

#[test]
fn lists_show_a_submitter_his_own_claims_and_an_auditor_all() {
    block_on(async {
        let world = World::new().await;
        let module = judged(&predictions("h", 2));
        world.client(Who::Owner).sealed("c", "h", &module).await;
        for (who, all, seen) in [
            (Who::Owner, false, Some(1)),
            (Who::Owner, true, None),
            (Who::Stranger, false, Some(0)),
            (Who::Stranger, true, None),
            (Who::Auditor, false, Some(0)),
            (Who::Auditor, true, Some(1)),
            (Who::Operator, true, Some(1)),
        ] {
            let request = wire::ListClaimsRequest {
                all,
                ..Default::default()
            };
            let listed = world.client(who).inner.list_claims(request).await;
            match seen {
                Some(seen) => assert_eq!(listed.expect("listed").into_inner().claims.len(), seen),
                None => refused(
                    listed,
                    Code::PermissionDenied,
                    "ROLE_REQUIRED",
                    "auditor role",
                ),
            }
        }
    });
}

#[test]
fn a_call_without_its_role_says_which_one_and_whose() {
    block_on(async {
        let world = World::new().await;
        let mut client = world.client(Who::WithoutRole);
        let request = wire::ListClaimsRequest::default();
        refused(
            client.inner.list_claims(request).await,
            Code::PermissionDenied,
            "ROLE_REQUIRED",
            "needs the submitter, auditor or operator role, and mtls:",
        );
    });
}

#[test]
fn labels_are_opened_by_an_operator_alone_and_then_anybodys() {
    block_on(async {
        let world = World::new().await;
        for who in [Who::Stranger, Who::Auditor, Who::Owner] {
            let open = |holdout: &str| wire::OpenHoldoutRequest {
                holdout: holdout.to_owned(),
            };
            let mut client = world.client(who);
            let closed = client.inner.open_holdout(open("retired")).await;
            refused(
                closed,
                Code::PermissionDenied,
                "ROLE_REQUIRED",
                "operator role",
            );
            client
                .inner
                .open_holdout(open("opened"))
                .await
                .expect("public");
        }
    });
}
