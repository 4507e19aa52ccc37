//! The load: full lives of claims, one after the other in each of several tasks.
//!
//! The claims are honest and weak: they are judged and not certified, so their price stays small
//! and the holdouts last. There are eight holdouts of a thousand items, with sealed budgets of
//! 4,096 bits, so that the figures do not measure the settlement order.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use evidenceos_proto::{self as wire, evidence_os_client::EvidenceOsClient};
use evidenceos_sandbox::{Mode, PackOptions, pack};
use prost::bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use tonic::{Request, transport::Channel};

use crate::{
    child::{self, Daemon, Usage},
    error::{BenchError, failed},
    stats::Samples,
};

const HOLDOUTS: u64 = 8;
const ITEMS: usize = 1_000;
const SEALED_BUDGET_MICROBITS: u64 = 4_096_000_000;
/// Tasks that share a connection.
const TASKS_A_CONNECTION: usize = 16;
/// Rounds of Health alone and beside other load.
const HEALTH_ROUNDS: u32 = 6;
/// The calls of a life, in order.
pub const CALLS: [&str; 5] = ["create", "commit", "seal", "execute", "fetch"];

/// The modules that the claims bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modules {
    /// All claims bring the same module.
    Shared,
    /// Each claim brings a module of its own.
    Distinct,
}

impl fmt::Display for Modules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Distinct => "distinct",
        })
    }
}

/// The length of a round.
#[derive(Debug, Clone, Copy)]
pub enum Round {
    /// Until this time has passed.
    Time(Duration),
    /// Until this many lives were completed.
    Lifecycles(u64),
}

/// The figures of a round.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Tasks that lead lives at once.
    pub concurrency: usize,
    pub modules: Modules,
    /// Lives that were completed.
    pub lifecycles: u64,
    /// Duration of the round, in seconds.
    pub seconds: f64,
    /// Each call's durations, in the order of [`CALLS`].
    pub calls: [Samples; 5],
    /// The resources that the daemon used for it.
    pub usage: Option<Usage>,
}

impl Figures {
    /// Completed lives of all tasks a second.
    pub fn per_s(&self) -> f64 {
        self.lifecycles as f64 / self.seconds
    }
}

/// A daemon with holdouts and a shared module.
pub struct Load {
    connections: Vec<EvidenceOsClient<Channel>>,
    module: Arc<Vec<u8>>,
    done: Arc<AtomicU64>,
}

impl Load {
    /// Connects, and registers the holdouts.
    pub async fn prepare(daemon: &Daemon) -> Result<Self, BenchError> {
        let mut connections = Vec::new();
        // Four connections carry the 64 tasks of the largest round.
        for _ in 0..4 {
            connections.push(daemon.connect().await?);
        }
        for number in 0..HOLDOUTS {
            put_holdout(&mut connections[0].clone(), number).await?;
        }
        let module = pack(&PackOptions::new(&[1; ITEMS], Mode::Judge)).map_err(|e| failed(&e))?;
        Ok(Self {
            connections,
            module: Arc::new(module),
            done: Arc::default(),
        })
    }

    /// The connection of a task.
    pub fn connection(&self, task: usize) -> EvidenceOsClient<Channel> {
        self.connections[(task / TASKS_A_CONNECTION) % self.connections.len()].clone()
    }

    /// Creates a claim of a bearer, up to sealed.
    pub async fn seal_one(
        &self,
        client: &mut EvidenceOsClient<Channel>,
        number: u64,
        token: &str,
    ) -> Result<Bytes, BenchError> {
        let claim = create(client, number, Some(token)).await?;
        commit(client, number, Some(token), &claim, &self.module).await?;
        seal(client, number, Some(token), &claim).await?;
        Ok(claim)
    }

    /// Runs a sealed claim.
    pub async fn run_one(
        &self,
        client: &mut EvidenceOsClient<Channel>,
        number: u64,
        token: &str,
        claim: &Bytes,
    ) -> Result<(), BenchError> {
        execute(client, number, Some(token), claim).await
    }

    /// Lives completed so far.
    pub fn lifecycles_done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Leads lives in this many tasks at once, and measures them.
    pub async fn round(
        &self,
        concurrency: usize,
        modules: Modules,
        round: Round,
    ) -> Result<Figures, BenchError> {
        let started = Instant::now();
        let (deadline, lives) = match round {
            Round::Time(time) => (Some(started + time), u64::MAX),
            Round::Lifecycles(lives) => (None, lives),
        };
        let taken = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for task in 0..concurrency {
            let mut client = self.connection(task);
            let (module, done, taken) = (
                Arc::clone(&self.module),
                Arc::clone(&self.done),
                Arc::clone(&taken),
            );
            tasks.spawn(async move {
                let mut calls: [Samples; 5] = Default::default();
                while deadline.is_none_or(|deadline| Instant::now() < deadline)
                    && taken.fetch_add(1, Ordering::Relaxed) < lives
                {
                    // Numbers go on over the rounds: the same number would create the same claim
                    // again.
                    let number = done.fetch_add(1, Ordering::Relaxed);
                    let own = match modules {
                        Modules::Shared => None,
                        Modules::Distinct => Some(distinct_module(number)?),
                    };
                    let module = own.as_ref().unwrap_or(&module);
                    life(&mut client, number, module, &mut calls).await?;
                }
                Ok::<_, BenchError>(calls)
            });
        }
        let mut calls: [Samples; 5] = Default::default();
        while let Some(joined) = tasks.join_next().await {
            let own = joined.map_err(|error| failed(&error))??;
            for (all, own) in calls.iter_mut().zip(&own) {
                all.extend(own);
            }
        }
        Ok(Figures {
            concurrency,
            modules,
            // A life counts once its last call has returned.
            lifecycles: calls[4].len() as u64,
            seconds: started.elapsed().as_secs_f64(),
            calls,
            usage: None,
        })
    }

