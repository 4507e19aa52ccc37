//! How much the gate for agents bears: calls a second, and what its detector remembers.
//!
//! Both know a principal by its tag and are bounded in how many they know. Time is monotonic.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use evidenceos_kernel::{
    id::OwnerTag,
    probe::{Call, Detector, Observed, Rules, RulesError},
};
use governor::{
    DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
};

use crate::config::RateLimit;

/// Parts of the detector, each with a lock of its own.
const SHARDS: usize = 16;
/// Principals that the detector for tool calls remembers.
const PRINCIPALS: usize = 32_768;
/// Sessions that it remembers.
const OPERATIONS: usize = 65_536;
/// Principals whose claims are remembered.
const CLAIMANTS: usize = 4_096;

/// Calls a second, of each principal and of all.
pub struct Rates {
    own: Limit<DefaultKeyedRateLimiter<OwnerTag>>,
    all: Limit<DefaultDirectRateLimiter>,
    clock: DefaultClock,
}

enum Limit<L> {
    Off,
    By(L),
    Nothing,
}

impl<L> Limit<L> {
    fn new(limit: RateLimit, make: impl FnOnce(Quota) -> L) -> Self {
        match limit {
            RateLimit::Off => Self::Off,
            RateLimit::PerSecond(rps) => Self::By(make(Quota::per_second(rps))),
            RateLimit::Nothing => Self::Nothing,
        }
    }
}

/// How long nothing is let through where nothing ever is.
const NEVER: Duration = Duration::from_secs(60);

impl Rates {
    /// Rates as configured.
    pub fn new(own: RateLimit, all: RateLimit) -> Self {
        Self {
            own: Limit::new(own, RateLimiter::keyed),
            all: Limit::new(all, RateLimiter::direct),
            clock: DefaultClock::default(),
        }
    }

    /// Takes a place for a call of a principal.
    ///
    /// # Errors
    /// How long to wait for one.
    pub fn take(&self, principal: &OwnerTag) -> Result<(), Duration> {
        match &self.own {
            Limit::Off => {}
            Limit::By(limiter) => limiter
                .check_key(principal)
                .map_err(|not_until| not_until.wait_time_from(self.clock.now()))?,
            Limit::Nothing => return Err(NEVER),
        }
        self.take_of_all()
    }

    /// Takes a place for a call of anybody.
    ///
    /// # Errors
    /// As [`Rates::take`].
    pub fn take_of_all(&self) -> Result<(), Duration> {
        match &self.all {
            Limit::Off => Ok(()),
            Limit::By(limiter) => limiter
                .check()
                .map_err(|not_until| not_until.wait_time_from(self.clock.now())),
            Limit::Nothing => Err(NEVER),
        }
    }

    /// Forgets principals that were quiet for so long that it makes no difference. To be called
    /// every second: until then each principal that calls takes a place.
    pub fn tidy(&self) {
        if let Limit::By(limiter) = &self.own {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

/// The detector, in parts, for many threads.
pub struct Probes {
    shards: Vec<Mutex<Detector>>,
    started: Instant,
    rules: Rules,
}

impl Probes {
    /// A detector for tool calls.
    ///
    /// # Errors
    /// Where the rules cannot be applied.
    pub fn of_tool_calls(rules: Rules) -> Result<Self, RulesError> {
        Self::new(rules, PRINCIPALS, OPERATIONS)
    }

    /// A detector for claims.
    ///
    /// # Errors
    /// Where the rules cannot be applied.
    pub fn of_claims(rules: Rules) -> Result<Self, RulesError> {
        Self::new(rules, CLAIMANTS, CLAIMANTS)
    }

    fn new(rules: Rules, principals: usize, operations: usize) -> Result<Self, RulesError> {
        let each = |of: usize| NonZeroUsize::new(of / SHARDS).unwrap_or(NonZeroUsize::MIN);
        let shards = (0..SHARDS)
            .map(|_| Detector::new(rules, each(principals), each(operations)).map(Mutex::new))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            shards,
            started: Instant::now(),
            rules,
        })
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Counts a call, now.
    pub fn observe(&self, call: &Call) -> Observed {
        let now_ms = self.started.elapsed().as_millis() as u64;
        let shard = usize::from(call.principal.0[0]) % SHARDS;
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .observe(now_ms, call)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn per_second(rps: u32) -> RateLimit {
        RateLimit::PerSecond(NonZeroU32::new(rps).expect("not zero"))
    }

    #[test]
    fn each_principal_has_its_own_places_and_all_share_the_others() {
        let rates = Rates::new(per_second(3), per_second(5));
        let taken = |principal: u8| {
            let tag = OwnerTag([principal; 16]);
            (0..4).filter(|_| rates.take(&tag).is_ok()).count()
        };
        assert_eq!((taken(1), taken(2)), (3, 2));
    }

    #[test]
    fn who_is_refused_is_told_how_long_to_wait() {
        let rates = Rates::new(per_second(1), RateLimit::Off);
        let tag = OwnerTag([1; 16]);
        assert_eq!(rates.take(&tag), Ok(()));
        let wait = rates.take(&tag).expect_err("one a second");
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1));
    }

    #[test]
    fn off_refuses_nobody_and_zero_everybody() {
        let tag = OwnerTag([1; 16]);
        assert_eq!(
            Rates::new(RateLimit::Off, RateLimit::Off).take(&tag),
            Ok(())
        );
        let nothing = Rates::new(RateLimit::Nothing, RateLimit::Off);
        assert_eq!(nothing.take(&tag), Err(NEVER));
    }
}
