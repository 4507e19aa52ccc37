//! Detection of principals that probe: it counts a principal's calls in a sliding window and
//! compares them with thresholds.
//!
//! Probing is asking a lot, asking many different things, or asking about many topics. Each is
//! counted over the last [`Rules::window_ms`] and compared with three thresholds; the strictest
//! level reached counts. An operation (a session of an agent) also has counters that never decrease
//! while it is remembered.
//!
//! Pure: time is passed in, and names come as digests. The cost of an observation does not depend
//! on history: a window keeps no more calls than its highest threshold needs, since further calls
//! change nothing. The numbers of principals and operations are bounded too: the detector forgets
//! the one that was quiet longest first. A caller that can create names at will evades any detector
//! that counts by name; authenticated principals cannot.
//!
//! This is not a security boundary of the log or of leakage: those are metered in bits.

use std::{collections::VecDeque, num::NonZeroUsize};

use lru::LruCache;
use thiserror::Error;

use crate::id::OwnerTag;

/// The largest threshold: it bounds the memory of one principal's window.
pub const MAX_THRESHOLD: u32 = 65_536;

/// The counts in a window from which a level applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Calls, whatever they ask.
    pub total: u32,
    /// Different [`Call::hash`]es among them.
    pub distinct_hashes: u32,
    /// Different topics asked about.
    pub distinct_topics: u32,
}

impl Thresholds {
    /// Thresholds on the number of calls alone: there are never more different calls than calls.
    const fn of_calls(total: u32) -> Self {
        Self {
            total,
            distinct_hashes: total,
            distinct_topics: total,
        }
    }

    fn reached_by(&self, counted: &Counted) -> bool {
        counted.total >= self.total
            || counted.distinct_hashes >= self.distinct_hashes
            || counted.distinct_topics >= self.distinct_topics
    }

    fn each(&self) -> [u32; 3] {
        [self.total, self.distinct_hashes, self.distinct_topics]
    }
}

/// The window and its thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How long a call counts, in milliseconds.
    pub window_ms: u64,
    /// From here on answers are degraded.
    pub throttle: Thresholds,
    /// From here on a person must approve.
    pub escalate: Thresholds,
    /// From here on nothing is answered.
    pub freeze: Thresholds,
    /// Whether an operation that has made as many calls as freeze a window stays frozen.
    pub is_for_life: bool,
    /// A principal with this many denials needs a person's approval; `None`: denials are not
    /// counted.
    pub denials: Option<Denials>,
}

/// The limit on denials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denials {
    /// At least 1, and at most [`MAX_THRESHOLD`].
    pub most: u32,
    /// How long a denial counts, in milliseconds.
    pub window_ms: u64,
}

/// Errors of rules that cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RulesError {
    /// A number is out of its range.
    #[error("thresholds must be from 1 to {MAX_THRESHOLD}, and the window at least 1 ms")]
    Range,
    /// A milder threshold is above a stricter one and could never be reached.
    #[error("throttle must not be above escalate, nor escalate above freeze")]
    Order,
}

impl Rules {
    /// Defaults for tool calls of a working agent: 30 s; 20, 40, 80 calls a second throughout, however different they
    /// are; 20 denials in 5 minutes.
    pub const AGENT_CALLS: Self = Self {
        window_ms: 30_000,
        throttle: Thresholds::of_calls(600),
        escalate: Thresholds::of_calls(1_200),
        freeze: Thresholds::of_calls(2_400),
        is_for_life: false,
        denials: Some(Denials {
            most: 20,
            window_ms: 300_000,
        }),
    };

    /// Defaults for tool calls by the published numbers: 30 s; 20, 40, 80 calls; 10, 20, 40 different ones; 4, 8, 12
    /// tools.
    pub const TOOL_CALLS: Self = Self {
        window_ms: 30_000,
        throttle: Thresholds {
            total: 20,
            distinct_hashes: 10,
            distinct_topics: 4,
        },
        escalate: Thresholds {
            total: 40,
            distinct_hashes: 20,
            distinct_topics: 8,
        },
        freeze: Thresholds {
            total: 80,
            distinct_hashes: 40,
            distinct_topics: 12,
        },
        is_for_life: true,
        denials: None,
    };

