//! The contract of an engine: what every store must do, whatever keeps it. Each test runs on an empty
//! store of each engine; another engine joins by an arm of `disk::Place`.

use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex, atomic::Ordering},
};

use evidenceos_kernel::{
    account::{Account, Totals},
    bits::MicroBits,
    claim::{ClaimState, Revocation, Settlement},
    holdout::{HoldoutStatus, Meter, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, Question},
    in_force::InForce,
    log_key::LogKey,
    state::Changes,
};
use evidenceos_store::{
    AccountsFile, AccountsFiles, Batch, MAX_ROW_BYTES, Module, ModuleBytes, NotCommitted, Outcome,
    RowBytes, StoreError, Trace,
    facts::{Fact, Restored},
    row, sqlite,
};

use crate::disk::{
    Disk, START_UNIX_MS, account, claim, entry, holdout, large_module, module, owner, recorded,
    remembered, request_key,
};

#[test]
fn every_kind_of_row_survives_a_restart() {
    for mut disk in Disk::of_each_engine() {
        let (claims, pool) = (
            [claim(0, owner(1)), claim(1, owner(2))],
            PrincipalPool {
                sealed: Meter::default(),
                answers: Meter {
                    charged: MicroBits(5),
                    reserved: MicroBits(6),
                },
            },
        );
        disk.commit(Batch {
            changes: Changes {
                new_claims: claims.to_vec(),
                holdouts: vec![holdout(0), holdout(1)],
                pools: vec![(HoldoutId([1; 32]), owner(1), pool)],
                remembered: vec![(request_key(1), remembered(START_UNIX_MS))],
                ..Changes::default()
            },
            recorded: vec![recorded(START_UNIX_MS)],
            modules: vec![module(b"module")],
            traces: vec![Trace {
                claim_seq: 1,
                hash: Digest::of(b"trace"),
                bytes: b"trace".to_vec(),
            }],
            ..Batch::default()
        });
        let head = disk.append(3);
        let counters = disk.counters;
        let (mut disk, found) = disk.reopened();
        let readers = disk.readers();
        let store = &mut disk.store;
        assert_eq!(found.counters, counters);
        assert_eq!(found.head, Some(head));
        assert_eq!(found.holdouts, [holdout(0), holdout(1)]);
        for claim in &claims {
            assert_eq!(store.claim(&claim.id).expect("intact"), Some(claim.clone()));
        }
        let mut pool_of = |n| store.pool(HoldoutId([1; 32]), owner(n)).expect("intact");
        assert_eq!((pool_of(1), pool_of(2)), (Some(pool), None));
        let request = store.remembered(&request_key(1)).expect("intact");
        assert_eq!(request, Some(remembered(START_UNIX_MS)));
        assert_eq!(store.claim(&ClaimId([9; 32])).expect("none"), None);

        let read = |hash: &[u8]| readers.module(&Digest::of(hash)).expect("intact");
        assert_eq!(read(b"module"), Some(b"module".to_vec()));
        assert_eq!(read(b"another"), None);
        let trace = readers.trace(1, &Digest::of(b"trace")).expect("intact");
        assert_eq!(trace, Some(b"trace".to_vec()));
        assert_eq!(readers.trace(0, &Digest::of(b"trace")).expect("none"), None);
        let entries = readers.entries(0, 10).expect("intact");
        let bytes: Vec<_> = entries.into_iter().map(|entry| entry.bytes).collect();
        assert_eq!(bytes, [entry(0), entry(1), entry(2)]);
    }
}

#[test]
fn rows_are_replaced_and_not_added() {
    for mut disk in Disk::of_each_engine() {
        disk.commit_changes(Changes {
            new_claims: vec![claim(0, owner(1))],
            holdouts: vec![holdout(0)],
            ..Changes::default()
        });
        let mut sealed = claim(0, owner(1));
        sealed.state = ClaimState::Sealed;
        let mut retired = holdout(0);
        retired.status = HoldoutStatus::Retired;
        disk.commit_changes(Changes {
            claims: vec![sealed.clone()],
            holdouts: vec![retired.clone()],
            ..Changes::default()
        });
        assert_eq!(disk.store.claim(&sealed.id).expect("intact"), Some(sealed));
        let readers = disk.readers();
        assert_eq!(readers.holdout(0).expect("intact"), Some(retired));
        assert_eq!(readers.claims(None, u64::MAX, 10).expect("intact").len(), 1);
    }
}

