//! The operator's settings of authentication, and which of them exclude each other.

use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::{
    Authenticator, HmacKeys, HmacRules, Policy, Roles, Tokens, authenticator::Methods, files,
    token::MAX_TOKEN_BYTES,
};

/// A configured secret. `Debug` of the settings does not show it.
type Secret = Option<Zeroizing<String>>;

/// All settings of authentication. Problems use the names of the daemon's flags and environment;
/// the code that reads a file puts its value here.
#[derive(Clone)]
pub struct AuthSettings {
    /// `--auth-token`: one token, submitter and auditor.
    pub auth_token: Secret,
    /// `--agent-tokens`: tokens of submitters, separated by commas.
    pub agent_tokens: Secret,
    /// `--auditor-tokens`: tokens of submitters that are auditors too, separated by commas.
    pub auditor_tokens: Secret,
    /// `--auth-hmac-key`: raw bytes of the key `default`.
    pub hmac_key: Secret,
    /// `EVIDENCEOS_HMAC_KEYS`: keys in hex with their ids, `kid:hex,kid2:hex`.
    pub hmac_keys: Secret,
    /// `EVIDENCEOS_HMAC_SHARED_SECRET`: raw bytes of the key `default`.
    pub hmac_shared_secret: Secret,
    /// The file of [`Policy`].
    pub policy: Option<PathBuf>,
    /// See [`HmacRules::require_timestamp`]; on by default.
    pub hmac_require_timestamp: bool,
    /// See [`HmacRules::accept_root_path`]; off by default.
    pub hmac_accept_root_path: bool,
    /// Whether the listener verifies client certificates, requested or required.
    pub client_certificates: bool,
}

impl Default for AuthSettings {
    /// Nothing is configured: the development server.
    fn default() -> Self {
        Self {
            auth_token: None,
            agent_tokens: None,
            auditor_tokens: None,
            hmac_key: None,
            hmac_keys: None,
            hmac_shared_secret: None,
            policy: None,
            hmac_require_timestamp: true,
            hmac_accept_root_path: false,
            client_certificates: false,
        }
    }
}

impl std::fmt::Debug for AuthSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("AuthSettings");
        for (name, secret) in self.secrets() {
            debug.field(name, &secret.as_ref().map(|_| "hidden"));
        }
        debug
            .field("policy", &self.policy)
            .field("hmac_require_timestamp", &self.hmac_require_timestamp)
            .field("hmac_accept_root_path", &self.hmac_accept_root_path)
            .field("client_certificates", &self.client_certificates)
            .finish()
    }
}

const AUTH_TOKEN: &str = "--auth-token";
const AGENT_TOKENS: &str = "--agent-tokens";
const AUDITOR_TOKENS: &str = "--auditor-tokens";
const HMAC_KEY: &str = "--auth-hmac-key";
const HMAC_KEYS: &str = "EVIDENCEOS_HMAC_KEYS";
const HMAC_SHARED_SECRET: &str = "EVIDENCEOS_HMAC_SHARED_SECRET";

/// The fewest characters of a token. `openssl rand -hex 32` makes 64.
const MIN_TOKEN_CHARS: usize = 16;
/// The fewest bytes of a signing secret.
const MIN_SECRET_BYTES: usize = 16;
/// The advice about a secret that is easy to guess.
const TOO_SHORT: &str = "must have at least 16 bytes; make one with `openssl rand -hex 32`";

const EVERY_HMAC: &[&str] = &[HMAC_KEY, HMAC_KEYS, HMAC_SHARED_SECRET];

/// The settings that each setting excludes.
const EXCLUSIVE: [(&str, &[&str]); 5] = [
    (AUTH_TOKEN, &[AGENT_TOKENS, AUDITOR_TOKENS]),
    (AUTH_TOKEN, EVERY_HMAC),
    (AGENT_TOKENS, EVERY_HMAC),
    (AUDITOR_TOKENS, EVERY_HMAC),
    (HMAC_KEY, &[HMAC_KEYS, HMAC_SHARED_SECRET]),
];

