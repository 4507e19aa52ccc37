//! The connection to a daemon: one wrapper for each call of the wire that these commands make.
//!
//! Owns credentials, request ids and retries. A call that changes something carries a fresh `x-request-id`. While
//! the server is unavailable, the client repeats the call with the same id, so that the change is made at most
//! once. This module contains no policy: the commands interpret refusals.

use std::time::Duration;

use evidenceos_proto as proto;
use proto::evidence_os_client::EvidenceOsClient;
use tokio_stream::StreamExt as _;
use tonic::{
    Code, Request, Status,
    metadata::{AsciiMetadataValue, MetadataValue},
    transport::Channel,
};

pub use crate::connection::Connection;
use crate::{error::CliError, output::progress};

/// How often a call is made before a broken connection is reported. With the pauses in between, a daemon has three
/// seconds to restart.
const ATTEMPTS: u32 = 6;
/// The pause after the first failure; doubled after each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How often a call waits at the server's request, and the longest such pause.
const WAITS: u32 = 30;
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Large enough for a claim's module, or for a page of entries.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Said with a refused token: a daemon keeps the tokens that it read until it is told to read them again.
const RELOAD: &str = ". If the token is newer than what the server read, the operator runs \
    `evidenceos admin reload --data-dir DIR` there";

/// A connection to the daemon, with the credentials that calls carry.
#[derive(Debug, Clone)]
pub struct Client {
    inner: EvidenceOsClient<Channel>,
    authorization: Option<AsciiMetadataValue>,
    /// A description of the credentials.
    credentials: String,
}

/// Calls with one request message and one reply: name, request, reply, and whether it changes anything.
macro_rules! unary_calls {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $reply:ident, changes: $changes:literal;)*) => {
        impl Client {$(
            $(#[$doc])*
            pub async fn $name(&mut self, message: proto::$request) -> Result<proto::$reply, CliError> {
                // One id for all attempts, so that a change is not made twice.
                let request_id = request_id($changes)?;
                let mut retry = Retry::new($changes);
                loop {
                    let request = self.request(message.clone(), request_id.as_ref());
                    match self.inner.$name(request).await {
                        Ok(reply) => return Ok(reply.into_inner()),
                        Err(status) => retry.pause_or_give_up(self, status).await?,
                    }
                }
            }
        )*}
    };
}

