//! Anchors: what remembers the newest released head outside of the data directory.
//!
//! A data directory that was rolled back whole looks sound from inside. Signed again under the
//! same name it is a fork of the log, and it gives back leakage that was spent. So each anchor is
//! read before the first signature of a start: one that is ahead of the database, or has another
//! root, stops it. File anchors follow each head before the log's `checkpoint` does.
//!
//! While no anchor answers, reads are served and nothing is signed or charged, unless anchors are
//! optional. A missing file is no answer either: an unmounted volume looks so. A new anchor is
//! therefore made as an empty file by its operator.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_store::{
    Head, StoreError, blobs,
    log::{LogError, LogView},
};
use evidenceos_tlog::{Checkpoint, Hash, Note};
use tokio::runtime::Handle;

use crate::{
    config::AnchorPlace,
    fetch::{self, Trust},
};

/// The longest checkpoint, with the signatures of many witnesses.
const MAX_CHECKPOINT: usize = 64 << 10;
/// What to do where an anchor knows more than the database.
const WAYS_OUT: &str = "Nothing was signed. `evidenceos-daemon log recover --from URL|DIR` brings the missing entries back from the published log, a mirror or another backup; where there is none, `evidenceos-daemon log restart --origin NEW --because TEXT` begins a new log that names this one";

/// What is known of the anchors, for others to read.
#[derive(Debug, Default)]
pub struct State {
    /// Anchors that were given.
    pub configured: AtomicU64,
    /// Those that answered when they were last asked or written.
    pub answering: AtomicU64,
    /// Nothing is signed or charged until one answers.
    pub held: AtomicBool,
}

/// The anchors of a daemon.
pub struct Anchors {
    places: Vec<AnchorPlace>,
    optional: bool,
    runtime: Handle,
    state: Arc<State>,
}

/// Whether signing may begin.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Free,
    /// No anchor answered.
    Unreachable,
}

/// What an anchor is compared with.
pub struct Own<'o> {
    /// The log's name.
    pub origin: &'o str,
    /// The names of the logs that this one continues.
    pub former: &'o [String],
    /// The newest durable head.
    pub head: &'o Head,
    /// The root of an earlier tree.
    pub root_at: &'o dyn Fn(u64) -> Result<Hash, StoreError>,
}

impl Anchors {
    /// The anchors of a configuration. URLs are asked on `runtime`.
    #[must_use]
    pub fn new(
        places: &[AnchorPlace],
        optional: bool,
        runtime: &Handle,
        state: Arc<State>,
    ) -> Self {
        state
            .configured
            .store(places.len() as u64, Ordering::Relaxed);
        Self {
            places: places.to_vec(),
            optional,
            runtime: runtime.clone(),
            state,
        }
    }

    /// Before the first entry of a new log no anchor may remember one.
    ///
    /// # Errors
    /// Where one does, or none answers.
    pub fn must_be_new(&self) -> Result<(), StoreError> {
        let mut answering = 0;
        for place in &self.places {
            match self.read(place) {
                Ok(Read::Checkpoint(found)) => {
                    return Err(StoreError::Unusable(format!(
                        "the data directory is empty, but anchor {place} remembers {} entries of {:?}: the directory was lost, or the wrong one is mounted. Bring it back, or restore a backup (`evidenceos-daemon restore`); for another log give another --anchor",
                        found.size(),
                        found.origin()
                    )));
                }
                Ok(Read::New | Read::Missing) => answering += 1,
                Err(error) => tracing::warn!(anchor = %place, error, "an anchor does not answer"),
            }
        }
        self.state.answering.store(answering, Ordering::Relaxed);
        if answering > 0 || self.places.is_empty() || self.optional {
            return Ok(());
        }
        Err(StoreError::Unusable(
            "no anchor answers, and a new log must not begin without one; make one reachable, or give --anchor-optional".to_owned(),
        ))
    }

    /// Asks every anchor.
    ///
    /// # Errors
    /// Where one is ahead of the log, or remembers another: nothing may be signed.
    pub fn compare(&self, own: &Own<'_>) -> Result<Verdict, StoreError> {
        let mut answering = 0;
        for place in &self.places {
            match self.read(place) {
                Ok(Read::Checkpoint(found)) => {
                    check(place, &found, own)?;
                    answering += 1;
                }
                Ok(Read::New) => answering += 1,
                Ok(Read::Missing) => {
                    let advice = match place {
                        AnchorPlace::File(path) => format!(
                            "it is not there. Mount its volume; if it is a new anchor, make it: touch {}",
                            path.display()
                        ),
                        AnchorPlace::Url(_) => "the server has no checkpoint there".to_owned(),
                    };
                    tracing::warn!(anchor = %place, advice, "an anchor does not answer");
                }
                Err(error) => tracing::warn!(anchor = %place, error, "an anchor does not answer"),
            }
        }
        self.state.answering.store(answering, Ordering::Relaxed);
        let free = answering > 0 || self.places.is_empty() || self.optional;
        self.state.held.store(!free, Ordering::Relaxed);
        Ok(if free {
            Verdict::Free
        } else {
            Verdict::Unreachable
        })
    }

