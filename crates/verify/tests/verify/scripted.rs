//! Logs that are put together entry by entry: which sequences the rules of holdouts, keys and decisions allow.

use evidenceos_kernel::{bits::MicroBits, holdout::Policy, record::holdout_id};
use evidenceos_tlog::{Tree, leaf_hash};
use evidenceos_verify::verify_log;
use serde_json::{Value, json};

use crate::{
    forger::edit::{read, write},
    log::report,
    world::{Items, ORIGIN, World, checkpoint_under},
};

/// A log of this release, or of one before it, that holds nothing yet.
struct Scripted {
    entries: Vec<Vec<u8>>,
    registration: Value,
}

impl Scripted {
    fn new(of_this_release: bool) -> Self {
        let mut world = World::new();
        if of_this_release {
            world.begin_as_now();
        }
        let policy = Policy::with_sealed_budget(MicroBits::from_bits(64));
        let items = Items {
            fresh: false,
            ..Items::new(policy, 400)
        };
        world.put(&items).expect("registered");
        Self {
            registration: read(&world.entries[1]),
            entries: world.entries[..1].to_vec(),
        }
    }

    fn now() -> Self {
        Self::new(true)
    }

    fn push(&mut self, kind: &str, mut fields: Value, time: &str) -> &mut Self {
        fields["schema"] = json!(format!("evidenceos.v2.{kind}"));
        fields[time] = json!(10_000 + self.entries.len());
        self.entries.push(write(&fields));
        self
    }

    /// Registers a holdout with these fields changed or added; its id in hex.
    fn register(&mut self, name: &str, changes: &[(&str, Value)]) -> String {
        let mut fields = self.registration.clone();
        fields["ref"] = json!(name);
        for (field, value) in changes {
            match field.strip_prefix("policy.") {
                Some(field) => fields["policy"][field] = value.clone(),
                None => fields[*field] = value.clone(),
            }
        }
        self.push("holdout_registered", fields, "registered_unix_ms");
        holdout_id(self.entries.last().expect("pushed")).to_hex()
    }

    fn retire(&mut self, id: &str) -> &mut Self {
        let fields = json!({ "holdout_id_hex": id, "reason": "over" });
        self.push("holdout_retired", fields, "retired_unix_ms")
    }

    fn open(&mut self, id: &str) -> &mut Self {
        let fields = json!({ "holdout_id_hex": id });
        self.push("holdout_opened", fields, "opened_unix_ms")
    }

    fn withdraw(&mut self, id: &str) -> &mut Self {
        let fields = json!({ "holdout_id_hex": id, "reason": "a mistake" });
        self.push("holdout_withdrawn", fields, "withdrawn_unix_ms")
    }

    /// An answer at 16 bits: that the labels differ, or agree.
    fn compare(&mut self, id: &str, agrees: bool) -> &mut Self {
        let price = if agrees { 16_000_000 } else { 23 };
        let fields = json!({
            "holdout_id_hex": id, "agrees": agrees, "sealed_microbits": price, "answers_microbits": price,
        });
        self.push("holdout_compared", fields, "compared_unix_ms")
    }

    fn budgets(&mut self, id: &str, changes: Value) -> &mut Self {
        let mut fields = changes;
        fields["holdout_id_hex"] = json!(id);
        self.push("holdout_policy", fields, "changed_unix_ms")
    }

    /// What is found, each with the index of its entry counted from the end: 0 is the last.
    fn found(&self) -> Vec<(usize, String)> {
        let findings = report(&self.entries).findings;
        let last = self.entries.len() as u64 - 1;
        let found = findings.iter().map(|finding| {
            let index = finding.index.expect("an entry");
            ((last - index) as usize, finding.fault.to_string())
        });
        found.collect()
    }

    #[track_caller]
    fn is_sound(&self) {
        assert_eq!(self.found(), []);
    }

    /// The last entry is at fault, for this reason.
    #[track_caller]
    fn ends_badly(&self, because: &str) {
        let found = self.found();
        let (at, fault) = found.first().expect("a finding");
        assert!(*at == 0 && fault.contains(because), "{found:?}");
    }
}

const FRESH: (&str, Value) = ("fresh_items", Value::Bool(true));

