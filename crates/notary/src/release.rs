//! Shows what is durable once an anchor remembers it.
//!
//! The writer hands over every head after its commit and goes on. A thread takes the newest head,
//! has the anchors remember it, and only then shows it: the next write covers heads that come
//! meanwhile, so that many settlements share one write. Reads see rows as soon as they are
//! committed; code that shows a result of rows waits at [`Anchored::cover`] until an anchor covers
//! the entries that those rows may follow from. Replies of the writer wait by themselves, so that
//! their callers wake once. A crash before that leaves a result that no caller has seen.
//!
//! If no anchor can be written, nothing is shown and new calls are refused; the write is tried
//! again until it works. Without anchors everything is shown at once.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use evidenceos_driver::{Publisher, clock::unix_ms, mailbox::Mailbox};
use evidenceos_kernel::{account::Account, log_key::LogKey};
use evidenceos_store::{
    Done,
    log::{LogView, Released},
};
use evidenceos_tlog::{Hash, Tile};
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Notify, broadcast, oneshot, watch};

use crate::{
    ShownHead,
    anchors::{AnchorError, Anchors, State, Tip},
    keys::Keys,
};

/// The shortest time between anchor writes: each costs a disk sync and wakes the waiting callers,
/// and heads that come in between share the next one.
const APART: Duration = Duration::from_millis(2);
/// The pause after no anchor could be written.
const TRY_AGAIN: Duration = Duration::from_millis(250);
/// How often a stop tries to write the rest; the next start shows what is left.
const LAST_TRIES: u32 = 4;
/// How often waiting callers are checked: how much they need, and how long they have waited.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The longest wait of a caller.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest wait while a start is held: it may last for hours.
const HELD: Duration = Duration::from_millis(500);

/// No anchor covered the result in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotCovered;

/// How far anchors remember the log, and the callers that wait for more.
#[derive(Clone)]
pub struct Anchored {
    done: Arc<Done>,
    /// `None` if no anchor is written: then no caller waits.
    line: Option<Arc<Line>>,
}

struct Line {
    reach: Mutex<Reach>,
    /// The first caller began to wait.
    filled: Notify,
}

struct Reach {
    /// Entries that an anchor covers.
    size: u64,
    /// Nothing more will be covered.
    ended: bool,
    /// The start is held, perhaps for hours.
    held: bool,
    waiting: Vec<Waiter>,
}

/// A caller that is told once an anchor covers enough, or that none will in time.
struct Waiter {
    entries: u64,
    until: Instant,
    tell: Box<dyn FnOnce(Result<(), NotCovered>) + Send>,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Reach> {
        self.reach.lock()
    }

    /// Changes the reach, and tells the callers that need not wait longer.
    fn change(&self, change: impl FnOnce(&mut Reach) -> Vec<(Waiter, Result<(), NotCovered>)>) {
        let told = change(&mut self.lock());
        // The lock is released by now: a caller that is told may come back at once.
        for (waiter, result) in told {
            (waiter.tell)(result);
        }
    }
}

impl Anchored {
    /// No anchor is written, so no caller waits.
    #[must_use]
    pub fn off(done: Arc<Done>) -> Self {
        Self { done, line: None }
    }

    /// Anchors cover `size` entries already; more once the daemon is free to sign.
    #[must_use]
    pub fn from(done: Arc<Done>, size: u64, free: bool) -> Self {
        let reach = Reach {
            size,
            ended: false,
            held: !free,
            waiting: Vec::new(),
        };
        Self {
            done,
            line: Some(Arc::new(Line {
                reach: Mutex::new(reach),
                filled: Notify::new(),
            })),
        }
    }

