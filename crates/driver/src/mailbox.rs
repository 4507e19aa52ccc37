//! The loop around the driver, and the bounded queue before it.
//!
//! The loop takes the waiting letters as one batch, up to a number of commands and of bytes: the
//! latency of one sync, the throughput of many. The run slots bound the outcomes of runs, which are
//! always accepted; the mailbox bounds calls, in all and for each principal, and refuses a call
//! before any work is done if the queue is full.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use evidenceos_kernel::{id::OwnerTag, refusal::Refusal};
use evidenceos_store::{Head, Pages, Store, StoreError};
use parking_lot::Mutex;
use thiserror::Error;

use crate::{Announced, Call, Driver, Failure, Fatal, Finished, Input, Signer, Stated};

/// The most commands in a batch.
const BATCH_COMMANDS: usize = 256;
/// The most bytes of modules in a batch.
const BATCH_BYTES: usize = 1 << 20;
/// The most calls that wait before the writer.
const QUEUE: usize = 4_096;
/// The most calls of one principal that wait before the writer.
const QUEUE_OF_ONE: usize = QUEUE / 4;
/// The idle time after which the store does its deferred work.
const IDLE: Duration = Duration::from_millis(50);

/// The interval of looks at a store that is short of space.
const PROBE: Duration = Duration::from_millis(250);

enum Letter {
    Call(Call),
    Finished(Finished),
    Signed(Result<Head, String>),
    NewSigner(Box<dyn Signer>),
    Stated(Stated),
    Announced(Announced),
    Copy(CopyOrder),
    Halt(Fatal),
    Stop(Instant),
}

/// A copy of the store's database, to be made while batches go on.
pub struct CopyOrder {
    /// The directory that it is made in.
    pub to: PathBuf,
    /// Gets news of the copy. Dropping the receiver stops the copy.
    pub news: Sender<CopyNews>,
}

/// News of a copy.
#[derive(Debug)]
pub enum CopyNews {
    /// The pages copied so far.
    Pages(Pages),
    /// The copy is complete, or failed.
    Done(Result<(), CopyError>),
}

/// The reason why there is no copy of the store.
#[derive(Debug, Error)]
pub enum CopyError {
    /// The loop waits until signing may begin.
    #[error(
        "the daemon is read-only, as its log and `evidenceos server info` say; stop it to back it up"
    )]
    Held,
    /// One copy is made at a time.
    #[error("another copy of the data is being made; wait until it is done")]
    Busy,
    /// The store has no [`Copier`](evidenceos_store::Copier).
    #[error("this store cannot be copied while it is served; stop the daemon to back it up")]
    OnlyAtRest,
    /// The loop ends first, or the receiver of the news is gone.
    #[error("the copy was broken off because the daemon stops; back it up once it has stopped")]
    BrokenOff,
    /// The store cannot be read, or the copy cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Default)]
struct Queued {
    calls: usize,
    by_principal: HashMap<OwnerTag, usize>,
}

/// The sender's side of the queue.
#[derive(Clone)]
pub struct Mailbox {
    letters: Sender<Letter>,
    queued: Arc<Mutex<Queued>>,
    held_off: Arc<AtomicBool>,
}

/// The loop's side of the queue.
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
            held_off: Arc::default(),
        },
        Inbox {
            letters: receiver,
            queued,
        },
    )
}

impl Mailbox {
    /// Puts a call before the writer. If there is no room, or calls are held off, the call is answered at once with a
    /// refusal.
    pub fn call(&self, call: Call) {
        if self.held_off.load(Ordering::Acquire) {
            call.reply_to.send(Err(Failure::Held));
            return;
        }
        let tag = call.request.caller.tag;
        {
            let mut queued = self.queued.lock();
            let own = queued.by_principal.get(&tag).copied().unwrap_or(0);
            if queued.calls >= QUEUE || own >= QUEUE_OF_ONE {
                drop(queued);
                call.reply_to.send(Err(Refusal::QueueFull.into()));
                return;
            }
            queued.calls += 1;
            *queued.by_principal.entry(tag).or_insert(0) += 1;
        }
        // A closed mailbox drops the call, and the caller sees that no answer will come.
        let _ = self.letters.send(Letter::Call(call));
    }

    /// Refuses calls from now on, or takes them again: durable heads cannot be anchored. Runs under
    /// way settle.
    pub fn hold_off(&self, held: bool) {
        self.held_off.store(held, Ordering::Release);
    }

