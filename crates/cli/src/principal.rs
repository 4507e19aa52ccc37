//! Principals: given as text, or computed from a URI, a certificate, a token or a key id.
//!
//! Owns the arguments that name a principal. The digests are the daemon's own functions.

use std::path::{Path, PathBuf};

use clap::Args;
use evidenceos_access::{IdentityKind, PeerCertificate, principal};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;

use crate::{
    error::CliError,
    files,
    output::{Output, value},
};

/// The source from which a principal is computed.
#[derive(Debug, Clone, Default, Args)]
#[group(multiple = false)]
pub struct Selector {
    /// The principal with this URI in its client certificate.
    #[arg(long, value_name = "URI")]
    uri: Option<String>,
    /// The principal with this first DNS name, and no URI, in its client certificate.
    #[arg(long, value_name = "NAME")]
    dns: Option<String>,
    /// The principal with this client certificate, PEM or DER.
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The principal with the bearer token in this file.
    #[arg(long, value_name = "FILE")]
    of_token: Option<PathBuf>,
    /// The principal that signs requests under this key id.
    #[arg(long, value_name = "ID")]
    hmac_key_id: Option<String>,
}

impl Selector {
    /// The computed principal; `None` if there is nothing to compute it from.
    fn selected(&self) -> Result<Option<String>, CliError> {
        if let Some(uri) = &self.uri {
            return Ok(Some(principal::certificate(IdentityKind::Uri, uri)));
        }
        if let Some(name) = &self.dns {
            return Ok(Some(principal::certificate(IdentityKind::Dns, name)));
        }
        if let Some(path) = &self.cert {
            return of_certificate(path).map(Some);
        }
        if let Some(path) = &self.of_token {
            let token = files::text(path)?;
            return Ok(Some(principal::bearer(token.trim().as_bytes())));
        }
        Ok(self.hmac_key_id.as_deref().map(principal::hmac))
    }

    /// The computed or given principal, if there is one.
    fn or_written(&self, written: Option<&str>) -> Result<Option<String>, CliError> {
        match (self.selected()?, written) {
            (Some(_), Some(written)) => Err(CliError::Usage(format!(
                "{written:?} and an option name a principal each; give one"
            ))),
            (Some(selected), None) => Ok(Some(selected)),
            // A server may have accounts with other names, which an old accounts.json brought in: the server knows
            // them, and answers accordingly.
            (None, written) => written.map(plausible).transpose(),
        }
    }
}

/// One principal: given or computed.
#[derive(Debug, Clone, Default, Args)]
pub struct PrincipalArgs {
    /// The principal: mtls:, bearer: or hmac: and 64 hex digits, or `anonymous`.
    principal: Option<String>,
    #[command(flatten)]
    by: Selector,
}

impl PrincipalArgs {
    /// The principal; `None` if no argument names one.
    ///
    /// # Errors
    /// [`CliError::Usage`] for a text that is not a principal, with the valid forms.
    pub fn named(&self) -> Result<Option<String>, CliError> {
        self.by.or_written(self.principal.as_deref())
    }
}

/// A principal and a number of credits. The number comes last, so that an option can replace the principal.
#[derive(Debug, Clone, Args)]
pub struct PrincipalAndCredits {
    /// The principal, unless an option names it, and the number of credits.
    #[arg(required = true, num_args = 1..=2, value_names = ["PRINCIPAL", "CREDITS"])]
    words: Vec<String>,
    #[command(flatten)]
    by: Selector,
}

impl PrincipalAndCredits {
    /// The principal and the credits.
    ///
    /// # Errors
    /// [`CliError::Usage`] if one is missing, or a word is invalid for its place.
    pub fn parsed(&self) -> Result<(String, u64), CliError> {
        let (written, credits) = match &self.words[..] {
            [written, credits] => (Some(written.as_str()), credits.as_str()),
            [credits] => (None, credits.as_str()),
            _ => (None, ""),
        };
        let parsed = credits.replace([',', '_'], "").parse().map_err(|_| {
            CliError::Usage(format!(
                "{credits:?} is no number of credits; write PRINCIPAL CREDITS, or CREDITS with --uri, --dns, --cert, --of-token or --hmac-key-id"
            ))
        })?;
        Ok((named_by(self.by.or_written(written)?)?, parsed))
    }
}

fn named_by(principal: Option<String>) -> Result<String, CliError> {
    principal.ok_or_else(|| {
        CliError::Usage(
            "name the principal, or give one of --uri, --dns, --cert, --of-token and --hmac-key-id"
                .to_owned(),
        )
    })
}

/// Refuses a text that cannot be a principal, and suggests what was meant.
fn plausible(text: &str) -> Result<String, CliError> {
    let meant = if text.contains("://") {
        Some(("a URI", format!("--uri {text}")))
    } else if Path::new(text).is_file() {
        Some(("a file", format!("--cert {text}, or --of-token {text}")))
    } else if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let kinds = ["mtls", "bearer", "hmac"].map(|kind| format!("{kind}:{}", &text[..6]));
        Some((
            "a digest without its kind",
            format!("{}…, {}… or {}…", kinds[0], kinds[1], kinds[2]),
        ))
    } else {
        let lower = text.to_ascii_lowercase();
        let is_case_alone = lower != text && principal::is_principal(&lower);
        is_case_alone.then_some(("in upper case", lower))
    };
    match meant {
        None => Ok(text.to_owned()),
        Some((what, instead)) => Err(CliError::Usage(format!(
            "{text:?} is {what}, not a principal; write {instead}"
        ))),
    }
}

