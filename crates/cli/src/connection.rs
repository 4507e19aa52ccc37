//! The daemon's address and the caller's credentials, from options, environment and profile, and the channel to the
//! daemon.
//!
//! A credential goes to another machine only under TLS, unless the user allows more. This module explains failures
//! before the first reply: if a peer ends a TLS 1.3 connection after the handshake, it wants a certificate, but the
//! transport only sees a broken pipe.

mod chosen;

use std::{
    error::Error,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use evidenceos_notary::fetch::Trust;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use self::chosen::Chosen;
pub use self::chosen::Implicit;
use crate::{error::CliError, files, output::progress};

const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:50051";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The options that say how to reach a daemon.
#[derive(Debug, Clone, Default, Args)]
pub struct ConnectionArgs {
    /// Address of the daemon [default: http://127.0.0.1:50051]
    #[arg(long, global = true, env = "EVIDENCEOS_ENDPOINT", value_name = "URL")]
    pub endpoint: Option<String>,
    /// Profile with endpoint, tls_ca, tls_cert, tls_key, token_file; options win over it, environment variables do not
    #[arg(long, global = true, env = "EVIDENCEOS_PROFILE", value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Authorities that may have issued the server's certificate, PEM [default: the system's]
    #[arg(long, global = true, env = "EVIDENCEOS_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Your client certificate, PEM
    #[arg(
        long,
        global = true,
        env = "EVIDENCEOS_CLIENT_CERT",
        value_name = "FILE"
    )]
    pub tls_cert: Option<PathBuf>,
    /// The private key of your client certificate, PEM
    #[arg(
        long,
        global = true,
        env = "EVIDENCEOS_CLIENT_KEY",
        value_name = "FILE"
    )]
    pub tls_key: Option<PathBuf>,
    /// File with your bearer token [default: the environment variable EVIDENCEOS_BEARER_TOKEN]
    #[arg(
        long,
        alias = "bearer-token-file",
        global = true,
        env = "EVIDENCEOS_TOKEN_FILE",
        value_name = "FILE"
    )]
    pub token_file: Option<PathBuf>,
    /// Send a token over plain HTTP beyond this machine, where everyone on the network can read it
    #[arg(long, global = true)]
    pub insecure_send_token: bool,
    /// The options that the environment gave.
    #[arg(skip)]
    pub from_environment: Implicit,
}

/// The daemon's address and the caller's credentials.
#[derive(Clone)]
pub struct Connection {
    /// The daemon's URL, `http://host:port` or `https://host:port`.
    pub endpoint: String,
    /// A bearer token; `None`: no credential, or the certificate alone.
    pub bearer_token: Option<String>,
    /// The file of the token; `None`: the environment.
    token_file: Option<PathBuf>,
    tls: Option<Tls>,
}

#[derive(Clone, Default)]
struct Tls {
    /// Authorities, and their file.
    ca: Option<(PathBuf, Vec<u8>)>,
    identity: Option<Own>,
}

/// The caller's certificate and its key, with their files.
#[derive(Clone)]
struct Own {
    cert: (PathBuf, Vec<u8>),
    key: (PathBuf, Vec<u8>),
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A token must not get into a log or a message.
        f.debug_struct("Connection")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// A plain connection without a credential, as to a development server.
    pub fn plain(endpoint: String) -> Self {
        Self {
            endpoint,
            bearer_token: None,
            token_file: None,
            tls: None,
        }
    }

