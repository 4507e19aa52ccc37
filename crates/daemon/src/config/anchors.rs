//! Where the newest head of the log is remembered outside of the data directory.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::Settings;

/// A place that remembers a signed checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnchorPlace {
    /// A file, best on another volume; written.
    File(PathBuf),
    /// A log as it is published, by the URL of its `checkpoint`; only read.
    Url(String),
}

impl fmt::Display for AnchorPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

impl AnchorPlace {
    /// What a user wrote.
    fn new(text: &str, data_dir: &Path) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("--anchor: give a file or an http(s) URL".to_owned());
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            let base = text.trim_end_matches('/');
            return Ok(Self::Url(if base.ends_with("/checkpoint") {
                base.to_owned()
            } else {
                format!("{base}/checkpoint")
            }));
        }
        if text.contains("://") {
            return Err(format!("--anchor {text}: only files, http and https"));
        }
        let path = PathBuf::from(text);
        let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let parent = path.parent().filter(|up| !up.as_os_str().is_empty());
        if canonical(parent.unwrap_or(Path::new("."))).starts_with(canonical(data_dir)) {
            return Err(format!(
                "--anchor {text}: it is in the data directory, and would be rolled back with it; name a place elsewhere, best on another disk"
            ));
        }
        Ok(Self::File(path))
    }
}

/// All places of the settings.
pub(super) fn places(
    settings: &Settings,
    data_dir: &Path,
    problems: &mut Vec<String>,
) -> Vec<AnchorPlace> {
    let given = settings.anchors.iter().flatten();
    given
        .filter_map(|text| {
            AnchorPlace::new(text, data_dir)
                .map_err(|problem| problems.push(problem))
                .ok()
        })
        .collect()
}
