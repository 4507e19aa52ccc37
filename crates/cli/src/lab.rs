//! `evidenceos lab init`: everything that a server with certificates needs, to try it.
//!
//! It makes a certificate authority whose key is never mounted anywhere, a server certificate,
//! client certificates for each role with a profile to use them, a signing key and a role policy.
//! It overwrites nothing: it checks every path before it writes a file.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use evidenceos_keys::Ring;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{error::CliError, output::Output};

/// Some clients refuse a server's certificate with a longer validity.
const DAYS: u32 = 398;
const ROLES: [&str; 3] = ["submitter", "auditor", "operator"];
/// The directories under the root, and their modes: for the owner alone, or for all users.
const DIRECTORIES: [(&str, u32); 6] = [
    ("anchor", 0o700),
    ("ca", 0o700),
    ("certs", 0o755),
    ("clients", 0o755),
    ("data", 0o700),
    ("keys", 0o700),
];
const TRUST_DOMAIN: &str = "spiffe://evidenceos.lab";

/// The commands that make materials to try a server with.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Make certificates, keys and a policy in a directory.
    #[command(
        after_help = "Makes ca/ (its key is needed for new certificates only, and mounted nowhere), certs/ and keys/ for the server,\n\
        clients/ROLE/ with a profile each, data/, and anchor/, where the server remembers the newest head of its log. Overwrites nothing.\n\
        If a docker-compose.yml is beside DIR, it also writes the container's user and role policy to .env.\n\n\
        Examples:\n  evidenceos lab init ops\n  evidenceos lab init ops --san evidenceos.example.org --san 10.0.0.7"
    )]
    Init(InitArgs),
}

/// The names, validity and owner of the materials.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The directory
    dir: PathBuf,
    /// Another name or address of the server; repeatable
    #[arg(long, value_name = "NAME|IP")]
    san: Vec<String>,
    /// Days for which the certificates are valid
    #[arg(long, default_value_t = DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// The user that called sudo, which root makes the owner of the files
    #[arg(long, env = "SUDO_UID", hide = true)]
    sudo_uid: Option<u32>,
    /// The group of that user
    #[arg(long, env = "SUDO_GID", hide = true)]
    sudo_gid: Option<u32>,
}

impl LabCommand {
    /// Runs the command and returns what it prints.
    pub fn run(self) -> Result<Output, CliError> {
        match self {
            Self::Init(args) => args.run(),
        }
    }
}

impl InitArgs {
    fn run(self) -> Result<Output, CliError> {
        let mut lab = Lab::new(&self.dir);
        lab.must_be_free()?;
        // These fail on a bad name before anything is written.
        let authority = Authority::new(self.days)?;
        let server = authority.server(&self.names())?;
        // This comes first, since a file there may belong to another user.
        let compose = ComposeEnvironment::beside(&self.dir);
        if let Some(compose) = &compose {
            compose.append(self.sudo_uid, self.sudo_gid)?;
        }

        lab.directory("", 0o755)?;
        for (name, mode) in DIRECTORIES {
            lab.directory(name, mode)?;
        }
        lab.file("ca/ca.key", 0o600, &authority.key_pem)?;
        lab.file("ca/ca.crt", 0o644, &authority.cert_pem)?;
        // Nothing mounts `ca`, so the server gets the certificate in another directory.
        lab.file("certs/ca.crt", 0o644, &authority.cert_pem)?;
        lab.file("certs/server.crt", 0o644, &server.cert_pem)?;
        lab.file("certs/server.key", 0o600, &server.key_pem)?;
        lab.file("certs/policy.toml", 0o644, &policy())?;
        for role in ROLES {
            let client = authority.client(role)?;
            let at = format!("clients/{role}");
            lab.directory(&at, 0o700)?;
            // A profile names files beside it, so each client's directory is complete.
            lab.file(&format!("{at}/ca.crt"), 0o644, &authority.cert_pem)?;
            lab.file(&format!("{at}/client.crt"), 0o644, &client.cert_pem)?;
            lab.file(&format!("{at}/client.key"), 0o600, &client.key_pem)?;
            lab.file(&format!("{at}/profile.toml"), 0o600, PROFILE)?;
        }
        let mut ring = Ring::open(&lab.path("keys"))?;
        let key_id = ring.generate()?;
        // The key ring wrote this file itself, so the list lacks it.
        lab.made(ring.file_of(key_id));
        // This comes last: the list now has everything that was made.
        lab.give_to(self.sudo_uid, self.sudo_gid)?;

        let dir = self.dir.display();
        let mut text = format!(
            "made in {dir}: a CA, a server certificate, clients for {}, signing key {key_id}\n\n\
            serve:  evidenceos-daemon --data-dir {dir}/data --key-dir {dir}/keys --anchor {dir}/anchor \\\n          \
            --tls-cert {dir}/certs/server.crt --tls-key {dir}/certs/server.key \\\n          \
            --mtls-client-ca {dir}/certs/ca.crt --require-client-cert --auth-policy {dir}/certs/policy.toml\n\
            call:   evidenceos --profile {dir}/clients/operator/profile.toml holdout list",
            ROLES.join(", ")
        );
        if let Some(ComposeEnvironment(file)) = &compose {
            text.push_str(&format!(
                "\nor:     docker compose up --build    (its user and role policy: {})",
                file.display()
            ));
        }
        Ok(Output::new(
            json!({ "directory": self.dir, "key_id": key_id.to_string(), "clients": ROLES }),
            text,
        ))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1", "evidenceos"]
            .map(str::to_owned)
            .into();
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        names.extend(Some(host).filter(|host| is_name(host)));
        names.extend(self.san.iter().cloned());
        names.sort();
        names.dedup();
        names
    }
}

