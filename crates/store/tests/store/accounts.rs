//! Accounts as rows, and as `accounts.json`.

use std::fs;

use evidenceos_kernel::{
    account::Account,
    claim::{Claim, RunCredit},
    holdout::{Holdout, NarrowerBudgets},
    state::Changes,
};
use evidenceos_store::{
    AccountsFile, AccountsFiles, Batch, Outcome, Store as _,
    accounts::{AccountsJson, Lines, Listed, digest, parse},
};

use crate::disk::{Disk, START_UNIX_MS, account, claim, holdout, owner, recorded};

/// Commits accounts as a change that the journal has.
fn commit(disk: &mut Disk, new_accounts: Vec<Account>, accounts: Vec<Account>) {
    disk.commit(Batch {
        changes: Changes {
            new_accounts,
            accounts,
            ..Changes::default()
        },
        recorded: vec![recorded(START_UNIX_MS)],
        ..Batch::default()
    });
}

#[test]
fn accounts_come_back_by_owner_and_in_order() {
    let mut disk = Disk::new();
    let [alice, bob] = [account(0, "alice"), account(1, "bob")];
    commit(&mut disk, vec![alice.clone(), bob.clone()], vec![]);
    let poorer = Account {
        balance: 1,
        ..alice.clone()
    };
    commit(&mut disk, vec![], vec![poorer.clone()]);
    assert_eq!(
        disk.store.account(&alice.owner).expect("intact"),
        Some(poorer.clone())
    );
    let readers = disk.readers();
    assert_eq!(
        readers.account(&bob.owner).expect("intact"),
        Some(bob.clone())
    );
    assert_eq!(
        readers.account(&account(9, "carol").owner).expect("intact"),
        None
    );
    assert_eq!(
        readers.accounts(0, 10).expect("intact"),
        [poorer.clone(), bob.clone()]
    );
    assert_eq!(readers.accounts(0, 1).expect("intact"), [poorer]);
    assert_eq!(readers.accounts(1, 10).expect("intact"), [bob]);
}

#[test]
fn what_a_run_may_burn_and_burned_comes_back() {
    let mut disk = Disk::new();
    let run = Claim {
        credit: RunCredit {
            reserved: 110,
            max_fuel: 100_000_000,
            burned: 9,
        },
        ..claim(0, owner(1))
    };
    let on = Holdout {
        narrower: NarrowerBudgets {
            credit: Some(5),
            ..NarrowerBudgets::default()
        },
        credit_burned: 9,
        credit_reserved: 1,
        ..holdout(0)
    };
    disk.commit_changes(Changes {
        new_claims: vec![run.clone()],
        holdouts: vec![on.clone()],
        ..Changes::default()
    });
    let (mut disk, found) = disk.reopened();
    assert_eq!(disk.store.claim(&run.id).expect("intact"), Some(run));
    assert_eq!(found.holdouts, [on]);
}

#[test]
fn the_file_is_the_documented_object() {
    let mut disk = Disk::new();
    let names = ["spiffe://example.org/alice", "quoted \" and \\", "Zoë"];
    let accounts: Vec<Account> = (0..).zip(names).map(|(n, name)| account(n, name)).collect();
    commit(&mut disk, accounts.clone(), vec![]);
    let file = AccountsJson::of(disk.path());
    let written = file
        .write_temporary(&*disk.readers(), &mut Lines::default())
        .expect("a free disk");
    assert!(file.read().expect("readable").is_none(), "not in place yet");
    file.put_in_place().expect("a free disk");
    let bytes = file.read().expect("readable").expect("in place");
    assert_eq!(
        written,
        AccountsFile {
            sha256: digest(&bytes),
            seq: 1
        }
    );
    let value: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    let expected = serde_json::json!({
        "credit_balance": 95,
        "daily_mint_remaining": 100,
        "last_mint_day": 20_000,
        "limits": { "credit_limit": 100, "daily_mint_limit": 100 },
        "burned_total": 0,
        "denied_total": 2
    });
    assert_eq!(value["accounts"][names[0]], expected);
    assert_eq!(
        value["accounts"].as_object().map(serde_json::Map::len),
        Some(3)
    );
    let parsed = parse(&bytes).expect("our own");
    for account in &accounts {
        assert_eq!(parsed[&account.principal], Listed::from(account));
    }
    assert!(!disk.path().join("accounts.tmp").exists());
}

