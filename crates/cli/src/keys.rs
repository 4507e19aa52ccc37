//! `evidenceos keys`: the signing keys of a data directory.
//!
//! Works on files alone, whether the daemon runs or not, and never prints key material. The keys
//! crate owns where keys are and who may read them.

use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use evidenceos_keys::{
    Directory, KeyError, KeyId, Ring, Secret, import,
    kms::{Context, DEFAULT_TIMEOUT, Kms, KmsSettings, Provider},
    public_key,
};
use serde_json::json;

use crate::{
    error::CliError,
    output::{Output, facts, table},
};

/// The directory of the keys.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// The daemon's data directory
    #[arg(
        long,
        env = "EVIDENCEOS_DATA_DIR",
        value_name = "DIR",
        default_value = "./data"
    )]
    data_dir: PathBuf,
    /// The key directory, if it is not `keys` in the data directory
    #[arg(long, env = "EVIDENCEOS_KEY_DIR", value_name = "DIR")]
    key_dir: Option<PathBuf>,
}

impl Place {
    fn keys(&self) -> PathBuf {
        let beside = || self.data_dir.join("keys");
        self.key_dir.clone().unwrap_or_else(beside)
    }

    /// The key directory; its parent is made if it is missing, closed as the daemon makes it.
    fn keys_to_be(&self) -> Result<PathBuf, CliError> {
        let keys = self.keys();
        // The parent of a bare name is empty and cannot be made.
        if let Some(parent) = keys
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(CliError::file(parent))?;
        }
        Ok(keys)
    }
}

/// The commands about keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a signing key.
    #[command(
        after_help = "Examples:\n  evidenceos keys generate --data-dir /srv/evidenceos\n  evidenceos keys generate --activate"
    )]
    Generate {
        #[command(flatten)]
        place: Place,
        /// Use it to sign from the next start or reload.
        #[arg(long)]
        activate: bool,
    },
    /// List the signing keys.
    #[command(after_help = "Example:\n  evidenceos keys list --data-dir /srv/evidenceos")]
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Show the public half of a key.
    #[command(after_help = "Example:\n  evidenceos keys show --data-dir /srv/evidenceos")]
    Show {
        #[command(flatten)]
        place: Place,
        /// The key [default: the chosen one, or the only one].
        key_id: Option<KeyId>,
    },
    /// Choose the key that signs.
    #[command(
        after_help = "Keep the old key beside it until the new key has taken over: it must sign the link to the new key.\n\n\
        Examples:\n  evidenceos keys activate KEY-ID\n  kill -HUP $(pidof evidenceos-daemon)    # or at the next start"
    )]
    Activate {
        #[command(flatten)]
        place: Place,
        /// Which.
        key_id: KeyId,
    },
    /// Copy keys from a mount that cannot be closed to other users, such as a Kubernetes Secret.
    #[command(
        after_help = "Follows links that stay inside DIR. Takes group-readable files, refuses world-readable ones.\n\
        Can be run any number of times.\n\n\
        Example:\n  evidenceos keys import --from /run/secrets/keys --data-dir /data"
    )]
    Import {
        #[command(flatten)]
        place: Place,
        /// The directory with KEY-ID.key files.
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
    },
    /// Wrap a key under a KMS key, and print the environment that the daemon needs.
    #[command(
        after_help = "The command finds credentials as the provider's own tools do. It prints lines for an environment file;\n\
        in a shell, quote the value with the `|`.\n\n\
        Examples:\n  evidenceos keys wrap --provider aws --resource alias/evidenceos\n  \
        evidenceos keys wrap --provider gcp --resource projects/P/locations/L/keyRings/R/cryptoKeys/K --from seed.key"
    )]
    Wrap(Box<WrapArgs>),
    /// Close the key files and the daemon's secrets to other users.
    #[command(
        after_help = "Example:\n  evidenceos keys fix-permissions --data-dir /srv/evidenceos"
    )]
    FixPermissions {
        #[command(flatten)]
        place: Place,
    },
}

/// The key to wrap, and the KMS key that wraps it.
#[derive(Debug, Args)]
pub struct WrapArgs {
    #[command(flatten)]
    place: Place,
    /// The KMS provider: aws, gcp, azure or mock.
    #[arg(long)]
    provider: Provider,
    /// The KMS key that wraps: id, ARN, alias, resource name or key URL.
    #[arg(long, value_name = "RESOURCE")]
    resource: String,
    /// A file with the 32-byte seed, mode 0600, instead of a key of the data directory.
    #[arg(long, value_name = "FILE", conflicts_with = "key_id")]
    from: Option<PathBuf>,
    /// The key of the data directory [default: the chosen one, or the only one].
    #[arg(long, value_name = "KEY-ID")]
    key_id: Option<KeyId>,
    /// The context to which the ciphertext is bound: name=value, with commas between them.
    #[arg(long, env = "EVIDENCEOS_KMS_CONTEXT", value_name = "PAIRS")]
    context: Option<Context>,
    /// Another endpoint of the KMS.
    #[arg(long, env = "EVIDENCEOS_KMS_ENDPOINT", value_name = "URL")]
    endpoint: Option<String>,
    /// Authorities that may have issued the KMS's certificate.
    #[arg(long, env = "EVIDENCEOS_KMS_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The key of the mock KMS.
    #[arg(
        long,
        env = "EVIDENCEOS_KMS_MOCK_KEY_HEX",
        hide_env_values = true,
        value_name = "HEX"
    )]
    mock_key_hex: Option<String>,
}

