//! `evidenceos log`: reads, mirrors and follows the public log.
//!
//! Owns paging and proofs as files. Proofs are verified here before they are shown; the reader decides under which
//! key to trust the head.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, builder::PossibleValuesParser};
use evidenceos_kernel::{entry::Kind, record::schema_of};
use evidenceos_proto as proto;
use evidenceos_tlog::{Hash, leaf_hash, verify_consistency, verify_inclusion};
use prost::bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    claim::server_key,
    client::{Client, Connection},
    entries::{StoredLog, size_of},
    error::CliError,
    output::{Output, grouped, print_line, progress, table},
};

/// The most entries in one page.
const PAGE: u32 = 256;
/// How often `tail --follow` asks for new entries.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);

/// The commands about the log.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Print the newest signed checkpoint.
    #[command(after_help = "Example:\n  evidenceos log checkpoint > checkpoint")]
    Checkpoint,
    /// Print the log's verifier key, as `verify --key` takes it.
    #[command(
        after_help = "Examples:\n  evidenceos log key > log.vkey\n  evidenceos log key --all"
    )]
    Key {
        /// Print every key that has signed the log, in order, with the size from which it signed.
        #[arg(long)]
        all: bool,
    },
    /// Prove that an entry is in the log, or that the log only grew.
    #[command(
        after_help = "Examples:\n  evidenceos log proof --index 12\n  evidenceos log proof --from 100 --to 200"
    )]
    Proof {
        /// The index of the entry.
        #[arg(long, required_unless_present = "from", conflicts_with = "from")]
        index: Option<u64>,
        /// The size of the older tree.
        #[arg(long, requires = "to")]
        from: Option<u64>,
        /// The size of the newer tree.
        #[arg(long)]
        to: Option<u64>,
    },
    /// Print the newest entries, one a line.
    #[command(
        after_help = "Examples:\n  evidenceos log tail -n 5\n  evidenceos log tail --follow | jq .schema"
    )]
    Tail {
        /// The number of entries.
        #[arg(short = 'n', long, default_value_t = 10)]
        lines: u64,
        /// Keep printing new entries.
        #[arg(long)]
        follow: bool,
    },
    /// Fetch all entries: into a mirror directory, or one a line on stdout.
    #[command(
        after_help = "Examples:\n  evidenceos log entries -o mirror/\n  evidenceos log entries > entries.jsonl\n  \
        evidenceos log entries --kind claim_revoked --from 1000 --limit 20"
    )]
    Entries {
        /// The directory to mirror into.
        #[arg(short, long, value_name = "DIR")]
        output: Option<PathBuf>,
        #[command(flatten)]
        which: Which,
    },
}

/// Some entries, in place of all of them.
#[derive(Debug, Args)]
pub struct Which {
    /// Entries of one kind.
    #[arg(long, value_parser = kinds(), conflicts_with = "output")]
    kind: Option<String>,
    /// From this index on; the first entry has index 0.
    #[arg(long, value_name = "INDEX", conflicts_with = "output")]
    from: Option<u64>,
    /// The most entries to print.
    #[arg(long, value_name = "N", conflicts_with = "output")]
    limit: Option<usize>,
}

/// Before the word for a kind, in each entry's schema.
const NAMESPACE: &str = "evidenceos.v2.";

fn kinds() -> PossibleValuesParser {
    let words = Kind::ALL.iter().map(|kind| kind.schema());
    PossibleValuesParser::new(words.map(|schema| schema.trim_start_matches(NAMESPACE)))
}

impl Which {
    fn are_all(&self) -> bool {
        self.kind.is_none() && self.from.is_none() && self.limit.is_none()
    }

    fn matches(&self, entry: &[u8]) -> bool {
        let Some(kind) = &self.kind else {
            return true;
        };
        schema_of(entry).is_some_and(|schema| schema.trim_start_matches(NAMESPACE) == kind)
    }
}

impl LogCommand {
    /// Runs the command and returns what it prints.
    pub async fn run(self, connection: &Connection, as_json: bool) -> Result<Output, CliError> {
        let mut client = Client::connect(connection).await?;
        match self {
            Self::Checkpoint => {
                let checkpoint = checkpoint(&mut client).await?;
                let size = size_of(&checkpoint);
                let text = checkpoint.trim_end().to_owned();
                Ok(Output::new(
                    json!({"checkpoint": checkpoint, "size": size}),
                    text,
                ))
            }
            Self::Key { all: true } => keys(&mut client).await,
            Self::Key { all: false } => {
                let key = server_key(&mut client).await?.to_string();
                Ok(Output::new(json!({ "vkey": key }), key))
            }
            Self::Proof {
                index: Some(index), ..
            } => inclusion(&mut client, index).await,
            Self::Proof { from, to, .. } => {
                consistency(&mut client, from.unwrap_or(0), to.unwrap_or(0)).await
            }
            Self::Tail { lines, follow } => tail(&mut client, lines, follow).await,
            Self::Entries { output, which } if which.are_all() => {
                entries(&mut client, output, as_json).await
            }
            Self::Entries { which, .. } => some_entries(&mut client, &which).await,
        }
    }
}

