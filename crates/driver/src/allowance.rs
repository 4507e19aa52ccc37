//! Rate limits per key, as leaky buckets.
//!
//! Owns the arithmetic of one bucket per key: use fills it, time empties it, and a key with a full bucket must wait.
//! It remembers the latest 4,096 keys; a forgotten key starts with an empty bucket.

use std::{hash::Hash, num::NonZeroUsize, time::Duration};

use lru::LruCache;

/// Buckets remembered at a time.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");

/// A bucket for each key.
#[derive(Debug)]
pub struct Allowance<K: Hash + Eq> {
    most: u64,
    per_second: u64,
    buckets: LruCache<K, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    used: u64,
    at_ms: u64,
}

impl<K: Hash + Eq> Allowance<K> {
    /// Buckets that hold `most` and lose `per_second`, which is not zero, in any unit.
    #[must_use]
    pub fn new(most: u64, per_second: u64) -> Self {
        Self {
            most,
            per_second,
            buckets: LruCache::new(REMEMBERED),
        }
    }

    /// The time until this key's bucket is not full any more; zero if it is not full. `now_ms` may be of any clock,
    /// but always the same one.
    pub fn wait(&mut self, key: &K, now_ms: u64) -> Duration {
        let used = self.used(key, now_ms);
        let beyond = (used + 1).saturating_sub(self.most);
        Duration::from_millis((beyond * 1_000).div_ceil(self.per_second))
    }

    /// Fills this key's bucket further, even beyond its size: the cost of a call may be known only when it is done.
    pub fn take(&mut self, key: K, amount: u64, now_ms: u64) {
        let used = self.used(&key, now_ms).saturating_add(amount);
        // A fuller bucket would change nothing: no caller waits that long.
        let used = used.min(self.most.saturating_mul(16));
        self.buckets.put(
            key,
            Bucket {
                used,
                at_ms: now_ms,
            },
        );
    }

    fn used(&mut self, key: &K, now_ms: u64) -> u64 {
        let Some(bucket) = self.buckets.get(key) else {
            return 0;
        };
        // In 128 bits a long silence times a large rate does not overflow.
        let lost =
            now_ms.saturating_sub(bucket.at_ms) as u128 * u128::from(self.per_second) / 1_000;
        bucket
            .used
            .saturating_sub(u64::try_from(lost).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_bucket_waits_until_time_has_emptied_it_and_only_that_one() {
        let mut allowance = Allowance::new(10, 2);
        assert_eq!(allowance.wait(&'a', 0), Duration::ZERO);
        allowance.take('a', 9, 0);
        assert_eq!(allowance.wait(&'a', 0), Duration::ZERO);
        allowance.take('a', 5, 0);
        // 14 of 10: five must go, two a second.
        assert_eq!(allowance.wait(&'a', 0), Duration::from_millis(2_500));
        assert_eq!(allowance.wait(&'a', 2_499), Duration::from_millis(500));
        assert_eq!(allowance.wait(&'a', 2_500), Duration::ZERO);
        assert_eq!(allowance.wait(&'b', 0), Duration::ZERO);
        // A clock that goes back empties nothing.
        allowance.take('a', 100, 10_000);
        assert!(allowance.wait(&'a', 9_000) >= allowance.wait(&'a', 10_000));
    }
}
