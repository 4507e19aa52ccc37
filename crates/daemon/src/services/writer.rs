//! The way of a command to the writer, and of its reply back.
//!
//! Invariants: a request id that named another request never gets through; nothing that may tell of
//! a verdict, or of an answer to a question, leaves before an anchor covers it.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use evidenceos_access::Principal;
use evidenceos_driver::{Answer, Call, Failure, ReplyTo, mailbox::Mailbox};
use evidenceos_kernel::{
    claim::ClaimState,
    command::{Command, Reply, Request, Stamp},
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

/// Requests remembered by their ids, in some 8 MiB.
const NAMED_REQUESTS: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// As long as the store remembers requests.
const REMEMBERED_FOR: Duration = Duration::from_millis(REQUEST_WINDOW_MS);

/// The way to the writer.
pub struct Writer {
    mailbox: Mailbox,
    anchored: Anchored,
    named: NamedRequests,
}

impl Writer {
    /// A way through this mailbox, whose replies wait for these anchors.
    #[must_use]
    pub fn new(mailbox: Mailbox, anchored: Anchored) -> Self {
        Self {
            mailbox,
            anchored,
            named: NamedRequests::default(),
        }
    }

    /// The mailbox itself, for what is no caller's command.
    #[must_use]
    pub fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// Hands a command to the writer and waits for its fate.
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
        let (told, answer) = oneshot::channel();
        self.mailbox.call(Call {
            request: Request {
                caller: principal.caller,
                stamp,
                command,
            },
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

/// The idempotency key of a request that names itself. `method` is part of the key, the owner too:
/// nobody meets another's requests. So is what a signature covers beside the id, since processes
/// that share a secret count their ids from 1 each.
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

/// Which request each request id named, the latest few.
///
/// The store remembers requests with the claim that they were about, so that it could not tell an id
/// that comes with another claim from a new one. For a signed call the signature is bound already.
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

/// A caller who waits for the fate of a command: told once an anchor covers what the answer says.
struct Waiting {
    told: oneshot::Sender<Result<Answer, NotCovered>>,
    anchored: Anchored,
}

impl ReplyTo for Waiting {
    fn send(self: Box<Self>, answer: Answer) {
        let Self { told, anchored } = *self;
        // A caller that has gone away gets no answer; what was decided stands.
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

/// The entries that an anchor must cover before an answer leaves, if it may say anything of a
/// verdict or of an answer to a question. What only says that something began does not.
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
            // All that the reply says was fixed by the claim's own entry: it need not wait for
            // later ones.
            Some(settlement) if claim.revocation.is_none() => Some(settlement.index + 1),
            _ => Some(anchored.seen()),
        },
        // A refusal can tell of a verdict as well: that a claim has settled, or that a budget is
        // spent.
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

/// A reply of the wrong kind is a bug of ours.
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