impl KeysCommand {
    /// Runs the command and returns what it prints.
    pub async fn run(self) -> Result<Output, CliError> {
        match self {
            Self::Generate { place, activate } => generate(&place, activate),
            Self::List { place } => list(&place),
            Self::Show { place, key_id } => show(&place, key_id),
            Self::Activate { place, key_id } => {
                Ring::open(&place.keys())?.activate(key_id)?;
                Ok(Output::new(
                    json!({ "active_key_id": key_id.to_string() }),
                    format!(
                        "the daemon signs with {key_id} from its next start or reload on (`evidenceos-daemon reload`)\nkeep the old key beside it until then: it must sign the link to the new key"
                    ),
                ))
            }
            Self::Import { place, from } => import_from(&place, &from),
            Self::Wrap(args) => args.run().await,
            Self::FixPermissions { place } => fix_permissions(&place),
        }
    }
}

fn generate(place: &Place, activate: bool) -> Result<Output, CliError> {
    let path = place.keys_to_be()?;
    let mut ring = Ring::open_or_create(&path)?;
    // Counted before the new key is made, since a first key signs without being chosen.
    let others = ring.keys().len();
    let id = ring.generate()?;
    if activate {
        ring.activate(id)?;
    }
    let next = match (activate, others) {
        (true, _) => "it signs from the daemon's next start or reload on".to_owned(),
        (false, 0) => "it is the only key, so it signs".to_owned(),
        (false, _) => {
            format!("it does not sign yet; activate it with `evidenceos keys activate {id}`")
        }
    };
    let file = ring.file_of(id);
    Ok(Output::new(
        json!({ "key_id": id.to_string(), "file": file, "activated": activate }),
        format!("made {}\n{next}", file.display()),
    ))
}

fn list(place: &Place) -> Result<Output, CliError> {
    let ring = Ring::open(&place.keys())?;
    let active = chosen(&ring)?;
    let keys: Vec<_> = ring
        .keys()
        .keys()
        .map(|id| {
            json!({
                "key_id": id.to_string(),
                "active": Some(*id) == active,
                "file": ring.file_of(*id),
            })
        })
        .collect();
    let rows: Vec<Vec<String>> = ring
        .keys()
        .keys()
        .map(|id| {
            let signs = if Some(*id) == active { "signs" } else { "" };
            vec![id.to_string(), signs.to_owned()]
        })
        .collect();
    let mut text = table(&["key id", ""], &rows);
    if rows.is_empty() {
        text = KeyError::Empty(ring.path().to_owned()).to_string();
    } else if active.is_none() {
        text.push_str("\nno key is activated: the key that has signed the log so far goes on");
    }
    Ok(Output::new(json!({ "keys": keys }), text))
}

