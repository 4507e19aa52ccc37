//! Which of several settings applies: option, profile, environment.
//!
//! Owns precedence. The more explicit setting wins: an option of the command line, then a profile that the command line
//! names, then the environment's variables, then a profile that the environment names. Settings that are ignored are
//! reported.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConnectionArgs, DEFAULT_ENDPOINT};
use crate::{error::CliError, files};

/// The arguments that the environment gave, by their ids.
#[derive(Debug, Clone, Default)]
pub struct Implicit(Vec<String>);

impl Implicit {
    /// The arguments of a parsed command line that came from the environment.
    pub fn of(matches: &clap::ArgMatches) -> Self {
        let from_environment = |id: &&clap::Id| {
            matches.value_source(id.as_str()) == Some(clap::parser::ValueSource::EnvVariable)
        };
        let ids = matches.ids().filter(from_environment);
        Self(ids.map(|id| id.as_str().to_owned()).collect())
    }

    fn has(&self, id: &str) -> bool {
        self.0.iter().any(|given| given == id)
    }
}

/// A profile file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Profile {
    endpoint: Option<String>,
    tls_ca: Option<PathBuf>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    token_file: Option<PathBuf>,
}

impl Profile {
    fn read(path: &Path) -> Result<Self, CliError> {
        let text = files::text(path)?;
        let mut profile: Self = toml::from_str(&text)
            .map_err(|error| CliError::Usage(format!("--profile {}: {error}", path.display())))?;
        // Paths in a profile are relative to the profile's directory, not to the current one.
        let beside = path.parent().unwrap_or(Path::new(""));
        let files = [
            &mut profile.tls_ca,
            &mut profile.tls_cert,
            &mut profile.tls_key,
            &mut profile.token_file,
        ];
        for file in files.into_iter().flatten() {
            *file = beside.join(&*file);
        }
        Ok(profile)
    }
}

/// A setting, and whether the command line gives it, directly or by a profile that it names.
#[derive(Debug)]
struct Said<T> {
    value: Option<T>,
    is_explicit: bool,
}

/// Chooses settings, and remembers the ignored ones.
struct Choice<'a> {
    implicit: &'a Implicit,
    /// The profile, if the command line names it.
    named_profile: Option<&'a Path>,
    notes: Vec<String>,
}

impl Choice<'_> {
    fn of<T: PartialEq>(
        &mut self,
        (id, variable): (&str, &str),
        given: Option<T>,
        of_profile: Option<T>,
    ) -> Said<T> {
        let is_option = given.is_some() && !self.implicit.has(id);
        match (given, of_profile, self.named_profile) {
            (given, Some(named), Some(path)) if !is_option => {
                if given.is_some_and(|given| given != named) {
                    self.notes.push(format!(
                        "{variable} is ignored: --profile {} says otherwise",
                        path.display()
                    ));
                }
                Said {
                    value: Some(named),
                    is_explicit: true,
                }
            }
            (given, of_profile, _) => Said {
                value: given.or(of_profile),
                is_explicit: is_option,
            },
        }
    }
}

/// The daemon's address and the caller's credentials, as files.
#[derive(Debug)]
pub struct Chosen {
    pub endpoint: String,
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The file of the token; `None`: the environment's token, if it applies.
    pub token_file: Option<PathBuf>,
    /// The environment's token, if no file is named and the token applies.
    pub token: Option<String>,
    /// Notes for the user about ignored settings.
    pub notes: Vec<String>,
}

