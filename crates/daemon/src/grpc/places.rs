//! Places for calls: limits how many calls are under way, read and answered at a time, for each
//! caller and for all.
//!
//! Owns the limits. Invariants: calls without an authenticated caller count by their address and
//! have places of their own; a request that breaks off gives its place back.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prost::bytes::Bytes;
use tokio::time::{Sleep, sleep, timeout};
use tonic::{Status, body::Body};

use super::{
    pace::{AtPace, Pace, Paced},
    rules, status,
};
use crate::shares::{Most, NoPlace, Place, Shares, Whose};

/// Calls of authenticated callers, from their headers to the end of their answers.
const CALLS: Most = Most {
    all: 8_192,
    of_one: 2_048,
};
/// Calls that need no authentication.
const NAMELESS: Most = Most {
    all: 512,
    of_one: 64,
};
/// Calls that last as long as their client wants.
const WATCHES: Most = Most {
    all: 2_048,
    of_one: 256,
};
/// Requests that are being read: up to 256 KiB each.
const READING: Most = Most {
    all: 512,
    of_one: 128,
};
/// Requests that bring modules or labels: up to 8 MiB each, and about 10 MiB for labels.
const LARGE: Most = Most {
    all: 64,
    of_one: 16,
};
/// Answers of many entries or claims, until the client has read them: up to a few MiB each.
const ANSWERS: Most = Most {
    all: 256,
    of_one: 64,
};

/// How long a call waits for a place to be read or answered.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a small request may take from its headers to its end.
const SMALL_REQUEST: Duration = Duration::from_secs(20);
/// How long a large request may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// All places of a server.
#[derive(Clone)]
pub struct Places {
    calls: Arc<Shares>,
    nameless: Arc<Shares>,
    watches: Arc<Shares>,
    reading: Arc<Shares>,
    large: Arc<Shares>,
    answers: Arc<Shares>,
    sent: Arc<Pace>,
    fetched: Arc<Pace>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            calls: Shares::new(CALLS),
            nameless: Shares::new(NAMELESS),
            watches: Shares::new(WATCHES),
            reading: Shares::new(READING),
            large: Shares::new(LARGE),
            answers: Shares::new(ANSWERS),
            sent: Arc::default(),
            fetched: Arc::default(),
        }
    }
}

impl Places {
    /// A place for a call, until its answer has ended.
    ///
    /// # Errors
    /// If all places are taken, or the caller has its share.
    pub fn call(&self, whose: Whose, label: &str) -> Result<Place, Box<Status>> {
        let kind = match whose {
            Whose::Network(_) => &self.nameless,
            Whose::Principal(_) if rules::is_watch(label) => &self.watches,
            Whose::Principal(_) => &self.calls,
        };
        kind.try_place(whose)
            .map_err(|none| Box::new(no_place(none)))
    }

    /// The places that a call still needs before its request is read and its handler begins.
    pub fn work(&self, whose: Whose, label: &str) -> Work {
        let (reading, deadline) = if rules::brings_much(label) {
            (Some(&self.large), Deadline::Silence(SILENCE))
        } else {
            // A call without a name brings only a few bytes, and has few places.
            let named = matches!(whose, Whose::Principal(_));
            let reading = named.then_some(&self.reading);
            (reading, Deadline::Whole(SMALL_REQUEST))
        };
        Work {
            whose,
            reading: reading.cloned(),
            request: Paced::new(&self.sent, whose),
            answers: rules::answers_much(label)
                .then(|| (Arc::clone(&self.answers), Paced::new(&self.fetched, whose))),
            deadline,
            patience: PATIENCE,
        }
    }
}

/// The places that a call needs before its handler begins.
pub struct Work {
    whose: Whose,
    reading: Option<Arc<Shares>>,
    request: Paced,
    answers: Option<(Arc<Shares>, Paced)>,
    deadline: Deadline,
    patience: Duration,
}

