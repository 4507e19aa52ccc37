//! `config check`: checks a configuration without serving.

use evidenceos_access::Tls;
use evidenceos_gate::policies::Policies;
use evidenceos_keys::Ring;

use super::{Config, KeySource};
use crate::{control, guarded, protection};

/// What a check of the configuration found.
#[derive(Debug, Default)]
pub struct Checked {
    /// Problems that would keep the daemon from starting.
    pub problems: Vec<String>,
    /// Facts that an operator should know; the daemon would start.
    pub warnings: Vec<String>,
}

/// Reads the files that the configuration names: certificates, policy modules and keys. Writes
/// nothing, and asks nothing over a network.
#[must_use]
pub fn check(config: &Config) -> Checked {
    let mut checked = Checked::default();
    match guarded::must_be_closed(config) {
        Ok(warnings) => checked.warnings.extend(warnings),
        Err(error) => checked.problems.push(error.to_string()),
    }
    if let Err(error) = protection::must_hold(config) {
        checked.problems.push(error.to_string());
    }
    checked.problems.extend(tls_problems(config));
    checked.problems.extend(taken_ports(config));
    match config.sandbox() {
        Ok(sandbox) => {
            let (directory, unsigned) = (config.policies_path(), config.allow_unsigned_policies);
            if let Err(error) = Policies::load(&directory, &sandbox, unsigned) {
                checked.problems.extend(error.0);
            }
        }
        Err(error) => checked.problems.push(error.to_string()),
    }
    let keys = config.keys_path();
    if keys.exists() {
        match Ring::open(&keys) {
            Ok(ring) if matches!(config.keys, KeySource::Files(_)) => {
                let KeySource::Files(asked) = config.keys else {
                    return checked;
                };
                match ring.choose(asked, None) {
                    // The log itself says which key has signed it so far.
                    Ok(_) | Err(evidenceos_keys::KeyError::NotChosen { .. }) => {}
                    Err(error) if ring.keys().is_empty() && config.generate_key => {
                        checked
                            .warnings
                            .push(format!("{error} (the first start makes a key)"));
                    }
                    Err(error) => checked.problems.push(error.to_string()),
                }
            }
            Ok(_) => {}
            Err(error) => checked.problems.push(error.to_string()),
        }
    } else if !config.generate_key && matches!(config.keys, KeySource::Files(_)) {
        checked.problems.push(format!(
            "{} is missing, and the daemon makes no key if TLS and authentication are on; see `evidenceos keys --help`",
            keys.display()
        ));
    }
    checked
}

/// All problems of the TLS files: every file that cannot be read, otherwise what a start would report.
fn tls_problems(config: &Config) -> Vec<String> {
    let Some(tls) = &config.listeners.tls else {
        return Vec::new();
    };
    let unreadable = tls.files.problems();
    if !unreadable.is_empty() {
        return unreadable.iter().map(ToString::to_string).collect();
    }
    let loaded = Tls::load(
        tls.files.clone(),
        tls.clients,
        &[b"h2"],
        tls.allow_without_eku,
    );
    loaded
        .err()
        .map(|error| error.to_string())
        .into_iter()
        .collect()
}

/// Ports that another process listens on. None are reported if a daemon serves this directory: it
/// uses them itself.
fn taken_ports(config: &Config) -> Vec<String> {
    if control::condition(&config.data_dir).is_ok() {
        return Vec::new();
    }
    let listeners = &config.listeners;
    let ports = [
        ("--listen", Some(listeners.grpc)),
        ("--preflight-listen", listeners.http),
        ("--metrics-listen", listeners.metrics),
    ];
    let taken = ports.into_iter().filter_map(|(flag, address)| {
        let address = address?;
        let error = std::net::TcpListener::bind(address).err()?;
        Some(format!("{flag} {address}: {error}"))
    });
    taken.collect()
}
