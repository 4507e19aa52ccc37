//! Decisions about tool calls on their way into the log.
//!
//! A decision gets its number and its record at once, and goes into a queue. A thread hands what
//! waits to the writer as one batch: one entry, one commit. Who must not answer before it is
//! durable waits for that commit; the rest follows within a quarter of a second. Numbers follow
//! one another in the order of the queue, and a batch is a piece of it.
//!
//! Bounded: where the queue is full, a decision that nobody waits for is not recorded, and that is
//! counted; one that must be is refused, so that its caller can fail closed. What could not be
//! committed, for want of space or an anchor, stays in the queue and is tried again.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use evidenceos_driver::{Answer, Call, Failure, ReplyTo, clock::unix_ms, mailbox::Mailbox};
use evidenceos_kernel::{
    command::{Caller, Command, DecisionCommand, NewDecisions, Request},
    decision::{DecisionBatch, DecisionId, DecisionRecord, MAX_BATCH},
    id::{Digest, OwnerTag},
};
use evidenceos_store::{Rows, decisions};
use evidenceos_telemetry::write::{counter, gauge};
use evidenceos_tlog::{Hash, leaf_hash, small::root_of};
use hmac::{Hmac, KeyInit as _, Mac as _};
use parking_lot::{Condvar, Mutex, MutexGuard};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use sha2::Sha256;
use tokio::sync::oneshot;

/// Decisions that wait, those that somebody waits for included.
const QUEUE: usize = 16_384;
/// How many of them may be such that nobody waits for.
const QUEUE_LAZY: usize = 8_192;
/// How long a decision that nobody waits for may wait for others.
const GATHER: Duration = Duration::from_millis(250);
/// How long nothing is tried after a batch that could not be committed.
const TRY_AGAIN: Duration = Duration::from_millis(250);
/// How often records that are too old are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(10 * 60);
/// Batches that are forgotten at a time.
const FORGET_AT_ONCE: usize = 256;

/// A decision that is in the queue, or in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted {
    pub id: DecisionId,
    /// The leaf of its record in the batch's tree.
    pub leaf: Digest,
}

/// Why a decision is not recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotNoted {
    /// The queue is full.
    Full,
    /// The daemon stops and takes no more.
    Stopping,
    /// It could not be made durable.
    NotDurable,
}

/// Where decisions are handed in.
pub struct Recorder {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    /// Salts come from it: it is drawn at each start and known to nobody.
    secret: [u8; 32],
    unrecorded: AtomicU64,
}

struct Queue {
    waiting: VecDeque<Waiting>,
    /// The owners of the batch that is being committed, which is just before what waits.
    under_way: Vec<OwnerTag>,
    /// How many of them somebody waits for.
    awaited: usize,
    /// The next decision's number.
    next: DecisionId,
    /// When the oldest that nobody waits for came.
    oldest: Option<Instant>,
    open: bool,
}

struct Waiting {
    record: DecisionRecord,
    leaf: Hash,
    durable: Option<oneshot::Sender<()>>,
}

/// Shows the recorder's queue as metrics.
pub struct RecorderCollector(pub Arc<Recorder>);

impl fmt::Debug for RecorderCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecorderCollector")
    }
}

impl Collector for RecorderCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Decisions that are not in the log yet";
        let waiting = self.0.waiting() as u64;
        gauge(&mut encoder, "decisions_waiting", help, None, waiting)?;
        let help = "Decisions that let a tool without harm through and are not in the log, since too many waited";
        let unrecorded = self.0.unrecorded();
        counter(&mut encoder, "decisions_unrecorded", help, None, unrecorded)
    }
}

impl Recorder {
    /// Notes a decision that nobody waits for, under a number and a salt of its own.
    ///
    /// # Errors
    /// Where it is not recorded, which is counted.
    pub fn note(&self, record: DecisionRecord) -> Result<Noted, NotNoted> {
        let noted = self.shared.push(record, None);
        if noted.is_err() {
            self.shared.unrecorded.fetch_add(1, Ordering::Relaxed);
        }
        noted
    }

    /// Notes a decision that must not go without a record: it waits only if too many do already.
    ///
    /// # Errors
    /// As [`Recorder::note_durably`].
    pub async fn note_or_wait(
        &self,
        patience: Duration,
        record: DecisionRecord,
    ) -> Result<Noted, NotNoted> {
        match self.shared.push(record.clone(), None) {
            Err(NotNoted::Full) => self.note_durably(patience, record).await,
            noted => noted,
        }
    }

