//! Charges: grants and charged runs over many accounts, and the delay of `accounts.json`.
//!
//! Three durable grants to one settled run, each under a request id, on accounts drawn at random. A
//! daemon begins with its accounts in an `accounts.json`, as a daemon does that takes over from
//! another program. The claims to be run are sealed before the clock starts.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use evidenceos_access::principal::bearer;
use evidenceos_proto::{self as wire, evidence_os_client::EvidenceOsClient};
use prost::bytes::Bytes;
use tokio::task::JoinSet;
use tonic::{Request, transport::Channel};

use crate::{
    child::{Daemon, Program},
    error::{BenchError, failed},
    load::{Load, stamped},
    stats::Samples,
};

/// Grants to one run.
const GRANTS: u64 = 3;
/// The interval of grants to the account that is looked for in the file.
const MARKER_EVERY: Duration = Duration::from_millis(20);
/// The interval of looks at the file.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The first accounts are within this many bytes of the file.
const BEGINNING: u64 = 4_096;

/// The figures of a round of charges.
#[derive(Debug, Clone)]
pub struct Charges {
    /// Tasks that charge at once.
    pub concurrency: usize,
    /// Accounts in the file.
    pub accounts: u64,
    pub grants: Samples,
    /// Durations of charged runs.
    pub runs: Samples,
    /// Duration of the round, in seconds.
    pub seconds: f64,
    /// The longest time between the acknowledgement of a change and its appearance in the file, in
    /// milliseconds.
    pub behind_ms: f64,
}

impl Charges {
    /// Grants and charged runs a second.
    pub fn per_s(&self) -> f64 {
        (self.grants.len() + self.runs.len()) as f64 / self.seconds
    }
}

/// A daemon with accounts, and claims to run.
pub struct Desk {
    daemon: Daemon,
    directory: PathBuf,
    load: Load,
    accounts: u64,
    sealed: Mutex<VecDeque<(Bytes, String)>>,
    numbers: AtomicU64,
}

fn token(account: u64) -> String {
    format!("bench-account-{account}")
}

/// The account that the watcher grants to: first in the order of names, and so in the file.
const MARKER: &str = "0-bench-marker";

fn principal(account: u64) -> String {
    bearer(token(account).as_bytes())
}

/// The file that the daemon begins with.
fn accounts_json(accounts: u64) -> String {
    let names = std::iter::once(MARKER.to_owned()).chain((0..accounts).map(principal));
    // Nothing is minted on these accounts, so the marker's balance counts its grants.
    let lines = names.map(|name| {
        format!(
            "\n\"{name}\":{{\"credit_balance\":100000,\"daily_mint_remaining\":0,\"last_mint_day\":99999,\"limits\":{{\"credit_limit\":1000000000,\"daily_mint_limit\":0}},\"burned_total\":0,\"denied_total\":0}}"
        )
    });
    let lines: Vec<String> = lines.collect();
    format!("{{\"accounts\":{{{}\n}}}}\n", lines.join(","))
}

impl Desk {
    /// Starts a daemon over this many accounts.
    pub async fn open(
        program: &Program,
        directory: &Path,
        accounts: u64,
    ) -> Result<Self, BenchError> {
        fs::create_dir_all(directory).map_err(BenchError::file(directory.to_owned()))?;
        let path = directory.join("accounts.json");
        fs::write(&path, accounts_json(accounts)).map_err(BenchError::file(path))?;
        let daemon = program.start(directory).await?;
        let load = Load::prepare(&daemon).await?;
        Ok(Self {
            daemon,
            directory: directory.to_owned(),
            load,
            accounts,
            sealed: Mutex::default(),
            numbers: AtomicU64::new(0),
        })
    }

    /// The number of accounts that it has.
    pub fn accounts(&self) -> u64 {
        self.accounts
    }

    /// Stops the daemon and waits for its end.
    pub async fn close(self) -> Result<(), BenchError> {
        self.daemon.stop().await
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// An account drawn without a generator: multiples of an odd constant visit all equally.
    fn draw(&self, number: u64) -> u64 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.accounts
    }