    /// Applies options over the profile that they name, and reads the files.
    ///
    /// # Errors
    /// [`CliError::Usage`] for options that contradict each other, [`CliError::File`] for a file
    /// that cannot be read.
    pub fn new(
        args: ConnectionArgs,
        token_from_environment: Option<String>,
    ) -> Result<Self, CliError> {
        let insecure = args.insecure_send_token;
        let chosen = Chosen::of(args, token_from_environment)?;
        chosen.notes.iter().for_each(|note| progress(note));
        let (endpoint, token_file) = (chosen.endpoint, chosen.token_file);
        let token = match &token_file {
            Some(path) => Some(text(path)?),
            None => chosen.token,
        };
        let tls = Tls::read(chosen.ca, chosen.cert, chosen.key)?;
        let uri: http::Uri = endpoint
            .parse()
            .map_err(|error| CliError::Usage(format!("--endpoint {endpoint:?}: {error}")))?;
        let tls = match uri.scheme_str() {
            Some("https") => Some(tls),
            Some("http") if tls.is_empty() => None,
            // A user would take certificates that are given and not used for a protection.
            Some("http") => {
                return Err(CliError::Usage(format!(
                    "--endpoint {endpoint}: certificates are for https; write https://{}",
                    uri.authority().map_or("HOST:PORT", |a| a.as_str())
                )));
            }
            _ => {
                return Err(CliError::Usage(format!(
                    "--endpoint {endpoint:?}: write http://HOST:PORT, or https://HOST:PORT for TLS"
                )));
            }
        };
        // A token to this machine crosses no network, so it may be sent in the clear.
        if token.is_some() && tls.is_none() && !is_here(&uri) && !insecure {
            return Err(CliError::Usage(format!(
                "--endpoint {endpoint}: a token would cross the network in the clear; use https://, or --insecure-send-token if something else protects the network"
            )));
        }
        Ok(Self {
            endpoint,
            bearer_token: token,
            token_file,
            tls,
        })
    }

    /// Opens the connection.
    ///
    /// # Errors
    /// [`CliError::Unreachable`] with the reason in words.
    pub async fn open(&self) -> Result<Channel, CliError> {
        let usage = |error: tonic::transport::Error| {
            let reason = innermost(&error);
            let own = self.tls.as_ref().and_then(|tls| tls.identity.as_ref());
            CliError::Usage(match own {
                Some(own) if reason.contains("KeyMismatch") => format!(
                    "--tls-key {} is not the key of --tls-cert {}",
                    own.key.0.display(),
                    own.cert.0.display()
                ),
                _ => format!("--endpoint {}: {reason}", self.endpoint),
            })
        };
        let mut endpoint = Endpoint::from_shared(self.endpoint.clone())
            .map_err(usage)?
            .connect_timeout(CONNECT_TIMEOUT);
        if let Some(tls) = &self.tls {
            endpoint = endpoint.tls_config(tls.config()).map_err(usage)?;
        }
        endpoint
            .connect()
            .await
            .map_err(|error| self.failed(&error))
    }

    /// The authorities that the client trusts for the server.
    pub fn trust(&self) -> Trust<'_> {
        match self.tls.as_ref().and_then(|tls| tls.ca.as_ref()) {
            Some((_, pem)) => Trust::Authorities(pem),
            None => Trust::System,
        }
    }

    /// Whether calls go out under TLS.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether calls carry credentials.
    pub fn has_credentials(&self) -> bool {
        let certificate = self.tls.as_ref().and_then(|tls| tls.identity.as_ref());
        self.bearer_token.is_some() || certificate.is_some()
    }

    /// Explains a failure of the connection.
    pub fn failed(&self, error: &(dyn Error + 'static)) -> CliError {
        CliError::Unreachable {
            endpoint: self.endpoint.clone(),
            reason: self.explain(&chain(error)),
        }
    }

    /// Where the credentials of calls come from, for a caller that is refused; never the
    /// credentials themselves.
    pub fn credentials(&self) -> String {
        let own = self.tls.as_ref().and_then(|tls| tls.identity.as_ref());
        let certificate = own.map(|own| format!("the certificate {}", own.cert.0.display()));
        let token = self.bearer_token.as_ref().map(|_| match &self.token_file {
            Some(path) => format!("the bearer token in {}", path.display()),
            None => "the bearer token in EVIDENCEOS_BEARER_TOKEN".to_owned(),
        });
        let all: Vec<_> = certificate.into_iter().chain(token).collect();
        if all.is_empty() {
            return "no credentials".to_owned();
        }
        all.join(" and ")
    }

    fn explain(&self, causes: &[String]) -> String {
        // The causes come from rustls, hyper and the system, which spell them differently.
        let all = causes.join(": ").to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| all.contains(word));
        let deepest = causes.last().cloned().unwrap_or_default();
        if says(&[
            "connection refused",
            "timed out",
            "deadline",
            "unreachable",
            "dns error",
        ]) {
            return format!(
                "{deepest}; start one with `evidenceos-daemon`, or name another with --endpoint"
            );
        }
        match &self.tls {
            Some(tls) => tls.explain(&all, deepest),
            // A TLS listener answers the HTTP/2 preface with an alert, or closes the connection.
            None => format!("{deepest}; does it want TLS? then write https:// in --endpoint"),
        }
    }
}

