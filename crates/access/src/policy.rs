//! The role policy: a TOML file of rules that assign roles. Pure: text in, rules or all of its
//! problems out.
//!
//! A rule names its callers by exactly one selector; no two rules have the same selector. The most
//! specific rule decides alone: the certificate's digest before its name, an exact name before a
//! prefix, a longer prefix before a shorter one. An authenticated caller that no rule names gets
//! `default`.
//!
//! `[[deny]]` entries deny callers whatever the rules say; see [`crate::deny`].

use std::collections::HashMap;

use serde::Deserialize;
use toml::Spanned;

use crate::{
    IdentityKind, PeerCertificate, Roles, certificate::is_plain, deny::Denials,
    hmac::is_identifier, principal, token::TokenDigest,
};

/// The rules of a file.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    default: Roles,
    rules: HashMap<Selector, Roles>,
    /// The principals that own tokens, if a token is not a principal of its own.
    token_owners: HashMap<TokenDigest, String>,
    /// The names of principals.
    names: HashMap<String, String>,
    denials: Denials,
    /// The file's text; `None` without a file.
    text: Option<String>,
}

/// The callers of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Selector {
    /// A certificate's URI; if it ends in `/`, every URI that begins so.
    Uri(String),
    /// A certificate's DNS name.
    Dns(String),
    /// The SHA-256 of a certificate's DER.
    CertSha256([u8; 32]),
    /// A bearer token, which the rule makes valid.
    TokenSha256(TokenDigest),
    /// A key that signs requests.
    HmacKeyId(String),
}

/// The file. A rule stays a table here, so that a problem in it does not hide those of the next
/// one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Option<Spanned<String>>,
    #[serde(default, rename = "rule")]
    rules: Vec<Spanned<toml::Table>>,
    #[serde(default)]
    deny: Vec<Spanned<toml::Table>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    uri: Option<String>,
    dns: Option<String>,
    cert_sha256: Option<String>,
    token_sha256: Option<String>,
    hmac_key_id: Option<String>,
    roles: Vec<String>,
    name: Option<String>,
    principal: Option<String>,
}

/// A parsed rule.
struct Ruled {
    selector: Selector,
    roles: Roles,
    name: Option<String>,
    /// The principal that owns the token.
    owner: Option<String>,
}

impl Ruled {
    /// The principal of the rule and its name: the rule's name, otherwise the selector's. `None` for a rule about many
    /// principals, or if the rule does not determine the principal.
    fn named(&self) -> Option<(String, String)> {
        let (principal, by_itself) = match &self.selector {
            Selector::Uri(uri) if uri.ends_with('/') => return None,
            Selector::Uri(uri) => (
                principal::certificate(IdentityKind::Uri, uri),
                Some(uri.clone()),
            ),
            Selector::Dns(name) => (
                principal::certificate(IdentityKind::Dns, name),
                Some(name.clone()),
            ),
            Selector::HmacKeyId(key_id) => (principal::hmac(key_id), Some(key_id.clone())),
            Selector::TokenSha256(digest) => {
                let own = || principal::bearer_of(digest);
                (self.owner.clone().unwrap_or_else(own), None)
            }
            // The principal follows from the certificate's URI or DNS name, which the rule does not
            // have.
            Selector::CertSha256(_) => return None,
        };
        self.name
            .clone()
            .or(by_itself)
            .map(|name| (principal, name))
    }
}

impl Policy {
    /// The rules without a file: every authenticated caller is a submitter.
    #[must_use]
    pub fn submitters() -> Self {
        Self {
            default: Roles::SUBMITTER,
            ..Self::default()
        }
    }

