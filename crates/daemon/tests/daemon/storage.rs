//! The daemon stores nothing for a refused call, at most the limit for a principal, and a module that
//! another took the place of only until it is removed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use evidenceos_daemon::Config;
use evidenceos_kernel::account::{Accounting, CLAIM_BYTES};
use evidenceos_proto as wire;
use prost::bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tonic::Code;

use crate::harness::{
    Client, Daemon, Directory, block_on, config, judged, predictions, refused, terms,
};

/// A module too large for a row; each number gives another one.
fn large(number: u8) -> Vec<u8> {
    let mut module = judged(&predictions("h", 2));
    // A custom section of 4 + 20,000 bytes, whose length takes three bytes.
    module.extend([0, 0xa4, 0x9c, 0x01, 3, b'p', b'a', b'd']);
    module.extend([number; 20_000]);
    module
}

fn blob_of(daemon: &Daemon, module: &[u8]) -> PathBuf {
    let hex = hex::encode(Sha256::digest(module));
    blobs(daemon.directory.path())
        .join(&hex[..2])
        .join(&hex[2..])
}

fn blobs(directory: &Path) -> PathBuf {
    directory.join("blobs")
}

/// Bytes of all blobs.
fn stored(daemon: &Daemon) -> u64 {
    let list = |path: &Path| fs::read_dir(path).expect("a directory").flatten();
    let parents: Vec<_> = list(&blobs(daemon.directory.path())).collect();
    let files = parents.iter().flat_map(|parent| list(&parent.path()));
    files
        .map(|file| file.metadata().map_or(0, |file| file.len()))
        .sum()
}

/// Asks for the claim until the file has gone.
async fn until_gone(client: &mut Client, claim: &Bytes, path: &Path) {
    let began = Instant::now();
    while path.exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "it stays");
        client.get(claim).await.expect("one's own");
    }
}

#[test]
fn what_is_refused_leaves_nothing_on_the_disk() {
    block_on(async {
        let daemon = Daemon::start().await;
        let (mut operator, mut me) = (daemon.operator().await, daemon.submitter("me").await);
        operator.put_default("h").await;
        let claim = me.sealed("bound", "h", &large(0)).await;
        let before = stored(&daemon);
        for number in 1..=20 {
            let again = me.commit(&claim, &large(number)).await;
            refused(
                again,
                Code::FailedPrecondition,
                "WRONG_STATE",
                "it is bound",
            );
            assert_eq!(stored(&daemon), before);
        }
        // The one that it has is one more try, and is told the same.
        let same = me.commit(&claim, &large(0)).await;
        refused(same, Code::FailedPrecondition, "WRONG_STATE", "it is bound");
        let open = me.create(terms("open", "h")).await.expect("there");
        let other = wire::Artifact {
            artifact_hash: Sha256::digest(large(2)).to_vec().into(),
            kind: "wasm".to_owned(),
            ..Default::default()
        };
        let named = me.commit_with(&open, vec![other], &large(1)).await;
        refused(
            named,
            Code::InvalidArgument,
            "INVALID_FIELD",
            "must carry the module's SHA-256",
        );
        assert_eq!(stored(&daemon), before);
        assert!(blob_of(&daemon, &large(0)).exists());
        daemon.running.stop().await.expect("stops");
    });
}

#[test]
fn a_module_that_another_took_the_place_of_goes_and_can_come_back() {
    block_on(async {
        let daemon = Daemon::start().await;
        let (mut operator, mut me) = (daemon.operator().await, daemon.submitter("me").await);
        operator.put_default("h").await;
        let claim = me.create(terms("c", "h")).await.expect("there");
        me.commit(&claim, &large(1)).await.expect("the first");
        let first = blob_of(&daemon, &large(1));
        assert!(first.exists());
        me.commit(&claim, &large(2)).await.expect("the second");
        until_gone(&mut me, &claim, &first).await;
        // Its compiled code is still there, its bytes are not: they are stored again.
        me.commit(&claim, &large(1)).await.expect("the first again");
        assert!(first.exists());
        me.seal(&claim).await.expect("bound");
        me.execute(&claim).await.expect("judged");
        // Two claims name one: it stays until both name another.
        let [one, other] = ["one", "other"].map(|name| terms(name, "h"));
        let [one, other] = [me.create(one).await, me.create(other).await];
        let (one, other) = (one.expect("there"), other.expect("there"));
        for claim in [&one, &other] {
            me.commit(claim, &large(3))
                .await
                .expect("the same for both");
        }
        let both = blob_of(&daemon, &large(3));
        me.commit(&one, &large(4)).await.expect("another");
        me.commit(&one, &large(5)).await.expect("another");
        until_gone(&mut me, &one, &blob_of(&daemon, &large(4))).await;
        assert!(both.exists());
        me.commit(&other, &large(5)).await.expect("another");
        until_gone(&mut me, &other, &both).await;
        let daemon = daemon.restart().await;
        let mut me = daemon.submitter("me").await;
        me.seal(&other).await.expect("bound");
        me.execute(&other).await.expect("its module is there");
        daemon.running.stop().await.expect("stops");
    });
}

#[test]
fn no_more_is_stored_for_a_principal_than_may_be() {
    block_on(async {
        let directory = Directory::new();
        let module = large(1);
        let accounting = Accounting {
            storage_limit: CLAIM_BYTES + module.len() as u64 + 200,
            ..Accounting::default()
        };
        let config = Config {
            accounting,
            ..config(directory.path())
        };
        let running = evidenceos_daemon::start(config).await.expect("starts");
        let daemon = Daemon { running, directory };
        let (mut operator, mut me) = (daemon.operator().await, daemon.submitter("me").await);
        operator.put_default("h").await;
        let claim = me.create(terms("c", "h")).await.expect("there");
        let before = stored(&daemon);
        let padding = &module[module.len() - 20_008..];
        let too_long = [&module, padding].concat();
        refused(
            me.commit(&claim, &too_long).await,
            Code::ResourceExhausted,
            "STORAGE_LIMIT",
            "EVIDENCEOS_PRINCIPAL_STORAGE_LIMIT",
        );
        assert_eq!(stored(&daemon), before);
        me.commit(&claim, &module).await.expect("room for it");
        let account = me.account("").await.expect("the caller's account");
        // Its artifact has a kind of four bytes and a digest.
        let taken = CLAIM_BYTES + module.len() as u64 + 36;
        assert_eq!(
            (account.stored_bytes, account.storage_limit),
            (taken, taken + 164)
        );
        refused(
            me.create(terms("d", "h")).await,
            Code::ResourceExhausted,
            "STORAGE_LIMIT",
            "bytes of storage",
        );
        let mut other = daemon.submitter("other").await;
        other
            .create(terms("d", "h"))
            .await
            .expect("room of their own");
        daemon.running.stop().await.expect("stops");
    });
}