#[test]
fn what_is_larger_than_a_row_is_read_from_its_blob() {
    for mut disk in Disk::of_each_engine() {
        let readers = disk.readers();
        let large = vec![5; MAX_ROW_BYTES + 1];
        let hash = readers.blobs().put(&large).expect("a writable directory");
        disk.commit(Batch {
            modules: vec![large_module(hash)],
            ..Batch::default()
        });
        assert_eq!(readers.module(&hash).expect("intact"), Some(large));
        assert!(readers.names_blob(&hash).expect("readable"));
        assert!(!readers.names_blob(&Digest::of(b"none")).expect("readable"));
    }
}

#[test]
fn a_module_goes_once_no_claim_names_it_and_nobody_keeps_it() {
    for mut disk in Disk::of_each_engine() {
        let readers = disk.readers();
        disk.store.release_through(readers.blobs().clone());
        let large = readers
            .blobs()
            .put_kept(&[5; MAX_ROW_BYTES + 1])
            .expect("a writable directory");
        let name = Digest::of(&[5; MAX_ROW_BYTES + 1]);
        let small = module(b"small");
        disk.commit(Batch {
            modules: vec![large_module(name), small.clone()],
            ..Batch::default()
        });
        // Another claim names the small one too.
        disk.commit(Batch {
            modules: vec![Module {
                bytes: ModuleBytes::Stored,
                ..small.clone()
            }],
            ..Batch::default()
        });
        let mut displace = |modules: &[Digest]| {
            disk.commit_changes(Changes {
                displaced_modules: modules.to_vec(),
                ..Changes::default()
            });
            disk.store.maintain(true).expect("ours");
            [name, small.hash].map(|hash| readers.has_module(&hash).expect("readable"))
        };
        assert_eq!(displace(&[small.hash]), [true, true]);
        assert_eq!(displace(&[name]), [true, true], "it is kept");
        drop(large);
        assert_eq!(displace(&[]), [false, true]);
        assert!(readers.blobs().get(&name).is_err());
        // Not while a copy is made, and not forgotten over a restart.
        let copying = readers.blobs().keep_all();
        disk.commit_changes(Changes {
            displaced_modules: vec![small.hash],
            ..Changes::default()
        });
        disk.store.maintain(true).expect("ours");
        assert!(readers.has_module(&small.hash).expect("readable"));
        drop((copying, readers));
        let (mut disk, _) = disk.reopened();
        let readers = disk.readers();
        disk.store.release_through(readers.blobs().clone());
        disk.store.maintain(true).expect("ours");
        assert!(!readers.has_module(&small.hash).expect("readable"));
    }
}

/// A caller whose calls are refused keeps the writer from being idle.
#[test]
fn what_was_refused_goes_between_batches_too() {
    for mut disk in Disk::of_each_engine() {
        let readers = disk.readers();
        disk.store.release_through(readers.blobs().clone());
        let bytes = [6; MAX_ROW_BYTES + 1];
        drop(readers.blobs().put_kept(&bytes).expect("writable"));
        disk.store.maintain(false).expect("ours");
        assert!(readers.blobs().get(&Digest::of(&bytes)).is_err());
    }
}

#[test]
fn a_claim_cannot_name_a_module_that_is_not_there() {
    for mut disk in Disk::of_each_engine() {
        let changes = Changes {
            named_modules: vec![Digest::of(b"none")],
            counters: disk.counters,
            ..Changes::default()
        };
        let outcome = disk.store.commit(&Batch {
            changes,
            ..Batch::default()
        });
        assert!(!matches!(outcome, Outcome::Committed), "{outcome:?}");
    }
}

#[test]
fn pages_of_claims_go_from_new_to_old() {
    for mut disk in Disk::of_each_engine() {
        disk.commit_changes(Changes {
            new_claims: (0..10)
                .map(|seq| claim(seq, owner(u8::from(seq % 3 == 0))))
                .collect(),
            ..Changes::default()
        });
        let readers = disk.readers();
        let page = |owner, before, limit| -> Vec<u64> {
            let claims = readers.claims(owner, before, limit).expect("intact");
            claims.iter().map(|claim| claim.seq).collect()
        };
        assert_eq!(page(None, u64::MAX, 4), [9, 8, 7, 6]);
        assert_eq!(page(None, 6, 4), [5, 4, 3, 2]);
        assert_eq!(page(Some(owner(1)), u64::MAX, 3), [9, 6, 3]);
        assert_eq!(page(Some(owner(1)), 3, 3), [0]);
        assert!(page(Some(owner(7)), u64::MAX, 3).is_empty());
    }
}

