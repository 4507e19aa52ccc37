//! A daemon on a free port over a directory of its own, and short ways to call it.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use evidenceos_daemon::{
    Config, Running, StartError,
    config::{Listeners, Settings},
};
use evidenceos_proto::{self as wire, evidence_os_client::EvidenceOsClient};
use evidenceos_sandbox::{Mode, PackOptions, Program, pack};
use prost::bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tonic::{Code, Request, Status, transport::Channel};

pub const ITEMS: usize = 200;

/// Runs a test's future on a runtime of its own.
pub fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(test);
}

/// A data directory in a temporary one: what lies beside it, as its anchor does, goes with it.
pub struct Directory {
    kept: TempDir,
    data: PathBuf,
}

impl Directory {
    pub fn new() -> Self {
        let kept = tempfile::tempdir().expect("a directory");
        let data = kept.path().join("data");
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&data)
            .expect("a new name");
        Self { kept, data }
    }

    /// With a directory beside it that may remember logs, as operators make it for a key that was
    /// there before.
    pub fn with_anchor() -> Self {
        let directory = Self::new();
        fs::create_dir(directory.beside("data.anchor")).expect("a new name");
        directory
    }

    pub fn path(&self) -> &Path {
        &self.data
    }

    pub fn beside(&self, name: &str) -> PathBuf {
        self.kept.path().join(name)
    }
}

pub struct Daemon {
    pub running: Running,
    pub directory: Directory,
}

/// The program of the children: the tests' own is none.
pub fn program() -> Program {
    Program(env!("CARGO_BIN_EXE_evidenceos-daemon").into())
}

/// What settings mean together, for a daemon in this process.
pub fn configured(settings: &Settings) -> Config {
    Config {
        guest_program: program(),
        ..Config::new(settings).expect("it fits together")
    }
}

pub fn config(directory: &Path) -> Config {
    Config {
        listeners: Listeners {
            grpc: "127.0.0.1:0".parse().expect("an address"),
            ..Listeners::default()
        },
        guest_program: program(),
        data_dir: directory.to_owned(),
        ..Config::default()
    }
}

impl Daemon {
    pub async fn start() -> Self {
        let directory = Directory::new();
        let running = evidenceos_daemon::start(config(directory.path()))
            .await
            .expect("starts");
        Self { running, directory }
    }

    pub async fn restart(self) -> Self {
        let Self { running, directory } = self;
        running.stop().await.expect("stops");
        let running = evidenceos_daemon::start(config(directory.path()))
            .await
            .expect("starts");
        Self { running, directory }
    }

    /// Stops, changes files, and says how the next start fails.
    pub async fn spoil(self, spoil: impl FnOnce(&Path)) -> StartError {
        let Self { running, directory } = self;
        running.stop().await.expect("stops");
        spoil(directory.path());
        let started = evidenceos_daemon::start(config(directory.path())).await;
        started.err().expect("a spoilt directory is refused")
    }

    pub async fn operator(&self) -> Client {
        Client::connect(&self.running.grpc_address().to_string(), None).await
    }

    pub async fn submitter(&self, token: &str) -> Client {
        Client::connect(
            &self.running.grpc_address().to_string(),
            Some(token.to_owned()),
        )
        .await
    }
}

#[derive(Clone)]
pub struct Client {
    pub inner: EvidenceOsClient<Channel>,
    token: Option<String>,
    request_id: Option<String>,
}

impl Client {
    pub async fn connect(address: &str, token: Option<String>) -> Self {
        let inner = EvidenceOsClient::connect(format!("http://{address}")).await;
        Self {
            token,
            ..Self::over(inner.expect("listens"))
        }
    }

    /// What the server warns of.
    pub async fn warnings(&mut self) -> String {
        let request = self.request(wire::GetServerInfoRequest {});
        let info = self.inner.get_server_info(request).await.expect("served");
        info.into_inner().warnings.join("\n")
    }

    /// The server serves reads and nothing else; why.
    pub async fn is_held(&mut self) -> String {
        let held = self.create(terms("held", "h")).await;
        refused(held, Code::Unavailable, "HELD", "read-only");
        self.warnings().await
    }

    /// A client over a connection that says who it is.
    pub fn over(inner: EvidenceOsClient<Channel>) -> Self {
        Self {
            inner: inner.max_decoding_message_size(64 << 20),
            token: None,
            request_id: None,
        }
    }

