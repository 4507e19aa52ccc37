//! `evidenceos holdout`: the custodian's commands.
//!
//! Owns how a label file becomes a registration, and what the custodian is told about it. Labels leave this process in
//! one call only, to the named daemon.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use evidenceos_proto as proto;
use serde_json::{Value, json};

use crate::{
    budgets::PolicyArgs,
    client::{Client, Connection},
    confirm::Yes,
    error::CliError,
    forecast::Forecast,
    items::{Columns, decomposed},
    labels::{Labels, item_digest, order_hash},
    null_spec::NullArgs,
    output::{Output, bits, facts, grouped, progress, table},
    paging::{PageArgs, Paged},
    plan::Plan,
    render::{holdout_json, holdout_text},
    units,
};

/// Items in one message, which then is well below 1 MiB with units and digests.
const ITEMS_PER_CHUNK: usize = 32_768;

/// The commands about holdouts.
#[derive(Debug, Subcommand)]
pub enum HoldoutCommand {
    /// Register a holdout from a file of labels.
    #[command(
        after_help = "LABELS has one label (0 or 1) a line, or columns whose first line names them: item,label[,unit]. Commas,\n\
        semicolons or tabs separate columns; other names are given with --id-column, --label-column and --unit-column.\n\
        Items of one unit (a patient, a document) are judged together.\n\n\
        Labels that agree with an earlier holdout's beyond chance are refused, and the answer is charged to that holdout;\n\
        --fresh-items declares instead that no item is in both.\n\n\
        Examples:\n  \
        evidenceos holdout add labels.csv --p0 0.5\n  \
        evidenceos holdout add export.csv --id-column patient_id --label-column diagnosis --map malignant=1,benign=0 --p0 0.8 \\\n      \
        --dry-run\n  \
        evidenceos holdout add labels.csv --ref tumours-2026 --p0 0.8 --answer-share 0.15 --multiplicity fwer"
    )]
    Add(Box<AddArgs>),
    /// Write the item ids of a label file in their order, for submitters. The list has no labels.
    #[command(
        after_help = "Submitters give it to `claim pack --items`, so that their predictions may have any order.\n\n\
        Example:\n  evidenceos holdout items labels.csv -o items.csv"
    )]
    Items(ItemsArgs),
    /// List all holdouts.
    #[command(
        after_help = "Examples:\n  evidenceos holdout list --json\n  evidenceos holdout list --status registered"
    )]
    List(ListArgs),
    /// Show one holdout: its public facts, its use so far, and what the next claim needs.
    #[command(after_help = "Example:\n  evidenceos holdout show tumours-2026")]
    Show {
        /// Its name or id.
        holdout: String,
    },
    /// Retire a holdout: it takes no more claims. This cannot be undone.
    #[command(
        after_help = "Example:\n  evidenceos holdout retire tumours-2026 --reason \"labels will be published\""
    )]
    Retire {
        /// Its name or id.
        holdout: String,
        /// Why; public.
        #[arg(long, default_value = "retired by its custodian")]
        reason: String,
        #[command(flatten)]
        yes: Yes,
    },
    /// Withdraw a holdout that released nothing, so that its labels can be registered again. This cannot be
    /// undone.
    #[command(
        after_help = "Only while nothing was judged or answered on it. Its split is destroyed; the labels may be registered\n\
        again, at most three times in a row, and draw another split.\n\n\
        Example:\n  evidenceos holdout withdraw tumours-2026 --reason \"wrong p0\""
    )]
    Withdraw {
        /// Its name or id.
        holdout: String,
        /// Why; public.
        #[arg(long, default_value = "withdrawn by its custodian")]
        reason: String,
        #[command(flatten)]
        yes: Yes,
    },
    /// Lower a holdout's budgets, or restore them up to the registered maximum.
    #[command(after_help = "Without a budget it shows those that hold now.\n\n\
        Example:\n  evidenceos holdout narrow tumours-2026 --sealed-budget-bits 20 --credit-budget 5000")]
    Narrow(NarrowArgs),
    /// Encrypt every holdout under a new key and destroy the old one, while the daemon serves. This cannot be
    /// undone.
    #[command(
        after_help = "If the daemon has EVIDENCEOS_KMS_HOLDOUT_KEY, the new key is wrapped by that KMS key.\n\n\
        Example:\n  evidenceos --profile ops/clients/operator/profile.toml holdout rotate-key"
    )]
    RotateKey(Yes),
    /// Make a retired holdout's labels public, so that everyone can check every answer and verdict. This cannot be
    /// undone.
    #[command(
        after_help = "Example:\n  evidenceos holdout open tumours-2026 -o opening.json\n  \
        evidenceos verify --key log.vkey --log mirror/ --opened opening.json --traces traces/"
    )]
    Open {
        /// Its name or id.
        holdout: String,
        /// Where to write the opening.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        yes: Yes,
    },
}