#[test]
fn claims_are_found_by_a_range_of_ids() {
    for mut disk in Disk::of_each_engine() {
        let claims: Vec<_> = (0..10)
            .map(|seq| claim(seq, owner(u8::from(seq % 2 == 0))))
            .collect();
        let mut ids: Vec<_> = claims.iter().map(|claim| claim.id).collect();
        ids.sort_unstable();
        disk.commit_changes(Changes {
            new_claims: claims.clone(),
            ..Changes::default()
        });
        let readers = disk.readers();
        let found = |owner, from: usize, to: usize, limit| -> Vec<_> {
            let range = ids[from]..=ids[to];
            let found = readers.claims_by_id(owner, &range, limit).expect("intact");
            found.iter().map(|claim| claim.id).collect()
        };
        assert_eq!(found(None, 0, 9, 100), ids);
        assert_eq!(found(None, 3, 5, 100), ids[3..=5]);
        assert_eq!(found(None, 3, 5, 2), ids[3..5]);
        let own = |id: &_| {
            claims
                .iter()
                .any(|claim| claim.id == *id && claim.terms.owner == owner(1))
        };
        let expected: Vec<_> = ids.iter().copied().filter(own).collect();
        assert_eq!(found(Some(owner(1)), 0, 9, 100), expected);
        assert!(found(Some(owner(7)), 0, 9, 100).is_empty());
    }
}

#[test]
fn revocations_are_listed_in_the_order_of_the_log() {
    for mut disk in Disk::of_each_engine() {
        let revoked = |seq: u64, index: u64| {
            let mut claim = claim(seq, owner(1));
            claim.state = ClaimState::Revoked;
            claim.revocation = Some(Revocation {
                reason: "why".to_owned(),
                revoked_unix_ms: START_UNIX_MS,
                index,
            });
            claim
        };
        disk.commit_changes(Changes {
            new_claims: (0..3).map(|seq| claim(seq, owner(1))).collect(),
            ..Changes::default()
        });
        for (seq, index) in [(2, 5), (0, 7)] {
            disk.commit_changes(Changes {
                claims: vec![revoked(seq, index)],
                ..Changes::default()
            });
        }
        let readers = disk.readers();
        let after = |index| -> Vec<u64> {
            let claims = readers.revoked(index, 10).expect("intact");
            claims.iter().map(|claim| claim.seq).collect()
        };
        assert_eq!(after(0), [2, 0]);
        assert_eq!(after(5), [0]);
        assert!(after(7).is_empty());
    }
}

#[test]
fn a_batch_that_breaks_a_rule_leaves_nothing_and_the_store_goes_on() {
    for mut disk in Disk::of_each_engine() {
        disk.commit_changes(Changes {
            new_claims: vec![claim(0, owner(1))],
            ..Changes::default()
        });
        let twice = Batch {
            changes: Changes {
                new_claims: vec![claim(1, owner(1)), claim(0, owner(1))],
                counters: disk.counters,
                ..Changes::default()
            },
            ..Batch::default()
        };
        let outcome = disk.store.commit(&twice);
        let broken = matches!(outcome, Outcome::NotCommitted(NotCommitted::Constraint(_)));
        assert!(broken, "{outcome:?}");
        let second = claim(1, owner(1));
        assert_eq!(disk.store.claim(&second.id).expect("readable"), None);
        disk.commit_changes(Changes {
            new_claims: vec![second.clone()],
            ..Changes::default()
        });
        assert_eq!(disk.store.claim(&second.id).expect("intact"), Some(second));
    }
}

#[test]
fn starts_are_counted_on_behind_those_that_came_back_from_elsewhere() {
    for mut disk in Disk::of_each_engine() {
        let first = disk.store.epoch();
        disk.store.be_later_than(first + 5).expect("ours");
        assert_eq!(disk.store.epoch(), first + 6);
        disk.store.be_later_than(first).expect("it is already");
        assert_eq!(disk.store.epoch(), first + 6);
        // The fence goes with it.
        disk.commit(Batch {
            recorded: vec![recorded(START_UNIX_MS)],
            ..Batch::default()
        });
        let (disk, _) = disk.reopened();
        assert_eq!(disk.store.epoch(), first + 7);
    }
}

