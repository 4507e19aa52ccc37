//! What no anchor remembers is shown to nobody.

use super::*;

#[test]
fn what_no_anchor_remembers_is_not_shown() {
    block_on(async {
        let directory = Directory::new();
        let running = evidenceos_daemon::start(config(directory.path()))
            .await
            .expect("starts");
        let address = running.grpc_address().to_string();
        let mut client = Client::connect(&address, None).await;
        client.put_default("h").await;
        let claim = client
            .sealed("c", "h", &judged(&predictions("h", 20)))
            .await;
        let shown = client.holdout("h").await;
        let head = tree_size(&mut client).await;
        // The anchor's directory goes while it serves.
        let (anchor, away) = (directory.beside("data.anchor"), directory.beside("away"));
        fs::rename(&anchor, &away).expect("ours");
        let mut waiting = client.clone();
        let id = claim.clone();
        let verdict = tokio::spawn(async move { waiting.execute(&id).await });
        // New calls are refused once it is noticed.
        loop {
            match client.create(terms("another", "h")).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(held) => {
                    refused(Err::<(), _>(held), Code::Unavailable, "HELD", "read-only");
                    break;
                }
            }
        }
        assert!(client.warnings().await.contains("no anchor can be written"));
        assert!(!verdict.is_finished(), "nobody has seen it");
        assert_eq!(tree_size(&mut client).await, head);
        let mut other = client.clone();
        let fetched = other.get(&claim);
        let waited = tokio::time::timeout(std::time::Duration::from_millis(300), fetched);
        assert!(waited.await.is_err(), "rows wait as well");
        // It is back: what was decided is shown, and calls are taken again.
        fs::rename(&away, &anchor).expect("ours");
        let result = verdict.await.expect("answered").expect("settled");
        assert_eq!(result.state, wire::ClaimState::Certified as i32);
        let after = client.holdout("h").await;
        assert!(after.sealed_charged_microbits > shown.sealed_charged_microbits);
        assert_eq!(tree_size(&mut client).await, head + 1);
        client.fetch(&claim).await.expect("covered");
        for _ in 0..200 {
            if client.create(terms("once more", "h")).await.is_ok() {
                running.stop().await.expect("stops");
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        panic!("calls are taken again");
    });
}

async fn tree_size(client: &mut Client) -> u64 {
    let request = client.request(wire::GetSignedTreeHeadRequest {});
    let head = client.inner.get_signed_tree_head(request).await;
    head.expect("served").into_inner().tree_size
}

#[test]
fn a_stop_while_no_anchor_can_be_written_shows_nothing_and_the_next_start_does() {
    block_on(async {
        let directory = Directory::new();
        let running = evidenceos_daemon::start(config(directory.path()))
            .await
            .expect("starts");
        let address = running.grpc_address().to_string();
        let mut client = Client::connect(&address, None).await;
        client.put_default("h").await;
        let claim = client
            .sealed("c", "h", &judged(&predictions("h", 20)))
            .await;
        let (anchor, away) = (directory.beside("data.anchor"), directory.beside("away"));
        fs::rename(&anchor, &away).expect("ours");
        let mut waiting = client.clone();
        let id = claim.clone();
        let verdict = tokio::spawn(async move { waiting.execute(&id).await });
        while !client.warnings().await.contains("no anchor can be written") {
            tokio::task::yield_now().await;
        }
        running.stop().await.expect("stops");
        let unseen = verdict.await.expect("answered");
        assert!(unseen.is_err(), "{unseen:?}");
        let published = fs::read_to_string(directory.path().join("log/checkpoint"));
        let published = published.expect("there");
        assert_eq!(
            published.lines().nth(1),
            Some("2"),
            "the verdict is entry 2"
        );
        // One that is held until it comes back shows it then, and so does every later one.
        let running = evidenceos_daemon::start(config(directory.path()))
            .await
            .expect("serves reads");
        let mut client = Client::connect(&running.grpc_address().to_string(), None).await;
        fs::rename(&away, &anchor).expect("ours");
        for tries in 0.. {
            match client.get(&claim).await {
                Ok(settled) => {
                    assert_eq!(settled.state, wire::ClaimState::Certified as i32);
                    break;
                }
                Err(unseen) => assert_eq!(unseen.code(), Code::Unavailable, "{unseen:?}"),
            }
            assert!(tries < 40, "it is shown");
        }
        client.fetch(&claim).await.expect("a head covers it");
        assert_eq!(tree_size(&mut client).await, 3);
        running.stop().await.expect("stops");
        let running = evidenceos_daemon::start(config(directory.path()))
            .await
            .expect("starts");
        let mut client = Client::connect(&running.grpc_address().to_string(), None).await;
        client.fetch(&claim).await.expect("there");
        running.stop().await.expect("stops");
    });
}

#[test]
fn a_held_start_shows_nothing_new_whatever_key_signs_now() {
    block_on(async {
        let directory = Directory::new();
        let running = evidenceos_daemon::start(config(directory.path()))
            .await
            .expect("starts");
        let address = running.grpc_address().to_string();
        let mut client = Client::connect(&address, None).await;
        client.put_default("h").await;
        let claim = client
            .sealed("c", "h", &judged(&predictions("h", 20)))
            .await;
        let (anchor, away) = (directory.beside("data.anchor"), directory.beside("away"));
        fs::rename(&anchor, &away).expect("ours");
        let mut waiting = client.clone();
        let id = claim.clone();
        let verdict = tokio::spawn(async move { waiting.execute(&id).await });
        while !client.warnings().await.contains("no anchor can be written") {
            tokio::task::yield_now().await;
        }
        // The verdict is entry 2, which no anchor knows; now another key takes over by entry 3.
        let keys = directory.path().join("keys");
        let mut ring = evidenceos_keys::Ring::open(&keys).expect("there");
        let new = ring.generate().expect("writable");
        ring.activate(new).expect("there");
        running.reload().await.expect("another key");
        running.stop().await.expect("stops");
        verdict.await.expect("answered").expect_err("nobody saw it");
        // The key that signed before is needed to show what was shown then.
        let old = ring.keys().keys().copied().find(|key| *key != new);
        let old = ring.file_of(old.expect("two keys"));
        let hidden = directory.beside("old.key");
        fs::rename(&old, &hidden).expect("ours");
        let refused = evidenceos_daemon::start(config(directory.path())).await;
        let refused = refused.err().expect("nothing to show").to_string();
        assert!(
            refused.contains("only an earlier head may be shown"),
            "{refused}"
        );
        fs::rename(&hidden, &old).expect("ours");
        let running = evidenceos_daemon::start(config(directory.path()))
            .await
            .expect("serves reads");
        let mut client = Client::connect(&running.grpc_address().to_string(), None).await;
        assert_eq!(tree_size(&mut client).await, 2);
        let unseen = client.get(&claim).await.expect_err("no anchor knows it");
        assert_eq!(unseen.code(), Code::Unavailable, "{unseen:?}");
        fs::rename(&away, &anchor).expect("ours");
        let mut size = 2;
        for _ in 0..200 {
            size = tree_size(&mut client).await;
            if size == 4 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        assert_eq!(size, 4, "an anchor knows it");
        let settled = client.get(&claim).await.expect("shown");
        assert_eq!(settled.state, wire::ClaimState::Certified as i32);
        running.stop().await.expect("stops");
    });
}
