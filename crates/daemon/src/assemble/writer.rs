//! The writer, in its own thread.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use arc_swap::ArcSwap;
use evidenceos_custody::{Guests, Pool};
use evidenceos_driver::{
    Alone, Driver, Fatal, Limits, Publisher, Signing,
    clock::Clock,
    mailbox::{self, Inbox, Mailbox},
};
use evidenceos_kernel::in_force::InForce;
use evidenceos_notary::{
    keys::{InMemory, Keys},
    rotation::RemoteHeads,
};
use evidenceos_store::StoreEngine;
use tokio::runtime::Handle;

use super::{StartError, held::Hold};
use crate::{config::guests_a_principal, metrics::Metrics};

/// The parts that the writer is made of.
pub struct Writer<'o> {
    /// The store, its state and its tree.
    pub alone: Alone<Box<dyn StoreEngine>>,
    /// Entries that have a signed head.
    pub signed_size: u64,
    pub keys: &'o Keys,
    pub guests: &'o Arc<Guests>,
    pub runtime: &'o Handle,
    pub metrics: &'o Arc<Metrics>,
    pub clock: &'o Arc<Clock>,
    /// The rules that the log must state when the writer begins.
    pub in_force: Arc<ArcSwap<InForce>>,
    /// The wait for an anchor, if nothing may be signed yet.
    pub hold: Option<Hold>,
}

impl Writer<'_> {
    /// Starts the thread that takes what comes into `inbox`.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(
        self,
        mailbox: &Mailbox,
        inbox: Inbox,
        publisher: Box<dyn Publisher>,
    ) -> Result<DriverThread, StartError> {
        let share = guests_a_principal();
        let pool = Pool::start(self.guests, mailbox, share).map_err(StartError::Thread)?;
        let signer = self.keys.signer();
        let signing = match InMemory::of(&signer) {
            Some(local) => Signing::Inside(Box::new(local)),
            None => Signing::Elsewhere(Box::new(RemoteHeads::new(
                signer,
                mailbox.clone(),
                self.runtime.clone(),
                Arc::clone(self.metrics.shown()),
            ))),
        };
        let Self {
            alone,
            signed_size,
            in_force,
            hold,
            ..
        } = self;
        let clock = Arc::clone(self.clock);
        let (mut store, resident, tree) = alone.into_parts();
        let thread = thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || {
                // While the log is held there is no driver, so that nothing can decide or sign.
                if let Some(hold) = hold
                    && hold
                        .wait(&inbox, &mut *store, publisher.as_ref())?
                        .is_break()
                {
                    return Ok(store);
                }
                let driver = Driver::new(
                    store,
                    resident,
                    tree,
                    signing,
                    signed_size,
                    Box::new(pool),
                    publisher,
                    Limits::default(),
                )
                .under(**in_force.load());
                mailbox::run(driver, &inbox, || clock.now_unix_ms())
            })
            .map_err(StartError::Thread)?;
        Ok(DriverThread {
            mailbox: mailbox.clone(),
            thread: Some(thread),
        })
    }
}

/// The writer's thread, and the mailbox that ends it.
pub struct DriverThread {
    mailbox: Mailbox,
    thread: Option<JoinHandle<Result<Box<dyn StoreEngine>, Fatal>>>,
}

impl DriverThread {
    /// Whether the thread has ended. It ends by itself only if the store failed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the thread to end, and returns the store. Blocks.
    ///
    /// # Errors
    /// If the store failed.
    pub fn join(mut self) -> Result<Box<dyn StoreEngine>, Fatal> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => unreachable!("the writer is waited for once"),
        }
    }
}

impl Drop for DriverThread {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.mailbox.stop(Instant::now());
            // A stop reports how the writer ended; this is a failed start, or a drop.
            let _ = thread.join();
        }
    }
}