#[test]
fn a_holdout_is_retired_once_then_opened_once() {
    let mut log = Scripted::now();
    let id = log.register("one", &[]);
    log.retire(&id).is_sound();
    log.open(&id).is_sound();
    let mut again = Scripted::now();
    let id = again.register("one", &[]);
    again.retire(&id).retire(&id).ends_badly("retired once");
    let mut early = Scripted::now();
    let id = early.register("one", &[]);
    early
        .open(&id)
        .ends_badly("opened once, and retired before");
    let mut twice = Scripted::now();
    let id = twice.register("one", &[]);
    twice
        .retire(&id)
        .open(&id)
        .open(&id)
        .ends_badly("opened once");
    let mut withdrawn = Scripted::now();
    let id = withdrawn.register("one", &[]);
    withdrawn.withdraw(&id).is_sound();
    withdrawn
        .retire(&id)
        .ends_badly("not after it was withdrawn");
    let found = withdrawn.open(&id).found();
    assert!(found.iter().any(|(at, _)| *at == 0), "{found:?}");
}

#[test]
fn only_a_holdout_that_released_nothing_is_withdrawn() {
    let mut twice = Scripted::now();
    let id = twice.register("one", &[]);
    twice
        .withdraw(&id)
        .withdraw(&id)
        .ends_badly("withdrawn once");
    let mut charged = Scripted::now();
    let id = charged.register("one", &[]);
    charged.compare(&id, true).is_sound();
    charged
        .withdraw(&id)
        .ends_badly("judged on, charged or opened");
    let mut opened = Scripted::now();
    let id = opened.register("one", &[]);
    opened
        .retire(&id)
        .open(&id)
        .withdraw(&id)
        .ends_badly("judged on, charged or opened");
}

#[test]
fn labels_are_registered_again_three_times_in_a_row_at_most() {
    let mut log = Scripted::now();
    let mut id = log.register("labels", &[FRESH]);
    for _ in 0..3 {
        log.withdraw(&id);
        id = log.register("labels", &[FRESH, ("replaces_hex", json!(id))]);
        log.is_sound();
    }
    log.withdraw(&id);
    log.register("labels", &[FRESH, ("replaces_hex", json!(id))]);
    log.ends_badly("at most 3 times in a row");

    let replacing = |prepare: &dyn Fn(&mut Scripted) -> String, items: u64| {
        let mut log = Scripted::now();
        let id = prepare(&mut log);
        let sealed = items - 80;
        let changes = [
            FRESH,
            ("replaces_hex", json!(id)),
            ("items", json!(items)),
            ("sealed_items", json!(sealed)),
            ("units", json!(400)),
        ];
        log.register("another", &changes);
        log
    };
    let withdrawn = |log: &mut Scripted| {
        let id = log.register("one", &[FRESH]);
        log.withdraw(&id);
        id
    };
    replacing(&withdrawn, 400).is_sound();
    replacing(&withdrawn, 401).ends_badly("has as many items");
    let standing = |log: &mut Scripted| log.register("one", &[FRESH]);
    replacing(&standing, 400).ends_badly("names a holdout that was withdrawn");
    let replaced = |log: &mut Scripted| {
        let id = withdrawn(log);
        log.register("two", &[FRESH, ("replaces_hex", json!(id))]);
        id
    };
    replacing(&replaced, 400).ends_badly("that no other replaces");
    let unknown = |_: &mut Scripted| "00".repeat(32);
    replacing(&unknown, 400).ends_badly("00");
}

#[test]
fn a_name_is_one_holdouts_and_is_not_written_like_an_id() {
    for (name, sound) in [
        ("deadbeef".to_owned(), true),
        ("z".repeat(64), true),
        ("a".repeat(63), true),
        ("a".repeat(64), false),
    ] {
        let mut log = Scripted::now();
        log.register(&name, &[]);
        assert_eq!(log.found().is_empty(), sound, "{name}: {:?}", log.found());
    }
    // Releases before allowed it, unless it is the id of a holdout.
    let mut before = Scripted::new(false);
    let plain = [("item_order_hash_hex", json!("11".repeat(32)))];
    before.register(&"a".repeat(64), &plain);
    before.is_sound();
    let mut another = Scripted::new(false);
    let id = another.register("one", &[]);
    another.register(&id, &plain);
    another.ends_badly("not written like a holdout's id");
    let mut taken = Scripted::now();
    taken.register("one", &[FRESH]);
    taken.register("one", &[FRESH, plain[0].clone()]);
    taken.ends_badly("one holdout only");
}