#[test]
fn no_accounts_are_an_empty_object() {
    let disk = Disk::new();
    let file = AccountsJson::of(disk.path());
    file.write_temporary(&*disk.readers(), &mut Lines::default())
        .expect("a free disk");
    file.put_in_place().expect("a free disk");
    let bytes = file.read().expect("readable").expect("in place");
    assert_eq!(parse(&bytes).expect("accounts").len(), 0);
}

#[test]
fn what_is_not_the_documented_object_is_refused_with_its_place() {
    let missing = r#"{"accounts":{"a":{"credit_balance":1}}}"#;
    let negative = r#"{"accounts":{"a":{"credit_balance":-1,"daily_mint_remaining":0,"last_mint_day":0,"limits":{"credit_limit":0,"daily_mint_limit":0},"burned_total":0,"denied_total":0}}}"#;
    for (bytes, part) in [
        ("", "line 1"),
        ("{}", "accounts"),
        (missing, "daily_mint_remaining"),
        (negative, "invalid value"),
    ] {
        let error = parse(bytes.as_bytes()).expect_err(bytes).to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn the_files_that_a_crash_can_leave_are_known_after_it() {
    let mut disk = Disk::new();
    let file = |n: u8| AccountsFile {
        sha256: [n; 32],
        seq: u64::from(n),
    };
    let files = AccountsFiles {
        announced: Some(file(3)),
        before: Some(file(1)),
    };
    assert!(matches!(disk.store.announce(files), Outcome::Committed));
    let (_, found) = disk.reopened();
    assert_eq!(found.accounts_files, files);
    assert_eq!(files.find(&[1; 32]), Some(file(1)));
    assert_eq!(files.find(&[3; 32]), Some(file(3)));
    assert_eq!(files.find(&[2; 32]), None);
    assert_eq!(found.counters.now_unix_ms, 0, "nothing else was committed");
}

#[test]
fn a_leftover_of_an_interrupted_write_is_written_over() {
    let mut disk = Disk::new();
    commit(&mut disk, vec![account(0, "alice")], vec![]);
    fs::write(disk.path().join("accounts.tmp"), vec![b'x'; 1 << 16]).expect("a free disk");
    let file = AccountsJson::of(disk.path());
    file.write_temporary(&*disk.readers(), &mut Lines::default())
        .expect("a free disk");
    file.put_in_place().expect("a free disk");
    let bytes = file.read().expect("readable").expect("in place");
    assert_eq!(parse(&bytes).expect("accounts").len(), 1);
}

#[test]
fn lines_that_are_kept_make_the_file_that_is_made_without_them() {
    let mut disk = Disk::new();
    let file = AccountsJson::of(disk.path());
    let mut lines = Lines::default();
    let mut one = account(1, "bob");
    let mut round = |disk: &mut Disk, new, changed| {
        commit(disk, new, changed);
        let readers = disk.readers();
        let kept = file.write_temporary(&*readers, &mut lines);
        let anew = file.write_temporary(&*readers, &mut Lines::default());
        assert_eq!(kept.expect("a free disk"), anew.expect("a free disk"));
        file.put_in_place().expect("a free disk");
        let bytes = file.read().expect("readable").expect("in place");
        parse(&bytes).expect("our own")
    };
    let accounts = vec![account(0, "alice"), one.clone()];
    assert_eq!(round(&mut disk, accounts, vec![]).len(), 2);
    one.balance += 1;
    let changed = round(&mut disk, vec![account(2, "carol")], vec![one.clone()]);
    assert_eq!(changed.len(), 3);
    assert_eq!(changed["bob"], Listed::from(&one));
    // Unchanged lines once more, and a row whose checksum fits no line.
    assert_eq!(round(&mut disk, vec![], vec![]).len(), 3);
    let database = rusqlite::Connection::open(disk.path().join("evidenceos.db"));
    let spoilt = database.expect("ours").execute(
        "UPDATE accounts SET row = zeroblob(length(row)) WHERE seq = 1",
        [],
    );
    assert_eq!(spoilt.expect("ours"), 1);
    let refused = file.write_temporary(&*disk.readers(), &mut lines);
    let refused = refused.expect_err("a damaged row").to_string();
    assert!(refused.contains("accounts row 1 is damaged"), "{refused}");
}
