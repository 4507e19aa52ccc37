//! The outermost layer of gRPC: it authenticates the caller before a call gets further.
//!
//! It looks only at the path, the headers and the connection's certificate. The result is a
//! [`Principal`] in the request's extensions; no handler reads a credential. A signature serves one
//! request, and a call goes on only while its caller may make it: `once` and `lasting` follow the
//! bodies.
//!
//! It also bounds what calls may hold: `places` limits the calls of each caller and of all, and a
//! small request has a limit of bytes.

use std::{
    future::Future,
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use evidenceos_access::{
    Callers, Peer, Principal,
    once::{self, Once, Surface},
    strip_identity_headers,
};
use evidenceos_kernel::id::OwnerTag;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use prost::bytes::Bytes;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{
    fields,
    lasting::{self, Standing},
    places::{self, Places},
    rules::{self, Needs},
    status,
};
use crate::shares::Whose;

/// The largest body of a call that brings neither a module nor labels.
const SMALL_BODY: usize = 256 << 10;

/// Puts the gate before a service.
#[derive(Clone)]
pub struct CallersLayer {
    callers: Arc<Callers>,
    places: Places,
}

impl CallersLayer {
    /// A layer for one server.
    #[must_use]
    pub fn new(callers: Arc<Callers>) -> Self {
        let places = Places::default();
        Self { callers, places }
    }
}

/// The owner tag of the caller, in the answer's extensions, for the layer that logs the call.
#[derive(Debug, Clone, Copy)]
pub struct CalledBy(pub OwnerTag);

/// A service behind the gate.
#[derive(Clone)]
pub struct Gated<S> {
    callers: Arc<Callers>,
    places: Places,
    inner: S,
}

impl<S> Layer<S> for CallersLayer {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            callers: Arc::clone(&self.callers),
            places: self.places.clone(),
            inner,
        }
    }
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let label = rules::label(request.uri().path());
        let standing = match admit(&self.callers, label, &mut request) {
            Ok(standing) => standing,
            Err(status) => return Box::pin(std::future::ready(Ok(status.into_http()))),
        };
        let caller = request.extensions().get::<Principal>();
        let called_by = caller.map(|principal| CalledBy(principal.caller.tag));
        if rules::needs_no_body(label) {
            // A health check is answered even if its client never sends the rest of the request.
            request = request.map(|_| empty_message());
        }
        let whose = whose(&request);
        // Only an admitted call takes a place: strangers must not use up what callers share.
        let place = match self.places.call(whose, label) {
            Ok(place) => place,
            Err(full) => return Box::pin(std::future::ready(Ok(full.into_http()))),
        };
        let peer = request.extensions().get::<Peer>();
        let outgoing = Outgoing {
            called_by,
            watcher: peer.filter(|_| rules::is_watch(label)).cloned(),
            in_parts: rules::answers_in_parts(label),
            standing: standing.clone(),
        };
        let request = match standing {
            Some(standing) => request.map(|body| lasting::request(body, standing)),
            None => request,
        };
        let request = if rules::brings_much(label) {
            request
        } else {
            request.map(small)
        };
        let request = match once(&self.callers, request) {
            Ok(request) => request,
            Err(status) => return Box::pin(std::future::ready(Ok(status.into_http()))),
        };
        let work = self.places.work(whose, label);
        // The service that reported itself ready is the one to call; its clone takes its place.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let (reading, answer) = match work.begin().await {
                Ok(begun) => begun,
                Err(status) => return Ok(status.into_http()),
            };
            let request = request.map(|body| fields::few(reading.of(body)));
            let answered = inner.call(request).await?;
            let answered = outgoing.answer(answered);
            Ok(answered.map(|body| places::held(body, place, answer)))
        })
    }
}

/// What an answer needs on its way out.
struct Outgoing {
    called_by: Option<CalledBy>,
    /// The connection of a watch, with which the watch ends.
    watcher: Option<Peer>,
    /// The answer is streamed, and the caller's rights are checked between its messages.
    in_parts: bool,
    standing: Option<Standing>,
}

impl Outgoing {
    fn answer(self, mut answer: Response<Body>) -> Response<Body> {
        if let Some(called_by) = self.called_by {
            answer.extensions_mut().insert(called_by);
        }
        let waits = self.watcher.is_some();
        let answer = match self.standing.filter(|_| self.in_parts) {
            Some(standing) => answer.map(|body| lasting::answer(body, standing, waits)),
            None => answer,
        };
        match self.watcher {
            Some(peer) => answer.map(|body| lasting::watch(body, peer)),
            None => answer,
        }
    }
}

/// A message without fields: not compressed, of no bytes.
fn empty_message() -> Body {
    Body::new(Full::new(Bytes::from_static(&[0; 5])).map_err(|never| match never {}))
}

/// The caller whose share a call takes a place of.
fn whose(request: &Request<Body>) -> Whose {
    match request.extensions().get::<Principal>() {
        Some(principal) => Whose::Principal(principal.caller.tag),
        None => {
            let peer = request.extensions().get::<Peer>();
            let unknown = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            Whose::Network(peer.map_or(unknown, |peer| peer.network()))
        }
    }
}

