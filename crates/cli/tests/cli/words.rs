//! What commands say and ask: names, lists, plans, principals, and consent.

use serde_json::Value;

use crate::{World, evidenceos, stderr};

/// The arguments of a run on holdout `h` under a name.
fn run_named<'a>(module: &'a str, name: &'a str) -> [&'a str; 7] {
    ["claim", "run", module, "--holdout", "h", "--name", name]
}

fn certified(world: &World) -> String {
    let (labels, good) = world.files(20);
    world.json(&["holdout", "add", &labels, "--ref", "h", "--p0", "0.5"]);
    let module = world.path("good.wasm");
    world.json(&["claim", "pack", &good, "-o", &module]);
    let run = run_named(&module, "my-model");
    let ran = world.json(&run);
    assert_eq!(ran["outcome"], "certified");
    ran["claim_id"].as_str().expect("an id").to_owned()
}

#[test]
fn a_mistyped_holdout_is_answered_with_the_names_that_are_like_it() {
    let world = World::new();
    let (labels, good) = world.files(20);
    world.json(&["holdout", "add", &labels, "--ref", "tumours", "--p0", "0.5"]);
    let module = world.path("good.wasm");
    world.json(&["claim", "pack", &good, "-o", &module]);
    for mistyped in ["Tumours", "tumors", "tumuors"] {
        let meant = "did you mean tumours?";
        world.fails(&["holdout", "show", mistyped], 1, meant);
        world.fails(&["claim", "run", &module, "--holdout", mistyped], 1, meant);
    }
    world.fails(&["holdout", "show", "lungs"], 1, "not found; `evidenceos");
}

#[test]
fn a_claim_is_named_by_the_start_of_its_id_or_by_its_name() {
    let world = World::new();
    let id = certified(&world);
    for name in [
        &id[..4],
        &id[..12],
        &id.to_uppercase()[..9],
        &id,
        "my-model",
    ] {
        assert_eq!(
            world.json(&["claim", "show", name])["claim_id"],
            *id,
            "{name}"
        );
    }
    let other = if id.starts_with("0000") {
        "ffff"
    } else {
        "0000"
    };
    for none in [other, "my-mode", &id[..3]] {
        world.fails(&["claim", "show", none], 1, "claim list");
    }
    // Another claim of the same name, on terms of its own.
    let create = [
        "claim",
        "create",
        "--holdout",
        "h",
        "--name",
        "my-model",
        "--alpha",
        "0.01",
    ];
    let second = world.json(&create)["claim_id"]
        .as_str()
        .expect("an id")
        .to_owned();
    world.fails(&["claim", "show", "my-model"], 2, &second);
    world.json(&["claim", "show", &second[..8]]);
    let receipt = world.path("by-prefix.json");
    world.json(&["claim", "fetch", &id[..8], "-o", &receipt]);
}

#[test]
fn another_module_under_a_settled_name_is_refused() {
    let world = World::new();
    let id = certified(&world);
    let (_, bad) = world.files(2);
    let module = world.path("bad.wasm");
    world.json(&["claim", "pack", &bad, "-o", &module]);
    let run = run_named(&module, "my-model");
    world.fails(&run, 1, "another module");
    // The same module joins what is there, and another name is another claim.
    let good = world.path("good.wasm");
    let again = world.json(&run_named(&good, "my-model"));
    assert_eq!(again["claim_id"], *id);
    let other = world.json(&run_named(&module, "other"));
    assert_eq!(other["certified"], false);
}

#[test]
fn a_claim_that_depends_on_another_is_tainted_with_it() {
    let world = World::new();
    let parent = certified(&world);
    let (_, good) = world.files(30);
    let module = world.path("child.wasm");
    world.json(&["claim", "pack", &good, "-o", &module]);
    let run = [
        "claim",
        "run",
        &module,
        "--holdout",
        "h",
        "--name",
        "child",
        "--parent",
        "my-model",
    ];
    assert_eq!(world.json(&run)["outcome"], "certified");
    // Step by step it is the same.
    world.json(&[
        "claim",
        "create",
        "--holdout",
        "h",
        "--name",
        "step",
        "--parent",
        &parent,
    ]);
    world.fails(
        &["claim", "commit", "step", &module],
        1,
        "create a claim for these dependencies",
    );
    world.json(&["claim", "commit", "step", &module, "--parent", "my-model"]);
    world.json(&["claim", "revoke", "my-model", "--reason", "a slip", "--yes"]);
    let tainted = world.json(&["claim", "show", "child"]);
    assert_eq!(
        (&tainted["state"], &tainted["tainted_by"]),
        (&"tainted".into(), &parent.into())
    );
    let unsettled = [
        "claim",
        "create",
        "--holdout",
        "h",
        "--name",
        "x",
        "--parent",
        "step",
    ];
    world.fails(&unsettled, 1, "not settled yet");
}

