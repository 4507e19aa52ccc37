//! A server on loopback that answers as a cloud does, and breaks on demand.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, ServerConfig, pki_types::PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// One request, whole.
pub struct Asked {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Asked {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map(|value| value.to_str().expect("ASCII"))
            .unwrap_or_default()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trouble {
    Throttled,
    Expired,
    Disabled,
    /// A plaintext of 31 bytes.
    Short,
    /// A signature, or what the checksum is of, with a bit turned.
    Corrupt,
    /// Without the checksums.
    NoChecksum,
    /// A public key of another kind.
    OtherKind,
    /// Never an answer.
    Silence,
}

/// Troubles to come, one a request; none when they are over.
#[derive(Default)]
pub struct Troubles(Mutex<VecDeque<Trouble>>);

impl Troubles {
    pub fn are(&self, troubles: impl IntoIterator<Item = Trouble>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = troubles.into_iter().collect();
    }

    pub fn next(&self) -> Option<Trouble> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

/// `None` is silence.
pub type Reply = Option<Response>;

pub fn json(status: u16, body: &serde_json::Value) -> Reply {
    let status = StatusCode::from_u16(status).expect("a status");
    Some(
        (
            status,
            [("content-type", "application/json")],
            body.to_string(),
        )
            .into_response(),
    )
}

/// A running server; it stops with the test's runtime.
pub struct Server {
    pub address: SocketAddr,
    /// The certificate authority's PEM file, where it speaks TLS.
    pub ca: Option<TempDir>,
}

impl Server {
    /// Plain http.
    pub async fn start(answer: impl Fn(Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(axum::serve(listener, router(answer)).into_future());
        Self { address, ca: None }
    }

    /// TLS, with a certificate for 127.0.0.1 of an authority that nobody knows.
    pub async fn start_tls(answer: impl Fn(Asked) -> Reply + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let acceptor = TlsAcceptor::from(Arc::new(certified(&directory)));
        tokio::spawn(axum::serve(Tls { listener, acceptor }, router(answer)).into_future());
        Self {
            address,
            ca: Some(directory),
        }
    }

    pub fn url(&self) -> String {
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    pub fn ca_file(&self) -> std::path::PathBuf {
        self.ca.as_ref().expect("TLS").path().join("ca.pem")
    }
}

fn router(answer: impl Fn(Asked) -> Reply + Send + Sync + 'static) -> Router {
    let answer = Arc::new(answer);
    Router::new().fallback(
        move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            let reply = answer(Asked {
                method,
                uri,
                headers,
                body,
            });
            async move {
                match reply {
                    Some(response) => response,
                    None => std::future::pending().await,
                }
            }
        },
    )
}

fn certified(directory: &TempDir) -> ServerConfig {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("a CA");
    std::fs::write(directory.path().join("ca.pem"), ca.pem()).expect("written");
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
    let leaf = leaf.signed_by(&key, &ca).expect("a certificate");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS #8");
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .expect("a configuration")
}

struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            // A client that does not trust us goes away; the next one may.
            let Ok((tcp, peer)) = self.listener.accept().await else {
                continue;
            };
            if let Ok(tls) = self.acceptor.accept(tcp).await {
                return (tls, peer);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The symmetric key of every cloud: AES-256-GCM, bound to `aad`. The nonce is derived, so that
/// nothing here is drawn.
pub fn seal(plaintext: &[u8], aad: &[u8]) -> Vec<u8> {
    let payload = Payload {
        msg: plaintext,
        aad,
    };
    let sealed = Aes256Gcm::new(&[7; 32].into())
        .encrypt(&Nonce::from([1; 12]), payload)
        .expect("sealed");
    [b"wrapped:", sealed.as_slice()].concat()
}

pub fn open(ciphertext: &[u8], aad: &[u8]) -> Option<Vec<u8>> {
    let payload = Payload {
        msg: ciphertext.strip_prefix(b"wrapped:")?,
        aad,
    };
    Aes256Gcm::new(&[7; 32].into())
        .decrypt(&Nonce::from([1; 12]), payload)
        .ok()
}

/// Every part of an error that a reader needs.
pub fn names(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}