impl Chosen {
    /// Chooses from the arguments, their profile, and the environment's token.
    ///
    /// # Errors
    /// [`CliError::File`] and [`CliError::Usage`] for a profile that cannot be read.
    pub fn of(args: ConnectionArgs, environments_token: Option<String>) -> Result<Self, CliError> {
        let path = args.profile.clone();
        let profile = path.as_deref().map(Profile::read).transpose()?;
        let profile = profile.unwrap_or_default();
        let implicit = &args.from_environment;
        let is_named = !implicit.has("profile");
        let mut choice = Choice {
            implicit,
            named_profile: path.as_deref().filter(|_| is_named),
            notes: Vec::new(),
        };
        let endpoint = ("endpoint", "EVIDENCEOS_ENDPOINT");
        let endpoint = choice.of(endpoint, args.endpoint, profile.endpoint);
        let ca = ("tls_ca", "EVIDENCEOS_TLS_CA");
        let ca = choice.of(ca, args.tls_ca, profile.tls_ca);
        let cert = ("tls_cert", "EVIDENCEOS_CLIENT_CERT");
        let cert = choice.of(cert, args.tls_cert, profile.tls_cert);
        let key = ("tls_key", "EVIDENCEOS_CLIENT_KEY");
        let key = choice.of(key, args.tls_key, profile.tls_key);
        let file = ("token_file", "EVIDENCEOS_TOKEN_FILE");
        let mut file = choice.of(file, args.token_file, profile.token_file);
        let mut notes = choice.notes;
        let mut token = environments_token.filter(|_| file.value.is_none());
        // A call with a certificate and a token is attributed to the token. A token that only the environment has must
        // not take the place of an explicit certificate.
        if let (Some(path), true, false) = (&cert.value, cert.is_explicit, file.is_explicit) {
            let passed_over = |variable: &str| {
                format!(
                    "{variable} is ignored: the command line names the certificate {}; give --token-file to call with a token",
                    path.display()
                )
            };
            notes.extend(
                file.value
                    .take()
                    .map(|_| passed_over("EVIDENCEOS_TOKEN_FILE")),
            );
            notes.extend(token.take().map(|_| passed_over("EVIDENCEOS_BEARER_TOKEN")));
        }
        Ok(Self {
            endpoint: endpoint
                .value
                .unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            ca: ca.value,
            cert: cert.value,
            key: key.value,
            token_file: file.value,
            token,
            notes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn implicit(ids: &[&str]) -> Implicit {
        Implicit(ids.iter().map(|id| (*id).to_owned()).collect())
    }

    #[test]
    fn a_token_of_the_environment_takes_no_named_certificates_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let profile = directory.path().join("profile.toml");
        std::fs::write(&profile, "tls_cert = \"c\"\ntls_key = \"k\"\n").expect("written");
        let chosen = |args: ConnectionArgs, ids: &[&str]| {
            let args = ConnectionArgs {
                from_environment: implicit(ids),
                ..args
            };
            Chosen::of(args, Some("t".to_owned())).expect("readable")
        };
        let named = ConnectionArgs {
            profile: Some(profile.clone()),
            ..ConnectionArgs::default()
        };
        let by_name = chosen(named.clone(), &[]);
        assert_eq!((by_name.token, by_name.notes.len()), (None, 1));
        // A profile that the environment names is as explicit as the environment's token.
        let by_variable = chosen(named.clone(), &["profile"]);
        assert_eq!(by_variable.token.as_deref(), Some("t"));
        let certificate = ConnectionArgs {
            tls_cert: Some("c".into()),
            token_file: Some("f".into()),
            ..ConnectionArgs::default()
        };
        let option = chosen(certificate.clone(), &["token_file"]);
        assert_eq!(
            (option.token_file, option.token, option.notes.len()),
            (None, None, 1)
        );
        // If both are on the command line, calls carry both, as a proxy needs.
        let both = chosen(certificate.clone(), &[]);
        assert_eq!(both.token_file, Some("f".into()));
        let neither = chosen(certificate, &["tls_cert", "token_file"]);
        assert_eq!(neither.token_file, Some("f".into()));
        assert!(neither.notes.is_empty());
    }

    #[test]
    fn an_endpoint_of_a_named_profile_wins_over_that_of_the_environment() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("profile.toml");
        std::fs::write(&path, "endpoint = \"https://profile:1\"\n").expect("written");
        let chosen = |ids: &[&str]| {
            let args = ConnectionArgs {
                endpoint: Some("https://other:1".to_owned()),
                profile: Some(path.clone()),
                from_environment: implicit(ids),
                ..ConnectionArgs::default()
            };
            Chosen::of(args, None).expect("readable")
        };
        let named = chosen(&["endpoint"]);
        assert_eq!(named.endpoint, "https://profile:1");
        let said = "EVIDENCEOS_ENDPOINT is ignored: --profile";
        assert!(named.notes[0].starts_with(said), "{:?}", named.notes);
        // An option is more explicit than a profile, and a profile of the environment is no more than a variable.
        for other in [chosen(&[]), chosen(&["endpoint", "profile"])] {
            assert_eq!(
                (&*other.endpoint, other.notes.len()),
                ("https://other:1", 0)
            );
        }
    }

    #[test]
    fn files_of_a_named_profile_win_over_those_of_variables() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("profile.toml");
        std::fs::write(&path, "tls_ca = \"ca\"\n").expect("written");
        let ca = |ids: &[&str]| {
            let args = ConnectionArgs {
                tls_ca: Some("/other".into()),
                profile: Some(path.clone()),
                from_environment: implicit(ids),
                ..ConnectionArgs::default()
            };
            let chosen = Chosen::of(args, None).expect("readable");
            (chosen.ca.expect("given"), chosen.notes.len())
        };
        assert_eq!(ca(&["tls_ca"]), (directory.path().join("ca"), 1));
        assert_eq!(ca(&[]), ("/other".into(), 0));
        assert_eq!(ca(&["tls_ca", "profile"]), ("/other".into(), 0));
    }
}