    /// Defaults for claims, which always differ from each other: 30 s; 10, 20, 40 claims a second
    /// throughout, each a creation and an execution; 64, 128, 256 holdouts.
    pub const CLAIMS: Self = Self {
        window_ms: 30_000,
        throttle: Thresholds {
            total: 600,
            distinct_hashes: 300,
            distinct_topics: 64,
        },
        escalate: Thresholds {
            total: 1_200,
            distinct_hashes: 600,
            distinct_topics: 128,
        },
        freeze: Thresholds {
            total: 2_400,
            distinct_hashes: 1_200,
            distinct_topics: 256,
        },
        is_for_life: false,
        denials: None,
    };

    /// Checks that the rules can be applied.
    ///
    /// # Errors
    /// [`RulesError`] names the broken rule: a range or an order.
    pub fn check(&self) -> Result<(), RulesError> {
        let levels = [self.throttle, self.escalate, self.freeze];
        let mut all = levels.iter().flat_map(Thresholds::each);
        let denials = self.denials.map_or(1, |denials| denials.most);
        let is_in_range = |n: u32| (1..=MAX_THRESHOLD).contains(&n);
        if self.window_ms == 0 || !all.all(is_in_range) || !is_in_range(denials) {
            return Err(RulesError::Range);
        }
        let rises = |(milder, sharper): (Thresholds, Thresholds)| {
            let pairs = milder.each().into_iter().zip(sharper.each());
            pairs.into_iter().all(|(milder, sharper)| milder <= sharper)
        };
        let steps = [(self.throttle, self.escalate), (self.escalate, self.freeze)];
        if steps.into_iter().all(rises) {
            Ok(())
        } else {
            Err(RulesError::Order)
        }
    }

    fn level(&self, counted: &Counted) -> Level {
        if self.freeze.reached_by(counted) {
            Level::Freeze
        } else if self.escalate.reached_by(counted) {
            Level::Escalate
        } else if self.throttle.reached_by(counted) {
            Level::Throttle
        } else {
            Level::Clean
        }
    }
}

/// The level that a principal's calls reach; a stricter level compares greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Clean,
    /// Answers are degraded.
    Throttle,
    /// A person must approve.
    Escalate,
    Freeze,
}

/// One call. Names are the first bytes of digests: the detector only tells them apart.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub principal: OwnerTag,
    /// The session that it belongs to.
    pub operation: [u8; 16],
    /// The topic of the call.
    pub topic: u64,
    /// Hash of the call's content; equal calls have equal hashes.
    pub hash: u64,
}

/// The detector's finding about a call in its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// The level that the call reached.
    pub level: Level,
    /// Calls of the principal in the window, this one included, up to the freezing total.
    pub calls: u32,
    /// Calls of the operation since the detector remembers it, this one included.
    pub operation_calls: u32,
    /// Different contents of the operation's calls since then, up to the freezing total.
    pub operation_distinct: u32,
}

/// Counts each principal's and each operation's calls, and judges them by its rules.
#[derive(Debug)]
pub struct Detector {
    rules: Rules,
    principals: LruCache<OwnerTag, Window>,
    operations: LruCache<(OwnerTag, [u8; 16]), Operation>,
    now_ms: u64,
}

impl Detector {
    /// A detector that remembers this many principals and operations.
    ///
    /// # Errors
    /// [`RulesError`] if the rules cannot be applied.
    pub fn new(
        rules: Rules,
        principals: NonZeroUsize,
        operations: NonZeroUsize,
    ) -> Result<Self, RulesError> {
        rules.check()?;
        Ok(Self {
            rules,
            principals: LruCache::new(principals),
            operations: LruCache::new(operations),
            now_ms: 0,
        })
    }

    /// The rules that every call is judged by.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Counts a call. `now_ms` is in milliseconds since any fixed moment; time that goes back
    /// counts as standing still.
    pub fn observe(&mut self, now_ms: u64, call: &Call) -> Observed {
        self.now_ms = self.now_ms.max(now_ms);
        let (now_ms, rules) = (self.now_ms, &self.rules);
        let window = self
            .principals
            .get_or_insert_mut(call.principal, Window::default);
        let counted = window.count(now_ms, rules, call);
        let operation = self
            .operations
            .get_or_insert_mut((call.principal, call.operation), Operation::default);
        operation.count(call.hash, rules.freeze.total);
        let mut level = rules.level(&counted);
        if window.is_denied_often(now_ms, rules) {
            level = level.max(Level::Escalate);
        }
        Observed {
            level,
            calls: counted.total,
            operation_calls: operation.calls,
            operation_distinct: operation.asked.len() as u32,
        }
    }
}

