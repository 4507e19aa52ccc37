//! `evidenceos claim`: the submitter's commands, step by step or all at once.
//!
//! Owns the steps of a claim's life as seen from outside, and how a receipt is made of a reply: it is verified here,
//! before it is written.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use evidenceos_proto as proto;
use evidenceos_tlog::{Hash, VerifierKey};
use evidenceos_verify::{Receipt, verify_receipt};
use prost::bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    client::{Client, Connection, required},
    error::CliError,
    output::{Output, bits, grouped, progress, table},
    pack::{CheckArgs, PackArgs, read_guest},
    render::{claim_json, claim_text, result_json, result_text, state},
    units,
};

/// The exit code of a settled claim that is not certified, where certification was demanded.
const NOT_CERTIFIED: u8 = 4;

/// What can be done with claims.
#[derive(Debug, Subcommand)]
pub enum ClaimCommand {
    /// All of it: create, commit, seal, execute, fetch the receipt.
    Run(Box<RunArgs>),
    /// Create a claim.
    #[command(
        after_help = "Example:\n  evidenceos claim create --holdout tumours-2026 --name my-model"
    )]
    Create(TermsArgs),
    /// Give a claim its module.
    #[command(after_help = "Example:\n  evidenceos claim commit CLAIM_ID claim.wasm")]
    Commit {
        /// The claim.
        #[arg(value_parser = units::id)]
        claim: Bytes,
        /// Its module.
        module: PathBuf,
        /// A settled claim on which this one depends; may be repeated. Its capsule's hash is fetched.
        #[arg(long = "parent", value_parser = units::id, value_name = "CLAIM_ID")]
        parents: Vec<Bytes>,
    },
    /// Bind a claim: nothing can be changed after.
    #[command(after_help = "Example:\n  evidenceos claim seal CLAIM_ID")]
    Seal(ClaimArg),
    /// Run a sealed claim and wait for its verdict.
    #[command(after_help = "Example:\n  evidenceos claim execute CLAIM_ID")]
    Execute(ClaimArg),
    /// Show a claim.
    #[command(after_help = "Example:\n  evidenceos claim show CLAIM_ID")]
    Show(ClaimArg),
    /// List your claims.
    #[command(after_help = "Example:\n  evidenceos claim list --limit 20 --json")]
    List {
        /// Everybody's; for operators and auditors.
        #[arg(long)]
        all: bool,
        /// The most claims to list.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Fetch a settled claim's receipt; it is verified before it is written.
    #[command(after_help = "Example:\n  evidenceos claim fetch CLAIM_ID -o receipt.json")]
    Fetch {
        /// The claim.
        #[command(flatten)]
        claim: ClaimArg,
        /// Where to write the receipt.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Withdraw a settled claim; public, and for ever.
    #[command(
        after_help = "Example:\n  evidenceos claim revoke CLAIM_ID --reason \"trained on the test year\""
    )]
    Revoke {
        /// The claim.
        #[command(flatten)]
        claim: ClaimArg,
        /// Why; public.
        #[arg(long)]
        reason: String,
    },
    /// Fetch the trace of a run: what it asked, what it was answered, what was judged.
    #[command(after_help = "Example:\n  evidenceos claim trace CLAIM_ID -o traces/")]
    Trace {
        /// The claim.
        #[command(flatten)]
        claim: ClaimArg,
        /// The file to write, or the directory to write CLAIM_ID.trace into.
        #[arg(short, long, value_name = "FILE|DIR")]
        output: PathBuf,
    },
    /// Make a module from a file of predictions.
    Pack(PackArgs),
    /// Check a module as a daemon would, and name every rule that it breaks.
    Check(CheckArgs),
}

/// A claim by id.
#[derive(Debug, Args)]
pub struct ClaimArg {
    /// The claim's id, 64 hex digits.
    #[arg(value_parser = units::id, value_name = "CLAIM_ID")]
    claim: Bytes,
}

/// What a claim is created with.
#[derive(Debug, Clone, Args)]
pub struct TermsArgs {
    /// The holdout's name or id.
    #[arg(long)]
    pub holdout: String,
    /// The claim's name, 1 to 128 bytes; never public. The same name and terms are the same claim.
    #[arg(long, default_value = "")]
    pub name: String,
    /// The resource class.
    #[arg(long, default_value = "fast", value_parser = ["fast", "heavy"])]
    pub lane: String,
    /// The significance level; a holdout's stricter one counts.
    #[arg(long, default_value = "0.05", value_parser = units::chance)]
    pub alpha: u32,
    /// The oracle's alphabet.
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub symbols: u32,
    /// The most that its questions may be charged, in bits.
    #[arg(long, value_parser = units::millionths, value_name = "BITS")]
    pub max_answer_bits: Option<u64>,
    /// Levels of the e-value to release; at most what the holdout offers.
    #[arg(long, default_value_t = 0)]
    pub levels: u32,
}