/// Whether a certificate can carry this name; a host may have a name that it cannot.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let mut bytes = label.bytes();
        !label.is_empty() && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let name = name.strip_prefix("*.").unwrap_or(name);
    name.split('.').all(is_label)
}

/// A directory of materials.
struct Lab {
    root: PathBuf,
    /// The files to give to the user that called sudo.
    made: Vec<PathBuf>,
}

impl Lab {
    fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            made: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() {
            self.root.clone()
        } else {
            self.root.join(name)
        }
    }

    /// Refuses a directory in which something would be overwritten. Empty directories, and files
    /// that only keep one in version control, do not count.
    fn must_be_free(&self) -> Result<(), CliError> {
        let mut there = Vec::new();
        for (name, _) in DIRECTORIES {
            let path = self.path(name);
            let Ok(entries) = fs::read_dir(&path) else {
                // A file with that name is in the way too.
                if path.exists() {
                    there.push(path.display().to_string());
                }
                continue;
            };
            let materials = entries.filter_map(Result::ok).filter(|entry| {
                let name = entry.file_name();
                // Docker creates a mount point if a container was started too early.
                let is_mount_point =
                    || fs::read_dir(entry.path()).is_ok_and(|mut below| below.next().is_none());
                name != ".gitkeep" && name != ".gitignore" && !is_mount_point()
            });
            there.extend(materials.map(|entry| entry.path().display().to_string()));
        }
        if there.is_empty() {
            return Ok(());
        }
        there.sort();
        Err(CliError::Failed(format!(
            "{} is in use, and nothing is overwritten; remove what is there, or give another directory: {}",
            self.root.display(),
            there.join(", ")
        )))
    }

    /// Makes a directory, or sets the mode of an existing one, which is empty. The root keeps its
    /// mode, and may contain other things.
    fn directory(&mut self, name: &str, mode: u32) -> Result<(), CliError> {
        let path = self.path(name);
        let was_there = path.is_dir();
        if !was_there {
            DirBuilder::new()
                .mode(mode)
                .recursive(name.is_empty())
                .create(&path)
                .map_err(CliError::file(&path))?;
        } else if !name.is_empty() {
            let permissions = Permissions::from_mode(mode);
            fs::set_permissions(&path, permissions).map_err(CliError::file(&path))?;
        }
        // An existing root keeps its owner.
        if !name.is_empty() || !was_there {
            self.made(path);
        }
        Ok(())
    }

    fn file(&mut self, name: &str, mode: u32, text: &str) -> Result<(), CliError> {
        let path = self.path(name);
        // Nothing is overwritten, even a file that appeared after the check.
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file: File| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            });
        written.map_err(CliError::file(&path))?;
        self.made(path);
        Ok(())
    }

    fn made(&mut self, path: PathBuf) {
        self.made.push(path);
    }

    /// Under sudo, gives everything to the user that called it.
    fn give_to(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), CliError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        for path in &self.made {
            // If an attacker put a link here meanwhile, the link itself is given away, not its
            // target.
            std::os::unix::fs::lchown(path, uid, gid).map_err(CliError::file(path))?;
        }
        Ok(())
    }
}

/// The file from which Compose takes variables, beside a project that mounts the directory.
struct ComposeEnvironment(PathBuf);

impl ComposeEnvironment {
    /// The file, if the parent directory is a Compose project.
    fn beside(dir: &Path) -> Option<Self> {
        let dir = std::path::absolute(dir).ok()?;
        let project = dir.parent()?;
        let names = [
            "compose.yaml",
            "compose.yml",
            "docker-compose.yml",
            "docker-compose.yaml",
        ];
        let is_project = names.iter().any(|name| project.join(name).is_file());
        is_project.then(|| Self(project.join(".env")))
    }