#[test]
fn a_packed_module_runs_in_the_alphabet_that_it_was_made_for() {
    let world = World::new();
    let (labels, good) = world.files(20);
    world.json(&["holdout", "add", &labels, "--ref", "h", "--p0", "0.5"]);
    let module = world.path("ask.wasm");
    world.json(&[
        "claim",
        "pack",
        &good,
        "-o",
        &module,
        "--ask",
        "--symbols",
        "16",
    ]);
    world.json(&["claim", "check", &module]);
    world.fails(
        &["claim", "run", &module, "--holdout", "h", "--symbols", "4"],
        2,
        "packed for 16",
    );
    let ran = world.json(&["claim", "run", &module, "--holdout", "h"]);
    // One of 16 symbols takes four bits.
    assert_eq!(ran["charged_answer_microbits"], 4_000_000);
    assert_eq!(ran["outcome"], "certified");
}

#[test]
fn claims_are_listed_by_what_they_are_about() {
    let world = World::new();
    let id = certified(&world);
    for n in 0..5 {
        let name = format!("other-{n}");
        world.json(&["claim", "create", "--holdout", "h", "--name", &name]);
    }
    let names = |arguments: &[&str]| -> Vec<String> {
        let listed = world.json(&[&["claim", "list"], arguments].concat());
        let claims = listed["claims"].as_array().expect("a list").iter();
        claims
            .map(|claim| claim["claim_name"].as_str().expect("a name").to_owned())
            .collect()
    };
    assert_eq!(names(&[]).len(), 6);
    assert_eq!(names(&["--name", "other-3"]), ["other-3"]);
    assert_eq!(names(&["--id", &id[..6]]), ["my-model"]);
    assert_eq!(
        names(&["--holdout", "h", "--limit", "2"]),
        ["other-4", "other-3"]
    );
    assert_eq!(names(&["--since", "2020-01-01"]).len(), 6);
    assert_eq!(names(&["--before", "2020-01-01"]), [""; 0]);
    assert_eq!(names(&["--owner", "anonymous"]).len(), 6);
    let stranger = "bearer:e3b98a4da31a127d4bde6e43033f66ba274cab0eb7eb1c70ec41402bf6273dd8";
    assert_eq!(names(&["--owner", stranger]), [""; 0]);
    world.fails(&["claim", "list", "--holdout", "none"], 1, "none");
    world.fails(&["claim", "list", "--id", "abc"], 1, "hex digits");
    world.fails(&["claim", "list", "--since", "yesterday"], 2, "2026-11-01");

    let holdouts = |arguments: &[&str]| {
        let listed = world.json(&[&["holdout", "list"], arguments].concat());
        listed["holdouts"].as_array().expect("a list").len()
    };
    assert_eq!(holdouts(&["--name", "h", "--status", "registered"]), 1);
    assert_eq!(holdouts(&["--name", "other"]), 0);
    let accounts = |arguments: &[&str]| {
        let listed = world.json(&[&["account", "list"], arguments].concat());
        listed["accounts"].as_array().expect("a list").len()
    };
    assert_eq!(accounts(&["--principal", "anonym"]), 1);
    assert_eq!(accounts(&["--principal", "mtls:"]), 0);
    assert_eq!(accounts(&["--name", "nightly"]), 0);

    // Page by page all of them come, each once.
    let (mut all, mut page) = (Vec::new(), String::new());
    loop {
        let listed = world.json(&["claim", "list", "--limit", "4", "--page", &page]);
        let claims = listed["claims"].as_array().expect("a list").clone();
        all.extend(
            claims
                .into_iter()
                .map(|claim| claim["claim_id"].to_string()),
        );
        match &listed["next_page"] {
            Value::String(next) => page.clone_from(next),
            _ => break,
        }
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 6);
}

