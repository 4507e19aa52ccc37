//! Replaces the log's key while the daemon runs, and has a KMS sign heads.
//!
//! An entry links the new key to the old one by both signatures, and the first head that the new
//! key signs covers that entry. At run time only keys in files can be replaced, since the
//! environment names a KMS's key; at a start the keys may be in a KMS.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use evidenceos_driver::{RemoteSigner, clock::unix_ms, mailbox::Mailbox};
use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_keys::Ring;
use evidenceos_tlog::Hash;
use tokio::{runtime::Handle, time::Instant};

use crate::{
    ShownHead,
    config::{KeyConfig, KeySource},
    keys::{InMemory, Keys, LogKeyError, LogSigner},
};

/// The shortest time between a KMS's signatures of heads: each costs two calls, which cost money.
const REMOTE_INTERVAL: Duration = Duration::from_millis(500);
/// The first and the longest pause after a KMS failed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Reads the key directory again, and hands the writer the key that must sign, if it is another.
///
/// # Errors
/// If the directory or a key in it cannot be used; the old key goes on signing.
pub fn reload(config: &KeyConfig, keys: &Keys, mailbox: &Mailbox) -> Result<(), LogKeyError> {
    let KeySource::Files(asked) = &config.source else {
        return Ok(());
    };
    let ring = Ring::open(&config.directory)?;
    let current = keys.signer();
    let current_id = evidenceos_keys::KeyId(current.key_id().0);
    let chosen = ring.choose(*asked, Some(current_id))?;
    if chosen == current_id {
        return Ok(());
    }
    let next = LogSigner::local(current.origin(), &ring.seed(chosen)?)?;
    if let Some(signer) = InMemory::of(&next) {
        // The key is noted before the writer has it, since the writer may report its first head at
        // once.
        keys.expect(next);
        mailbox.follow(Box::new(signer));
    }
    Ok(())
}

/// Has a KMS sign heads, one at a time, while the writer goes on.
pub struct RemoteHeads {
    signer: LogSigner,
    mailbox: Mailbox,
    runtime: Handle,
    shown: Arc<ShownHead>,
    failures: Arc<AtomicU32>,
    not_before: Arc<parking_lot::Mutex<Instant>>,
}

impl RemoteHeads {
    /// Heads of a log whose key is in a KMS.
    #[must_use]
    pub fn new(
        signer: LogSigner,
        mailbox: Mailbox,
        runtime: Handle,
        shown: Arc<ShownHead>,
    ) -> Self {
        Self {
            signer,
            mailbox,
            runtime,
            shown,
            failures: Arc::default(),
            not_before: Arc::new(parking_lot::Mutex::new(Instant::now())),
        }
    }
}

impl RemoteSigner for RemoteHeads {
    fn start(&self, size: u64, root: Hash) {
        self.shown.waits(unix_ms());
        let (signer, mailbox) = (self.signer.clone(), self.mailbox.clone());
        let failures = Arc::clone(&self.failures);
        let begin = {
            let mut not_before = self.not_before.lock();
            let begin = (*not_before).max(Instant::now());
            *not_before = begin + REMOTE_INTERVAL;
            begin
        };
        self.runtime.spawn(async move {
            tokio::time::sleep_until(begin).await;
            match signer.sign_head(size, root).await {
                Ok(head) => {
                    failures.store(0, Ordering::Relaxed);
                    failpoint::pass(Point::LogKmsSignedBeforeCommand);
                    mailbox.signed(Ok(head));
                }
                Err(error) => {
                    // More doublings would overflow, and exceed the longest pause anyway.
                    let before = failures.fetch_add(1, Ordering::Relaxed).min(16);
                    let pause = FIRST_PAUSE.saturating_mul(1 << before).min(LONGEST_PAUSE);
                    // The writer asks again as soon as it learns of the failure, so the pause comes
                    // first.
                    tokio::time::sleep(pause).await;
                    mailbox.signed(Err(error.to_string()));
                }
            }
        });
    }
}
