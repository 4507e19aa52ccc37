//! One signature, one request: remembers the request that each valid signature was used for.
//!
//! A signature covers request id, path and timestamp, but not the body, and for an old client not
//! even the path. So an attacker that intercepted a request could send it again with another body.
//! [`Uses`] binds (key, timestamp, request id) to the first request that was made with it, by the
//! digest of its surface, method and body. The same request again is a retry and passes; any other
//! is refused.
//!
//! Invariants: a binding lasts as long as its signature would be accepted; if the clock goes back,
//! a signature whose binding is forgotten stays invalid; the bindings of a key are limited, and
//! beyond the limit requests are refused, never forgotten; with a file, a restart forgets none.

mod journal;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::PathBuf,
};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use self::journal::{Binding, Journal};
use crate::hmac::{Signed, TIMESTAMP_WINDOW_S};

/// Bindings of one key at a time: 873 signed requests a second for 300 s, in about 25 MiB.
const MAX_PER_KEY: usize = 1 << 18;

/// The facts that are remembered of a valid signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The key that signed.
    pub key_id: String,
    /// Digest of the key's id.
    key: [u8; 16],
    /// Digest of what distinguishes this signature from others of the key.
    name: [u8; 16],
    /// The signed timestamp in Unix seconds; `None` for a request without one.
    signed_unix: Option<u64>,
}

/// Why a signature is not valid for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misused {
    /// It was used for another request.
    OtherRequest,
    /// It expired before the request had arrived.
    TooLate,
    /// Its key has made more requests than can be remembered.
    Full,
}

impl Misused {
    /// The text for the caller.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::OtherRequest => {
                "this x-request-id and x-evidenceos-timestamp were used for another request; sign each request with a new one"
            }
            Self::TooLate => {
                "x-evidenceos-timestamp is more than 300 s from this server's clock; sign the request again"
            }
            Self::Full => {
                "this key has signed 262144 requests within 5 minutes, which is as many as the server remembers; retry later, or use several keys"
            }
        }
    }
}

impl std::fmt::Display for Misused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Misused {}

/// The requests that signatures were used for.
#[derive(Debug)]
pub struct Uses {
    held: Mutex<Held>,
    max_per_key: usize,
}

#[derive(Debug, Default)]
struct Held {
    keys: HashMap<[u8; 16], OfKey>,
    journal: Option<Journal>,
}

/// The bindings of one key.
#[derive(Debug, Default)]
struct OfKey {
    /// The request that each name is bound to, and the end of the binding in Unix seconds.
    bindings: HashMap<[u8; 16], ([u8; 16], u64)>,
    /// Names by the last second at which their signature is accepted.
    ends: BTreeMap<u64, Vec<[u8; 16]>>,
    /// The latest of those seconds whose names are forgotten.
    forgotten_until_unix: Option<u64>,
}

impl Signature {
    pub(crate) fn of(signed: &Signed<'_>) -> Self {
        // None of the parts contains a zero byte. Without a timestamp, each process of a client
        // starts its ids anew, so only the path distinguishes them.
        let path = if signed.timestamp.is_some() {
            ""
        } else {
            signed.path
        };
        let name = Sha256::new()
            .chain_update(signed.timestamp.unwrap_or_default())
            .chain_update([0])
            .chain_update(path)
            .chain_update([0])
            .chain_update(signed.request_id)
            .finalize();
        Self {
            key_id: signed.key_id.to_owned(),
            key: short(&Sha256::digest(signed.key_id)),
            name: short(&name),
            signed_unix: signed.timestamp.and_then(|text| text.parse().ok()),
        }
    }
}

impl Default for Uses {
    fn default() -> Self {
        Self::new(MAX_PER_KEY)
    }
}

impl Uses {
    fn new(max_per_key: usize) -> Self {
        Self {
            held: Mutex::default(),
            max_per_key,
        }
    }

    /// Reads the uses that an earlier process wrote to a file, at a time in Unix seconds, and
    /// writes to it from now on. The first use of a signature creates the file.
    ///
    /// # Errors
    /// If the file exists and cannot be read: without it, used signatures could be used again.
    pub fn kept(path: PathBuf, now_unix: u64) -> io::Result<Self> {
        let uses = Self::default();
        let (journal, bindings) = Journal::open(path)?;
        {
            let mut held = uses.held.lock();
            for binding in bindings {
                held.keys.entry(binding.key).or_default().add(&binding);
            }
            for of_key in held.keys.values_mut() {
                of_key.forget_before(now_unix);
            }
            held.journal = Some(journal);
        }
        Ok(uses)
    }