    /// The next calls carry this request id.
    pub fn with_id(&self, id: &str) -> Self {
        Self {
            request_id: Some(id.to_owned()),
            ..self.clone()
        }
    }

    /// The whole log, which must fit into one reply.
    pub async fn entries(&mut self) -> Vec<Vec<u8>> {
        let request = self.request(wire::ListEntriesRequest::default());
        let listed = self.inner.list_entries(request).await;
        let entries = listed.expect("served").into_inner().entries;
        entries.into_iter().map(|entry| entry.to_vec()).collect()
    }

    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            let value = format!("Bearer {token}").parse().expect("ascii");
            request.metadata_mut().insert("authorization", value);
        }
        if let Some(id) = &self.request_id {
            request
                .metadata_mut()
                .insert("x-request-id", id.parse().expect("ascii"));
        }
        request
    }

    pub async fn put(
        &mut self,
        header: wire::PutHoldoutHeader,
        labels: &[u8],
    ) -> Result<wire::Holdout, Status> {
        use wire::put_holdout_request::Part;
        let chunk = wire::PutHoldoutChunk {
            labels: Bytes::copy_from_slice(labels),
            ..Default::default()
        };
        let parts = [Part::Header(header), Part::Chunk(chunk)]
            .map(|part| wire::PutHoldoutRequest { part: Some(part) });
        let request = self.request(tokio_stream::iter(parts));
        let reply = self.inner.put_holdout(request).await?.into_inner();
        Ok(reply.holdout.expect("a holdout"))
    }

    pub async fn put_default(&mut self, name: &str) -> wire::Holdout {
        self.put(header(name), &labels(name))
            .await
            .expect("a holdout")
    }

    pub async fn create(&mut self, request: wire::CreateClaimV2Request) -> Result<Bytes, Status> {
        let request = self.request(request);
        Ok(self
            .inner
            .create_claim_v2(request)
            .await?
            .into_inner()
            .claim_id)
    }

    pub async fn commit(&mut self, claim: &Bytes, module: &[u8]) -> Result<i32, Status> {
        let artifact = wire::Artifact {
            artifact_hash: Sha256::digest(module).to_vec().into(),
            kind: "wasm".to_owned(),
            ..Default::default()
        };
        self.commit_with(claim, vec![artifact], module).await
    }

    pub async fn commit_with(
        &mut self,
        claim: &Bytes,
        artifacts: Vec<wire::Artifact>,
        module: &[u8],
    ) -> Result<i32, Status> {
        let request = self.request(wire::CommitArtifactsRequest {
            claim_id: claim.clone(),
            artifacts,
            wasm_module: Bytes::copy_from_slice(module),
        });
        Ok(self
            .inner
            .commit_artifacts(request)
            .await?
            .into_inner()
            .state)
    }

    pub async fn seal(&mut self, claim: &Bytes) -> Result<i32, Status> {
        let request = self.request(wire::SealClaimRequest {
            claim_id: claim.clone(),
        });
        Ok(self.inner.seal_claim(request).await?.into_inner().state)
    }

    pub async fn execute(&mut self, claim: &Bytes) -> Result<wire::ExecuteClaimV2Response, Status> {
        let request = self.request(wire::ExecuteClaimV2Request {
            claim_id: claim.clone(),
        });
        Ok(self.inner.execute_claim_v2(request).await?.into_inner())
    }

    pub async fn fetch(&mut self, claim: &Bytes) -> Result<wire::FetchCapsuleResponse, Status> {
        let request = self.request(wire::FetchCapsuleRequest {
            claim_id: claim.clone(),
            known_tree_size: 0,
        });
        Ok(self.inner.fetch_capsule(request).await?.into_inner())
    }

    pub async fn get(&mut self, claim: &Bytes) -> Result<wire::Claim, Status> {
        let request = self.request(wire::GetClaimRequest {
            claim_id: claim.clone(),
        });
        Ok(self
            .inner
            .get_claim(request)
            .await?
            .into_inner()
            .claim
            .expect("a claim"))
    }

    pub async fn holdout(&mut self, name: &str) -> wire::Holdout {
        let request = self.request(wire::GetHoldoutRequest {
            holdout: name.to_owned(),
        });
        let reply = self
            .inner
            .get_holdout(request)
            .await
            .expect("registered")
            .into_inner();
        reply.holdout.expect("a holdout")
    }

    /// An account; an empty name is one's own.
    pub async fn account(&mut self, principal: &str) -> Result<wire::Account, Status> {
        let request = self.request(wire::GetAccountRequest {
            principal_id: principal.to_owned(),
        });
        let reply = self.inner.get_account(request).await?.into_inner();
        Ok(reply.account.expect("an account"))
    }

    pub async fn grant(&mut self, principal: &str, amount: u64) -> Result<u64, Status> {
        let request = self.request(wire::GrantCreditRequest {
            principal_id: principal.to_owned(),
            amount,
            reason: "a test".to_owned(),
        });
        let reply = self.inner.grant_credit(request).await?.into_inner();
        Ok(reply.credit_balance)
    }

    pub async fn limit(&mut self, principal: &str, limit: u64) -> Result<u64, Status> {
        let request = self.request(wire::SetCreditLimitRequest {
            principal_id: principal.to_owned(),
            limit,
        });
        let reply = self.inner.set_credit_limit(request).await?.into_inner();
        Ok(reply.credit_limit)
    }

    /// Waits until `accounts.json` shows everything that was acknowledged.
    pub async fn exported(&mut self) {
        let request = self.request(wire::ExportAccountsRequest {});
        let exported = self.inner.export_accounts(request).await;
        exported.expect("the file follows");
    }

    /// A claim up to sealed.
    pub async fn sealed(&mut self, name: &str, holdout: &str, module: &[u8]) -> Bytes {
        let claim = self.create(terms(name, holdout)).await.expect("created");
        self.commit(&claim, module).await.expect("committed");
        self.seal(&claim).await.expect("sealed");
        claim
    }

    /// A claim from beginning to end.
    pub async fn run(
        &mut self,
        name: &str,
        holdout: &str,
        module: &[u8],
    ) -> (Bytes, wire::ExecuteClaimV2Response) {
        let claim = self.sealed(name, holdout, module).await;
        let result = self.execute(&claim).await.expect("settled");
        (claim, result)
    }
}

