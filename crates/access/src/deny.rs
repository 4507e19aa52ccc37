//! Denied callers: the `[[deny]]` entries of the role policy. Pure: a table in, an answer out.
//!
//! An entry names its callers by exactly one selector and wins over every rule. Every credential of
//! a call is checked, so that a token does not admit a denied certificate, nor a certificate a
//! denied token. Entries match broadly: a URI that ends in `/` denies every URI that begins so, and
//! a DNS name denies every certificate that has it among its names, in upper or lower case.

use std::collections::HashSet;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{
    IdentityKind, PeerCertificate,
    certificate::without_leading_zeros,
    policy::{digest, dns, hmac_key_id, one_line, uri},
    principal,
};

/// The longest serial number of a certificate in bytes: RFC 5280, 4.1.2.2, with some slack.
const MAX_SERIAL_BYTES: usize = 32;

/// All entries.
#[derive(Debug, Clone, Default)]
pub(crate) struct Denials(HashSet<Denied>);

/// The callers that an entry denies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Denied {
    Uri(String),
    /// A DNS name in lower case.
    Dns(String),
    /// Without leading zero bytes.
    Serial(Vec<u8>),
    CertSha256([u8; 32]),
    /// A name as [`principal`] makes it; tokens and keys are denied by it too.
    Principal(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    uri: Option<String>,
    dns: Option<String>,
    serial: Option<String>,
    cert_sha256: Option<String>,
    token_sha256: Option<String>,
    hmac_key_id: Option<String>,
    principal: Option<String>,
}

impl Denials {
    /// Adds an entry; a repeated one changes nothing.
    ///
    /// # Errors
    /// The problems of the entry, without any of its values.
    pub fn add(&mut self, table: toml::Table) -> Result<(), Vec<String>> {
        let entry: Entry = table
            .try_into()
            .map_err(|error: toml::de::Error| vec![one_line(error.message())])?;
        let selectors = [
            entry.uri.map(|name| uri(name).map(Denied::Uri)),
            entry
                .dns
                .map(|name| dns(name).map(|name| Denied::Dns(name.to_ascii_lowercase()))),
            entry.serial.map(|text| serial(&text).map(Denied::Serial)),
            entry
                .cert_sha256
                .map(|hex| digest("cert_sha256", &hex).map(Denied::CertSha256)),
            entry
                .token_sha256
                .map(|hex| digest("token_sha256", &hex).map(of_token)),
            entry.hmac_key_id.map(|key_id| {
                hmac_key_id(key_id).map(|id| Denied::Principal(principal::hmac(&id)))
            }),
            entry
                .principal
                .map(|name| known_principal(name).map(Denied::Principal)),
        ];
        let mut named: Vec<_> = selectors.into_iter().flatten().collect();
        match (named.pop(), named.is_empty()) {
            (Some(Ok(denied)), true) => {
                self.0.insert(denied);
                Ok(())
            }
            (Some(Err(problem)), true) => Err(vec![problem]),
            _ => Err(vec![
                "needs exactly one of uri, dns, serial, cert_sha256, token_sha256, hmac_key_id and \
                 principal"
                    .into(),
            ]),
        }
    }

    /// Whether a certificate is denied, by any of its names, its number, its digest or its principal.
    pub fn certificate(&self, certificate: &PeerCertificate) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let mut marks = vec![
            Denied::Serial(certificate.serial.clone()),
            Denied::CertSha256(certificate.sha256),
            Denied::Principal(certificate.principal()),
        ];
        // DNS names are case-insensitive: another spelling must not pass an entry.
        let dns_names = certificate.dns_names.iter();
        marks.extend(dns_names.map(|name| Denied::Dns(name.to_ascii_lowercase())));
        if certificate.kind == IdentityKind::Uri {
            let name = &certificate.name;
            // An entry that ends in `/` denies all below it, so each prefix up to a slash is looked
            // up: the time does not grow with the number of entries.
            let prefixes = name.match_indices('/').map(|(at, _)| &name[..=at]);
            let uris = prefixes.chain([name.as_str()]);
            marks.extend(uris.map(|uri| Denied::Uri(uri.to_owned())));
        }
        marks.iter().any(|mark| self.0.contains(mark))
    }

    /// Whether a principal is denied: a token's or a key's, which have no other names.
    pub fn principal(&self, name: &str) -> bool {
        !self.0.is_empty() && self.0.contains(&Denied::Principal(name.to_owned()))
    }
}

/// A token is known by its principal, which contains the same digest.
fn of_token(sha256: [u8; 32]) -> Denied {
    Denied::Principal(principal::bearer_of(&sha256))
}

/// Hex as OpenSSL prints it: any case, a colon between bytes or none, leading zeros or none.
fn serial(text: &str) -> Result<Vec<u8>, String> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let even = if digits.len().is_multiple_of(2) {
        digits
    } else {
        format!("0{digits}")
    };
    let bytes = hex::decode(even)
        .ok()
        .map(|bytes| without_leading_zeros(&bytes).to_vec());
    bytes
        .filter(|bytes| (1..=MAX_SERIAL_BYTES).contains(&bytes.len()))
        .ok_or_else(|| {
            "serial must be the certificate's number in hex, as `openssl x509 -noout -serial` prints \
             it"
                .into()
        })
}