    /// The text of the file.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// Parses a file's text.
    ///
    /// # Errors
    /// All problems, each with `source`, the number of the rule or deny entry, and its line.
    pub fn parse(source: &str, text: &str) -> Result<Self, Vec<String>> {
        let file: File = toml::from_str(text).map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            vec![format!(
                "{source}, line {line}: {}",
                one_line(error.message())
            )]
        })?;
        let mut problems = Vec::new();
        let mut policy = Self {
            text: Some(text.to_owned()),
            ..Self::default()
        };
        if let Some(default) = file.default {
            match default.get_ref().parse() {
                Ok(roles) => policy.default = roles,
                Err(_) => problems.push(format!(
                    "{source}, line {}: default must be \"none\" or a role",
                    line_of(text, default.span().start)
                )),
            }
        }
        let mut first_at = HashMap::new();
        for (at, table) in (1..).zip(file.rules) {
            let line = line_of(text, table.span().start);
            let place = format!("{source}, rule {at} (line {line})");
            match rule(table.into_inner()) {
                Ok(ruled) => match first_at.get(&ruled.selector) {
                    Some(first) => {
                        problems.push(format!("{place}: the same selector as rule {first}"));
                    }
                    None => {
                        first_at.insert(ruled.selector.clone(), at);
                        policy.add(ruled);
                    }
                },
                Err(wrong) => {
                    problems.extend(wrong.iter().map(|problem| format!("{place}: {problem}")));
                }
            }
        }
        for (at, table) in (1..).zip(file.deny) {
            let line = line_of(text, table.span().start);
            if let Err(wrong) = policy.denials.add(table.into_inner()) {
                let place = format!("{source}, deny {at} (line {line})");
                problems.extend(wrong.iter().map(|problem| format!("{place}: {problem}")));
            }
        }
        if problems.is_empty() {
            Ok(policy)
        } else {
            Err(problems)
        }
    }

    fn add(&mut self, ruled: Ruled) {
        self.names.extend(ruled.named());
        if let (Selector::TokenSha256(digest), Some(owner)) = (&ruled.selector, ruled.owner) {
            self.token_owners.insert(*digest, owner);
        }
        self.rules.insert(ruled.selector, ruled.roles);
    }

    /// Principals and their names.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        let names = self.names.iter();
        names.map(|(principal, name)| (principal.as_str(), name.as_str()))
    }

    /// The principal that owns the token with a digest, if the policy gives it an owner.
    pub(crate) fn token_owner(&self, digest: &TokenDigest) -> Option<&str> {
        self.token_owners.get(digest).map(String::as_str)
    }

    /// The deny entries.
    pub(crate) fn denials(&self) -> &Denials {
        &self.denials
    }

    /// The roles of a verified certificate.
    #[must_use]
    pub fn certificate(&self, certificate: &PeerCertificate) -> Roles {
        let name = || certificate.name.clone();
        self.rule(&Selector::CertSha256(certificate.sha256))
            .or_else(|| match certificate.kind {
                IdentityKind::Uri => self
                    .rule(&Selector::Uri(name()))
                    .or_else(|| self.longest_prefix(&certificate.name)),
                IdentityKind::Dns => self.rule(&Selector::Dns(name())),
                IdentityKind::Cert => None,
            })
            .unwrap_or(self.default)
    }

    /// The roles of a key that signs requests.
    #[must_use]
    pub fn hmac_key(&self, key_id: &str) -> Roles {
        self.rule(&Selector::HmacKeyId(key_id.to_owned()))
            .unwrap_or(self.default)
    }

    /// The tokens that rules name, and thereby make valid.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = (TokenDigest, Roles)> {
        self.rules
            .iter()
            .filter_map(|(selector, roles)| match selector {
                Selector::TokenSha256(digest) => Some((*digest, *roles)),
                _ => None,
            })
    }

    fn rule(&self, selector: &Selector) -> Option<Roles> {
        self.rules.get(selector).copied()
    }

    /// Tries the URI up to each `/`, the longest prefix first: a prefix ends in one.
    fn longest_prefix(&self, uri: &str) -> Option<Roles> {
        uri.rmatch_indices('/')
            .find_map(|(at, _)| self.rule(&Selector::Uri(uri[..=at].to_owned())))
    }
}

