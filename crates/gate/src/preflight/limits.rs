//! The rates of the gate for agents: calls a second, of each principal and of all.

use std::time::Duration;

use evidenceos_kernel::id::OwnerTag;
use governor::{
    DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
};

use crate::RateLimit;

/// The rates of calls, for each principal and for all.
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

/// The wait that is answered if the rate is zero.
const NEVER: Duration = Duration::from_secs(60);

impl Rates {
    /// The rates `own` of each caller, and `all` of all together.
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
    /// The time to wait for one.
    pub fn take(&self, principal: &OwnerTag) -> Result<(), Duration> {
        // The caller's own rate comes first: a call that it refuses takes nothing from the others.
        match &self.own {
            Limit::Off => {}
            Limit::By(limiter) => limiter
                .check_key(principal)
                .map_err(|not_until| not_until.wait_time_from(self.clock.now()))?,
            Limit::Nothing => return Err(NEVER),
        }
        self.take_of_all()
    }

    /// Takes a place for a call of any caller.
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

    /// Forgets principals that were quiet long enough for it to make no difference. To be called
    /// every second: until then each principal that calls takes memory.
    pub fn tidy(&self) {
        if let Limit::By(limiter) = &self.own {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
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