    /// Has file anchors remember a released head. An anchor that cannot be written is said and
    /// tried again with the next head.
    ///
    /// # Errors
    /// Where one remembers more than this log has: somebody else continues it.
    pub fn remember(&self, head: &Head) -> Result<(), StoreError> {
        let mut answering = 0;
        for place in &self.places {
            let AnchorPlace::File(path) = place else {
                answering += 1;
                continue;
            };
            let own = Own {
                origin: head.checkpoint.lines().next().unwrap_or_default(),
                former: &[],
                head,
                root_at: &|_| Ok(head.root()),
            };
            match self.read(place) {
                // What is behind is overwritten; a fork below shows at the next start.
                Ok(Read::Checkpoint(found))
                    if found.origin() == own.origin && found.size() >= head.size =>
                {
                    check(place, &found, &own)?;
                    answering += 1;
                    continue;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(anchor = %place, error, "an anchor cannot be read");
                    continue;
                }
            }
            match write(path, head) {
                Ok(()) => answering += 1,
                Err(error) => {
                    tracing::error!(anchor = %place, %error, "an anchor cannot be written")
                }
            }
        }
        self.state.answering.store(answering, Ordering::Relaxed);
        Ok(())
    }

    /// Makes file anchors remember a log that begins, whatever they remembered.
    ///
    /// # Errors
    /// Where one cannot be written.
    pub fn overwrite(&self, head: &Head) -> Result<(), StoreError> {
        for place in &self.places {
            if let AnchorPlace::File(path) = place {
                write(path, head)?;
            }
        }
        Ok(())
    }

    /// The largest head that any anchor remembers, and the anchor.
    #[must_use]
    pub fn largest(&self) -> Option<(AnchorPlace, Checkpoint)> {
        self.places
            .iter()
            .filter_map(|place| match self.read(place) {
                Ok(Read::Checkpoint(found)) => Some((place.clone(), found)),
                _ => None,
            })
            .max_by_key(|(_, found)| found.size())
    }

    fn read(&self, place: &AnchorPlace) -> Result<Read, String> {
        let bytes = match place {
            AnchorPlace::File(path) => match fs::read(path) {
                Ok(bytes) if bytes.is_empty() => return Ok(Read::New),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Read::Missing),
                Err(error) => return Err(error.to_string()),
            },
            AnchorPlace::Url(url) => {
                match self
                    .runtime
                    .block_on(fetch::get(url, MAX_CHECKPOINT, Trust::System))?
                {
                    Some(bytes) => bytes,
                    None => return Ok(Read::Missing),
                }
            }
        };
        // Who signed it does not matter: a head that we cannot verify, since its key is younger
        // than a restored database, must stop us as well.
        Note::parse(&bytes)
            .ok()
            .and_then(|note| note.text().parse().ok())
            .map(Read::Checkpoint)
            .ok_or_else(|| "there is no checkpoint in it".to_owned())
    }
}

enum Read {
    Checkpoint(Checkpoint),
    /// Made by an operator, and empty yet.
    New,
    Missing,
}

fn check(place: &AnchorPlace, found: &Checkpoint, own: &Own<'_>) -> Result<(), StoreError> {
    let stop = |why: String| Err(StoreError::Unusable(why));
    if found.origin() != own.origin {
        // A log that this one continues was bound by its first entry.
        if own.former.iter().any(|former| former == found.origin()) {
            return Ok(());
        }
        return stop(format!(
            "anchor {place} remembers another log, {:?}, and ours is {:?}; give this daemon an anchor of its own",
            found.origin(),
            own.origin
        ));
    }
    let (size, root) = (found.size(), found.root());
    if size > own.head.size {
        return stop(format!(
            "anchor {place} remembers {size} entries with root {root}, the database has {}: it was brought back from an older state. Continuing would fork the log and forget leakage. {WAYS_OUT}",
            own.head.size
        ));
    }
    let ours = if size == own.head.size {
        own.head.root()
    } else {
        (own.root_at)(size)?
    };
    if ours != root {
        return stop(format!(
            "anchor {place} remembers {size} entries with root {root}, ours with as many has root {ours}: the log was forked. {WAYS_OUT}"
        ));
    }
    Ok(())
}

fn write(path: &Path, head: &Head) -> Result<(), StoreError> {
    failpoint::pass(Point::LogHeadCommittedBeforeAnchor);
    blobs::write_durably(path, head.checkpoint.as_bytes())?;
    failpoint::pass(Point::LogAnchorWritten);
    Ok(())
}

/// The root of an earlier tree of a log.
///
/// # Errors
/// Where the log's tiles cannot be made to fit.
pub fn root_at(log: &LogView, size: u64, newest: u64) -> Result<Hash, StoreError> {
    match log.consistency(size, newest) {
        Ok((_, old, _)) => Ok(old),
        Err(LogError::Store(error)) => Err(error),
        Err(error) => Err(StoreError::Unusable(error.to_string())),
    }
}
