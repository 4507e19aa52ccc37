//! Claims from create to fetch, idempotency, restarts, what one principal's questions change.

use evidenceos_proto as wire;
use evidenceos_tlog::{
    Checkpoint, Hash, SignedCheckpoint, VerifierKey, leaf_hash, sth, verify_consistency,
    verify_inclusion,
};
use sha2::{Digest as _, Sha256};
use tonic::Code;

use crate::harness::{Daemon, asking, block_on, judged, predictions, refused, terms};

fn hashes(path: &[prost::bytes::Bytes]) -> Vec<Hash> {
    path.iter()
        .map(|hash| Hash(hash.as_ref().try_into().expect("32 bytes")))
        .collect()
}

#[test]
fn good_predictions_are_certified_and_bad_ones_are_not() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let (_, bad) = client.run("bad", "h", &judged(&predictions("h", 2))).await;
        assert_eq!(
            (bad.outcome.as_str(), bad.certified),
            ("not_certified", false)
        );
        assert_eq!(bad.state, wire::ClaimState::Settled as i32);
        assert_eq!(bad.decision, wire::Decision::Reject as i32);
        assert_eq!(bad.reason_codes, [2, 101]);
        assert_eq!((bad.e_value, bad.price_microbits), (0.0, 93_110));
        let (_, good) = client
            .run("good", "h", &judged(&predictions("h", 20)))
            .await;
        assert_eq!((good.outcome.as_str(), good.certified), ("certified", true));
        assert_eq!(good.reason_codes, [1]);
        // 1/0.05 = 20, rounded down to a power of two.
        assert_eq!(good.e_value, 16.0);
        assert_eq!(good.price_microbits, 4_169_926);
        let holdout = client.holdout("h").await;
        assert_eq!(holdout.sealed_charged_microbits, 93_110 + 4_169_926);
        assert_eq!(
            (holdout.settled, holdout.certified, holdout.in_flight),
            (2, 1, 0)
        );
        daemon.running.stop().await.expect("stops");
    });
}

#[test]
fn a_fetched_capsule_stands_in_the_signed_log() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let (claim, result) = client.run("one", "h", &judged(&predictions("h", 2))).await;
        client.run("two", "h", &judged(&predictions("h", 2))).await;
        let fetched = client.fetch(&claim).await.expect("settled");
        assert_eq!(
            fetched.capsule_hash,
            Sha256::digest(&fetched.capsule_bytes).as_slice()
        );
        assert_eq!(fetched.capsule_hash, result.capsule_hash);
        let key: VerifierKey = daemon.running.log_vkey().parse().expect("a vkey");
        let signed =
            SignedCheckpoint::open(fetched.checkpoint.as_bytes(), &key, &[]).expect("signed");
        let head: &Checkpoint = signed.checkpoint();
        let inclusion = fetched.inclusion_proof.expect("there");
        verify_inclusion(
            leaf_hash(&fetched.capsule_bytes),
            fetched.etl_index,
            head.size(),
            &hashes(&inclusion.audit_path),
            head.root(),
        )
        .expect("included");
        let sth = fetched.signed_tree_head.expect("there");
        let public = client
            .inner
            .get_public_key(wire::GetPublicKeyRequest::default())
            .await
            .expect("public")
            .into_inner();
        let public: [u8; 32] = public
            .ed25519_public_key
            .as_ref()
            .try_into()
            .expect("32 bytes");
        let signature: [u8; 64] = sth.signature.as_ref().try_into().expect("64 bytes");
        assert!(sth::verify_sth(
            &public,
            sth.tree_size,
            head.root(),
            &signature
        ));
        let grown = fetched.consistency_proof.expect("there");
        assert_eq!(
            (grown.old_tree_size, grown.new_tree_size),
            (fetched.etl_index + 1, head.size())
        );
        let proof = client
            .inner
            .get_consistency_proof(wire::GetConsistencyProofRequest {
                first_tree_size: grown.old_tree_size,
                second_tree_size: grown.new_tree_size,
            })
            .await
            .expect("public")
            .into_inner();
        let root = |bytes: &[u8]| Hash(bytes.try_into().expect("32 bytes"));
        verify_consistency(
            grown.old_tree_size,
            grown.new_tree_size,
            &hashes(&proof.path),
            root(&proof.first_root_hash),
            root(&proof.second_root_hash),
        )
        .expect("consistent");
        assert!(proof.consistent);
    });
}

