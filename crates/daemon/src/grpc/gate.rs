//! The outermost layer of gRPC: nobody's call gets further before it is known whose it is.
//!
//! The path, the headers and the connection's certificate are all that it looks at. What it
//! learns travels as a [`Principal`] in the request's extensions; no handler reads a credential.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use evidenceos_access::strip_identity_headers;
use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use super::{
    rules::{self, Needs},
    status,
};
use crate::auth::{Gate, GrpcPeer, Principal};

/// Puts the gate before a service.
#[derive(Clone)]
pub struct GateLayer(pub Arc<Gate>);

/// A service behind the gate.
#[derive(Clone)]
pub struct Gated<S> {
    gate: Arc<Gate>,
    inner: S,
}

impl<S> Layer<S> for GateLayer {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            gate: Arc::clone(&self.0),
            inner,
        }
    }
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Send,
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
        match admit(&self.gate, &mut request) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}

fn admit(gate: &Gate, request: &mut Request<Body>) -> Result<(), Box<tonic::Status>> {
    strip_identity_headers(request.headers_mut());
    let needs = rules::of(request.uri().path());
    if needs == Needs::Nobody {
        return Ok(());
    }
    let peer = request.extensions().get::<GrpcPeer>().map(|peer| &peer.0);
    let principal: Principal = gate
        .identify(request.uri().path(), request.headers(), peer)
        .map_err(|denied| Box::new(status::unauthenticated(&denied.to_string())))?;
    if !needs.met_by(principal.roles) {
        return Err(Box::new(status::role_required(needs.word())));
    }
    // The token has done its work, and nothing behind the gate can show it.
    request.headers_mut().remove(http::header::AUTHORIZATION);
    request.extensions_mut().insert(principal);
    Ok(())
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