impl Work {
    /// Waits for the places. Nothing of the request is read before: only the client's window fills.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn begin(self) -> Result<(Reading, Option<Answering>), Box<Status>> {
        let places = async {
            // The request is read only once its answer has a place too: otherwise it would fill
            // memory while it waits.
            let answer = match self.answers {
                Some((kind, paced)) => {
                    let place = kind.place(self.whose).await;
                    paced.begin().await;
                    Some(Answering { place, paced })
                }
                None => None,
            };
            let reading = match self.reading {
                Some(kind) => Some(kind.place(self.whose).await),
                None => None,
            };
            (answer, reading)
        };
        let (answer, place) = timeout(self.patience, places)
            .await
            .map_err(|_| Box::new(busy("too many requests or answers in transit")))?;
        let reading = Reading {
            place,
            paced: self.request,
            deadline: self.deadline,
        };
        Ok((reading, answer))
    }
}

/// A request that may be read.
pub struct Reading {
    place: Option<Place>,
    paced: Paced,
    deadline: Deadline,
}

impl Reading {
    /// The body. It ends in a status if it does not come in time, and holds its place as long as it
    /// lasts.
    pub fn of(self, body: Body) -> Body {
        let (wait, renews) = match self.deadline {
            Deadline::Whole(wait) => (wait, false),
            Deadline::Silence(wait) => (wait, true),
        };
        Body::new(InTime {
            body: self.paced.of(body),
            place: self.place,
            wait,
            renews,
            until: None,
        })
    }
}

/// The limit of the wait for a request.
#[derive(Debug, Clone, Copy)]
enum Deadline {
    /// The whole request must come within this time after its start.
    Whole(Duration),
    /// The next piece must come within this time after the last one.
    Silence(Duration),
}