async fn keys(client: &mut Client) -> Result<Output, CliError> {
    let reply = client.list_log_keys(proto::ListLogKeysRequest {}).await?;
    let listed: Vec<Value> = reply
        .keys
        .iter()
        .map(|key| {
            json!({
                "vkey": key.vkey,
                "key_id": hex::encode(&key.key_id),
                "since_size": key.since_size,
            })
        })
        .collect();
    let rows: Vec<Vec<String>> = reply
        .keys
        .iter()
        .map(|key| vec![grouped(key.since_size), key.vkey.clone()])
        .collect();
    let text = table(&["since size>", "verifier key"], &rows);
    Ok(Output::new(json!({ "keys": listed }), text))
}

async fn checkpoint(client: &mut Client) -> Result<String, CliError> {
    let reply = client
        .get_checkpoint(proto::GetCheckpointRequest {})
        .await?;
    Ok(reply.checkpoint)
}

async fn inclusion(client: &mut Client, leaf_index: u64) -> Result<Output, CliError> {
    let message = proto::GetInclusionProofRequest {
        leaf_index,
        tree_size: 0,
    };
    let reply = client.get_inclusion_proof(message).await?;
    let entry = page(client, leaf_index, 1).await?.0.into_iter().next();
    let entry = entry.ok_or_else(|| CliError::Protocol("the entry is missing".to_owned()))?;
    // The leaf is computed from the entry: the server's own hash would prove nothing about it.
    let path = hashes(&reply.sibling_hashes)?;
    verify_inclusion(
        leaf_hash(&entry),
        leaf_index,
        reply.tree_size,
        &path,
        hash(&reply.root_hash)?,
    )
    .map_err(|error| CliError::Failed(format!("the server's proof does not hold: {error}")))?;
    Ok(Output::new(
        json!({
            "index": leaf_index,
            "tree_size": reply.tree_size,
            "leaf_hash": hex::encode(&reply.leaf_hash),
            "path": hex_list(&reply.sibling_hashes),
            "root": hex::encode(&reply.root_hash),
            "checkpoint": reply.checkpoint,
        }),
        format!(
            "entry {leaf_index} is in the tree of {} entries with root {}: {} hashes, verified",
            grouped(reply.tree_size),
            hex::encode(&reply.root_hash),
            path.len()
        ),
    ))
}

async fn consistency(client: &mut Client, from: u64, to: u64) -> Result<Output, CliError> {
    let message = proto::GetConsistencyProofRequest {
        first_tree_size: from,
        second_tree_size: to,
    };
    let reply = client.get_consistency_proof(message).await?;
    let path = hashes(&reply.path)?;
    let (old, new) = (
        hash(&reply.first_root_hash)?,
        hash(&reply.second_root_hash)?,
    );
    // The server states the roots here; the reader must check that they were signed.
    verify_consistency(from, to, &path, old, new)
        .map_err(|error| CliError::Failed(format!("the server's proof does not hold: {error}")))?;
    Ok(Output::new(
        json!({
            "first_tree_size": from,
            "second_tree_size": to,
            "first_root": old.to_hex(),
            "second_root": new.to_hex(),
            "path": hex_list(&reply.path),
        }),
        format!(
            "the tree of {to} entries extends the one of {from}: {} hashes, verified",
            path.len()
        ),
    ))
}

async fn tail(client: &mut Client, lines: u64, follow: bool) -> Result<Output, CliError> {
    let size = page(client, 0, 1).await?.1;
    let mut next = size.saturating_sub(lines);
    let mut shown = Vec::new();
    loop {
        // The log may grow meanwhile, so each page states the size anew.
        let (entries, size) = page(client, next, PAGE).await?;
        for entry in &entries {
            // Entries are JSON and hence UTF-8: nothing is lost here.
            let text = String::from_utf8_lossy(entry).into_owned();
            if follow {
                print_line(&text);
            } else {
                shown.push((next, text));
            }
            next += 1;
        }
        // An empty page must not lead to a loop without a pause.
        if next >= size || entries.is_empty() {
            if !follow {
                break;
            }
            tokio::time::sleep(FOLLOW_PAUSE).await;
        }
    }
    let json: Vec<Value> = shown
        .iter()
        .map(|(index, text)| json!({"index": index, "entry": text}))
        .collect();
    let text: Vec<String> = shown
        .iter()
        .map(|(index, text)| {
            let schema = schema_of(text.as_bytes()).unwrap_or_default();
            format!("{index}  {}  {text}", schema.trim_start_matches(NAMESPACE))
        })
        .collect();
    Ok(Output::new(json!({ "entries": json }), text.join("\n")))
}

