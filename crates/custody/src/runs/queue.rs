//! Runs that wait for a thread: fair to principals, with pauses after a host's failure.
//!
//! Owns the order in which runs are executed, which no caller can observe: settlement has its own
//! order. Invariant: principals take turns, and none has more than its share of the threads, so
//! that one principal's runs never keep another's from a thread.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};

/// Jobs of principals `K`, for threads that wait for them.
pub(super) struct Queue<K, J> {
    share: usize,
    state: Mutex<State<K, J>>,
    changed: Condvar,
}

struct State<K, J> {
    /// The principals with waiting jobs, in the order of their turns.
    lines: VecDeque<(K, VecDeque<J>)>,
    /// Jobs that wait for a time.
    later: Vec<(Instant, K, J)>,
    /// How many threads work for each principal.
    working: HashMap<K, usize>,
    closed: bool,
}

impl<K: Copy + Eq + Hash, J> Queue<K, J> {
    /// A queue in which at most `share` threads work for one principal.
    pub(super) fn new(share: usize) -> Self {
        Self {
            share: share.max(1),
            state: Mutex::new(State {
                lines: VecDeque::new(),
                later: Vec::new(),
                working: HashMap::new(),
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Puts a job at the end of its line.
    pub(super) fn put(&self, whose: K, job: J) {
        self.state().put(whose, job);
        self.changed.notify_one();
    }

    /// Puts a job at the end of its line after a pause.
    pub(super) fn put_later(&self, whose: K, job: J, pause: Duration) {
        self.state()
            .later
            .push((Instant::now() + pause, whose, job));
        self.changed.notify_one();
    }

    /// Ends the threads: those that wait now, and those that ask later.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// The next job, for which the calling thread works until it calls [`Self::done`]. `None` if
    /// the queue is closed.
    pub(super) fn take(&self) -> Option<(K, J)> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            let now = Instant::now();
            state.wake(now);
            if let Some(next) = state.take(self.share) {
                return Some(next);
            }
            // No notification comes when a job is due, so the wait itself ends with the earliest
            // one.
            let pause = state.later.iter().map(|(at, ..)| *at - now).min();
            match pause {
                None => self.changed.wait(&mut state),
                Some(pause) => {
                    self.changed.wait_for(&mut state, pause);
                }
            }
        }
    }

    /// Reports that a thread has finished its work for `whose`.
    pub(super) fn done(&self, whose: K) {
        let mut state = self.state();
        if let Some(working) = state.working.get_mut(&whose) {
            *working -= 1;
            if *working == 0 {
                state.working.remove(&whose);
            }
        }
        drop(state);
        // A principal that had used its share may continue.
        self.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State<K, J>> {
        self.state.lock()
    }
}

impl<K: Copy + Eq + Hash, J> State<K, J> {
    fn put(&mut self, whose: K, job: J) {
        match self.lines.iter_mut().find(|(owner, _)| *owner == whose) {
            Some((_, line)) => line.push_back(job),
            None => self.lines.push_back((whose, VecDeque::from([job]))),
        }
    }

    /// Moves jobs that are due into their lines.
    fn wake(&mut self, now: Instant) {
        while let Some(due) = self.later.iter().position(|(at, ..)| *at <= now) {
            let (_, whose, job) = self.later.swap_remove(due);
            self.put(whose, job);
        }
    }

    /// The first job of the first principal below its share, which then moves to the end.
    fn take(&mut self, share: usize) -> Option<(K, J)> {
        let has_room = |whose: &K| self.working.get(whose).copied().unwrap_or_default() < share;
        let at = self.lines.iter().position(|(whose, _)| has_room(whose))?;
        let (whose, mut line) = self.lines.remove(at)?;
        let job = line.pop_front()?;
        if !line.is_empty() {
            self.lines.push_back((whose, line));
        }
        *self.working.entry(whose).or_default() += 1;
        Some((whose, job))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_take_turns_and_each_keeps_its_order() {
        let queue = Queue::new(9);
        for job in 0..4 {
            queue.put('a', job);
        }
        queue.put('b', 10);
        queue.put('b', 11);
        queue.put('c', 20);
        let taken: Vec<_> = (0..7).filter_map(|_| queue.take()).collect();
        let order = [
            ('a', 0),
            ('b', 10),
            ('c', 20),
            ('a', 1),
            ('b', 11),
            ('a', 2),
            ('a', 3),
        ];
        assert_eq!(taken, order);
    }

    #[test]
    fn nobody_has_more_threads_than_its_share() {
        let queue = Queue::new(2);
        for job in 0..5 {
            queue.put('a', job);
        }
        assert_eq!(queue.take(), Some(('a', 0)));
        assert_eq!(queue.take(), Some(('a', 1)));
        queue.put('b', 10);
        assert_eq!(queue.take(), Some(('b', 10)));
        std::thread::scope(|scope| {
            // It waits until a thread of `a` is done.
            let waits = scope.spawn(|| queue.take());
            queue.done('a');
            assert_eq!(waits.join().ok(), Some(Some(('a', 2))));
        });
    }

    #[test]
    fn a_job_put_back_waits_for_its_moment_and_a_closed_queue_lets_go() {
        let queue = Queue::new(1);
        queue.put_later('a', 1, Duration::from_secs(3_600));
        queue.put_later('b', 2, Duration::ZERO);
        assert_eq!(queue.take(), Some(('b', 2)));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| queue.take());
            queue.close();
            assert_eq!(waits.join().ok(), Some(None));
        });
        queue.put('c', 3);
        assert_eq!(queue.take(), None);
    }
}
