//! Guests that misbehave: an ordinary result with a reason, and the daemon stays well.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use evidenceos_daemon::Config;
use evidenceos_proto as wire;
use evidenceos_sandbox::Program;
use tokio::task::JoinSet;
use tonic::Code;

use crate::harness::{
    Daemon, Directory, ITEMS, block_on, config, judged, predictions, program, refused, terms,
};

/// A guest of the published interface around a body; `emit` takes a pointer and a length.
fn guest(body: &str) -> Vec<u8> {
    wat::parse_str(format!(
        r#"(module
            (import "env" "oracle_query" (func $ask (param i32 i32) (result i32)))
            (import "kernel" "submit_predictions" (func $submit (param i32 i32) (result i32)))
            (import "env" "emit_structured_claim" (func $emit (param i32 i32)))
            (memory (export "memory") 1)
            (func $recurse (call $recurse))
            (func (export "run") {body}))"#
    ))
    .expect("valid text")
}

#[test]
fn a_failed_run_is_settled_with_its_reason_and_not_judged() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let submit = format!("(drop (call $submit (i32.const 0) (i32.const {ITEMS})))");
        let emit = "(call $emit (i32.const 0) (i32.const 1))";
        let cases: [(&str, String, u32); 12] = [
            ("unreachable", "unreachable".to_owned(), 123),
            (
                "a trap after the emit",
                format!("{submit} {emit} unreachable"),
                123,
            ),
            ("an endless loop", "(loop $l (br $l))".to_owned(), 111),
            ("a deep recursion", "(call $recurse)".to_owned(), 112),
            (
                "a short vector",
                "(drop (call $ask (i32.const 0) (i32.const 3)))".to_owned(),
                113,
            ),
            (
                "a vector with a two",
                format!("(i32.store8 (i32.const 5) (i32.const 2)) {submit}"),
                113,
            ),
            (
                "a pointer outside",
                format!("(drop (call $ask (i32.const 65530) (i32.const {ITEMS})))"),
                116,
            ),
            ("two emits", format!("{submit} {emit} {emit}"), 117),
            ("no emit", submit.clone(), 118),
            (
                "an output of two bytes",
                format!("{submit} (call $emit (i32.const 0) (i32.const 2))"),
                119,
            ),
            ("nothing to judge", emit.to_owned(), 120),
            (
                "an output that is no symbol",
                format!("{submit} (i32.store8 (i32.const 0) (i32.const 2)) {emit}"),
                119,
            ),
        ];
        for (name, body, reason) in cases {
            let (claim, result) = client.run(name, "h", &guest(&body)).await;
            assert_eq!(result.outcome, "not_judged", "{name}");
            assert_eq!(result.reason_codes, [2, reason], "{name}");
            assert_eq!(result.state, wire::ClaimState::Settled as i32, "{name}");
            assert!(
                !result.explanation.is_empty() && result.price_microbits == 0,
                "{name}"
            );
            client.fetch(&claim).await.expect("has a capsule");
        }
        let holdout = client.holdout("h").await;
        assert_eq!((holdout.settled, holdout.sealed_charged_microbits), (0, 0));
        let (claim, good) = client
            .run("good", "h", &judged(&predictions("h", 20)))
            .await;
        assert!(good.certified);
        // Readers that look for the verdict beside the capsule find it.
        let fetched = client.fetch(&claim).await.expect("has a capsule");
        assert_eq!(
            (fetched.certified, fetched.decision, fetched.e_value),
            (good.certified, good.decision, good.e_value)
        );
    });
}

#[test]
fn memory_that_is_not_there_is_refused_to_the_guest_only() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let bomb =
            guest("(loop $l (br_if $l (i32.ge_s (memory.grow (i32.const 64)) (i32.const 0))))");
        let (_, result) = client.run("bomb", "h", &bomb).await;
        // Growth beyond the lane answers −1 and the guest ends without a word.
        assert_eq!(result.reason_codes, [2, 118]);
        client
            .inner
            .health(wire::HealthRequest {})
            .await
            .expect("well");
    });
}

#[test]
fn the_published_interface_is_judged_on_its_last_question() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let bytes: String = predictions("h", 100)
            .iter()
            .map(|p| format!("\\{p:02x}"))
            .collect();
        let module = wat::parse_str(format!(
            r#"(module
                (import "env" "oracle_bucket" (func $ask (param i32 i32) (result i32)))
                (import "env" "emit_structured_claim" (func $emit (param i32 i32) (result i32)))
                (import "env" "get_logical_epoch" (func $epoch (result i64)))
                (memory (export "memory") 1)
                (data (i32.const 16) "{bytes}")
                (func (export "run")
                    (i32.store8 (i32.const 0) (call $ask (i32.const 16) (i32.const {ITEMS})))
                    (drop (call $epoch))
                    (drop (call $emit (i32.const 0) (i32.const 1)))))"#
        ))
        .expect("valid text");
        let mut asked = terms("published", "h");
        asked.oracle_num_symbols = 16;
        let claim = client.create(asked).await.expect("created");
        client.commit(&claim, &module).await.expect("committed");
        client.seal(&claim).await.expect("sealed");
        let result = client.execute(&claim).await.expect("settled");
        assert!(result.certified, "{result:?}");
        assert_eq!(result.charged_answer_microbits, 4_000_000);
        assert!((13..16).contains(&result.canonical_output[0]));
    });
}

