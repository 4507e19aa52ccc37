//! The events of the demo, chapter by chapter, and the expected results.

use std::path::Path;

use evidenceos_kernel::{bits::MicroBits, evidence::Strategy, planner};
use evidenceos_proto as proto;
use evidenceos_sandbox::Mode;
use evidenceos_verify::{Receipt, verify_log, verify_receipt};

use super::{
    Place,
    attack::{Booster, naive_leaderboard},
    data::Dataset,
    model::{Logistic, Model, Stump, accuracy},
    report::{Line, Pools, Report},
};
use crate::{
    claim::{Ran, TermsArgs, fetch_receipt, run_claim, server_key, write_receipt},
    client::Client,
    entries::StoredLog,
    error::CliError,
    holdout::{parts, show},
    labels::Labels,
    log,
    output::{bits, progress},
    pack::pack_module,
    verify::verify_file,
};

/// The name of the demo's holdout.
pub const HOLDOUT: &str = "tumours";
const P0_MICROS: u32 = 800_000;
const ALPHA_MICROS: u32 = 50_000;
const ONE_BIT: u64 = 1_000_000;
/// The alphabet in which honest submitters ask: four bits an answer.
const SYMBOLS: u32 = 16;
const NAIVE_QUESTIONS: u64 = 1_000;
/// More than the allowance carries, so that the daemon ends the attack.
const MOST_QUESTIONS: u64 = 100;

/// Runs the story against the daemon behind `operator`.
pub async fn tell(place: &Place, operator: Client) -> Result<Report, CliError> {
    let data = Dataset::load()?;
    let mut story = Story {
        place,
        operator,
        report: Report::default(),
    };
    story.register(&data).await?;
    story.honest(&data).await?;
    story.attack(&data).await?;
    story.verify_offline().await?;
    Ok(story.report)
}

struct Story<'a> {
    place: &'a Place,
    operator: Client,
    report: Report,
}

