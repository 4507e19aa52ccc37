//! Checks data that only grows: entries, the signed head over them, the keys that signed, the
//! journal.

use super::{Examination, RESTORE, TELL, each};
use crate::{Recorded, StoreError, row, state::chain, tables::Table};
use evidenceos_kernel::{
    claim::Claim,
    entry::Entry,
    log_key::{LogKey, SignedKeyLink},
    record::{self, ClaimRevoked},
};
use evidenceos_tlog::{
    Hash, SignedCheckpoint, Tree, VerifierKey, leaf_hash, note::KeyKind, sth::verify_sth,
};

/// Runs through the entries in order; if `noting`, notes a gap or a wrong leaf hash.
pub(super) fn each_entry(
    on: &mut Examination<'_>,
    noting: bool,
    mut look: impl FnMut(&mut Examination<'_>, u64, Hash, &[u8]) -> Result<(), StoreError>,
) -> Result<u64, StoreError> {
    let total = on.state.counters.next_index;
    let mut next = 0;
    each(on, Table::Entries, total, |on, row| {
        let (index, bytes) = (row.number(), row.bytes(1));
        if noting && index != next {
            let what = format!("entries {next} to {} are missing", index - 1);
            on.note("entries", next, what, RESTORE);
        }
        let hash = leaf_hash(bytes);
        if noting && hash.0[..] != *row.bytes(0) {
            on.note(
                "entries",
                index,
                "its bytes do not match its leaf hash",
                RESTORE,
            );
        }
        next = index + 1;
        look(on, index, hash, bytes)
    })
}

/// Every entry matches its leaf hash, and all of them lead to the signed root.
pub(super) fn entries(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let head = on.state.head.clone();
    let size = head.as_ref().map_or(0, |head| head.size);
    let mut tree = Tree::new();
    let mut root = tree.root();
    let looked_at = each_entry(on, true, |on, index, leaf, bytes| {
        tree.append(leaf);
        drop(tree.take_full_tiles());
        // With a key in a KMS the head may be behind the entries.
        if tree.size() == size {
            root = tree.root();
        }
        let canonical = record::schema_of(bytes).is_some();
        on.must(
            canonical,
            ("entries", index),
            || "it is not a record of this log: not canonical JSON with a schema".to_owned(),
            RESTORE,
        );
        Ok(())
    })?;
    on.must(
        size <= tree.size() && head.is_none_or(|head| head.root() == root),
        ("entries", "all"),
        || format!("they do not lead to the signed root over {size}"),
        RESTORE,
    );
    Ok(looked_at)
}

/// The key that signs trees of a size.
pub(super) fn key_at(keys: &[LogKey], size: u64) -> Option<&LogKey> {
    keys.iter().rev().find(|key| key.since_size <= size)
}

pub(super) fn verifier(origin: &str, key: &LogKey) -> Option<VerifierKey> {
    VerifierKey::new(origin, KeyKind::Ed25519, &key.public_key).ok()
}

/// The keys in their rows; notes unreadable ones.
pub(super) fn all_keys(on: &mut Examination<'_>) -> Result<Vec<LogKey>, StoreError> {
    let mut keys = Vec::new();
    each(on, Table::LogKeys, 0, |on, row| {
        keys.extend(on.decoded::<LogKey>("log_keys", row.number(), row.bytes(0)));
        Ok(())
    })?;
    Ok(keys)
}

/// The signatures of the newest head, in both forms, are by the key of its size.
pub(super) fn head(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let Some(head) = on.state.head.clone() else {
        on.must(
            on.state.counters.next_index == 0,
            ("state", "head"),
            || "there are entries and no signed head".to_owned(),
            RESTORE,
        );
        return Ok(0);
    };
    let keys = all_keys(on)?;
    let at = ("state", "head");
    let Some(key) = key_at(&keys, head.size) else {
        on.note(at.0, at.1, "no key is known for its size", RESTORE);
        return Ok(1);
    };
    let signature = <[u8; 64]>::try_from(head.signature.as_slice());
    let signed = signature
        .is_ok_and(|signature| verify_sth(&key.public_key, head.size, head.root(), &signature));
    on.must(
        signed && key.id == head.key_id,
        at,
        || "its signature does not verify under the log's key".to_owned(),
        RESTORE,
    );
    let origin = head.checkpoint.lines().next().unwrap_or_default();
    let noted = verifier(origin, key)
        .and_then(|key| SignedCheckpoint::open(head.checkpoint.as_bytes(), &key, &[]).ok());
    let same = noted.is_some_and(|note| {
        note.checkpoint().size() == head.size && note.checkpoint().root() == head.root()
    });
    on.must(
        same,
        at,
        || "its checkpoint does not verify, or is of another tree".to_owned(),
        RESTORE,
    );
    Ok(1)
}

/// The keys in the log's entries are those in the table, and each key vouches for the next.
pub(super) fn log_keys(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let keys = all_keys(on)?;
    let mut known = keys.iter();
    let mut current = known.next().copied();
    let mut tree = Tree::new();
    each_entry(on, false, |on, index, leaf, bytes| {
        let before = tree.root();
        tree.append(leaf);
        drop(tree.take_full_tiles());
        match Entry::parse(bytes) {
            Ok(Entry::LogStarted(started)) => {
                let fits = current.is_some_and(|key| key.id == started.key_id);
                on.must(
                    fits,
                    ("log_keys", index),
                    || "the log began under another key than the table says".to_owned(),
                    RESTORE,
                );
            }
            Ok(Entry::KeyRotated(rotated)) => {
                let next = known.next().copied();
                let link = &rotated.signed.link;
                let fits = link.tree_size == index
                    && link.root == before.0
                    && current.is_some_and(|key| key.public_key == link.old_public_key)
                    && next == Some(LogKey::new(link.new_public_key, index + 1))
                    && is_signed(&rotated.signed);
                on.must(
                    fits,
                    ("log_keys", index),
                    || "the link to the next key is not signed by both, or the table has another key".to_owned(),
                    RESTORE,
                );
                current = next;
            }
            _ => {}
        }
        Ok(())
    })?;
    let left = known.count();
    on.must(
        left == 0,
        ("log_keys", "all"),
        || format!("the table has {left} keys that the log does not name"),
        RESTORE,
    );
    Ok(keys.len() as u64)
}

fn is_signed(signed: &SignedKeyLink) -> bool {
    let digest = signed.link.digest();
    [
        (signed.link.old_public_key, signed.old_signature),
        (signed.link.new_public_key, signed.new_signature),
    ]
    .iter()
    .all(|(key, signature)| {
        VerifierKey::new(&signed.link.origin, KeyKind::Ed25519, key)
            .is_ok_and(|key| key.verify_bytes(digest.as_bytes(), signature))
    })
}

/// The journal is one chain from its first row, and has as many events as were counted.
pub(super) fn journal(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let total = on.state.journal_seq;
    let (mut end, mut next, mut events, mut broken) = ([0; 32], 1, 0_u64, false);
    let looked_at = each(on, Table::Journal, total, |on, row| {
        let (seq, bytes) = (row.number(), row.bytes(0));
        let link = chain(&end, bytes);
        if !broken && (seq != next || link != *row.bytes(1)) {
            // Every later row would fail for the same reason.
            broken = true;
            on.note(
                "journal",
                seq,
                "it breaks the chain of the journal",
                RESTORE,
            );
        }
        end = link;
        next = seq + 1;
        match postcard::from_bytes::<Vec<Recorded>>(bytes) {
            Ok(commands) => {
                let count = |command: &Recorded| command.events.len() as u64;
                events += commands.iter().map(count).sum::<u64>();
            }
            Err(_) => on.note("journal", seq, "it does not decode", RESTORE),
        }
        Ok(())
    })?;
    on.must(
        broken || end == on.state.journal_chain,
        ("journal", total),
        || "it does not end the chain that the state row names".to_owned(),
        RESTORE,
    );
    let counted = on.state.counters.events;
    on.must(
        events == counted,
        ("journal", "all"),
        || format!("it has {events} events, {counted} were counted"),
        TELL,
    );
    Ok(looked_at)
}

/// Checks that each row of the feed names a claim that the row's entry revoked.
pub(super) fn revocations(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let total = on.tables.count(Table::Revocations)?;
    each(on, Table::Revocations, total, |on, revoked| {
        let (index, claim) = (revoked.number(), revoked.number_in(0));
        let revocation = (on.tables.row(Table::Claims, &[claim.into()])?)
            .and_then(|found| row::decode::<Claim>("claims", claim, found.bytes(2)).ok())
            .and_then(|claim| claim.revocation.map(|revocation| (claim.id, revocation)));
        let entry = on.tables.row(Table::Entries, &[index.into()])?;
        let named = entry.and_then(|entry| ClaimRevoked::parse(entry.bytes(1)).ok());
        let fits = revocation.is_some_and(|(id, revocation)| {
            revocation.index == index && named.is_some_and(|entry| entry.claim == id)
        });
        on.must(
            fits,
            ("revocations", index),
            || "the claim that it names was not revoked there".to_owned(),
            RESTORE,
        );
        Ok(())
    })
}
