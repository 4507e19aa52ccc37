//! Committed rows. They are read beside the threads that serve, and shown once an anchor covers
//! them.

use std::sync::Arc;

use evidenceos_notary::release::Anchored;
use evidenceos_store::Rows;

use super::Error;

/// Rows, and how far they may be shown.
#[derive(Clone)]
pub struct ShownRows {
    pub readers: Arc<dyn Rows>,
    /// How far anchors remember the log: a result is shown once they cover the rows that it follows
    /// from.
    pub anchored: Anchored,
}

impl ShownRows {
    /// Reads rows beside the threads that serve. Returns the result, even a refusal, once an anchor
    /// covers every entry that it may follow from.
    ///
    /// # Errors
    /// The error of `read`, or [`Error::NotShownYet`]: retry later.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let anchored = self.anchored.clone();
        let (read, entries) = blocking(move || {
            let read = read();
            // This comes after the read, which may have seen rows that were committed meanwhile.
            Ok((read, anchored.seen()))
        })
        .await?;
        let covered = self.anchored.cover(entries).await;
        covered.map_err(|_| Error::NotShownYet { changed: false })?;
        read
    }
}

/// Runs work that blocks on files beside the threads that serve.
///
/// # Errors
/// The error of `work`, or [`Error::Fault`] if it panics.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => Err(Error::Fault(panic.to_string())),
    }
}