/// A body that ends in a status if it is larger than any message of its call.
fn small(body: Body) -> Body {
    let limited = Limited::new(body, SMALL_BODY);
    Body::new(
        limited.map_err(|error| match error.downcast::<tonic::Status>() {
            Ok(status) => *status,
            Err(_) => status::invalid("the message", "is larger than any of this call"),
        }),
    )
}

/// Makes sure that the signature of a signed request serves no other request.
fn once(
    callers: &Arc<Callers>,
    request: Request<Body>,
) -> Result<Request<Body>, Box<tonic::Status>> {
    let caller = request.extensions().get::<Principal>();
    let Some(signature) = caller.and_then(Principal::signature).cloned() else {
        return Ok(request);
    };
    let bound_to = once::request(Surface::Grpc, request.method(), request.uri());
    if rules::is_conversation(request.uri().path()) {
        // The answer begins before the request has ended, so its digest would come too late: each
        // such call needs a signature of its own.
        return match callers.bind(&signature, &unlike_any()) {
            Ok(()) => Ok(request),
            Err(misused) => Err(Box::new(status::misused(misused))),
        };
    }
    Ok(request.map(|body| {
        let once = Once::new(Arc::clone(callers), signature, bound_to, body);
        Body::new(once.map_err(|error| match once::misused(error.as_ref()) {
            Some(misused) => status::misused(misused),
            None => match error.downcast::<tonic::Status>() {
                Ok(status) => *status,
                Err(error) => tonic::Status::from_error(error),
            },
        }))
    }))
}

/// A digest that matches no request; each call returns another one.
fn unlike_any() -> [u8; 32] {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    digest
}

/// Admits a call or refuses it. Returns the caller's standing, or `None` if the call needs no
/// caller.
fn admit(
    callers: &Arc<Callers>,
    label: &str,
    request: &mut Request<Body>,
) -> Result<Option<Standing>, Box<tonic::Status>> {
    strip_identity_headers(request.headers_mut());
    let needs = rules::of(request.uri().path());
    if needs == Needs::Nobody {
        if let Some(peer) = request.extensions().get::<Peer>() {
            peer.asks();
        }
        return Ok(None);
    }
    // This comes before the caller is authenticated, so that a change from now on is noticed.
    let changes = callers.changes();
    let peer = request.extensions().get::<Peer>();
    let principal: Principal = callers
        .identify(request.uri().path(), request.headers(), peer)
        .map_err(|denied| Box::new(status::unauthenticated(&denied.to_string())))?;
    if !needs.met_by(principal.roles) {
        return Err(Box::new(status::role_required(
            needs.roles(),
            &principal.name,
        )));
    }
    let lasts = rules::lasts(label);
    let standing = Standing::new(callers, &principal, needs, peer, changes, lasts);
    // The token is no longer needed, and no code behind the gate can leak it.
    request.headers_mut().remove(http::header::AUTHORIZATION);
    request.extensions_mut().insert(principal);
    Ok(Some(standing))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use evidenceos_proto::DESCRIPTORS;
    use prost::Message as _;

    use super::*;

    /// The part of a descriptor set that names services and methods.
    #[derive(prost::Message)]
    struct Files {
        #[prost(message, repeated, tag = "1")]
        files: Vec<File>,
    }

    #[derive(prost::Message)]
    struct File {
        #[prost(message, repeated, tag = "6")]
        services: Vec<Named>,
    }

    #[derive(prost::Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, repeated, tag = "2")]
        methods: Vec<Method>,
    }

    #[derive(prost::Message)]
    struct Method {
        #[prost(string, tag = "1")]
        name: String,
    }

    #[test]
    fn every_call_of_the_schema_has_a_rule_and_every_rule_a_call() {
        let files = Files::decode(DESCRIPTORS).expect("a descriptor set");
        let services = files.files.into_iter().flat_map(|file| file.services);
        let methods: BTreeSet<String> = services
            .filter(|service| service.name == "EvidenceOS")
            .flat_map(|service| service.methods)
            .map(|method| method.name)
            .collect();
        let ruled: BTreeSet<String> = rules::RULES
            .iter()
            .map(|(method, _)| (*method).to_owned())
            .collect();
        assert_eq!(methods, ruled);
        assert_eq!(ruled.len(), rules::RULES.len(), "each once");
    }

    #[test]
    fn what_is_not_known_is_open_to_nobody_without_a_name() {
        assert_eq!(
            rules::of("/evidenceos.v2.EvidenceOS/Later"),
            Needs::Operator
        );
        assert_eq!(rules::of("/evidenceos.v1.EvidenceOS/Health"), Needs::Known);
        assert_eq!(rules::of("/"), Needs::Known);
        assert_eq!(rules::of("/grpc.health.v1.Health/Check"), Needs::Nobody);
    }
}
