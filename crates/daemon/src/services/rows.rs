//! Committed rows, read beside the threads that serve and shown once an anchor covers them.

use std::sync::Arc;

use evidenceos_notary::release::Anchored;
use evidenceos_store::Rows;

use super::Error;

/// Rows, and how far they may be shown.
#[derive(Clone)]
pub struct ShownRows {
    pub readers: Arc<dyn Rows>,
    /// How far anchors remember the log: what follows from rows is shown once they cover it.
    pub anchored: Anchored,
}

impl ShownRows {
    /// Reads rows beside the threads that serve, and gives what was read, be it a refusal, once an
    /// anchor covers all that it may follow from.
    ///
    /// # Errors
    /// What `read` gives, or [`Error::NotShownYet`].
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let anchored = self.anchored.clone();
        let (read, entries) = blocking(move || {
            let read = read();
            // Afterwards: rows that came in between were read as well.
            Ok((read, anchored.seen()))
        })
        .await?;
        let covered = self.anchored.cover(entries).await;
        covered.map_err(|_| Error::NotShownYet { changed: false })?;
        read
    }
}

/// Runs what blocks on files beside the threads that serve.
///
/// # Errors
/// What `work` gives, or [`Error::Fault`] if it panics.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => Err(Error::Fault(panic.to_string())),
    }
}