/// The filters of a list of holdouts.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Holdouts in one state.
    #[arg(long, value_parser = ["registered", "retired", "opened", "withdrawn"])]
    status: Option<String>,
    /// Holdouts whose names begin so.
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    #[command(flatten)]
    page: PageArgs,
}

/// The label file, and where to write its ids.
#[derive(Debug, Args)]
pub struct ItemsArgs {
    /// The label file.
    labels: PathBuf,
    /// The column of item ids [default: `id` or `item`].
    #[arg(long, value_name = "NAME")]
    id_column: Option<String>,
    /// Where to write the list.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

impl ItemsArgs {
    fn run(self) -> Result<Output, CliError> {
        let columns = Columns {
            id_column: self.id_column,
            ..Columns::default()
        };
        let table = columns.read(&self.labels)?;
        // A file with labels alone has one column too, which must not be taken for ids.
        let ids = columns
            .ids(&table)?
            .ok_or_else(|| table.lacks("item ids", "--id-column"))?;
        let mut writer = csv::Writer::from_path(&self.output)
            .map_err(|error| not_written(&self.output, &error))?;
        for id in std::iter::once("item").chain(ids.iter().map(String::as_str)) {
            writer
                .write_record([id])
                .map_err(|error| not_written(&self.output, &error))?;
        }
        writer.flush().map_err(CliError::file(&self.output))?;
        Ok(Output::new(
            json!({ "items": ids.len(), "output": self.output, "item_order_hash": hex::encode(order_hash(&ids)) }),
            format!(
                "{}: {} item ids, without labels",
                self.output.display(),
                grouped(ids.len() as u64)
            ),
        ))
    }
}

fn not_written(path: &Path, error: &csv::Error) -> CliError {
    CliError::Failed(format!("{}: {error}", path.display()))
}

/// The arguments of a registration. The server chooses missing values; the reply shows them.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// The label file.
    labels: PathBuf,
    #[command(flatten)]
    columns: Columns,
    /// The column that tells which items belong together, such as those of one patient [default:
    /// `unit`].
    #[arg(long, value_name = "NAME")]
    unit_column: Option<String>,
    /// Read the file, print what would be registered, and send nothing.
    #[arg(long)]
    dry_run: bool,
    /// Its name [default: the file's name without its extension].
    #[arg(long = "ref", value_name = "NAME")]
    reference: Option<String>,
    #[command(flatten)]
    null_spec: NullArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Declare, in public, that no item is in an earlier holdout: the labels are then not compared with earlier ones.
    #[arg(long)]
    fresh_items: bool,
}