/// Labels that only the test and the daemon know.
pub fn labels(name: &str) -> Vec<u8> {
    (0..ITEMS as u32)
        .map(|item| Sha256::digest([name.as_bytes(), &item.to_be_bytes()].concat())[0] & 1)
        .collect()
}

/// Predictions that have every `wrong`-th label wrong. The split is drawn anew in each test, so what
/// a test expects must hold on every split: 2 (chance) is never certified, 20 and 100 always are.
pub fn predictions(name: &str, wrong: usize) -> Vec<u8> {
    let labels = labels(name).into_iter().enumerate();
    labels
        .map(|(item, label)| if item % wrong == 0 { label ^ 1 } else { label })
        .collect()
}

pub fn judged(predictions: &[u8]) -> Vec<u8> {
    pack(&PackOptions::new(predictions, Mode::Judge)).expect("packs")
}

pub fn asking(predictions: &[u8]) -> Vec<u8> {
    pack(&PackOptions::new(predictions, Mode::AskOnly)).expect("packs")
}

pub fn header(name: &str) -> wire::PutHoldoutHeader {
    wire::PutHoldoutHeader {
        holdout_ref: name.to_owned(),
        items: ITEMS as u64,
        null_spec: Some(wire::NullSpec {
            p0_micros: 500_000,
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub fn terms(name: &str, holdout: &str) -> wire::CreateClaimV2Request {
    wire::CreateClaimV2Request {
        claim_name: name.to_owned(),
        metadata: Some(wire::ClaimMetadataV2 {
            lane: "fast".to_owned(),
            alpha_micros: 50_000,
            ..Default::default()
        }),
        holdout_ref: holdout.to_owned(),
        oracle_num_symbols: 2,
        ..Default::default()
    }
}

/// A refusal with this status and own code, whose sentence has these words, and that says that
/// nothing was done.
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, own: &str, words: &str) {
    let status = result.expect_err(own);
    let own_code = status
        .metadata()
        .get("x-evidenceos-code")
        .map(|code| code.to_str().expect("ascii"));
    assert_eq!((status.code(), own_code), (code, Some(own)), "{status:?}");
    assert!(
        status.message().contains(words),
        "{:?} lacks {words:?}",
        status.message()
    );
    let outcome = status
        .metadata()
        .get("x-evidenceos-outcome")
        .expect("an outcome");
    assert_eq!(outcome, "not-applied");
}