fn of_certificate(path: &Path) -> Result<String, CliError> {
    let bytes = files::bytes(path)?;
    let wrong = |problem: String| CliError::Usage(format!("--cert {}: {problem}", path.display()));
    // The first certificate of a PEM file is the owner's; a file that is not PEM is DER.
    let der = match CertificateDer::pem_slice_iter(&bytes).next() {
        Some(Ok(der)) => der.to_vec(),
        Some(Err(error)) => return Err(wrong(error.to_string())),
        None => bytes,
    };
    let certificate = PeerCertificate::read(&der).map_err(|error| wrong(error.to_string()))?;
    Ok(certificate.principal())
}

/// `evidenceos principal`.
#[derive(Debug, Args)]
#[command(
    after_help = "Prints the name under which a caller owns claims and credit. Role policies can deny it; grants and limits take it.\n\n\
    Examples:\n  \
    evidenceos principal --uri spiffe://example.org/alice\n  \
    evidenceos principal --cert ops/clients/submitter/tls.crt\n  \
    evidenceos principal --of-token ops/clients/ci/token"
)]
pub struct PrincipalCommand {
    #[command(flatten)]
    of: PrincipalArgs,
}

impl PrincipalCommand {
    /// Runs the command and returns what it prints.
    pub fn run(self) -> Result<Output, CliError> {
        let name = named_by(self.of.named()?)?;
        if !principal::is_principal(&name) {
            return Err(CliError::Usage(format!(
                "{:?} is not a principal: write mtls:, bearer: or hmac: and 64 lowercase hex digits",
                value(&name)
            )));
        }
        Ok(Output::new(json!({ "principal": name }), name))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Alone {
        #[command(flatten)]
        of: PrincipalArgs,
    }

    fn named(arguments: &[&str]) -> Result<Option<String>, String> {
        let words = ["x"].iter().chain(arguments);
        let parsed = Alone::try_parse_from(words).map_err(|error| error.to_string())?;
        parsed.of.named().map_err(|error| error.to_string())
    }

    #[test]
    fn a_principal_is_computed_from_what_is_at_hand() {
        let spiffe = "mtls:0f57071af5f1d5d2121926529e768131c0685bded541ee354f5a7f3200df51b9";
        let by_uri = named(&["--uri", "spiffe://lab/submitter"]);
        assert_eq!(by_uri, Ok(Some(spiffe.to_owned())));
        assert_eq!(named(&[spiffe]), Ok(Some(spiffe.to_owned())));
        assert_eq!(named(&[]), Ok(None));
        let directory = tempfile::tempdir().expect("a directory");
        let token = directory.path().join("token");
        // An editor on Windows leaves a byte order mark and a line end, which are not part of it.
        std::fs::write(&token, "\u{feff}t\r\n").expect("writable");
        let path = token.to_str().expect("UTF-8");
        let by_token = named(&["--of-token", path]).expect("a token");
        assert_eq!(by_token, Some(principal::bearer(b"t")));
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).expect("made");
        for (name, bytes) in [
            ("pem", made.cert.pem().into_bytes()),
            ("der", made.cert.der().to_vec()),
        ] {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).expect("writable");
            let by_cert = named(&["--cert", path.to_str().expect("UTF-8")]).expect("a certificate");
            let by_name = named(&["--dns", "a.example"]).expect("a name");
            assert_eq!(by_cert, by_name, "{name}");
        }
        let refused = named(&["--cert", path]).expect_err("no certificate");
        assert!(refused.contains("--cert"), "{refused}");
    }

    #[test]
    fn what_was_meant_is_said() {
        let digest = "ab".repeat(32);
        for (text, part) in [
            ("spiffe://lab/alice", "--uri spiffe://lab/alice"),
            (&*digest, "mtls:ababab"),
            (&*format!("BEARER:{digest}"), "bearer:abab"),
            ("Cargo.toml", "--cert Cargo.toml"),
        ] {
            let refused = named(&[text]).expect_err(text);
            assert!(refused.contains(part), "{refused}");
        }
        assert!(named(&["a", "--uri", "spiffe://lab/a"]).is_err());
        assert!(named(&["--dns", "a", "--uri", "spiffe://lab/a"]).is_err());
    }

    #[test]
    fn credits_stand_last() {
        #[derive(Debug, Parser)]
        struct Both {
            #[command(flatten)]
            both: PrincipalAndCredits,
        }
        let parsed = |arguments: &[&str]| {
            let words = ["x"].iter().chain(arguments);
            let both = Both::try_parse_from(words).map_err(|error| error.to_string())?;
            both.both.parsed().map_err(|error| error.to_string())
        };
        let alice = principal::certificate(IdentityKind::Uri, "spiffe://lab/a");
        assert_eq!(parsed(&[&alice, "5"]), Ok((alice.clone(), 5)));
        assert_eq!(
            parsed(&["20,000", "--uri", "spiffe://lab/a"]),
            Ok((alice, 20_000))
        );
        for (wrong, part) in [
            (&["anonymous"][..], "no number of credits"),
            (&["5"], "name the principal"),
            (&["anonymous", "5", "--dns", "a"], "give one"),
            (&["anonymous", "-5"], "-5"),
        ] {
            let refused = parsed(wrong).expect_err("refused");
            assert!(refused.contains(part), "{refused}");
        }
    }
}
