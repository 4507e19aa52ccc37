//! A data directory that was served with authentication, and what `config check` finds before a start does.

use std::{net::TcpListener, process::Command};

use evidenceos_daemon::{Config, config::Settings, start};

use crate::{harness::block_on, secure::Home};

fn with_token(home: &Home) -> Settings {
    Settings {
        auth_token: Some("0123456789abcdef".to_owned()),
        generate_key: Some(true),
        ..home.plain()
    }
}

#[test]
fn a_directory_that_was_protected_is_served_without_only_if_told() {
    block_on(async {
        let home = Home::new();
        home.start(&home.plain()).await.stop().await.expect("stops");
        // What was a development server's may be protected from now on, and then stays so.
        home.start(&with_token(&home))
            .await
            .stop()
            .await
            .expect("stops");
        let config = Config::new(&home.plain()).expect("a configuration");
        let refused = match start(config.clone()).await {
            Err(refused) => refused.to_string(),
            Ok(_) => panic!("served without authentication"),
        };
        assert!(
            refused.contains("served with authentication")
                && refused.contains("--serve-unprotected"),
            "{refused}"
        );
        let told = Settings {
            serve_unprotected: true,
            ..home.plain()
        };
        home.start(&told).await.stop().await.expect("stops");
        // Being told once is no answer for the next time.
        assert!(start(config).await.is_err());
        home.start(&with_token(&home))
            .await
            .stop()
            .await
            .expect("stops");
    });
}

#[test]
fn a_check_finds_everything_that_a_start_would() {
    let directory = tempfile::tempdir().expect("a directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").to_string();
    let missing = |name: &str| directory.path().join(name).display().to_string();
    let checked = Command::new(env!("CARGO_BIN_EXE_evidenceos-daemon"))
        .args([
            "config",
            "check",
            "--listen",
            &taken,
            "--preflight-listen",
            "off",
        ])
        .args([
            "--metrics-listen",
            "off",
            "--require-client-cert",
            "--generate-key",
        ])
        .args([
            "--tls-cert",
            &missing("a.crt"),
            "--tls-key",
            &missing("a.key"),
        ])
        .args([
            "--mtls-client-ca",
            &missing("ca.crt"),
            "--data-dir",
            &missing("data"),
        ])
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert_eq!(checked.status.code(), Some(78), "{said}");
    for part in ["a.crt", "a.key", "ca.crt", &format!("--listen {taken}")] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