/// The store remembers a request with the claim that it was about; the id names one all the same.
#[test]
fn a_request_id_that_named_one_claim_is_not_taken_for_another() {
    fn reused<T: std::fmt::Debug>(result: Result<T, tonic::Status>) {
        refused(result, Code::AlreadyExists, "REQUEST_ID_REUSED", "new one");
    }
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let module = judged(&predictions("h", 20));
        let one = client.create(terms("one", "h")).await.expect("created");
        let two = client.create(terms("two", "h")).await.expect("created");
        let mut named = client.with_id("a");
        named.commit(&one, &module).await.expect("committed");
        reused(named.commit(&two, &module).await);
        client.commit(&two, &module).await.expect("without an id");
        // As published clients do, the next method may have the same id.
        named.seal(&one).await.expect("sealed");
        reused(named.seal(&two).await);
        client.with_id("b").seal(&two).await.expect("sealed");
        named.execute(&one).await.expect("settled");
        reused(named.execute(&two).await);
        let [alice, bob] = ["alice", "bob"].map(evidenceos_access::principal::hmac);
        named.limit(&alice, 100).await.expect("an operator");
        reused(named.limit(&bob, 100).await);
        named.limit(&alice, 100).await.expect("the same again");
        // Reads are free: a client may have one id for all that it traces.
        for claim in [&one, &two] {
            named.get(claim).await.expect("a read");
        }
        // Another caller's ids are its own.
        let mut other = daemon.submitter("another").await.with_id("a");
        let claim = other.create(terms("one", "h")).await.expect("created");
        other.commit(&claim, &module).await.expect("committed");
    });
}

#[test]
fn the_same_request_id_gets_the_same_reply_and_does_nothing_twice() {
    block_on(async {
        let daemon = Daemon::start().await;
        let operator = daemon.operator().await;
        operator.clone().put_default("h").await;
        let module = judged(&predictions("h", 2));
        let mut client = operator.with_id("a");
        let claim = client.create(terms("c", "h")).await.expect("created");
        assert_eq!(
            client.create(terms("c", "h")).await.expect("the same"),
            claim
        );
        refused(
            client.create(terms("d", "h")).await,
            Code::AlreadyExists,
            "REQUEST_ID_REUSED",
            "new one",
        );
        client.commit(&claim, &module).await.expect("committed");
        client.seal(&claim).await.expect("sealed");
        let first = client.execute(&claim).await.expect("settled");
        assert_eq!(client.execute(&claim).await.expect("again"), first);
        assert_eq!(
            client.with_id("b").execute(&claim).await.expect("recorded"),
            first
        );
        // A late retry of the commit still gets its reply, though the claim has moved on.
        let state = client.commit(&claim, &module).await.expect("remembered");
        assert_eq!(state, wire::ClaimState::Committed as i32);
        let refusal = client.with_id("late").commit(&claim, &module).await;
        refused(
            refusal,
            Code::FailedPrecondition,
            "WRONG_STATE",
            "commit artifacts to a claim that is",
        );
        assert_eq!(operator.clone().holdout("h").await.settled, 1);
        let daemon = daemon.restart().await;
        let mut client = daemon.operator().await.with_id("a");
        assert_eq!(
            client.execute(&claim).await.expect("after a restart"),
            first
        );
    });
}

#[test]
fn everything_is_there_after_a_restart() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let mut claims = Vec::new();
        for number in 0..20 {
            claims.push(
                client
                    .run(&format!("c{number}"), "h", &judged(&predictions("h", 2)))
                    .await,
            );
        }
        let (before, vkey) = (client.holdout("h").await, daemon.running.log_vkey());
        let daemon = daemon.restart().await;
        let mut client = daemon.operator().await;
        assert_eq!(client.holdout("h").await, before);
        assert_eq!(daemon.running.log_vkey(), vkey);
        for (claim, result) in &claims {
            assert_eq!(
                client.get(claim).await.expect("there").result.as_ref(),
                Some(result)
            );
            client.fetch(claim).await.expect("there");
        }
        let (_, next) = client.run("next", "h", &judged(&predictions("h", 2))).await;
        assert_eq!(next.etl_index, claims[19].1.etl_index + 1);
    });
}