#[test]
fn what_only_this_release_writes_asks_for_comparisons_from_then_on() {
    let fence = (
        "policy.principal_sealed_budget_microbits",
        json!(16_000_000),
    );
    for (marks, asked) in [(vec![], false), (vec![FRESH], true), (vec![fence], true)] {
        let mut log = Scripted::new(false);
        log.register("one", &marks);
        let another = [("item_order_hash_hex", json!("11".repeat(32)))];
        log.register("two", &another);
        assert_eq!(
            log.found().is_empty(),
            !asked,
            "{marks:?}: {:?}",
            log.found()
        );
    }
}

#[test]
fn comparisons_belong_to_the_registration_that_they_were_made_for() {
    let another = [("item_order_hash_hex", json!("11".repeat(32)))];
    let compared = |agrees: bool| {
        let mut log = Scripted::now();
        let id = log.register("one", &[]);
        log.compare(&id, agrees);
        (log, id)
    };
    let (mut log, _) = compared(false);
    log.register("two", &another);
    log.is_sound();
    // Nothing follows those that all disagree.
    let (log, _) = compared(false);
    log.ends_badly("followed by the registration");
    let (mut log, _) = compared(false);
    log.register("two", &[FRESH, another[0].clone()]);
    assert!(!log.found().is_empty());
    // One that agreed refused its registration: the next one is compared anew.
    let (log, _) = compared(true);
    log.is_sound();
    let (mut log, id) = compared(true);
    log.register("two", &another);
    log.ends_badly("compared with every earlier holdout");
    let mut log_again = compared(true).0;
    log_again.compare(&id, false);
    log_again.register("two", &another);
    log_again.is_sound();
}

#[test]
fn nothing_is_compared_with_public_labels_or_a_withdrawn_holdout() {
    let mut opened = Scripted::now();
    let id = opened.register("one", &[]);
    opened.retire(&id).open(&id).compare(&id, true);
    opened.ends_badly("labels are public or that was withdrawn");
    let mut withdrawn = Scripted::now();
    let id = withdrawn.register("one", &[]);
    withdrawn.withdraw(&id).compare(&id, true);
    withdrawn.ends_badly("labels are public or that was withdrawn");
}

#[test]
fn changed_budgets_are_at_most_the_registered_ones_and_stay_stated() {
    let sealed = "sealed_budget_microbits";
    let principals = "principal_answer_budget_microbits";
    let changed = |changes: &[Value]| {
        let mut log = Scripted::now();
        let id = log.register("one", &[]);
        for change in changes {
            log.budgets(&id, change.clone());
        }
        log
    };
    changed(&[json!({ (sealed): 64_000_000, (principals): 16_000_000 })]).is_sound();
    for (field, most) in [(sealed, 64_000_001), (principals, 16_000_001)] {
        changed(&[json!({ (field): most })]).ends_badly("at most the registered one");
    }
    let all = json!({ (sealed): 1_000_000, (principals): 1_000_000, "credit_budget": 5 });
    changed(std::slice::from_ref(&all)).is_sound();
    changed(&[all.clone(), all.clone()])
        .ends_badly("a change of budgets changes at least one budget");
    for field in [sealed, principals, "credit_budget"] {
        let mut less = all.clone();
        less.as_object_mut().expect("an object").remove(field);
        changed(&[all.clone(), less]).ends_badly("stated from then on");
        let mut other = all.clone();
        other[field] = json!(2);
        changed(&[all.clone(), other]).is_sound();
    }
    let mut withdrawn = changed(&[]);
    let id = holdout_id(&withdrawn.entries[1]).to_hex();
    withdrawn.withdraw(&id).budgets(&id, all);
    withdrawn.ends_badly("budgets of a withdrawn holdout do not change");
}

#[test]
fn the_first_entry_names_its_release_in_words() {
    let log = Scripted::now();
    for (software, sound) in [
        (String::new(), false),
        ("s".to_owned(), true),
        ("s".repeat(256), true),
        ("s".repeat(257), false),
        ("a\u{7}b".to_owned(), false),
    ] {
        let mut first = read(&log.entries[0]);
        first["software"] = json!(software);
        let found = report(&[write(&first)]).findings;
        assert_eq!(found.is_empty(), sound, "{software:?}: {found:?}");
    }
}