/// A claim to run from its module to its receipt.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    evidenceos claim run claim.wasm --holdout tumours-2026 --receipt receipt.json\n  \
    evidenceos claim run claim.wasm --holdout tumours-2026 --alpha 0.01 --require-certified")]
pub struct RunArgs {
    /// The module.
    module: PathBuf,
    #[command(flatten)]
    terms: TermsArgs,
    /// Where to write the receipt.
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    /// Exit with 4 unless the claim is certified; otherwise any settlement is a success.
    #[arg(long)]
    require_certified: bool,
}

impl ClaimCommand {
    /// Runs the command and returns what it prints.
    pub async fn run(self, connection: &Connection) -> Result<Output, CliError> {
        let connect = || Client::connect(connection);
        match self {
            Self::Pack(args) => args.run(connection).await,
            Self::Check(args) => args.run(),
            Self::Run(args) => args.run(connection).await,
            Self::Create(terms) => {
                let reply = create(&mut connect().await?, &terms).await?;
                let id = hex::encode(&reply.claim_id);
                Ok(Output::new(
                    json!({"claim_id": id, "state": state(reply.state)}),
                    id,
                ))
            }
            Self::Commit {
                claim,
                module,
                parents,
            } => {
                let wasm = read_guest(&module)?;
                let reply = commit(&mut connect().await?, claim.clone(), wasm, parents).await?;
                Ok(said(&claim, reply.state))
            }
            Self::Seal(ClaimArg { claim }) => {
                let message = proto::SealClaimRequest {
                    claim_id: claim.clone(),
                };
                let reply = connect().await?.seal_claim(message).await?;
                Ok(said(&claim, reply.state))
            }
            Self::Execute(ClaimArg { claim }) => {
                let message = proto::ExecuteClaimV2Request { claim_id: claim };
                let reply = connect().await?.execute_claim_v2(message).await?;
                Ok(Output::new(result_json(&reply), result_text(&reply)))
            }
            Self::Show(ClaimArg { claim }) => {
                let message = proto::GetClaimRequest { claim_id: claim };
                let claim = required(connect().await?.get_claim(message).await?.claim, "claim")?;
                Ok(Output::new(claim_json(&claim), claim_text(&claim)))
            }
            Self::List { all, limit } => list(&mut connect().await?, all, limit).await,
            Self::Fetch { claim, output } => {
                let receipt = fetch_receipt(&mut connect().await?, claim.claim).await?;
                write_receipt(&receipt, &output)?;
                let text = format!(
                    "{}: verified, log index {}",
                    output.display(),
                    receipt.index
                );
                Ok(Output::new(
                    json!({"receipt": output, "log_index": receipt.index}),
                    text,
                ))
            }
            Self::Revoke { claim, reason } => {
                let message = proto::RevokeClaimRequest {
                    claim_id: claim.claim.clone(),
                    reason,
                };
                let reply = connect().await?.revoke_claim(message).await?;
                Ok(said(&claim.claim, reply.state))
            }
            Self::Trace { claim, output } => {
                trace(&mut connect().await?, claim.claim, output).await
            }
        }
    }
}

fn said(claim: &[u8], now: i32) -> Output {
    let (id, state) = (hex::encode(claim), state(now));
    Output::new(
        json!({"claim_id": id, "state": state}),
        format!("{id} is {state}"),
    )
}

/// Creates a claim on these terms; the same terms give the same claim.
pub async fn create(
    client: &mut Client,
    terms: &TermsArgs,
) -> Result<proto::CreateClaimV2Response, CliError> {
    if terms.name.is_empty() {
        return Err(CliError::Usage(
            "name the claim with --name NAME".to_owned(),
        ));
    }
    let message = proto::CreateClaimV2Request {
        claim_name: terms.name.clone(),
        metadata: Some(proto::ClaimMetadataV2 {
            lane: terms.lane.clone(),
            alpha_micros: terms.alpha,
            ..Default::default()
        }),
        holdout_ref: terms.holdout.clone(),
        oracle_num_symbols: terms.symbols,
        max_answer_microbits: terms.max_answer_bits,
        levels: terms.levels,
        ..Default::default()
    };
    client.create_claim_v2(message).await
}