    /// The number of entries from which rows that were just read may follow.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.done.seen()
    }

    /// Whether any caller waits for anchors.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.line.is_some()
    }

    /// Whether an anchor covers this many entries now.
    #[must_use]
    pub fn covers(&self, entries: u64) -> bool {
        self.line
            .as_ref()
            .is_none_or(|line| line.lock().size >= entries)
    }

    /// How long a caller waits for a result to be covered.
    #[must_use]
    pub fn patience(&self) -> Duration {
        let held = self.line.as_ref().is_some_and(|line| line.lock().held);
        if held { HELD } else { PATIENCE }
    }

    /// Calls `tell` once an anchor covers `entries` (or as many as there are, if the store took
    /// back a commit that was under way), or once none did in time or the daemon ends. `tell` runs
    /// on the thread that covers: it must not take long.
    pub fn when_covered(
        &self,
        entries: u64,
        tell: impl FnOnce(Result<(), NotCovered>) + Send + 'static,
    ) {
        let Some(line) = &self.line else {
            return tell(Ok(()));
        };
        let mut reach = line.lock();
        if reach.size >= entries || reach.ended {
            let covered = reach.size >= entries;
            drop(reach);
            return tell(if covered { Ok(()) } else { Err(NotCovered) });
        }
        let patience = if reach.held { HELD } else { PATIENCE };
        let is_first = reach.waiting.is_empty();
        reach.waiting.push(Waiter {
            entries,
            until: Instant::now() + patience,
            tell: Box::new(tell),
        });
        drop(reach);
        // The task that checks waiting callers stays awake while a caller waits.
        if is_first {
            line.filled.notify_one();
        }
    }

    /// Waits until an anchor covers `entries`.
    ///
    /// # Errors
    /// If no anchor does in time, or the daemon ends.
    pub async fn cover(&self, entries: u64) -> Result<(), NotCovered> {
        let (told, covered) = oneshot::channel();
        self.when_covered(entries, move |result| {
            // The caller may have gone.
            let _ = told.send(result);
        });
        covered.await.unwrap_or(Err(NotCovered))
    }

    /// Checks callers that wait long, while the daemon lives.
    pub async fn look_after(self) {
        let Some(line) = &self.line else { return };
        loop {
            line.filled.notified().await;
            loop {
                tokio::time::sleep(LOOK_AGAIN).await;
                let (seen, now) = (self.done.seen(), Instant::now());
                let (mut is_empty, mut ended) = (true, false);
                line.change(|reach| {
                    let told = reach.leave(|size, waiter| {
                        // If the store took a commit back, no head ever covers as many entries as
                        // were seen.
                        if size >= waiter.entries.min(seen) {
                            Some(Ok(()))
                        } else {
                            (now >= waiter.until).then_some(Err(NotCovered))
                        }
                    });
                    (is_empty, ended) = (reach.waiting.is_empty(), reach.ended);
                    told
                });
                if ended {
                    return;
                }
                if is_empty {
                    break;
                }
            }
        }
    }

    /// The daemon is free to sign: waiting callers will be covered soon.
    pub fn is_free(&self) {
        if let Some(line) = &self.line {
            line.lock().held = false;
        }
    }

    fn reach(&self, to: u64) {
        let Some(line) = &self.line else { return };
        line.change(|reach| {
            reach.size = reach.size.max(to);
            reach.leave(|size, waiter| (size >= waiter.entries).then_some(Ok(())))
        });
    }

    fn end(&self) {
        let Some(line) = &self.line else { return };
        line.change(|reach| {
            reach.ended = true;
            reach.leave(|_, _| Some(Err(NotCovered)))
        });
        // The task that checks waiting callers ends too.
        line.filled.notify_one();
    }
}

impl Reach {
    /// Removes and returns the callers to be told, given the size.
    fn leave(
        &mut self,
        told: impl Fn(u64, &Waiter) -> Option<Result<(), NotCovered>>,
    ) -> Vec<(Waiter, Result<(), NotCovered>)> {
        let mut leaving = Vec::new();
        let size = self.size;
        for waiter in std::mem::take(&mut self.waiting) {
            match told(size, &waiter) {
                Some(result) => leaving.push((waiter, result)),
                None => self.waiting.push(waiter),
            }
        }
        leaving
    }
}

/// The parts that show the log or what follows from it.
pub struct Shows {
    /// The proofs and heads that readers see.
    pub log: Arc<LogView>,
    /// Wakes the thread that writes the log's files.
    pub wake: Sender<()>,
    /// Accounts as they change.
    pub changed_accounts: broadcast::Sender<Arc<[Account]>>,
    /// The operator's metrics of the head.
    pub gauge: Arc<ShownHead>,
    /// Receives the number of covered entries: counts that tell of them may be shown from now on.
    pub covered: Box<dyn Fn(u64) + Send + Sync>,
    /// The size of the newest shown head.
    pub released: watch::Sender<u64>,
    /// How far anchors reach.
    pub anchored: Anchored,
}

impl Shows {
    fn head(&self, released: Released, full: Vec<Tile>) {
        let size = released.head.size;
        self.log.release(released, full);
        self.gauge.shows(size, unix_ms());
        (self.covered)(size);
        self.released.send_replace(size);
        // This comes last: a caller that it wakes sees the rest.
        self.anchored.reach(size);
        let _ = self.wake.send(());
    }

    fn tree(&self, size: u64) {
        (self.covered)(size);
        self.anchored.reach(size);
    }

    fn accounts(&self, accounts: Arc<[Account]>) {
        // There may be no watcher left.
        let _ = self.changed_accounts.send(accounts);
    }
}