/// Parses one rule, or returns all its problems.
fn rule(table: toml::Table) -> Result<Ruled, Vec<String>> {
    let rule: Rule = table
        .try_into()
        .map_err(|error: toml::de::Error| vec![one_line(error.message())])?;
    let mut problems = Vec::new();
    let selectors = [
        rule.uri.map(|name| uri(name).map(Selector::Uri)),
        rule.dns.map(|name| dns(name).map(Selector::Dns)),
        rule.cert_sha256
            .map(|hex| digest("cert_sha256", &hex).map(Selector::CertSha256)),
        rule.token_sha256
            .map(|hex| digest("token_sha256", &hex).map(Selector::TokenSha256)),
        rule.hmac_key_id
            .map(|key_id| hmac_key_id(key_id).map(Selector::HmacKeyId)),
    ];
    let mut named: Vec<_> = selectors.into_iter().flatten().collect();
    let selector = match (named.pop(), named.is_empty()) {
        (Some(Ok(selector)), true) => Some(selector),
        (Some(Err(problem)), true) => {
            problems.push(problem);
            None
        }
        _ => {
            problems.push(
                "needs exactly one of uri, dns, cert_sha256, token_sha256 and hmac_key_id".into(),
            );
            None
        }
    };
    if rule.roles.is_empty() {
        problems.push(
            "roles must not be empty: to shut a caller out, write the selector under [[deny]]; a \
             caller of no rule has the default"
                .into(),
        );
    }
    let roles = roles_of(&rule.roles, &mut problems);
    problems.extend(naming_problems(
        rule.name.as_deref(),
        rule.principal.as_deref(),
        selector.as_ref(),
    ));
    match selector {
        Some(selector) if problems.is_empty() => Ok(Ruled {
            selector,
            roles,
            name: rule.name,
            owner: rule.principal,
        }),
        _ => Err(problems),
    }
}

/// The union of the roles with these names.
fn roles_of(names: &[String], problems: &mut Vec<String>) -> Roles {
    let mut roles = Roles::NONE;
    for name in names {
        // "none" and "a+b" parse as sets of roles, but are not roles.
        match name.parse::<Roles>() {
            Ok(one) if one.to_string() == *name && !one.is_empty() && !name.contains('+') => {
                roles = roles.union(one);
            }
            _ => problems.push(format!("{name:?}: {}", crate::UnknownRole)),
        }
    }
    roles
}

/// Problems of the name that a rule gives a principal, and of the principal that it gives a token.
fn naming_problems(
    name: Option<&str>,
    owner: Option<&str>,
    selector: Option<&Selector>,
) -> Vec<String> {
    let mut problems = Vec::new();
    if name.is_some_and(|name| !is_shown(name)) {
        problems.push("name must be 1 to 128 characters, none of them a control character".into());
    }
    let is_token = matches!(selector, Some(Selector::TokenSha256(_)));
    match owner {
        Some(_) if selector.is_some() && !is_token => problems.push(
            "principal goes with token_sha256 alone: a certificate or a key that is renewed keeps its principal".into(),
        ),
        Some(owner) if !principal::is_principal(owner) || owner == principal::ANONYMOUS => problems
            .push("principal must be mtls:, bearer: or hmac: and 64 lowercase hex digits, as `evidenceos server info` shows it".into()),
        _ => {}
    }
    problems
}

fn is_shown(name: &str) -> bool {
    (1..=128).contains(&name.chars().count()) && !name.chars().any(char::is_control)
}

/// A URI that a selector names.
pub(crate) fn uri(uri: String) -> Result<String, String> {
    // "spiffe://" would match every caller.
    let is_all = uri
        .strip_suffix('/')
        .is_some_and(|prefix| prefix.is_empty() || prefix.ends_with(['/', ':']));
    if uri.is_empty() || is_all || !is_plain(&uri) {
        return Err(
            "uri must be a whole URI, or end in \"/\" after its authority, of characters of \
             0x21-0x7e"
                .into(),
        );
    }
    Ok(uri)
}

/// A DNS name that a selector names.
pub(crate) fn dns(name: String) -> Result<String, String> {
    if name.is_empty() || name.contains('*') || !is_plain(&name) {
        return Err("dns must be one whole name of ASCII; there are no wildcards".into());
    }
    Ok(name)
}

/// A key id that a selector names.
pub(crate) fn hmac_key_id(key_id: String) -> Result<String, String> {
    if !is_identifier(key_id.as_bytes()) {
        return Err("hmac_key_id must be 1 to 128 characters of 0x21-0x7e without \":\"".into());
    }
    Ok(key_id)
}

