//! The files of a directory of policies, each checked on the open file.
//!
//! Owns which files count, which users may have written them, and that every problem names its
//! file. Invariant: nothing is read from a file that group or others can write, or through a link.

use std::{collections::BTreeMap, io, path::Path};

use ed25519_dalek::VerifyingKey;
use evidenceos_files::without_mark;
use evidenceos_kernel::claim::PolicyCode;
use evidenceos_keys::{Directory, KeyError};
use evidenceos_sandbox::{AdmitError, Sandbox};
use serde::{Deserialize, Serialize};

use super::{Manifest, Oracle, PoliciesError, bounds, manifest::public_key};

/// The file that lists the trusted keys.
pub const TRUSTED_KEYS: &str = "trusted_keys.json";

/// The most keys that can be trusted.
const MOST_TRUSTED: usize = 256;

/// The Ed25519 keys whose signatures on a manifest are trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedKeys(Vec<VerifyingKey>);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustedKeysFile {
    trusted_ed25519_pubkeys_hex: Vec<String>,
}

impl TrustedKeys {
    /// Reads the file of a directory; without it no key is trusted.
    ///
    /// # Errors
    /// If others can write the file, or it is not such a file.
    pub fn read(directory: &Directory) -> Result<Self, String> {
        let path = directory.path().join(TRUSTED_KEYS);
        let bytes = directory
            .read_guarded(TRUSTED_KEYS, bounds::JSON_BYTES)
            .map_err(|error| error.to_string())?;
        match bytes {
            Some(bytes) => Self::parse(&bytes).map_err(|what| format!("{} {what}", path.display())),
            None => Ok(Self::default()),
        }
    }

    /// Parses the file's content.
    ///
    /// # Errors
    /// The problem, as a clause.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let file: TrustedKeysFile = serde_json::from_slice(without_mark(bytes))
            .map_err(|error| format!("is not {{\"trusted_ed25519_pubkeys_hex\":[…]}}: {error}"))?;
        let texts = file.trusted_ed25519_pubkeys_hex;
        if texts.len() > MOST_TRUSTED {
            return Err(format!(
                "names {} keys, at most {MOST_TRUSTED} are allowed",
                texts.len()
            ));
        }
        let read = |text: &String| {
            public_key(text).ok_or_else(|| {
                format!("names {text:?}, which is no Ed25519 public key, 64 hex digits")
            })
        };
        texts.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Adds a public key of 64 hex digits; returns whether it is new.
    ///
    /// # Errors
    /// If it is not a public key, or there are too many.
    pub fn add(&mut self, hex: &str) -> Result<bool, String> {
        let key = public_key(hex)
            .ok_or_else(|| format!("{hex:?} is no Ed25519 public key, 64 hex digits"))?;
        if self.has(&key) {
            return Ok(false);
        }
        if self.0.len() == MOST_TRUSTED {
            return Err(format!(
                "{TRUSTED_KEYS} has {MOST_TRUSTED} keys already; take out those that are not used"
            ));
        }
        self.0.push(key);
        Ok(true)
    }

    pub(super) fn has(&self, key: &VerifyingKey) -> bool {
        self.0.contains(key)
    }

    /// Whether a public key in hex is trusted.
    #[must_use]
    pub fn has_hex(&self, hex: &str) -> bool {
        public_key(hex).is_some_and(|key| self.has(&key))
    }

    /// The bytes of the file that lists these keys.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        let file = TrustedKeysFile {
            trusted_ed25519_pubkeys_hex: self
                .0
                .iter()
                .map(|key| hex::encode(key.as_bytes()))
                .collect(),
        };
        let mut bytes = serde_json::to_vec_pretty(&file).expect("text is JSON");
        bytes.push(b'\n');
        bytes
    }
}

