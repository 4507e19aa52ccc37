//! Facts that a database stores about itself, beside its rows and its log.
//!
//! One value per name: the places of the log's anchors; whether the directory was restored from a backup and the
//! operator has not yet stated what happened since; that a log is about to begin with a key which this start creates;
//! and the policies that its log stated last. The facts travel with every copy of the database on purpose: a copy at
//! another path looks at the same anchors, and a copy of a backup is known as one.

use serde::{Deserialize, Serialize};

/// The place of an anchor, which remembers the log's newest head, as the last start that signed had
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RememberedAnchor {
    /// One file, by its absolute path.
    File(Vec<u8>),
    /// A directory with one file per log, by its absolute path.
    Directory(Vec<u8>),
    /// The URL of a published checkpoint.
    Url(String),
}

/// Marks a database that is a copy made by a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Time of the backup, in Unix milliseconds.
    pub made_unix_ms: u64,
    /// Number of entries in its log.
    pub entries: u64,
}

/// A log is about to begin with a key that this start creates. Noted before the key is stored
/// anywhere: if the start dies in between, the next one knows that the key has signed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beginning {
    /// SHA-256 of the public key.
    pub key_id: [u8; 32],
}

/// All facts that a database stores about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The places of the anchors; `None`: no start has signed beside one yet.
    pub anchors: Option<Vec<RememberedAnchor>>,
    /// Set if the database is a copy and the operator has not yet stated what happened since.
    pub restored: Option<Restored>,
    /// Set if a log was about to begin.
    pub beginning: Option<Beginning>,
    /// Names of the log before restarts, the last one last.
    pub former: Vec<String>,
}

/// A fact to store from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// Replaces [`Facts::anchors`], whatever they were.
    Anchors(Vec<RememberedAnchor>),
    /// Replaces [`Facts::restored`]; `None` clears it.
    Restored(Option<Restored>),
    /// Replaces [`Facts::beginning`]; `None` clears it.
    Beginning(Option<Beginning>),
    /// Replaces [`Facts::former`], whatever it was.
    Former(Vec<String>),
}

impl Facts {
    /// Takes over a committed fact.
    pub fn note(&mut self, fact: &Fact) {
        match fact {
            Fact::Anchors(anchors) => self.anchors = Some(anchors.clone()),
            Fact::Restored(restored) => self.restored = *restored,
            Fact::Beginning(beginning) => self.beginning = *beginning,
            Fact::Former(former) => self.former.clone_from(former),
        }
    }
}