/// Results that wait for an anchor.
#[derive(Default)]
struct Pending {
    /// The newest tree, if its head is signed elsewhere.
    tree: Option<(u64, Hash)>,
    head: Option<(Released, Vec<Tile>)>,
    /// Accounts, with the number of entries that they may follow from.
    accounts: Vec<(u64, Arc<[Account]>)>,
    ended: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.tree.is_none() && self.head.is_none() && self.accounts.is_empty()
    }

    /// Merges an earlier pending set into this one.
    fn put_back(&mut self, earlier: Self) {
        self.tree = self.tree.take().or(earlier.tree);
        self.head = match (self.head.take(), earlier.head) {
            (Some((newer, full)), Some((_, mut before))) => {
                // The tiles of both are needed: a later head does not have those of an earlier one.
                before.extend(full);
                Some((newer, before))
            }
            (newer, before) => newer.or(before),
        };
        let newer = std::mem::replace(&mut self.accounts, earlier.accounts);
        self.accounts.extend(newer);
    }
}

#[derive(Default)]
struct Queue {
    pending: Mutex<Pending>,
    filled: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock()
    }

    fn add(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.lock());
        self.filled.notify_one();
    }

    /// Waits until there is something and it is time, or until the end.
    fn take(&self, not_before: Instant) -> (Pending, bool) {
        let empty = |pending: &mut Pending| pending.is_empty() && !pending.ended;
        let mut pending = self.lock();
        self.filled.wait_while(&mut pending, empty);
        let early = not_before.saturating_duration_since(Instant::now());
        if !early.is_zero() && !pending.ended {
            drop(pending);
            thread::sleep(early);
            pending = self.lock();
        }
        let ended = pending.ended;
        let taken = std::mem::take(&mut *pending);
        pending.ended = ended;
        (taken, ended)
    }

    fn pause(&self) {
        let ended = |pending: &mut Pending| !pending.ended;
        self.filled
            .wait_while_for(&mut self.lock(), ended, TRY_AGAIN);
    }
}

/// The publisher to which the writer hands its heads.
pub struct Publishing {
    way: Way,
    wake_accounts: mpsc::Sender<()>,
    keys: Arc<Keys>,
}

enum Way {
    /// No anchor is written: durable results are shown at once.
    Open(Shows),
    /// Through the anchors' thread.
    Anchors {
        queue: Arc<Queue>,
        done: Arc<Done>,
        watched: broadcast::Sender<Arc<[Account]>>,
    },
}

impl Publisher for Publishing {
    fn grown(&self, size: u64, root: Hash) {
        match &self.way {
            Way::Open(shows) => shows.tree(size),
            Way::Anchors { queue, .. } => {
                queue.add(|pending| pending.tree = Some((size, root)));
            }
        }
    }

    fn release(&self, released: Released, full: Vec<Tile>) {
        match &self.way {
            Way::Open(shows) => shows.head(released, full),
            Way::Anchors { queue, .. } => queue.add(|pending| {
                // The newest head covers the others; the tiles of all of them are needed.
                let mut tiles = pending
                    .head
                    .take()
                    .map_or_else(Vec::new, |(_, tiles)| tiles);
                tiles.extend(full);
                pending.head = Some((released, tiles));
            }),
        }
    }

    fn rotated(&self, key: &LogKey) {
        self.keys.took_over(key);
        tracing::info!(key = %key.id, since_size = key.since_size, "another key signs the log");
    }

    fn accounts_changed(&self, accounts: &mut dyn Iterator<Item = &Account>) {
        let _ = self.wake_accounts.send(());
        match &self.way {
            Way::Open(shows) if shows.changed_accounts.receiver_count() > 0 => {
                shows.accounts(accounts.cloned().collect());
            }
            Way::Anchors {
                queue,
                done,
                watched,
            } if watched.receiver_count() > 0 => {
                // The accounts may follow from any entry that is committed by now.
                let (seen, accounts) = (done.seen(), accounts.cloned().collect());
                queue.add(|pending| pending.accounts.push((seen, accounts)));
            }
            Way::Open(_) | Way::Anchors { .. } => {}
        }
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        // The writer is gone, so no more results come.
        if let Way::Anchors { queue, .. } = &self.way {
            queue.add(|pending| pending.ended = true);
        }
    }
}

/// The thread that has anchors remember heads, and then shows the heads.
pub struct Releasing {
    thread: Option<JoinHandle<()>>,
}

