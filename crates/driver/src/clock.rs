//! The time at which decisions are made.
//!
//! New days mint credit and let null specs expire, so a clock that jumps must not count as time
//! passed. While the daemon runs, the system clock may run ahead of the time that passed by ten
//! minutes; beyond that the clock is *held*: time goes on from its last value, as the monotonic
//! clock counts it, until an operator confirms the new time. At a start the system clock may be 400
//! days after the last command. A clock that goes back blocks nothing: the kernel's time stands
//! still until the clock catches up.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// The most by which the clock may get ahead of the time that passed.
const AHEAD_AT_MOST_MS: u64 = 10 * 60 * 1_000;
/// The longest time that a daemon may have been stopped.
const STOPPED_AT_MOST_MS: u64 = 400 * 24 * 60 * 60 * 1_000;

/// The system clock's time, in Unix milliseconds; 0 before 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// A clock that notices jumps.
#[derive(Debug)]
pub struct Clock {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Trusted time, and the monotonic clock at that moment.
    trusted_unix_ms: u64,
    at: Instant,
    held: bool,
}

/// A clock that waits for an operator's confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The time at which decisions are made, in Unix milliseconds.
    pub trusted_unix_ms: u64,
    /// The system clock's time.
    pub system_unix_ms: u64,
}

impl Clock {
    /// A clock after the last command at `last_unix_ms`; 0 if there was none.
    #[must_use]
    pub fn start(last_unix_ms: u64) -> Self {
        Self::start_at(last_unix_ms, unix_ms(), Instant::now())
    }

    fn start_at(last_unix_ms: u64, system_unix_ms: u64, at: Instant) -> Self {
        let stopped = system_unix_ms.saturating_sub(last_unix_ms);
        let held = last_unix_ms > 0 && stopped > STOPPED_AT_MOST_MS;
        let trusted_unix_ms = if held { last_unix_ms } else { system_unix_ms };
        if held {
            warn(trusted_unix_ms, system_unix_ms);
        }
        Self {
            state: Mutex::new(State {
                trusted_unix_ms,
                at,
                held,
            }),
        }
    }

    /// The time, in Unix milliseconds.
    #[must_use]
    pub fn now_unix_ms(&self) -> u64 {
        self.look(unix_ms(), Instant::now())
    }

    fn look(&self, system_unix_ms: u64, at: Instant) -> u64 {
        let mut state = self.lock();
        let passed = at.saturating_duration_since(state.at);
        let expected = state.trusted_unix_ms.saturating_add(millis(passed));
        if !state.held && system_unix_ms > expected.saturating_add(AHEAD_AT_MOST_MS) {
            state.held = true;
            warn(expected, system_unix_ms);
        }
        state.trusted_unix_ms = if state.held { expected } else { system_unix_ms };
        // Fractions of a millisecond must not get lost at each reading.
        state.at = if state.held {
            state.at + Duration::from_millis(millis(passed))
        } else {
            at
        };
        state.trusted_unix_ms
    }

    /// The held times, if the clock waits for an operator.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        let system_unix_ms = unix_ms();
        let trusted_unix_ms = self.look(system_unix_ms, Instant::now());
        self.lock().held.then_some(Held {
            trusted_unix_ms,
            system_unix_ms,
        })
    }

    /// Accepts the system clock again.
    pub fn confirm(&self) {
        let mut state = self.lock();
        state.held = false;
        state.trusted_unix_ms = unix_ms();
        state.at = Instant::now();
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }
}

fn warn(trusted_unix_ms: u64, system_unix_ms: u64) {
    tracing::error!(
        trusted_unix_ms,
        system_unix_ms,
        "the clock jumped ahead of the time that passed; the server mints and expires nothing by it until an operator confirms it with `evidenceos server confirm-clock`"
    );
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_700_000_000_000;
    const MINUTE: u64 = 60_000;
    const DAY: u64 = 24 * 60 * MINUTE;

    #[test]
    fn a_jump_ahead_is_held_and_time_goes_on() {
        let began = Instant::now();
        let after = |ms| began + Duration::from_millis(ms);
        let clock = Clock::start_at(0, START, began);
        assert_eq!(clock.look(START + 9 * MINUTE, after(0)), START + 9 * MINUTE);
        let now = START + 9 * MINUTE + 1_000;
        assert_eq!(clock.look(START + 3 * DAY, after(1_000)), now);
        assert!(clock.lock().held);
        assert_eq!(clock.look(START + 3 * DAY, after(1_500)), now + 500);
        // Even if the system clock is corrected, the operator must confirm.
        assert_eq!(clock.look(now + 600, after(1_600)), now + 600);
        assert!(clock.lock().held);
        clock.confirm();
        assert!(clock.held().is_none());
    }

    #[test]
    fn a_held_clock_loses_nothing_to_rounding() {
        let began = Instant::now();
        let clock = Clock::start_at(0, START, began);
        let jumped = START + DAY;
        clock.look(jumped, began);
        for step in 1..=2_000u32 {
            clock.look(jumped, began + Duration::from_micros(500) * step);
        }
        assert_eq!(
            clock.look(jumped, began + Duration::from_secs(1)),
            START + 1_000
        );
    }

    #[test]
    fn a_clock_that_goes_back_is_followed() {
        let began = Instant::now();
        let clock = Clock::start_at(0, START, began);
        assert_eq!(clock.look(START - DAY, began), START - DAY);
        assert!(!clock.lock().held);
    }

    #[test]
    fn a_start_long_after_the_last_command_is_held() {
        let began = Instant::now();
        let start = |last| Clock::start_at(last, START, began).lock().held;
        assert!(!start(0));
        assert!(!start(START - 399 * DAY));
        assert!(start(START - 401 * DAY));
        assert!(!start(START + DAY));
    }
}