unary_calls! {
    /// The server's versions, setup and warnings.
    get_server_info(GetServerInfoRequest) -> GetServerInfoResponse, changes: false;
    /// Creates a claim, or finds the one with these terms.
    create_claim_v2(CreateClaimV2Request) -> CreateClaimV2Response, changes: true;
    /// Gives a claim its module.
    commit_artifacts(CommitArtifactsRequest) -> CommitArtifactsResponse, changes: true;
    /// Seals a claim with its module and terms.
    seal_claim(SealClaimRequest) -> SealClaimResponse, changes: true;
    /// Runs a claim and waits for its settlement.
    execute_claim_v2(ExecuteClaimV2Request) -> ExecuteClaimV2Response, changes: true;
    /// A settled claim's capsule with its proof.
    fetch_capsule(FetchCapsuleRequest) -> FetchCapsuleResponse, changes: false;
    /// Revokes a settled claim.
    revoke_claim(RevokeClaimRequest) -> RevokeClaimResponse, changes: true;
    /// One claim by its id.
    get_claim(GetClaimRequest) -> GetClaimResponse, changes: false;
    /// A page of claims.
    list_claims(ListClaimsRequest) -> ListClaimsResponse, changes: false;
    /// One holdout with its meters.
    get_holdout(GetHoldoutRequest) -> GetHoldoutResponse, changes: false;
    /// A page of holdouts.
    list_holdouts(ListHoldoutsRequest) -> ListHoldoutsResponse, changes: false;
    /// Retires a holdout.
    retire_holdout(RetireHoldoutRequest) -> RetireHoldoutResponse, changes: true;
    /// Withdraws a holdout that released nothing.
    withdraw_holdout(WithdrawHoldoutRequest) -> WithdrawHoldoutResponse, changes: true;
    /// The newest signed head.
    get_checkpoint(GetCheckpointRequest) -> GetCheckpointResponse, changes: false;
    /// A proof that an entry is in the log.
    get_inclusion_proof(GetInclusionProofRequest) -> GetInclusionProofResponse, changes: false;
    /// A proof that the log only grew.
    get_consistency_proof(GetConsistencyProofRequest) -> GetConsistencyProofResponse, changes: false;
    /// Entries of the log.
    list_entries(ListEntriesRequest) -> ListEntriesResponse, changes: false;
    /// The keys that have signed the log.
    list_log_keys(ListLogKeysRequest) -> ListLogKeysResponse, changes: false;
    /// Encrypts the holdouts under another key.
    rotate_holdout_key(RotateHoldoutKeyRequest) -> RotateHoldoutKeyResponse, changes: true;
    /// One account with its balance and limits.
    get_account(GetAccountRequest) -> GetAccountResponse, changes: false;
    /// A page of accounts.
    list_accounts(ListAccountsRequest) -> ListAccountsResponse, changes: false;
    /// Gives a principal credit, as an operator.
    grant_credit(GrantCreditRequest) -> GrantCreditResponse, changes: true;
    /// Sets a limit of credit.
    set_credit_limit(SetCreditLimitRequest) -> SetCreditLimitResponse, changes: true;
    /// Waits until accounts.json shows what was acknowledged.
    export_accounts(ExportAccountsRequest) -> ExportAccountsResponse, changes: false;
    /// Narrows a holdout's budgets.
    set_holdout_pool_budgets(SetHoldoutPoolBudgetsRequest) -> SetHoldoutPoolBudgetsResponse, changes: true;
    /// A holdout's budgets, registered and in force.
    get_holdout_pool_budgets(GetHoldoutPoolBudgetsRequest) -> GetHoldoutPoolBudgetsResponse, changes: false;
    /// Accepts the system clock after a forward jump.
    confirm_clock(ConfirmClockRequest) -> ConfirmClockResponse, changes: false;
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`CliError::Usage`] for an invalid endpoint, [`CliError::Unreachable`] if no daemon listens.
    pub async fn connect(connection: &Connection) -> Result<Self, CliError> {
        let channel = connection.open().await?;
        let authorization = match &connection.bearer_token {
            Some(token) => Some(bearer(token)?),
            None => None,
        };
        let inner = EvidenceOsClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let mut client = Self {
            inner,
            authorization,
            credentials: connection.credentials(),
        };
        client.must_be_let_in(connection).await?;
        Ok(client)
    }

    /// Makes a call that needs no role. In TLS 1.3 the server checks a client's certificate after
    /// the client considers itself connected, and a plain connection to a TLS port fails as late.
    /// This call reports both as what they are, rather than as the failure of the first command.
    async fn must_be_let_in(&mut self, connection: &Connection) -> Result<(), CliError> {
        let request = self.request(proto::HealthRequest {}, None);
        match self.inner.health(request).await {
            // Only a broken connection has a cause: a status from the server has none.
            Err(status) if std::error::Error::source(&status).is_some() => {
                Err(connection.failed(&status))
            }
            // Any answer of the server belongs to the call that the user asked for.
            _ => Ok(()),
        }
    }

    /// The same connection with another bearer token.
    pub fn with_bearer(&self, token: &str) -> Result<Self, CliError> {
        Ok(Self {
            inner: self.inner.clone(),
            authorization: Some(bearer(token)?),
            credentials: "another bearer token".to_owned(),
        })
    }

    /// Registers a holdout: a header, then chunks.
    pub async fn put_holdout(
        &mut self,
        parts: Vec<proto::PutHoldoutRequest>,
    ) -> Result<proto::Holdout, CliError> {
        let request_id = request_id(true)?;
        let mut retry = Retry::new(true);
        loop {
            // Each attempt consumes its stream.
            let stream = tokio_stream::iter(parts.clone());
            match self
                .inner
                .put_holdout(self.request(stream, request_id.as_ref()))
                .await
            {
                Ok(reply) => return required(reply.into_inner().holdout, "holdout"),
                Err(status) => retry.pause_or_give_up(self, status).await?,
            }
        }
    }

    /// Makes a holdout's labels public; returns the bytes of the opening.
    pub async fn open_holdout(&mut self, holdout: String) -> Result<Vec<u8>, CliError> {
        let message = proto::OpenHoldoutRequest { holdout };
        let request = self.request(message, request_id(true)?.as_ref());
        let opened = self.inner.open_holdout(request).await;
        let mut chunks = opened.map_err(|status| self.refusal(status))?.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.next().await {
            bytes.extend_from_slice(&chunk?.chunk);
        }
        Ok(bytes)
    }

    /// Passes every account to `told`, as it is and after each change, until the server ends.
    pub async fn watch_accounts(
        &mut self,
        message: proto::WatchAccountsRequest,
        mut told: impl FnMut(&proto::Account),
    ) -> Result<(), CliError> {
        loop {
            // A new watch begins with every account as it is, so that no change in between is lost.
            let request = self.request(message.clone(), None);
            let watched = self.inner.watch_accounts(request).await;
            let mut changes = watched.map_err(|status| self.refusal(status))?.into_inner();
            loop {
                match changes.next().await {
                    Some(Ok(change)) => change.accounts.iter().for_each(&mut told),
                    // Either the connection has reached its age, and the next call opens another;
                    // or the server stops, and there is none.
                    Some(Err(status)) if status.code() == Code::Unavailable => break,
                    Some(Err(status)) => return Err(status.into()),
                    None => return Ok(()),
                }
            }
        }
    }

    /// The whole trace of a claim's run.
    pub async fn fetch_trace(
        &mut self,
        claim_id: prost::bytes::Bytes,
    ) -> Result<Vec<u8>, CliError> {
        let request = self.request(proto::FetchTraceRequest { claim_id }, None);
        let fetched = self.inner.fetch_trace(request).await;
        let mut chunks = fetched.map_err(|status| self.refusal(status))?.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.next().await {
            bytes.extend_from_slice(&chunk?.chunk);
        }
        Ok(bytes)
    }

    /// The server's sentence; if it does not recognise the caller, also the credentials that it was
    /// shown, and what a token may lack that is right.
    fn refusal(&self, status: Status) -> CliError {
        let is_unknown = status.code() == Code::Unauthenticated;
        let mut error = CliError::from(status);
        if let (true, CliError::Refused { message, .. }) = (is_unknown, &mut error) {
            *message = format!("{message}; sent: {}", self.credentials);
            if self.authorization.is_some() {
                message.push_str(RELOAD);
            }
        }
        error
    }

    fn request<T>(&self, message: T, request_id: Option<&AsciiMetadataValue>) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        if let Some(authorization) = &self.authorization {
            metadata.insert("authorization", authorization.clone());
        }
        if let Some(id) = request_id {
            metadata.insert("x-request-id", id.clone());
        }
        request
    }
}

