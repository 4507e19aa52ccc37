//! The processes in which guests run: what they have, what they may use, and what their end means.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use evidenceos_sandbox::{
    AdmitError, AskError, Config, End, HostFault, Mode, Oracle, PackOptions, Program, Ran, Sandbox,
    pack,
};

use crate::{config, limits, wat};

/// A sandbox whose children can be told from those of other tests: they are started under a name of their own.
struct Own {
    sandbox: Option<Sandbox>,
    name: PathBuf,
}

impl Own {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("child-{}-{number}", std::process::id()));
        symlink(config().program.0, &name).expect("a name of its own");
        let sandbox = Sandbox::new(Config {
            program: Program(name.clone()),
            ..config()
        });
        Self {
            sandbox: Some(sandbox.expect("children can be started here")),
            name,
        }
    }

    fn sandbox(&self) -> &Sandbox {
        self.sandbox.as_ref().expect("not dropped yet")
    }

    /// The children that are there now.
    fn children(&self) -> Vec<u32> {
        let mut children = Vec::new();
        for entry in fs::read_dir("/proc").expect("processes").flatten() {
            let Some(id) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let started_as = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let name = started_as.split(|byte| *byte == 0).next();
            if name == Some(self.name.as_os_str().as_encoded_bytes()) {
                children.push(id);
            }
        }
        children
    }

    /// Those of them that run guests; another one may be on its way, which compiles.
    fn running(&self) -> Vec<u32> {
        let mut children = self.children();
        children.retain(|id| {
            let limits = fs::read_to_string(format!("/proc/{id}/limits")).unwrap_or_default();
            limits.contains("671088640")
        });
        children
    }

    fn run(&self, wasm: &[u8], oracle: &mut dyn Oracle) -> Result<Ran, HostFault> {
        let prepared = self.sandbox().prepare(wasm).expect("an admitted module");
        self.sandbox().run(&prepared, &limits(16), false, oracle)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.name);
    }
}

fn status_of(id: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{id}/{file}")).expect("a process that is there")
}

/// Looks at the child in the middle of a run.
struct During<F>(F);

impl<F: FnMut()> Oracle for During<F> {
    fn ask(&mut self, _: &[u8]) -> Result<u32, AskError> {
        (self.0)();
        Ok(7)
    }
}

fn asking() -> Vec<u8> {
    pack(&PackOptions::new(&[1; 16], Mode::AskAndJudge)).expect("packs")
}

fn kill(id: u32) {
    signal(id, "KILL");
}

fn signal(id: u32, name: &str) {
    let status = Command::new("kill")
        .args(["-s", name, &id.to_string()])
        .status();
    assert!(status.expect("kill").success());
}

#[test]
fn a_child_has_a_socket_and_nothing_else() {
    // Left open for whoever is started next, as a careless parent of the daemon may do.
    let careless = fs::File::open("/proc/self/status").expect("a file");
    let _left_open = rustix::io::dup(&careless).expect("a second one");
    let own = Own::new();
    let mut seen = 0;
    let mut look = During(|| {
        for id in own.running() {
            seen += 1;
            let mut files = fs::read_dir(format!("/proc/{id}/fd"))
                .expect("its files")
                .flatten()
                .map(|file| {
                    let target = fs::read_link(file.path()).expect("a file");
                    format!("{} {}", file.file_name().display(), target.display())
                })
                .collect::<Vec<_>>();
            files.retain(|file| !file.contains("socket:") && !file.contains("pipe:"));
            assert_eq!(files, ["1 /dev/null"], "its standard output");
            assert_eq!(status_of(id, "environ"), "");
            assert_eq!(
                fs::read_link(format!("/proc/{id}/cwd")).expect("a directory"),
                Path::new("/")
            );
            let limits = status_of(id, "limits");
            for line in [
                "Max core file size        0",
                "Max file size             0",
                "Max open files            16",
            ] {
                assert!(limits.contains(line), "{line}: {limits}");
            }
            assert!(
                !limits.contains("Max data size             unlimited"),
                "{limits}"
            );
            assert!(
                !limits.contains("Max cpu time              unlimited"),
                "{limits}"
            );
            let status = status_of(id, "status");
            assert_eq!(
                status.contains("Seccomp:\t2"),
                own.sandbox().walls().seccomp,
                "{status}"
            );
            assert_eq!(
                status.lines().find(|line| line.starts_with("Threads:")),
                Some("Threads:\t1")
            );
        }
    });
    let report = own.run(&asking(), &mut look).expect("a run");
    assert!(matches!(report.end, End::Emitted(_)));
    assert_eq!(seen, 1);
}