async fn entries(
    client: &mut Client,
    output: Option<PathBuf>,
    as_json: bool,
) -> Result<Output, CliError> {
    let log = fetch(client).await?;
    let count = log.entries.len();
    if let Some(dir) = output {
        std::fs::create_dir_all(&dir).map_err(CliError::file(&dir))?;
        log.write_tiles(&dir)?;
        return Ok(Output::new(
            json!({"mirror": dir, "entries": count}),
            format!(
                "{}: {} entries and their checkpoint",
                dir.display(),
                grouped(count as u64)
            ),
        ));
    }
    let lines: Vec<String> = log
        .entries
        .iter()
        .map(|entry| String::from_utf8_lossy(entry).into_owned())
        .collect();
    let json = if as_json {
        json!({"entries": lines, "checkpoint": log.checkpoint})
    } else {
        Value::Null
    };
    Ok(Output {
        // `verify --log FILE` reads this output.
        is_data: true,
        ..Output::new(json, lines.join("\n"))
    })
}

/// Entries of one kind or place. Nothing is verified: an auditor takes all of them.
async fn some_entries(client: &mut Client, which: &Which) -> Result<Output, CliError> {
    let most = which.limit.unwrap_or(usize::MAX);
    let mut next = which.from.unwrap_or(0);
    let mut shown = Vec::new();
    let ends = loop {
        let (entries, size) = page(client, next, PAGE).await?;
        let is_last = entries.is_empty() || next + entries.len() as u64 >= size;
        for entry in entries {
            if shown.len() >= most {
                break;
            }
            next += 1;
            if which.matches(&entry) {
                let text = String::from_utf8_lossy(&entry).into_owned();
                shown.push((next - 1, text));
            }
        }
        if shown.len() >= most {
            break is_last && next >= size;
        }
        if is_last {
            break true;
        }
    };
    let json: Vec<Value> = shown
        .iter()
        .map(|(index, text)| json!({"index": index, "entry": text}))
        .collect();
    let lines: Vec<&str> = shown.iter().map(|(_, text)| text.as_str()).collect();
    Ok(Output {
        is_data: true,
        ..Output::new(
            json!({"entries": json, "next_from": (!ends).then_some(next)}),
            lines.join("\n"),
        )
    })
}

/// All entries under the newest checkpoint.
pub async fn fetch(client: &mut Client) -> Result<StoredLog, CliError> {
    // The checkpoint comes first: later entries are left out, and those below its size stay.
    let checkpoint = checkpoint(client).await?;
    let size = size_of(&checkpoint)
        .ok_or_else(|| CliError::Protocol("the checkpoint has no size".to_owned()))?;
    let mut entries = Vec::new();
    while (entries.len() as u64) < size {
        let start = entries.len() as u64;
        // The last page must not go beyond the checkpoint.
        let wanted = (size - start).min(u64::from(PAGE));
        let (page, _) = page(client, start, wanted as u32).await?;
        // An empty page would be requested again without end.
        if page.is_empty() {
            return Err(CliError::Protocol(format!(
                "entry {start} of {size} is missing"
            )));
        }
        entries.extend(page);
        if entries.len() % 25_600 == 0 {
            progress(&format!(
                "{} of {} entries",
                grouped(entries.len() as u64),
                grouped(size)
            ));
        }
    }
    Ok(StoredLog {
        entries,
        checkpoint: Some(checkpoint),
    })
}

/// Entries from `start`, and the size of the tree.
async fn page(
    client: &mut Client,
    start: u64,
    count: u32,
) -> Result<(Vec<Vec<u8>>, u64), CliError> {
    let reply = client
        .list_entries(proto::ListEntriesRequest { start, count })
        .await?;
    Ok((
        reply.entries.iter().map(|entry| entry.to_vec()).collect(),
        reply.tree_size,
    ))
}

fn hashes(list: &[Bytes]) -> Result<Vec<Hash>, CliError> {
    list.iter().map(|bytes| hash(bytes)).collect()
}

fn hash(bytes: &[u8]) -> Result<Hash, CliError> {
    let bytes = bytes.try_into().map(Hash);
    bytes.map_err(|_| CliError::Protocol("a hash has not 32 bytes".to_owned()))
}

fn hex_list(list: &[Bytes]) -> Vec<String> {
    list.iter().map(hex::encode).collect()
}
