//! `evidenceos claim pack` and `claim check`: modules without writing Wasm, and why a module would be refused.
//!
//! Owns how predictions are read and matched with a holdout's order. Does not own the module's bytes: the sandbox
//! writes and checks them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use clap::Args;
use evidenceos_proto as proto;
use evidenceos_sandbox::{Mode, ModuleInfo, PackOptions, Violation, check, pack};
use serde_json::json;

use crate::{
    client::{Client, Connection},
    error::CliError,
    holdout,
    items::{Columns, Table, composed},
    labels::order_hash,
    output::{Output, facts, grouped, listed, progress},
};

/// Predictions to pack.
#[derive(Debug, Args)]
#[command(
    after_help = "PREDICTIONS has one prediction (0 or 1) a line in the holdout's order, or columns of item ids and predictions,\n\
    in any order, with --items. Commas, semicolons or tabs separate columns.\n\n\
    Examples:\n  \
    evidenceos claim pack predictions.csv -o claim.wasm --holdout tumours-2026\n  \
    evidenceos claim pack predictions.csv -o probe.wasm --ask-only --symbols 4\n  \
    evidenceos claim pack by-id.csv -o claim.wasm --items items.csv\n  \
    evidenceos claim pack scores.csv -o claim.wasm --items items.csv --label-column score --threshold 0.5"
)]
pub struct PackArgs {
    /// The predictions.
    predictions: PathBuf,
    /// Where to write the module.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The item ids in the holdout's order (one a line, or a column), for predictions with ids; a custodian
    /// writes it with `holdout items`.
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
    #[command(flatten)]
    columns: Columns,
}

