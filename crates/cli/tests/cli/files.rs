//! Files as people have them: exports of spreadsheets, scores, the same claim at once.

use std::{collections::BTreeSet, process::Stdio};

use crate::{World, evidenceos, stderr};

#[test]
fn runs_of_one_claim_at_once_join_one_another() {
    let world = World::new();
    let (labels, good) = world.files(20);
    world.json(&["holdout", "add", &labels, "--ref", "h", "--p0", "0.5"]);
    for round in 0..3 {
        let module = world.path(&format!("good-{round}.wasm"));
        world.json(&["claim", "pack", &good, "-o", &module]);
        let run = ["claim", "run", &module, "--holdout", "h", "--json"];
        let runs: Vec<_> = (0..6)
            .map(|_| {
                let mut command = evidenceos(&run);
                command.env("EVIDENCEOS_ENDPOINT", &world.endpoint);
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                command.spawn().expect("the command starts")
            })
            .collect();
        let mut claims = BTreeSet::new();
        for run in runs {
            let output = run.wait_with_output().expect("ends");
            assert!(output.status.success(), "{}", stderr(&output));
            let result: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
            claims.insert(result["claim_id"].to_string());
        }
        assert_eq!(claims.len(), 1, "{claims:?}");
    }
}

#[test]
fn an_export_becomes_a_holdout_and_its_predictions_a_claim() {
    let world = World::new();
    let row = |i: usize, cell: &str| format!("Patient {i:03};\"ward, {}\";{cell}\r\n", i / 2);
    let diagnosis = |i: usize| if i * i % 7 < 3 { "malignant" } else { "benign" };
    let rows: String = (0..300).map(|i| row(i, diagnosis(i))).collect();
    let export = format!("\u{feff}patient_id;ward;diagnosis\r\n{rows}");
    let export = world.write("Klinik Übersicht.csv", &export);
    // Each mistake names the flag that mends it.
    let add = |more: &[&'static str]| [&["holdout", "add", &export, "--p0", "0.5"], more].concat();
    world.fails(&add(&[]), 2, "--id-column");
    world.fails(&add(&["--id-column", "patient_id"]), 2, "--label-column");
    let columns = ["--id-column", "patient_id", "--label-column", "diagnosis"];
    world.fails(&add(&columns), 2, "--map");
    let mapped = [&columns[..], &["--map", "malignant=1,benign=0"]].concat();
    let dry = world.json(&add(&[&mapped[..], &["--dry-run"]].concat()));
    assert_eq!(
        (&dry["items"], &dry["holdout_ref"], &dry["has_item_ids"]),
        (&300.into(), &"Klinik-Ubersicht".into(), &true.into())
    );
    assert_eq!(
        world.json(&["holdout", "list"])["holdouts"],
        serde_json::json!([])
    );
    let holdout = world.json(&add(&[
        &mapped[..],
        &["--ref", "wards", "--unit-column", "ward"],
    ]
    .concat()));
    assert_eq!(holdout["items"], 300);

    let items = world.path("items.csv");
    let list = world.json(&[
        "holdout",
        "items",
        &export,
        "-o",
        &items,
        "--id-column",
        "patient_id",
    ]);
    assert_eq!(list["item_order_hash"], dry["item_order_hash"]);
    let list = std::fs::read_to_string(&items).expect("written");
    assert!(
        list.starts_with("item\nPatient 000\n") && !list.contains("benign"),
        "{list}"
    );
    let scores: String = (0..300)
        .rev()
        .map(|i| {
            format!(
                "Patient {i:03}\t{}\n",
                if i * i % 7 < 3 { 0.9 } else { 0.2 }
            )
        })
        .collect();
    let scores = world.write("scores.tsv", &format!("patient\tscore\n{scores}"));
    let module = world.path("scores.wasm");
    let pack = [
        "claim",
        "pack",
        &scores,
        "-o",
        &module,
        "--items",
        &items,
        "--holdout",
        "wards",
    ];
    world.fails(&pack, 2, "--label-column");
    let by_score = ["--label-column", "score", "--threshold", "0.5"];
    world.json(&[&pack[..], &by_score].concat());
    let claim = world.json(&["claim", "run", &module, "--holdout", "wards"]);
    assert_eq!(claim["outcome"], "certified");
}