#[test]
fn this_kernel_has_the_filter_of_system_calls() {
    // It is in every kernel that anything is shipped for; Landlock may be missing.
    assert!(crate::sandbox().walls().seccomp);
}

#[test]
fn the_death_of_a_child_while_it_runs_a_guest_is_a_fault_and_the_next_run_goes_on() {
    let own = Own::new();
    let mut end = During(|| own.running().into_iter().for_each(kill));
    let fault = own.run(&asking(), &mut end).expect_err("it is dead");
    assert!(fault.while_running, "{fault}");
    assert!(fault.message.contains("killed"), "{fault}");

    let report = own
        .run(&asking(), &mut During(|| {}))
        .expect("another child");
    assert!(matches!(report.end, End::Emitted(_)));
}

#[test]
fn children_that_die_while_they_wait_fail_nobody() {
    let own = Own::new();
    own.run(&asking(), &mut During(|| {})).expect("a run");
    // One that runs and one that compiles, which have said that they are ready and wait for work.
    let waits = |id: &u32| {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        status.contains("State:\tS") && status.contains("Seccomp:\t2")
    };
    let waiting = || own.children().into_iter().filter(waits).count();
    while waiting() < 2 {
        thread::yield_now();
    }
    own.children().into_iter().for_each(kill);
    while !own.children().is_empty() {
        thread::yield_now();
    }
    let other = pack(&PackOptions::new(&[0; 16], Mode::AskAndJudge)).expect("packs");
    let report = own.run(&other, &mut During(|| {})).expect("other children");
    assert!(matches!(report.end, End::Emitted(_)));
}

#[test]
fn a_child_that_dies_before_it_has_read_its_work_fails_nobody() {
    let own = Own::new();
    // Stopped, they read nothing, as those that a signal has reached and that are not gone yet.
    let stopped = |children: Vec<u32>| {
        children.iter().for_each(|id| signal(*id, "STOP"));
        children
    };
    own.run(&asking(), &mut During(|| {})).expect("a run");
    let other = pack(&PackOptions::new(&[0; 16], Mode::AskAndJudge)).expect("packs");
    for module in [asking(), other] {
        let children = stopped(own.children());
        thread::scope(|scope| {
            let run = thread::Builder::new()
                .name("waits".to_owned())
                .spawn_scoped(scope, || own.run(&module, &mut During(|| {})))
                .expect("a thread");
            while !run.is_finished() && !waits_for_bytes("waits") {
                thread::yield_now();
            }
            children.into_iter().for_each(kill);
            let report = run.join().expect("no panic").expect("another child");
            assert!(matches!(report.end, End::Emitted(_)));
        });
    }
}

/// Whether the thread of this name waits for what comes through a socket.
fn waits_for_bytes(name: &str) -> bool {
    let threads = fs::read_dir("/proc/self/task").expect("threads").flatten();
    let mut ours = threads.filter(|thread| {
        let called = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        called.trim() == name
    });
    ours.any(|thread| {
        let look = |file| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        let waits_in = look("wchan");
        // A kernel that does not say where a thread waits still says that it does.
        let is_there = waits_in.contains("unix_stream") || matches!(&*waits_in, "" | "0");
        look("status").contains("State:\tS") && is_there
    })
}

#[test]
fn a_run_alone_has_a_child_that_nobody_else_gets() {
    let own = Own::new();
    let prepared = own.sandbox().prepare(&asking()).expect("admitted");
    let before = own.running();
    let mut during = Vec::new();
    let mut look = During(|| during = own.running());
    own.sandbox()
        .run(&prepared, &limits(16), true, &mut look)
        .expect("a run");
    assert_eq!((before.len(), during.len()), (1, 2));
    assert_eq!(own.running(), before);
}