impl Detector {
    /// Counts a denied call of a principal; `now_ms` as in [`Detector::observe`].
    pub fn denied(&mut self, now_ms: u64, principal: OwnerTag) {
        self.now_ms = self.now_ms.max(now_ms);
        let Some(denials) = self.rules.denials else {
            return;
        };
        let window = self
            .principals
            .get_or_insert_mut(principal, Window::default);
        window.denied_ms.push_back(self.now_ms);
        // Keep no more than the threshold needs, so that memory stays bounded.
        if window.denied_ms.len() > denials.most as usize {
            window.denied_ms.pop_front();
        }
    }
}

struct Counted {
    total: u32,
    distinct_hashes: u32,
    distinct_topics: u32,
}

/// A principal's calls that still count.
#[derive(Debug, Default)]
struct Window {
    /// Times of the calls, oldest first; the newest, at most the freezing total.
    times_ms: VecDeque<u64>,
    hashes: Latest,
    topics: Latest,
    /// Times of the denials, oldest first; the newest, at most the denial threshold.
    denied_ms: VecDeque<u64>,
}

impl Window {
    fn is_denied_often(&self, now_ms: u64, rules: &Rules) -> bool {
        rules.denials.is_some_and(|denials| {
            let counts = |at_ms: &&u64| now_ms.saturating_sub(**at_ms) < denials.window_ms;
            self.denied_ms.iter().filter(counts).count() >= denials.most as usize
        })
    }

    fn count(&mut self, now_ms: u64, rules: &Rules, call: &Call) -> Counted {
        // Calls at `oldest` or before no longer count.
        let oldest = now_ms.checked_sub(rules.window_ms);
        let gone = |at_ms: u64| oldest.is_some_and(|oldest| at_ms <= oldest);
        while self.times_ms.front().is_some_and(|at| gone(*at)) {
            self.times_ms.pop_front();
        }
        // No more calls than the freezing total are kept: one more changes no level, and memory
        // stays bounded.
        if self.times_ms.len() >= rules.freeze.total as usize {
            self.times_ms.pop_front();
        }
        // Return memory after a burst. The factor of four keeps a steady caller from growing and
        // shrinking in turn.
        if self.times_ms.capacity() > 64 && self.times_ms.len() < self.times_ms.capacity() / 4 {
            self.times_ms.shrink_to(self.times_ms.len() * 2);
        }
        self.times_ms.push_back(now_ms);
        let hashes = self.hashes.see(
            call.hash,
            now_ms,
            rules.freeze.distinct_hashes as usize,
            gone,
        );
        let topics = self.topics.see(
            call.topic,
            now_ms,
            rules.freeze.distinct_topics as usize,
            gone,
        );
        Counted {
            total: self.times_ms.len() as u32,
            distinct_hashes: hashes,
            distinct_topics: topics,
        }
    }
}

/// Different values, each with the time it was last seen, in the order of that time; the newest, at
/// most the freezing total.
#[derive(Debug, Default)]
struct Latest(Vec<(u64, u64)>);

impl Latest {
    fn see(&mut self, value: u64, now_ms: u64, most: usize, gone: impl Fn(u64) -> bool) -> u32 {
        // The list is in order of time, so the expired values are a prefix.
        let expired = self.0.partition_point(|(_, at_ms)| gone(*at_ms));
        let known = self.0.iter().rposition(|(known, _)| *known == value);
        match known {
            Some(at) if at >= expired => {
                // Remove the value before the expired ones: draining first would shift the index
                // `at`.
                self.0.remove(at);
                self.0.drain(..expired);
            }
            Some(_) | None => {
                let room = usize::from(self.0.len() - expired >= most);
                self.0.drain(..expired + room);
            }
        }
        if self.0.capacity() > 64 && self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to(self.0.len() * 2);
        }
        self.0.push((value, now_ms));
        self.0.len() as u32
    }
}

/// The counters of an operation since the detector remembers it.
#[derive(Debug, Default)]
struct Operation {
    calls: u32,
    /// Hashes of its different calls, sorted.
    asked: Vec<u64>,
}

impl Operation {
    fn count(&mut self, hash: u64, most: u32) {
        self.calls = self.calls.saturating_add(1);
        if self.asked.len() < most as usize
            && let Err(at) = self.asked.binary_search(&hash)
        {
            self.asked.insert(at, hash);
        }
    }
}

#[cfg(test)]
mod tests;