impl AuthSettings {
    /// Reads the policy file and makes the authenticator.
    ///
    /// # Errors
    /// All problems, without any secret in them.
    pub fn build(&self) -> Result<Authenticator, Vec<String>> {
        let mut problems = self.conflicts();
        let mut tokens = self.tokens(&mut problems);
        let keys = self.keys(&mut problems);
        let policy = match self.policy(&mut problems) {
            Some(policy) => {
                // The role policy has the last word about a token that a list also names.
                for (digest, roles) in policy.tokens() {
                    tokens.set_digest(digest, roles);
                }
                policy
            }
            None => Policy::submitters(),
        };
        let methods = Methods {
            tokens: !tokens.is_empty(),
            signatures: !keys.is_empty(),
            certificates: self.client_certificates,
        };
        // Otherwise the file would silently be ignored by a server on which every caller may do
        // everything.
        if self.policy.is_some() && methods == Methods::default() && problems.is_empty() {
            problems.push(
                "the role policy gives roles, but callers cannot be authenticated: configure tokens, \
                 HMAC keys or client certificates"
                    .into(),
            );
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let rules = HmacRules {
            require_timestamp: self.hmac_require_timestamp,
            accept_root_path: self.hmac_accept_root_path,
        };
        Ok(Authenticator::new(methods, tokens, keys, rules, policy))
    }

    fn secrets(&self) -> [(&'static str, &Secret); 6] {
        [
            (AUTH_TOKEN, &self.auth_token),
            (AGENT_TOKENS, &self.agent_tokens),
            (AUDITOR_TOKENS, &self.auditor_tokens),
            (HMAC_KEY, &self.hmac_key),
            (HMAC_KEYS, &self.hmac_keys),
            (HMAC_SHARED_SECRET, &self.hmac_shared_secret),
        ]
    }

    fn conflicts(&self) -> Vec<String> {
        let secrets = self.secrets();
        let is_set = |name: &str| {
            secrets
                .iter()
                .any(|(given, secret)| *given == name && secret.is_some())
        };
        let both = |one: &str, other: &str| {
            (is_set(one) && is_set(other))
                .then(|| format!("{one} and {other} exclude each other; configure one of them"))
        };
        EXCLUSIVE
            .iter()
            .flat_map(|(one, others)| others.iter().filter_map(|other| both(one, other)))
            .collect()
    }

    fn tokens(&self, problems: &mut Vec<String>) -> Tokens {
        let mut tokens = Tokens::default();
        let mut add = |place: String, token: &str, roles| match token_problem(token) {
            None => tokens.add(token.as_bytes(), roles),
            Some(problem) => problems.push(format!("{place}: {problem}")),
        };
        if let Some(token) = &self.auth_token {
            add(AUTH_TOKEN.into(), token, Roles::SUBMITTER_AUDITOR);
        }
        for (name, list, roles) in [
            (AGENT_TOKENS, &self.agent_tokens, Roles::SUBMITTER),
            (
                AUDITOR_TOKENS,
                &self.auditor_tokens,
                Roles::SUBMITTER_AUDITOR,
            ),
        ] {
            let entries = list.iter().flat_map(|list| list.split(','));
            for (at, token) in (1..).zip(entries) {
                add(format!("{name}, entry {at}"), token.trim(), roles);
            }
        }
        tokens
    }

    fn keys(&self, problems: &mut Vec<String>) -> HmacKeys {
        let mut keys = HmacKeys::default();
        let mut take = |outcome: Result<(), Vec<String>>| {
            if let Err(wrong) = outcome {
                problems.extend(wrong);
            }
        };
        if let Some(list) = &self.hmac_keys {
            take(keys.add_list(HMAC_KEYS, list));
        }
        let short = keys.shorter_than(MIN_SECRET_BYTES);
        let mut short: Vec<String> = short
            .map(|key_id| format!("{HMAC_KEYS}, key {key_id:?}: the secret {TOO_SHORT}"))
            .collect();
        for (name, secret) in [
            (HMAC_KEY, &self.hmac_key),
            (HMAC_SHARED_SECRET, &self.hmac_shared_secret),
        ] {
            if let Some(secret) = secret {
                take(keys.add_default(name, secret));
                // An empty secret was reported above.
                if (1..MIN_SECRET_BYTES).contains(&secret.len()) {
                    short.push(format!("{name}: the secret {TOO_SHORT}"));
                }
            }
        }
        problems.extend(short);
        keys
    }

    fn policy(&self, problems: &mut Vec<String>) -> Option<Policy> {
        let path = self.policy.as_ref()?;
        let read = files::read_policy(path)
            .map_err(|error| vec![error.to_string()])
            .and_then(|text| Policy::parse(&path.display().to_string(), &text));
        read.map_err(|wrong| problems.extend(wrong)).ok()
    }
}

/// Why a token is refused: no header could carry it, or it is easy to guess.
#[must_use]
pub fn token_problem(token: &str) -> Option<&'static str> {
    if token.is_empty() {
        Some("the token must not be empty")
    } else if token.len() > MAX_TOKEN_BYTES {
        Some("the token must not have more than 4096 bytes")
    } else if token.trim() != token || token.chars().any(char::is_control) {
        Some("the token must not begin or end with blanks, or have control characters")
    } else if token.chars().count() < MIN_TOKEN_CHARS {
        Some("the token must have at least 16 characters; make one with `openssl rand -hex 32`")
    } else {
        None
    }
}