    /// Calls that do nothing: the cost of the transport. At concurrency 1 the median in
    /// microseconds, at 64 the calls a second.
    pub async fn noop(&self, time: Duration) -> Result<Noop, BenchError> {
        let alone = self.health(1, time).await?;
        let many = self.health(64, time).await?;
        Ok(Noop {
            alone_us: alone.percentiles(),
            per_s: many.len() as f64 / time.as_secs_f64(),
        })
    }

    async fn health(&self, concurrency: usize, time: Duration) -> Result<Samples, BenchError> {
        let deadline = Instant::now() + time;
        let mut tasks = JoinSet::new();
        for task in 0..concurrency {
            let client = self.connections[task % self.connections.len()].clone();
            tasks.spawn(health_until(client, deadline));
        }
        let mut all = Samples::default();
        while let Some(joined) = tasks.join_next().await {
            all.extend(&joined.map_err(|error| failed(&error))??);
        }
        Ok(all)
    }

    /// Health alone, beside a second caller of Health, and beside one task that writes without a
    /// pause: 95th percentiles. The measured caller has a thread and a connection of its own, so
    /// that the figure is the daemon's and not that of a client that does two things at once; the
    /// second caller shows the cost of sharing the cores alone.
    pub async fn health_beside_writer(
        &self,
        daemon: &Daemon,
        time: Duration,
    ) -> Result<HealthP95, BenchError> {
        let alone = || {
            let (address, time) = (daemon.address(), time / HEALTH_ROUNDS);
            async move {
                let caller = tokio::task::spawn_blocking(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build();
                    runtime.map_err(|error| failed(&error))?.block_on(async {
                        let client = child::connect(&address).await?;
                        health_until(client, Instant::now() + time).await
                    })
                });
                caller.await.map_err(|error| failed(&error))?
            }
        };
        let mut samples: [Samples; 3] = Default::default();
        // In turn, so that other work of the machine falls on all three alike.
        for _ in 0..HEALTH_ROUNDS {
            let round = time / HEALTH_ROUNDS;
            samples[0].extend(&alone().await?);
            let (beside, other) = tokio::join!(alone(), self.health(1, round));
            other?;
            samples[1].extend(&beside?);
            let writer = self.round(1, Modules::Shared, Round::Time(round));
            let (beside, written) = tokio::join!(alone(), writer);
            written?;
            samples[2].extend(&beside?);
        }
        let [idle_us, beside_health_us, beside_writer_us] =
            samples.map(|samples| samples.percentiles()[1]);
        Ok(HealthP95 {
            idle_us,
            beside_health_us,
            beside_writer_us,
        })
    }
}

/// 95th percentiles of Health, in microseconds.
#[derive(Debug, Clone, Copy)]
pub struct HealthP95 {
    /// Health alone, without another caller.
    pub idle_us: f64,
    /// Beside another caller of Health.
    pub beside_health_us: f64,
    /// Beside a client that writes.
    pub beside_writer_us: f64,
}

async fn health_until(
    mut client: EvidenceOsClient<Channel>,
    deadline: Instant,
) -> Result<Samples, BenchError> {
    let mut samples = Samples::default();
    while Instant::now() < deadline {
        let before = Instant::now();
        client
            .health(wire::HealthRequest {})
            .await
            .map_err(|status| failed(&status))?;
        samples.add(before.elapsed());
    }
    Ok(samples)
}

/// The cost of calls that do nothing.
#[derive(Debug, Clone, Copy)]
pub struct Noop {
    /// Durations at concurrency 1, in microseconds.
    pub alone_us: [f64; 3],
    /// Calls a second at concurrency 64.
    pub per_s: f64,
}

async fn put_holdout(
    client: &mut EvidenceOsClient<Channel>,
    number: u64,
) -> Result<(), BenchError> {
    use wire::put_holdout_request::Part;
    // The labels are coins, so no module of the load is certified.
    let labels: Vec<u8> = (0..ITEMS as u64)
        .map(|item| Sha256::digest([item, number].map(u64::to_be_bytes).concat())[0] & 1)
        .collect();
    let header = wire::PutHoldoutHeader {
        holdout_ref: format!("bench-{number}"),
        items: ITEMS as u64,
        policy: Some(wire::HoldoutPolicy {
            sealed_budget_microbits: Some(SEALED_BUDGET_MICROBITS),
            ..Default::default()
        }),
        null_spec: Some(wire::NullSpec {
            p0_micros: 500_000,
            ..Default::default()
        }),
        ..Default::default()
    };
    let chunk = wire::PutHoldoutChunk {
        labels: labels.into(),
        ..Default::default()
    };
    let parts = [Part::Header(header), Part::Chunk(chunk)]
        .map(|part| wire::PutHoldoutRequest { part: Some(part) });
    client
        .put_holdout(tokio_stream::iter(parts))
        .await
        .map_err(|status| failed(&status))?;
    Ok(())
}

