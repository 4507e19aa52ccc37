//! Takes commands to the writer, and brings the replies back.
//!
//! Invariants: a request id that named another request never gets through; no reply that may reveal
//! a verdict, or an answer to a question, leaves before an anchor covers it.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use evidenceos_access::Principal;
use evidenceos_driver::{Answer, Call, Failure, ReplyTo, mailbox::Mailbox};
use evidenceos_kernel::{
    claim::ClaimState,
    command::{Caller, Command, Reply, Request, Stamp},
    id::{Fingerprint, RequestKey},
    refusal::Refusal,
    state::REQUEST_WINDOW_MS,
};
use evidenceos_notary::release::{Anchored, NotCovered};
use evidenceos_store::Module;
use lru::LruCache;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use super::Error;

/// The most requests remembered by their ids, in about 8 MiB.
const NAMED_REQUESTS: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// The store remembers requests for as long.
const REMEMBERED_FOR: Duration = Duration::from_millis(REQUEST_WINDOW_MS);

/// Hands commands to the writer.
pub struct Writer {
    mailbox: Mailbox,
    anchored: Anchored,
    named: NamedRequests,
}

impl Writer {
    /// Commands go through this mailbox, and replies wait for these anchors.
    #[must_use]
    pub fn new(mailbox: Mailbox, anchored: Anchored) -> Self {
        Self {
            mailbox,
            anchored,
            named: NamedRequests::default(),
        }
    }

    /// The mailbox itself, for commands that no caller sends.
    #[must_use]
    pub fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// Hands a command to the writer and waits for its result.
    ///
    /// # Errors
    /// If the kernel refuses it, the driver does not commit it, or no anchor covers the reply in
    /// time.
    pub async fn call(
        &self,
        principal: &Principal,
        stamp: Option<Stamp>,
        command: Command,
        module: Option<Module>,
    ) -> Result<Reply, Error> {
        if let Some(stamp) = &stamp {
            self.named.must_be_the_same(stamp)?;
        }
        let request = Request {
            caller: principal.caller,
            stamp,
            command,
        };
        self.send(request, module).await
    }

    /// Hands a command of the daemon's own to the writer and waits for its fate.
    ///
    /// # Errors
    /// As [`Writer::call`].
    pub async fn command(&self, command: Command) -> Result<Reply, Error> {
        let request = Request {
            caller: Caller::DRIVER,
            stamp: None,
            command,
        };
        self.send(request, None).await
    }

    async fn send(&self, request: Request, module: Option<Module>) -> Result<Reply, Error> {
        let (told, answer) = oneshot::channel();
        self.mailbox.call(Call {
            request,
            module,
            reply_to: Box::new(Waiting {
                told,
                anchored: self.anchored.clone(),
            }),
        });
        // A call that was dropped without an answer may have been committed before.
        let answer = answer.await.unwrap_or(Ok(Err(Failure::Unknown)));
        let answer = answer.map_err(|NotCovered| Error::NotShownYet { changed: true })?;
        Ok(answer?)
    }
}

/// The idempotency key of a request that has an id. The method and the owner are part of the key,
/// so that no caller meets another's requests. If a call is signed, what the signature covers
/// beside the id is part of it too, since processes that share a secret each count their ids from
/// 1.
///
/// # Errors
/// If the id is not 1 to 128 printable ASCII characters.
pub fn request_key(
    principal: &Principal,
    method: &'static str,
    id: &[u8],
) -> Result<RequestKey, Refusal> {
    if !(1..=128).contains(&id.len()) || !id.iter().all(|b| (0x21..=0x7e).contains(b)) {
        return Err(Refusal::field(
            "x-request-id",
            "must be 1 to 128 printable ASCII characters",
        ));
    }
    let digest: [u8; 32] = Sha256::new()
        .chain_update(principal.caller.tag.as_bytes())
        .chain_update(method)
        .chain_update([0])
        .chain_update(id)
        // Neither an id nor a timestamp has a zero byte.
        .chain_update([0])
        .chain_update(principal.request_scope.as_deref().unwrap_or_default())
        .finalize()
        .into();
    let mut key = RequestKey([0; 16]);
    key.0.copy_from_slice(&digest[..16]);
    Ok(key)
}

/// The requests that the latest request ids named.
///
/// The store remembers a request with its claim, so it cannot tell an id that comes with another
/// claim from a new id. For a signed call, the signature is already bound to the request.
struct NamedRequests(Mutex<LruCache<RequestKey, Named>>);