impl HoldoutCommand {
    /// Runs the command and returns what it prints.
    pub async fn run(self, connection: &Connection) -> Result<Output, CliError> {
        let connect = || Client::connect(connection);
        match self {
            // The file is read before a server is called.
            Self::Add(args) => args.run(connection).await,
            Self::Items(args) => args.run(),
            Self::List(args) => args.run(&mut connect().await?).await,
            Self::Narrow(args) => args.run(&mut connect().await?).await,
            Self::Show { holdout } => {
                let holdout = show(&mut connect().await?, holdout).await?;
                Ok(shown(&holdout))
            }
            Self::Retire {
                holdout,
                reason,
                yes,
            } => {
                yes.must_agree(&format!(
                    "Retire holdout {holdout}? It takes no more claims, for good. This needs the operator role."
                ))?;
                let message = proto::RetireHoldoutRequest { holdout, reason };
                let reply = connect().await?.retire_holdout(message).await?;
                let holdout = crate::client::required(reply.holdout, "holdout")?;
                let text = format!("{} takes no more claims", holdout.holdout_ref);
                Ok(Output::new(holdout_json(&holdout), text))
            }
            Self::Withdraw {
                holdout,
                reason,
                yes,
            } => {
                yes.must_agree(&format!(
                    "Withdraw holdout {holdout}? Its split is destroyed. This needs the operator role."
                ))?;
                let message = proto::WithdrawHoldoutRequest { holdout, reason };
                let reply = connect().await?.withdraw_holdout(message).await?;
                let holdout = crate::client::required(reply.holdout, "holdout")?;
                let text = format!(
                    "{} is withdrawn and its split destroyed; its labels may be registered again",
                    holdout.holdout_ref
                );
                Ok(Output::new(holdout_json(&holdout), text))
            }
            Self::RotateKey(yes) => {
                yes.must_agree(
                    "Encrypt every holdout under a new key? The old key is destroyed: a backup of before needs the key that is in it. This needs the operator role.",
                )?;
                let message = proto::RotateHoldoutKeyRequest {};
                let reply = connect().await?.rotate_holdout_key(message).await?;
                let text = format!(
                    "{} holdouts are under a new key, {}; the old key is destroyed. Back up the data directory and its secrets: older backups open only with the old key",
                    reply.holdouts, reply.place
                );
                Ok(Output::new(
                    json!({"holdouts": reply.holdouts, "place": reply.place}),
                    text,
                ))
            }
            Self::Open {
                holdout,
                output,
                yes,
            } => {
                yes.must_agree(&format!(
                    "Open holdout {holdout}? Its labels become public for good. This needs the operator role."
                ))?;
                let opening = connect().await?.open_holdout(holdout).await?;
                std::fs::write(&output, &opening).map_err(CliError::file(&output))?;
                Ok(Output::new(
                    json!({"opening": output, "bytes": opening.len()}),
                    format!(
                        "the labels are public now; the opening is in {}",
                        output.display()
                    ),
                ))
            }
        }
    }
}

/// A holdout, with a forecast if it takes claims.
fn shown(holdout: &proto::Holdout) -> Output {
    let (mut json, mut text) = (holdout_json(holdout), holdout_text(holdout));
    let forecast = Forecast::of(holdout).filter(|_| holdout.status == "registered");
    if let Some(forecast) = &forecast {
        text = format!("{text}\nforecast: {}", forecast.text());
    }
    json["forecast"] = forecast.map_or(Value::Null, |forecast| forecast.json());
    Output::new(json, text)
}

/// One holdout by name or id.
pub async fn show(client: &mut Client, holdout: String) -> Result<proto::Holdout, CliError> {
    let reply = client
        .get_holdout(proto::GetHoldoutRequest { holdout })
        .await?;
    crate::client::required(reply.holdout, "holdout")
}

/// Budgets below those of the policy.
#[derive(Debug, Args)]
pub struct NarrowArgs {
    /// Its name or id.
    holdout: String,
    /// The budget of settlements, in bits.
    #[arg(long, value_parser = units::millionths, value_name = "BITS")]
    sealed_budget_bits: Option<u64>,
    /// The budget of each principal's answers, in bits.
    #[arg(long, value_parser = units::millionths, value_name = "BITS")]
    principal_answer_budget_bits: Option<u64>,
    /// The budget of credits burned on it.
    #[arg(long, value_name = "CREDITS")]
    credit_budget: Option<u64>,
}