fn distinct_module(number: u64) -> Result<Vec<u8>, BenchError> {
    // The bits of the number are the predictions, so no two modules are the same.
    let predictions: Vec<u8> = (0..ITEMS)
        .map(|item| u8::from(number >> (item % 64) & 1 == 1))
        .collect();
    pack(&PackOptions::new(&predictions, Mode::Judge)).map_err(|error| failed(&error))
}

/// A request with an id, as a careful client sends it.
pub(super) fn stamped<T>(number: u64, call: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Ok(id) = format!("{call}-{number}").parse() {
        request.metadata_mut().insert("x-request-id", id);
    }
    request
}

async fn life(
    client: &mut EvidenceOsClient<Channel>,
    number: u64,
    module: &[u8],
    calls: &mut [Samples; 5],
) -> Result<(), BenchError> {
    let mut clock = Instant::now();
    let mut lap = |call: usize| {
        calls[call].add(clock.elapsed());
        clock = Instant::now();
    };
    let nobody = None;
    let claim_id = create(client, number, nobody).await?;
    lap(0);
    commit(client, number, nobody, &claim_id, module).await?;
    lap(1);
    seal(client, number, nobody, &claim_id).await?;
    lap(2);
    execute(client, number, nobody, &claim_id).await?;
    lap(3);
    let fetch = wire::FetchCapsuleRequest {
        claim_id,
        known_tree_size: 0,
    };
    client
        .fetch_capsule(fetch)
        .await
        .map_err(|status| failed(&status))?;
    lap(4);
    Ok(())
}

/// A request of a bearer, or one without a token.
fn from<T>(token: Option<&str>, mut request: Request<T>) -> Request<T> {
    let value = token.and_then(|token| format!("Bearer {token}").parse().ok());
    if let Some(value) = value {
        request.metadata_mut().insert("authorization", value);
    }
    request
}

async fn create(
    client: &mut EvidenceOsClient<Channel>,
    number: u64,
    token: Option<&str>,
) -> Result<Bytes, BenchError> {
    let create = wire::CreateClaimV2Request {
        claim_name: format!("bench-{number}"),
        metadata: Some(wire::ClaimMetadataV2 {
            lane: "fast".to_owned(),
            alpha_micros: 50_000,
            // A term that no other claim has: a repeated question would not be judged.
            epoch_config_ref: format!("bench-{number}"),
            ..Default::default()
        }),
        holdout_ref: format!("bench-{}", number % HOLDOUTS),
        oracle_num_symbols: 2,
        ..Default::default()
    };
    let request = from(token, stamped(number, "create", create));
    let created = client.create_claim_v2(request).await;
    Ok(created
        .map_err(|status| failed(&status))?
        .into_inner()
        .claim_id)
}

async fn commit(
    client: &mut EvidenceOsClient<Channel>,
    number: u64,
    token: Option<&str>,
    claim_id: &Bytes,
    module: &[u8],
) -> Result<(), BenchError> {
    let commit = wire::CommitArtifactsRequest {
        claim_id: claim_id.clone(),
        artifacts: vec![wire::Artifact {
            artifact_hash: Sha256::digest(module).to_vec().into(),
            kind: "wasm".to_owned(),
            ..Default::default()
        }],
        wasm_module: module.to_vec().into(),
    };
    let request = from(token, stamped(number, "commit", commit));
    let committed = client.commit_artifacts(request).await;
    committed.map(drop).map_err(|status| failed(&status))
}

async fn seal(
    client: &mut EvidenceOsClient<Channel>,
    number: u64,
    token: Option<&str>,
    claim_id: &Bytes,
) -> Result<(), BenchError> {
    let seal = wire::SealClaimRequest {
        claim_id: claim_id.clone(),
    };
    let request = from(token, stamped(number, "seal", seal));
    let sealed = client.seal_claim(request).await;
    sealed.map(drop).map_err(|status| failed(&status))
}

async fn execute(
    client: &mut EvidenceOsClient<Channel>,
    number: u64,
    token: Option<&str>,
    claim_id: &Bytes,
) -> Result<(), BenchError> {
    let execute = wire::ExecuteClaimV2Request {
        claim_id: claim_id.clone(),
    };
    let request = from(token, stamped(number, "execute", execute));
    let executed = client.execute_claim_v2(request).await;
    let outcome = executed
        .map_err(|status| failed(&status))?
        .into_inner()
        .outcome;
    // A claim with another outcome takes another path than the measured one.
    if outcome == "not_certified" {
        Ok(())
    } else {
        Err(failed(&format!("a claim of the load ended as {outcome}")))
    }
}
