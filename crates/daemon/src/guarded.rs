//! The directories to which no other user may write: data, keys, policy modules, anchors.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use evidenceos_notary::anchors::{AnchorPlace, Anchoring};
use evidenceos_store::{StoreError, facts::RememberedAnchor, guard};

use crate::config::Config;

/// Refuses directories that other users can write to, before the daemon trusts their contents.
/// Returns warnings for the operator.
///
/// # Errors
/// The first such directory, with the command that mends it.
pub fn must_be_closed(config: &Config) -> Result<Vec<String>, StoreError> {
    let mut places = vec![config.data_dir.clone()];
    // Both are checked themselves when they are opened; this checks the directories above them,
    // also those above a link's target.
    for directory in [config.keys_path(), config.policies_path()] {
        let real = directory.canonicalize().unwrap_or_default();
        let above = [directory.parent(), real.parent()];
        places.extend(above.into_iter().flatten().map(Path::to_owned));
    }
    match &config.anchors {
        Anchoring::At(anchors) => places.extend(anchors.iter().filter_map(place_of)),
        Anchoring::Default => places.extend(
            AnchorPlace::beside(&config.data_dir)
                .ok()
                .as_ref()
                .and_then(place_of),
        ),
        Anchoring::Off => {}
    }
    all(&places)
}

/// Applies the same check to the anchors that a database remembers.
///
/// # Errors
/// As [`must_be_closed`].
pub fn anchors_must_be_closed(remembered: &[RememberedAnchor]) -> Result<Vec<String>, StoreError> {
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let places: Vec<PathBuf> = remembered
        .iter()
        .filter_map(|anchor| match anchor {
            RememberedAnchor::Directory(bytes) => Some(path(bytes)),
            RememberedAnchor::File(bytes) => path(bytes).parent().map(Path::to_owned),
            RememberedAnchor::Url(_) => None,
        })
        .collect();
    all(&places)
}

fn place_of(anchor: &AnchorPlace) -> Option<PathBuf> {
    match anchor {
        AnchorPlace::Directory(path) => Some(path.clone()),
        AnchorPlace::File(path) => path.parent().map(Path::to_owned),
        AnchorPlace::Url(_) => None,
    }
}

fn all(places: &[PathBuf]) -> Result<Vec<String>, StoreError> {
    let mut warnings = Vec::new();
    for place in places {
        for warning in guard::must_be_closed(place)? {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
    }
    Ok(warnings)
}
