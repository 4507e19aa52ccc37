//! `evidenceos claim pack` and `claim check`: modules without writing Wasm, and why a module would be refused.
//!
//! Owns how a file of predictions is read and matched with a holdout's order. Does not own the module's bytes: the
//! sandbox writes and checks them.

use std::path::{Path, PathBuf};

use clap::Args;
use evidenceos_proto as proto;
use evidenceos_sandbox::{Mode, ModuleInfo, PackOptions, check, pack};
use serde_json::json;

use crate::{
    client::{Client, Connection},
    error::CliError,
    holdout,
    labels::{bit, order_hash, rows},
    output::{Output, facts, grouped, listed},
};

/// Predictions to pack.
#[derive(Debug, Args)]
#[command(
    after_help = "PREDICTIONS is one prediction (0 or 1) a line in the holdout's order, or CSV item,prediction with --items.\n\n\
    Examples:\n  \
    evidenceos claim pack predictions.csv -o claim.wasm --holdout tumours-2026\n  \
    evidenceos claim pack predictions.csv -o probe.wasm --ask-only --symbols 4\n  \
    evidenceos claim pack by-id.csv -o claim.wasm --items items.txt"
)]
pub struct PackArgs {
    /// The predictions.
    predictions: PathBuf,
    /// Where to write the module.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The item ids in the holdout's order, one a line: for predictions that are given by id.
    #[arg(long, value_name = "FILE")]
    items: Option<PathBuf>,
    /// Ask the oracle about the predictions, and be judged on them.
    #[arg(long, conflicts_with = "ask_only")]
    ask: bool,
    /// Ask the oracle about the predictions without being judged.
    #[arg(long)]
    ask_only: bool,
    /// The oracle's alphabet; the claim must be created with the same.
    #[arg(long, default_value_t = 2, value_name = "N")]
    symbols: u32,
    /// Check number and order of the items with this holdout first.
    #[arg(long, value_name = "NAME")]
    holdout: Option<String>,
}

impl PackArgs {
    /// Reads, checks, packs, writes.
    pub async fn run(self, connection: &Connection) -> Result<Output, CliError> {
        // Files are read first, so that a mistake in them is told without a server.
        let items = match &self.items {
            Some(path) => Some(read_items(path)?),
            None => None,
        };
        let predictions = read_predictions(&self.predictions, items.as_deref())?;
        if let Some(name) = &self.holdout {
            let mut client = Client::connect(connection).await?;
            let holdout = holdout::show(&mut client, name.clone()).await?;
            must_fit(&holdout, &predictions, items.as_deref())?;
        }
        let mode = match (self.ask, self.ask_only) {
            (true, _) => Mode::AskAndJudge,
            (_, true) => Mode::AskOnly,
            (false, false) => Mode::Judge,
        };
        let module = pack_module(&predictions, mode, self.symbols)?;
        std::fs::write(&self.output, &module).map_err(CliError::file(&self.output))?;
        Ok(Output::new(
            json!({
                "module": self.output,
                "bytes": module.len(),
                "predictions": predictions.len(),
                "asks": mode != Mode::Judge,
                "judged": mode != Mode::AskOnly,
                "symbols": self.symbols,
            }),
            format!(
                "{}: {} predictions in {} bytes; {}",
                self.output.display(),
                grouped(predictions.len() as u64),
                grouped(module.len() as u64),
                match mode {
                    Mode::Judge => "it is judged and asks nothing",
                    Mode::AskAndJudge => "it asks, and is judged",
                    Mode::AskOnly => "it asks, and is not judged",
                }
            ),
        ))
    }
}

/// The module that carries these predictions.
pub fn pack_module(predictions: &[u8], mode: Mode, num_symbols: u32) -> Result<Vec<u8>, CliError> {
    let options = PackOptions {
        num_symbols,
        ..PackOptions::new(predictions, mode)
    };
    pack(&options).map_err(|error| CliError::Usage(error.to_string()))
}

fn read_items(path: &Path) -> Result<Vec<String>, CliError> {
    let content = std::fs::read_to_string(path).map_err(CliError::file(path))?;
    Ok(content
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect())
}

fn read_predictions(path: &Path, items: Option<&[String]>) -> Result<Vec<u8>, CliError> {
    let content = std::fs::read_to_string(path).map_err(CliError::file(path))?;
    parse_predictions(&content, &path.display().to_string(), items)
}

