//! The loop around the driver, and the bounded queue before it.
//!
//! What waits is taken as one batch, up to a number of commands and of bytes: the latency of one
//! sync, the throughput of many. Outcomes of runs are bounded by the run slots and always taken
//! in; calls are bounded here, in all and for each principal, and a full queue is said before any
//! work is done.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use evidenceos_kernel::{id::OwnerTag, refusal::Refusal};
use evidenceos_store::{Head, Store};

use crate::{Announced, Call, Driver, Fatal, Finished, Input, Signer};

/// Commands in a batch.
const BATCH_COMMANDS: usize = 256;
/// Bytes of modules in a batch.
const BATCH_BYTES: usize = 1 << 20;
/// Calls that wait before the writer.
const QUEUE: usize = 4_096;
/// Of one principal.
const QUEUE_OF_ONE: usize = QUEUE / 4;
/// How long nothing comes before the store tidies up.
const IDLE: Duration = Duration::from_millis(50);

enum Letter {
    Call(Call),
    Finished(Finished),
    Signed(Result<Head, String>),
    NewSigner(Box<dyn Signer>),
    Announced(Announced),
    Stop(Instant),
}

#[derive(Default)]
struct Queued {
    calls: usize,
    by_principal: HashMap<OwnerTag, usize>,
}

/// Where calls are put.
#[derive(Clone)]
pub struct Mailbox {
    letters: Sender<Letter>,
    queued: Arc<Mutex<Queued>>,
}

/// Where the loop takes them from.
pub struct Inbox {
    letters: Receiver<Letter>,
    queued: Arc<Mutex<Queued>>,
}

/// A mailbox and its inbox.
#[must_use]
pub fn mailbox() -> (Mailbox, Inbox) {
    let (sender, receiver) = channel();
    let queued = Arc::new(Mutex::new(Queued::default()));
    (
        Mailbox {
            letters: sender,
            queued: Arc::clone(&queued),
        },
        Inbox {
            letters: receiver,
            queued,
        },
    )
}

impl Mailbox {
    /// Puts a call before the writer. A call that finds no room is answered at once.
    pub fn call(&self, call: Call) {
        let tag = call.request.caller.tag;
        {
            let mut queued = self.queued.lock().unwrap_or_else(PoisonError::into_inner);
            let own = queued.by_principal.get(&tag).copied().unwrap_or(0);
            if queued.calls >= QUEUE || own >= QUEUE_OF_ONE {
                drop(queued);
                call.reply_to.send(Err(Refusal::QueueFull.into()));
                return;
            }
            queued.calls += 1;
            *queued.by_principal.entry(tag).or_insert(0) += 1;
        }
        // A closed mailbox drops the call, and its sender sees that nobody will answer.
        let _ = self.letters.send(Letter::Call(call));
    }

    /// Hands in an executed run.
    pub fn finished(&self, finished: Finished) {
        let _ = self.letters.send(Letter::Finished(finished));
    }

    /// Hands in a head that was to be signed elsewhere, or why it was not.
    pub fn signed(&self, result: Result<Head, String>) {
        let _ = self.letters.send(Letter::Signed(result));
    }

    /// Lets another key take over the log.
    pub fn follow(&self, signer: Box<dyn Signer>) {
        let _ = self.letters.send(Letter::NewSigner(signer));
    }

    /// Commits what an `accounts.json` holds; then the file may be put in place.
    pub fn announce(&self, announced: Announced) {
        let _ = self.letters.send(Letter::Announced(announced));
    }

    /// Ends the loop: runs under way may finish until a deadline, nothing new begins.
    pub fn stop(&self, deadline: Instant) {
        let _ = self.letters.send(Letter::Stop(deadline));
    }
}

impl Inbox {
    fn unqueue(&self, call: &Call) {
        let tag = call.request.caller.tag;
        let mut queued = self.queued.lock().unwrap_or_else(PoisonError::into_inner);
        queued.calls -= 1;
        if let Some(own) = queued.by_principal.get_mut(&tag) {
            *own -= 1;
            if *own == 0 {
                queued.by_principal.remove(&tag);
            }
        }
    }
}

/// Drives until it is told to stop, and gives the store back. `clock` gives Unix milliseconds.
///
/// # Errors
/// [`Fatal`]: the process must end at once.
pub fn run<S: Store>(
    mut driver: Driver<S>,
    inbox: &Inbox,
    clock: impl Fn() -> u64,
) -> Result<S, Fatal> {
    // Runs found unfinished are begun without waiting for a call.
    driver.step(clock(), Vec::new())?;
    let mut deadline: Option<Instant> = None;
    let mut tidy = false;
    loop {
        let wait = match deadline {
            Some(deadline) if !driver.has_work() || Instant::now() >= deadline => {
                driver.abandon();
                driver.store_mut().maintain(true)?;
                return Ok(driver.into_store());
            }
            Some(deadline) => deadline.saturating_duration_since(Instant::now()).min(IDLE),
            None if tidy => Duration::MAX,
            None => IDLE,
        };
        let first = match receive(&inbox.letters, wait) {
            Ok(letter) => letter,
            Err(RecvTimeoutError::Timeout) => {
                if driver.owes_a_step() {
                    driver.step(clock(), Vec::new())?;
                }
                driver.store_mut().maintain(true)?;
                tidy = !driver.owes_a_step();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(driver.into_store()),
        };
        tidy = false;
        let mut inputs = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(letter) = next {
            match letter {
                Letter::Call(call) => {
                    inbox.unqueue(&call);
                    bytes += call.module.as_ref().map_or(0, |module| module.bytes.len());
                    inputs.push(Input::Call(call));
                }
                Letter::Finished(finished) => inputs.push(Input::Finished(finished)),
                Letter::Signed(result) => inputs.push(Input::Signed(result)),
                Letter::NewSigner(signer) => inputs.push(Input::NewSigner(signer)),
                Letter::Announced(announced) => inputs.push(Input::Announced(announced)),
                Letter::Stop(at) => {
                    deadline = Some(at);
                    driver.stop();
                }
            }
            let room = inputs.len() < BATCH_COMMANDS && bytes < BATCH_BYTES;
            next = if room {
                inbox.letters.try_recv().ok()
            } else {
                None
            };
        }
        driver.step(clock(), inputs)?;
        driver.store_mut().maintain(false)?;
    }
}

fn receive(letters: &Receiver<Letter>, wait: Duration) -> Result<Letter, RecvTimeoutError> {
    if wait == Duration::MAX {
        letters.recv().map_err(|_| RecvTimeoutError::Disconnected)
    } else {
        letters.recv_timeout(wait)
    }
}