/// A field that a reply always has.
pub fn required<T>(field: Option<T>, name: &str) -> Result<T, CliError> {
    field.ok_or_else(|| CliError::Protocol(format!("the field {name} is missing")))
}

/// 128 random bits in hex for a call that changes something: without an id the client could not
/// repeat it.
fn request_id(changes: bool) -> Result<Option<AsciiMetadataValue>, CliError> {
    if !changes {
        return Ok(None);
    }
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        CliError::Failed(format!(
            "the operating system returned no random bytes: {error}"
        ))
    })?;
    Ok(hex::encode(bytes).parse().ok())
}

fn bearer(token: &str) -> Result<AsciiMetadataValue, CliError> {
    let mut value: AsciiMetadataValue = MetadataValue::try_from(format!("Bearer {token}"))
        .map_err(|_| {
            CliError::Usage("the bearer token has characters that no header can carry".to_owned())
        })?;
    // `Debug` does not show a sensitive value, and HTTP/2 keeps it out of its header table.
    value.set_sensitive(true);
    Ok(value)
}

/// The pause that the server asks for before the call is repeated; `None` if it does not.
fn asked_pause(status: &Status) -> Option<Duration> {
    let asked = status.metadata().get("x-evidenceos-retry-after-ms")?;
    let ms: u64 = asked.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(ms).min(LONGEST_PAUSE))
}

/// The attempts of one call.
struct Retry {
    failures: u32,
    /// How often the server asked to wait.
    waits: u32,
    /// Whether the call changes something, so that the user must know whether it was done.
    changes: bool,
}

impl Retry {
    fn new(changes: bool) -> Self {
        Self {
            failures: 0,
            waits: 0,
            changes,
        }
    }

    /// Returns after a pause if the call should be repeated, otherwise returns the failure.
    async fn pause_or_give_up(&mut self, client: &Client, status: Status) -> Result<(), CliError> {
        // A busy server says when to retry.
        if let Some(pause) = asked_pause(&status)
            && self.waits < WAITS
        {
            if self.waits == 0 {
                progress(&format!("the server asks to wait: {}", status.message()));
            }
            self.waits += 1;
            tokio::time::sleep(pause).await;
            return Ok(());
        }
        self.failures += 1;
        // A status with a cause was made by this client: the connection broke, and whether the server did the call
        // is unknown. The same request id finds out.
        let broke = std::error::Error::source(&status).is_some();
        // Any other status is an answer, and would come again.
        if !broke && status.code() != Code::Unavailable {
            return Err(client.refusal(status));
        }
        if self.failures < ATTEMPTS {
            tokio::time::sleep(FIRST_PAUSE * 2u32.pow(self.failures - 1)).await;
            return Ok(());
        }
        if !broke {
            return Err(client.refusal(status));
        }
        Err(CliError::Broken {
            reason: status.message().to_owned(),
            may_have_run: self.changes,
        })
    }
}
