//! The pace at which requests are read and answers are sent.
//!
//! Owns the rates. Invariants: what one caller sends or fetches beyond them waits in that caller's own windows,
//! and takes no processor time from others; a request that comes in one piece, as most do, is never held up.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use evidenceos_driver::Allowance;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use prost::bytes::Bytes;
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body};

use crate::shares::Whose;

/// The bytes that a caller may pass at once, in one direction: sixteen of the largest modules.
const AT_ONCE: u64 = 64 << 20;
/// The bytes that a caller may pass each second after that, in one direction.
const A_SECOND: u64 = 64 << 20;
/// The start of each body, which is not counted: about one piece. Small calls are bounded by other limits.
const FREE: usize = 16 << 10;

/// The recent traffic of each caller in one direction.
pub struct Pace {
    passed: Mutex<Allowance<Whose>>,
    began: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self::of(AT_ONCE, A_SECOND)
    }
}

impl Pace {
    fn of(at_once: u64, a_second: u64) -> Self {
        Self {
            passed: Mutex::new(Allowance::new(at_once, a_second)),
            began: Instant::now(),
        }
    }

    /// Counts bytes of a caller, and returns how long the next ones must wait.
    fn passed(&self, whose: Whose, bytes: usize) -> Duration {
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut passed = self.passed.lock();
        // A caller that only asks for the wait must not evict another caller's bucket.
        if bytes > 0 {
            passed.take(whose, bytes as u64, now_ms);
        }
        passed.wait(&whose, now_ms)
    }
}

/// The pace of one caller in one direction.
pub struct Paced {
    pace: Arc<Pace>,
    whose: Whose,
}

impl Paced {
    /// The pace of the caller `whose`, as `pace` counts it.
    pub fn new(pace: &Arc<Pace>, whose: Whose) -> Self {
        Self {
            pace: Arc::clone(pace),
            whose,
        }
    }

    /// Waits until the caller's earlier traffic is within its pace, before the next body is handled.
    pub async fn begin(&self) {
        // Other bodies of the same caller may have passed during the pause.
        loop {
            let wait = self.pace.passed(self.whose, 0);
            if wait.is_zero() {
                return;
            }
            sleep(wait).await;
        }
    }

    /// The body at this pace, before any of it has passed.
    pub fn of(self, body: Body) -> AtPace {
        AtPace {
            body,
            paced: self,
            free: FREE,
            pause: None,
        }
    }
}

/// A body that keeps its caller's pace.
pub struct AtPace {
    body: Body,
    paced: Paced,
    free: usize,
    pause: Option<Pin<Box<Sleep>>>,
}

impl AtPace {
    /// Drops what has not passed.
    pub fn give_up(&mut self) {
        self.body = Body::empty();
    }

    /// Ready when the next piece may pass.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }

    /// Counts a piece that passed.
    fn passed(&mut self, bytes: usize) {
        let free = bytes.min(self.free);
        self.free -= free;
        if bytes > free {
            let Paced { pace, whose } = &self.paced;
            let wait = pace.passed(*whose, bytes - free);
            self.pause = (!wait.is_zero()).then(|| Box::pin(sleep(wait)));
        }
    }
}

impl HttpBody for AtPace {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        // Beyond the pace nothing is read: the bytes stay in the client's window and fill no buffer
        // here.
        ready!(self.poll_pause(cx));
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            self.passed(frame.data_ref().map_or(0, Bytes::len));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::Ipv4Addr};

    use super::*;

    fn of(last: u8) -> Whose {
        Whose::Network(Ipv4Addr::new(127, 0, 0, last).into())
    }

    /// A pace that is slow enough for the time of a test not to count.
    fn slow() -> Arc<Pace> {
        Arc::new(Pace::of(100, 1))
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_beyond_its_pace_waits_and_no_other_does() {
        let pace = slow();
        let mut greedy = Paced::new(&pace, of(1)).of(Body::empty());
        for bytes in [FREE - 1, 1, 99] {
            greedy.passed(bytes);
            assert!(greedy.pause.is_none());
        }
        greedy.passed(60);
        let began = tokio::time::Instant::now();
        let other = Paced::new(&pace, of(2));
        other.begin().await;
        let mut other = other.of(Body::empty());
        other.passed(FREE + 50);
        poll_fn(|cx| other.poll_pause(cx)).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        poll_fn(|cx| greedy.poll_pause(cx)).await;
        // 159 of 100 were used: sixty must drain, one a second.
        assert!(began.elapsed() >= Duration::from_secs(59));
        assert!(began.elapsed() <= Duration::from_secs(61));
    }

    #[tokio::test]
    async fn the_next_body_of_the_same_caller_waits_too() {
        let pace = Arc::new(Pace::of(100, 1_000));
        let mut first = Paced::new(&pace, of(1)).of(Body::empty());
        first.passed(FREE + 200);
        drop(first);
        let mut second = Paced::new(&pace, of(1)).of(Body::empty());
        second.passed(FREE);
        assert!(second.pause.is_none(), "its beginning is free");
        let mut begin = Box::pin(second.paced.begin());
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(begin.as_mut().poll(&mut context).is_pending());
        begin.await;
    }
}