#[test]
fn entries_are_listed_by_their_kind_and_place() {
    let world = World::new();
    certified(&world);
    let listed = |arguments: &[&str]| world.json(&[&["log", "entries"], arguments].concat());
    let indices = |listed: &Value| -> Vec<u64> {
        let entries = listed["entries"].as_array().expect("a list").iter();
        entries
            .map(|entry| entry["index"].as_u64().expect("a number"))
            .collect()
    };
    let all = listed(&["--from", "0"]);
    let size = indices(&all).len() as u64;
    assert_eq!(indices(&all), (0..size).collect::<Vec<_>>());
    assert_eq!(all["next_from"], Value::Null);
    let capsules = listed(&["--kind", "claim_capsule"]);
    assert_eq!(indices(&capsules).len(), 1);
    let output = world.run_as(None, &["log", "entries", "--kind", "claim_capsule"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.starts_with('{') && text.contains("evidenceos.v2.claim_capsule"),
        "{text}"
    );

    // Page by page all of them come, each once.
    let (mut from, mut found) = (Value::from(0), Vec::new());
    while let Some(next) = from.as_u64() {
        let page = listed(&["--from", &next.to_string(), "--limit", "2"]);
        found.extend(indices(&page));
        from = page["next_from"].clone();
    }
    assert_eq!(found, indices(&all));
    world.fails(&["log", "entries", "--kind", "capsule"], 2, "claim_capsule");
    world.fails(
        &["log", "entries", "-o", "mirror", "--limit", "1"],
        2,
        "cannot be used with",
    );
}

#[test]
fn a_submitter_lists_no_claims_of_others() {
    let world = World::new();
    certified(&world);
    let as_submitter = |arguments: &[&str]| world.run_as(Some("a-token-of-a-submitter"), arguments);
    for arguments in [
        &["claim", "list", "--all"][..],
        &["claim", "list", "--owner", "anonymous"],
    ] {
        let refused = as_submitter(arguments);
        assert!(!refused.status.success(), "{arguments:?}");
    }
    let found = as_submitter(&["claim", "show", "my-model"]);
    assert!(
        stderr(&found).contains("no claim \"my-model\""),
        "{}",
        stderr(&found)
    );
}

#[test]
fn what_cannot_be_undone_needs_a_yes() {
    let world = World::new();
    let id = certified(&world);
    let opening = world.path("opening.json");
    for command in [
        &["claim", "revoke", &id, "--reason", "r"][..],
        &["holdout", "retire", "h"],
        &["holdout", "withdraw", "h"],
        &["holdout", "open", "h", "-o", &opening],
        &["holdout", "rotate-key"],
    ] {
        world.fails(command, 2, "--yes");
    }
    assert_eq!(
        world.json(&["holdout", "show", "h"])["status"],
        "registered"
    );
    assert_eq!(world.json(&["claim", "show", &id])["state"], "certified");
}

#[test]
fn a_plan_says_what_a_registration_then_does() {
    let world = World::new();
    let (labels, _) = world.files(20);
    let terms = ["--p0", "0.5", "--multiplicity", "fwer", "--alpha", "0.01"];
    let svg = world.path("plan.svg");
    let plan = [&["plan", &labels, "--svg", &svg], &terms[..], &["--json"]].concat();
    // It calls nobody: this process knows no server.
    let planned = evidenceos(&plan).output().expect("runs");
    assert!(planned.status.success(), "{}", stderr(&planned));
    let planned: Value = serde_json::from_slice(&planned.stdout).expect("JSON");
    let dry = [&["holdout", "add", &labels, "--dry-run"], &terms[..]].concat();
    let dry = world.json(&dry);
    let added = world.json(&[&["holdout", "add", &labels, "--ref", "h"], &terms[..]].concat());
    for field in [
        "sealed_units",
        "sealed_budget_microbits",
        "certifications_left",
        "steps",
    ] {
        assert_eq!(planned[field], dry["plan"][field], "{field}");
    }
    assert_eq!(
        planned["sealed_budget_microbits"],
        added["policy"]["sealed_budget_microbits"]
    );
    assert_eq!(
        planned["principal_sealed_budget_microbits"],
        added["policy"]["principal_sealed_budget_microbits"]
    );
    assert_eq!(planned["certifications_left"], added["certifications_left"]);
    assert_eq!(
        planned["own_certifications_left"],
        added["own_certifications_left"]
    );
    assert_eq!(
        planned["steps"][0]["threshold_microbits"],
        added["next_threshold_microbits"]
    );
    assert_eq!(
        planned["steps"][0]["fewest_right"],
        added["next_fewest_right"]
    );
    let drawn = std::fs::read_to_string(&svg).expect("drawn");
    assert!(
        drawn.starts_with("<svg") && drawn.contains("after failed claims"),
        "{drawn}"
    );
    let text = world.run_as(None, &["plan", "--items", "1000", "--p0", "0.8"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for part in [
        "least accuracy",
        "after 1,000 failed claims",
        "▁",
        "100 % ┤",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    world.fails(&["plan", "--p0", "0.8"], 2, "--items");
    world.fails(
        &["plan", "--items", "10", "--units", "11", "--p0", "0.8"],
        2,
        "at least one item",
    );
    world.fails(
        &[
            "plan",
            "--items",
            "10",
            "--p0",
            "0.8",
            "--strategy",
            "fixed:0.7",
        ],
        2,
        "above --p0",
    );
}

#[test]
fn a_holdout_that_takes_no_claims_promises_none() {
    let world = World::new();
    certified(&world);
    let shown = |part: &str| {
        let output = world.run_as(None, &["holdout", "show", "h"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(part), "{part}: {text}");
        text
    };
    shown("sealed items right");
    shown("forecast:");
    world.json(&["holdout", "retire", "h", "--yes"]);
    let retired = shown("none: the holdout is retired");
    assert!(!retired.contains("forecast:"), "{retired}");
}

#[test]
fn credit_goes_to_principals_alone() {
    let world = World::new();
    let grant = |who: &[&'static str]| [&["account", "grant"], who, &["--reason", "r"]].concat();
    world.fails(&grant(&["alice", "5"]), 1, "evidenceos principal");
    world.fails(
        &grant(&["spiffe://lab/alice", "5"]),
        2,
        "--uri spiffe://lab/alice",
    );
    world.fails(&grant(&["5"]), 2, "--uri");
    world.fails(
        &["account", "limit", "alice", "5"],
        1,
        "evidenceos principal",
    );
    world.fails(&["account", "show", "alice"], 1, "evidenceos principal");
    let by_uri = ["--uri", "spiffe://lab/alice"];
    let limit = [&["account", "limit", "20000"][..], &by_uri].concat();
    let limited = world.json(&limit);
    let principal = limited["principal_id"].as_str().expect("a name").to_owned();
    let computed = world.json(&[&["principal"][..], &by_uri].concat());
    assert_eq!(computed["principal"], *principal);
    let shown = world.json(&["account", "show", &principal]);
    assert_eq!(shown["credit_limit"], 20_000);
    world.fails(&["principal", "alice"], 2, "64 lowercase hex digits");
}

#[test]
fn a_named_profile_wins_over_the_environments_endpoint_and_says_so() {
    let world = World::new();
    let text = format!("endpoint = \"{}\"\n", world.endpoint);
    let profile = world.write("profile.toml", &text);
    let mut command = evidenceos(&["--profile", &profile, "holdout", "list"]);
    command.env("EVIDENCEOS_ENDPOINT", "http://127.0.0.1:1");
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("EVIDENCEOS_ENDPOINT is ignored: --profile"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn alphas_that_apply_are_shown() {
    let world = World::new();
    let (labels, _) = world.files(20);
    world.json(&[
        "holdout", "add", &labels, "--ref", "h", "--p0", "0.5", "--alpha", "0.01",
    ]);
    world.json(&["claim", "create", "--holdout", "h", "--name", "a"]);
    let shown = world.json(&["claim", "show", "a"]);
    assert_eq!(
        (&shown["alpha_micros"], &shown["applied_alpha_micros"]),
        (&50_000.into(), &10_000.into())
    );
    let text = world.run_as(None, &["claim", "show", "a"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("0.01 (the holdout's; the claim asks for 0.05)"),
        "{text}"
    );
}
