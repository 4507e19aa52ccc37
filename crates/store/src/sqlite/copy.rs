//! Copying a database while batches commit.

use std::{ops::ControlFlow, path::Path, sync::Arc};

use evidenceos_failpoint::{self as failpoint, Point};
use parking_lot::ReentrantMutex;
use rusqlite::{
    Connection,
    backup::{Backup, StepResult},
};

use super::schema;
use crate::{Copier, Pages, StoreError};

/// Pages per step of a copy.
const COPY_PAGES: i32 = 256;

/// Copies a database through the connection that writes it: SQLite then carries writes between two
/// steps over into the copy. From another connection each commit would restart the copy.
pub(super) struct OnlineCopy(pub(super) Arc<ReentrantMutex<Connection>>);

impl Copier for OnlineCopy {
    fn copy(
        self: Box<Self>,
        to: &Path,
        between: &mut dyn FnMut(Pages) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, StoreError> {
        copy_pages(&self.0.lock(), to, between)
    }
}

/// Copies a database page by page into the directory `to`. The copy is not durable: the caller
/// syncs it, so that no commit waits for that here.
pub(super) fn copy_pages(
    from: &Connection,
    to: &Path,
    between: &mut dyn FnMut(Pages) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, StoreError> {
    let mut target = schema::open_copy(to)?;
    let backup = Backup::new(from, &mut target)?;
    loop {
        let step = backup.step(COPY_PAGES)?;
        failpoint::pass(Point::BackupStep);
        let progress = backup.progress();
        if step == StepResult::Done {
            return Ok(ControlFlow::Continue(()));
        }
        let total = u64::try_from(progress.pagecount).unwrap_or(0);
        let left = u64::try_from(progress.remaining).unwrap_or(0);
        let pages = Pages {
            copied: total.saturating_sub(left),
            total,
        };
        if between(pages).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}