impl NarrowArgs {
    async fn run(self, client: &mut Client) -> Result<Output, CliError> {
        // The calls for budgets take only an id, and the user may have given a name.
        let request = proto::GetHoldoutRequest {
            holdout: self.holdout,
        };
        let found = client.get_holdout(request).await?.holdout;
        let holdout_id = hex::encode(&found.unwrap_or_default().holdout_id);
        let to_bits = |microbits: u64| microbits as f64 / 1e6;
        let global = (
            "global",
            self.sealed_budget_bits.map(to_bits),
            self.credit_budget.map(|credits| credits as f64),
        );
        let principals = (
            "per_principal",
            self.principal_answer_budget_bits.map(to_bits),
            None,
        );
        // Each scope is a separate call; a scope that was not named stays unchanged.
        for (scope, new_k_bits_budget, new_access_credit_budget) in [global, principals] {
            if new_k_bits_budget.is_some() || new_access_credit_budget.is_some() {
                let request = proto::SetHoldoutPoolBudgetsRequest {
                    holdout_id: holdout_id.clone(),
                    scope: scope.to_owned(),
                    new_k_bits_budget,
                    new_access_credit_budget,
                };
                client.set_holdout_pool_budgets(request).await?;
            }
        }
        // The output shows the server's state, not the request.
        let mut budgets = Vec::new();
        for scope in ["global", "per_principal"] {
            let request = proto::GetHoldoutPoolBudgetsRequest {
                holdout_id: holdout_id.clone(),
                scope: scope.to_owned(),
            };
            let found = client.get_holdout_pool_budgets(request).await?.budgets;
            budgets.push(found.unwrap_or_default());
        }
        let bits = |n: usize| budgets[n].k_bits_budget.unwrap_or_default();
        let credit = budgets[0].access_credit_budget;
        let text = format!(
            "settlements        {} bits\neach one's answers {} bits\ncredits            {}",
            bits(0),
            bits(1),
            credit.map_or_else(|| "no budget".to_owned(), |credit| credit.to_string())
        );
        let json = json!({
            "holdout_id": holdout_id,
            "sealed_budget_bits": bits(0),
            "principal_answer_budget_bits": bits(1),
            "credit_budget": credit,
        });
        Ok(Output::new(json, text))
    }
}

impl ListArgs {
    fn matches(&self, holdout: &proto::Holdout) -> bool {
        let is_in = |status: &String| holdout.status == *status;
        let begins = |name: &String| holdout.holdout_ref.starts_with(name.as_str());
        self.status.as_ref().is_none_or(is_in) && self.name.as_ref().is_none_or(begins)
    }

    async fn run(self, client: &mut Client) -> Result<Output, CliError> {
        let mut paged = Paged::new(self.page.clone());
        while let Some((page_size, page_token)) = paged.next() {
            let message = proto::ListHoldoutsRequest {
                page_size,
                page_token,
            };
            let page = client.list_holdouts(message).await?;
            let mut holdouts = page.holdouts;
            holdouts.retain(|holdout| self.matches(holdout));
            paged.take(holdouts, page.next_page_token);
        }
        let rows: Vec<Vec<String>> = paged.items.iter().map(row).collect();
        let json: Vec<Value> = paged.items.iter().map(holdout_json).collect();
        let text = match (rows.is_empty(), &self.status, &self.name) {
            (true, Some(status), None) => format!("no holdout is {status}"),
            (true, _, Some(_)) => "no holdout matches".to_owned(),
            (true, None, None) => {
                "no holdouts yet; register one with `evidenceos holdout add LABELS.csv --p0 P0`"
                    .to_owned()
            }
            (false, ..) => {
                let headers = [
                    "holdout",
                    "status",
                    "items>",
                    "settled>",
                    "certified>",
                    "left>",
                    "sealed bits>",
                    "answer bits>",
                    "id",
                ];
                format!("{}{}", table(&headers, &rows), paged.more())
            }
        };
        let json = json!({ "holdouts": json, "next_page": paged.next_page() });
        Ok(Output::new(json, text))
    }
}

