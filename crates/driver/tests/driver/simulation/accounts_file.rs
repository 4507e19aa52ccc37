//! `accounts.json` beside the simulated store: each step of a rewrite by itself, on a disk that
//! tears what was not synced and forgets names whose directory was not.

use std::sync::mpsc::{self, Receiver, TryRecvError};

use evidenceos_driver::{Announced, Input};
use evidenceos_kernel::id::Digest;
use evidenceos_store::{AccountsFile, AccountsFiles, memory::MemoryStore};

use super::{Dice, tally::Tally};
use crate::bench::Bench;

/// How far a rewrite is.
#[derive(Default)]
enum Rewrite {
    #[default]
    None,
    /// `accounts.tmp` is being written; a death leaves any bytes in it.
    Writing(AccountsFile),
    /// It is synced, and its digest is on the way into a batch.
    Announced(AccountsFile, Receiver<()>),
    /// It is in place of another, and the directory is not synced.
    Renamed(Option<AccountsFile>),
}

/// The file, whose content is a digest here.
#[derive(Default)]
pub(super) struct File {
    in_place: Option<AccountsFile>,
    rewrite: Rewrite,
}

fn of(memory: &MemoryStore) -> AccountsFile {
    let mut accounts: Vec<_> = memory.accounts().collect();
    accounts.sort_unstable_by_key(|account| account.owner);
    AccountsFile {
        sha256: Digest::of(format!("{accounts:?}").as_bytes()).0,
        seq: memory.recorded().len() as u64,
    }
}

impl File {
    /// Takes the next step of a rewrite.
    pub(super) fn go_on(&mut self, bench: &mut Bench) {
        self.rewrite = match std::mem::take(&mut self.rewrite) {
            Rewrite::None => Rewrite::Writing(of(&bench.driver.store_mut().memory)),
            Rewrite::Writing(file) => {
                let (committed, answer) = mpsc::channel();
                let files = AccountsFiles {
                    announced: Some(file),
                    before: self.in_place,
                };
                bench.input(Input::Announced(Announced { files, committed }));
                Rewrite::Announced(file, answer)
            }
            Rewrite::Announced(file, answer) => match answer.try_recv() {
                Ok(()) => Rewrite::Renamed(self.in_place.replace(file)),
                Err(TryRecvError::Empty) => Rewrite::Announced(file, answer),
                // It was not committed: it must not be put in place, and is written again.
                Err(TryRecvError::Disconnected) => Rewrite::None,
            },
            Rewrite::Renamed(_) => Rewrite::None,
        };
    }

    /// The process dies, and what was not synced is as the disk pleases.
    pub(super) fn die(&mut self, dice: &mut Dice, tally: &mut Tally) {
        match std::mem::take(&mut self.rewrite) {
            Rewrite::None | Rewrite::Announced(..) => {}
            Rewrite::Writing(_) => tally.count("accounts.tmp torn"),
            Rewrite::Renamed(before) => {
                if dice.below(2) == 0 {
                    self.in_place = before;
                    tally.count("accounts.json renamed, and the rename lost");
                }
            }
        }
    }

    /// What a start finds in place is one of the two files that the store knows.
    pub(super) fn check_found(&self, memory: &MemoryStore) {
        let Some(file) = self.in_place else { return };
        let known = memory.accounts_files();
        assert_eq!(
            known.find(&file.sha256).map(|known| known.sha256),
            Some(file.sha256),
            "a start would refuse a file of ours: {known:?}"
        );
    }

    /// Whether the file shows what the store holds, and nothing is left to do.
    pub(super) fn is_current(&self, memory: &MemoryStore) -> bool {
        let shows_all = self.in_place.is_some_and(|f| f.sha256 == of(memory).sha256);
        shows_all && matches!(self.rewrite, Rewrite::None)
    }
}