/// All oracles of a directory, in the order of their files' names.
pub(super) fn load(
    path: &Path,
    sandbox: &Sandbox,
    allow_unsigned: bool,
) -> Result<Vec<Oracle>, PoliciesError> {
    let one = |error: &dyn ToString| PoliciesError(vec![error.to_string()]);
    let directory = match Directory::open(path) {
        Ok(directory) => directory,
        Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(one(&error)),
    };
    let mut files = directory.names().map_err(|error| one(&error))?;
    files.retain(|name| name.ends_with(".json") && name != TRUSTED_KEYS);
    if files.len() > bounds::ORACLES {
        return Err(PoliciesError(vec![format!(
            "{} has {} manifests, at most {} are allowed; move some away",
            path.display(),
            files.len(),
            bounds::ORACLES
        )]));
    }
    let mut problems = Vec::new();
    let trusted = TrustedKeys::read(&directory).unwrap_or_else(|problem| {
        problems.push(problem);
        TrustedKeys::default()
    });
    let mut reading = Reading {
        directory: &directory,
        sandbox,
        // A broken list of keys is one problem, not one for each manifest.
        trusted: problems.is_empty().then_some(&trusted),
        allow_unsigned,
        named: BTreeMap::new(),
    };
    let mut oracles = Vec::new();
    for file in files {
        match reading.oracle(&file) {
            Ok(oracle) => oracles.push(oracle),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() {
        Ok(oracles)
    } else {
        Err(PoliciesError(problems))
    }
}

struct Reading<'r> {
    directory: &'r Directory,
    sandbox: &'r Sandbox,
    trusted: Option<&'r TrustedKeys>,
    allow_unsigned: bool,
    /// The file that named each id first.
    named: BTreeMap<String, String>,
}

impl Reading<'_> {
    /// Loads the oracle of a manifest, or returns all its problems.
    fn oracle(&mut self, file: &str) -> Result<Oracle, Vec<String>> {
        let path = self.directory.path().join(file);
        let about = |what: String| format!("{} {what}", path.display());
        let bytes = self
            .read(file, bounds::JSON_BYTES)
            .map_err(|error| vec![error])?;
        let manifest = Manifest::parse(&bytes)
            .map_err(|found| found.into_iter().map(about).collect::<Vec<_>>())?;
        let mut problems = Vec::new();
        // A veto names its oracle only by the id, so ids must be unique.
        match self.named.get(&manifest.oracle_id) {
            Some(first) => problems.push(about(format!(
                "has the oracle_id {:?}, which {first} has already",
                manifest.oracle_id
            ))),
            None => {
                self.named
                    .insert(manifest.oracle_id.clone(), file.to_owned());
            }
        }
        let of_signature = self
            .trusted
            .and_then(|trusted| manifest.problem_with_signature(trusted, self.allow_unsigned));
        problems.extend(of_signature.map(about));
        let module = self
            .read(
                &manifest.wasm_filename,
                evidenceos_sandbox::bounds::MODULE_BYTES as u64,
            )
            .map_err(|error| vec![error])
            .and_then(|wasm| match manifest.problem_with_module(&wasm) {
                Some(problem) => Err(vec![about(problem)]),
                None => self
                    .sandbox
                    .prepare_policy(&wasm, manifest.limits())
                    .map_err(|error| self.told(&manifest.wasm_filename, error)),
            });
        let module = match module {
            Ok(module) if problems.is_empty() => module,
            Ok(_) => return Err(problems),
            Err(found) => {
                problems.extend(found);
                return Err(problems);
            }
        };
        Ok(Oracle {
            id: manifest.oracle_id.as_str().into(),
            code: PolicyCode::new(manifest.reason_code).expect("the manifest's rules bound it"),
            file: file.to_owned(),
            manifest,
            module,
            failures: Default::default(),
        })
    }

    fn read(&self, file: &str, most: u64) -> Result<Vec<u8>, String> {
        match self.directory.read_guarded(file, most) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(format!(
                "{} is missing",
                self.directory.path().join(file).display()
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A refused module's broken rules, one line each.
    fn told(&self, file: &str, error: AdmitError) -> Vec<String> {
        let path = self.directory.path().join(file);
        match error {
            AdmitError::Refused(violations) => violations
                .iter()
                .map(|violation| format!("{} is not admitted: {violation}", path.display()))
                .collect(),
            AdmitError::Engine(_) | AdmitError::TooExpensive(_) | AdmitError::Host(_) => {
                vec![format!("{}: {error}", path.display())]
            }
        }
    }
}