/// A settled claim, whose capsule is the entry at an index.
fn settled(seq: u64, index: u64) -> evidenceos_kernel::claim::Claim {
    let mut claim = claim(seq, owner(1));
    claim.state = ClaimState::Settled;
    claim.settlement = Some(Settlement {
        outcome: evidenceos_kernel::claim::Outcome::NotCertified,
        reasons: Vec::new(),
        output: Vec::new(),
        e_value_log2: None,
        answers_charged: MicroBits(1),
        price: MicroBits(2),
        threshold: MicroBits(3),
        fuel: 4,
        trace_hash: Digest::of(b"trace"),
        trace_len: 5,
        capsule_hash: Digest::of(&entry(index)),
        index,
        settled_unix_ms: START_UNIX_MS,
    });
    claim
}

#[test]
fn a_claim_is_shown_to_its_owner_and_to_those_who_ask_for_any() {
    for mut disk in Disk::of_each_engine() {
        disk.append(3);
        disk.commit_changes(Changes {
            new_claims: vec![claim(0, owner(1)), settled(1, 2)],
            ..Changes::default()
        });
        let rows = disk.readers();
        let (open, ended) = (claim(0, owner(1)), settled(1, 2));
        for (asked, shown) in [
            (None, true),
            (Some(owner(1)), true),
            (Some(owner(2)), false),
        ] {
            let found = rows.claim_of(&open.id, asked).expect("readable");
            assert_eq!(found, shown.then(|| open.clone()));
            assert_eq!(rows.has_claim(&open.id, asked).expect("readable"), shown);
            let with = rows.claim_and_entry(&ended.id, asked).expect("readable");
            let (claim, capsule) = with.unzip();
            assert_eq!(claim, shown.then(|| ended.clone()));
            let capsule = capsule.flatten().map(|found| found.bytes);
            assert_eq!(capsule, shown.then(|| entry(2)));
        }
        let with = rows.claim_and_entry(&open.id, None).expect("readable");
        assert_eq!(with, Some((open.clone(), None)), "it has not settled");
        assert_eq!(rows.claim(&open.id).expect("readable"), Some(open.clone()));
        assert_eq!(rows.claim_by_seq(0).expect("readable"), Some(open));
        assert_eq!(rows.claim_by_seq(2).expect("readable"), None);
        assert!(!rows.has_claim(&ClaimId([9; 32]), None).expect("readable"));
    }
}

#[test]
fn entries_and_leaves_come_in_pages_and_end_with_the_log() {
    for mut disk in Disk::of_each_engine() {
        disk.append(5);
        let rows = disk.readers();
        for (start, count, wanted) in [(0, 2, 0..2), (3, 9, 3..5), (4, 1, 4..5), (5, 1, 5..5)] {
            let entries = rows.entries(start, count).expect("readable");
            let bytes: Vec<_> = entries.iter().map(|entry| entry.bytes.clone()).collect();
            assert_eq!(bytes, wanted.map(entry).collect::<Vec<_>>());
            let leaves: Vec<_> = entries.iter().map(|entry| entry.leaf).collect();
            assert_eq!(rows.leaves(start, count).expect("readable"), leaves);
        }
    }
}

#[test]
fn accounts_and_their_sums_are_of_one_moment() {
    for mut disk in Disk::of_each_engine() {
        let accounts: Vec<Account> = (0..3)
            .map(|n| account(n, &format!("principal {n}")))
            .collect();
        let totals = Totals {
            accounts: 3,
            ..Totals::default()
        };
        disk.commit(Batch {
            changes: Changes {
                new_accounts: accounts.clone(),
                totals: Some(totals),
                ..Changes::default()
            },
            recorded: vec![recorded(START_UNIX_MS)],
            ..Batch::default()
        });
        let rows = disk.readers();
        assert_eq!(rows.accounts(1, 1).expect("readable"), accounts[1..2]);
        let page = rows.accounts_and_totals(0, 2).expect("readable");
        assert_eq!(page, (accounts[..2].to_vec(), totals));
        let owner = accounts[2].owner;
        assert_eq!(
            rows.account(&owner).expect("readable"),
            Some(accounts[2].clone())
        );
        assert_eq!(
            disk.store.account(&owner).expect("readable"),
            Some(accounts[2].clone())
        );
        let mut seen = Vec::new();
        let seq = rows.all_account_rows(&mut |seq, bytes| {
            let account: Account = row::decode("accounts", seq, bytes)?;
            assert_eq!(account.seq, seq);
            seen.push(account);
            Ok(())
        });
        assert_eq!((seq.expect("readable"), &seen), (1, &accounts));
        // What the reader fails with breaks the reading off.
        let broken = rows.all_accounts(&mut |account| {
            assert_eq!(account.seq, 0, "nothing after the first");
            Err(StoreError::Damaged {
                table: "accounts",
                key: "0".to_owned(),
                what: "as told",
            })
        });
        assert!(broken.is_err());
        let (_, found) = disk.reopened();
        assert_eq!((found.totals.accounts, found.accounts_seq), (3, 1));
    }
}

