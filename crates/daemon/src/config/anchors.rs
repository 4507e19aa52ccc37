//! Where the newest head of the log is remembered outside of the data directory.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::Settings;

/// A place that remembers a signed checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnchorPlace {
    /// A file of one log, best on another volume; written.
    File(PathBuf),
    /// A directory with a file for each log; written.
    Directory(PathBuf),
    /// A log as it is published, by the URL of its `checkpoint`; only read.
    Url(String),
}

/// Which anchors a daemon has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Anchoring {
    /// Those that its database remembers, or the directory beside the data directory.
    #[default]
    Default,
    /// None: a data directory that was rolled back is not noticed.
    Off,
    /// These and no others.
    At(Vec<AnchorPlace>),
}

/// What `--anchor` takes in place of one.
const NONE: &str = "none";

impl fmt::Display for AnchorPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) | Self::Directory(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

impl AnchorPlace {
    /// What a user wrote.
    fn new(text: &str, data_dir: &Path) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("--anchor: give a directory, a file, an http(s) URL, or none".to_owned());
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
            return Err(format!(
                "--anchor {text}: only directories, files, http and https"
            ));
        }
        let path = PathBuf::from(text);
        if is_below(&path, data_dir) {
            return Err(format!(
                "--anchor {text}: it is in the data directory, and would be rolled back with it; name a place elsewhere, best on another disk"
            ));
        }
        Ok(if text.ends_with('/') || path.is_dir() {
            Self::Directory(path)
        } else {
            Self::File(path)
        })
    }

    /// The same place, whatever directory a later start has as its own.
    ///
    /// # Errors
    /// If the present directory cannot be found.
    pub fn absolute(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::File(path) => Self::File(fixed(path)?),
            Self::Directory(path) => Self::Directory(fixed(path)?),
            Self::Url(url) => Self::Url(url.clone()),
        })
    }

    /// The directory that a daemon uses if it is told of no anchor: beside its data directory.
    ///
    /// # Errors
    /// If the data directory has no place beside it, or cannot be found.
    pub fn beside(data_dir: &Path) -> std::io::Result<Self> {
        let path = fixed(data_dir)?;
        let Some(name) = path.file_name() else {
            return Err(std::io::Error::other(
                "a root directory has no place beside it",
            ));
        };
        let mut name = name.to_owned();
        name.push(".anchor");
        Ok(Self::Directory(path.with_file_name(name)))
    }
}

/// An absolute path whose directories are named without links: the same place is named in the same
/// way, from wherever it is looked at.
fn fixed(path: &Path) -> std::io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Ok(absolute.canonicalize().unwrap_or(absolute));
    };
    // A parent that is not there yet has no links to resolve.
    Ok(parent
        .canonicalize()
        .unwrap_or_else(|_| parent.to_owned())
        .join(name))
}

/// Whether a place is in the data directory, by its own name or behind a link.
fn is_below(path: &Path, data_dir: &Path) -> bool {
    let real = |path: &Path| {
        let path = fixed(path).unwrap_or_else(|_| path.to_owned());
        path.canonicalize().unwrap_or(path)
    };
    real(path).starts_with(real(data_dir))
}

/// All places of the settings.
pub(super) fn places(
    settings: &Settings,
    data_dir: &Path,
    problems: &mut Vec<String>,
) -> Anchoring {
    let given: Vec<&String> = settings.anchors.iter().flatten().collect();
    if given.is_empty() {
        return Anchoring::Default;
    }
    if given.iter().any(|text| text.trim() == NONE) {
        if given.len() > 1 {
            problems.push(
                "--anchor none: with another --anchor it means nothing; give one of the two"
                    .to_owned(),
            );
        }
        return Anchoring::Off;
    }
    Anchoring::At(
        given
            .into_iter()
            .filter_map(|text| {
                AnchorPlace::new(text, data_dir)
                    .map_err(|problem| problems.push(problem))
                    .ok()
            })
            .collect(),
    )
}
