//! A data directory with a store in it, and rows to put there.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

pub(crate) use evidenceos_kernel::testing::{START_UNIX_MS, claim, owner};
use evidenceos_kernel::{
    account::Account,
    bits::MicroBits,
    command::{Event, Remembered, RememberedResult},
    holdout::{Description, Holdout, HoldoutStatus, Meter, Policy},
    id::{Digest, Fingerprint, HoldoutId, OwnerTag, RequestKey},
    refusal::Refusal,
    state::{Changes, Counters},
    testing,
};
use evidenceos_store::{
    Batch, Entry, Found, Head, Module, ModuleBytes, OpenedStore, Outcome, Recorded, Rows,
    StoreEngine, memory::MemoryDisk, sqlite,
};
use evidenceos_tlog::{Checkpoint, SignedCheckpoint, SignerKey, Tree, leaf_hash};
use tempfile::TempDir;

/// Where an engine keeps a store, so that it can be opened again.
#[derive(Clone)]
enum Place {
    Sqlite(Arc<TempDir>),
    Memory(MemoryDisk),
}

impl Place {
    fn sqlite() -> Self {
        Self::Sqlite(Arc::new(tempfile::tempdir().expect("a directory")))
    }

    /// An empty place for each engine. Another one joins the contract here.
    fn of_each_engine() -> Vec<Self> {
        vec![Self::sqlite(), Self::Memory(MemoryDisk::default())]
    }

    fn open(&self) -> OpenedStore {
        match self {
            Self::Sqlite(directory) => sqlite::open(directory.path()).expect("our own store"),
            Self::Memory(disk) => disk.open(),
        }
    }
}

/// A store and the counters of its last batch.
pub(crate) struct Disk {
    place: Place,
    pub(crate) store: Box<dyn StoreEngine>,
    rows: Arc<dyn Rows>,
    pub(crate) counters: Counters,
    pub(crate) tree: Tree,
}

impl Disk {
    /// A store of SQLite, in a directory.
    pub(crate) fn new() -> Self {
        Self::at(Place::sqlite())
    }

    /// An empty store of each engine.
    pub(crate) fn of_each_engine() -> impl Iterator<Item = Self> {
        Place::of_each_engine().into_iter().map(Self::at)
    }

    fn at(place: Place) -> Self {
        let OpenedStore { store, rows, found } = place.open();
        assert_eq!(found.counters, Counters::default());
        Self {
            place,
            store,
            rows,
            counters: Counters {
                now_unix_ms: START_UNIX_MS,
                ..Counters::default()
            },
            tree: Tree::new(),
        }
    }

    /// Closes the store and opens it again.
    pub(crate) fn reopened(self) -> (Self, Found) {
        let Self {
            place,
            store,
            rows,
            counters,
            tree,
        } = self;
        drop((store, rows));
        let OpenedStore { store, rows, found } = place.open();
        let disk = Self {
            place,
            store,
            rows,
            counters,
            tree,
        };
        (disk, found)
    }

    /// Another process that opens the same store.
    pub(crate) fn opened_by_another(&self) -> OpenedStore {
        self.place.open()
    }

