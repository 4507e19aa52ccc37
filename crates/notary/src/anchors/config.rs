//! The settings of anchors: places outside of the data directory that remember the newest head of
//! the log.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// A place that remembers a signed checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnchorPlace {
    /// A file for one log, best on another volume; written.
    File(PathBuf),
    /// A directory with a file for each log; written.
    Directory(PathBuf),
    /// A published log, by the URL of its `checkpoint`; only read.
    Url(String),
}

/// The choice of a daemon's anchors.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Anchoring {
    /// The anchors that the database remembers, or the directory beside the data directory.
    #[default]
    Default,
    /// None: a rolled-back data directory is not noticed.
    Off,
    /// These anchors and no others.
    At(Vec<AnchorPlace>),
}

/// The daemon's settings of anchors.
#[derive(Debug, Clone)]
pub struct AnchorConfig {
    /// The data directory, outside of which anchors must be.
    pub data_dir: PathBuf,
    /// Which they are.
    pub anchors: Anchoring,
    /// Whether to go on if no anchor answers.
    pub optional: bool,
}

/// Why a text does not name an anchor.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoAnchorPlace {
    /// The text is empty.
    #[error("give a directory, a file, an http(s) URL, or none")]
    Empty,
    /// A URL with another scheme.
    #[error("{0}: only directories, files, http and https")]
    Scheme(String),
    /// The place is in the data directory, so a copy of the directory contains it as well.
    #[error(
        "{0}: it is in the data directory, and would be rolled back with it; name a place elsewhere, best on another disk"
    )]
    Inside(String),
}

impl fmt::Display for AnchorPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) | Self::Directory(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

impl AnchorPlace {
    /// Parses an anchor: a directory if it ends in a slash or is one, otherwise a file; or the URL
    /// of a published log.
    ///
    /// # Errors
    /// [`NoAnchorPlace`] if it is not an anchor, or would be rolled back with `data_dir`.
    pub fn parse(text: &str, data_dir: &Path) -> Result<Self, NoAnchorPlace> {
        let text = text.trim();
        if text.is_empty() {
            return Err(NoAnchorPlace::Empty);
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
            return Err(NoAnchorPlace::Scheme(text.to_owned()));
        }
        let path = PathBuf::from(text);
        if is_below(&path, data_dir) {
            return Err(NoAnchorPlace::Inside(text.to_owned()));
        }
        Ok(if text.ends_with('/') || path.is_dir() {
            Self::Directory(path)
        } else {
            Self::File(path)
        })
    }

    /// The same place by an absolute path, so that the working directory of a later start does not
    /// matter.
    ///
    /// # Errors
    /// If the current directory cannot be found.
    pub fn absolute(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::File(path) => Self::File(fixed(path)?),
            Self::Directory(path) => Self::Directory(fixed(path)?),
            Self::Url(url) => Self::Url(url.clone()),
        })
    }

    /// The default directory, beside the data directory.
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

/// An absolute path with the links in its directories resolved, so that a place has one name,
/// whatever directory it is named from.
fn fixed(path: &Path) -> std::io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Ok(absolute.canonicalize().unwrap_or(absolute));
    };
    // A missing parent has no links to resolve.
    Ok(parent
        .canonicalize()
        .unwrap_or_else(|_| parent.to_owned())
        .join(name))
}

/// Whether a place is in the data directory, by its own name or through a link.
fn is_below(path: &Path, data_dir: &Path) -> bool {
    let real = |path: &Path| {
        let path = fixed(path).unwrap_or_else(|_| path.to_owned());
        path.canonicalize().unwrap_or(path)
    };
    real(path).starts_with(real(data_dir))
}
