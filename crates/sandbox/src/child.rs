//! The child: a process that compiles one module, or runs guests and asks policy oracles, and can do nothing else.
//!
//! Owns the child's side of the socket. Invariant: the limits and the walls are in force before the child reads the
//! first byte from a stranger; from then on the process has a socket to its parent, memory and a processor. It has no
//! label, key, file, network or process: a guest's question goes to the parent, which has the labels.

mod code;
mod engine;
mod host;
mod machine;
mod vote;
mod walls;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::rc::Rc;

use wasmtime::Engine;

use crate::check::Role;
use crate::policy::{PolicyFailure, PolicyLimits, Vote};
use crate::run::{AskError, Limits, Oracle, Ran};
use crate::wire::{Code, CodeKey, FromChild, Link, MAX_CODE, MAX_TO_CHILD, Ready, ToChild, seal};
use code::{GuestCode, PolicyCode};
use machine::Task;
pub(crate) use walls::Bounds;

/// The first argument of a child. The others are its [`Bounds`].
pub(crate) const ARGUMENT: &str = "sandbox-child";

/// Exit status of a program that a user called by hand.
const USAGE: u8 = 64;

/// If this process was started as a child of a [`Sandbox`](crate::Sandbox), serves as that child until it ends.
///
/// A program that creates a sandbox calls this first in `main`, before it starts a thread or reads a setting.
pub fn serve_if_child() -> Option<ExitCode> {
    let mut arguments = std::env::args();
    if arguments.nth(1)? != ARGUMENT {
        return None;
    }
    let bounds = Bounds::from_arguments(arguments);
    // Open nothing before this, since it closes the program's own descriptors too.
    walls::close_inherited_files();
    let socket = parent();
    let (Some(bounds), Ok(socket)) = (bounds, socket) else {
        eprintln!(
            "error: the program starts itself with `{ARGUMENT}` to run a guest; nothing else can use it"
        );
        return Some(ExitCode::from(USAGE));
    };
    Some(match serve(bounds, socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    })
}

/// The socket to the parent, in the place of standard input.
fn parent() -> io::Result<UnixStream> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // A file or a terminal has no peer: then a user called the program by hand.
    socket.peer_addr()?;
    Ok(socket)
}

fn serve(bounds: Bounds, socket: UnixStream) -> io::Result<()> {
    bounds.take_effect()?;
    // Set up the engine before the walls: their list of system calls covers only what a run needs
    // afterwards.
    let engine = engine::new_engine().map_err(io::Error::other)?;
    let engine_id = engine::engine_id(&engine, measure_stack(&engine).map_err(io::Error::other)?);
    let walls = walls::raise();
    let mut link = Link::new(socket);
    // The parent sends nothing from a stranger before it receives this.
    link.send(&FromChild::Ready(Ready {
        engine_id: engine_id.clone(),
        walls,
    }))?;
    Worker {
        engine,
        engine_id,
        link: Rc::new(RefCell::new(link)),
        codes: HashMap::new(),
    }
    .work()
}

/// The state of a child.
struct Worker {
    engine: Engine,
    engine_id: String,
    link: Rc<RefCell<Link<UnixStream>>>,
    codes: HashMap<CodeKey, Result<Kept, String>>,
}

/// Code that is ready to run.
enum Kept {
    Guest(GuestCode),
    Policy(PolicyCode),
}

impl Worker {
    /// Obeys the parent until it closes the socket.
    fn work(mut self) -> io::Result<()> {
        let link = Rc::clone(&self.link);
        loop {
            let mut reading = link.borrow_mut();
            match reading.receive(MAX_TO_CHILD)? {
                None => return Ok(()),
                Some(ToChild::Compile { wasm, .. }) => {
                    let compiled = self.compile(wasm);
                    let compiled = compiled.as_deref().map(Code).map_err(Clone::clone);
                    reading.send(&FromChild::Compiled(compiled))?;
                }
                Some(ToChild::Keep {
                    key,
                    seal,
                    role,
                    code,
                    instead_of,
                }) => {
                    // Evict first, then insert: the child keeps no more than its parent counts.
                    if let Some(old) = instead_of {
                        self.codes.remove(&old);
                    }
                    let kept = self.keep(key, seal, role, code);
                    self.codes.insert(key, kept);
                }
                Some(ToChild::Run {
                    key,
                    limits,
                    submits,
                    initial_pages,
                    data,
                }) => {
                    let task = Task {
                        limits,
                        submits,
                        initial_pages,
                        // A copy, because the guest's questions use the link's buffer during the
                        // run.
                        data: data
                            .iter()
                            .map(|segment| (segment.address, segment.bytes.to_vec()))
                            .collect(),
                    };
                    // The guest's questions go over the same link, which must not be borrowed
                    // during the run.
                    drop(reading);
                    let ended = self.run(&key, &task);
                    link.borrow_mut().send(&FromChild::Ended(ended))?;
                }
                Some(ToChild::Decide { key, limits, input }) => {
                    let voted = self.decide(&key, limits, input);
                    reading.send(&FromChild::Voted(voted))?;
                }
                Some(ToChild::Answer(_)) => {
                    return Err(io::Error::other("an answer, and no question was asked"));
                }
            }
        }
    }