/// Kills whatever runs a guest under this name, until it is dropped.
struct Killer {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<u32>>,
}

impl Killer {
    fn of(name: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut killed = 0;
            while !asked.load(Ordering::Relaxed) {
                killed += running(&name).into_iter().filter(|id| kill(*id)).count() as u32;
                thread::yield_now();
            }
            killed
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// How many it killed.
    fn stop(mut self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("not stopped before");
        thread.join().expect("it only looks and kills")
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Children under this name that compute at this moment, behind their walls.
fn running(name: &Path) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter(|process| {
            let read = |file| fs::read(process.path().join(file)).unwrap_or_default();
            let computes = |status: &[u8]| {
                let status = String::from_utf8_lossy(status);
                status.contains("State:\tR") && status.contains("Seccomp:\t2")
            };
            read("cmdline").split(|byte| *byte == 0).next()
                == Some(name.as_os_str().as_encoded_bytes())
                && computes(&read("status"))
        })
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect()
}

fn kill(id: u32) -> bool {
    let id = rustix::process::Pid::from_raw(id.cast_signed()).expect("a process");
    rustix::process::kill_process(id, rustix::process::Signal::KILL).is_ok()
}

#[test]
fn a_run_whose_process_dies_three_times_is_aborted_and_nothing_else_is_harmed() {
    block_on(async {
        let directory = Directory::new();
        let name = directory.beside("guests");
        std::os::unix::fs::symlink(program().0, &name).expect("a name of its own");
        let running = evidenceos_daemon::start(Config {
            guest_program: Program(name.clone()),
            ..config(directory.path())
        });
        let daemon = Daemon {
            running: running.await.expect("it starts"),
            directory,
        };
        let mut client = daemon.operator().await;
        client.put_default("h").await;

        let endless = guest("(loop $l (br $l))");
        let claim = client.sealed("killed", "h", &endless).await;
        let killer = Killer::of(name);
        let result = client.execute(&claim).await.expect("settled");
        let killed = killer.stop();
        assert_eq!(result.outcome, "aborted", "{result:?}");
        assert!(killed >= 3, "{killed}");

        let (_, result) = client
            .run("an endless loop", "h", &guest("(loop $l (br $l)) (nop)"))
            .await;
        assert_eq!(result.reason_codes, [2, 111]);
        let (_, good) = client
            .run("good", "h", &judged(&predictions("h", 20)))
            .await;
        assert!(good.certified);
    });
}

#[test]
fn what_is_too_dear_to_compile_is_refused_by_its_rule_and_costs_the_daemon_nothing() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let claim = client.create(terms("dear", "h")).await.expect("created");
        let types = "i32 ".repeat(100);
        let nested = format!("(block (param {types}) (result {types}) ").repeat(4_000);
        let body = format!(
            "{} {nested} {} {}",
            "i32.const 0 ".repeat(100),
            ")".repeat(4_000),
            "drop ".repeat(100)
        );
        let refusal = client.commit(&claim, &guest(&body)).await;
        refused(refusal, Code::InvalidArgument, "INVALID_FIELD", "carried: ");
    });
}

#[test]
fn one_principals_long_runs_keep_no_thread_from_anothers() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut operator = daemon.operator().await;
        operator.put_default("one").await;
        operator.put_default("other").await;
        let mut greedy = daemon.submitter("greedy").await;
        let mut honest = daemon.submitter("honest").await;
        let predictions = judged(&predictions("other", 20));
        let short = honest.sealed("short", "other", &predictions).await;
        let mut long = JoinSet::new();
        for number in 0..24 {
            let endless = guest(&format!("(loop $l (br $l)) (drop (i32.const {number}))"));
            let name = format!("long {number}");
            let claim = greedy.sealed(&name, "one", &endless).await;
            let mut greedy = daemon.submitter("greedy").await;
            long.spawn(async move { greedy.execute(&claim).await.expect("settled") });
        }
        // The first of them has settled, so that the others are under way.
        long.join_next().await.expect("many").expect("settled");
        let result = honest.execute(&short).await.expect("settled");
        assert!(result.certified);
        let mut ended_before = 1;
        while long.try_join_next().is_some() {
            ended_before += 1;
        }
        assert!(ended_before < 24, "it waited for every other run");
        while long.join_next().await.is_some() {}
    });
}