struct InTime {
    body: AtPace,
    place: Option<Place>,
    wait: Duration,
    renews: bool,
    until: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for InTime {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                // The handler may work on the last piece for long while nothing more is read.
                if self.body.is_end_stream() {
                    self.place = None;
                } else if self.renews {
                    // The piece ended the silence: the next one gets a new deadline.
                    self.until = None;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(end) => {
                self.place = None;
                Poll::Ready(end)
            }
            Poll::Pending => {
                // Most bodies are there at once and need no timer.
                let wait = self.wait;
                let until = self.until.get_or_insert_with(|| Box::pin(sleep(wait)));
                match until.as_mut().poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => {
                        self.place = None;
                        // What has come is dropped now, not only once the handler has seen the
                        // status.
                        self.body.give_up();
                        Poll::Ready(Some(Err(status::too_slow(wait))))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A large answer: its place, and its pace.
pub struct Answering {
    place: Place,
    paced: Paced,
}

/// An answer at its caller's pace. It holds its places until it has ended or is dropped.
pub fn held(body: Body, place: Place, answering: Option<Answering>) -> Body {
    let (body, places) = match answering {
        None => (body, (place, None)),
        Some(large) => (Body::new(large.paced.of(body)), (place, Some(large.place))),
    };
    // The closure owns the places, so that they are freed when the body is dropped.
    Body::new(body.map_frame(move |frame| {
        let _held = &places;
        frame
    }))
}

fn no_place(none: NoPlace) -> Status {
    match none {
        NoPlace::OfOne(share) => busy(&format!(
            "{share} calls of yours under way, the most that one caller may have"
        )),
        NoPlace::OfAll => busy("as many calls under way as it can hold"),
    }
}

fn busy(has: &str) -> Status {
    status::busy(&format!("the server has {has}; retry later"))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use evidenceos_kernel::id::OwnerTag;
    use http_body_util::{Full, StreamBody};
    use tokio::runtime::{Builder, Runtime};
    use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

    use super::*;

    fn runtime() -> Runtime {
        let mut builder = Builder::new_current_thread();
        builder.enable_time().build().expect("a runtime")
    }

    fn principal(number: u8) -> Whose {
        Whose::Principal(OwnerTag([number; 16]))
    }

    #[test]
    fn a_caller_is_told_whether_the_calls_are_its_own() {
        let own = no_place(NoPlace::OfOne(2));
        assert!(own.message().contains("2 calls of yours"), "{own}");
        let all = no_place(NoPlace::OfAll);
        assert!(!all.message().contains("yours"), "{all}");
    }

    #[test]
    fn a_call_that_gets_no_place_to_be_read_is_refused_in_the_end() {
        runtime().block_on(async {
            let places = Places {
                reading: Shares::new(Most { all: 1, of_one: 1 }),
                ..Places::default()
            };
            let label = "GetClaim";
            let held = places.work(principal(1), label).begin().await;
            let hasty = Work {
                patience: Duration::from_millis(1),
                ..places.work(principal(2), label)
            };
            let refused = hasty.begin().await.err();
            assert_eq!(
                refused.expect("waited").code(),
                tonic::Code::ResourceExhausted
            );
            drop(held);
            assert!(places.work(principal(2), label).begin().await.is_ok());
        });
    }

    #[test]
    fn a_request_that_does_not_come_to_its_end_is_given_up() {
        runtime().block_on(async {
            let (short, long) = (Duration::from_millis(1), Duration::from_secs(3_600));
            for (deadline, comes) in [
                (Deadline::Whole(short), false),
                (Deadline::Silence(short), false),
                (Deadline::Whole(long), true),
                (Deadline::Silence(long), true),
            ] {
                let kind = Shares::new(Most { all: 1, of_one: 1 });
                let reading = Reading {
                    place: Some(Arc::clone(&kind).place(principal(1)).await),
                    paced: Paced::new(&Arc::default(), principal(1)),
                    deadline,
                };
                let (pieces, body) = tokio::sync::mpsc::channel(1);
                let sent = pieces.send(Bytes::from_static(b"piece")).await;
                sent.expect("taken");
                // The sender of a request that comes is dropped here; a silent one stays open and
                // sends nothing more.
                let silent = (!comes).then_some(pieces);
                let stream =
                    ReceiverStream::new(body).map(|piece| Ok::<_, Status>(Frame::data(piece)));
                let collected = reading
                    .of(Body::new(StreamBody::new(stream)))
                    .collect()
                    .await;
                assert_eq!(collected.is_ok(), comes, "{deadline:?}");
                kind.try_place(principal(1)).map(drop).expect("given back");
                drop(silent);
            }
        });
    }

    #[test]
    fn an_answer_holds_its_place_until_nobody_wants_more_of_it() {
        runtime().block_on(async {
            let kind = Shares::new(Most { all: 2, of_one: 2 });
            let pace = Arc::default();
            for large in [false, true] {
                let place = Arc::clone(&kind).place(principal(1)).await;
                let second = Arc::clone(&kind).place(principal(1)).await;
                let answering = large.then(|| Answering {
                    place: second,
                    paced: Paced::new(&pace, principal(1)),
                });
                let mut answer = held(
                    Body::new(Full::new(Bytes::from_static(b"x")).map_err(|never| match never {})),
                    place,
                    answering,
                );
                let others = [kind.try_place(principal(2)), kind.try_place(principal(2))];
                let free = others.iter().filter(|place| place.is_ok()).count();
                assert_eq!(free, usize::from(!large));
                drop(others);
                while poll_fn(|cx| Pin::new(&mut answer).poll_frame(cx))
                    .await
                    .is_some()
                {}
                drop(answer);
                let others = [kind.try_place(principal(2)), kind.try_place(principal(2))];
                assert!(others.iter().all(Result::is_ok));
            }
        });
    }

    #[test]
    fn who_fetches_beyond_its_pace_waits_before_more_is_made() {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let places = Places::default();
            let label = "ListEntries";
            let (_, answering) = places
                .work(principal(1), label)
                .begin()
                .await
                .expect("free");
            let place = places.call(principal(1), label).expect("free");
            let page = Full::new(Bytes::from(vec![0; 200 << 20]));
            let answer = held(
                Body::new(page.map_err(|never| match never {})),
                place,
                answering,
            );
            let whole = answer.collect().await.expect("an answer");
            assert_eq!(whole.to_bytes().len(), 200 << 20);
            // The call took three seconds' worth: the caller's next one waits, or is refused in the
            // end.
            let hasty = |label| Work {
                patience: Duration::from_millis(1),
                ..places.work(principal(1), label)
            };
            let refused = hasty(label).begin().await.err().expect("waited");
            assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
            assert!(hasty("GetClaim").begin().await.is_ok());
            assert!(places.work(principal(2), label).begin().await.is_ok());
        });
    }
}
