//! Anchors: places outside of the data directory that remember the newest released head.
//!
//! A data directory that was rolled back as a whole looks sound from inside. If its log is signed
//! again under the same name, the log forks and spent leakage is forgotten. So a start reads every
//! anchor before its first signature; an anchor with another root stops it. Nothing that an entry
//! is about is shown before an anchor covers the entry.
//!
//! The database remembers where the anchors are, so that a copy of the directory asks the same
//! ones. The daemon serves only reads, and signs and charges nothing, while an anchor is ahead of
//! the database, while none answers, or after a restore until an operator or an anchor settles what
//! happened since. A place that has lost its head does not count as an answer: an unmounted volume
//! looks the same.

mod beginning;
mod config;
pub mod directory;
mod error;
mod place;
mod state;

use std::{
    cmp::Ordering,
    fs, io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use evidenceos_store::{
    FileError, Head, StoreError,
    facts::{Facts, RememberedAnchor, Restored},
};
use evidenceos_tlog::{Checkpoint, Hash, Note};
use parking_lot::Mutex;
use tokio::runtime::Handle;

pub use self::{
    beginning::{Beginner, Begun},
    config::{AnchorConfig, AnchorPlace, Anchoring, NoAnchorPlace},
    error::{Ahead, AnchorError},
    place::Tip,
    state::{State, StateCollector},
};
use self::{
    directory::{HeadFile, Known},
    error::Unreadable,
    place::{Place, hold},
};
use crate::{
    fetch::{self, Trust},
    keys::LogSigner,
};

/// The longest checkpoint, with the signatures of many witnesses.
const MAX_CHECKPOINT: usize = 64 << 10;
/// The advice if neither an anchor nor the operator can confirm that the database is the newest.
const STATEMENT: &str = "if you are sure that this log was signed nowhere else since, `evidenceos-daemon log continue --nothing-was-signed-since --because TEXT` (daemon stopped) states it in the log";

/// The anchors of a daemon.
pub struct Anchors {
    places: Vec<Place>,
    /// No start has signed beside an anchor yet.
    fresh: bool,
    /// The settings name no anchor: the daemon uses the remembered ones, or the directory beside
    /// its data.
    by_default: bool,
    optional: bool,
    restored: Option<Restored>,
    runtime: Handle,
    state: Arc<State>,
    /// The problems that were logged of anchors that do not answer: they are asked again each
    /// second.
    said: Mutex<Vec<String>>,
}

/// Whether signing may begin.
#[derive(Debug, PartialEq, Eq)]
pub enum Clearance {
    /// Nothing contradicts it.
    Free,
    /// No, with the reason: nothing confirms that the database is the newest. An operator may state
    /// it.
    Held(String),
    /// No, with what anchors know: the database is not the newest. No statement changes that.
    Past(String),
}

/// The relation of an anchor's head to the log.
enum Standing {
    /// The log contains it.
    Covered,
    /// The log has fewer entries than it covers.
    Behind(Ahead),
}

/// The log, for the comparison with an anchor.
pub struct Own<'o> {
    /// The log's name, the first line of each checkpoint.
    pub origin: &'o str,
    /// The names of the logs that this one continues.
    pub former: &'o [String],
    /// The number of durable entries and their root.
    pub tip: (u64, Hash),
    /// The root of the tree with an earlier size.
    pub root_at: &'o dyn Fn(u64) -> Result<Hash, StoreError>,
}

impl Anchors {
    /// The anchors of a configuration and of a database. URLs are fetched on `runtime`.
    ///
    /// # Errors
    /// [`AnchorError::Io`] if a path cannot be made absolute.
    pub fn new(
        config: &AnchorConfig,
        facts: &Facts,
        runtime: &Handle,
        state: Arc<State>,
    ) -> Result<Self, AnchorError> {
        let remembered: Vec<AnchorPlace> = facts.anchors.iter().flatten().map(recalled).collect();
        let path = config.data_dir.as_path();
        let failed = FileError::of("find the place of", path);
        let given = match &config.anchors {
            Anchoring::Off => Vec::new(),
            Anchoring::Default if remembered.is_empty() => {
                vec![AnchorPlace::beside(path).map_err(failed)?]
            }
            Anchoring::Default => remembered.clone(),
            Anchoring::At(places) => places
                .iter()
                .map(AnchorPlace::absolute)
                .collect::<Result<_, _>>()
                .map_err(failed)?,
        };
        let only_compared = match &config.anchors {
            Anchoring::Off => Vec::new(),
            Anchoring::Default | Anchoring::At(_) => remembered
                .iter()
                // An anchor that is only read must be named at each start.
                .filter(|place| !given.contains(place) && !matches!(place, AnchorPlace::Url(_)))
                .cloned()
                .collect(),
        };
        let place = |at: AnchorPlace, written| Place {
            remembered: remembered.contains(&at),
            at,
            written,
            file: Mutex::default(),
        };
        let given = given.into_iter().map(|at| place(at, true));
        let places: Vec<Place> = given
            .chain(only_compared.into_iter().map(|at| place(at, false)))
            .collect();
        state.configured.store(places.len() as u64, Relaxed);
        Ok(Self {
            places,
            fresh: remembered.is_empty(),
            by_default: config.anchors == Anchoring::Default,
            optional: config.optional,
            restored: facts.restored,
            runtime: runtime.clone(),
            state,
            said: Mutex::default(),
        })
    }