impl Tls {
    /// Why a TLS server gives no answer. `all` has its causes in lower case, `deepest` the last one
    /// unchanged.
    fn explain(&self, all: &str, deepest: String) -> String {
        let says = |words: &[&str]| words.iter().any(|word| all.contains(word));
        // An authority with the same name but another key, such as another lab's, appears as a bad
        // signature.
        if says(&["unknownissuer", "unknown issuer", "badsignature"]) {
            return match &self.ca {
                Some((path, _)) => format!(
                    "the server's certificate does not come from the authorities in --tls-ca {}",
                    path.display()
                ),
                None => "the server's certificate does not come from an authority that this system trusts; give --tls-ca".to_owned(),
            };
        }
        if says(&[
            "notvalidforname",
            "not valid for name",
            "not valid for any names",
        ]) {
            return format!("{deepest}; call it by a name that its certificate has");
        }
        // In an alert, the server reports that the client's certificate has expired.
        if says(&["certificate expired", "expired"]) && !says(&["alert"]) {
            return format!("the server's certificate: {deepest}");
        }
        // A plain server answers the handshake with bytes that are no TLS record.
        if says(&["invalidcontenttype", "corrupt message", "wrong version"]) {
            return "it does not speak TLS; write http:// in --endpoint if it is this machine's"
                .to_owned();
        }
        // A server that wants a certificate may just close the connection.
        if self.identity.is_none()
            && says(&[
                "certificaterequired",
                "certificate required",
                "handshakefailure",
                "broken pipe",
                "connection reset",
                "connection closed",
                "unexpected eof",
                "unexpectedeof",
                "close_notify",
            ])
        {
            return "the server wants a client certificate: give --tls-cert and --tls-key, or a --profile with them".to_owned();
        }
        if says(&[
            "alert",
            "broken pipe",
            "connection reset",
            "connection closed",
        ]) {
            return format!(
                "the server refused the certificate of --tls-cert ({deepest}); it must come from the server's client authorities, be valid today, and be meant for client authentication"
            );
        }
        deepest
    }

    fn read(
        ca: Option<PathBuf>,
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> Result<Self, CliError> {
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some(Own {
                cert: certificates("--tls-cert", cert)?,
                key: private_key(key)?,
            }),
            (None, None) => None,
            (Some(_), None) => {
                return Err(CliError::Usage(
                    "--tls-cert needs --tls-key, the key of that certificate".to_owned(),
                ));
            }
            (None, Some(_)) => {
                return Err(CliError::Usage(
                    "--tls-key needs --tls-cert, the certificate of that key".to_owned(),
                ));
            }
        };
        let ca = match ca {
            Some(path) => Some(certificates("--tls-ca", path)?),
            None => None,
        };
        Ok(Self { ca, identity })
    }

    fn is_empty(&self) -> bool {
        self.ca.is_none() && self.identity.is_none()
    }

    fn config(&self) -> ClientTlsConfig {
        let config = match &self.ca {
            Some((_, pem)) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        match &self.identity {
            Some(own) => config.identity(Identity::from_pem(&own.cert.1, &own.key.1)),
            None => config,
        }
    }
}

/// Reads a file of certificates. A file without any would trust no server, and the error would
/// blame the server.
fn certificates(option: &str, path: PathBuf) -> Result<(PathBuf, Vec<u8>), CliError> {
    let pem = files::bytes(&path)?;
    let mut found = CertificateDer::pem_slice_iter(&pem).peekable();
    let problem = match found.peek() {
        None => Some("no certificate in PEM is in it".to_owned()),
        Some(_) => found.find_map(Result::err).map(|error| error.to_string()),
    };
    match problem {
        None => Ok((path, pem)),
        Some(problem) => Err(CliError::Usage(format!(
            "{option} {}: {problem}",
            path.display()
        ))),
    }
}

fn private_key(path: PathBuf) -> Result<(PathBuf, Vec<u8>), CliError> {
    let pem = files::bytes(&path)?;
    // The cause could quote the file, and the file is a secret.
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(_) => Ok((path, pem)),
        Err(_) => Err(CliError::Usage(format!(
            "--tls-key {}: no private key in PEM is in it, or it is encrypted",
            path.display()
        ))),
    }
}