#[test]
fn what_takes_too_much_to_compile_is_the_modules_end_and_the_sandbox_goes_on() {
    let own = Own::new();
    // Nested blocks of a hundred parameters and results, which no rule of admission would let through.
    let types = "i32 ".repeat(100);
    let deep = |depth: usize| {
        let zeros = "i32.const 0 ".repeat(100);
        let open = format!("block (param {types}) (result {types}) ").repeat(depth);
        let (close, drop) = ("end ".repeat(depth), "drop ".repeat(100));
        wat(&format!(
            r#"(module (memory (export "memory") 1) (func (export "run") {zeros}{open}{close}{drop}))"#
        ))
    };
    let error = own.sandbox().cost_of(&deep(4_000)).expect_err("too dear");
    assert!(matches!(error, AdmitError::TooExpensive(_)), "{error}");
    own.sandbox().cost_of(&deep(1)).expect("cheap");
    assert!(own.run(&asking(), &mut During(|| {})).is_ok());
}

#[test]
fn what_becomes_too_much_machine_code_is_the_modules_end() {
    let own = Own::new();
    // Two bytes each, and more than a hundred of machine code.
    let module = |functions: usize| {
        let there_and_back = "i64.trunc_f64_s f64.convert_i64_u ".repeat(32_000);
        let one = format!("(func (param f64) (result f64) local.get 0 {there_and_back})");
        let many = one.repeat(functions);
        wat(&format!(
            r#"(module (memory (export "memory") 1) {many} (func (export "run")))"#
        ))
    };
    let error = own.sandbox().prepare(&module(4)).expect_err("too much");
    let AdmitError::Engine(words) = &error else {
        panic!("{error}");
    };
    assert!(words.contains("machine code"), "{words}");
    assert!(own.sandbox().prepare(&module(1)).is_ok());
}

#[test]
fn children_end_with_their_sandbox() {
    let mut own = Own::new();
    own.run(&asking(), &mut During(|| {})).expect("a run");
    assert!(!own.children().is_empty());
    own.sandbox = None;
    let mut tries = 0;
    while !own.children().is_empty() {
        tries += 1;
        assert!(tries < 10_000_000, "{:?} are left", own.children());
        std::thread::yield_now();
    }
}

#[test]
fn a_program_that_is_no_child_is_no_sandbox() {
    for (program, words) in [
        ("/bin/true", "ended by itself"),
        ("/nonexistent/evidenceos", "cannot be started"),
    ] {
        let error = Sandbox::new(Config {
            program: Program(program.into()),
            ..config()
        });
        let error = error.expect_err("not a child").to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn nobody_can_be_a_child_by_hand() {
    let by_hand = |arguments: &[&str]| {
        let output = Command::new(config().program.0)
            .arg("sandbox-child")
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .output()
            .expect("the program starts");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), words)
    };
    for arguments in [&[] as &[&str], &["1000000000", "10", "0"]] {
        let (status, words) = by_hand(arguments);
        assert_eq!(status, Some(64), "{words}");
        assert!(words.contains("to run a guest"), "{words}");
    }
}

#[test]
fn an_ended_sandbox_ends_what_runs_and_runs_nothing_more() {
    let own = Own::new();
    let mut end = During(|| own.sandbox().end());
    let fault = own.run(&asking(), &mut end).expect_err("it is ended");
    assert!(fault.while_running, "{fault}");
    let fault = own.run(&asking(), &mut During(|| {})).expect_err("no more");
    assert!(!fault.while_running, "{fault}");
    assert!(fault.message.contains("has ended"), "{fault}");
}

#[test]
fn a_child_that_hangs_up_and_stays_is_ended() {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guests/hangs_up.sh");
    let error = Sandbox::new(Config {
        program: Program(program.into()),
        ..config()
    });
    let error = error.expect_err("not a child").to_string();
    assert!(error.contains("its process has ended"), "{error}");
}