    /// Adds the user that the container runs as, which owns the files, and the path of its policy.
    /// Variables that the file already has stay.
    fn append(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), CliError> {
        let Self(path) = self;
        let was_there = path.exists();
        let text = if was_there {
            fs::read_to_string(path).map_err(CliError::file(path))?
        } else {
            String::new()
        };
        let (own_uid, own_gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let sudo = own_uid.is_root();
        // Only root can give files away, so sudo's variables count only for root.
        let uid = uid.filter(|_| sudo).unwrap_or(own_uid.as_raw());
        let gid = gid.filter(|_| sudo).unwrap_or(own_gid.as_raw());
        let wanted = [
            ("EVIDENCEOS_UID", uid.to_string()),
            ("EVIDENCEOS_GID", gid.to_string()),
            ("EVIDENCEOS_AUTH_POLICY", "/certs/policy.toml".to_owned()),
        ];
        let mut added = String::new();
        for (name, value) in wanted {
            let says = |line: &str| line.trim_start().starts_with(&format!("{name}="));
            if !text.lines().any(says) {
                added.push_str(&format!("{name}={value}\n"));
            }
        }
        // Without a line feed, the last line would run into the first addition.
        if !text.is_empty() && !text.ends_with('\n') {
            added.insert(0, '\n');
        }
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .and_then(|mut file| file.write_all(added.as_bytes()))
            .map_err(CliError::file(path))?;
        // An existing file keeps its owner.
        if sudo && !was_there {
            std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(CliError::file(path))?;
        }
        Ok(())
    }
}

const PROFILE: &str = "# The profile for `evidenceos --profile`; paths are relative to this file.
endpoint = \"https://localhost:50051\"
tls_ca = \"ca.crt\"
tls_cert = \"client.crt\"
tls_key = \"client.key\"
";

fn policy() -> String {
    let mut text =
        "# The roles of each caller; a URI that ends in / means everything below it.\n".to_owned();
    for role in ROLES {
        text.push_str(&format!(
            "\n[[rule]]\nuri = \"{TRUST_DOMAIN}/{role}/\"\nroles = [\"{role}\"]\n"
        ));
    }
    text
}

/// A certificate and its key.
struct Issued {
    cert_pem: String,
    key_pem: String,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    cert_pem: String,
    key_pem: String,
    days: u32,
}

impl Authority {
    fn new(days: u32) -> Result<Self, CliError> {
        let key = KeyPair::generate().map_err(cannot)?;
        let key_pem = key.serialize_pem();
        // If two labs' authorities had the same name, a client would report a wrong signature for
        // the other one.
        let mark = hex::encode(&Sha256::digest(key.public_key_pem())[..4]);
        let mut params = params(&format!("EvidenceOS lab CA {mark}"), days);
        // It signs servers and clients, and no further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        // RFC 5280, 4.2.1.3: a key that signs certificates and revocation lists must be allowed
        // both.
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert_pem = params.self_signed(&key).map_err(cannot)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            cert_pem,
            key_pem,
            days,
        })
    }

    fn server(&self, names: &[String]) -> Result<Issued, CliError> {
        let mut params = params("evidenceos", self.days);
        for name in names {
            // Clients compare addresses only with addresses, and names only with names.
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if is_name(name) => {
                    SanType::DnsName(name.as_str().try_into().map_err(cannot)?)
                }
                Err(_) => {
                    return Err(CliError::Usage(format!(
                        "--san {name:?}: write a name of letters, digits, dots and hyphens, or an IP address"
                    )));
                }
            });
        }
        // A server's stolen key must not work for a client, nor a client's for a server.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    fn client(&self, role: &str) -> Result<Issued, CliError> {
        let mut params = params(&format!("lab {role}"), self.days);
        // The role policy assigns the role by this URI.
        let uri = format!("{TRUST_DOMAIN}/{role}/lab");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().map_err(cannot)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    fn issue(&self, mut params: CertificateParams) -> Result<Issued, CliError> {
        let key = KeyPair::generate().map_err(cannot)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // RFC 5280, 4.2.1.1: every certificate but a self-signed one names the key of its issuer.
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer).map_err(cannot)?;
        Ok(Issued {
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

fn params(name: &str, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = time::OffsetDateTime::now_utc();
    // Another machine's clock may be a little slow.
    params.not_before = now - time::Duration::hours(1);
    params.not_after = now + time::Duration::days(i64::from(days));
    params
}

fn cannot(error: rcgen::Error) -> CliError {
    CliError::Failed(format!("cannot make a certificate: {error}"))
}
