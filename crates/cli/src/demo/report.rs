//! The demo's final report: a table, sentences, what to try next, and whether all expectations
//! held.

use evidenceos_kernel::record::Capsule;
use evidenceos_verify::Receipt;
use serde_json::{Value, json};

use super::Place;
use crate::{
    claim::Ran,
    error::CliError,
    output::{Output, bits, table},
    render::result_json,
};

/// A judged claim as a line of the table.
#[derive(Debug, Clone)]
pub struct Line {
    who: String,
    principal: String,
    claim_id: String,
    asked: Option<u32>,
    k_microbits: u64,
    c_microbits: u64,
    result: evidenceos_proto::ExecuteClaimV2Response,
}

impl Line {
    /// A settled claim with its capsule.
    pub fn of(who: &str, principal: &str, ran: &Ran, receipt: &Receipt) -> Result<Self, CliError> {
        let capsule = Capsule::parse(&receipt.capsule)
            .map_err(|error| CliError::Protocol(error.to_string()))?;
        Ok(Self {
            who: who.to_owned(),
            principal: principal.to_owned(),
            claim_id: hex::encode(&ran.claim_id),
            asked: (capsule.answers.asked > 0).then_some(capsule.answers.n_symbols),
            k_microbits: capsule.ledger.k.get(),
            c_microbits: capsule.ledger.c.get(),
            result: ran.result.clone(),
        })
    }

    fn cells(&self) -> Vec<String> {
        let result = &self.result;
        vec![
            self.who.clone(),
            self.principal.clone(),
            self.answer(),
            if result.certified {
                result.e_value.to_string()
            } else {
                "–".to_owned()
            },
            bits(result.price_microbits),
            format!("{} + {}", bits(self.k_microbits), bits(self.c_microbits)),
            bits(result.threshold_microbits),
            result.outcome.replace('_', " "),
            result.etl_index.to_string(),
        ]
    }

    /// The oracle's answer about the vector, if it was asked: the best answer is one below the alphabet.
    fn answer(&self) -> String {
        match (self.asked, self.result.canonical_output.last()) {
            (Some(n_symbols), Some(symbol)) => format!("{symbol} of {}", n_symbols - 1),
            _ => "not asked".to_owned(),
        }
    }

    fn json(&self) -> Value {
        let mut json = result_json(&self.result);
        json["who"] = json!(self.who);
        json["principal"] = json!(self.principal);
        json["claim_id"] = json!(self.claim_id);
        json["k_microbits"] = json!(self.k_microbits);
        json["c_microbits"] = json!(self.c_microbits);
        json
    }
}

/// A holdout's pools, as one principal sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pools {
    /// k, c and the next threshold, in microbits.
    pub sealed: [u64; 3],
    /// Charged to the submitter's own answers, in microbits.
    pub own: u64,
}

/// The results of the demo.
#[derive(Debug, Default)]
pub struct Report {
    /// The judged claims, a line each.
    pub lines: Vec<Line>,
    /// Items of the sealed part, on which certification rests.
    pub sealed_items: u64,
    /// Sentences about the weak model.
    pub weak: Vec<String>,
    /// Sentences about the attack.
    pub attack: Vec<String>,
    /// Sentences about receipts and log.
    pub offline: Vec<String>,
    expectations: Vec<(&'static str, bool)>,
}

impl Report {
    /// Notes whether an expectation holds.
    pub fn expect(&mut self, what: &'static str, holds: bool) {
        self.expectations.push((what, holds));
    }

    /// The table and everything after it; exit code 1 unless every expectation held.
    pub fn into_output(self, place: &Place) -> Output {
        let holds = self.expectations.iter().all(|(_, holds)| *holds);
        let mut output = Output::new(self.json(place, holds), self.text(place, holds));
        output.exit_code = u8::from(!holds);
        output
    }

    fn json(&self, place: &Place, holds: bool) -> Value {
        let expectations: Vec<Value> = self
            .expectations
            .iter()
            .map(|(what, holds)| json!({"expectation": what, "holds": holds}))
            .collect();
        json!({
            "ok": holds,
            "data_dir": place.root,
            "sealed_items": self.sealed_items,
            "claims": self.lines.iter().map(Line::json).collect::<Vec<_>>(),
            "weak_model": self.weak,
            "attacker": self.attack,
            "offline": self.offline,
            "expectations": expectations,
        })
    }

    fn text(&self, place: &Place, holds: bool) -> String {
        let rows: Vec<Vec<String>> = self.lines.iter().map(Line::cells).collect();
        let headers = [
            "claim",
            "principal",
            "answer",
            "e-value>",
            "bits>",
            "k + c>",
            "threshold>",
            "verdict",
            "index>",
        ];
        let mut text = format!("\n{}\n", table(&headers, &rows));
        for (title, sentences) in [
            ("The weak model", &self.weak),
            ("The attacker", &self.attack),
            ("Offline", &self.offline),
        ] {
            text.push_str(&format!("\n{title}\n"));
            sentences
                .iter()
                .for_each(|sentence| text.push_str(&format!("  {sentence}\n")));
        }
        text.push_str("\nWhat had to happen\n");
        for (what, holds) in &self.expectations {
            text.push_str(&format!("  {} {what}\n", if *holds { "✓" } else { "✗" }));
        }
        if holds {
            text.push_str(&next(place));
        } else {
            text.push_str("\nThe demo failed: please report it with the lines marked ✗.");
        }
        text
    }
}

fn next(place: &Place) -> String {
    let root = place.root.display();
    format!(
        "\nWhat to try next\n  \
         evidenceos-daemon --data-dir {root}/daemon &        # the same daemon, to stay\n  \
         evidenceos holdout show {holdout}\n  \
         evidenceos claim list --all\n  \
         evidenceos verify {root}/receipts/good-model.json --key {root}/log.vkey --log {root}/mirror\n  \
         evidenceos claim pack {root}/predictions/weak-model.csv --help",
        holdout = super::story::HOLDOUT
    )
}