/// Commits a module, and parents by the hashes of their capsules.
async fn commit(
    client: &mut Client,
    claim_id: Bytes,
    wasm_module: Vec<u8>,
    parents: Vec<Bytes>,
) -> Result<proto::CommitArtifactsResponse, CliError> {
    // The daemon refuses a module whose hash is another.
    let mut artifacts = vec![proto::Artifact {
        artifact_hash: Bytes::copy_from_slice(&Sha256::digest(&wasm_module)),
        kind: "wasm".to_owned(),
        claim_id: Bytes::new(),
    }];
    for parent in parents {
        let message = proto::GetClaimRequest {
            claim_id: parent.clone(),
        };
        let settled = required(client.get_claim(message).await?.claim, "claim")?.result;
        let capsule = settled
            .map(|result| result.capsule_hash)
            .unwrap_or_default();
        // Only a settled claim has a capsule on which another can depend.
        if capsule.is_empty() {
            return Err(CliError::Failed(format!(
                "parent {} is not settled yet",
                hex::encode(parent)
            )));
        }
        artifacts.push(proto::Artifact {
            artifact_hash: capsule,
            kind: "dependency".to_owned(),
            claim_id: parent,
        });
    }
    let message = proto::CommitArtifactsRequest {
        claim_id,
        artifacts,
        wasm_module: wasm_module.into(),
    };
    client.commit_artifacts(message).await
}

/// A claim that ran: its id and its result.
#[derive(Debug, Clone)]
pub struct Ran {
    pub claim_id: Bytes,
    /// What the settlement said.
    pub result: proto::ExecuteClaimV2Response,
}

/// Whether a claim is not sealed yet.
fn is_open(state: i32) -> bool {
    matches!(
        proto::ClaimState::try_from(state).unwrap_or_default(),
        proto::ClaimState::Uncommitted | proto::ClaimState::Committed
    )
}

async fn commit_and_seal(
    client: &mut Client,
    claim_id: &Bytes,
    wasm: Vec<u8>,
    say: &mut impl FnMut(String),
) -> Result<(), CliError> {
    let bytes = wasm.len() as u64;
    commit(client, claim_id.clone(), wasm, Vec::new()).await?;
    say(format!("committed  a module of {} bytes", grouped(bytes)));
    let message = proto::SealClaimRequest {
        claim_id: claim_id.clone(),
    };
    client.seal_claim(message).await?;
    say("sealed     nothing can be changed any more".to_owned());
    Ok(())
}

/// All steps from a module to a settlement. `say` is told of each.
pub async fn run_claim(
    client: &mut Client,
    terms: &TermsArgs,
    wasm: Vec<u8>,
    mut say: impl FnMut(String),
) -> Result<Ran, CliError> {
    let created = create(client, terms).await?;
    let claim_id = created.claim_id;
    say(format!("created    {}", hex::encode(&claim_id)));
    // Running the same module under the same terms again joins what is there.
    let mut now = created.state;
    if is_open(now) {
        let sealed = commit_and_seal(client, &claim_id, wasm, &mut say).await;
        if let Err(error) = sealed {
            // Another run of the same claim may have been faster in between.
            let message = proto::GetClaimRequest {
                claim_id: claim_id.clone(),
            };
            let claim = client.get_claim(message).await?.claim;
            now = claim.map_or(now, |claim| claim.state);
            if is_open(now) {
                return Err(error);
            }
        }
    }
    if !is_open(now) {
        say(format!("found      this claim is {} already", state(now)));
    }
    let message = proto::ExecuteClaimV2Request {
        claim_id: claim_id.clone(),
    };
    let result = client.execute_claim_v2(message).await?;
    say(format!("settled    {}", result.outcome.replace('_', " ")));
    Ok(Ran { claim_id, result })
}

impl RunArgs {
    async fn run(self, connection: &Connection) -> Result<Output, CliError> {
        // Looked at before the server is called, so that a file which is no guest creates no claim.
        let wasm = read_guest(&self.module)?;
        let mut terms = self.terms;
        if terms.name.is_empty() {
            terms.name = default_name(&self.module, &wasm);
        }
        let mut client = Client::connect(connection).await?;
        let ran = run_claim(&mut client, &terms, wasm, |line| progress(&line)).await?;
        let mut json = result_json(&ran.result);
        json["claim_id"] = Value::from(hex::encode(&ran.claim_id));
        let mut text = result_text(&ran.result);
        if let Some(path) = &self.receipt {
            let receipt = fetch_receipt(&mut client, ran.claim_id).await?;
            write_receipt(&receipt, path)?;
            json["receipt"] = json!(path);
            text = format!("{text}\nreceipt:    {}, verified", path.display());
        }
        let mut output = Output::new(json, text);
        // That a claim is not certified is no failure, unless a script asks for it.
        if self.require_certified && !ran.result.certified {
            output.exit_code = NOT_CERTIFIED;
        }
        Ok(output)
    }
}

/// The module's file name and the start of its hash: another module is another claim.
fn default_name(module: &Path, wasm: &[u8]) -> String {
    let stem = module
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    let stem: String = stem.unwrap_or_default().chars().take(32).collect();
    format!("{stem}-{}", crate::output::short(&Sha256::digest(wasm)))
}

