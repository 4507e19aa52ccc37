//! The library that intercepts the daemon's file operations, and its variables.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use evidenceos_failpoint::Point;

use crate::{Failed, fail};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/recorder/recorder.c");

/// The path of the compiled library.
#[derive(Debug, Clone)]
pub struct Recorder(PathBuf);

impl Recorder {
    /// Compiles the library into a directory.
    ///
    /// # Errors
    /// [`Failed`] if there is no C compiler (`CC`, or else `cc`), or it reports an error.
    pub fn build(into: &Path) -> Result<Self, Failed> {
        let library = into.join("recorder.so");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let output = Command::new(&compiler)
            .args([
                "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o",
            ])
            .arg(&library)
            .args([SOURCE, "-lpthread"])
            .output()
            .map_err(|error| fail(format!("cannot run {}: {error}", compiler.display())))?;
        if output.status.success() {
            Ok(Self(library))
        } else {
            Err(fail(String::from_utf8_lossy(&output.stderr)))
        }
    }

    /// The library's path, for `LD_PRELOAD`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// The effect of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The process dies there.
    Kill,
    /// A write fails as on a full disk.
    Full,
    /// A write fails as on a broken disk.
    Broken,
}

/// A point, the time at which it fires, and the effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arming {
    pub point: Point,
    /// The visit of the point at which it fires, from 1.
    pub nth: u64,
    pub what: What,
}

impl Arming {
    /// Kills a process at the nth visit of a point.
    #[must_use]
    pub fn kill(point: Point, nth: u64) -> Self {
        let what = What::Kill;
        Self { point, nth, what }
    }
}

impl std::fmt::Display for Arming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.what {
            What::Kill => "kill",
            What::Full => "enospc",
            What::Broken => "eio",
        };
        write!(f, "{}:{}:{what}", self.point.name(), self.nth)
    }
}