    /// Calls that wait before the writer.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let queued = self.queued.lock();
        queued.calls
    }

    /// Hands in an executed run.
    pub fn finished(&self, finished: Finished) {
        // If the loop has ended, the outcome is lost: the next start finds the run unfinished and
        // executes it again.
        let _ = self.letters.send(Letter::Finished(finished));
    }

    /// Hands in a head that was signed elsewhere, or the reason of a failure.
    pub fn signed(&self, result: Result<Head, String>) {
        // If the loop has ended, the head is lost: the next start requests the newest tree's head
        // anew.
        let _ = self.letters.send(Letter::Signed(result));
    }

    /// Lets another key take over the log.
    pub fn follow(&self, signer: Box<dyn Signer>) {
        let _ = self.letters.send(Letter::NewSigner(signer));
    }

    /// Commits the digest of an `accounts.json`; then the file may be put in place.
    pub fn announce(&self, announced: Announced) {
        let _ = self.letters.send(Letter::Announced(announced));
    }

    /// Lets the log state policies; then they may be put in force.
    pub fn state(&self, stated: Stated) {
        let _ = self.letters.send(Letter::Stated(stated));
    }

    /// Orders a copy. Only one is made at a time.
    pub fn copy(&self, order: CopyOrder) {
        // A closed mailbox drops the order, and the receiver of the news sees it.
        let _ = self.letters.send(Letter::Copy(order));
    }

    /// Ends the loop at once, before anything else is signed: the process must end.
    pub fn halt(&self, why: Fatal) {
        let _ = self.letters.send(Letter::Halt(why));
    }

    /// Ends the loop: runs under way may finish until a deadline, no new ones start.
    pub fn stop(&self, deadline: Instant) {
        let _ = self.letters.send(Letter::Stop(deadline));
    }
}

impl Inbox {
    fn unqueue(&self, call: &Call) {
        let tag = call.request.caller.tag;
        let mut queued = self.queued.lock();
        queued.calls -= 1;
        if let Some(own) = queued.by_principal.get_mut(&tag) {
            *own -= 1;
            // A zero entry for each principal that ever called would let the map grow without
            // bound.
            if *own == 0 {
                queued.by_principal.remove(&tag);
            }
        }
    }
}

/// Refuses every call until `ready` succeeds: nothing may be signed or charged yet. Asks `ready`
/// again after each `pause`. Breaks if the loop is not to start at all.
///
/// # Errors
/// [`Fatal`], from `ready` or from the part that halted the loop: the process must end.
pub fn hold(
    inbox: &Inbox,
    pause: Duration,
    mut ready: impl FnMut() -> Result<bool, Fatal>,
) -> Result<ControlFlow<()>, Fatal> {
    let mut again = Instant::now() + pause;
    loop {
        let wait = again.saturating_duration_since(Instant::now());
        match inbox.letters.recv_timeout(wait) {
            Ok(Letter::Call(call)) => {
                inbox.unqueue(&call);
                call.reply_to.send(Err(Failure::Held));
            }
            Ok(Letter::Copy(order)) => {
                let _ = order.news.send(CopyNews::Done(Err(CopyError::Held)));
            }
            Ok(Letter::Stop(_)) | Err(RecvTimeoutError::Disconnected) => {
                return Ok(ControlFlow::Break(()));
            }
            Ok(Letter::Halt(why)) => return Err(why),
            Ok(Letter::NewSigner(_)) => {
                tracing::warn!(
                    "the new key takes over only at the next start, because nothing is signed now"
                );
            }
            // The writer states the policies when it starts; nothing is decided before that.
            Ok(Letter::Stated(stated)) => drop(stated.committed.send(())),
            // Nothing runs, and no signature or announcement is pending.
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
        }
        if Instant::now() >= again {
            if ready()? {
                return Ok(ControlFlow::Continue(()));
            }
            again = Instant::now() + pause;
        }
    }
}

/// Drives until it is told to stop, and returns the store. `clock` returns Unix milliseconds.
///
/// # Errors
/// [`Fatal`]: the process must end at once.
pub fn run<S: Store>(
    driver: Driver<S>,
    inbox: &Inbox,
    clock: impl Fn() -> u64,
) -> Result<S, Fatal> {
    let mut turning = Turning {
        driver,
        inbox,
        clock,
        deadline: None,
        tidy: false,
        ordered: None,
        copying: false,
        halted: None,
    };
    // Unfinished runs restart without waiting for a call.
    turning.step(Vec::new())?;
    while turning.turn()?.is_continue() {
        if let Some(order) = turning.ordered.take()
            && turning.copy(order)?.is_break()
        {
            break;
        }
    }
    Ok(turning.driver.into_store())
}

/// The writer's loop and its state between turns.
struct Turning<'i, S, C> {
    driver: Driver<S>,
    inbox: &'i Inbox,
    clock: C,
    /// The deadline of the stop, if one was ordered.
    deadline: Option<Instant>,
    /// Whether the store has no deferred work left.
    tidy: bool,
    ordered: Option<CopyOrder>,
    copying: bool,
    /// The reason why nothing may be signed any more.
    halted: Option<Fatal>,
}