    /// Seals claims until this many wait to be run.
    pub async fn seal(self: &Arc<Self>, wanted: usize) -> Result<(), BenchError> {
        let mut tasks = JoinSet::new();
        for task in 0..64 {
            let desk = Arc::clone(self);
            tasks.spawn(async move {
                let mut client = desk.load.connection(task);
                while desk.waiting() < wanted {
                    let number = desk.number();
                    let token = token(desk.draw(number));
                    let claim = desk.load.seal_one(&mut client, number, &token).await?;
                    desk.queue().push_back((claim, token));
                }
                Ok::<_, BenchError>(())
            });
        }
        while let Some(joined) = tasks.join_next().await {
            joined.map_err(|error| failed(&error))??;
        }
        Ok(())
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<(Bytes, String)>> {
        self.sealed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> usize {
        self.queue().len()
    }

    /// One round; it ends early if no sealed claim is left.
    pub async fn round(
        self: &Arc<Self>,
        concurrency: usize,
        time: Duration,
    ) -> Result<Charges, BenchError> {
        let started = Instant::now();
        let deadline = started + time;
        let over = Arc::new(AtomicBool::new(false));
        let behind = tokio::spawn(Arc::clone(self).look_behind(Arc::clone(&over)));
        let mut tasks = JoinSet::new();
        for task in 0..concurrency {
            let desk = Arc::clone(self);
            tasks.spawn(async move {
                let mut client = desk.load.connection(task);
                let (mut grants, mut runs) = (Samples::default(), Samples::default());
                while Instant::now() < deadline {
                    let Some((claim, token)) = desk.queue().pop_front() else {
                        break;
                    };
                    for _ in 0..GRANTS {
                        let number = desk.number();
                        let began = Instant::now();
                        grant(&mut client, number, principal(desk.draw(number))).await?;
                        grants.add(began.elapsed());
                    }
                    let began = Instant::now();
                    desk.load
                        .run_one(&mut client, desk.number(), &token, &claim)
                        .await?;
                    runs.add(began.elapsed());
                }
                Ok::<_, BenchError>((grants, runs))
            });
        }
        let (mut grants, mut runs) = (Samples::default(), Samples::default());
        while let Some(joined) = tasks.join_next().await {
            let own = joined.map_err(|error| failed(&error))??;
            grants.extend(&own.0);
            runs.extend(&own.1);
        }
        // The watcher's last look does not belong to the round.
        let seconds = started.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        let behind = behind.await.map_err(|error| failed(&error))??;
        Ok(Charges {
            concurrency,
            accounts: self.accounts,
            grants,
            runs,
            seconds,
            behind_ms: behind.as_secs_f64() * 1e3,
        })
    }

    /// Grants to the marker repeatedly, and measures the time until the file shows it.
    async fn look_behind(self: Arc<Self>, over: Arc<AtomicBool>) -> Result<Duration, BenchError> {
        let mut client = self.load.connection(0);
        // Acknowledged balances that the file did not show yet, with the time of the reply.
        let mut owed: VecDeque<(u64, Instant)> = VecDeque::new();
        let (mut longest, mut granted) = (Duration::ZERO, Instant::now());
        while !over.load(Ordering::Relaxed) {
            if granted.elapsed() >= MARKER_EVERY {
                let balance = grant(&mut client, self.number(), MARKER.to_owned()).await?;
                // The file's delay counts from the acknowledgement.
                granted = Instant::now();
                owed.push_back((balance, granted));
            }
            let shown = shown_balance(&self.directory.join("accounts.json"))?;
            while owed.front().is_some_and(|(balance, _)| *balance <= shown) {
                owed.pop_front();
            }
            let oldest = owed.front().map(|(_, since)| since.elapsed());
            longest = longest.max(oldest.unwrap_or_default());
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(longest)
    }
}

/// The marker's balance in the file. It only grows, as it runs no claims.
fn shown_balance(path: &Path) -> Result<u64, BenchError> {
    let file = File::open(path).map_err(BenchError::file(path.to_owned()))?;
    let mut bytes = Vec::new();
    // The account is among the first in the file, however long the file is.
    file.take(BEGINNING)
        .read_to_end(&mut bytes)
        .map_err(BenchError::file(path.to_owned()))?;
    let beginning = String::from_utf8_lossy(&bytes);
    let balance = beginning
        .split_once(MARKER)
        .and_then(|(_, rest)| rest.split_once("\"credit_balance\":"))
        .and_then(|(_, rest)| {
            rest.split(|c: char| !c.is_ascii_digit())
                .next()?
                .parse()
                .ok()
        });
    balance.ok_or_else(|| failed(&"the marker is not at the beginning of accounts.json"))
}

async fn grant(
    client: &mut EvidenceOsClient<Channel>,
    number: u64,
    principal_id: String,
) -> Result<u64, BenchError> {
    let message = wire::GrantCreditRequest {
        principal_id,
        amount: 1,
        reason: "bench".to_owned(),
    };
    let request: Request<_> = stamped(number, "grant", message);
    let granted = client.grant_credit(request).await;
    Ok(granted
        .map_err(|status| failed(&status))?
        .into_inner()
        .credit_balance)
}
