//! A careful client: every call that changes something carries a request id, and every answer is one of three: done,
//! certainly not done, or unknown.

use evidenceos_proto::{self as wire, evidence_os_client::EvidenceOsClient};
use evidenceos_tlog::Hash;
use evidenceos_verify::Receipt;
use prost::bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::{Failed, fail, modules};

/// The outcome of a call.
#[derive(Debug)]
pub enum Answer<T> {
    /// The server reports that it was done.
    Done(T),
    /// The server reports that nothing was done, and whether a retry may help.
    NotApplied {
        /// The stable code that the reply carries.
        code: String,
        /// Whether the client should retry.
        again: bool,
        /// The server's sentence for the caller.
        message: String,
    },
    /// The connection broke, or the server itself does not know.
    Lost,
}

impl<T> Answer<T> {
    fn of(result: Result<Response<T>, Status>) -> Self {
        let status = match result {
            Ok(response) => return Self::Done(response.into_inner()),
            Err(status) => status,
        };
        let field = |name| {
            let value = status.metadata().get(name);
            value.and_then(|value| value.to_str().ok())
        };
        // Only if the server says so, nothing was done. Any other error leaves the outcome open.
        match field("x-evidenceos-outcome") {
            Some("not-applied") => Self::NotApplied {
                code: field("x-evidenceos-code").unwrap_or_default().to_owned(),
                again: field("x-evidenceos-retry-after-ms").is_some(),
                message: status.message().to_owned(),
            },
            _ => Self::Lost,
        }
    }

    /// Maps the value of a call that was done.
    pub fn map<U>(self, map: impl FnOnce(T) -> U) -> Answer<U> {
        match self {
            Self::Done(value) => Answer::Done(map(value)),
            Self::NotApplied {
                code,
                again,
                message,
            } => Answer::NotApplied {
                code,
                again,
                message,
            },
            Self::Lost => Answer::Lost,
        }
    }

    /// The value of a call that was done.
    ///
    /// # Errors
    /// [`Failed`] if it was not done.
    pub fn done(self, what: &str) -> Result<T, Failed> {
        match self {
            Self::Done(value) => Ok(value),
            Self::NotApplied { code, message, .. } => {
                Err(fail(format!("{what}: {code}: {message}")))
            }
            Self::Lost => Err(fail(format!("{what}: no answer"))),
        }
    }
}

/// The result of a settled claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Index of its capsule.
    pub index: u64,
    /// The SHA-256 of the capsule.
    pub capsule_hash: Bytes,
    /// The verdict, in the capsule's words.
    pub outcome: String,
    /// The credit that the run burned.
    pub burned: u64,
}

/// The result of a fetch.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// A receipt that verifies offline.
    pub receipt: Receipt,
    /// The tree of its checkpoint.
    pub head: (u64, Hash),
}

/// A connection to the daemon.
#[derive(Clone)]
pub struct Client(EvidenceOsClient<Channel>);

/// The principal of a call.
#[derive(Debug, Clone, Copy)]
pub enum Caller<'c> {
    /// The operator of the server.
    Operator,
    /// A submitter, by token.
    Submitter(&'c str),
}

fn request<T>(caller: Caller<'_>, id: Option<&str>, message: T) -> Result<Request<T>, Failed> {
    let mut request = Request::new(message);
    if let Caller::Submitter(token) = caller {
        let value = format!("Bearer {token}").parse().map_err(fail)?;
        request.metadata_mut().insert("authorization", value);
    }
    if let Some(id) = id {
        let value = id.parse().map_err(fail)?;
        request.metadata_mut().insert("x-request-id", value);
    }
    Ok(request)
}

/// 32 bytes of the wire as a hash.
///
/// # Errors
/// [`Failed`] if there are not exactly 32.
pub fn hash(bytes: &[u8]) -> Result<Hash, Failed> {
    bytes
        .try_into()
        .map(Hash)
        .map_err(|_| fail("a hash is not 32 bytes long"))
}

