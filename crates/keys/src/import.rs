//! Imports keys from mounts that cannot be 0600.
//!
//! Kubernetes mounts a Secret as links through `..data` to files of mode 0440; systemd also
//! provides credentials as 0440. Import copies them into a directory that follows the ring's rules:
//! it follows links that stay inside the mount, accepts group-readable files but never
//! world-readable ones, and may run any number of times.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::{
    Directory, KeyError, KeyId, Ring, Secret, directory::read_secret, ring::public_key, secrets,
};

/// The result of an import.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Keys that the import added to the ring.
    pub added: Vec<KeyId>,
    /// Keys that the ring had already.
    pub kept: Vec<KeyId>,
    /// Secrets of the data directory that were imported, by file name.
    pub secrets: Vec<String>,
}

/// Copies every key in `from` into the ring at `to`, which is created if it is missing.
///
/// Files named `<key-id>.key` are signing keys; `owners.secret` and `holdouts.secret` are copied too, and may be
/// alone if a KMS has the key. systemd puts a credential's own name and `_` before the names of the files of a
/// directory; the import skips that prefix. It ignores all other files.
///
/// # Errors
/// [`KeyError`] if there is neither key nor secret, or one is world-readable, misnamed, not a key, or outside of
/// `from`. Nothing is written unless every key is valid.
pub fn import(from: &Path, to: &Path) -> Result<Imported, KeyError> {
    // Keys are compared with the root after their links are resolved, so the root must be resolved
    // too.
    let root = fs::canonicalize(from).map_err(KeyError::io("open", from))?;
    let mut seeds = Vec::new();
    let mut others = Vec::new();
    for name in names(from)? {
        let path = from.join(&name);
        let name = name.rsplit('_').next().unwrap_or(&name).to_owned();
        if let Some(stem) = name.strip_suffix(".key") {
            let seed = read_mounted(&root, &path)?;
            let found = KeyId::of(&public_key(&seed));
            if found.to_string() != stem {
                return Err(KeyError::WrongName { path, found });
            }
            seeds.push(seed);
        } else if secrets::NAMES.contains(&name.as_str()) {
            others.push((name, read_mounted(&root, &path)?));
        }
    }
    if seeds.is_empty() && others.is_empty() {
        return Err(KeyError::Empty(from.to_owned()));
    }
    store(to, &seeds, others)
}

fn store(to: &Path, seeds: &[Secret], others: Vec<(String, Secret)>) -> Result<Imported, KeyError> {
    let mut imported = Imported::default();
    let mut ring = Ring::open_or_create(to)?;
    let directory = Directory::open(to)?;
    // Compare all secrets before writing anything. A replaced secret would cost the data directory
    // its owners or its holdouts.
    for (name, secret) in &others {
        if let Some(there) = directory.read(name)?
            && there != *secret
        {
            return Err(KeyError::Differs(to.join(name)));
        }
    }
    for seed in seeds {
        let id = KeyId::of(&public_key(seed));
        let into = if ring.keys().contains_key(&id) {
            &mut imported.kept
        } else {
            &mut imported.added
        };
        into.push(id);
        ring.add(seed)?;
    }
    for (name, secret) in others {
        directory.write(&name, &secret)?;
        imported.secrets.push(name);
    }
    Ok(imported)
}

fn names(from: &Path) -> Result<Vec<String>, KeyError> {
    let listing = fs::read_dir(from).map_err(KeyError::io("list", from))?;
    let mut names = Vec::new();
    for entry in listing {
        let entry = entry.map_err(KeyError::io("list", from))?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn read_mounted(root: &Path, path: &Path) -> Result<Secret, KeyError> {
    let real: PathBuf = fs::canonicalize(path).map_err(KeyError::io("open", path))?;
    if !real.starts_with(root) {
        return Err(KeyError::LeadsOut(path.to_owned()));
    }
    // The path is resolved by now: if a link has replaced it since, it is refused.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(&real)
        .map_err(KeyError::io("open", path))?;
    // Inspect the open file, not the path, which may lead elsewhere by now.
    let metadata = file.metadata().map_err(KeyError::io("inspect", path))?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(KeyError::WorldReadable {
            path: path.to_owned(),
            mode,
        });
    }
    read_secret(file, path)
}
