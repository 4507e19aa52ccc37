//! `evidenceos policy`: the policy modules of a directory, without a daemon.
//!
//! The daemon's own code decides what is valid; this module shows the result, and writes manifests
//! and lists of trusted keys. `docs/policies.md` is the manual.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use evidenceos_gate::{
    policies::{Manifest, Policies, TRUSTED_KEYS, TrustedKeys, Verdict, bounds, preflight_input},
    preflight::parse::ToolCall,
};
use evidenceos_keys::{Directory, public_key};
use evidenceos_sandbox::{AdmitError, Sandbox, Vote, bounds::MODULE_BYTES};
use serde_json::{Map, Value, json};

use crate::{
    error::CliError,
    keys::{directory_and_name, seed_file},
    output::{Output, listed, table},
};

/// The commands about policy modules.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Check whether a daemon would start with a directory of policies, and ask each of them.
    #[command(
        after_help = "Exit code 1: a daemon would not start with it, or an oracle failed on the input.\n\n\
        Examples:\n  evidenceos policy check data/policy-oracles\n  \
        evidenceos policy check examples/policies --input call.json --json"
    )]
    Check(CheckArgs),
    /// Fill in the hash of a manifest's module, and sign it.
    #[command(
        after_help = "The key is a file of 32 bytes, mode 0600, as `evidenceos keys generate` makes. Use one of its own,\n\
        not the log's.\n\n\
        Examples:\n  evidenceos keys generate --key-dir policy-keys\n  \
        evidenceos policy sign data/policy-oracles/10-shell.json --key policy-keys/KEY-ID.key"
    )]
    Sign {
        /// The manifest; its module is beside it
        manifest: PathBuf,
        /// The key
        #[arg(long, value_name = "SEEDFILE")]
        key: PathBuf,
    },
    /// Trust a key's signatures in a directory.
    #[command(
        after_help = "Examples:\n  evidenceos policy trust data/policy-oracles --key policy-keys/KEY-ID.key\n  \
        evidenceos policy trust data/policy-oracles --key 86354e516866a5b97f3178e42e75762b41da2a761721a674f3c705068da82fce"
    )]
    Trust {
        /// The directory of policies
        dir: PathBuf,
        /// The public key, 64 hex digits, or the file of its seed
        #[arg(long, value_name = "PUBLIC_HEX|SEEDFILE")]
        key: String,
    },
}

/// The directory to check, and the input for its policy modules.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The directory of policies
    dir: PathBuf,
    /// The input for the oracles, JSON: a request to the gate, or what the daemon shows a policy (docs/policies.md)
    /// [default: a harmless tool call]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Accept manifests without a signature, as a daemon with this flag does
    #[arg(long)]
    allow_unsigned_policies: bool,
}

impl PolicyCommand {
    /// Runs the command and returns what it prints.
    pub fn run(self) -> Result<Output, CliError> {
        match self {
            Self::Check(args) => args.run(),
            Self::Sign { manifest, key } => sign(&manifest, &key),
            Self::Trust { dir, key } => trust(&dir, &key),
        }
    }
}

impl CheckArgs {
    fn run(&self) -> Result<Output, CliError> {
        // The daemon takes a missing directory for one without policy modules.
        fs::read_dir(&self.dir).map_err(CliError::file(&self.dir))?;
        let policies = Policies::load(&self.dir, &sandbox()?, self.allow_unsigned_policies)
            .map_err(|error| CliError::Failed(listed(&error.0)))?;
        let input = match &self.input {
            Some(path) => asked_about(path)?,
            None => preflight_input("sample.tool", None, None, b"{}"),
        };
        let mut failed = false;
        let (mut values, mut rows) = (Vec::new(), Vec::new());
        // Every policy module is asked, so that all failures show at once.
        for oracle in policies.oracles() {
            let manifest = oracle.manifest();
            let (vote, failure) = match oracle.vote(&input) {
                Ok(vote) => (Some(word(vote)), None),
                Err(failure) => (None, Some(failure.to_string())),
            };
            failed |= failure.is_some();
            values.push(json!({
                "file": oracle.file(),
                "oracle_id": manifest.oracle_id,
                "version": manifest.version,
                "reason_code": manifest.reason_code,
                "signer": manifest.signer_pubkey_ed25519_hex,
                "vote": vote,
                "failure": failure,
            }));
            rows.push(vec![
                oracle.file().to_owned(),
                manifest.oracle_id.clone(),
                manifest.reason_code.to_string(),
                failure.unwrap_or_else(|| vote.unwrap_or_default().to_owned()),
            ]);
        }
        let verdict = match policies.decide(&input) {
            Verdict::Approve => "approve".to_owned(),
            Verdict::Defer(veto) => format!("defer, by {}", veto.oracle_id),
            Verdict::Reject(veto) => format!("reject, by {}", veto.oracle_id),
        };
        let text = if rows.is_empty() {
            "no oracles: everything is approved".to_owned()
        } else {
            format!(
                "{}\ntogether: {verdict}",
                table(&["manifest", "oracle", "code", "says"], &rows)
            )
        };
        let mut output = Output::new(
            json!({
                "oracles": values,
                "verdict": verdict,
                "digest": policies.digest().to_hex(),
            }),
            text,
        );
        output.exit_code = u8::from(failed);
        Ok(output)
    }
}