    /// Notes a decision and waits until it is durable.
    ///
    /// # Errors
    /// Where it is not. It may become so all the same, where it waits too long.
    pub async fn note_durably(
        &self,
        patience: Duration,
        record: DecisionRecord,
    ) -> Result<Noted, NotNoted> {
        let (sender, durable) = oneshot::channel();
        let noted = self.shared.push(record, Some(sender))?;
        match tokio::time::timeout(patience, durable).await {
            Ok(Ok(())) => Ok(noted),
            Ok(Err(_)) | Err(_) => Err(NotNoted::NotDurable),
        }
    }

    /// Decisions that were answered without a record.
    #[must_use]
    pub fn unrecorded(&self) -> u64 {
        self.shared.unrecorded.load(Ordering::Relaxed)
    }

    /// The number of decisions that wait for the writer.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.lock().waiting.len()
    }

    /// Whether a decision of this start waits for its batch to be committed; of one owner, or of
    /// any. Another owner's looks like one that does not exist.
    ///
    /// Ask before looking into the store: what is committed in between is then found there.
    #[must_use]
    pub fn is_pending(&self, id: DecisionId, owner: Option<OwnerTag>) -> bool {
        let found = self.shared.lock().owner_of(id);
        found.is_some_and(|found| owner.is_none_or(|owner| owner == found))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    fn push(
        &self,
        mut record: DecisionRecord,
        durable: Option<oneshot::Sender<()>>,
    ) -> Result<Noted, NotNoted> {
        let mut queue = self.lock();
        if !queue.open {
            return Err(NotNoted::Stopping);
        }
        let lazy = queue.waiting.len() - queue.awaited;
        if queue.waiting.len() >= QUEUE || (durable.is_none() && lazy >= QUEUE_LAZY) {
            return Err(NotNoted::Full);
        }
        // In the queue's order, so that a batch is a range of numbers.
        let id = queue.next;
        queue.next = id.next();
        (record.id, record.salt) = (id, self.salt(id));
        let leaf = leaf_hash(&record.to_bytes());
        let first = queue.waiting.is_empty();
        if durable.is_some() {
            queue.awaited += 1;
        } else if queue.oldest.is_none() {
            queue.oldest = Some(Instant::now());
        }
        // If others wait already, the thread wakes by itself when the oldest of them is due.
        let wake = first || durable.is_some();
        queue.waiting.push_back(Waiting {
            record,
            leaf,
            durable,
        });
        // The lock is given back first: the thread that wakes takes it at once.
        drop(queue);
        if wake {
            self.filled.notify_one();
        }
        Ok(Noted {
            id,
            leaf: Digest(leaf.0),
        })
    }

    fn salt(&self, id: DecisionId) -> [u8; 16] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret)
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        mac.update(&id.0.to_be_bytes());
        let mut salt = [0; 16];
        salt.copy_from_slice(&mac.finalize().into_bytes()[..16]);
        salt
    }

    /// What goes to the writer next; none where there is nothing for so long, or never will be.
    fn gather(&self, patience: Duration) -> Gathered {
        let until = Instant::now() + patience;
        let mut queue = self.lock();
        loop {
            let now = Instant::now();
            let gathered = queue.oldest.is_some_and(|oldest| now >= oldest + GATHER);
            let due = queue.awaited > 0
                || queue.waiting.len() >= MAX_BATCH
                || (gathered && !queue.waiting.is_empty());
            if due || (!queue.open && !queue.waiting.is_empty()) {
                return Gathered::Batch(queue.take());
            }
            if !queue.open {
                return Gathered::Closed;
            }
            if now >= until {
                return Gathered::Nothing;
            }
            let next = queue
                .oldest
                .map_or(until, |oldest| until.min(oldest + GATHER));
            let wait = next.saturating_duration_since(now);
            self.filled.wait_for(&mut queue, wait);
        }
    }

    /// Puts a batch that was not committed back where it was.
    fn put_back(&self, batch: Vec<Waiting>) {
        let mut queue = self.lock();
        queue.awaited += batch.iter().filter(|one| one.durable.is_some()).count();
        queue.under_way.clear();
        // The decisions go back in front, in order: their numbers are given, and a batch is a range
        // of numbers.
        for waiting in batch.into_iter().rev() {
            queue.waiting.push_front(waiting);
        }
        queue.oldest = Some(Instant::now());
    }
}

enum Gathered {
    Batch((DecisionId, Vec<Waiting>)),
    Nothing,
    Closed,
}