fn row(holdout: &proto::Holdout) -> Vec<String> {
    vec![
        holdout.holdout_ref.clone(),
        holdout.status.clone(),
        grouped(holdout.items),
        grouped(holdout.settled),
        grouped(holdout.certified),
        grouped(holdout.certifications_left.into()),
        bits(holdout.sealed_charged_microbits),
        bits(holdout.answer_charged_microbits),
        hex::encode(&holdout.holdout_id),
    ]
}

impl AddArgs {
    async fn run(self, connection: &Connection) -> Result<Output, CliError> {
        let (labels, notes) =
            Labels::read(&self.labels, &self.columns, self.unit_column.as_deref())?;
        notes.iter().for_each(|note| progress(note));
        let header = self.header(&labels)?;
        if self.dry_run {
            let (items, units) = (header.items, labels.distinct_units());
            let plan = Plan::new(items, units, &self.null_spec, &self.policy)?;
            return Ok(dry_run(&header, &labels, &plan));
        }
        progress(&format!(
            "registering {} items as {}",
            grouped(header.items),
            header.holdout_ref
        ));
        let mut client = Client::connect(connection).await?;
        let mut holdout = client.put_holdout(parts(header, &labels)).await?;
        if labels.items.is_none() {
            holdout.warnings.push(
                "the items have no ids, so that only their labels tell whether they are registered already; an item column (item,label) makes that certain".to_owned(),
            );
        }
        Ok(shown(&holdout))
    }

    fn header(&self, labels: &Labels) -> Result<proto::PutHoldoutHeader, CliError> {
        let reference = self.reference.clone().or_else(|| named_after(&self.labels));
        Ok(proto::PutHoldoutHeader {
            holdout_ref: reference
                .ok_or_else(|| CliError::Usage("name the holdout with --ref NAME".to_owned()))?,
            items: labels.labels.len() as u64,
            policy: Some(self.policy.to_wire()),
            null_spec: Some(self.null_spec.to_wire()?),
            item_order_hash: labels
                .item_order_hash()
                .map(|hash| hash.to_vec().into())
                .unwrap_or_default(),
            has_units: labels.units.is_some(),
            has_item_ids: labels.items.is_some(),
            fresh_items: self.fresh_items,
        })
    }
}

/// A holdout's name from the name of its label file: letters without accents, digits, `.`, `_` and `-`, any other run
/// of characters as one `-`; `None` if nothing is left.
fn named_after(labels: &Path) -> Option<String> {
    let stem = labels.file_stem()?.to_string_lossy();
    // `labels.csv.gz` is named after `labels`.
    let stem = stem.strip_suffix(".csv").unwrap_or(&stem);
    let mut name = String::new();
    // An accented letter is decomposed into the letter and a mark; the mark is left out.
    for letter in decomposed(stem).chars() {
        let is_plain = letter.is_ascii_alphanumeric() || "._".contains(letter);
        if is_plain {
            name.push(letter);
        } else if !is_mark(letter) && !name.ends_with('-') {
            name.push('-');
        }
    }
    let name = name
        .trim_matches(['-', '.'])
        .chars()
        .take(128)
        .collect::<String>();
    (!name.is_empty()).then_some(name)
}

/// Combining marks of accents.
fn is_mark(letter: char) -> bool {
    ('\u{300}'..='\u{36f}').contains(&letter)
}