impl<S: Store, C: Fn() -> u64> Turning<'_, S, C> {
    /// Takes the waiting letters as one batch, or does the store's deferred work if none comes.
    /// Breaks at the end.
    fn turn(&mut self) -> Result<ControlFlow<()>, Fatal> {
        let wait = match self.deadline {
            Some(deadline) if !self.driver.has_work() || Instant::now() >= deadline => {
                self.driver.abandon();
                self.driver.store_mut().maintain(true)?;
                return Ok(ControlFlow::Break(()));
            }
            // The copy proceeds between turns, so a turn must not wait for a letter that may never
            // come.
            _ if self.copying => Duration::ZERO,
            Some(deadline) => deadline.saturating_duration_since(Instant::now()).min(IDLE),
            // No letter comes when the disk has room again, so the loop must look.
            None if self.driver.store_mut().is_short_of_space() => PROBE,
            None if self.tidy => Duration::MAX,
            None => IDLE,
        };
        match receive(&self.inbox.letters, wait) {
            Ok(first) => {
                self.tidy = false;
                let inputs = self.gather(first);
                // The halt takes precedence over calls that came with it: their step would sign a
                // head.
                if let Some(why) = self.halted.take() {
                    self.driver.abandon();
                    return Err(why);
                }
                self.step(inputs)?;
                self.driver.store_mut().maintain(false)?;
            }
            Err(RecvTimeoutError::Timeout) => {
                // Look for room first: the owed commit is larger, and its failure would delay the
                // look.
                self.driver.store_mut().maintain(!self.copying)?;
                if self.driver.owes_a_step() {
                    self.step(Vec::new())?;
                }
                self.tidy = !self.driver.owes_a_step();
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(ControlFlow::Break(())),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Collects a batch from the waiting letters.
    fn gather(&mut self, first: Letter) -> Vec<Input> {
        let mut inputs = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(letter) = next {
            match letter {
                Letter::Call(call) => {
                    self.inbox.unqueue(&call);
                    bytes += call
                        .module
                        .as_ref()
                        .map_or(0, |module| module.bytes.brought());
                    inputs.push(Input::Call(call));
                }
                Letter::Finished(finished) => inputs.push(Input::Finished(finished)),
                Letter::Signed(result) => inputs.push(Input::Signed(result)),
                Letter::NewSigner(signer) => inputs.push(Input::NewSigner(signer)),
                Letter::Announced(announced) => inputs.push(Input::Announced(announced)),
                Letter::Stated(stated) => inputs.push(Input::Stated(stated)),
                Letter::Copy(order) => self.take_order(order),
                Letter::Halt(why) => self.halted = Some(why),
                Letter::Stop(at) => {
                    self.deadline = Some(at);
                    self.driver.stop();
                }
            }
            let room = inputs.len() < BATCH_COMMANDS && bytes < BATCH_BYTES;
            next = if room {
                self.inbox.letters.try_recv().ok()
            } else {
                None
            };
        }
        inputs
    }

    fn step(&mut self, inputs: Vec<Input>) -> Result<(), Fatal> {
        self.driver.step((self.clock)(), inputs)
    }

    fn take_order(&mut self, order: CopyOrder) {
        if self.copying || self.ordered.is_some() {
            let _ = order.news.send(CopyNews::Done(Err(CopyError::Busy)));
        } else {
            self.ordered = Some(order);
        }
    }

    /// Makes a copy; the loop goes on between its steps. If the copy fails, only its requester is
    /// told.
    fn copy(&mut self, order: CopyOrder) -> Result<ControlFlow<()>, Fatal> {
        let Some(copier) = self.driver.store_mut().copier() else {
            let _ = order.news.send(CopyNews::Done(Err(CopyError::OnlyAtRest)));
            return Ok(ControlFlow::Continue(()));
        };
        self.copying = true;
        let mut turned = Ok(ControlFlow::Continue(()));
        let copied = copier.copy(&order.to, &mut |pages| {
            if self.deadline.is_some() || order.news.send(CopyNews::Pages(pages)).is_err() {
                return ControlFlow::Break(());
            }
            turned = self.turn();
            match turned {
                Ok(flow) => flow,
                Err(_) => ControlFlow::Break(()),
            }
        });
        self.copying = false;
        let done = match copied {
            Ok(ControlFlow::Continue(())) => Ok(()),
            Ok(ControlFlow::Break(())) => Err(CopyError::BrokenOff),
            Err(error) => Err(error.into()),
        };
        let _ = order.news.send(CopyNews::Done(done));
        turned
    }
}

fn receive(letters: &Receiver<Letter>, wait: Duration) -> Result<Letter, RecvTimeoutError> {
    if wait == Duration::MAX {
        letters.recv().map_err(|_| RecvTimeoutError::Disconnected)
    } else {
        letters.recv_timeout(wait)
    }
}