fn hashes(path: &[Bytes]) -> Result<Vec<Hash>, Failed> {
    path.iter().map(|bytes| hash(bytes)).collect()
}

impl Client {
    /// Opens a connection of its own; `None` if no server listens.
    ///
    /// # Errors
    /// [`Failed`] if the address is invalid.
    pub async fn connect(address: &str) -> Result<Option<Self>, Failed> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(fail)?;
        // If no server listens, that is an answer here: the daemon may be dead.
        let channel = endpoint.tcp_nodelay(true).connect().await.ok();
        Ok(channel.map(|channel| {
            Self(EvidenceOsClient::new(channel).max_decoding_message_size(64 << 20))
        }))
    }

    /// Registers a holdout; returns its id.
    pub async fn register(&mut self, id: &str, holdout: &str) -> Result<Answer<Bytes>, Failed> {
        use wire::put_holdout_request::Part;
        let chunk = wire::PutHoldoutChunk {
            labels: modules::labels(holdout).into(),
            ..Default::default()
        };
        let parts = [Part::Header(modules::header(holdout)), Part::Chunk(chunk)]
            .map(|part| wire::PutHoldoutRequest { part: Some(part) });
        let request = request(Caller::Operator, Some(id), tokio_stream::iter(parts))?;
        let answer = Answer::of(self.0.put_holdout(request).await);
        Ok(answer.map(|reply| reply.holdout.unwrap_or_default().holdout_id))
    }

    /// Retires a holdout as the operator.
    pub async fn retire(&mut self, id: &str, holdout: &str) -> Result<Answer<()>, Failed> {
        let message = wire::RetireHoldoutRequest {
            holdout: holdout.to_owned(),
            reason: "crash test".to_owned(),
        };
        let request = request(Caller::Operator, Some(id), message)?;
        Ok(Answer::of(self.0.retire_holdout(request).await).map(drop))
    }

    /// Creates a claim; returns its id.
    pub async fn create(
        &mut self,
        caller: Caller<'_>,
        id: &str,
        name: &str,
        holdout: &str,
        lane: &str,
    ) -> Result<Answer<Bytes>, Failed> {
        let message = wire::CreateClaimV2Request {
            claim_name: name.to_owned(),
            metadata: Some(wire::ClaimMetadataV2 {
                lane: lane.to_owned(),
                alpha_micros: 50_000,
                ..Default::default()
            }),
            holdout_ref: holdout.to_owned(),
            oracle_num_symbols: 2,
            ..Default::default()
        };
        let answer = Answer::of(
            self.0
                .create_claim_v2(request(caller, Some(id), message)?)
                .await,
        );
        Ok(answer.map(|reply| reply.claim_id))
    }

    /// Commits a module to a claim.
    pub async fn commit(
        &mut self,
        caller: Caller<'_>,
        id: &str,
        claim: &Bytes,
        module: Vec<u8>,
    ) -> Result<Answer<()>, Failed> {
        let message = wire::CommitArtifactsRequest {
            claim_id: claim.clone(),
            artifacts: vec![wire::Artifact {
                artifact_hash: Sha256::digest(&module).to_vec().into(),
                kind: "wasm".to_owned(),
                ..Default::default()
            }],
            wasm_module: module.into(),
        };
        let request = request(caller, Some(id), message)?;
        Ok(Answer::of(self.0.commit_artifacts(request).await).map(drop))
    }

    /// Seals a claim that has its module.
    pub async fn seal(
        &mut self,
        caller: Caller<'_>,
        id: &str,
        claim: &Bytes,
    ) -> Result<Answer<()>, Failed> {
        let message = wire::SealClaimRequest {
            claim_id: claim.clone(),
        };
        let request = request(caller, Some(id), message)?;
        Ok(Answer::of(self.0.seal_claim(request).await).map(drop))
    }

    /// Executes a sealed claim and waits until it has settled.
    pub async fn execute(
        &mut self,
        caller: Caller<'_>,
        id: &str,
        claim: &Bytes,
    ) -> Result<Answer<Settled>, Failed> {
        let message = wire::ExecuteClaimV2Request {
            claim_id: claim.clone(),
        };
        let request = request(caller, Some(id), message)?;
        let answer = Answer::of(self.0.execute_claim_v2(request).await);
        Ok(answer.map(|reply| Settled {
            index: reply.etl_index,
            capsule_hash: reply.capsule_hash,
            outcome: reply.outcome,
            burned: reply.credit_burned,
        }))
    }

    /// Fetches a capsule with its proofs.
    pub async fn fetch(
        &mut self,
        caller: Caller<'_>,
        claim: &Bytes,
    ) -> Result<Answer<Fetched>, Failed> {
        let message = wire::FetchCapsuleRequest {
            claim_id: claim.clone(),
            known_tree_size: 0,
        };
        let answer = Answer::of(self.0.fetch_capsule(request(caller, None, message)?).await);
        Ok(match answer.map(fetched) {
            Answer::Done(fetched) => Answer::Done(fetched?),
            Answer::NotApplied {
                code,
                again,
                message,
            } => Answer::NotApplied {
                code,
                again,
                message,
            },
            Answer::Lost => Answer::Lost,
        })
    }

    /// Revokes a claim; returns the time.
    pub async fn revoke(
        &mut self,
        caller: Caller<'_>,
        id: &str,
        claim: &Bytes,
    ) -> Result<Answer<u64>, Failed> {
        let message = wire::RevokeClaimRequest {
            claim_id: claim.clone(),
            reason: "crash test".to_owned(),
        };
        let request = request(caller, Some(id), message)?;
        Ok(Answer::of(self.0.revoke_claim(request).await).map(|reply| reply.timestamp_unix))
    }

    /// A claim as the operator sees it; a missing one is an error.
    pub async fn claim(&mut self, claim: &Bytes) -> Result<wire::Claim, Failed> {
        let message = wire::GetClaimRequest {
            claim_id: claim.clone(),
        };
        let answer = Answer::of(
            self.0
                .get_claim(request(Caller::Operator, None, message)?)
                .await,
        );
        let found = answer.done("an acknowledged claim")?.claim;
        found.ok_or_else(|| fail("a reply without a claim"))
    }

    /// All claims as the operator sees them, page after page.
    pub async fn claims(&mut self) -> Result<Vec<wire::Claim>, Failed> {
        let mut claims = Vec::new();
        let mut page_token = String::new();
        loop {
            let message = wire::ListClaimsRequest {
                page_size: 100,
                page_token,
                all: true,
                ..Default::default()
            };
            let answer = Answer::of(
                self.0
                    .list_claims(request(Caller::Operator, None, message)?)
                    .await,
            );
            let page = answer.done("the claims")?;
            claims.extend(page.claims);
            if page.next_page_token.is_empty() {
                return Ok(claims);
            }
            page_token = page.next_page_token;
        }
    }

    /// All holdouts as the operator sees them, page after page.
    pub async fn holdouts(&mut self) -> Result<Vec<wire::Holdout>, Failed> {
        let mut holdouts = Vec::new();
        let mut page_token = String::new();
        loop {
            let message = wire::ListHoldoutsRequest {
                page_size: 100,
                page_token,
            };
            let request = request(Caller::Operator, None, message)?;
            let page = Answer::of(self.0.list_holdouts(request).await).done("the holdouts")?;
            holdouts.extend(page.holdouts);
            if page.next_page_token.is_empty() {
                return Ok(holdouts);
            }
            page_token = page.next_page_token;
        }
    }

    /// Raises the limit of an account, which the call opens if it is missing.
    pub async fn limit(
        &mut self,
        id: &str,
        principal: &str,
        limit: u64,
    ) -> Result<Answer<()>, Failed> {
        let message = wire::SetCreditLimitRequest {
            principal_id: principal.to_owned(),
            limit,
        };
        let request = request(Caller::Operator, Some(id), message)?;
        Ok(Answer::of(self.0.set_credit_limit(request).await).map(drop))
    }

    /// Grants credit; returns the balance.
    pub async fn grant(
        &mut self,
        id: &str,
        principal: &str,
        amount: u64,
    ) -> Result<Answer<u64>, Failed> {
        let message = wire::GrantCreditRequest {
            principal_id: principal.to_owned(),
            amount,
            reason: "crash test".to_owned(),
        };
        let request = request(Caller::Operator, Some(id), message)?;
        let answer = Answer::of(self.0.grant_credit(request).await);
        Ok(answer.map(|reply| reply.credit_balance))
    }

    /// All accounts, and their sums.
    pub async fn accounts(&mut self) -> Result<(Vec<wire::Account>, wire::CreditTotals), Failed> {
        let mut accounts = Vec::new();
        let mut page_token = String::new();
        loop {
            let message = wire::ListAccountsRequest {
                page_size: 100,
                page_token,
            };
            let request = request(Caller::Operator, None, message)?;
            let page = Answer::of(self.0.list_accounts(request).await).done("the accounts")?;
            accounts.extend(page.accounts);
            if page.next_page_token.is_empty() {
                return Ok((accounts, page.totals.unwrap_or_default()));
            }
            page_token = page.next_page_token;
        }
    }

    /// Waits until `accounts.json` shows everything.
    pub async fn export_accounts(&mut self) -> Result<(), Failed> {
        let request = request(Caller::Operator, None, wire::ExportAccountsRequest {})?;
        let answer = Answer::of(self.0.export_accounts(request).await);
        answer.done("accounts.json").map(drop)
    }

    /// The text of the newest checkpoint that the server shows.
    pub async fn checkpoint(&mut self) -> Result<String, Failed> {
        let answer = Answer::of(self.0.get_checkpoint(wire::GetCheckpointRequest {}).await);
        Ok(answer.done("the checkpoint")?.checkpoint)
    }

    /// Proof that one tree of the log extends another, and the roots that the server names.
    pub async fn consistency(
        &mut self,
        first: u64,
        second: u64,
    ) -> Result<(Vec<Hash>, Hash, Hash), Failed> {
        let message = wire::GetConsistencyProofRequest {
            first_tree_size: first,
            second_tree_size: second,
        };
        let answer = Answer::of(self.0.get_consistency_proof(message).await);
        let proof = answer.done(&format!("the proof that tree {second} holds tree {first}"))?;
        Ok((
            hashes(&proof.path)?,
            hash(&proof.first_root_hash)?,
            hash(&proof.second_root_hash)?,
        ))
    }

    /// Entries from an index on, up to `end`.
    pub async fn entries(&mut self, start: u64, end: u64) -> Result<Vec<Vec<u8>>, Failed> {
        let mut entries = Vec::new();
        while start + (entries.len() as u64) < end {
            let from = start + entries.len() as u64;
            let message = wire::ListEntriesRequest {
                start: from,
                count: (end - from).min(256) as u32,
            };
            let request = request(Caller::Operator, None, message)?;
            let page = Answer::of(self.0.list_entries(request).await).done("the log's entries")?;
            // An empty page would be requested again without end.
            if page.entries.is_empty() {
                return Err(fail(format!("the log has no entry {from}, of {end}")));
            }
            entries.extend(page.entries.iter().map(|entry| entry.to_vec()));
        }
        Ok(entries)
    }
}

fn fetched(reply: wire::FetchCapsuleResponse) -> Result<Fetched, Failed> {
    let inclusion = reply.inclusion_proof.unwrap_or_default();
    Ok(Fetched {
        head: (reply.tree_size, hash(&reply.root_hash)?),
        receipt: Receipt {
            capsule: reply.capsule_bytes.to_vec(),
            index: reply.etl_index,
            inclusion: hashes(&inclusion.audit_path)?,
            checkpoint: reply.checkpoint,
        },
    })
}