struct Named {
    fingerprint: Fingerprint,
    since: Instant,
}

impl Default for NamedRequests {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(NAMED_REQUESTS)))
    }
}

impl NamedRequests {
    /// Refuses a stamp whose key named another request within the time that requests are remembered.
    fn must_be_the_same(&self, stamp: &Stamp) -> Result<(), Refusal> {
        let mut named = self.0.lock();
        let now = Instant::now();
        match named.get(&stamp.key) {
            Some(first) if now.duration_since(first.since) < REMEMBERED_FOR => {
                if first.fingerprint == stamp.fingerprint {
                    Ok(())
                } else {
                    Err(Refusal::RequestIdReused)
                }
            }
            _ => {
                let fingerprint = stamp.fingerprint;
                let since = now;
                named.put(stamp.key, Named { fingerprint, since });
                Ok(())
            }
        }
    }
}

/// A caller that waits for the result of a command: it is answered once an anchor covers the
/// answer.
struct Waiting {
    told: oneshot::Sender<Result<Answer, NotCovered>>,
    anchored: Anchored,
}

impl ReplyTo for Waiting {
    fn send(self: Box<Self>, answer: Answer) {
        let Self { told, anchored } = *self;
        // A caller that has gone gets no answer; the decision stands.
        match must_be_covered(&answer, &anchored) {
            None => drop(told.send(Ok(answer))),
            Some(entries) => anchored.when_covered(entries, move |covered| {
                drop(told.send(covered.map(|()| answer)));
            }),
        }
    }

    fn is_gone(&self) -> bool {
        self.told.is_closed()
    }
}

/// The number of entries that an anchor must cover before an answer leaves, if the answer may
/// reveal a verdict or an answer to a question. An answer that only confirms a beginning reveals
/// neither.
fn must_be_covered(answer: &Answer, anchored: &Anchored) -> Option<u64> {
    match answer {
        Ok(Reply::Created { state, .. } | Reply::State(state)) => match state {
            ClaimState::Uncommitted
            | ClaimState::Committed
            | ClaimState::Sealed
            | ClaimState::Executing => None,
            ClaimState::Settled | ClaimState::Certified | ClaimState::Revoked => {
                Some(anchored.seen())
            }
        },
        Ok(Reply::Settled(claim)) => match &claim.settlement {
            // The claim's own entry fixed everything in the reply, so it need not wait for later
            // ones.
            Some(settlement) if claim.revocation.is_none() => Some(settlement.index + 1),
            _ => Some(anchored.seen()),
        },
        // A refusal can reveal a verdict too: that a claim has settled, or that a budget is spent.
        Ok(_) | Err(Failure::Refused(_)) => Some(anchored.seen()),
        Err(
            Failure::DiskFull
            | Failure::NotStored
            | Failure::Held
            | Failure::Stopping
            | Failure::Unknown,
        ) => None,
    }
}

/// A reply of the wrong kind is a fault of the daemon.
pub(super) fn unexpected(reply: &Reply) -> Error {
    Error::Fault(format!("an unexpected reply: {reply:?}"))
}

#[cfg(test)]
mod tests {
    use evidenceos_access::{Proof, Roles};
    use evidenceos_kernel::{command::Caller, id::OwnerTag};

    use super::*;

    #[test]
    fn the_same_id_of_two_principals_or_signed_times_is_two_keys() {
        let principal = |tag: u8, scope: Option<&str>| Principal {
            name: String::new(),
            caller: Caller {
                tag: OwnerTag([tag; 16]),
                operator: false,
                auditor: false,
            },
            roles: Roles::SUBMITTER,
            request_scope: scope.map(str::to_owned),
            proof: Proof::Nothing,
        };
        let key = |tag, method, scope| {
            request_key(&principal(tag, scope), method, b"id-1").expect("printable")
        };
        assert_eq!(key(1, "m", None), key(1, "m", None));
        assert_ne!(key(1, "m", None), key(2, "m", None));
        assert_ne!(key(1, "m", None), key(1, "n", None));
        assert_ne!(key(1, "m", Some("1700000000")), key(1, "m", None));
        assert_ne!(
            key(1, "m", Some("1700000000")),
            key(1, "m", Some("1700000001"))
        );
        for bad in [&b"a b"[..], b"", &[b'x'; 129], "\u{e9}".as_bytes()] {
            assert!(request_key(&principal(1, None), "m", bad).is_err());
        }
    }
}