/// One prediction a line in order, or `item,prediction` in any order with the order of the items.
fn parse_predictions(
    content: &str,
    name: &str,
    items: Option<&[String]>,
) -> Result<Vec<u8>, CliError> {
    let rows = rows(content, name)?;
    // Only the last column's name counts: the ids may be called anything.
    let is_header = |row: &[String]| row.last().is_some_and(|cell| cell == "prediction");
    let body = match rows.first() {
        Some((_, first)) if is_header(first) => &rows[1..],
        _ => &rows[..],
    };
    let columns = body.first().map_or(0, |(_, row)| row.len());
    // The prediction is in the last column, with an item before it or without.
    let by_order = |row: &Vec<String>, line| bit(&row[columns - 1], "prediction", name, line);
    match (columns, items) {
        (0, _) => Err(CliError::Usage(format!("{name} has no predictions"))),
        (1, _) => body
            .iter()
            .map(|(line, row)| by_order(row, *line))
            .collect(),
        (2, Some(items)) => {
            let mut by_item = std::collections::HashMap::new();
            for (line, row) in body {
                if by_item
                    .insert(row[0].as_str(), by_order(row, *line)?)
                    .is_some()
                {
                    return Err(CliError::Usage(format!(
                        "{name} line {line}: item {:?} is predicted twice",
                        row[0]
                    )));
                }
            }
            let missing = |item: &String| {
                CliError::Usage(format!("{name} has no prediction for item {item:?}"))
            };
            // Those that are left afterwards are for no item of the list.
            let predictions = items
                .iter()
                .map(|item| by_item.remove(item.as_str()).ok_or_else(|| missing(item)))
                .collect::<Result<_, _>>()?;
            match by_item.keys().next() {
                Some(extra) => Err(CliError::Usage(format!(
                    "{name} predicts item {extra:?}, which the item list does not have"
                ))),
                None => Ok(predictions),
            }
        }
        (2, None) => Err(CliError::Usage(format!(
            "{name} gives predictions by item; name the file with the holdout's item order with --items"
        ))),
        (columns, _) => Err(CliError::Usage(format!(
            "{name} has {columns} columns; write one prediction a line, or item,prediction"
        ))),
    }
}

fn must_fit(
    holdout: &proto::Holdout,
    predictions: &[u8],
    items: Option<&[String]>,
) -> Result<(), CliError> {
    if predictions.len() as u64 != holdout.items {
        return Err(CliError::Usage(format!(
            "{} predictions, but {} has {} items",
            predictions.len(),
            holdout.holdout_ref,
            holdout.items
        )));
    }
    // A holdout that was registered without ids has no order to compare.
    match items {
        Some(items)
            if !holdout.item_order_hash.is_empty()
                && order_hash(items)[..] != holdout.item_order_hash =>
        {
            Err(CliError::Usage(format!(
                "the item list has another order, or other items, than {} was registered with",
                holdout.holdout_ref
            )))
        }
        _ => Ok(()),
    }
}

/// A module to check.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  evidenceos claim check claim.wasm")]
pub struct CheckArgs {
    /// The module.
    module: PathBuf,
}

impl CheckArgs {
    /// Says whether a daemon would admit the module, and if not, every rule that it breaks.
    pub fn run(self) -> Result<Output, CliError> {
        let wasm = std::fs::read(&self.module).map_err(CliError::file(&self.module))?;
        match check(&wasm) {
            Ok(info) => Ok(admitted(&info)),
            Err(violations) => Err(CliError::Failed(format!(
                "{} would be refused:\n{}",
                self.module.display(),
                listed(&violations)
            ))),
        }
    }
}

fn admitted(info: &ModuleInfo) -> Output {
    let warnings: Vec<String> = info.warnings.iter().map(ToString::to_string).collect();
    let mut text = facts(&[
        ("module", hex::encode(info.sha256)),
        ("bytes", grouped(info.len as u64)),
        ("asks an oracle", info.asks.to_string()),
        ("submits predictions", info.submits.to_string()),
        ("emits a claim", info.emits.to_string()),
    ]);
    for warning in &warnings {
        text.push_str("\nwarning: ");
        text.push_str(warning);
    }
    Output::new(
        json!({
            "admitted": true,
            "sha256": hex::encode(info.sha256),
            "bytes": info.len,
            "asks": info.asks,
            "submits": info.submits,
            "emits": info.emits,
            "warnings": warnings,
        }),
        text,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_are_read_in_order_or_by_item() {
        let parse = |content, items: Option<&[String]>| {
            parse_predictions(content, "p.csv", items).map_err(|e| e.to_string())
        };
        let items = ["b".to_owned(), "a".to_owned()];
        assert_eq!(parse("1\n0\n", None), Ok(vec![1, 0]));
        assert_eq!(parse("prediction\n1\n0\n", None), Ok(vec![1, 0]));
        assert_eq!(
            parse("item,prediction\na,1\nb,0\n", Some(&items)),
            Ok(vec![0, 1])
        );
        let check = |content, items, part: &str| {
            let error = parse(content, items).expect_err(part);
            assert!(error.contains(part), "{error}");
        };
        check("", None, "no predictions");
        check("2\n", None, "line 1");
        check("a,1\n", None, "--items");
        check("a,1\n", Some(&items[..]), "no prediction for item \"b\"");
        check("a,1\nb,1\nc,1\n", Some(&items[..]), "\"c\"");
        check("a,1\na,1\n", Some(&items[..]), "twice");
        check("a,b,1\n", None, "3 columns");
    }

    #[test]
    fn a_packed_module_is_admitted() {
        for mode in [Mode::Judge, Mode::AskAndJudge, Mode::AskOnly] {
            let module = pack_module(&[1, 0, 1], mode, 16).expect("packs");
            let info = check(&module).expect("admitted");
            assert_eq!(info.asks, mode != Mode::Judge);
        }
    }
}
