//! The log's beginning, the keys that sign it, and its restart after its end was lost.

use evidenceos_kernel::{
    continuity::{HoldoutCharged, LogRestarted},
    id::Digest,
    log_key::KeyRotated,
    record::RecordError,
};
use evidenceos_tlog::Hash;

use super::{Event, Replay};
use crate::{
    fault::{Check, Fault},
    fields::{Fields, public_text, value},
    trust::check_signatures,
};

/// The operator's statement in a continuation.
const NOTHING_SIGNED: &str = "nothing_was_signed_since";
/// The reasons why a log may begin.
const BEGUN_BY: [&str; 3] = ["new_key", "anchor", "operator"];
/// The longest software and origin, in bytes.
const LONGEST_NAME: usize = 256;

/// A restart whose charges are being read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Restart {
    index: u64,
    /// The number of holdouts at the restart, and the number of them that were charged or passed
    /// over.
    holdouts: usize,
    next: usize,
}

impl Replay {
    pub(super) fn started(&mut self, mut fields: Fields) -> Result<(), Fault> {
        self.origin = fields.text("origin")?;
        self.keys.first = Some(fields.digest("key_id_hex")?);
        self.key_id = self.keys.first;
        let software = fields.text("software")?;
        fields.int("started_unix_ms")?;
        if let Some(begun_by) = fields.maybe_text("begun_by")? {
            self.modern = true;
            self.begun_modern = true;
            if !BEGUN_BY.contains(&begun_by.as_str()) {
                return Err(RecordError::Field("begun_by".to_owned()).into());
            }
        }
        fields.finish()?;
        for (name, text) in [("origin", &self.origin), ("software", &software)] {
            if text.is_empty() || text.len() > LONGEST_NAME || text.chars().any(char::is_control) {
                return Err(
                    value(name, "must be 1 to 256 bytes without control characters").into(),
                );
            }
        }
        Ok(())
    }

    pub(super) fn key_rotated(
        &mut self,
        index: u64,
        entry: &[u8],
        root_before: Hash,
    ) -> Result<(), Fault> {
        let signed = KeyRotated::parse(entry)?.signed;
        let link = &signed.link;
        Check::Keys.equal("origin", link.origin.as_str(), self.origin.as_str())?;
        Check::Keys.equal("tree_size", link.tree_size, index)?;
        Check::Keys.equal(
            "root_hash_hex",
            Hash(link.root).to_string(),
            root_before.to_string(),
        )?;
        Check::Keys.holds(
            self.key_id == Some(Digest::of(&link.old_public_key)),
            "the old key of a link is the key that has signed so far",
        )?;
        Check::Keys.holds(
            link.old_public_key != link.new_public_key,
            "the new key of a link differs from the old key",
        )?;
        check_signatures(&signed)?;
        // Until both signatures hold, the old key stays: a forged link must not put another key in
        // force.
        self.key_id = Some(Digest::of(&link.new_public_key));
        self.keys.links.push(signed.link);
        Ok(())
    }

    /// Checks a restart: the log goes on under another name, and the entry binds everything before
    /// it.
    pub(super) fn restarted(
        &mut self,
        index: u64,
        entry: &[u8],
        root_before: Hash,
    ) -> Result<(), Fault> {
        let restarted = LogRestarted::parse(entry)?;
        // Whatever the entry binds, the name changes from here on.
        let before = std::mem::replace(&mut self.origin, restarted.origin.clone());
        self.named_at = index;
        self.restart = Some(Restart {
            index,
            holdouts: self.books.len(),
            next: 0,
        });
        for book in &mut self.books {
            book.carried_on = true;
        }
        self.events.push((
            index,
            Event::Restarted {
                old_origin: restarted.old_origin.clone(),
                origin: restarted.origin.clone(),
                because: restarted.because.clone(),
            },
        ));
        public_text("because", &restarted.because)?;
        Check::Restart.equal("old_origin", restarted.old_origin.as_str(), before.as_str())?;
        Check::Restart.holds(
            restarted.origin != restarted.old_origin,
            "a restart gives the log another name",
        )?;
        Check::Restart.equal("old_size", restarted.old.size, index)?;
        Check::Restart.equal(
            "old_root_hash_hex",
            Hash(restarted.old.root).to_string(),
            root_before.to_string(),
        )
    }

    /// Checks a holdout's charge for lost entries: as the operator states it, or the worst case.
    pub(super) fn charged(&mut self, index: u64, entry: &[u8]) -> Result<(), Fault> {
        let charged = HoldoutCharged::parse(entry)?;
        let at = *self
            .by_id
            .get(&charged.holdout)
            .ok_or(Fault::UnknownHoldout(charged.holdout))?;
        self.events.push((
            index,
            Event::Charged {
                holdout: charged.holdout,
                sealed: charged.sealed,
                stated: charged.stated,
            },
        ));
        let in_turn = match self.restart {
            Some(Restart { next, holdouts, .. }) => (next..holdouts).contains(&at),
            None => false,
        };
        // Holdouts registered before this one that were passed over had nothing left to charge.
        let passed_over = match &mut self.restart {
            Some(restart) if in_turn => {
                let passed_over = restart.next..at;
                restart.next = at + 1;
                passed_over
            }
            _ => 0..0,
        };
        for other in passed_over {
            self.pass_over(other, index);
        }
        let (sealed, answers) = (charged.sealed.get(), charged.answers.get());
        let book = &mut self.books[at];
        let within = book.add(sealed, answers);
        if !charged.stated {
            book.exhaust(index);
        }
        Check::Restart.holds(
            in_turn,
            "charges follow a restart, in the order of registration, one for each holdout",
        )?;
        within
    }

    /// Checks a holdout that a restart does not charge: nothing was left, all was charged or
    /// reserved.
    fn pass_over(&mut self, at: usize, index: u64) {
        let modern = self.modern;
        let book = &mut self.books[at];
        if modern && !book.ledger.withdrawn {
            book.exhaust(index);
        }
    }

    pub(super) fn close_restart(&mut self, _index: u64) {
        let Some(restart) = self.restart.take() else {
            return;
        };
        for at in restart.next..restart.holdouts {
            self.pass_over(at, restart.index);
        }
    }

    /// Checks an operator's statement that the log did not grow elsewhere: the entry binds the tree before it.
    pub(super) fn continued(
        &mut self,
        index: u64,
        mut fields: Fields,
        root_before: Hash,
    ) -> Result<(), Fault> {
        self.modern = true;
        for book in &mut self.books {
            book.carried_on = true;
        }
        let origin = fields.text("origin")?;
        let size = fields.int("size")?;
        let root = fields.digest("root_hash_hex")?;
        let statement = fields.text("statement")?;
        let because = fields.public_text("because")?;
        fields.int("stated_unix_ms")?;
        fields.finish()?;
        self.events.push((index, Event::Continued { because }));
        Check::Continuation.equal("origin", origin.as_str(), self.origin.as_str())?;
        Check::Continuation.equal("size", size, index)?;
        Check::Continuation.equal("root_hash_hex", root, Digest(root_before.0))?;
        Check::Continuation.equal("statement", statement.as_str(), NOTHING_SIGNED)
    }
}