impl Story<'_> {
    async fn register(&mut self, data: &Dataset) -> Result<(), CliError> {
        let labels = Labels {
            labels: data.labels(),
            items: Some(data.items()),
            units: None,
        };
        write_columns(
            &self.place.root.join("labels.csv"),
            "item,label",
            &data.items(),
            &labels.labels,
        )?;
        let header = proto::PutHoldoutHeader {
            holdout_ref: HOLDOUT.to_owned(),
            items: labels.labels.len() as u64,
            policy: Some(proto::HoldoutPolicy {
                answer_share_micros: Some(200_000),
                answer_budget_microbits: Some(64 * ONE_BIT),
                principal_answer_budget_microbits: Some(32 * ONE_BIT),
                sealed_budget_microbits: Some(64 * ONE_BIT),
                alpha_micros: Some(ALPHA_MICROS),
                multiplicity: "each".to_owned(),
                ..Default::default()
            }),
            null_spec: Some(proto::NullSpec {
                kind: "accuracy".to_owned(),
                p0_micros: P0_MICROS,
                strategy: "grid".to_owned(),
                ..Default::default()
            }),
            item_order_hash: labels
                .item_order_hash()
                .map(|hash| hash.to_vec().into())
                .unwrap_or_default(),
            has_units: false,
            has_item_ids: true,
            fresh_items: false,
        };
        let holdout = self.operator.put_holdout(parts(header, &labels)).await?;
        progress(&format!(
            "registered {} private labels: {} answer questions, {} stay sealed",
            holdout.items, holdout.answer_items, holdout.sealed_items
        ));
        self.report
            .expect("at least 350 items are sealed", holdout.sealed_items >= 350);
        self.report.sealed_items = holdout.sealed_items;
        Ok(())
    }

    async fn honest(&mut self, data: &Dataset) -> Result<(), CliError> {
        let labels = data.labels();
        progress("training a logistic regression on the public rows");
        let good = Logistic::train(&data.training).predict_all(&data.holdout);
        let ran = self
            .judge(
                "good model",
                "alice",
                &good,
                &data.items(),
                Mode::AskAndJudge,
            )
            .await?;
        self.report
            .expect("the good model is certified", ran.result.certified);

        let feature = data
            .names
            .iter()
            .position(|name| name == "radius_error")
            .unwrap_or(0);
        let stump = Stump::train(&data.training, feature);
        let weak = stump.predict_all(&data.holdout);
        let ran = self
            .judge("weak model", "bob", &weak, &data.items(), Mode::AskAndJudge)
            .await?;
        self.report.expect(
            "the weak model is judged and not certified",
            ran.result.outcome == "not_certified",
        );
        self.report.weak = shortfall(
            accuracy(&weak, &labels),
            accuracy(
                &stump.predict_all(&data.training),
                &data
                    .training
                    .iter()
                    .map(|row| row.label)
                    .collect::<Vec<_>>(),
            ),
            ran.result.threshold_microbits,
            self.report.sealed_items,
        )?;
        Ok(())
    }

    async fn attack(&mut self, data: &Dataset) -> Result<(), CliError> {
        let labels = data.labels();
        // The attacker's own pools change, so another principal's pools are compared.
        let before = self.pools("carol").await?;
        let (boosted, asked, refusal) = self.ask_until_refused(labels.len()).await?;
        progress(&format!("then: {refusal}"));
        self.report
            .expect("the attacker's allowance ends after 32 bits", asked == 32);
        let after = self.pools("carol").await?;
        self.report.expect(
            "k, c and the next threshold are unchanged by the attacker's questions",
            before.sealed == after.sealed,
        );
        self.report.expect(
            "another principal's own allowance is unchanged",
            before.own == after.own,
        );
        let ran = self
            .judge("attacker", "mallory", &boosted, &data.items(), Mode::Judge)
            .await?;
        self.report
            .expect("the attacker is not certified", !ran.result.certified);
        self.report.expect(
            "the attacker's threshold is the one that stood before the questions",
            ran.result.threshold_microbits == before.sealed[2],
        );
        let naive = accuracy(&naive_leaderboard(&labels, NAIVE_QUESTIONS), &labels);
        self.report
            .expect("a naive leaderboard would have been fooled", naive > 0.9);
        self.report.attack = vec![
            format!(
                "{asked} questions, a claim each, cost the attacker {} bits of answers; then: {refusal}",
                bits(asked * ONE_BIT)
            ),
            format!(
                "a leaderboard that gives {NAIVE_QUESTIONS} exact answers would now show the attacker at {:.1} %; the true accuracy is {:.1} %",
                100.0 * naive,
                100.0 * accuracy(&boosted, &labels)
            ),
            format!(
                "k {}, c {} and the threshold {} bits are what they were before these questions; carol's own allowance still is {} bits",
                bits(after.sealed[0]),
                bits(after.sealed[1]),
                bits(after.sealed[2]),
                bits(32 * ONE_BIT - after.own)
            ),
        ];
        Ok(())
    }

    /// Has mallory ask about `items` labels, a claim for each question, until a claim is refused.
    /// Returns the attacker's vote, the questions that were answered, and the refusal.
    async fn ask_until_refused(
        &mut self,
        items: usize,
    ) -> Result<(Vec<u8>, u64, String), CliError> {
        let mut mallory = self.operator.with_bearer("mallory")?;
        let mut booster = Booster::new(items);
        let mut asked = 0;
        let refusal = loop {
            let question = booster.question();
            // A run that declares a bit is refused once no bit is left. Without the declaration it
            // would still be admitted.
            let terms = TermsArgs {
                max_answer_bits: Some(ONE_BIT),
                ..terms(&format!("probe {asked}"))
            };
            let module = pack_module(&question, Mode::AskOnly, 2)?;
            let ran = match run_claim(&mut mallory, &terms, module, |_| {}).await {
                Ok(ran) => ran,
                // The attack is meant to end with a refusal; any other error ends the demo.
                Err(CliError::Refused { code, message }) => break format!("{message} [{code}]"),
                Err(error) => return Err(error),
            };
            let above_half = ran.result.canonical_output.last() == Some(&1);
            booster.learn(&question, if above_half { 1.0 } else { -1.0 });
            asked += 1;
            if asked == 1 {
                let receipt = fetch_receipt(&mut mallory, ran.claim_id).await?;
                write_receipt(
                    &receipt,
                    &self.place.receipts().join("attackers-first-question.json"),
                )?;
            }
            if asked % 8 == 0 {
                progress(&format!("the attacker has asked {asked} questions"));
            }
            if asked == MOST_QUESTIONS {
                break "nothing stopped the attacker".to_owned();
            }
        };
        Ok((booster.vote(), asked, refusal))
    }

    /// The holdout's pools as a principal sees them.
    async fn pools(&self, principal: &str) -> Result<Pools, CliError> {
        // Callers see only their own charges, so this principal asks.
        let holdout = show(
            &mut self.operator.with_bearer(principal)?,
            HOLDOUT.to_owned(),
        )
        .await?;
        Ok(Pools {
            sealed: [
                holdout.sealed_charged_microbits,
                holdout.next_certified_price_microbits,
                holdout.next_threshold_microbits,
            ],
            own: holdout.own_answer_charged_microbits,
        })
    }

    /// Has a vector judged, and keeps predictions and receipt. Honest submitters also ask about their vector
    /// once.
    async fn judge(
        &mut self,
        who: &str,
        principal: &str,
        predictions: &[u8],
        items: &[String],
        mode: Mode,
    ) -> Result<Ran, CliError> {
        let file = format!("{}.csv", who.replace(' ', "-"));
        let path = self.place.root.join("predictions").join(file);
        write_columns(&path, "item,prediction", items, predictions)?;
        let mut client = self.operator.with_bearer(principal)?;
        let module = pack_module(predictions, mode, SYMBOLS)?;
        let terms = TermsArgs {
            symbols: Some(SYMBOLS),
            ..terms(who)
        };
        let ran = run_claim(&mut client, &terms, module, |_| {}).await?;
        progress(&format!("{who}: {}", ran.result.outcome.replace('_', " ")));
        let receipt = fetch_receipt(&mut client, ran.claim_id.clone()).await?;
        write_receipt(
            &receipt,
            &self
                .place
                .receipts()
                .join(format!("{}.json", who.replace(' ', "-"))),
        )?;
        self.report
            .lines
            .push(Line::of(who, principal, &ran, &receipt)?);
        Ok(ran)
    }

    /// From here on only files are read: every receipt, the log as a whole, and one receipt with a changed byte.
    async fn verify_offline(&mut self) -> Result<(), CliError> {
        // The demo has only its own server as a source. In real use the key comes from a separate,
        // trusted source.
        let key = server_key(&mut self.operator).await?;
        std::fs::write(self.place.key(), format!("{key}\n"))
            .map_err(CliError::file(self.place.key()))?;
        log::fetch(&mut self.operator)
            .await?
            .write_tiles(&self.place.mirror())?;

        let receipts = list(&self.place.receipts())?;
        let mut newest = None;
        for path in &receipts {
            let verified = verify_file(path, &key)?;
            newest = newest.max(Some(verified.index));
        }
        self.report.expect(
            "every receipt verifies offline",
            receipts.len() == 4 && newest.is_some(),
        );
        let stored = StoredLog::read(&self.place.mirror())?;
        let note = stored.checkpoint.unwrap_or_default();
        let signed = evidenceos_tlog::SignedCheckpoint::open(note.as_bytes(), &key, &[])
            .map_err(|error| CliError::Failed(error.to_string()))?;
        let replayed = verify_log(&stored.entries, signed.checkpoint());
        self.report.expect(
            "all charges and thresholds recompute from the log",
            replayed.is_sound(),
        );

        let path = self.place.receipts().join("good-model.json");
        let mut bytes = std::fs::read(&path).map_err(CliError::file(&path))?;
        // A third of the way in is the capsule.
        let middle = bytes.len() / 3;
        // Another digit of base64, so that the file still parses and a check must find the change.
        bytes[middle] = if bytes[middle] == b'A' { b'B' } else { b'A' };
        let failure = Receipt::from_json(&bytes)
            .and_then(|receipt| verify_receipt(&receipt, &key.clone().into()))
            .err();
        self.report
            .expect("a receipt with one changed byte fails", failure.is_some());
        self.report.offline = vec![
            format!(
                "{} receipts verified from files alone; {} log entries hash to the signed root; all charges and thresholds recompute from the log",
                receipts.len(),
                replayed.entries
            ),
            match failure {
                Some(failure) => format!(
                    "with byte {middle} changed, the {} check fails: {failure}",
                    failure.check()
                ),
                None => "a changed byte went unnoticed".to_owned(),
            },
        ];
        Ok(())
    }
}