#[test]
fn a_continuation_binds_the_tree_before_it() {
    let mut log = Scripted::now();
    log.register("one", &[]);
    let mut tree = Tree::new();
    for entry in &log.entries {
        tree.append(leaf_hash(entry));
    }
    let continued = |field: &str, value: Value| {
        let mut fields = json!({
            "origin": ORIGIN, "size": 2, "root_hash_hex": tree.root().to_string(),
            "statement": "nothing_was_signed_since", "because": "moved",
        });
        fields[field] = value;
        let mut log = Scripted {
            entries: log.entries.clone(),
            registration: Value::Null,
        };
        log.push("log_continued", fields, "stated_unix_ms");
        log
    };
    continued("size", json!(2)).is_sound();
    for (field, value) in [
        ("origin", json!("example.org/another")),
        ("size", json!(1)),
        ("root_hash_hex", json!("00".repeat(32))),
        ("statement", json!("all is well")),
    ] {
        assert!(!continued(field, value).found().is_empty(), "{field}");
    }
}

/// Only this release promises that a restart charges each holdout that has something left.
#[test]
fn a_restart_of_before_may_pass_a_holdout_over_that_has_something_left() {
    for of_this_release in [false, true] {
        let mut log = Scripted::new(of_this_release);
        log.register("one", &[]);
        let mut tree = Tree::new();
        for entry in &log.entries {
            tree.append(leaf_hash(entry));
        }
        let restarted = json!({
            "origin": "example.org/2", "old_origin": ORIGIN, "old_size": 2,
            "old_root_hash_hex": tree.root().to_string(), "because": "the end was lost",
        });
        log.push("log_restarted", restarted, "restarted_unix_ms");
        let checkpoint = checkpoint_under("example.org/2", &log.entries);
        let findings = verify_log(&log.entries, &checkpoint).findings;
        assert_eq!(findings.is_empty(), !of_this_release, "{findings:?}");
    }
}

#[test]
fn credit_and_imports_are_numbers_in_their_range() {
    let mut log = Scripted::now();
    let found =
        |log: &Scripted, kind: &str, field: &str, value: u64, fields: &Value, time: &str| {
            let mut fields = fields.clone();
            fields[field] = json!(value);
            let mut log = Scripted {
                entries: log.entries.clone(),
                registration: Value::Null,
            };
            !log.push(kind, fields, time).found().is_empty()
        };
    log.register("one", &[]);
    let granted = json!({ "owner_tag_hex": "11".repeat(16), "reason": "a start" });
    let most = evidenceos_kernel::account::MAX_CREDIT;
    for (amount, wrong) in [(0, true), (1, false), (most, false), (most + 1, true)] {
        let is = found(
            &log,
            "credit_granted",
            "amount",
            amount,
            &granted,
            "granted_unix_ms",
        );
        assert_eq!(is, wrong, "{amount}");
    }
    let imported = json!({ "file_sha256_hex": "22".repeat(32), "reason": "moved" });
    for (accounts, wrong) in [(0, false), (u64::from(u32::MAX), false), (1 << 32, true)] {
        let is = found(
            &log,
            "accounts_imported",
            "accounts",
            accounts,
            &imported,
            "imported_unix_ms",
        );
        assert_eq!(is, wrong, "{accounts}");
    }
}

#[test]
fn policies_are_stated_if_they_are_others_than_before() {
    let stated = |digests: &[&str]| {
        let mut log = Scripted::now();
        for digest in digests {
            let fields = json!({ "policies_sha256_hex": digest.repeat(32) });
            log.push("policies_in_force", fields, "in_force_unix_ms");
        }
        log
    };
    stated(&["11"]).is_sound();
    stated(&["11", "22", "11"]).is_sound();
    stated(&["11", "11"]).ends_badly("only if they changed");
}

#[test]
fn batches_of_decisions_follow_one_another_or_begin_a_later_start() {
    const START: u64 = 1 << 40;
    let recorded = |batches: &[(u64, u64)]| {
        let mut log = Scripted::now();
        for (first, count) in batches {
            let fields = json!({
                "first_decision_hex": format!("{first:016x}"), "count": count, "root_hex": "33".repeat(32),
            });
            log.push("decision_batch", fields, "recorded_unix_ms");
        }
        log
    };
    recorded(&[(START, 3), (START + 3, 1)]).is_sound();
    recorded(&[(START, 3), (2 * START, 1), (5 * START, 2)]).is_sound();
    for next in [START, START + 2, START + 4, 2 * START + 1] {
        recorded(&[(START, 3), (next, 1)]).ends_badly("follows the last decision");
    }
    recorded(&[(2 * START, 1), (START, 1)]).ends_badly("follows the last decision");
    recorded(&[(2 * START - 2, 2)]).is_sound();
    recorded(&[(2 * START - 2, 3)]).ends_badly("of one start of the daemon");
}