/// Shows what a registration would send, and what the holdout could certify.
fn dry_run(header: &proto::PutHoldoutHeader, labels: &Labels, plan: &Plan) -> Output {
    let ones = labels.labels.iter().filter(|label| **label == 1).count() as u64;
    let units = labels.units.as_ref().map(|_| labels.distinct_units());
    let has = |is: bool| if is { "yes" } else { "no" };
    let mut rows = vec![
        ("name", header.holdout_ref.clone()),
        ("items", grouped(header.items)),
        (
            "labels 1",
            format!(
                "{} ({:.1} %)",
                grouped(ones),
                100.0 * ones as f64 / header.items as f64
            ),
        ),
        ("labels 0", grouped(header.items - ones)),
        ("item ids", has(labels.items.is_some()).to_owned()),
    ];
    if let Some(units) = units {
        rows.push(("units", grouped(units)));
    }
    let text = format!(
        "{}\n\n{}\n\nNothing was sent. Leave out --dry-run to register the holdout.",
        facts(&rows),
        plan.text()
    );
    let json = json!({
        "dry_run": true,
        "holdout_ref": header.holdout_ref,
        "items": header.items,
        "ones": ones,
        "has_item_ids": labels.items.is_some(),
        "units": units,
        "item_order_hash": hex::encode(&header.item_order_hash),
        "plan": plan.json(),
    });
    Output::new(json, text)
}

/// The messages of a registration.
pub fn parts(header: proto::PutHoldoutHeader, labels: &Labels) -> Vec<proto::PutHoldoutRequest> {
    use proto::put_holdout_request::Part;
    let chunk = |from: usize| {
        let range = from..(from + ITEMS_PER_CHUNK).min(labels.labels.len());
        let units = labels
            .units
            .as_ref()
            .map(|units| units[range.clone()].to_vec());
        // Item ids stay on this machine: the server gets their hashes.
        let digests = labels.items.as_ref().map(|items| {
            let digests = items[range.clone()].iter().map(|item| item_digest(item));
            digests.collect::<Vec<_>>().concat()
        });
        Part::Chunk(proto::PutHoldoutChunk {
            labels: labels.labels[range].to_vec().into(),
            units: units.unwrap_or_default(),
            item_id_digests: digests.unwrap_or_default().into(),
        })
    };
    let chunks = (0..labels.labels.len()).step_by(ITEMS_PER_CHUNK).map(chunk);
    std::iter::once(Part::Header(header))
        .chain(chunks)
        .map(|part| proto::PutHoldoutRequest { part: Some(part) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_its_holdout_a_name_that_the_server_takes() {
        let name = |file: &str| named_after(Path::new(file));
        for (file, expected) in [
            ("labels.csv", Some("labels")),
            ("dir/labels.csv.gz", Some("labels")),
            ("Klinik Übersicht (2026).csv", Some("Klinik-Ubersicht-2026")),
            ("caf\u{e9}.tsv", Some("cafe")),
            ("v1.2_x-3.csv", Some("v1.2_x-3")),
            ("标签.csv", None),
            ("..csv", None),
        ] {
            assert_eq!(name(file).as_deref(), expected, "{file}");
        }
        assert_eq!(
            name(&format!("{}.csv", "x".repeat(300))).map(|name| name.len()),
            Some(128)
        );
    }

    #[test]
    fn chunks_are_consecutive_and_complete() {
        let items = ITEMS_PER_CHUNK + 1;
        let labels = Labels {
            labels: vec![1; items],
            items: Some((0..items).map(|i| i.to_string()).collect()),
            units: Some((0..items as u64).collect()),
        };
        let parts = parts(proto::PutHoldoutHeader::default(), &labels);
        assert_eq!(parts.len(), 3);
        let Some(proto::put_holdout_request::Part::Chunk(last)) = &parts[2].part else {
            panic!("a chunk")
        };
        assert_eq!(last.units, [ITEMS_PER_CHUNK as u64]);
        assert_eq!((last.labels.len(), last.item_id_digests.len()), (1, 16));
    }
}