    /// Binds a signature to a request, given by its digest, at a time in Unix seconds. Succeeds if
    /// the signature is not bound to another request.
    ///
    /// # Errors
    /// [`Misused::OtherRequest`]: sign anew. [`Misused::TooLate`]: sign anew, and send faster.
    /// [`Misused::Full`]: wait.
    pub fn bind(
        &self,
        now_unix: u64,
        signature: &Signature,
        request: &[u8; 32],
    ) -> Result<(), Misused> {
        let binding = Binding {
            key: signature.key,
            name: signature.name,
            request: short(request),
            end_unix: signature.signed_unix.unwrap_or(now_unix) + TIMESTAMP_WINDOW_S,
        };
        let mut held = self.held.lock();
        let of_key = held.keys.entry(binding.key).or_default();
        of_key.forget_before(now_unix);
        // The body may arrive slowly and the clock may go back: a forgotten binding must not be
        // made again.
        if binding.end_unix < now_unix || of_key.forgotten_until_unix >= Some(binding.end_unix) {
            return Err(Misused::TooLate);
        }
        match of_key.bindings.get(&binding.name) {
            Some((bound, _)) if *bound == binding.request => return Ok(()),
            Some(_) => return Err(Misused::OtherRequest),
            None if of_key.bindings.len() >= self.max_per_key => return Err(Misused::Full),
            None => of_key.add(&binding),
        }
        held.write_down(&binding);
        Ok(())
    }
}

impl Held {
    /// This comes before any handler acts on the request, so that a restart forgets no request that
    /// was acted upon.
    fn write_down(&mut self, binding: &Binding) {
        let Self { keys, journal } = self;
        let Some(journal) = journal else {
            return;
        };
        let count = keys.values().map(|of_key| of_key.bindings.len()).sum();
        let live = keys.iter().flat_map(|(key, of_key)| of_key.all(*key));
        journal.append(binding, count, live);
    }
}

impl OfKey {
    fn add(&mut self, binding: &Binding) {
        self.bindings
            .insert(binding.name, (binding.request, binding.end_unix));
        self.ends
            .entry(binding.end_unix)
            .or_default()
            .push(binding.name);
    }

    fn all(&self, key: [u8; 16]) -> impl Iterator<Item = Binding> {
        self.bindings
            .iter()
            .map(move |(name, (request, end_unix))| Binding {
                key,
                name: *name,
                request: *request,
                end_unix: *end_unix,
            })
    }

    fn forget_before(&mut self, now_unix: u64) {
        while let Some(first) = self.ends.first_entry()
            && *first.key() < now_unix
        {
            self.forgotten_until_unix = Some(*first.key()).max(self.forgotten_until_unix);
            for name in first.remove() {
                self.bindings.remove(&name);
            }
        }
        // The memory of a burst is freed.
        if self.bindings.len() * 8 < self.bindings.capacity() {
            self.bindings.shrink_to(self.bindings.len() * 2);
        }
    }
}