    fn directory(&self) -> &Arc<TempDir> {
        match &self.place {
            Place::Sqlite(directory) => directory,
            Place::Memory(_) => panic!("memory has no directory"),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory().path()
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path().join("evidenceos.db")
    }

    /// The directory, kept while its store is closed.
    pub(crate) fn closed(self) -> Arc<TempDir> {
        Arc::clone(self.directory())
    }

    pub(crate) fn readers(&self) -> Arc<dyn Rows> {
        Arc::clone(&self.rows)
    }

    /// Commits a batch with the present counters. A claim names each of its modules.
    pub(crate) fn commit(&mut self, mut batch: Batch) {
        batch.changes.counters = self.counters;
        let modules = batch.modules.iter().map(|module| module.hash);
        batch.changes.named_modules.extend(modules);
        let outcome = self.store.commit(&batch);
        assert!(matches!(outcome, Outcome::Committed), "{outcome:?}");
    }

    pub(crate) fn commit_changes(&mut self, changes: Changes) {
        self.commit(Batch {
            changes,
            ..Batch::default()
        });
    }

    /// Appends entries, and the head over them.
    pub(crate) fn append(&mut self, entries: u64) -> Head {
        let first = self.tree.size();
        self.append_all((first..first + entries).map(entry).collect())
    }

    /// Appends given entries, and the head over them.
    pub(crate) fn append_all(&mut self, entries: Vec<Vec<u8>>) -> Head {
        let entries: Vec<Entry> = entries
            .into_iter()
            .map(|bytes| {
                let leaf = leaf_hash(&bytes);
                self.tree.append(leaf);
                Entry { leaf, bytes }
            })
            .collect();
        self.tree.take_full_tiles();
        self.counters.next_index = self.tree.size();
        let head = head_of(&self.tree);
        self.commit(Batch {
            entries,
            head: Some(head.clone()),
            ..Batch::default()
        });
        head
    }
}

pub(crate) fn entry(index: u64) -> Vec<u8> {
    format!("entry {index}").into_bytes()
}

pub(crate) fn head_of(tree: &Tree) -> Head {
    let key = SignerKey::from_seed("example.org/log", [3; 32]).expect("a valid name");
    let checkpoint =
        Checkpoint::new("example.org/log", tree.size(), tree.root()).expect("a valid origin");
    Head {
        size: tree.size(),
        root: tree.root().0,
        signature: vec![7; 64],
        key_id: Digest::of(b"key"),
        checkpoint: SignedCheckpoint::sign(checkpoint, &key)
            .expect("our own origin")
            .to_string(),
    }
}

pub(crate) fn module(bytes: &[u8]) -> Module {
    Module {
        hash: Digest::of(bytes),
        bytes: ModuleBytes::Row(bytes.to_vec()),
        kept: None,
    }
}

/// A module whose bytes are a blob of this name.
pub(crate) fn large_module(hash: Digest) -> Module {
    Module {
        hash,
        bytes: ModuleBytes::Blob,
        kept: None,
    }
}

/// An account that has neither burned nor reserved anything.
pub(crate) fn account(seq: u64, principal: &str) -> Account {
    Account {
        seq,
        owner: OwnerTag(
            Digest::of(principal.as_bytes()).0[..16]
                .try_into()
                .expect("16 bytes"),
        ),
        principal: principal.to_owned(),
        balance: 90 + seq,
        reserved: 5,
        daily_mint_remaining: 100,
        last_mint_day: 20_000,
        credit_limit: 100,
        daily_mint_limit: 100,
        burned_total: seq,
        denied_total: 2,
        requests: Vec::new(),
        displaced_requests: false,
        stored_bytes: 0,
    }
}

pub(crate) fn holdout(seq: u64) -> Holdout {
    Holdout {
        seq,
        id: HoldoutId(Digest::of(&seq.to_be_bytes()).0),
        reference: format!("holdout {seq}"),
        description: Description {
            items: 10,
            units: 10,
            answer_items: 2,
            sealed_items: 8,
            sealed_units: 8,
            item_order_hash: Some(Digest::of(b"order")),
            ..testing::description(Policy::with_sealed_budget(MicroBits(1)))
        },
        blob: Digest::of(b"blob"),
        labels_key: Digest::of(b"labels"),
        has_item_ids: true,
        status: HoldoutStatus::Registered,
        registered_unix_ms: START_UNIX_MS,
        index: 0,
        answers: Meter {
            charged: MicroBits(1),
            reserved: MicroBits(2),
        },
        sealed: Meter::default(),
        settled: 0,
        certified: 0,
        admitted: 0,
        in_flight: Default::default(),
        narrower: Default::default(),
        credit_burned: 0,
        credit_reserved: 0,
        replaced: 0,
        carried_on: false,
    }
}

pub(crate) fn request_key(n: u64) -> RequestKey {
    RequestKey(Fingerprint::of(&n.to_be_bytes()).0)
}

pub(crate) fn remembered(at_unix_ms: u64) -> Remembered {
    Remembered {
        fingerprint: Fingerprint::of(b"content"),
        at_unix_ms,
        result: RememberedResult::Refused(Refusal::Stale),
    }
}

/// A command for the journal.
pub(crate) fn recorded(at_unix_ms: u64) -> Recorded {
    Recorded {
        at_unix_ms,
        caller: owner(1),
        events: vec![Event::HoldoutRetired(HoldoutId([1; 32]))],
    }
}

/// Changes one byte of a file.
pub(crate) fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).expect("a file");
    bytes[offset] ^= 1;
    fs::write(path, bytes).expect("writable");
}