/// The text is not repeated: it may be a token in the wrong place.
pub(crate) fn digest(name: &str, text: &str) -> Result<[u8; 32], String> {
    let mut digest = [0; 32];
    match hex::decode_to_slice(text, &mut digest) {
        Ok(()) => Ok(digest),
        Err(_) => Err(format!("{name} must be SHA-256 in 64 hex digits")),
    }
}

/// The line that contains byte `at`, counted from 1.
fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

pub(crate) fn one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERT: &str = "aa00000000000000000000000000000000000000000000000000000000000000";

    fn certificate(kind: IdentityKind, name: &str) -> PeerCertificate {
        PeerCertificate {
            kind,
            name: name.to_owned(),
            dns_names: Vec::new(),
            serial: vec![1],
            sha256: [0; 32],
            client_auth: crate::ClientAuth::Allowed,
            not_before_unix: 0,
            not_after_unix: 1,
        }
    }

    #[test]
    fn the_best_rule_decides_alone() {
        let text = format!(
            r#"
            default = "auditor"
            [[rule]]
            uri = "spiffe://lab/"
            roles = ["auditor"]
            [[rule]]
            uri = "spiffe://lab/submitter/"
            roles = ["submitter"]
            [[rule]]
            uri = "spiffe://lab/submitter/boss"
            roles = ["operator", "auditor"]
            [[rule]]
            dns = "auditor.example"
            roles = ["auditor"]
            [[rule]]
            cert_sha256 = "{CERT}"
            roles = ["operator"]
            [[rule]]
            hmac_key_id = "ci"
            roles = ["submitter"]
            "#
        );
        let policy = Policy::parse("roles.toml", &text).expect("a policy");
        let operator_auditor = "auditor+operator".parse().expect("roles");
        let auditor: Roles = "auditor".parse().expect("roles");
        let cases = [
            (IdentityKind::Uri, "spiffe://lab/x", auditor),
            (IdentityKind::Uri, "spiffe://lab/submitter", auditor),
            (IdentityKind::Uri, "spiffe://lab/submitters/a", auditor),
            (
                IdentityKind::Uri,
                "spiffe://lab/submitter/a",
                Roles::SUBMITTER,
            ),
            (
                IdentityKind::Uri,
                "spiffe://lab/submitter/a/b",
                Roles::SUBMITTER,
            ),
            (
                IdentityKind::Uri,
                "spiffe://lab/submitter/boss",
                operator_auditor,
            ),
            (
                IdentityKind::Uri,
                "spiffe://lab/submitter/bosses",
                Roles::SUBMITTER,
            ),
            (
                IdentityKind::Uri,
                "spiffe://laboratory/submitter/boss",
                auditor,
            ),
            (IdentityKind::Dns, "auditor.example", auditor),
            (IdentityKind::Dns, "spiffe://lab/submitter/boss", auditor),
        ];
        for (kind, name, roles) in cases {
            assert_eq!(
                policy.certificate(&certificate(kind, name)),
                roles,
                "{name}"
            );
        }
        let mut pinned = certificate(IdentityKind::Uri, "spiffe://lab/submitter/a");
        pinned.sha256[0] = 0xaa;
        assert_eq!(policy.certificate(&pinned).to_string(), "operator");
        assert_eq!(policy.hmac_key("ci"), Roles::SUBMITTER);
        assert_eq!(policy.hmac_key("other"), auditor);
    }

    #[test]
    fn a_rule_names_its_principal() {
        let old = principal::bearer(b"old");
        let digest = |token: &[u8]| principal::bearer(token)["bearer:".len()..].to_owned();
        let text = format!(
            r#"
            [[rule]]
            uri = "spiffe://lab/"
            roles = ["auditor"]
            [[rule]]
            uri = "spiffe://lab/alice"
            roles = ["submitter"]
            [[rule]]
            hmac_key_id = "ci"
            name = "nightly builds"
            roles = ["submitter"]
            [[rule]]
            token_sha256 = "{}"
            name = "carol"
            principal = "{old}"
            roles = ["submitter"]
            "#,
            digest(b"new")
        );
        let policy = Policy::parse("f", &text).expect("a policy");
        let mut names: Vec<_> = policy.names().collect();
        names.sort_unstable();
        let alice = principal::certificate(IdentityKind::Uri, "spiffe://lab/alice");
        let ci = principal::hmac("ci");
        let mut expected = [
            (&*old, "carol"),
            (&*ci, "nightly builds"),
            (&*alice, "spiffe://lab/alice"),
        ];
        expected.sort_unstable();
        assert_eq!(names, expected);
        let new = hex::decode(digest(b"new")).expect("hex");
        let new: TokenDigest = new.try_into().expect("32 bytes");
        assert_eq!(policy.token_owner(&new), Some(&*old));
        let wrong = [
            (
                "uri = \"spiffe://lab/a\"",
                "principal = \"bearer:00\"",
                "token_sha256 alone",
            ),
            (
                "token_sha256 = \"00\"",
                "principal = \"carol\"",
                "must be mtls:",
            ),
            ("uri = \"spiffe://lab/a\"", "name = \"\"", "name must be"),
        ];
        for (selector, field, part) in wrong {
            let text = format!("[[rule]]\n{selector}\n{field}\nroles = [\"submitter\"]\n");
            let problems = Policy::parse("f", &text).expect_err(part).concat();
            assert!(problems.contains(part), "{problems}");
        }
    }

    #[test]
    fn a_caller_of_no_rule_has_no_role_unless_the_file_says_so() {
        let policy = Policy::parse("f", "").expect("an empty policy");
        assert!(policy.hmac_key("ci").is_empty());
        let peer = certificate(IdentityKind::Uri, "spiffe://lab/a");
        assert!(policy.certificate(&peer).is_empty());
        assert_eq!(Policy::submitters().certificate(&peer), Roles::SUBMITTER);
    }

    #[test]
    fn all_problems_of_a_file_are_told_with_rule_and_line() {
        let text = r#"default = "root"
[[rule]]
uri = "spiffe://lab/a"
dns = "a"
roles = ["submitter"]
[[rule]]
roles = []
[[rule]]
uri = "spiffe://"
roles = ["boss", "none"]
[[rule]]
token_sha256 = "hunter2"
roles = ["submitter"]
[[rule]]
dns = "a"
roles = ["submitter"]
[[rule]]
dns = "a"
roles = ["auditor"]
[[rule]]
dns = "*.example"
roles = "submitter"
[[rule]]
cn = "operator"
roles = ["operator"]
"#;
        let problems = Policy::parse("roles.toml", text).expect_err("many problems");
        let expected = [
            "roles.toml, line 1: default must be",
            "roles.toml, rule 1 (line 2): needs exactly one",
            "roles.toml, rule 2 (line 6): needs exactly one",
            "roles.toml, rule 2 (line 6): roles must not be empty",
            "roles.toml, rule 3 (line 8): uri must be",
            "roles.toml, rule 3 (line 8): \"boss\": a role is one of",
            "roles.toml, rule 3 (line 8): \"none\": a role is one of",
            "roles.toml, rule 4 (line 11): token_sha256 must be",
            "roles.toml, rule 6 (line 17): the same selector as rule 5",
            "roles.toml, rule 7 (line 20): invalid type",
            "roles.toml, rule 8 (line 23): unknown field `cn`",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.starts_with(expected), "{problem}");
        }
        assert!(!problems.concat().contains("hunter2"));
    }

    #[test]
    fn text_that_is_no_policy_is_refused_with_its_line() {
        for (text, line) in [("a", 1), ("\nrules = []", 2), ("\n\ndefault = 3", 3)] {
            let problems = Policy::parse("f", text).expect_err(text);
            assert!(
                problems[0].starts_with(&format!("f, line {line}: ")),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn digests_are_read_in_either_case_and_are_one_selector() {
        let upper = CERT.to_uppercase();
        let text = format!(
            "[[rule]]\ncert_sha256 = \"{CERT}\"\nroles = [\"operator\"]\n\
             [[rule]]\ncert_sha256 = \"{upper}\"\nroles = [\"operator\"]\n"
        );
        let problems = Policy::parse("f", &text).expect_err("the same twice");
        assert_eq!(
            problems,
            ["f, rule 2 (line 4): the same selector as rule 1"]
        );
    }
}