    /// Machine code of a module, if it is not too long to be kept.
    fn compile(&self, wasm: &[u8]) -> Result<Vec<u8>, String> {
        let code = code::compile(&self.engine, wasm).map_err(|error| format!("{error:#}"))?;
        if code.len() > MAX_CODE {
            return Err(format!(
                "it becomes {} bytes of machine code, at most {MAX_CODE} are allowed",
                code.len()
            ));
        }
        Ok(code)
    }

    fn keep(
        &self,
        key: CodeKey,
        sealed: [u8; 32],
        role: Role,
        code: &[u8],
    ) -> Result<Kept, String> {
        if sealed != seal(&self.engine_id, role, &key, code) {
            return Err("the code was not compiled for this module and engine".to_owned());
        }
        let told = |error: wasmtime::Error| format!("the engine failed: {error:#}");
        let module = code::load(&self.engine, code).map_err(told)?;
        match role {
            Role::Guest => GuestCode::link(&module).map(Kept::Guest),
            Role::Policy => PolicyCode::link(&module).map(Kept::Policy),
        }
        .map_err(told)
    }

    fn run(&self, key: &CodeKey, task: &Task) -> Result<Ran, String> {
        match self.kept(key)? {
            Kept::Guest(code) => machine::run(code, task, Box::new(Parent(Rc::clone(&self.link)))),
            Kept::Policy(_) => Err("a policy oracle is not a guest".to_owned()),
        }
    }

    fn decide(
        &self,
        key: &CodeKey,
        limits: PolicyLimits,
        input: &[u8],
    ) -> Result<Vote, PolicyFailure> {
        match self.kept(key).map_err(PolicyFailure::Host)? {
            Kept::Policy(code) => vote::decide(code, limits, input),
            Kept::Guest(_) => Err(PolicyFailure::Host(
                "a guest is not a policy oracle".to_owned(),
            )),
        }
    }

    fn kept(&self, key: &CodeKey) -> Result<&Kept, String> {
        match self.codes.get(key) {
            Some(Ok(kept)) => Ok(kept),
            Some(Err(fault)) => Err(fault.clone()),
            None => Err("the child does not have the code".to_owned()),
        }
    }
}

/// Asks the parent, which has the labels.
struct Parent(Rc<RefCell<Link<UnixStream>>>);

impl Oracle for Parent {
    fn ask(&mut self, vector: &[u8]) -> Result<u32, AskError> {
        let mut link = self.0.borrow_mut();
        if link.send(&FromChild::Asked(vector)).is_err() {
            parent_is_gone();
        }
        match link.receive(MAX_TO_CHILD) {
            Ok(Some(ToChild::Answer(answer))) => answer,
            _ => parent_is_gone(),
        }
    }
}

/// Ends the process: no parent waits for its work.
fn parent_is_gone() -> ! {
    std::process::exit(1)
}

/// An oracle that is required by a type but never asked.
struct Silent;

impl Oracle for Silent {
    fn ask(&mut self, _: &[u8]) -> Result<u32, AskError> {
        Err(AskError::AllowanceExhausted)
    }
}

/// The fuel that an endless recursion burns: a measure of the stack's frames. This also makes the engine do its
/// set-up for a first run before the walls are raised.
fn measure_stack(engine: &Engine) -> Result<u64, String> {
    let told = |error: wasmtime::Error| format!("{error:#}");
    let compiled = code::compile(engine, &crate::pack::stack_probe()).map_err(told)?;
    let code = GuestCode::link(&code::load(engine, &compiled).map_err(told)?).map_err(told)?;
    let task = Task {
        limits: Limits {
            // More fuel than any recursion burns before its stack ends: the stack must be the
            // limit.
            fuel: 1 << 40,
            memory_bytes: 1 << 20,
            oracle_calls: 0,
            items: 0,
            epoch_size: 0,
        },
        submits: false,
        initial_pages: 1,
        data: Vec::new(),
    };
    machine::run(&code, &task, Box::new(Silent)).map(|report| report.fuel_used)
}