#[test]
fn what_the_store_remembers_about_itself_outlives_it() {
    for mut disk in Disk::of_each_engine() {
        let in_force = InForce {
            roles: Some(Digest::of(b"roles")),
            ..InForce::default()
        };
        let key = LogKey::new([5; 32], 0);
        disk.commit_changes(Changes {
            in_force: Some(in_force),
            log_keys: vec![key],
            ..Changes::default()
        });
        let restored = Restored {
            made_unix_ms: 1,
            entries: 2,
        };
        let former = vec!["example.org/before".to_owned()];
        let facts = vec![Fact::Restored(Some(restored)), Fact::Former(former.clone())];
        let noted = disk.store.remember(facts);
        assert!(matches!(noted, Outcome::Committed), "{noted:?}");
        let (mut disk, found) = disk.reopened();
        assert_eq!((found.in_force, found.log_keys), (in_force, vec![key]));
        assert_eq!(found.facts.restored, Some(restored));
        assert_eq!(found.facts.former, former);
        let cleared = disk.store.remember(vec![Fact::Restored(None)]);
        assert!(matches!(cleared, Outcome::Committed), "{cleared:?}");
        let file = AccountsFile {
            sha256: [3; 32],
            seq: 4,
        };
        let files = AccountsFiles {
            announced: Some(file),
            before: None,
        };
        assert!(matches!(disk.store.announce(files), Outcome::Committed));
        let counters = disk.store.counters();
        let (_, found) = disk.reopened();
        assert_eq!((found.facts.restored, found.accounts_files), (None, files));
        assert_eq!(found.counters, counters, "facts alone change no counter");
    }
}

#[test]
fn a_question_is_referred_to_the_claim_that_asked_it_last() {
    for mut disk in Disk::of_each_engine() {
        let question = Question([4; 16]);
        assert_eq!(disk.store.question(&question).expect("readable"), None);
        for n in 0..2 {
            let asking = claim(n, owner(1));
            disk.commit_changes(Changes {
                new_claims: vec![asking.clone()],
                questions: vec![(question, asking.id)],
                ..Changes::default()
            });
            let referred = disk.store.question(&question).expect("readable");
            assert_eq!(referred, Some(asking.id));
        }
    }
}

#[test]
fn a_second_process_takes_over_and_the_first_can_commit_no_more() {
    for mut disk in Disk::of_each_engine() {
        disk.append(1);
        let mut second = disk.opened_by_another();
        assert_eq!(second.found.counters, disk.counters);
        assert_eq!(second.store.epoch(), disk.store.epoch() + 1);
        let late = Batch {
            changes: Changes {
                new_claims: vec![claim(0, owner(1))],
                counters: disk.counters,
                ..Changes::default()
            },
            recorded: vec![recorded(START_UNIX_MS)],
            ..Batch::default()
        };
        // Not `NotCommitted`: the first would go on beside the second.
        let fate = disk.store.commit(&late);
        assert!(matches!(fate, Outcome::Unknown(_)), "{fate:?}");
        let fate = second.store.commit(&late);
        assert!(matches!(fate, Outcome::Committed), "{fate:?}");
        assert!(second.rows.claim_by_seq(0).expect("readable").is_some());
    }
}

#[test]
fn a_change_of_a_claim_that_is_gone_stops_everything() {
    for mut disk in Disk::of_each_engine() {
        let batch = Batch {
            changes: Changes {
                claims: vec![claim(7, owner(1))],
                counters: disk.counters,
                ..Changes::default()
            },
            ..Batch::default()
        };
        let fate = disk.store.commit(&batch);
        assert!(matches!(fate, Outcome::Unknown(_)), "{fate:?}");
    }
}

