//! Whether a log may begin beside these anchors.

use std::sync::atomic::Ordering::Relaxed;

use evidenceos_kernel::{continuity::BegunBy, id::Digest};
use evidenceos_tlog::{SignedCheckpoint, VerifierKey, note::KeyKind};

use super::{
    Anchors, Read,
    directory::{self, BeginLock, Known},
    error::{AnchorError, Unreadable},
    place::Place,
};
use crate::anchors::AnchorPlace;

/// The permission to begin a log.
pub struct Begun {
    /// The reason for which it may begin, as entry 0 states it.
    pub by: BegunBy,
    /// Until the anchors have its first head, no other start begins a log beside them.
    _locks: Vec<BeginLock>,
}

/// The log that a start would begin.
pub struct Beginner<'b> {
    /// The name of the new log.
    pub origin: &'b str,
    /// The available public keys, including the one that would sign.
    pub keys: Vec<[u8; 32]>,
    /// Whether this start made the key.
    pub made_key: bool,
    /// The name that the operator gives with `--begin-log`, if any.
    pub stated: Option<&'b str>,
}

impl Anchors {
    /// Whether an empty data directory may begin a log: its key is new, or an anchor confirms that
    /// nothing was signed, or the operator states it.
    ///
    /// # Errors
    /// [`AnchorError::MayHaveSigned`] if none of this is so; [`AnchorError::Lost`] if an anchor
    /// remembers this very log; [`AnchorError::OtherBegins`] if the operator names another log;
    /// [`AnchorError::NoneAnswers`] or [`AnchorError::NotMade`] if no anchor could remember it.
    pub fn begin(&self, beginner: &Beginner<'_>) -> Result<Begun, AnchorError> {
        if let Some(stated) = beginner.stated.filter(|stated| *stated != beginner.origin) {
            return Err(AnchorError::OtherBegins {
                stated: stated.to_owned(),
                origin: beginner.origin.to_owned(),
            });
        }
        // This comes before directories are made: a directory that this start makes cannot confirm
        // that nothing was signed before.
        let was_there: Vec<bool> = self.places.iter().map(Place::is_there).collect();
        let is_sure = beginner.made_key || beginner.stated.is_some();
        // Otherwise nothing is made: a refused start must not leave an anchor that the next start
        // takes for an old one.
        if is_sure {
            self.make_default()?;
            self.places.iter().for_each(Place::make);
        }
        let mut locks = Vec::new();
        let mut looked = Looked::default();
        for (place, was_there) in self.places.iter().zip(was_there) {
            if let AnchorPlace::Directory(path) = &place.at
                && path.is_dir()
            {
                match BeginLock::take(path) {
                    Ok(lock) => locks.push(lock),
                    Err(error) => {
                        looked.silent(place, error);
                        continue;
                    }
                }
            }
            self.look(place, was_there, beginner, &mut looked)?;
        }
        self.state.answering.store(looked.answering, Relaxed);
        if is_sure && looked.answering == 0 && !self.places.is_empty() && !self.optional {
            return Err(AnchorError::NoneAnswers {
                silent: looked.silent.join("; "),
            });
        }
        let by = if beginner.made_key {
            BegunBy::NewKey
        } else if looked.knows_nothing && looked.of_key.is_none() && looked.silent.is_empty() {
            BegunBy::Anchor
        } else if beginner.stated.is_some() {
            BegunBy::Operator
        } else {
            return Err(looked.refusal(beginner.origin));
        };
        Ok(Begun { by, _locks: locks })
    }

    fn look(
        &self,
        place: &Place,
        was_there: bool,
        beginner: &Beginner<'_>,
        looked: &mut Looked,
    ) -> Result<(), AnchorError> {
        let lost = |found: &Known| AnchorError::Lost {
            place: place.at.clone(),
            size: found.checkpoint.size(),
            origin: found.checkpoint.origin().to_owned(),
        };
        if let AnchorPlace::Directory(path) = &place.at {
            let heads = match directory::scan(path) {
                Ok(heads) => heads,
                Err(error) => {
                    looked.silent(place, error);
                    return Ok(());
                }
            };
            looked.answering += 1;
            looked.knows_nothing |= was_there;
            for (_, known) in heads {
                if known.checkpoint.origin() == beginner.origin {
                    return Err(lost(&known));
                }
                if beginner.keys.iter().any(|key| is_signed_by(&known, key)) {
                    let size = known.checkpoint.size();
                    looked.of_key = Some(format!(
                        "anchor {} remembers {size} entries of {:?} that this key signed",
                        place.at,
                        known.checkpoint.origin()
                    ));
                }
            }
            return Ok(());
        }
        match self.read(place, beginner.origin, &[]) {
            Ok(Read::Known(found)) => Err(lost(&found)),
            Ok(Read::New) => {
                looked.answering += 1;
                looked.knows_nothing |= was_there;
                Ok(())
            }
            Ok(Read::Missing(_)) => {
                looked.answering += 1;
                Ok(())
            }
            Err(error) => {
                looked.silent(place, error);
                Ok(())
            }
        }
    }
}

/// The findings before a log begins.
#[derive(Default)]
struct Looked {
    answering: u64,
    /// An anchor that existed before this start answers, and knows no head of the log.
    knows_nothing: bool,
    /// In words: the head of another log that the key signed, if an anchor remembers one.
    of_key: Option<String>,
    silent: Vec<String>,
}

impl Looked {
    fn silent(&mut self, place: &Place, error: impl Into<Unreadable>) {
        let why = place.why(error);
        tracing::warn!(anchor = %place.at, why, "an anchor does not answer");
        self.silent.push(format!("{}: {why}", place.at));
    }

    fn refusal(&self, origin: &str) -> AnchorError {
        let seen = match (&self.of_key, self.silent.as_slice()) {
            (Some(known), _) => known.clone(),
            (None, []) => "no anchor that was there before this start can tell".to_owned(),
            (None, silent) => silent.join("; "),
        };
        AnchorError::MayHaveSigned {
            seen,
            origin: origin.to_owned(),
        }
    }
}

fn is_signed_by(known: &Known, public_key: &[u8; 32]) -> bool {
    let id = Digest::of(public_key).to_hex();
    if known.named_keys().any(|named| named == id) {
        return true;
    }
    VerifierKey::new(known.checkpoint.origin(), KeyKind::Ed25519, public_key)
        .is_ok_and(|key| SignedCheckpoint::open(&known.text, &key, &[]).is_ok())
}