/// Refuses a text in another form than a principal's: it would deny no caller.
fn known_principal(name: String) -> Result<String, String> {
    let is_digest = |digits: &str| {
        digits.len() == 2 * Sha256::output_size()
            && digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    match name.split_once(':') {
        Some(("mtls" | "bearer" | "hmac", digits)) if is_digest(digits) => Ok(name),
        _ => Err(
            "principal must be mtls:, bearer: or hmac: and 64 lowercase hex digits, as \
             `evidenceos account list` shows it"
                .into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClientAuth, Policy};

    fn certificate() -> PeerCertificate {
        PeerCertificate {
            kind: IdentityKind::Uri,
            name: "spiffe://lab/submitter/alice".to_owned(),
            dns_names: vec!["Runner.example".to_owned()],
            serial: vec![0x01, 0xab],
            sha256: [0xaa; 32],
            client_auth: ClientAuth::Allowed,
            not_before_unix: 0,
            not_after_unix: 1,
        }
    }

    fn denials(entry: &str) -> Result<Denials, Vec<String>> {
        let policy = Policy::parse("f", &format!("[[deny]]\n{entry}\n"))?;
        Ok(policy.denials().clone())
    }

    #[test]
    fn a_certificate_is_denied_by_any_of_its_marks() {
        let digest = "aa".repeat(32);
        let own = certificate().principal();
        for (entry, denied) in [
            (r#"uri = "spiffe://lab/submitter/alice""#.to_owned(), true),
            (r#"uri = "spiffe://lab/submitter/""#.to_owned(), true),
            (r#"uri = "spiffe://lab/""#.to_owned(), true),
            (r#"uri = "spiffe://lab/submitter/alic""#.to_owned(), false),
            (r#"uri = "spiffe://lab/submitter""#.to_owned(), false),
            (r#"uri = "spiffe://lab/submitter/alice/""#.to_owned(), false),
            (r#"dns = "runner.example""#.to_owned(), true),
            (r#"dns = "RUNNER.EXAMPLE""#.to_owned(), true),
            (r#"dns = "example""#.to_owned(), false),
            (r#"serial = "01AB""#.to_owned(), true),
            (r#"serial = "1ab""#.to_owned(), true),
            (r#"serial = "00:01:ab""#.to_owned(), true),
            (r#"serial = "01ab00""#.to_owned(), false),
            (format!("cert_sha256 = \"{digest}\""), true),
            (format!("cert_sha256 = \"{}\"", digest.to_uppercase()), true),
            (format!("cert_sha256 = \"{}\"", "ab".repeat(32)), false),
            (format!("principal = \"{own}\""), true),
            (format!("principal = \"hmac:{}\"", &own[5..]), false),
            (format!("token_sha256 = \"{}\"", &own[5..]), false),
        ] {
            let held = denials(&entry).expect("an entry");
            assert_eq!(held.certificate(&certificate()), denied, "{entry}");
        }
        assert!(!Denials::default().certificate(&certificate()));
    }

    #[test]
    fn tokens_and_keys_are_denied_by_digest_by_id_or_by_principal() {
        let token = principal::bearer(b"t");
        let digest = hex::encode(Sha256::digest(b"t"));
        let key = principal::hmac("ci");
        for (entry, name, denied) in [
            (format!("token_sha256 = \"{digest}\""), &token, true),
            (format!("principal = \"{token}\""), &token, true),
            (r#"hmac_key_id = "ci""#.to_owned(), &key, true),
            (format!("principal = \"{key}\""), &key, true),
            (r#"hmac_key_id = "ci2""#.to_owned(), &key, false),
            (r#"hmac_key_id = "ci""#.to_owned(), &token, false),
        ] {
            let held = denials(&entry).expect("an entry");
            assert_eq!(held.principal(name), denied, "{entry}");
        }
    }

    #[test]
    fn an_entry_that_would_deny_nobody_or_everybody_is_refused() {
        let digest = "A".repeat(64);
        for (entry, words) in [
            (String::new(), "needs exactly one"),
            (
                "uri = \"spiffe://lab/a\"\ndns = \"a\"".to_owned(),
                "needs exactly one",
            ),
            ("uri = \"spiffe://\"".to_owned(), "uri must be"),
            ("uri = \"\"".to_owned(), "uri must be"),
            (r#"uri = "spiffe://lab/a\n""#.to_owned(), "uri must be"),
            ("dns = \"*.example\"".to_owned(), "dns must be"),
            ("serial = \"\"".to_owned(), "serial must be"),
            ("serial = \"0\"".to_owned(), "serial must be"),
            ("serial = \"0x01\"".to_owned(), "serial must be"),
            ("serial = 12".to_owned(), "invalid type"),
            (
                format!("serial = \"{}\"", "ab".repeat(33)),
                "serial must be",
            ),
            (
                "cert_sha256 = \"hunter2\"".to_owned(),
                "cert_sha256 must be",
            ),
            (
                "token_sha256 = \"hunter2\"".to_owned(),
                "token_sha256 must be",
            ),
            ("hmac_key_id = \"a:b\"".to_owned(), "hmac_key_id must be"),
            ("principal = \"anonymous\"".to_owned(), "principal must be"),
            (
                format!("principal = \"mtls:{digest}\""),
                "principal must be",
            ),
            ("cn = \"operator\"".to_owned(), "unknown field `cn`"),
            (
                "uri = \"spiffe://lab/a\"\nroles = []".to_owned(),
                "unknown field `roles`",
            ),
        ] {
            let problems = denials(&entry).expect_err(&entry);
            let place = "f, deny 1 (line 1): ";
            let problem = problems[0].strip_prefix(place).expect("its place");
            assert!(problem.starts_with(words), "{entry}: {problem}");
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }
}
