//! A data directory remembers that it was served with authentication, and is not served without it by mistake.
//!
//! Without flags the daemon is a development server, on which every local user may do everything. A forgotten
//! `--tls-cert` must not serve a directory with sealed labels that way.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use evidenceos_store::StoreError;

use crate::config::Config;

/// The text of the mark, for a person who finds it.
const TEXT: &str = "This data directory was served with authentication. The daemon refuses to serve it without, unless it is started with --serve-unprotected.\n";

/// The mark is beside the daemon's secrets: an operator who restores them restores the mark too.
fn mark(data_dir: &Path) -> PathBuf {
    data_dir.join("secrets").join("protected")
}

/// Refuses to serve a directory without authentication if it was served with it before.
///
/// # Errors
/// [`StoreError::Refused`] with what to do.
pub fn must_hold(config: &Config) -> Result<(), StoreError> {
    let mark = mark(&config.data_dir);
    if !config.is_development() || !mark.exists() {
        return Ok(());
    }
    if config.serve_unprotected {
        tracing::warn!(
            "the data directory was served with authentication, and is now served without: every local user can do everything"
        );
        return Ok(());
    }
    Err(StoreError::refused(
        format!(
            "{} was served with authentication, and this configuration has none: every local user could do everything",
            config.data_dir.display()
        ),
        "start it with the same --tls-cert, --mtls-client-ca, tokens or keys as before (`evidenceos admin config show` lists what is set now); to make it a development server, give --serve-unprotected".to_owned(),
    ))
}

/// Marks the directory as served with authentication.
///
/// # Errors
/// [`StoreError::Io`] if the mark cannot be written.
pub fn remember(config: &Config) -> Result<(), StoreError> {
    let mark = mark(&config.data_dir);
    if config.is_development() || mark.exists() {
        return Ok(());
    }
    let failed = StoreError::io("write", mark.clone());
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&mark)?;
        file.write_all(TEXT.as_bytes())?;
        file.sync_all()?;
        // The name must be durable as well, or a power cut would lose the mark.
        File::open(mark.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Settings};

    fn config(data_dir: &Path, token: Option<&str>) -> Config {
        Config::new(&Settings {
            data_dir: Some(data_dir.to_owned()),
            auth_token: token.map(str::to_owned),
            ..Settings::default()
        })
        .expect("a configuration")
    }

    #[test]
    fn a_directory_that_was_protected_is_not_served_without() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("secrets")).expect("made");
        let open = config(directory.path(), None);
        let protected = config(directory.path(), Some("0123456789abcdef"));
        must_hold(&open).expect("nothing is remembered");
        remember(&open).expect("nothing to remember");
        must_hold(&open).expect("still a development server's");
        remember(&protected).expect("remembered");
        remember(&protected).expect("once more");
        must_hold(&protected).expect("as before");
        let refused = must_hold(&open).expect_err("refused").to_string();
        assert!(refused.contains("--serve-unprotected"), "{refused}");
        let told = Config {
            serve_unprotected: true,
            ..open
        };
        must_hold(&told).expect("the operator says so");
    }
}