/// Fetches a settled claim's receipt and verifies it under the key that the server names.
///
/// That key proves only that the server agrees with itself; `evidenceos verify --key` is for one learnt elsewhere.
pub async fn fetch_receipt(client: &mut Client, claim_id: Bytes) -> Result<Receipt, CliError> {
    let reply = client
        // A receipt has no place for a consistency proof, and 0 asks for none.
        .fetch_capsule(proto::FetchCapsuleRequest {
            claim_id,
            known_tree_size: 0,
        })
        .await?;
    let proof = required(reply.inclusion_proof, "inclusion_proof")?;
    let inclusion = proof
        .audit_path
        .iter()
        .map(|hash| hash.as_ref().try_into().map(Hash))
        .collect::<Result<_, _>>()
        .map_err(|_| CliError::Protocol("a hash of the audit path has not 32 bytes".to_owned()))?;
    let receipt = Receipt {
        capsule: reply.capsule_bytes.to_vec(),
        index: reply.etl_index,
        inclusion,
        checkpoint: reply.checkpoint,
    };
    let key = server_key(client).await?;
    verify_receipt(&receipt, &key.into()).map_err(|failure| {
        CliError::Failed(format!("the server's receipt does not verify: {failure}"))
    })?;
    Ok(receipt)
}

/// The log's key, as the server names it.
pub async fn server_key(client: &mut Client) -> Result<VerifierKey, CliError> {
    let info = client
        .get_server_info(proto::GetServerInfoRequest {})
        .await?;
    info.log_vkey
        .parse()
        .map_err(|error| CliError::Protocol(format!("log_vkey: {error}")))
}

/// Writes a receipt with a line feed at its end.
pub fn write_receipt(receipt: &Receipt, path: &Path) -> Result<(), CliError> {
    std::fs::write(path, receipt.to_json() + "\n").map_err(CliError::file(path))
}

async fn list(client: &mut Client, all: bool, limit: usize) -> Result<Output, CliError> {
    let mut claims = Vec::new();
    let mut page_token = String::new();
    while claims.len() < limit {
        // The daemon gives no more than 500 a page.
        let page_size = u32::try_from(limit - claims.len())
            .unwrap_or(u32::MAX)
            .min(500);
        let message = proto::ListClaimsRequest {
            page_size,
            page_token,
            all,
            ..Default::default()
        };
        let page = client.list_claims(message).await?;
        claims.extend(page.claims);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    claims.truncate(limit);
    let rows: Vec<Vec<String>> = claims.iter().map(row).collect();
    let json: Vec<Value> = claims.iter().map(claim_json).collect();
    let text = if rows.is_empty() {
        "no claims yet; make one with `evidenceos claim run MODULE --holdout NAME`".to_owned()
    } else {
        table(
            &[
                "claim",
                "state",
                "holdout",
                "answers>",
                "threshold>",
                "index>",
                "id",
            ],
            &rows,
        )
    };
    Ok(Output::new(json!({ "claims": json }), text))
}

fn row(claim: &proto::Claim) -> Vec<String> {
    let result = claim.result.as_ref();
    let figure =
        |of: &dyn Fn(&proto::ExecuteClaimV2Response) -> String| result.map(of).unwrap_or_default();
    vec![
        claim.claim_name.clone(),
        state(claim.state),
        claim.holdout_ref.clone(),
        figure(&|result| bits(result.charged_answer_microbits)),
        figure(&|result| bits(result.threshold_microbits)),
        figure(&|result| result.etl_index.to_string()),
        hex::encode(&claim.claim_id),
    ]
}

async fn trace(client: &mut Client, claim: Bytes, output: PathBuf) -> Result<Output, CliError> {
    let name = format!("{}.trace", hex::encode(&claim));
    let bytes = client.fetch_trace(claim).await?;
    // A path that ends in a slash is meant as a directory, there or not.
    let is_directory = output.is_dir() || output.as_os_str().as_encoded_bytes().ends_with(b"/");
    let path = if is_directory {
        std::fs::create_dir_all(&output).map_err(CliError::file(&output))?;
        output.join(name)
    } else {
        output
    };
    std::fs::write(&path, &bytes).map_err(CliError::file(&path))?;
    Ok(Output::new(
        json!({"trace": path, "bytes": bytes.len()}),
        format!("{}: {} bytes", path.display(), grouped(bytes.len() as u64)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_module_gets_another_name() {
        let name = |wasm: &[u8]| default_name(Path::new("dir/model.wasm"), wasm);
        assert!(name(b"one").starts_with("model-"));
        assert_ne!(name(b"one"), name(b"two"));
        assert!(default_name(&PathBuf::from("x".repeat(200)), b"").len() <= 128);
    }
}
