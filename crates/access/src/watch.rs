//! When TLS files are read again: soon after their directory changes, and at intervals in any case,
//! because not every file system reports changes.
//!
//! Directories are watched, not files: Kubernetes replaces a mounted secret by renaming the link
//! `..data`, and other tools rename a new file over the old.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::Notify,
    task::{JoinHandle, spawn_blocking},
    time::{sleep, timeout},
};

use crate::{Reloaded, Tls};

/// How often the files are read without an event.
pub const WATCH_EVERY: Duration = Duration::from_secs(30);

/// How long no event may come before the files are read: several files are written one after the
/// other.
const QUIET: Duration = Duration::from_millis(200);

impl Tls {
    /// Follows the files until `stop` resolves. An invalid set is logged and counted once, until
    /// the files change again; the old set stays in use.
    pub fn watch(
        self: &Arc<Self>,
        every: Duration,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let tls = Arc::clone(self);
        let changed = Arc::new(Notify::new());
        let watcher = watcher(tls.directories(), &changed);
        tokio::spawn(async move {
            // The watcher must not be dropped: it would stop watching.
            let _watcher = watcher;
            let mut stop = pin!(stop);
            loop {
                // The files may have changed between the start, which read them, and the first
                // event.
                check(&tls).await;
                tokio::select! {
                    () = &mut stop => return,
                    () = settled(&changed) => {}
                    () = sleep(every) => {}
                }
            }
        })
    }

    fn directories(&self) -> BTreeSet<PathBuf> {
        [Some(&self.files.cert), Some(&self.files.key)]
            .into_iter()
            .chain([self.files.client_ca.as_ref()])
            .flatten()
            .chain(&self.files.client_crls)
            .filter_map(|path| path.parent())
            .map(|parent| match parent {
                relative if relative.as_os_str().is_empty() => Path::new(".").to_owned(),
                parent => parent.to_owned(),
            })
            .collect()
    }
}

/// Reads the files once, and logs the result.
async fn check(tls: &Arc<Tls>) {
    let reading = Arc::clone(tls);
    let outcome = spawn_blocking(move || reading.reload_if_new()).await;
    match outcome {
        Ok(Some(Ok(Reloaded::Replaced))) => {
            let not_after_unix = tls.not_after_unix();
            tracing::info!(not_after_unix, "TLS files replaced");
        }
        Ok(Some(Ok(Reloaded::Unchanged)) | None) => {}
        Ok(Some(Err(error))) => {
            tracing::warn!(%error, "the new TLS files are refused; the server keeps the old ones");
        }
        // Only when the runtime ends, or by a bug in reading.
        Err(error) => {
            tracing::warn!(%error, "cannot read the TLS files; the server keeps the old ones")
        }
    }
}

/// Resolves after an event, once there was none for a while.
async fn settled(changed: &Notify) {
    changed.notified().await;
    while timeout(QUIET, changed.notified()).await.is_ok() {}
}

/// If this fails, the files are still read at intervals.
fn watcher(directories: BTreeSet<PathBuf>, changed: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let tell = Arc::clone(changed);
    let watching = notify::recommended_watcher(move |event: notify::Result<Event>| {
        if event.is_ok_and(|event| is_change(event.kind)) {
            tell.notify_one();
        }
    })
    .and_then(|mut watcher| {
        for directory in &directories {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    });
    watching
        .inspect_err(|error| {
            tracing::warn!(%error, "cannot watch the directories of the TLS files; the server reads them from time to time");
        })
        .ok()
}

/// Reading is an event too: the daemon's own reads must not cause another one.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}