#[test]
fn each_durable_batch_is_told_of_and_counted() {
    for mut disk in Disk::of_each_engine() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        disk.store.observe(Box::new(move |batch, _| {
            heard.lock().expect("ours").push(batch.entries.len());
        }));
        let done = disk.store.done();
        let before = done.commits.load(Ordering::Relaxed);
        disk.append(2);
        let broken = Batch {
            changes: Changes {
                new_claims: vec![claim(0, owner(1)), claim(0, owner(2))],
                counters: disk.counters,
                ..Changes::default()
            },
            ..Batch::default()
        };
        let fate = disk.store.commit(&broken);
        assert!(!matches!(fate, Outcome::Committed), "{fate:?}");
        disk.append(1);
        assert_eq!(*told.lock().expect("ours"), [2, 1]);
        assert_eq!(done.commits.load(Ordering::Relaxed), before + 2);
        assert_eq!(done.seen(), 3, "readers may have seen every entry");
    }
}

#[test]
fn bytes_are_where_their_row_says_and_what_their_digest_says() {
    for mut disk in Disk::of_each_engine() {
        let rows = disk.readers();
        let large = rows.blobs().put(&[8; 100]).expect("writable");
        disk.commit(Batch {
            modules: vec![module(b"small"), large_module(large)],
            traces: vec![
                Trace {
                    claim_seq: 0,
                    hash: Digest::of(b"trace"),
                    bytes: b"trace".to_vec(),
                },
                Trace {
                    claim_seq: 1,
                    hash: large,
                    bytes: Vec::new(),
                },
            ],
            ..Batch::default()
        });
        let small = Digest::of(b"small");
        let here = |bytes: &[u8]| Some(RowBytes::Here(bytes.to_vec()));
        assert_eq!(rows.module_row(&small).expect("readable"), here(b"small"));
        assert_eq!(
            rows.module_row(&large).expect("readable"),
            Some(RowBytes::Blob)
        );
        assert_eq!(rows.trace_row(0).expect("readable"), here(b"trace"));
        assert_eq!(rows.trace_row(1).expect("readable"), Some(RowBytes::Blob));
        assert_eq!(rows.trace_row(2).expect("readable"), None);
        assert!(rows.has_module(&small).expect("readable"));
        assert_eq!(rows.trace(1, &large).expect("there"), Some(vec![8; 100]));
        // Under another digest it is another trace, and is never served.
        let other = rows.trace(0, &small);
        assert!(
            matches!(other, Err(StoreError::Damaged { .. })),
            "{other:?}"
        );
        rows.blobs().remove(&large).expect("removable");
        assert!(rows.module(&large).is_err(), "named, and not there");
    }
}

#[test]
fn a_start_sweeps_the_blobs_that_no_row_names() {
    for mut disk in Disk::of_each_engine() {
        let [named, orphan] =
            [[1; 50], [2; 50]].map(|bytes| disk.readers().blobs().put(&bytes).expect("writable"));
        disk.commit(Batch {
            modules: vec![large_module(named)],
            ..Batch::default()
        });
        let (disk, _) = disk.reopened();
        let rows = disk.readers();
        let put_now = rows.blobs().put(&[3; 50]).expect("writable");
        let swept = rows.blobs().sweep(|name| rows.names_blob(name));
        assert_eq!(swept.expect("readable"), 1);
        for (name, there) in [(named, true), (orphan, false), (put_now, true)] {
            assert_eq!(rows.blobs().get(&name).is_ok(), there, "{name}");
        }
    }
}

#[test]
fn a_copy_is_whole_or_there_is_none_to_be_had() {
    for mut disk in Disk::of_each_engine() {
        disk.append(3);
        // An engine whose backups are its own says so by having no copier.
        let Some(copier) = disk.store.copier() else {
            continue;
        };
        let to = tempfile::tempdir().expect("a directory");
        let copied = copier.copy(to.path(), &mut |_| ControlFlow::Continue(()));
        assert!(copied.expect("a free disk").is_continue());
        let copy = sqlite::open(to.path()).expect("a store");
        assert_eq!(copy.found.counters, disk.counters);
        assert_eq!(copy.rows.entries(0, 9).expect("readable").len(), 3);
    }
}
