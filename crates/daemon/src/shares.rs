//! Places that callers share: how many are taken, by each caller and by all.
//!
//! Owns the counting. Invariants: each caller has at most a share of the places, so that the places
//! that one caller holds keep out only that caller; a place is free again when it is dropped; a
//! caller without places is forgotten.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Weak},
};

use evidenceos_kernel::id::OwnerTag;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The holder of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whose {
    /// An authenticated caller.
    Principal(OwnerTag),
    /// Callers without authentication from this address, or from this IPv6 network.
    Network(IpAddr),
}

/// The numbers of places of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Most {
    /// For all callers together.
    pub all: usize,
    /// For each caller, within all.
    pub of_one: usize,
}

/// Why a caller gets no place at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// The caller already has its share, which is this many.
    OfOne(usize),
    /// All places are taken.
    OfAll,
}

/// Places of one kind.
pub struct Shares {
    most: Most,
    all: Arc<Semaphore>,
    /// The share of each caller that has a place or waits for one.
    shares: Mutex<HashMap<Whose, Weak<Share>>>,
}

/// One caller's share of a kind; it is forgotten with the last place.
struct Share {
    of: Arc<Shares>,
    whose: Whose,
    free: Arc<Semaphore>,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut shares = self.of.shares();
        // Another share may have been made since this one's last place was dropped.
        if shares
            .get(&self.whose)
            .is_some_and(|share| share.strong_count() == 0)
        {
            shares.remove(&self.whose);
        }
    }
}

/// A place. It is free again when this is dropped.
pub struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_one: OwnedSemaphorePermit,
    _share: Arc<Share>,
}

impl Shares {
    /// So many places, all free.
    #[must_use]
    pub fn new(most: Most) -> Arc<Self> {
        Arc::new(Self {
            most,
            all: Arc::new(Semaphore::new(most.all)),
            shares: Mutex::default(),
        })
    }

    fn shares(&self) -> parking_lot::MutexGuard<'_, HashMap<Whose, Weak<Share>>> {
        self.shares.lock()
    }

    fn share(self: &Arc<Self>, whose: Whose) -> Arc<Share> {
        let mut shares = self.shares();
        if let Some(share) = shares.get(&whose).and_then(Weak::upgrade) {
            return share;
        }
        let share = Arc::new(Share {
            of: Arc::clone(self),
            whose,
            free: Arc::new(Semaphore::new(self.most.of_one)),
        });
        shares.insert(whose, Arc::downgrade(&share));
        share
    }

    /// A place, if one is free now.
    ///
    /// # Errors
    /// If the caller has its share, or all places are taken.
    pub fn try_place(self: &Arc<Self>, whose: Whose) -> Result<Place, NoPlace> {
        let share = self.share(whose);
        let of_one = Arc::clone(&share.free)
            .try_acquire_owned()
            .map_err(|_| NoPlace::OfOne(self.most.of_one))?;
        let of_all = Arc::clone(&self.all)
            .try_acquire_owned()
            .map_err(|_| NoPlace::OfAll)?;
        Ok(Place {
            _of_all: of_all,
            _of_one: of_one,
            _share: share,
        })
    }

    /// Waits for a place. It waits for the caller's own share first, so that a caller over its
    /// share delays no other.
    pub async fn place(self: Arc<Self>, whose: Whose) -> Place {
        let share = self.share(whose);
        let acquire = |semaphore: &Arc<Semaphore>| {
            let acquired = Arc::clone(semaphore).acquire_owned();
            async {
                acquired
                    .await
                    .unwrap_or_else(|_| unreachable!("no semaphore of this kind is closed"))
            }
        };
        let of_one = acquire(&share.free).await;
        let of_all = acquire(&self.all).await;
        Place {
            _of_all: of_all,
            _of_one: of_one,
            _share: share,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;

    use super::*;

    fn principal(number: u8) -> Whose {
        Whose::Principal(OwnerTag([number; 16]))
    }

    #[test]
    fn one_caller_has_its_share_and_all_have_what_there_is() {
        let shares = Shares::new(Most { all: 3, of_one: 2 });
        let (one, other) = (principal(1), principal(2));
        let first = shares.try_place(one).expect("free");
        let _second = shares.try_place(one).expect("free");
        assert_eq!(shares.try_place(one).err(), Some(NoPlace::OfOne(2)));
        let _third = shares.try_place(other).expect("free");
        assert_eq!(shares.try_place(other).err(), Some(NoPlace::OfAll));
        drop(first);
        shares.try_place(other).map(drop).expect("given back");
    }

    #[test]
    fn a_caller_without_places_is_forgotten() {
        let shares = Shares::new(Most { all: 9, of_one: 2 });
        for number in 0..5 {
            let place = shares.try_place(principal(number)).expect("free");
            assert_eq!(shares.shares().len(), 1);
            drop(place);
            assert_eq!(shares.shares().len(), 0);
        }
    }

    #[test]
    fn who_waits_for_its_own_share_holds_nobody_up() {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let shares = Shares::new(Most { all: 3, of_one: 2 });
            let (greedy, honest) = (principal(1), principal(2));
            let held = [
                Arc::clone(&shares).place(greedy).await,
                Arc::clone(&shares).place(greedy).await,
            ];
            let waiting = tokio::spawn(Arc::clone(&shares).place(greedy));
            tokio::task::yield_now().await;
            drop(Arc::clone(&shares).place(honest).await);
            drop(held);
            waiting.await.map(drop).expect("its turn");
        });
    }
}
