//! The thread that writes the log's files.

use std::{
    sync::{Arc, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use evidenceos_driver::priority::yield_to_serving;
use evidenceos_store::{
    Done, Rows,
    log::{Integrator, LogView},
};

use super::StartError;

/// The shortest time between two writes of tiles.
const INTEGRATE_EVERY: Duration = Duration::from_millis(500);

/// The thread that follows the shown heads and writes tiles.
pub struct Integrating {
    wake: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Integrating {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(
        mut integrator: Integrator,
        log: Arc<LogView>,
        readers: Arc<dyn Rows>,
        done: Arc<Done>,
    ) -> Result<Self, StartError> {
        let (wake, woken) = mpsc::channel();
        let follow = move || {
            yield_to_serving();
            // The sweep leaves the blobs that this process has put, so uploads may go on beside it.
            match readers.blobs().sweep(|blob| readers.names_blob(blob)) {
                Ok(0) => {}
                Ok(swept) => tracing::info!(swept, "removed blobs of uploads that never committed"),
                Err(error) => tracing::warn!(%error, "cannot sweep blobs"),
            }
            let mut publish = || {
                let head = log.released().head;
                if head.size == integrator.tree().size() {
                    return;
                }
                match integrator.integrate(&head) {
                    Ok(()) => {
                        log.integrated(head.size);
                        done.integrated.store(head.size, Ordering::Relaxed);
                        done.log_files_synced
                            .store(integrator.synced(), Ordering::Relaxed);
                    }
                    // The rows are authoritative and proofs come from memory meanwhile; tiles that
                    // could not be written are tried again with the next entries.
                    Err(error) => tracing::error!(%error, "cannot write log tiles"),
                }
            };
            while woken.recv().is_ok() {
                publish();
                // Commits come in hundreds a second; tiles need not. A stop does not wait for it.
                let until = Instant::now() + INTEGRATE_EVERY;
                let left = || until.saturating_duration_since(Instant::now());
                while woken.recv_timeout(left()).is_ok() {}
                publish();
            }
            publish();
        };
        let thread = thread::Builder::new()
            .name("integrator".to_owned())
            .spawn(follow)
            .map_err(StartError::Thread)?;
        Ok(Self {
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// A sender that tells the thread of another shown head. The thread ends once all senders are
    /// dropped.
    pub fn waker(&self) -> mpsc::Sender<()> {
        match &self.wake {
            Some(wake) => wake.clone(),
            None => unreachable!("it goes with the thread"),
        }
    }

    /// Publishes the rest and ends. The caller must have dropped every waker before. Blocks.
    pub fn end(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported; nothing is left to publish.
            let _ = thread.join();
        }
    }
}

impl Drop for Integrating {
    fn drop(&mut self) {
        self.end();
    }
}