#[test]
fn questions_of_one_change_nothing_for_another() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut operator = daemon.operator().await;
        operator.put_default("h").await;
        let (mut asker, mut other) = (
            daemon.submitter("asker").await,
            daemon.submitter("other").await,
        );
        let before = other.holdout("h").await;
        for number in 0..16 {
            let mut question = predictions("h", 20);
            question[number] ^= 1;
            let (_, answer) = asker
                .run(&format!("q{number}"), "h", &asking(&question))
                .await;
            assert_eq!(
                (answer.outcome.as_str(), answer.charged_answer_microbits),
                ("not_judged", 1_000_000)
            );
            assert_eq!(answer.canonical_output, [1u8].as_slice());
        }
        // His sixteen bits are spent: one more question traps before a label is read.
        let (_, refused) = asker.run("q16", "h", &asking(&predictions("h", 5))).await;
        assert_eq!(
            (
                refused.reason_codes.as_slice(),
                refused.charged_answer_microbits
            ),
            ([2, 114].as_slice(), 0)
        );
        let after = other.holdout("h").await;
        assert_eq!(after.answer_charged_microbits, 16_000_000);
        assert_eq!(
            asker.holdout("h").await.own_answer_charged_microbits,
            16_000_000
        );
        for (name, field) in [
            (
                "k",
                (
                    before.sealed_charged_microbits,
                    after.sealed_charged_microbits,
                ),
            ),
            (
                "threshold",
                (
                    before.next_threshold_microbits,
                    after.next_threshold_microbits,
                ),
            ),
            (
                "c",
                (
                    before.next_certified_price_microbits,
                    after.next_certified_price_microbits,
                ),
            ),
            (
                "own",
                (
                    before.own_answer_charged_microbits,
                    after.own_answer_charged_microbits,
                ),
            ),
        ] {
            assert_eq!(field.0, field.1, "{name}");
        }
        let (_, answer) = other.run("q", "h", &asking(&predictions("h", 2))).await;
        assert_eq!(answer.charged_answer_microbits, 1_000_000);
    });
}

#[test]
fn many_at_once_settle_in_order_and_none_is_lost() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let mut claims = Vec::new();
        for number in 0..40 {
            // A vector each: the same one would not be judged again.
            let mut vector = predictions("h", 2);
            vector[number] ^= 1;
            let module = judged(&vector);
            claims.push(client.sealed(&format!("c{number}"), "h", &module).await);
        }
        // A few fit into the budget's worst case at a time; the others wait, and none is refused.
        let mut running = tokio::task::JoinSet::new();
        for claim in claims {
            let mut client = client.clone();
            running.spawn(async move { client.execute(&claim).await.expect("settled") });
        }
        let mut results = running.join_all().await;
        results.sort_by_key(|result| result.etl_index);
        let indices: Vec<u64> = results.iter().map(|result| result.etl_index).collect();
        assert_eq!(indices, (indices[0]..indices[0] + 40).collect::<Vec<_>>());
        assert!(
            results
                .windows(2)
                .all(|pair| pair[0].price_microbits >= pair[1].price_microbits)
        );
        assert_eq!(client.holdout("h").await.settled, 40);
    });
}

#[test]
fn a_claim_on_a_revoked_one_is_tainted() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let module = judged(&predictions("h", 2));
        let (parent, result) = client.run("parent", "h", &module).await;
        let capsule: [u8; 32] = result.capsule_hash.as_ref().try_into().expect("32 bytes");
        let root = Sha256::digest(capsule).to_vec();
        let mut child_terms = terms("child", "h");
        child_terms.signals = Some(wire::TopicSignalsV2 {
            dependency_merkle_root: root.into(),
            ..Default::default()
        });
        let child = client.create(child_terms).await.expect("created");
        let artifacts = vec![
            wire::Artifact {
                artifact_hash: Sha256::digest(&module).to_vec().into(),
                kind: "wasm_module".to_owned(),
                ..Default::default()
            },
            wire::Artifact {
                artifact_hash: result.capsule_hash.clone(),
                kind: "dependency".to_owned(),
                claim_id: parent.clone(),
            },
        ];
        client
            .commit_with(&child, artifacts, &module)
            .await
            .expect("committed");
        client.seal(&child).await.expect("sealed");
        let request = client.request(wire::RevokeClaimRequest {
            claim_id: parent.clone(),
            reason: "mislabelled".to_owned(),
        });
        client.inner.revoke_claim(request).await.expect("revoked");
        let shown = client.get(&child).await.expect("there");
        assert_eq!(shown.state, wire::ClaimState::Tainted as i32);
        assert_eq!(shown.tainted_by, parent);
        refused(
            client.execute(&child).await,
            Code::FailedPrecondition,
            "CLAIM_TAINTED",
            "revoked",
        );
    });
}