fn terms(name: &str) -> TermsArgs {
    TermsArgs {
        holdout: HOLDOUT.to_owned(),
        name: name.to_owned(),
        lane: "fast".to_owned(),
        alpha: ALPHA_MICROS,
        symbols: None,
        max_answer_bits: None,
        levels: 0,
        parents: Vec::new(),
    }
}

/// How far the weak model stayed below the threshold, and what it would have needed.
fn shortfall(
    accuracy: f64,
    in_training: f64,
    threshold: u64,
    units: u64,
) -> Result<Vec<String>, CliError> {
    let needed = planner::items_needed(
        P0_MICROS,
        Strategy::Grid,
        accuracy,
        MicroBits(threshold),
        planner::DEFAULT_POWER,
    )
    .map_err(|error| CliError::Failed(error.to_string()))?;
    Ok(vec![
        format!(
            "the model is right on {:.1} % of its training rows and on {:.1} % of the holdout (only its custodian sees this); the null is {} %",
            100.0 * in_training,
            100.0 * accuracy,
            P0_MICROS / 10_000
        ),
        crate::forecast::shortfall(threshold, needed, accuracy, units),
    ])
}

/// Writes a CSV of item ids and bits.
fn write_columns(
    path: &Path,
    header: &str,
    items: &[String],
    column: &[u8],
) -> Result<(), CliError> {
    let rows: Vec<String> = items
        .iter()
        .zip(column)
        .map(|(item, bit)| format!("{item},{bit}\n"))
        .collect();
    std::fs::write(path, format!("{header}\n{}", rows.concat())).map_err(CliError::file(path))
}

/// The files of a directory, in order of their names.
fn list(dir: &Path) -> Result<Vec<std::path::PathBuf>, CliError> {
    let entries = std::fs::read_dir(dir).map_err(CliError::file(dir))?;
    let mut paths: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    Ok(paths)
}