impl Queue {
    fn take(&mut self) -> (DecisionId, Vec<Waiting>) {
        let first = DecisionId(self.next.0 - self.waiting.len() as u64);
        let count = self.waiting.len().min(MAX_BATCH);
        let batch: Vec<Waiting> = self.waiting.drain(..count).collect();
        self.awaited -= batch.iter().filter(|one| one.durable.is_some()).count();
        // While a batch commits, its decisions are neither in the queue nor in the store:
        // `is_pending` finds them here.
        self.under_way = batch.iter().map(|one| one.record.owner).collect();
        self.oldest = (!self.waiting.is_empty()).then(Instant::now);
        (first, batch)
    }

    fn owner_of(&self, id: DecisionId) -> Option<OwnerTag> {
        let first_waiting = self.next.0 - self.waiting.len() as u64;
        let first = first_waiting - self.under_way.len() as u64;
        let position = usize::try_from(id.0.checked_sub(first)?).ok()?;
        match self.under_way.get(position) {
            Some(owner) => Some(*owner),
            None => {
                let waiting = self.waiting.get(position - self.under_way.len())?;
                Some(waiting.record.owner)
            }
        }
    }
}

/// The thread that hands decisions to the writer.
pub struct Following {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.end();
    }
}

impl Following {
    /// Starts it. `epoch` counts the daemon's starts over this data; records are kept for `keep`.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(
        epoch: u64,
        keep: Duration,
        mailbox: Mailbox,
        readers: Arc<dyn Rows>,
    ) -> std::io::Result<(Recorder, Self)> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(std::io::Error::other)?;
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                waiting: VecDeque::new(),
                under_way: Vec::new(),
                awaited: 0,
                // Each start has numbers of its own: those that an earlier one gave may be in the
                // log.
                next: DecisionId::first_of(epoch),
                oldest: None,
                open: true,
            }),
            filled: Condvar::new(),
            secret,
            unrecorded: AtomicU64::new(0),
        });
        let writing = Writing {
            shared: Arc::clone(&shared),
            mailbox,
            readers,
            keep,
            failing: false,
        };
        let thread = thread::Builder::new()
            .name("decisions".to_owned())
            .spawn(move || writing.run())?;
        let recorder = Recorder {
            shared: Arc::clone(&shared),
        };
        let thread = Some(thread);
        Ok((recorder, Self { shared, thread }))
    }

    /// Takes no more, and ends once what waits is in the log, or cannot be.
    pub fn end(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.shared.lock().open = false;
        self.shared.filled.notify_one();
        // A panic there has been reported, and nobody waits for it.
        let _ = thread.join();
    }
}

struct Writing {
    shared: Arc<Shared>,
    mailbox: Mailbox,
    readers: Arc<dyn Rows>,
    keep: Duration,
    /// Whether the last batch could not be committed.
    failing: bool,
}

impl Writing {
    fn run(mut self) {
        let mut forget_at = Instant::now();
        loop {
            let patience = forget_at.saturating_duration_since(Instant::now());
            match self.shared.gather(patience) {
                Gathered::Batch((first, batch)) => {
                    if !self.commit(first, batch) {
                        return;
                    }
                }
                Gathered::Nothing => {
                    let more = self.forget();
                    let pause = if more { TRY_AGAIN } else { FORGET_EVERY };
                    forget_at = Instant::now() + pause;
                }
                Gathered::Closed => return,
            }
        }
    }

    /// Has the writer commit a batch. False where it takes no more.
    fn commit(&mut self, first: DecisionId, batch: Vec<Waiting>) -> bool {
        let leaves: Vec<Hash> = batch.iter().map(|one| one.leaf).collect();
        let packed = decisions::pack(batch.iter().map(|one| &one.record));
        let new = NewDecisions {
            batch: DecisionBatch {
                first,
                count: batch.len() as u32,
                root: Digest(root_of(&leaves).0),
            },
            records: packed.into(),
        };
        match self.ask(DecisionCommand::Record(Box::new(new))) {
            Ok(_) => {
                self.shared.lock().under_way.clear();
                if std::mem::take(&mut self.failing) {
                    tracing::info!("decisions are recorded again");
                }
                for durable in batch.into_iter().filter_map(|one| one.durable) {
                    // Who has lost patience has answered already.
                    let _ = durable.send(());
                }
                true
            }
            // The writer takes nothing more. If the fate of the batch is unknown, the next start
            // finds out.
            Err(Failure::Stopping | Failure::Unknown) => false,
            Err(failure) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%failure, "decisions are not recorded for now");
                }
                // A stop tries nothing again: it could wait for an anchor or a disk for ever.
                let open = self.shared.lock().open;
                if open {
                    self.shared.put_back(batch);
                    thread::sleep(TRY_AGAIN);
                }
                open
            }
        }
    }

    /// Forgets what is too old. True where there may be more.
    fn forget(&self) -> bool {
        let before = unix_ms().saturating_sub(self.keep.as_millis() as u64);
        let through = match self.readers.decisions_before(before, FORGET_AT_ONCE) {
            Ok(through) => through,
            Err(error) => {
                tracing::error!(%error, "records of decisions cannot be looked at");
                return false;
            }
        };
        let Some(through) = through else {
            return false;
        };
        match self.ask(DecisionCommand::Forget { through }) {
            Ok(_) => true,
            Err(failure) => {
                tracing::warn!(%failure, "old records of decisions are kept for now");
                false
            }
        }
    }

    fn ask(&self, command: impl Into<Command>) -> Answer {
        let (reply_to, answer) = mpsc::channel();
        self.mailbox.call(Call {
            request: Request {
                caller: Caller::DRIVER,
                stamp: None,
                command: command.into(),
            },
            module: None,
            reply_to: Box::new(Reply(reply_to)),
        });
        // A mailbox that is closed drops the call.
        answer.recv().unwrap_or(Err(Failure::Stopping))
    }
}

