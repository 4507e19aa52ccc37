//! The order in which modules are compiled, and how much a caller may have compiled.
//!
//! Owns the order and the allowance. Invariants: at most one module of each caller is compiled at a time,
//! so that another caller's module waits behind at most one of each; and a caller gets a limited time of
//! the compilers a minute, whatever the result. Compiled modules that are kept ready need neither.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use evidenceos_driver::Allowance;
use evidenceos_kernel::id::OwnerTag;
use parking_lot::{Mutex, MutexGuard};

use super::Error;
use crate::shares::{Most, Place, Shares, Whose};

/// The time of the compilers that a caller may use at once, in microseconds.
const AT_ONCE_US: u64 = 60_000_000;
/// The time that a caller gets back each second, in microseconds: half of one processor.
const A_SECOND_US: u64 = 500_000;
/// The most callers whose modules are compiled or wait.
const CALLERS: usize = 256;

/// Turns and allowances of compiling.
pub struct Compiling {
    turns: Arc<Shares>,
    spent: Mutex<Allowance<OwnerTag>>,
    began: Instant,
}

impl Default for Compiling {
    fn default() -> Self {
        Self {
            turns: Shares::new(Most {
                all: CALLERS,
                of_one: 1,
            }),
            spent: Mutex::new(Allowance::new(AT_ONCE_US, A_SECOND_US)),
            began: Instant::now(),
        }
    }
}

impl Compiling {
    /// Waits for the caller's turn, which lasts until the returned place is dropped.
    ///
    /// # Errors
    /// [`Error::Busy`] if the caller has had too much compiled lately: retry later.
    pub async fn turn(&self, caller: OwnerTag) -> Result<Place, Error> {
        let turn = Arc::clone(&self.turns)
            .place(Whose::Principal(caller))
            .await;
        // Only in its turn does the caller's use include the modules before this one.
        let wait = self.spent().wait(&caller, self.now_ms());
        if wait.is_zero() {
            return Ok(turn);
        }
        Err(Error::Busy(format!(
            "your modules took {} s to compile, more than one caller may use at once; retry in {} s, or send modules that are compiled already",
            AT_ONCE_US / 1_000_000,
            wait.as_secs() + 1
        )))
    }

    /// Counts time that the compilers spent for the caller.
    pub fn spent_by(&self, caller: OwnerTag, spent: Duration) {
        let spent = u64::try_from(spent.as_micros()).unwrap_or(u64::MAX);
        self.spent().take(caller, spent, self.now_ms());
    }

    fn spent(&self) -> MutexGuard<'_, Allowance<OwnerTag>> {
        self.spent.lock()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::task::{Context, Waker};

    use super::*;

    fn caller(n: u8) -> OwnerTag {
        OwnerTag([n; 16])
    }

    #[tokio::test]
    async fn a_caller_has_one_module_compiled_at_a_time_and_keeps_no_other_waiting() {
        let compiling = Compiling::default();
        let turn = compiling.turn(caller(1)).await.expect("free");
        let mut second = Box::pin(compiling.turn(caller(1)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(compiling.turn(caller(2)).await.is_ok());
        drop(turn);
        assert!(second.await.is_ok());
    }

    #[tokio::test]
    async fn a_caller_whose_modules_took_much_waits_and_no_other_does() {
        let compiling = Compiling::default();
        compiling.spent_by(caller(1), Duration::from_secs(59));
        assert!(compiling.turn(caller(1)).await.is_ok());
        compiling.spent_by(caller(1), Duration::from_secs(11));
        let refused = compiling.turn(caller(1)).await.err().expect("too much");
        let Error::Busy(refused) = refused else {
            panic!("{refused}");
        };
        let seconds = ["retry in 20 s", "retry in 21 s"];
        assert!(
            seconds.iter().any(|words| refused.contains(words)),
            "{refused}"
        );
        assert!(compiling.turn(caller(2)).await.is_ok());
    }
}
