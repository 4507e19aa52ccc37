//! Claims that are never executed give their modules back.
//!
//! Owns when the daemon looks, and at which claims. Every claim before the end of the last look was executed by then, or
//! had no module: so each look begins there, and only the first one after a start reads all claims. A claim of before
//! that is given a module later keeps it until the next start.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use evidenceos_driver::clock::Clock;
use evidenceos_kernel::{
    claim::{Claim, ClaimState},
    command::{ClaimCommand, Reply},
    id::ClaimId,
};

use super::Claims;
use crate::services::Error;

/// The pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);
/// Claims that are read at once, and the pause after them: callers come first.
const AT_ONCE: usize = 250;
const PAUSE: Duration = Duration::from_millis(20);

/// Looks again and again, until the daemon ends. A module is kept for `keep` after its claim was used last, by the clock
/// of decisions: one that jumped counts only once an operator has confirmed it.
pub async fn uncommit_forever(claims: Weak<Claims>, clock: Arc<Clock>, keep: Duration) {
    let mut from = 0;
    while let Some(claims) = claims.upgrade() {
        let before = clock.now_unix_ms().saturating_sub(keep.as_millis() as u64);
        let result = claims.uncommit_unused(&mut from, before).await;
        if let Err(error) = result {
            tracing::warn!(%error, "modules of claims that were not executed are kept for now");
        }
        drop(claims);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Claims {
    /// Takes the modules of unexecuted claims that were last used before a time. Reads claims from the number `from` on,
    /// and leaves the number of the first one that is to be read again there.
    ///
    /// # Errors
    /// If rows cannot be read, or the writer takes no command.
    pub(super) async fn uncommit_unused(
        self: &Arc<Self>,
        from: &mut u64,
        before_unix_ms: u64,
    ) -> Result<(), Error> {
        let mut freed = 0_u64;
        let mut place = *from;
        // The first claim that may still be executed holds the place for the next look.
        let mut held = None;
        loop {
            let claims = self.numbered_from(place).await?;
            let Some(last) = claims.last() else { break };
            place = last.seq + 1;
            let ends = last.created_unix_ms >= before_unix_ms;
            for claim in &claims {
                match Standing::of(claim, before_unix_ms) {
                    Standing::Decided => {}
                    Standing::Open => held = held.or(Some(claim.seq)),
                    Standing::Unused => {
                        self.uncommit(claim.id, before_unix_ms).await?;
                        freed += 1;
                    }
                }
            }
            if ends {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        *from = held.unwrap_or(place);
        if freed > 0 {
            tracing::info!(
                claims = freed,
                "modules of claims that were not executed are removed"
            );
        }
        Ok(())
    }

    /// Claims in the order of their creation. Claims are numbered without gaps.
    async fn numbered_from(self: &Arc<Self>, first: u64) -> Result<Vec<Claim>, Error> {
        let claims = Arc::clone(self);
        let read = move || {
            let readers = &claims.rows.readers;
            let mut found = readers.claims(None, first.saturating_add(AT_ONCE as u64), AT_ONCE)?;
            found.retain(|claim| claim.seq >= first);
            found.reverse();
            Ok(found)
        };
        self.rows.read(read).await
    }

    async fn uncommit(&self, claim: ClaimId, unused_since_unix_ms: u64) -> Result<Reply, Error> {
        let command = ClaimCommand::Uncommit {
            claim,
            unused_since_unix_ms,
        };
        self.writer.command(command.into()).await
    }
}

/// What a look finds of a claim.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// It was executed, or has had no module for long.
    Decided,
    /// It may be executed yet.
    Open,
    /// It has a module, and was not used for long.
    Unused,
}

impl Standing {
    fn of(claim: &Claim, before_unix_ms: u64) -> Self {
        match claim.state {
            ClaimState::Uncommitted | ClaimState::Committed | ClaimState::Sealed
                if claim.last_used_unix_ms() >= before_unix_ms =>
            {
                Self::Open
            }
            ClaimState::Committed | ClaimState::Sealed => Self::Unused,
            _ => Self::Decided,
        }
    }
}

#[cfg(test)]
mod tests {
    use evidenceos_kernel::testing;

    use super::*;

    #[test]
    fn a_module_is_taken_from_old_claims_that_were_not_executed() {
        const OLD: u64 = testing::START_UNIX_MS;
        let standing = |state, before| {
            let claim = Claim {
                state,
                ..testing::claim(0, testing::owner(1))
            };
            Standing::of(&claim, before)
        };
        for state in [ClaimState::Committed, ClaimState::Sealed] {
            assert_eq!(standing(state, OLD), Standing::Open);
            assert_eq!(standing(state, OLD + 1), Standing::Unused);
        }
        assert_eq!(standing(ClaimState::Uncommitted, OLD), Standing::Open);
        assert_eq!(
            standing(ClaimState::Uncommitted, OLD + 1),
            Standing::Decided
        );
        for state in [
            ClaimState::Executing,
            ClaimState::Settled,
            ClaimState::Certified,
            ClaimState::Revoked,
        ] {
            assert_eq!(standing(state, OLD + 1), Standing::Decided);
        }
    }
}