    /// Whether results must wait for an anchor before they are shown: they must if any is written.
    #[must_use]
    pub fn are_written(&self) -> bool {
        self.places.iter().any(Place::is_written)
    }

    /// The places that the database must remember from now on.
    #[must_use]
    pub fn to_remember(&self) -> Vec<RememberedAnchor> {
        let written = self.places.iter().filter(|place| place.written);
        written
            .map(|Place { at, .. }| match at {
                AnchorPlace::File(path) => {
                    RememberedAnchor::File(path.as_os_str().as_bytes().to_owned())
                }
                AnchorPlace::Directory(path) => {
                    RememberedAnchor::Directory(path.as_os_str().as_bytes().to_owned())
                }
                AnchorPlace::Url(url) => RememberedAnchor::Url(url.clone()),
            })
            .collect()
    }

    /// Whether any written anchor remembers something of a log.
    #[must_use]
    pub fn any_answers(&self, origin: &str) -> bool {
        let written = self.places.iter().filter(|place| place.written);
        written
            .map(|place| self.read(place, origin, &[]))
            .any(|read| matches!(read, Ok(Read::Known(_))))
    }

    /// Makes missing directories of written anchors: the operator has stated what happened, and the
    /// anchors must know the log from now on.
    pub fn make_written(&self) {
        self.places.iter().for_each(Place::make);
    }