struct Reply(mpsc::Sender<Answer>);

impl ReplyTo for Reply {
    fn send(self: Box<Self>, answer: Answer) {
        let _ = self.0.send(answer);
    }

    fn is_gone(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use evidenceos_kernel::decision::Gate;

    use super::*;

    /// A recorder whose decisions nobody hands to a writer.
    fn without_writer() -> Recorder {
        Recorder {
            shared: Arc::new(Shared {
                queue: Mutex::new(Queue {
                    waiting: VecDeque::new(),
                    under_way: Vec::new(),
                    awaited: 0,
                    next: DecisionId::first_of(1),
                    oldest: None,
                    open: true,
                }),
                filled: Condvar::new(),
                secret: [0; 32],
                unrecorded: AtomicU64::new(0),
            }),
        }
    }

    fn record(owner: u8) -> DecisionRecord {
        DecisionRecord {
            id: DecisionId::default(),
            gate: Gate::Preflight,
            decided_unix_ms: 0,
            owner: OwnerTag([owner; 16]),
            tool_name: "t".to_owned(),
            params_hash: Digest([0; 32]),
            session_hash: None,
            agent_hash: None,
            decision: "ALLOW".to_owned(),
            reason: "PROBE_CLEAN".to_owned(),
            policies: Digest([0; 32]),
            policy: None,
            output_hash: None,
            reply_receipt: None,
            preflight_receipt: None,
            salt: Default::default(),
        }
    }

    #[test]
    fn a_decision_that_waits_is_its_owners_alone() {
        let recorder = without_writer();
        let owners: Vec<u8> = (0..=255).cycle().take(MAX_BATCH + 10).collect();
        let ids: Vec<DecisionId> = owners
            .iter()
            .map(|owner| recorder.note(record(*owner)).expect("room").id)
            .collect();
        let is_theirs = || {
            for (id, owner) in ids.iter().zip(&owners) {
                let of = |owner: u8| recorder.is_pending(*id, Some(OwnerTag([owner; 16])));
                assert!(of(*owner) && !of(owner.wrapping_add(1)), "{id}");
                assert!(recorder.is_pending(*id, None), "an auditor's too");
            }
        };
        is_theirs();
        // While a batch is being committed, and when it comes back.
        let (_, batch) = recorder.shared.lock().take();
        is_theirs();
        recorder.shared.put_back(batch);
        is_theirs();
        for never in [0, ids[0].0 - 1, ids[0].0 + owners.len() as u64, u64::MAX] {
            assert!(!recorder.is_pending(DecisionId(never), None), "{never}");
        }
    }

    #[test]
    fn a_full_queue_lets_go_only_what_may_go_without_a_record() {
        let recorder = without_writer();
        for _ in 0..QUEUE_LAZY {
            recorder.note(record(1)).expect("room");
        }
        assert_eq!(recorder.note(record(1)), Err(NotNoted::Full));
        assert_eq!(recorder.unrecorded(), 1);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            // Nobody commits it, so that it is no record: its caller stops the call.
            let waited = recorder.note_or_wait(Duration::ZERO, record(1)).await;
            assert_eq!(waited, Err(NotNoted::NotDurable));
        });
        assert_eq!(recorder.waiting(), QUEUE_LAZY + 1);
        assert_eq!(
            recorder.unrecorded(),
            1,
            "it was not answered as a decision"
        );
    }
}
