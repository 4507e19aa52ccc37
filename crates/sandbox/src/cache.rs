//! A bounded cache that builds each value once.
//!
//! Owns single flight and eviction; knows nothing of Wasm. Invariant: at most one thread builds the value of a key at
//! a time, no lock is held across keys while one builds, and the kept values never exceed the bounds (a single value
//! larger than a bound is returned and not kept). Large values are dropped when no caller uses them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// SHA-256 of what the value was built from.
pub(crate) type Key = [u8; 32];

/// Least recently used values go first once either bound is passed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
}

/// Values up to this many bytes stay until others need their space.
const SMALL: usize = 16 << 10;

pub(crate) struct Cache<V> {
    bound: Bound,
    state: Mutex<State<V>>,
}

struct State<V> {
    kept: LruCache<Key, Kept<V>>,
    kept_bytes: usize,
    building: HashMap<Key, Slot<V>>,
    /// The number of sweeps of unused values.
    sweeps: u64,
}

struct Kept<V> {
    value: Arc<V>,
    bytes: usize,
    /// The number of sweeps when the value was last used.
    used: u64,
}

/// Locked by the thread that builds; the others wait on it and then find the value.
type Slot<V> = Arc<Mutex<Option<Arc<V>>>>;

impl<V> Cache<V> {
    pub(crate) fn new(bound: Bound) -> Self {
        let state = State {
            kept: LruCache::unbounded(),
            kept_bytes: 0,
            building: HashMap::new(),
            sweeps: 0,
        };
        Self {
            bound,
            state: Mutex::new(state),
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<V>> {
        lock(&self.state).get(key)
    }

    /// Drops large values that no caller has used since the last call but one.
    pub(crate) fn forget_unused(&self) {
        lock(&self.state).forget_unused();
    }

    /// The value of `key`, built by `build` unless it is kept or being built. `build` also returns the value's size
    /// in bytes. A failure is not kept: the caller that met it gets the error, and the next caller tries again.
    pub(crate) fn get_or_build<E>(
        &self,
        key: Key,
        build: impl FnOnce() -> Result<(V, usize), E>,
    ) -> Result<Arc<V>, E> {
        let slot = {
            let mut state = lock(&self.state);
            if let Some(value) = state.get(&key) {
                return Ok(value);
            }
            state.building.entry(key).or_default().clone()
        };
        let mut built = lock(&slot);
        if let Some(value) = &*built {
            return Ok(value.clone());
        }
        let outcome = build();
        let mut state = lock(&self.state);
        // Remove the slot even after a failure, so that the next caller builds anew.
        state.building.remove(&key);
        let (value, bytes) = outcome?;
        let value = Arc::new(value);
        let used = state.sweeps;
        state.keep(
            key,
            Kept {
                value: value.clone(),
                bytes,
                used,
            },
            self.bound,
        );
        // Callers that wait on the slot find the value here, even if it is too large to be kept.
        *built = Some(value.clone());
        Ok(value)
    }
}

impl<V> State<V> {
    fn get(&mut self, key: &Key) -> Option<Arc<V>> {
        let kept = self.kept.get_mut(key)?;
        kept.used = self.sweeps;
        Some(kept.value.clone())
    }

    fn forget_unused(&mut self) {
        let unused = |kept: &Kept<V>| kept.bytes > SMALL && kept.used < self.sweeps;
        let keys: Vec<Key> = self
            .kept
            .iter()
            .filter(|(_, kept)| unused(kept))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            if let Some(gone) = self.kept.pop(&key) {
                self.kept_bytes -= gone.bytes;
            }
        }
        self.sweeps += 1;
    }

    fn keep(&mut self, key: Key, kept: Kept<V>, bound: Bound) {
        self.kept_bytes += kept.bytes;
        if let Some(replaced) = self.kept.put(key, kept) {
            self.kept_bytes -= replaced.bytes;
        }
        while self.kept.len() > bound.count || self.kept_bytes > bound.bytes {
            let Some((_, evicted)) = self.kept.pop_lru() else {
                return;
            };
            self.kept_bytes -= evicted.bytes;
        }
    }
}

/// A builder that panicked left its slot empty and the state consistent, so poison means nothing
/// here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn put(cache: &Cache<u8>, key: u8, bytes: usize) {
        let _ = cache.get_or_build([key; 32], || Ok::<_, Infallible>((key, bytes)));
    }

    fn kept(cache: &Cache<u8>, keys: &[u8]) -> Vec<u8> {
        keys.iter()
            .filter(|key| cache.get(&[**key; 32]).is_some())
            .copied()
            .collect()
    }

    #[test]
    fn the_least_recently_used_value_goes_first() {
        let cache = Cache::new(Bound {
            count: 2,
            bytes: 100,
        });
        put(&cache, 1, 1);
        put(&cache, 2, 1);
        assert!(cache.get(&[1; 32]).is_some());
        put(&cache, 3, 1);
        assert_eq!(kept(&cache, &[1, 2, 3]), [1, 3]);
    }

    #[test]
    fn bytes_bound_the_cache_and_a_value_beyond_them_is_not_kept() {
        let cache = Cache::new(Bound {
            count: 10,
            bytes: 100,
        });
        put(&cache, 1, 60);
        put(&cache, 2, 60);
        assert_eq!(kept(&cache, &[1, 2]), [2]);
        put(&cache, 3, 101);
        assert_eq!(kept(&cache, &[1, 2, 3]), [] as [u8; 0]);
    }

    #[test]
    fn large_values_go_when_nobody_uses_them_and_small_ones_stay() {
        let cache = Cache::new(Bound {
            count: 10,
            bytes: 1 << 20,
        });
        for (key, bytes) in [(1, SMALL), (2, SMALL + 1), (3, SMALL + 1)] {
            put(&cache, key, bytes);
        }
        cache.forget_unused();
        assert!(cache.get(&[2; 32]).is_some());
        cache.forget_unused();
        assert_eq!(kept(&cache, &[1, 2, 3]), [1, 2]);
        cache.forget_unused();
        cache.forget_unused();
        assert_eq!(kept(&cache, &[1, 2, 3]), [1]);
        assert_eq!(lock(&cache.state).kept_bytes, SMALL);
    }

    #[test]
    fn many_callers_of_one_key_build_once() {
        let cache = Cache::new(Bound {
            count: 2,
            bytes: 100,
        });
        let (builds, start) = (AtomicUsize::new(0), Barrier::new(8));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    let build = || Ok::<_, Infallible>((builds.fetch_add(1, Ordering::SeqCst), 1));
                    assert_eq!(
                        cache.get_or_build([7; 32], build).map(|value| *value),
                        Ok(0)
                    );
                });
            }
        });
        assert_eq!(builds.into_inner(), 1);
    }

    #[test]
    fn a_failure_is_not_kept() {
        let cache = Cache::new(Bound {
            count: 2,
            bytes: 100,
        });
        assert_eq!(
            cache.get_or_build([1; 32], || Err("no")),
            Err::<Arc<u8>, _>("no")
        );
        assert_eq!(
            cache
                .get_or_build([1; 32], || Ok::<_, &str>((5, 1)))
                .map(|value| *value),
            Ok(5)
        );
    }
}
