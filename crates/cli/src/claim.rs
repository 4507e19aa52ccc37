//! `evidenceos claim`: the submitter's commands, step by step or all at once.
//!
//! Owns the steps of a claim as a client sees them, and how a reply becomes a receipt: this module verifies a
//! receipt before it writes it.

mod list;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use evidenceos_kernel::{decide::dependency_merkle_root, id::Digest};
use evidenceos_proto as proto;
use evidenceos_sandbox::packed_symbols;
use evidenceos_tlog::{Hash, VerifierKey};
use evidenceos_verify::{Receipt, verify_receipt};
use prost::bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use self::list::ListArgs;
use crate::{
    client::{Client, Connection, required},
    confirm::Yes,
    error::CliError,
    output::{Output, grouped, progress},
    pack::{CheckArgs, PackArgs, read_guest},
    render::{claim_json, claim_text, result_json, result_text, state},
    units,
};

/// The exit code if `--require-certified` is given and the claim settles without a certificate.
const NOT_CERTIFIED: u8 = 4;

/// The alphabet of a claim that does not name one.
const DEFAULT_SYMBOLS: u32 = 2;

/// The commands about claims.
#[derive(Debug, Subcommand)]
pub enum ClaimCommand {
    /// Do every step: create, commit, seal, execute, fetch the receipt.
    Run(Box<RunArgs>),
    /// Create a claim.
    #[command(
        after_help = "Example:\n  evidenceos claim create --holdout tumours-2026 --name my-model"
    )]
    Create(TermsArgs),
    /// Give a claim its module.
    #[command(after_help = "Example:\n  evidenceos claim commit CLAIM_ID claim.wasm")]
    Commit {
        #[command(flatten)]
        claim: ClaimArg,
        /// Its module.
        module: PathBuf,
        /// The settled claims on which it depends, as at its creation; may be repeated.
        #[arg(long = "parent", value_name = "CLAIM")]
        parents: Vec<String>,
    },
    /// Seal a claim: nothing of it can be changed afterwards.
    #[command(after_help = "Example:\n  evidenceos claim seal CLAIM_ID")]
    Seal(ClaimArg),
    /// Run a sealed claim and wait for its verdict.
    #[command(after_help = "Example:\n  evidenceos claim execute CLAIM_ID")]
    Execute(ClaimArg),
    /// Show a claim.
    #[command(after_help = "Example:\n  evidenceos claim show CLAIM_ID")]
    Show(ClaimArg),
    /// List claims, the newest first.
    List(ListArgs),
    /// Fetch a settled claim's receipt; it is verified before it is written.
    #[command(after_help = "Example:\n  evidenceos claim fetch CLAIM_ID -o receipt.json")]
    Fetch {
        #[command(flatten)]
        claim: ClaimArg,
        /// Where to write the receipt.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Revoke a settled claim. The revocation is public, and cannot be undone.
    #[command(
        after_help = "Example:\n  evidenceos claim revoke CLAIM_ID --reason \"trained on the test year\""
    )]
    Revoke {
        #[command(flatten)]
        claim: ClaimArg,
        /// Why; public.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        yes: Yes,
    },
    /// Fetch the trace of a run: what it asked, what it was answered, what was judged.
    #[command(after_help = "Example:\n  evidenceos claim trace CLAIM_ID -o traces/")]
    Trace {
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

/// One claim.
#[derive(Debug, Args)]
pub struct ClaimArg {
    /// The claim's id, the first four or more digits of it, or its name.
    #[arg(value_name = "CLAIM")]
    claim: String,
}

impl ClaimArg {
    /// A connection, and the claim's id.
    async fn at(&self, connection: &Connection) -> Result<(Client, Bytes), CliError> {
        let mut client = Client::connect(connection).await?;
        let id = list::resolve(&mut client, &self.claim).await?;
        Ok((client, id))
    }
}

/// The terms of a claim.
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
    /// The significance level; if the holdout's is stricter, that one applies.
    #[arg(long, default_value = "0.05", value_parser = units::chance)]
    pub alpha: u32,
    /// The oracle's alphabet [default: the one that a packed module was made for, else 2].
    #[arg(long, value_name = "N")]
    pub symbols: Option<u32>,
    /// The most that its questions may be charged, in bits.
    #[arg(long, value_parser = units::millionths, value_name = "BITS")]
    pub max_answer_bits: Option<u64>,
    /// Levels of the e-value to release; at most what the holdout offers.
    #[arg(long, default_value_t = 0)]
    pub levels: u32,
    /// A settled claim on which this one depends; may be repeated. If that claim is revoked, this one is
    /// tainted.
    #[arg(long = "parent", value_name = "CLAIM")]
    pub parents: Vec<String>,
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
                let mut client = connect().await?;
                let parents = Parent::all(&mut client, &terms.parents).await?;
                let reply = create(&mut client, &terms, &parents).await?;
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
                let (mut client, claim) = claim.at(connection).await?;
                let parents = Parent::all(&mut client, &parents).await?;
                let reply = commit(&mut client, claim.clone(), wasm, &parents).await?;
                Ok(said(&claim, reply.state))
            }
            Self::Seal(claim) => {
                let (mut client, claim) = claim.at(connection).await?;
                let message = proto::SealClaimRequest {
                    claim_id: claim.clone(),
                };
                let reply = client.seal_claim(message).await?;
                Ok(said(&claim, reply.state))
            }
            Self::Execute(claim) => {
                let (mut client, claim_id) = claim.at(connection).await?;
                let message = proto::ExecuteClaimV2Request { claim_id };
                let reply = client.execute_claim_v2(message).await?;
                Ok(Output::new(result_json(&reply), result_text(&reply)))
            }
            Self::Show(claim) => {
                let (mut client, claim_id) = claim.at(connection).await?;
                let message = proto::GetClaimRequest { claim_id };
                let claim = required(client.get_claim(message).await?.claim, "claim")?;
                Ok(Output::new(claim_json(&claim), claim_text(&claim)))
            }
            Self::List(args) => args.run(&mut connect().await?).await,
            Self::Fetch { claim, output } => {
                let (mut client, claim) = claim.at(connection).await?;
                let receipt = fetch_receipt(&mut client, claim).await?;
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
            Self::Revoke { claim, reason, yes } => {
                let (mut client, claim) = claim.at(connection).await?;
                let id = hex::encode(&claim);
                yes.must_agree(&format!(
                    "Revoke claim {id}? The revocation is public and cannot be undone."
                ))?;
                let message = proto::RevokeClaimRequest {
                    claim_id: claim.clone(),
                    reason,
                };
                let reply = client.revoke_claim(message).await?;
                Ok(said(&claim, reply.state))
            }
            Self::Trace { claim, output } => {
                let (mut client, claim) = claim.at(connection).await?;
                trace(&mut client, claim, output).await
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

/// Creates a claim with these terms; the same terms give the same claim.
pub async fn create(
    client: &mut Client,
    terms: &TermsArgs,
    parents: &[Parent],
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
        oracle_num_symbols: terms.symbols.unwrap_or(DEFAULT_SYMBOLS),
        max_answer_microbits: terms.max_answer_bits,
        levels: terms.levels,
        // Without parents there is no root: the claim states no dependencies.
        signals: (!parents.is_empty()).then(|| proto::TopicSignalsV2 {
            dependency_merkle_root: Parent::root(parents),
            ..Default::default()
        }),
        ..Default::default()
    };
    client.create_claim_v2(message).await
}

/// A claim on which another depends.
#[derive(Debug, Clone)]
pub struct Parent {
    claim: Bytes,
    capsule: Bytes,
}

impl Parent {
    /// The parents with these names: each is an id, the start of one, or a claim's name.
    async fn all(client: &mut Client, names: &[String]) -> Result<Vec<Self>, CliError> {
        let mut parents = Vec::new();
        for name in names {
            let claim_id = list::resolve(client, name).await?;
            let message = proto::GetClaimRequest {
                claim_id: claim_id.clone(),
            };
            let claim = required(client.get_claim(message).await?.claim, "claim")?;
            // Only a settled claim has a capsule on which another claim can depend.
            let settled = claim.result.map(|result| result.capsule_hash);
            let capsule = settled.filter(|capsule| !capsule.is_empty());
            parents.push(Self {
                capsule: capsule
                    .ok_or_else(|| CliError::Failed(format!("parent {name} is not settled yet")))?,
                claim: claim_id,
            });
        }
        Ok(parents)
    }

    /// The dependency root of a claim with these parents.
    fn root(parents: &[Self]) -> Bytes {
        let capsules = parents
            .iter()
            .map(|parent| Digest::from_slice(&parent.capsule));
        let mut sorted: Vec<Digest> = capsules.flatten().collect();
        sorted.sort();
        dependency_merkle_root(&sorted).as_bytes().to_vec().into()
    }
}

/// Commits a claim to a module, and to its parents by the hashes of their capsules.
async fn commit(
    client: &mut Client,
    claim_id: Bytes,
    wasm_module: Vec<u8>,
    parents: &[Parent],
) -> Result<proto::CommitArtifactsResponse, CliError> {
    // The daemon refuses a module with another hash.
    let mut artifacts = vec![proto::Artifact {
        artifact_hash: Bytes::copy_from_slice(&Sha256::digest(&wasm_module)),
        kind: "wasm".to_owned(),
        claim_id: Bytes::new(),
    }];
    artifacts.extend(parents.iter().map(|parent| proto::Artifact {
        artifact_hash: parent.capsule.clone(),
        kind: "dependency".to_owned(),
        claim_id: parent.claim.clone(),
    }));
    let message = proto::CommitArtifactsRequest {
        claim_id,
        artifacts,
        wasm_module: wasm_module.into(),
    };
    client.commit_artifacts(message).await
}

/// An executed claim: its id and its result.
#[derive(Debug, Clone)]
pub struct Ran {
    pub claim_id: Bytes,
    /// The daemon's reply with the settlement.
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
    parents: &[Parent],
    say: &mut impl FnMut(String),
) -> Result<(), CliError> {
    let bytes = wasm.len() as u64;
    commit(client, claim_id.clone(), wasm, parents).await?;
    say(format!("committed  a module of {} bytes", grouped(bytes)));
    let message = proto::SealClaimRequest {
        claim_id: claim_id.clone(),
    };
    client.seal_claim(message).await?;
    say("sealed     nothing can be changed any more".to_owned());
    Ok(())
}

/// Refuses a claim that was sealed with another module: the id does not cover the module, and the user would take
/// that module's verdict for this one's.
async fn must_have_module(
    client: &mut Client,
    claim_id: &Bytes,
    module: &[u8],
) -> Result<(), CliError> {
    let message = proto::GetClaimRequest {
        claim_id: claim_id.clone(),
    };
    let claim = required(client.get_claim(message).await?.claim, "claim")?;
    if claim.wasm_hash.is_empty() || claim.wasm_hash == module {
        return Ok(());
    }
    Err(CliError::Failed(format!(
        "claim {} already has this name and these terms, with another module ({}); give this claim another --name, or none",
        hex::encode(claim_id),
        hex::encode(&claim.wasm_hash)
    )))
}

/// Does all steps from a module to a settlement, and reports each to `say`.
pub async fn run_claim(
    client: &mut Client,
    terms: &TermsArgs,
    wasm: Vec<u8>,
    mut say: impl FnMut(String),
) -> Result<Ran, CliError> {
    let parents = Parent::all(client, &terms.parents).await?;
    let module = Sha256::digest(&wasm);
    let created = create(client, terms, &parents).await?;
    let claim_id = created.claim_id;
    say(format!("created    {}", hex::encode(&claim_id)));
    // If the same module ran under the same terms before, the server returns the existing claim.
    let mut now = created.state;
    if is_open(now) {
        let sealed = commit_and_seal(client, &claim_id, wasm, &parents, &mut say).await;
        if let Err(error) = sealed {
            // Another run of the same claim may have sealed it meanwhile.
            let message = proto::GetClaimRequest {
                claim_id: claim_id.clone(),
            };
            // The user should read the first error.
            match client.get_claim(message).await {
                Ok(proto::GetClaimResponse { claim: Some(claim) }) if !is_open(claim.state) => {
                    now = claim.state;
                }
                _ => return Err(error),
            }
        }
    }
    if !is_open(now) {
        must_have_module(client, &claim_id, &module).await?;
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
        // The module is checked before the server is called, so that an invalid file creates no
        // claim.
        let wasm = read_guest(&self.module)?;
        let mut terms = self.terms;
        terms.symbols = Some(alphabet(terms.symbols, &wasm)?);
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
        // A claim without a certificate is no failure, unless a script asks for one.
        if self.require_certified && !ran.result.certified {
            output.exit_code = NOT_CERTIFIED;
        }
        Ok(output)
    }
}

/// The alphabet of a run: the requested one, which must be the one of a packed module.
fn alphabet(asked: Option<u32>, wasm: &[u8]) -> Result<u32, CliError> {
    match (asked, packed_symbols(wasm)) {
        (Some(asked), Some(packed)) if asked != packed => Err(CliError::Usage(format!(
            "--symbols {asked}: the module was packed for {packed} symbols; leave --symbols out, or pack it again"
        ))),
        (asked, packed) => Ok(asked.or(packed).unwrap_or(DEFAULT_SYMBOLS)),
    }
}

/// The module's file name and the start of its hash: another module is another claim.
fn default_name(module: &Path, wasm: &[u8]) -> String {
    let stem = module
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    let mut stem = stem.unwrap_or_default();
    // A name has at most 128 bytes; a letter can take four.
    let most = stem.floor_char_boundary(96);
    stem.truncate(most);
    format!("{stem}-{}", crate::output::short(&Sha256::digest(wasm)))
}

/// Fetches a settled claim's receipt and verifies it under the key that the server names.
///
/// That key proves only that the server agrees with itself; `evidenceos verify --key` takes a key from another
/// source.
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
        .map_err(|_| {
            CliError::Protocol("a hash of the audit path does not have 32 bytes".to_owned())
        })?;
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

async fn trace(client: &mut Client, claim: Bytes, output: PathBuf) -> Result<Output, CliError> {
    let name = format!("{}.trace", hex::encode(&claim));
    let bytes = client.fetch_trace(claim).await?;
    // A path that ends in a slash means a directory, even one that does not exist.
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
        for letter in ["x", "\u{fc}", "\u{1f980}"] {
            assert!(default_name(&PathBuf::from(letter.repeat(60)), b"").len() <= 128);
        }
    }
}