    /// Makes the directory beside the data directory for a log that has no anchor yet.
    ///
    /// # Errors
    /// [`AnchorError::NotMade`]: name another place for it.
    pub fn make_default(&self) -> Result<(), AnchorError> {
        if !(self.by_default && self.fresh) {
            return Ok(());
        }
        for Place { at, .. } in &self.places {
            if let AnchorPlace::Directory(path) = at {
                directory::make(path).map_err(|source| AnchorError::NotMade {
                    path: path.clone(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Compares the log with every anchor.
    ///
    /// # Errors
    /// [`AnchorError::OtherLog`] or [`AnchorError::Forked`] if an anchor remembers another log, or
    /// other entries: neither of the two may be shown. [`AnchorError::Store`] if the log cannot be
    /// read.
    pub fn compare(&self, own: &Own<'_>) -> Result<Clearance, AnchorError> {
        let (mut answering, mut agrees, mut exactly) = (0, false, false);
        let (mut silent, mut ahead) = (Vec::new(), Vec::new());
        for place in &self.places {
            match self.read(place, own.origin, own.former) {
                Ok(Read::Known(found)) => {
                    answering += 1;
                    if let Standing::Behind(what) = stand(&place.at, &found, own)? {
                        ahead.push(what.to_string());
                        continue;
                    }
                    let is_read = matches!(place.at, AnchorPlace::Url(_));
                    // Beside anchors that the database noted, an unnoted file or directory counts
                    // only if it has exactly the newest head: an older one would confirm an older
                    // database too.
                    agrees |= place.remembered || is_read || self.fresh;
                    let tip = (found.checkpoint.size(), found.checkpoint.root());
                    exactly |= found.checkpoint.origin() == own.origin && tip == own.tip;
                }
                Ok(Read::New) => {
                    answering += 1;
                    // For a log that has not signed beside an anchor yet, every anchor is new.
                    agrees |= self.fresh;
                    if !self.fresh {
                        silent.push(format!("{} is new and remembers nothing", place.at));
                    }
                }
                Ok(Read::Missing(what)) => silent.push(format!("{}: {what}", place.at)),
                Err(error) => silent.push(format!("{}: {}", place.at, place.why(error))),
            }
        }
        self.say(&silent);
        self.state.answering.store(answering, Relaxed);
        // An anchor that is ahead decides first: no statement makes an older database the newest.
        let verdict = match self.restored {
            _ if !ahead.is_empty() => Clearance::Past(ahead.join("; ")),
            Some(restored) if !exactly => Clearance::Held(restored_text(&restored, own.tip.0)),
            None if !(agrees || exactly || self.optional || self.places.is_empty()) => {
                Clearance::Held(format!(
                    "no anchor answers: reads are served, nothing is signed or charged until one does ({}). If the anchors' volume is missing, mount it. If this machine or this path is new, bring the anchor along and name it with --anchor: one that remembers exactly the newest head lets the log go on by itself; {STATEMENT}",
                    silent.join("; ")
                ))
            }
            _ => Clearance::Free,
        };
        match &verdict {
            Clearance::Free => self.state.let_go(),
            Clearance::Held(why) => self.state.hold(why),
            Clearance::Past(what) => self.state.hold(&format!(
                "this log was signed further elsewhere: reads of what is here are served, nothing is signed or charged, since that would fork the log and forget leakage: {what}"
            )),
        }
        Ok(verdict)
    }

    /// Logs the anchors that do not answer, each time that the problem changes.
    fn say(&self, silent: &[String]) {
        let mut said = self.said.lock();
        for what in silent.iter().filter(|what| !said.contains(what)) {
            tracing::warn!(anchor = what, "an anchor does not answer");
        }
        silent.clone_into(&mut said);
    }

    /// The tree for anchors to remember: all entries, if one of them accepts unsigned heads.
    #[must_use]
    pub fn tip_of(&self, head: &Head, (size, root): (u64, Hash), signer: &LogSigner) -> Tip {
        let unsigned = Some(size)
            .filter(|size| *size > head.size && self.take_unsigned())
            .and_then(|size| Tip::unsigned(signer, size, root));
        unsigned.unwrap_or_else(|| Tip::from(head))
    }

    /// Whether an anchor accepts unsigned heads.
    #[must_use]
    pub fn take_unsigned(&self) -> bool {
        let is_directory = |place: &Place| matches!(place.at, AnchorPlace::Directory(_));
        self.places
            .iter()
            .any(|place| place.written && is_directory(place))
    }

    /// Has the written anchors remember a head. Returns whether one of them does; failures are
    /// logged.
    ///
    /// # Errors
    /// [`AnchorError::Ahead`] if an anchor remembers more than this log has, and
    /// [`AnchorError::Forked`] if one remembers other entries: another daemon continues it.
    pub fn remember(&self, tip: &Tip) -> Result<bool, AnchorError> {
        let mut written = 0;
        let mut answering = 0;
        for place in self.places.iter().filter(|place| place.written) {
            match self.remember_at(place, tip)? {
                Some(remembered) => {
                    answering += 1;
                    written += u64::from(remembered);
                }
                None => continue,
            }
        }
        self.state.answering.store(answering, Relaxed);
        Ok(written > 0 || self.optional || !self.are_written())
    }

    /// Whether an anchor now remembers a head; `None` if it does not answer.
    fn remember_at(&self, place: &Place, tip: &Tip) -> Result<Option<bool>, AnchorError> {
        let failed = |error: Unreadable| {
            let error = place.why(error);
            tracing::error!(anchor = %place.at, error, "an anchor cannot be written");
        };
        let known = match &place.at {
            AnchorPlace::Url(_) => return Ok(Some(false)),
            AnchorPlace::Directory(path) => {
                let mut file = place.file.lock();
                let known =
                    hold(&mut file, path, tip.checkpoint.origin()).and_then(HeadFile::known);
                match known {
                    Ok(known) => known,
                    Err(error) => {
                        // The next try opens the file again: an operator may have restored the
                        // directory.
                        *file = None;
                        failed(error.into());
                        return Ok(None);
                    }
                }
            }
            AnchorPlace::File(_) => match self.read(place, tip.checkpoint.origin(), &[]) {
                Ok(Read::Known(known)) => Some(known),
                Ok(Read::New | Read::Missing(_)) => None,
                Err(error) => {
                    failed(error);
                    return Ok(None);
                }
            },
        };
        // A smaller head is overwritten; the next start detects a fork below it.
        if let Some(known) = known.filter(|known| {
            known.checkpoint.origin() == tip.checkpoint.origin()
                && known.checkpoint.size() >= tip.size()
        }) {
            let own = Own {
                origin: tip.checkpoint.origin(),
                former: &[],
                tip: (tip.size(), tip.checkpoint.root()),
                root_at: &|_| Ok(tip.checkpoint.root()),
            };
            if let Standing::Behind(what) = stand(&place.at, &known, &own)? {
                return Err(AnchorError::Ahead(what));
            }
            // An unsigned head gives way to the signed one, which a reader can verify.
            let is_signed = Note::parse(&known.text).is_ok();
            if is_signed || tip.note.is_none() {
                return Ok(Some(true));
            }
        }
        match place.write(tip) {
            Ok(written) => Ok(Some(written)),
            Err(error) => {
                failed(error.into());
                Ok(None)
            }
        }
    }

    /// Has the written anchors remember a new log, whatever they remembered of the log that it
    /// continues, and that the old log was continued, so that an old copy is recognised.
    ///
    /// # Errors
    /// [`AnchorError::Io`] if one cannot be written; otherwise as [`Anchors::remember`].
    pub fn overwrite(&self, head: &Head, old_origin: &str) -> Result<(), AnchorError> {
        let tip = Tip::from(head);
        for place in self.places.iter().filter(|place| place.written) {
            let failed = |error| FileError::of("write", place.path())(error);
            match &place.at {
                AnchorPlace::File(_) => {
                    place.write(&tip).map_err(failed)?;
                }
                AnchorPlace::Directory(path) => {
                    if self.remember_at(place, &tip)?.is_none() {
                        return Err(failed(io::Error::other("see the log for why")).into());
                    }
                    let origin = tip.checkpoint.origin();
                    // The new log's head comes first: a crash in between must not leave a successor
                    // that no anchor knows.
                    directory::succeeded(path, old_origin, origin, &tip.key_id).map_err(failed)?;
                }
                AnchorPlace::Url(_) => {}
            }
        }
        Ok(())
    }

    /// The largest head of a log that any anchor remembers, with the anchor.
    #[must_use]
    pub fn largest(&self, origin: &str) -> Option<(AnchorPlace, Checkpoint)> {
        self.places
            .iter()
            .filter_map(|place| match self.read(place, origin, &[]) {
                Ok(Read::Known(found)) => Some((place.at.clone(), found.checkpoint)),
                _ => None,
            })
            .max_by_key(|(_, found)| found.size())
    }

    fn read(&self, place: &Place, origin: &str, former: &[String]) -> Result<Read, Unreadable> {
        let bytes = match &place.at {
            AnchorPlace::Directory(path) => {
                return read_directory(path, place.remembered, origin, former);
            }
            AnchorPlace::File(path) => match fs::read(path) {
                Ok(bytes) if bytes.is_empty() && place.remembered => {
                    return Ok(Read::Missing(
                        "the head that it remembered is gone".to_owned(),
                    ));
                }
                Ok(bytes) if bytes.is_empty() => return Ok(Read::New),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Read::Missing(format!(
                        "it is not there; mount its volume, or if it is a new anchor make it: touch {}",
                        path.display()
                    )));
                }
                Err(error) => return Err(error.into()),
            },
            AnchorPlace::Url(url) => {
                let asked = fetch::get(url, MAX_CHECKPOINT, Trust::System);
                let Some(bytes) = self.runtime.block_on(asked)? else {
                    return Ok(Read::Missing(
                        "the server has no checkpoint there".to_owned(),
                    ));
                };
                bytes
            }
        };
        // The signer does not matter: a head that cannot be verified, because its key is younger
        // than a restored database, must also stop the daemon.
        Known::parse(&bytes)
            .map(Read::Known)
            .ok_or(Unreadable::NoCheckpoint)
    }
}

/// Reads what a directory remembers of a log. `remembered`: the database says that it remembered
/// something.
fn read_directory(
    path: &Path,
    remembered: bool,
    origin: &str,
    former: &[String],
) -> Result<Read, Unreadable> {
    if !path.is_dir() {
        return Ok(Read::Missing("the directory is not there".to_owned()));
    }
    if let Some(known) = directory::read(&directory::file_of(path, origin))? {
        return Ok(Read::Known(known));
    }
    // The log was restarted, and its daemon died before the anchors knew.
    for former in former {
        if let Some(known) = directory::read(&directory::file_of(path, former))?
            && known.successor().is_none()
        {
            return Ok(Read::Known(known));
        }
    }
    Ok(if remembered {
        Read::Missing(format!(
            "the directory is there, and the head of {origin:?} that it remembered is not"
        ))
    } else {
        Read::New
    })
}

enum Read {
    Known(Known),
    /// The directory never remembered a head of this log.
    New,
    /// The anchor, or its head, is missing; with the remedy.
    Missing(String),
}

fn recalled(anchor: &RememberedAnchor) -> AnchorPlace {
    let path = |bytes: &Vec<u8>| PathBuf::from(std::ffi::OsString::from_vec(bytes.clone()));
    match anchor {
        RememberedAnchor::File(bytes) => AnchorPlace::File(path(bytes)),
        RememberedAnchor::Directory(bytes) => AnchorPlace::Directory(path(bytes)),
        RememberedAnchor::Url(url) => AnchorPlace::Url(url.clone()),
    }
}

fn restored_text(restored: &Restored, entries: u64) -> String {
    format!(
        "this directory was restored from a backup of {} entries: reads are served, nothing is signed or charged, since what was signed after the backup is missing here. `evidenceos-daemon log recover --from URL|DIR` brings it back; `log restart` begins under another name if it is lost; {STATEMENT}. An anchor that remembers exactly these {entries} entries lets the log go on by itself",
        restored.entries
    )
}

/// The relation of an anchor's head to this log.
///
/// # Errors
/// [`AnchorError::OtherLog`] if it is of another log, [`AnchorError::Forked`] if it was signed over
/// other entries.
fn stand(place: &AnchorPlace, known: &Known, own: &Own<'_>) -> Result<Standing, AnchorError> {
    let found = &known.checkpoint;
    if found.origin() != own.origin {
        // This log continues that one, and its first entry binds its head.
        if own.former.iter().any(|former| former == found.origin()) {
            return Ok(Standing::Covered);
        }
        return Err(AnchorError::OtherLog {
            place: place.clone(),
            found: found.origin().to_owned(),
            ours: own.origin.to_owned(),
        });
    }
    let (size, root) = (found.size(), found.root());
    let ours = match size.cmp(&own.tip.0) {
        Ordering::Less => Some((own.root_at)(size)?),
        Ordering::Equal => Some(own.tip.1),
        Ordering::Greater => None,
    };
    if let Some(ours) = ours.filter(|ours| *ours != root) {
        return Err(AnchorError::Forked {
            place: place.clone(),
            size,
            found: root,
            ours,
        });
    }
    if let Some(successor) = known.successor() {
        return Ok(Standing::Behind(Ahead::Restarted {
            place: place.clone(),
            origin: found.origin().to_owned(),
            successor: successor.to_owned(),
        }));
    }
    if ours.is_none() {
        return Ok(Standing::Behind(Ahead::Longer {
            place: place.clone(),
            size,
            root,
            own: own.tip.0,
        }));
    }
    Ok(Standing::Covered)
}

#[cfg(test)]
mod tests {
    use super::{directory::HeadError, *};

    #[test]
    fn a_denial_names_the_anchor_its_owner_and_a_command() {
        let home = tempfile::tempdir().expect("a directory");
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        for at in [
            AnchorPlace::File(home.path().to_owned()),
            AnchorPlace::Directory(home.path().to_owned()),
        ] {
            let place = Place {
                at,
                remembered: true,
                written: true,
                file: Mutex::default(),
            };
            let of_one_head = HeadError::Of {
                name: "log.head".to_owned(),
                source: Box::new(denied().into()),
            };
            for why in [place.why(denied()), place.why(of_one_head)] {
                assert!(why.contains("belongs to uid"), "{why}");
                assert!(why.contains("Run: "), "{why}");
            }
            let torn = place.why(HeadError::Torn);
            assert_eq!(torn, "neither of its two heads can be read");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_its_name_to_who_reports_it() {
        let home = tempfile::tempdir().expect("a directory");
        let place = Place {
            at: AnchorPlace::File(home.path().join("missing/head")),
            remembered: false,
            written: true,
            file: Mutex::default(),
        };
        let tip = Tip {
            checkpoint: Checkpoint::new("o", 1, Hash([1; 32])).expect("a name"),
            note: Some("a note".to_owned()),
            key_id: String::new(),
        };
        let error = place.write(&tip).expect_err("it has no directory");
        assert_eq!(
            error.to_string(),
            "cannot write it: No such file or directory (os error 2)"
        );
    }
}
