//! Decisions about tool calls on their way into the log.
//!
//! A decision gets its number and its record at once, and goes into a queue. A thread hands the
//! queue to the writer in batches: one entry, one commit. If an answer needs a durable decision, it
//! waits for that commit; other decisions follow within a quarter of a second. Numbers follow the
//! order of the queue, and a batch is a range of them.
//!
//! Bounded: if the queue is full, a decision without a waiting caller is not recorded, and is
//! counted; one that must be recorded is refused, so that its caller can fail closed. If a batch
//! cannot be committed, for want of space or an anchor, it stays in the queue and is tried again.

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

/// Decisions in the queue, including those with a waiting caller.
const QUEUE: usize = 16_384;
/// How many of them may be without a waiting caller.
const QUEUE_LAZY: usize = 8_192;
/// How long a decision without a waiting caller may wait for others.
const GATHER: Duration = Duration::from_millis(250);
/// The pause after a batch that could not be committed.
const TRY_AGAIN: Duration = Duration::from_millis(250);
/// How often the recorder looks for records that are too old.
const FORGET_EVERY: Duration = Duration::from_secs(10 * 60);
/// The most batches that are forgotten at a time.
const FORGET_AT_ONCE: usize = 256;

/// A decision that is in the queue or in the log.
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

/// Takes decisions and records them.
pub struct Recorder {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    /// Makes the salts: a random key that each start draws, and that never leaves the process.
    secret: [u8; 32],
    unrecorded: AtomicU64,
}

struct Queue {
    waiting: VecDeque<Waiting>,
    /// The owners in the batch that is being committed, whose numbers precede the queue's.
    under_way: Vec<OwnerTag>,
    /// How many of the waiting decisions have a waiting caller.
    awaited: usize,
    /// The next decision's number.
    next: DecisionId,
    /// The arrival of the oldest decision without a waiting caller.
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
        let help = "Decisions that allowed a harmless tool call and are not in the log, because too many waited";
        let unrecorded = self.0.unrecorded();
        counter(&mut encoder, "decisions_unrecorded", help, None, unrecorded)
    }
}

impl Recorder {
    /// Records a decision without waiting, under its own number and salt.
    ///
    /// # Errors
    /// If it is not recorded, which is counted.
    pub fn note(&self, record: DecisionRecord) -> Result<Noted, NotNoted> {
        let noted = self.shared.push(record, None);
        if noted.is_err() {
            self.shared.unrecorded.fetch_add(1, Ordering::Relaxed);
        }
        noted
    }

    /// Records a decision that must not go without a record: it waits only if too many already
    /// wait.
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

    /// Records a decision and waits until it is durable.
    ///
    /// # Errors
    /// If it is not durable. After a timeout it may still become durable.
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
    /// any. Another owner's decision looks like one that does not exist.
    ///
    /// Ask this before you read the store: a decision that is committed in between is then found
    /// there.
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
        // Numbers are given in the queue's order, so that a batch is a range of numbers.
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
        // The lock is released first: the thread that wakes takes it at once.
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

    /// The next batch for the writer; none if nothing comes in this time, or ever again.
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

    /// Puts an uncommitted batch back into its place.
    fn put_back(&self, batch: Vec<Waiting>) {
        let mut queue = self.lock();
        queue.awaited += batch.iter().filter(|one| one.durable.is_some()).count();
        queue.under_way.clear();
        // The decisions go back to the front in order: their numbers are assigned, and a batch is a
        // range of numbers.
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
    /// Starts the thread. `epoch` counts the daemon's starts over this data; records are kept for
    /// `keep`.
    ///
    /// # Errors
    /// If no thread can be started.
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
                // Each start has its own range of numbers: those of an earlier start may be in the
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

    /// Takes no more decisions, and ends once the waiting ones are in the log, or cannot be.
    pub fn end(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.shared.lock().open = false;
        self.shared.filled.notify_one();
        // A panic there has been reported, and no caller waits for the thread.
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

    /// Has the writer commit a batch. False if the writer takes no more.
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
                    tracing::info!("the log records decisions again");
                }
                for durable in batch.into_iter().filter_map(|one| one.durable) {
                    // A caller that no longer waits has answered already.
                    let _ = durable.send(());
                }
                true
            }
            // The writer takes no more. If the fate of the batch is unknown, the next start finds
            // out.
            Err(Failure::Stopping | Failure::Unknown) => false,
            Err(failure) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%failure, "the log does not record decisions for now; the daemon keeps them and retries");
                }
                // A stop does not retry: it could wait for an anchor or a disk forever.
                let open = self.shared.lock().open;
                if open {
                    self.shared.put_back(batch);
                    thread::sleep(TRY_AGAIN);
                }
                open
            }
        }
    }

    /// Forgets records that are too old. True if there may be more.
    fn forget(&self) -> bool {
        let before = unix_ms().saturating_sub(self.keep.as_millis() as u64);
        let through = match self.readers.decisions_before(before, FORGET_AT_ONCE) {
            Ok(through) => through,
            Err(error) => {
                tracing::error!(%error, "cannot read the records of decisions");
                return false;
            }
        };
        let Some(through) = through else {
            return false;
        };
        match self.ask(DecisionCommand::Forget { through }) {
            Ok(_) => true,
            Err(failure) => {
                tracing::warn!(%failure, "cannot forget old records of decisions; the daemon keeps them for now");
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
        // A closed mailbox drops the call.
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

    /// A recorder without a thread that hands its decisions to a writer.
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
            // No thread commits it, so there is no record: its caller stops the call.
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