/// What a policy is shown for a file: a request to the gate is translated as the daemon does it; what a policy is shown
/// by the daemon is taken as it is, in its canonical form.
fn asked_about(path: &Path) -> Result<Vec<u8>, CliError> {
    let failed = |what: &str| CliError::Usage(format!("--input {}: {what}", path.display()));
    let bytes = fs::read(path).map_err(CliError::file(path))?;
    let bytes = evidenceos_files::without_mark(&bytes);
    let input: Map<String, Value> = serde_json::from_slice(bytes)
        .map_err(|error| failed(&format!("no JSON object ({error})")))?;
    if input.contains_key("toolName") {
        let call = ToolCall::parse(bytes, false).map_err(|wrong| failed(wrong.sentence()))?;
        return Ok(preflight_input(
            &call.tool_name,
            call.agent_id.as_deref(),
            call.session_id.as_deref(),
            &call.canonical_params,
        ));
    }
    let has_text = |field: &str| input.get(field).is_some_and(Value::is_string);
    let is_tool_call = has_text("tool_name") && has_text("params_canonical_json_b64");
    let is_settlement = input.get("kind").is_some_and(|kind| kind == "settlement");
    if !is_tool_call && !is_settlement {
        return Err(failed(
            "no policy is shown this: write a request to the gate, {\"toolName\":…,\"params\":{…}}, or what a policy is shown, with tool_name and params_canonical_json_b64 or with kind \"settlement\"",
        ));
    }
    serde_json::to_vec(&input).map_err(|error| failed(&error.to_string()))
}

fn word(vote: Vote) -> &'static str {
    match vote {
        Vote::Pass => "pass",
        Vote::Defer => "defer",
        Vote::Reject => "reject",
    }
}

fn sign(path: &Path, key: &Path) -> Result<Output, CliError> {
    let failed = |what: String| CliError::Failed(format!("{} {what}", path.display()));
    let seed = seed_file("--key", key)?;
    let (directory, name) = directory_and_name(path).ok_or_else(|| failed("is no file".into()))?;
    let directory = Directory::open(directory)?;
    let read = |name: &str, most| {
        directory.read_guarded(name, most)?.ok_or_else(|| {
            CliError::Failed(format!(
                "{} is missing",
                directory.path().join(name).display()
            ))
        })
    };
    let draft = Manifest::parse(&read(name, bounds::JSON_BYTES)?)
        .map_err(|problems| failed(problems.join("; ")))?;
    let module = read(&draft.wasm_filename, MODULE_BYTES as u64)?;
    // A manifest that no daemon accepts must not be signed.
    sandbox()?
        .prepare_policy(&module, draft.limits())
        .map_err(|error| match &error {
            AdmitError::Refused(violations) => failed(format!(
                "names {}, which is not admitted:\n{}",
                draft.wasm_filename,
                listed(violations)
            )),
            AdmitError::Engine(_) | AdmitError::TooExpensive(_) | AdmitError::Host(_) => {
                failed(error.to_string())
            }
        })?;
    let signed = draft.signed(&module, &seed);
    directory.write_guarded(name, &signed.to_file())?;
    let signer = hex::encode(public_key(&seed));
    let mut lines = vec![format!("signed {} with {signer}", path.display())];
    let trusted = TrustedKeys::read(&directory).map_err(CliError::Failed)?;
    let is_trusted = trusted.has_hex(&signer);
    if !is_trusted {
        lines.push(format!(
            "the key is not in {TRUSTED_KEYS} there; to trust it: evidenceos policy trust {} --key {signer}",
            directory.path().display()
        ));
    }
    Ok(Output::new(
        json!({
            "manifest": path,
            "wasm_sha256_hex": signed.wasm_sha256_hex,
            "signer_pubkey_ed25519_hex": signer,
            "trusted": is_trusted,
        }),
        lines.join("\n"),
    ))
}

fn trust(dir: &Path, key: &str) -> Result<Output, CliError> {
    let is_hex = key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    let hex = if is_hex {
        key.to_ascii_lowercase()
    } else {
        hex::encode(public_key(&seed_file("--key", Path::new(key))?))
    };
    let directory = Directory::open(dir)?;
    let mut trusted = TrustedKeys::read(&directory).map_err(CliError::Failed)?;
    let is_new = trusted.add(&hex).map_err(CliError::Usage)?;
    let file = dir.join(TRUSTED_KEYS);
    if is_new {
        directory.write_guarded(TRUSTED_KEYS, &trusted.to_file())?;
    }
    let text = if is_new {
        format!(
            "{} trusts {hex} now; a daemon that runs, after: kill -HUP PID",
            file.display()
        )
    } else {
        format!("{} trusts {hex} already", file.display())
    };
    Ok(Output::new(
        json!({ "file": file, "public_key_hex": hex, "added": is_new }),
        text,
    ))
}

fn sandbox() -> Result<Sandbox, CliError> {
    Sandbox::new(Default::default()).map_err(|error| CliError::Failed(error.to_string()))
}
