//! Clients that lead lives side by side until the lives are over, enough steps were acknowledged, or the server is
//! gone.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, task::JoinSet};

use crate::{
    Failed,
    client::{Answer, Caller, Client},
    fail,
    ledger::{Ledger, Life, RAISED_LIMIT, Step, Told},
};

/// The time that a client waits before a retry.
const PAUSE: Duration = Duration::from_millis(5);

/// The ledger, shared by clients.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<Ledger>>);

impl Shared {
    /// Shares a ledger among clients.
    #[must_use]
    pub fn new(ledger: Ledger) -> Self {
        Self(Arc::new(Mutex::new(ledger)))
    }

    /// The ledger, until the guard is dropped.
    pub fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clients that lead lives on a daemon.
pub struct Load {
    clients: JoinSet<Result<(), Failed>>,
    acknowledged: watch::Receiver<u64>,
    enough: Arc<AtomicBool>,
}

impl Load {
    /// Starts clients. If new lives may begin, they go on until they are told to stop.
    #[must_use]
    pub fn start(address: &str, ledger: &Shared, clients: usize, may_begin: bool) -> Self {
        Self::send_out(address, ledger, clients, may_begin, false)
    }

    /// As [`Load::start`] with new lives; a client that is refused for a fault of the server
    /// retries, as long as the server reports that nothing was done.
    #[must_use]
    pub fn start_on_a_failing_disk(address: &str, ledger: &Shared, clients: usize) -> Self {
        Self::send_out(address, ledger, clients, true, true)
    }

    fn send_out(
        address: &str,
        ledger: &Shared,
        clients: usize,
        may_begin: bool,
        bears_faults: bool,
    ) -> Self {
        let (told, acknowledged) = watch::channel(0);
        let enough = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let one = One {
                ledger: ledger.clone(),
                told: told.clone(),
                enough: Arc::clone(&enough),
                may_begin,
                bears_faults,
            };
            let address = address.to_owned();
            tasks.spawn(async move {
                match Client::connect(&address).await? {
                    Some(client) => one.work(client).await,
                    None => Ok(()),
                }
            });
        }
        Self {
            clients: tasks,
            acknowledged,
            enough,
        }
    }

    /// Waits until this many steps were acknowledged; false if no client is left before that.
    pub async fn acknowledged(&mut self, steps: u64) -> bool {
        self.acknowledged
            .wait_for(|told| *told >= steps)
            .await
            .is_ok()
    }

    /// Lets every client end after its present step.
    pub fn enough(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    /// Waits for the clients to end.
    ///
    /// # Errors
    /// [`Failed`] if a client got a wrong reply.
    pub async fn end(mut self) -> Result<(), Failed> {
        while let Some(ended) = self.clients.join_next().await {
            ended.map_err(fail)??;
        }
        Ok(())
    }
}

struct One {
    ledger: Shared,
    told: watch::Sender<u64>,
    enough: Arc<AtomicBool>,
    may_begin: bool,
    bears_faults: bool,
}

impl One {
    async fn work(self, mut client: Client) -> Result<(), Failed> {
        while !self.enough.load(Ordering::Relaxed) {
            // Release the lock before the next await.
            let taken = self.ledger.lock().take(self.may_begin);
            let Some(life) = taken else { return Ok(()) };
            if !self.lead(&mut client, life).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Leads a life; false if the server is gone.
    async fn lead(&self, client: &mut Client, mut life: Life) -> Result<bool, Failed> {
        while let Some(step) = life.next() {
            if self.enough.load(Ordering::Relaxed) {
                break;
            }
            match ask(client, &life, step).await? {
                Answer::Done(told) => {
                    self.ledger.lock().tell(&mut life, told);
                    self.told.send_modify(|told| *told += 1);
                }
                Answer::Lost => {
                    // The next client of this life requests the same step under the same request
                    // id.
                    life.maybe = true;
                    self.ledger.lock().give_back(life);
                    return Ok(false);
                }
                Answer::NotApplied { code, .. } if code == "STOPPING" => {
                    self.ledger.lock().give_back(life);
                    return Ok(false);
                }
                Answer::NotApplied { again: true, .. } => {
                    // A step whose outcome was once unknown may have been done. Only a step that
                    // certainly was not done can be given up.
                    if !life.maybe && step != Step::Fetch && self.ledger.lock().gives_up() {
                        life.given_up = true;
                        break;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Answer::NotApplied { code, .. } if self.bears_faults && code == "INTERNAL" => {
                    tokio::time::sleep(PAUSE).await;
                }
                Answer::NotApplied { code, message, .. } => {
                    return Err(fail(format!(
                        "{step:?} of life {}: {code}: {message}",
                        life.number
                    )));
                }
            }
        }
        self.ledger.lock().give_back(life);
        Ok(true)
    }
}

/// Requests a step of a life, under its request id.
///
/// # Errors
/// [`Failed`] if the reply is malformed.
pub async fn ask(client: &mut Client, life: &Life, step: Step) -> Result<Answer<Told>, Failed> {
    let id = life.request_id(step);
    let caller = life
        .token
        .as_deref()
        .map_or(Caller::Operator, Caller::Submitter);
    let claim = || life.id().ok_or_else(|| fail("a step before its first"));
    Ok(match step {
        Step::Register => told(client.register(&id, &life.holdout).await?, Told::Made),
        Step::Limit => {
            let raised = client.limit(&id, &life.principal(), RAISED_LIMIT).await?;
            told(raised, |()| Told::Done)
        }
        Step::Grant | Step::GrantMore => {
            let granted = client.grant(&id, &life.principal(), life.grant()).await?;
            told(granted, Told::Granted)
        }
        Step::Retire => told(client.retire(&id, &life.holdout).await?, |()| Told::Done),
        Step::Create => {
            let (name, lane) = (life.name(), life.module.lane());
            let made = client
                .create(caller, &id, &name, &life.holdout, lane)
                .await?;
            told(made, Told::Made)
        }
        Step::Commit => {
            let module = life.module.bytes(&life.holdout, life.number)?;
            told(client.commit(caller, &id, claim()?, module).await?, |()| {
                Told::Done
            })
        }
        Step::Seal => told(client.seal(caller, &id, claim()?).await?, |()| Told::Done),
        Step::Execute => told(client.execute(caller, &id, claim()?).await?, Told::Settled),
        Step::Fetch => told(client.fetch(caller, claim()?).await?, Told::Fetched),
        Step::Revoke => told(client.revoke(caller, &id, claim()?).await?, Told::Revoked),
    })
}

fn told<T>(answer: Answer<T>, tell: impl FnOnce(T) -> Told) -> Answer<Told> {
    answer.map(tell)
}