fn text(path: &Path) -> Result<String, CliError> {
    // Editors end a file with a line feed, which is not part of the token.
    Ok(files::text(path)?.trim().to_owned())
}

fn is_here(uri: &http::Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    // The host of an IPv6 address is in brackets.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// An error and its causes, the deepest last.
fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut causes = vec![error.to_string()];
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
        causes.push(error.to_string());
    }
    causes
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    chain(error).pop().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(endpoint: &str) -> ConnectionArgs {
        ConnectionArgs {
            endpoint: Some(endpoint.to_owned()),
            ..ConnectionArgs::default()
        }
    }

    fn refusal(args: ConnectionArgs, token: Option<&str>) -> String {
        let refused = Connection::new(args, token.map(str::to_owned));
        refused.expect_err("refused").to_string()
    }

    #[test]
    fn a_token_leaves_this_machine_under_tls_or_not_at_all() {
        let token = || Some("t".to_owned());
        for here in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1"] {
            assert!(Connection::new(args(here), token()).is_ok(), "{here}");
        }
        let elsewhere = args("http://192.0.2.1:1");
        assert!(refusal(elsewhere.clone(), Some("t")).contains("in the clear"));
        assert!(Connection::new(elsewhere.clone(), None).is_ok());
        let insecure = ConnectionArgs {
            insecure_send_token: true,
            ..elsewhere
        };
        assert!(Connection::new(insecure, token()).is_ok());
        assert!(Connection::new(args("https://192.0.2.1:1"), token()).is_ok());
    }

    #[test]
    fn what_does_not_go_together_is_said() {
        let directory = tempfile::tempdir().expect("a directory");
        let pem = directory.path().join("a.pem");
        let made = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).expect("made");
        std::fs::write(&pem, made.cert.pem()).expect("writable");
        let cases: [(ConnectionArgs, &str); 6] = [
            (args("ftp://x"), "https://"),
            (args("127.0.0.1:1"), "http"),
            (
                ConnectionArgs {
                    tls_ca: Some(pem.clone()),
                    ..args("http://127.0.0.1:1")
                },
                "https://127.0.0.1:1",
            ),
            (
                ConnectionArgs {
                    tls_cert: Some(pem.clone()),
                    ..args("https://127.0.0.1:1")
                },
                "--tls-key",
            ),
            (
                ConnectionArgs {
                    tls_key: Some(pem),
                    ..args("https://127.0.0.1:1")
                },
                "--tls-cert",
            ),
            (
                ConnectionArgs {
                    token_file: Some("/nowhere".into()),
                    ..args("https://127.0.0.1:1")
                },
                "/nowhere",
            ),
        ];
        for (args, expected) in cases {
            let message = refusal(args, None);
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn files_of_a_profile_lie_beside_it_and_options_win_over_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("profile.toml");
        let text = "endpoint = \"https://a:1\"\ntoken_file = \"token\"\n";
        std::fs::write(&path, text).expect("writable");
        std::fs::write(directory.path().join("token"), "secret\n").expect("writable");
        let named = ConnectionArgs {
            profile: Some(path.clone()),
            ..ConnectionArgs::default()
        };
        let connection = Connection::new(named.clone(), None).expect("a good profile");
        assert_eq!(connection.endpoint, "https://a:1");
        assert_eq!(connection.bearer_token.as_deref(), Some("secret"));
        assert!(!format!("{connection:?}").contains("secret"));
        let over = ConnectionArgs {
            endpoint: Some("https://b:2".to_owned()),
            ..named.clone()
        };
        let connection = Connection::new(over, None).expect("a good profile");
        assert_eq!(connection.endpoint, "https://b:2");
        std::fs::write(&path, "endpont = \"x\"\n").expect("writable");
        assert!(refusal(named, None).contains("endpont"));
    }
}