impl PackArgs {
    /// Reads, checks, packs, writes.
    pub async fn run(self, connection: &Connection) -> Result<Output, CliError> {
        // Files are read first, so that a mistake in them is reported without a server.
        let items = match &self.items {
            Some(path) => Some(read_items(path, &self.columns)?),
            None => None,
        };
        let table = self.columns.read(&self.predictions)?;
        let predictions = in_order(&table, &self.columns, items.as_deref())?;
        table.notes.iter().for_each(|note| progress(note));
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
                "{}: {} predictions in {} bytes. {}",
                self.output.display(),
                grouped(predictions.len() as u64),
                grouped(module.len() as u64),
                match mode {
                    Mode::Judge => "This claim will be judged and asks no questions.",
                    Mode::AskAndJudge => "This claim will ask questions and be judged.",
                    Mode::AskOnly => "This claim will ask questions and not be judged.",
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

fn read_items(path: &Path, columns: &Columns) -> Result<Vec<String>, CliError> {
    columns.item_list(&columns.read(path)?)
}

/// Predictions in the holdout's order. The file has them in that order, or in any order with ids.
fn in_order(
    table: &Table,
    columns: &Columns,
    items: Option<&[String]>,
) -> Result<Vec<u8>, CliError> {
    let bits = columns.bits(table, "prediction")?;
    match (predicted_ids(table, columns)?, items) {
        (None, items) => {
            table.must_be_gapless()?;
            match items {
                Some(items) if items.len() != bits.len() => Err(table.problem(&format!(
                    "has {} predictions, and the item list has {} items",
                    bits.len(),
                    items.len()
                ))),
                _ => Ok(bits),
            }
        }
        (Some(ids), Some(items)) => by_id(table, &ids, &bits, items),
        (Some(_), None) => Err(table.problem(
            "gives predictions by item; name the file with the holdout's item order with --items",
        )),
    }
}

/// The ids of the predictions, if they have ids: the id column, otherwise the only other one.
fn predicted_ids(table: &Table, columns: &Columns) -> Result<Option<Vec<String>>, CliError> {
    if let Some(ids) = columns.ids(table)? {
        return Ok(Some(ids));
    }
    match table.width() {
        1 => Ok(None),
        2 => table.unique(columns.other_than_values(table)?).map(Some),
        _ => Err(table.lacks("item ids", "--id-column")),
    }
}

fn by_id(
    table: &Table,
    ids: &[String],
    bits: &[u8],
    items: &[String],
) -> Result<Vec<u8>, CliError> {
    let mut by_id: HashMap<&String, u8> = ids.iter().zip(bits.iter().copied()).collect();
    let missing = |item: &String| {
        let alike = ids.iter().find(|id| composed(id) == composed(item));
        let why = alike.map_or("", |_| {
            ": it has one for the same id in another Unicode form (an accented letter as one character or two); write both in one form (NFC)"
        });
        table.problem(&format!("has no prediction for item {item:?}{why}"))
    };
    // Predictions that are left afterwards belong to no item of the list.
    let predictions = items
        .iter()
        .map(|item| by_id.remove(item).ok_or_else(|| missing(item)))
        .collect::<Result<_, _>>()?;
    match ids.iter().find(|id| by_id.contains_key(id)) {
        Some(extra) => Err(table.problem(&format!(
            "predicts item {extra:?}, which the item list does not have"
        ))),
        None => Ok(predictions),
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

/// Reads a module that a daemon would admit.
///
/// # Errors
/// [`CliError::File`] if it cannot be read, [`CliError::Usage`] if it is not Wasm,
/// [`CliError::Failed`] with every rule that it breaks.
pub fn read_guest(path: &Path) -> Result<Vec<u8>, CliError> {
    let wasm = std::fs::read(path).map_err(CliError::file(path))?;
    let shown = path.display();
    if !wasm.starts_with(b"\0asm") {
        return Err(CliError::Usage(format!(
            "{shown} is no Wasm module; if it has predictions, pack them into one first: \
             evidenceos claim pack {shown} -o claim.wasm"
        )));
    }
    check(&wasm).map_err(|violations| would_be_refused(path, &violations))?;
    Ok(wasm)
}

fn would_be_refused(path: &Path, violations: &[Violation]) -> CliError {
    CliError::Failed(format!(
        "{} would be refused:\n{}",
        path.display(),
        listed(violations)
    ))
}

/// A module to check.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  evidenceos claim check claim.wasm")]
pub struct CheckArgs {
    /// The module.
    module: PathBuf,
}

impl CheckArgs {
    /// Reports whether a daemon would admit the module, and if not, every rule that it breaks.
    pub fn run(self) -> Result<Output, CliError> {
        let wasm = std::fs::read(&self.module).map_err(CliError::file(&self.module))?;
        match check(&wasm) {
            Ok(info) => Ok(admitted(&info)),
            Err(violations) => Err(would_be_refused(&self.module, &violations)),
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
        let columns = Columns::default();
        let parse = |content: &str, items: Option<&[String]>| {
            let table = columns.parse(content.as_bytes(), "p.csv");
            let predictions = table.and_then(|table| in_order(&table, &columns, items));
            predictions.map_err(|error| error.to_string())
        };
        let items = ["b".to_owned(), "a".to_owned()];
        assert_eq!(parse("1\n0\n", None), Ok(vec![1, 0]));
        assert_eq!(parse("1\n0\n", Some(&items)), Ok(vec![1, 0]));
        assert_eq!(parse("prediction\n1\n0\n", None), Ok(vec![1, 0]));
        for by_id in [
            "item,prediction\na,1\nb,0\n",
            "prediction;id\n1;a\n0;b\n",
            "patient\tprediction\na\t1\nb\t0\n",
            "a,1\nb,0\n",
            ",item,prediction\n0,a,True\n1,b,False\n",
        ] {
            assert_eq!(parse(by_id, Some(&items)), Ok(vec![0, 1]), "{by_id:?}");
        }
        let check = |content, items, part: &str| {
            let error = parse(content, items).expect_err(part);
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        };
        check("", None, "is empty");
        check("2\n", None, "line 1");
        check("1\n0\n1\n", Some(&items[..]), "3 predictions");
        check("1\n\n0\n", None, "line 2");
        check("a,1\n", None, "--items");
        check("a,1\n", Some(&items[..]), "no prediction for item \"b\"");
        check("a,1\nb,1\nc,1\n", Some(&items[..]), "\"c\"");
        check("a,1\na,1\n", Some(&items[..]), "line 1 already");
        check("a,b,1\n", None, "3 columns");
    }

    #[test]
    fn an_item_list_is_one_column_or_the_one_that_is_named() {
        let columns = Columns::default();
        let parse = |content: &str| {
            let table = columns.parse(content.as_bytes(), "items.csv");
            let items = table.and_then(|table| columns.item_list(&table));
            items.map_err(|error| error.to_string())
        };
        let of_patients = Columns {
            id_column: Some("patient".to_owned()),
            ..Columns::default()
        };
        for list in ["patient,item\nb,x\na,y\n", "item\nb\na\n", "b\na\n"] {
            let table = of_patients.parse(list.as_bytes(), "l").expect("a table");
            let items = of_patients.item_list(&table).expect("a list");
            assert_eq!(items, ["b", "a"], "{list:?}");
        }
        let wanted = Ok(vec!["b".to_owned(), "a".to_owned()]);
        for list in [
            "b\na\n",
            "\u{feff}item\nb\na\n",
            "\"b\"\r\n\"a\"\r\n",
            "id\rb\ra\r",
            "label,item\n1,b\n0,a\n",
        ] {
            assert_eq!(parse(list), wanted, "{list:?}");
        }
        assert!(parse("b\na\nb\n").expect_err("twice").contains("line 3"));
        assert!(
            parse("x,y1\nb,1\n")
                .expect_err("which?")
                .contains("--id-column")
        );
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