fn short(digest: &[u8]) -> [u8; 16] {
    let mut name = [0; 16];
    name.copy_from_slice(&digest[..16]);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn signature(key_id: &str, request_id: &str, timestamp: Option<&str>) -> Signature {
        signed_for("/a", key_id, request_id, timestamp)
    }

    fn signed_for(
        path: &str,
        key_id: &str,
        request_id: &str,
        timestamp: Option<&str>,
    ) -> Signature {
        Signature::of(&Signed {
            key_id,
            request_id,
            path,
            timestamp,
        })
    }

    #[test]
    fn a_signature_serves_the_request_that_it_was_first_used_for() {
        let uses = Uses::default();
        let (now, one, other) = (NOW.to_string(), [1; 32], [2; 32]);
        let first = signature("a", "r", Some(&now));
        for (signature, request, expected) in [
            (&first, &one, Ok(())),
            (&first, &one, Ok(())),
            (&first, &other, Err(Misused::OtherRequest)),
            // With a timestamp, the path does not distinguish requests: an old client signs "/" for
            // all.
            (
                &signed_for("/b", "a", "r", Some(&now)),
                &other,
                Err(Misused::OtherRequest),
            ),
            (&signature("b", "r", Some(&now)), &other, Ok(())),
            (&signature("a", "s", Some(&now)), &other, Ok(())),
            (&signature("a", "r", Some("1799999999")), &other, Ok(())),
            // The text is signed: this is another signature for the same second.
            (&signature("a", "r", Some("+1800000000")), &other, Ok(())),
            (&signature("a", "r", None), &other, Ok(())),
            (&signature("a", "r", None), &one, Err(Misused::OtherRequest)),
            (&signed_for("/b", "a", "r", None), &one, Ok(())),
            (&first, &one, Ok(())),
        ] {
            assert_eq!(
                uses.bind(NOW, signature, request),
                expected,
                "{signature:?}"
            );
        }
    }

    #[test]
    fn a_binding_lasts_as_long_as_its_signature() {
        let uses = Uses::default();
        let (one, other) = ([1; 32], [2; 32]);
        let early = signature("a", "r", Some("1799999700"));
        let late = signature("a", "s", Some("1800000300"));
        for signature in [&early, &late] {
            assert_eq!(uses.bind(NOW, signature, &one), Ok(()));
        }
        assert_eq!(uses.bind(NOW, &early, &other), Err(Misused::OtherRequest));
        assert_eq!(uses.bind(NOW + 1, &early, &one), Err(Misused::TooLate));
        // The clock goes back: the binding is gone, and the signature stays invalid.
        assert_eq!(uses.bind(NOW - 10, &early, &other), Err(Misused::TooLate));
        let end = NOW + 2 * TIMESTAMP_WINDOW_S;
        assert_eq!(uses.bind(end, &late, &other), Err(Misused::OtherRequest));
        assert_eq!(uses.bind(end + 1, &late, &other), Err(Misused::TooLate));
        let untimed = signature("a", "u", None);
        assert_eq!(uses.bind(end, &untimed, &one), Ok(()));
        assert_eq!(
            uses.bind(end + 300, &untimed, &other),
            Err(Misused::OtherRequest)
        );
        assert_eq!(uses.bind(end + 302, &untimed, &other), Ok(()));
    }

    #[test]
    fn a_key_that_is_full_is_refused_alone_and_not_for_ever() {
        let uses = Uses::new(2);
        let now = NOW.to_string();
        let [r, s, t] = ["r", "s", "t"].map(|id| signature("a", id, Some(&now)));
        assert_eq!(uses.bind(NOW, &r, &[1; 32]), Ok(()));
        assert_eq!(uses.bind(NOW, &s, &[1; 32]), Ok(()));
        assert_eq!(uses.bind(NOW, &t, &[1; 32]), Err(Misused::Full));
        // An existing binding stays, and passes.
        assert_eq!(uses.bind(NOW, &r, &[1; 32]), Ok(()));
        assert_eq!(uses.bind(NOW, &r, &[2; 32]), Err(Misused::OtherRequest));
        let other_key = signature("b", "t", Some(&now));
        assert_eq!(uses.bind(NOW, &other_key, &[1; 32]), Ok(()));
        let later = NOW + TIMESTAMP_WINDOW_S + 1;
        let text = later.to_string();
        let next = signature("a", "t", Some(&text));
        assert_eq!(uses.bind(later, &next, &[1; 32]), Ok(()));
    }

    #[test]
    fn a_restart_forgets_no_signature_that_is_still_taken() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("used");
        let (now, one, other) = (NOW.to_string(), [1; 32], [2; 32]);
        let used = signature("a", "r", Some(&now));
        let old = signature("b", "r", Some("1799999700"));
        let uses = Uses::kept(path.clone(), NOW).expect("no file");
        for signature in [&used, &old] {
            assert_eq!(uses.bind(NOW, signature, &one), Ok(()));
        }
        drop(uses);
        let uses = Uses::kept(path.clone(), NOW + 1).expect("readable");
        assert_eq!(uses.bind(NOW + 1, &used, &one), Ok(()));
        assert_eq!(
            uses.bind(NOW + 1, &used, &other),
            Err(Misused::OtherRequest)
        );
        // It had expired at the start, whatever the clock says later.
        assert_eq!(uses.bind(NOW, &old, &other), Err(Misused::TooLate));
        let fresh = signature("a", "s", Some(&now));
        assert_eq!(uses.bind(NOW + 1, &fresh, &one), Ok(()));
        drop(uses);
        let uses = Uses::kept(path.clone(), NOW + 2).expect("readable");
        for signature in [&used, &fresh] {
            let bound = uses.bind(NOW + 2, signature, &other);
            assert_eq!(bound, Err(Misused::OtherRequest));
        }
        std::fs::remove_file(&path).expect("ours");
        std::fs::create_dir(&path).expect("a directory");
        assert!(Uses::kept(path, NOW).is_err(), "it would forget in silence");
    }
}
