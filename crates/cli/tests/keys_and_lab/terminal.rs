//! What files put into a text is shown on a terminal, and not obeyed by it.

use std::{fs, process::Output};

use crate::place::Place;

/// Clears the screen, in both ways of writing it, overwrites the line, and writes backwards.
const NASTY: &str = "\u{1b}[2J\u{9b}31m\rok\nverified\u{202e}x\u{2066}";

/// Nothing that a terminal obeys, in either stream.
#[track_caller]
fn is_harmless(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8(both).expect("text");
    let obeyed = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || ('\u{202a}'..='\u{202e}').contains(&c)
            || ('\u{2066}'..='\u{2069}').contains(&c)
    };
    assert!(!text.contains(obeyed), "{text:?}");
    assert!(
        !text.lines().any(|line| line.starts_with("verified")),
        "a value is not another line: {text}"
    );
    text
}

/// A section of a module, which is short.
fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id, content.len() as u8], content].concat()
}

/// A module that imports a function with names like these.
fn importing(module: &str, name: &str) -> Vec<u8> {
    let named = |name: &str| [&[name.len() as u8], name.as_bytes()].concat();
    let import = [&[1][..], &named(module), &named(name), &[0, 0]].concat();
    [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, &[1, 0x60, 0, 0]),
        section(2, &import),
    ]
    .concat()
}

#[test]
fn names_of_imports_are_shown_and_not_obeyed() {
    let place = Place::new();
    for (module, name) in [("env", NASTY), (NASTY, "f")] {
        fs::write(place.path("m.wasm"), importing(module, name)).expect("written");
        for more in [&[][..], &["--json"]] {
            let output = place.run(&[&["claim", "check", "m.wasm"], more].concat());
            assert_eq!(output.status.code(), Some(1));
            let said = is_harmless(&output);
            assert!(said.contains("\\u001b[2J"), "{said}");
        }
    }
}

#[test]
fn manifests_and_modules_of_policies_are_shown_and_not_obeyed() {
    let place = Place::new();
    fs::create_dir(place.path("policies")).expect("made");
    place.set_mode("policies", 0o755);
    let manifest = serde_json::json!({
        "schema": NASTY,
        "oracle_id": NASTY,
        "vendor": NASTY,
        NASTY: 1,
    });
    fs::write(place.path("policies/a.json"), manifest.to_string()).expect("written");
    place.set_mode("policies/a.json", 0o644);
    let output = place.run(&["policy", "check", "policies"]);
    assert_eq!(output.status.code(), Some(1));
    is_harmless(&output);
}

#[test]
fn receipts_logs_and_openings_are_shown_and_not_obeyed() {
    let place = Place::new();
    place.text(&["keys", "generate", "--key-dir", "keys"]);
    let note = format!("{NASTY}\n1\nAAAA\n\n\u{2014} {NASTY} AAAA\n");
    for receipt in [
        format!("{{\"format\":{}}}", serde_json::json!(NASTY)),
        serde_json::json!({
            "format": "evidenceos.receipt.v1",
            "capsule": NASTY,
            "index": 0,
            "inclusion": [NASTY],
            "checkpoint": note,
            NASTY: NASTY,
        })
        .to_string(),
        serde_json::json!({ "format": "evidenceos.decision_receipt.v1", "record": NASTY })
            .to_string(),
        NASTY.to_owned(),
    ] {
        fs::write(place.path("r.json"), &receipt).expect("written");
        fs::write(place.path("log"), format!("{receipt}\n")).expect("written");
        for args in [
            &["verify", "r.json", "--key", NASTY][..],
            &["verify", "r.json", "--key", "r.json"],
            &["verify", "r.json", "--key", VKEY],
            &["verify", "r.json", "--key", VKEY, "--json"],
            &["verify", "r.json", "--key", VKEY, "--log", "log"],
            &["verify", "--key", VKEY, "--log", "log", "--known", "r.json"],
            &["verify", "no\u{1b}[2Jfile", "--key", VKEY],
        ] {
            let output = place.run(args);
            assert!(!output.status.success(), "{args:?}");
            is_harmless(&output);
        }
    }
}

/// The verifier key of C2SP's example.
const VKEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