/// The key that files alone choose; with several keys and no choice, the log decides.
fn chosen(ring: &Ring) -> Result<Option<KeyId>, CliError> {
    match ring.choose(None, None) {
        Ok(id) => Ok(Some(id)),
        Err(KeyError::NotChosen { .. } | KeyError::Empty(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn show(place: &Place, key_id: Option<KeyId>) -> Result<Output, CliError> {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let ring = Ring::open(&place.keys())?;
    let id = ring.choose(key_id, None)?;
    let public = public_key(&ring.seed(id)?);
    let (hex, base64) = (hex::encode(public), BASE64_STANDARD.encode(public));
    Ok(Output::new(
        json!({ "key_id": id.to_string(), "public_key_hex": hex, "public_key_base64": base64 }),
        facts(&[
            ("key id", id.to_string()),
            ("public key, hex", hex),
            ("public key, base64", base64),
            ("file", ring.file_of(id).display().to_string()),
        ]),
    ))
}

fn import_from(place: &Place, from: &Path) -> Result<Output, CliError> {
    let keys = place.keys_to_be()?;
    let done = import(from, &keys)?;
    let ids = |list: &[KeyId]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut lines: Vec<String> = ids(&done.added)
        .into_iter()
        .map(|id| format!("imported {id}"))
        .collect();
    lines.extend(ids(&done.kept).into_iter().map(|id| format!("kept {id}")));
    lines.extend(done.secrets.iter().map(|name| format!("imported {name}")));
    lines.push(format!("in {}", keys.display()));
    Ok(Output::new(
        json!({
            "added": ids(&done.added),
            "kept": ids(&done.kept),
            "secrets": done.secrets,
            "key_dir": keys,
        }),
        lines.join("\n"),
    ))
}

fn fix_permissions(place: &Place) -> Result<Output, CliError> {
    let all = [place.keys(), place.data_dir.join("secrets")];
    // One of the two may not exist yet.
    let there: Vec<&PathBuf> = all.iter().filter(|path| path.exists()).collect();
    if there.is_empty() {
        return Err(CliError::Failed(format!(
            "there is neither {} nor {}; name the daemon's directories with --data-dir and --key-dir",
            all[0].display(),
            all[1].display()
        )));
    }
    let mut changed = Vec::new();
    for directory in there {
        changed.extend(Directory::fix_permissions(directory)?);
    }
    let text = if changed.is_empty() {
        "nothing to close: no file is open to others".to_owned()
    } else {
        changed
            .iter()
            .map(|path| format!("closed {}", path.display()))
            .collect::<Vec<_>>()
            .join("\n")
    };
    Ok(Output::new(json!({ "changed": changed }), text))
}

/// Reads a file of 32 bytes that no other user can read; `flag` named it.
pub fn seed_file(flag: &str, path: &Path) -> Result<Secret, CliError> {
    let (directory, name) = directory_and_name(path)
        .ok_or_else(|| CliError::Usage(format!("{flag} {}: not a file", path.display())))?;
    let seed = Directory::open(directory)?.read(name)?;
    seed.ok_or_else(|| CliError::Usage(format!("{flag} {}: no such file", path.display())))
}

/// The directory of a file, and its name there.
pub fn directory_and_name(path: &Path) -> Option<(&Path, &str)> {
    let name = path.file_name()?.to_str()?;
    // The parent of a bare name is empty, and means the current directory.
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    Some((parent.unwrap_or(Path::new(".")), name))
}

impl WrapArgs {
    async fn run(self) -> Result<Output, CliError> {
        let seed = self.seed()?;
        let key_id = KeyId::of(&public_key(&seed));
        let mut settings = KmsSettings::new(self.provider);
        settings.context = self.context.clone().unwrap_or_default();
        settings.endpoint.clone_from(&self.endpoint);
        settings.ca_file.clone_from(&self.ca_file);
        settings.timeout = DEFAULT_TIMEOUT;
        settings.mock_key = self.mock_key()?;
        let failed = |error: evidenceos_keys::kms::KmsError| CliError::Failed(error.to_string());
        let kms = Kms::new(settings).map_err(failed)?;
        let wrapped = kms.wrap(&self.resource, &seed).await.map_err(failed)?;
        // The wrapped key is unwrapped once: otherwise the operator would see a failure only at the
        // next start.
        if kms.unwrap(&wrapped).await.map_err(failed)? != seed {
            return Err(CliError::Failed(
                "the KMS unwrapped another key than it had wrapped; nothing was printed, check --resource and the KMS".to_owned(),
            ));
        }
        let mut lines = vec![
            "EVIDENCEOS_KEY_PROVIDER=kms".to_owned(),
            format!("EVIDENCEOS_KMS_PROVIDER={}", self.provider),
            format!("EVIDENCEOS_KMS_KEY_ID={wrapped}"),
            format!("EVIDENCEOS_KMS_EXPECT_KEY_ID={key_id}"),
        ];
        // The daemon must reach the KMS by the settings that were just tested.
        let given = [
            ("CONTEXT", self.context.as_ref().map(ToString::to_string)),
            ("ENDPOINT", self.endpoint.clone()),
            (
                "CA_FILE",
                self.ca_file.as_ref().map(|path| path.display().to_string()),
            ),
        ];
        for (name, value) in given {
            let value = value.filter(|value| !value.is_empty());
            lines.extend(value.map(|value| format!("EVIDENCEOS_KMS_{name}={value}")));
        }
        Ok(Output::new(
            json!({
                "key_id": key_id.to_string(),
                "kms_key_id": wrapped.to_string(),
                "environment": lines,
            }),
            lines.join("\n"),
        ))
    }

    fn seed(&self) -> Result<Secret, CliError> {
        let Some(path) = &self.from else {
            let ring = Ring::open(&self.place.keys())?;
            return Ok(ring.seed(ring.choose(self.key_id, None)?)?);
        };
        seed_file("--from", path)
    }

    fn mock_key(&self) -> Result<Option<Secret>, CliError> {
        // The variable may be set while another provider is used.
        let Some(hex) = self
            .mock_key_hex
            .as_deref()
            .filter(|_| self.provider == Provider::Mock)
        else {
            return Ok(None);
        };
        let mut key = Secret::default();
        // The decoder's message would show a digit of the key.
        match hex::decode_to_slice(hex.trim(), key.as_mut_slice()) {
            Ok(()) => Ok(Some(key)),
            Err(_) => Err(CliError::Usage(
                "EVIDENCEOS_KMS_MOCK_KEY_HEX must be 64 hex digits".to_owned(),
            )),
        }
    }
}
