//! What a database remembers about itself, beside its rows and its log.
//!
//! One value a name: where the log's anchors are, whether the directory was restored from a
//! backup and nobody has said yet what happened since, that a log is about to begin with a key
//! which this start makes, and which policies its log has stated last. They travel with every copy of the database, which is the point: a copy
//! at another path looks at the same anchors, and a copy of a backup is known as one.

use serde::{Deserialize, Serialize};

/// A place that remembers the log's newest head, as the last start that signed had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RememberedAnchor {
    /// One file, by its absolute path.
    File(Vec<u8>),
    /// A directory with a file for each log, by its absolute path.
    Directory(Vec<u8>),
    /// The URL of a published checkpoint.
    Url(String),
}

/// The database is a copy that a backup made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// When the backup was made, in Unix milliseconds.
    pub made_unix_ms: u64,
    /// Entries that its log had.
    pub entries: u64,
}

/// A log is about to begin with a key that this very start makes. Noted before the key lies
/// anywhere: if the start dies in between, the next one knows that the key has signed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beginning {
    /// SHA-256 of the public key.
    pub key_id: [u8; 32],
}

/// Everything that a database remembers about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Where anchors are; none: no start has signed beside one yet.
    pub anchors: Option<Vec<RememberedAnchor>>,
    /// Whether it is a copy of which nobody has said what happened since.
    pub restored: Option<Restored>,
    /// Whether a log was about to begin.
    pub beginning: Option<Beginning>,
    /// The names that the log had before it was restarted, the last one last.
    pub former: Vec<String>,
}

/// One of them, as it is to be from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// Replaces [`Facts::anchors`], whatever was there.
    Anchors(Vec<RememberedAnchor>),
    /// Replaces [`Facts::restored`]; `None` clears it.
    Restored(Option<Restored>),
    /// Replaces [`Facts::beginning`]; `None` clears it.
    Beginning(Option<Beginning>),
    /// Replaces [`Facts::former`], whatever was there.
    Former(Vec<String>),
}

impl Facts {
    /// Takes over a fact that was committed.
    pub fn note(&mut self, fact: &Fact) {
        match fact {
            Fact::Anchors(anchors) => self.anchors = Some(anchors.clone()),
            Fact::Restored(restored) => self.restored = *restored,
            Fact::Beginning(beginning) => self.beginning = *beginning,
            Fact::Former(former) => self.former.clone_from(former),
        }
    }
}
