//! How another key takes over the log: at a start, or while the daemon runs.
//!
//! Either way an entry links the new key to the old by both signatures, and the first head that
//! the new key signs covers that entry. At a start the keys may be in a KMS; while running, only
//! keys in files can follow one another, since a KMS's key is named in the environment.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use evidenceos_driver::{RemoteSigner, mailbox::Mailbox};
use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    command::Command,
    log_key::{KeyLink, SignedKeyLink},
    state::Resident,
};
use evidenceos_keys::Ring;
use evidenceos_store::{Head, Store};
use evidenceos_tlog::{Hash, Tree};
use tokio::{runtime::Handle, time::Instant};

use crate::{
    clock::unix_ms,
    config::{Config, KeySource},
    keys::{InMemory, Keys, LogKeyError, LogSigner},
    metrics::Metrics,
    own_work::{OwnWork, Told},
    start_error::StartError,
};

/// A KMS signs a head at most this often: each costs two calls, which cost money.
const REMOTE_INTERVAL: Duration = Duration::from_millis(500);
/// How long a KMS that fails is left alone, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Links the key that signs from now on to the one before, as an entry after everything that the
/// log holds, and signs the head over it.
pub fn link(
    store: &mut impl Store,
    resident: &mut Resident,
    tree: &mut Tree,
    old: &LogSigner,
    new: &LogSigner,
    runtime: &Handle,
) -> Result<Head, StartError> {
    let statement = KeyLink {
        origin: new.origin().to_owned(),
        old_public_key: old.public_key(),
        new_public_key: new.public_key(),
        tree_size: tree.size(),
        root: tree.root().0,
    };
    let digest = statement.digest();
    let (old_signature, new_signature) = runtime
        .block_on(async {
            let old = old.sign_bytes(digest.as_bytes()).await?;
            Ok((old, new.sign_bytes(digest.as_bytes()).await?))
        })
        .map_err(LogKeyError::Kms)?;
    let command = Command::RotateKey(Box::new(SignedKeyLink {
        link: statement,
        old_signature,
        new_signature,
    }));
    let mut work = OwnWork {
        store,
        resident,
        tree,
        runtime,
    };
    let what = "the link to the log's new key";
    let enacted = work.enact(command, new, what, Told::default())?;
    tracing::info!(old = %old.key_id(), new = %new.key_id(), "another key signs the log");
    Ok(enacted.head)
}

/// Reads the key directory again and hands the writer the key that is to sign, if it is another.
///
/// # Errors
/// Where the directory or a key in it cannot be used; the key that signs stays.
pub fn reload(config: &Config, keys: &Keys, mailbox: &Mailbox) -> Result<(), LogKeyError> {
    let KeySource::Files(asked) = &config.keys else {
        return Ok(());
    };
    let ring = Ring::open(&config.keys_path())?;
    let current = keys.signer();
    let current_id = evidenceos_keys::KeyId(current.key_id().0);
    let chosen = ring.choose(*asked, Some(current_id))?;
    if chosen == current_id {
        return Ok(());
    }
    let next = LogSigner::local(current.origin(), &ring.seed(chosen)?)?;
    if let Some(signer) = InMemory::of(&next) {
        keys.expect(next);
        mailbox.follow(Box::new(signer));
    }
    Ok(())
}

/// Has heads signed by a KMS, one at a time, while the writer goes on.
pub struct RemoteHeads {
    signer: LogSigner,
    mailbox: Mailbox,
    runtime: Handle,
    metrics: Arc<Metrics>,
    failures: Arc<AtomicU32>,
    not_before: Arc<std::sync::Mutex<Instant>>,
}

impl RemoteHeads {
    /// Heads of a log whose key is in a KMS.
    #[must_use]
    pub fn new(
        signer: LogSigner,
        mailbox: Mailbox,
        runtime: Handle,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            signer,
            mailbox,
            runtime,
            metrics,
            failures: Arc::default(),
            not_before: Arc::new(std::sync::Mutex::new(Instant::now())),
        }
    }
}

impl RemoteSigner for RemoteHeads {
    fn start(&self, size: u64, root: Hash) {
        self.metrics.head_pending(unix_ms());
        let (signer, mailbox) = (self.signer.clone(), self.mailbox.clone());
        let failures = Arc::clone(&self.failures);
        let begin = {
            let mut not_before = self
                .not_before
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
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
                    let before = failures.fetch_add(1, Ordering::Relaxed).min(16);
                    let pause = FIRST_PAUSE.saturating_mul(1 << before).min(LONGEST_PAUSE);
                    tokio::time::sleep(pause).await;
                    mailbox.signed(Err(error.to_string()));
                }
            }
        });
    }
}