impl Releasing {
    /// Starts the thread, if there are anchors to write, and returns the writer's publisher.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(
        anchors: Arc<Anchors>,
        state: Arc<State>,
        mailbox: Mailbox,
        keys: Arc<Keys>,
        wake_accounts: mpsc::Sender<()>,
        shows: Shows,
    ) -> std::io::Result<(Self, Publishing)> {
        if !anchors.are_written() {
            let publishing = Publishing {
                way: Way::Open(shows),
                wake_accounts,
                keys,
            };
            return Ok((Self { thread: None }, publishing));
        }
        let queue = Arc::new(Queue::default());
        let way = Way::Anchors {
            queue: Arc::clone(&queue),
            done: Arc::clone(&shows.anchored.done),
            watched: shows.changed_accounts.clone(),
        };
        let release = Release {
            queue,
            anchors,
            state,
            mailbox,
            keys: Arc::clone(&keys),
            shows,
            early: VecDeque::new(),
            failing: false,
        };
        let thread = thread::Builder::new()
            .name("anchors".to_owned())
            .spawn(move || release.run())?;
        Ok((
            Self {
                thread: Some(thread),
            },
            Publishing {
                way,
                wake_accounts,
                keys,
            },
        ))
    }

    /// Ends once everything is shown, or cannot be. The writer must have ended before. Blocks.
    pub fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported.
            let _ = thread.join();
        }
    }
}

impl Drop for Releasing {
    fn drop(&mut self) {
        self.end();
    }
}

struct Release {
    queue: Arc<Queue>,
    anchors: Arc<Anchors>,
    state: Arc<State>,
    mailbox: Mailbox,
    keys: Arc<Keys>,
    shows: Shows,
    /// Accounts whose entries no anchor covers yet, because a KMS still signs.
    early: VecDeque<(u64, Arc<[Account]>)>,
    /// Whether no anchor could be written at the last attempt.
    failing: bool,
}

impl Release {
    fn run(mut self) {
        let mut tries_left = LAST_TRIES;
        let mut not_before = Instant::now();
        loop {
            let (pending, ended) = self.queue.take(not_before);
            if ended && pending.is_empty() {
                break;
            }
            not_before = Instant::now() + APART;
            match self.remember(&pending) {
                Ok(true) => self.show(pending),
                Ok(false) => {
                    self.fails();
                    self.queue.lock().put_back(pending);
                    if ended {
                        tries_left -= 1;
                        if tries_left == 0 {
                            tracing::error!(
                                "no anchor can be written; the last decisions are durable, and the next start with an anchor shows them"
                            );
                            break;
                        }
                        thread::sleep(TRY_AGAIN);
                    } else {
                        self.queue.pause();
                    }
                }
                Err(error) => {
                    // Another daemon continues this log: every further head would be a fork.
                    tracing::error!(%error, "the daemon signs nothing more");
                    self.state.hold(&error.to_string());
                    // Calls are refused at once, since the writer takes some time to end.
                    self.mailbox.hold_off(true);
                    self.mailbox.halt(error.into());
                    break;
                }
            }
        }
        // No anchor is written from here on, so waiting callers must be told.
        self.shows.anchored.end();
    }

    /// Whether an anchor covers all pending results now.
    fn remember(&self, pending: &Pending) -> Result<bool, AnchorError> {
        let tips = [
            pending
                .tree
                .filter(|_| self.anchors.take_unsigned())
                .and_then(|(size, root)| Tip::unsigned(&self.keys.signer(), size, root)),
            pending
                .head
                .as_ref()
                .map(|(head, _)| Tip::from(&*head.head)),
        ];
        // One write for both: the larger covers the other.
        match tips.into_iter().flatten().max_by_key(Tip::size) {
            // A head that an anchor covers already needs no write.
            Some(tip) if !self.shows.anchored.covers(tip.size()) => self.anchors.remember(&tip),
            _ => Ok(true),
        }
    }

    fn show(&mut self, pending: Pending) {
        if std::mem::take(&mut self.failing) {
            tracing::info!("an anchor can be written again: the daemon takes new calls");
            self.state.let_go();
            self.mailbox.hold_off(false);
        }
        // A file accepts only signed heads: there the tree is covered only together with its head.
        if let Some((size, _)) = pending.tree
            && self.anchors.take_unsigned()
        {
            self.shows.tree(size);
        }
        if let Some((released, full)) = pending.head {
            self.shows.head(released, full);
        }
        self.early.extend(pending.accounts);
        while let Some((_, accounts)) = self
            .early
            .pop_front_if(|(seen, _)| self.shows.anchored.covers(*seen))
        {
            self.shows.accounts(accounts);
        }
    }

    fn fails(&mut self) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(
                "no anchor can be written: the daemon shows nothing new and refuses new calls until one can be"
            );
        }
        self.state.hold("no anchor can be written: the last decisions are durable but not shown, and nothing new is signed or charged until one can be written; see the server's log for which, and why");
        self.mailbox.hold_off(true);
    }
}
