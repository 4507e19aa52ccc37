//! A small HTTP client: one GET at a time, for published logs and for probes.
//!
//! Certificates are verified against authorities that the caller names, or the system's, or those
//! that `SSL_CERT_FILE` and `SSL_CERT_DIR` name instead; these are read again for each GET.
//! Redirects are not followed: a log has one address. Answers are trusted only as far as signatures
//! and hashes prove them.

use std::{error::Error, io, sync::Arc, time::Duration};

use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{
        CertificateDer, InvalidDnsNameError, ServerName,
        pem::{self, PemObject as _},
    },
};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How long one GET may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The authorities that may have issued a server's certificate.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// The authorities of the system.
    System,
    /// The authorities in a PEM file.
    Authorities(&'a [u8]),
}

/// Why there is no answer, or an unusable one.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The server took too long.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Late,
    /// The text is not a URL.
    #[error("no URL: {0}")]
    Url(#[from] http::uri::InvalidUri),
    /// The URL names no server.
    #[error("a URL without a host")]
    NoHost,
    /// The server's name is unknown, or it does not listen.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The name cannot be in a certificate.
    #[error(transparent)]
    Name(#[from] InvalidDnsNameError),
    /// The server's certificate comes from an authority that this machine does not trust.
    #[error(
        "TLS: no certificate authority that is trusted here issued the server's certificate; add its authority to the system's, or name a PEM file with it in SSL_CERT_FILE"
    )]
    UnknownAuthority,
    /// The server and this client found no common TLS parameters.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// This machine trusts no authority.
    #[error(
        "no certificate authority is trusted here: install the system's (ca-certificates), or name a PEM file of them in SSL_CERT_FILE {0:?}"
    )]
    NoAuthorities(Vec<String>),
    /// The file of authorities that the caller named.
    #[error(transparent)]
    Authorities(#[from] pem::Error),
    /// An authority or the TLS settings are invalid.
    #[error(transparent)]
    Settings(#[from] rustls::Error),
    /// The URL cannot be requested.
    #[error(transparent)]
    Request(#[from] http::Error),
    /// The connection broke, or the server does not speak HTTP.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The answer broke off or is too long.
    #[error(transparent)]
    Body(Box<dyn Error + Send + Sync>),
    /// The server refuses the request.
    #[error("the server answered {0}")]
    Status(StatusCode),
}

/// The body of a URL, at most `limit` bytes; `None` if the server says that there is none.
///
/// # Errors
/// [`FetchError`]: why there is no answer, or an unusable one.
pub async fn get(url: &str, limit: usize, trust: Trust<'_>) -> Result<Option<Vec<u8>>, FetchError> {
    in_time(async {
        let uri = parse(url)?;
        match connect(&uri, trust).await? {
            Reached::Plain(tcp) => exchange(TokioIo::new(tcp), &uri, limit).await,
            Reached::Secure(tls) => exchange(TokioIo::new(tls), &uri, limit).await,
        }
    })
    .await
}

/// Connects to a URL's server and, for https, verifies that its certificate is valid for its name.
///
/// # Errors
/// [`FetchError`]: the step that failed.
pub async fn handshake(url: &str, trust: Trust<'_>) -> Result<(), FetchError> {
    in_time(async { connect(&parse(url)?, trust).await.map(drop) }).await
}

async fn in_time<T>(work: impl Future<Output = Result<T, FetchError>>) -> Result<T, FetchError> {
    match tokio::time::timeout(TIMEOUT, work).await {
        Ok(result) => result,
        Err(_) => Err(FetchError::Late),
    }
}

fn parse(url: &str) -> Result<Uri, FetchError> {
    Ok(url.parse()?)
}

/// A connection to a server.
enum Reached {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

async fn connect(uri: &Uri, trust: Trust<'_>) -> Result<Reached, FetchError> {
    let host = uri.host().ok_or(FetchError::NoHost)?;
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    // An IPv6 address is in brackets in a URL, and nowhere else.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((name, port))
        .await
        .map_err(FetchError::Connect)?;
    if !secure {
        return Ok(Reached::Plain(tcp));
    }
    let server = ServerName::try_from(name.to_owned())?;
    let roots = match trust {
        Trust::System => of_the_system()?,
        Trust::Authorities(pem) => of_file(pem)?,
    };
    let tls = TlsConnector::from(Arc::new(trusting(roots)?))
        .connect(server, tcp)
        .await
        .map_err(|error| not_secured(error, trust))?;
    Ok(Reached::Secure(Box::new(tls)))
}

fn not_secured(error: io::Error, trust: Trust<'_>) -> FetchError {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    match (cause, trust) {
        (
            Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)),
            Trust::System,
        ) => FetchError::UnknownAuthority,
        _ => FetchError::Tls(error),
    }
}

fn of_the_system() -> Result<RootCertStore, FetchError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems come with some certificates that cannot be parsed; the others are used.
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(FetchError::NoAuthorities(errors));
    }
    Ok(roots)
}

fn of_file(pem: &[u8]) -> Result<RootCertStore, FetchError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

fn trusting(roots: RootCertStore) -> Result<ClientConfig, FetchError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

async fn exchange<T>(io: T, uri: &Uri, limit: usize) -> Result<Option<Vec<u8>>, FetchError>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    // The task ends with the sender.
    let driven = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(
            header::USER_AGENT,
            concat!("evidenceosd/", env!("CARGO_PKG_VERSION")),
        )
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = match status {
        StatusCode::OK => Limited::new(response.into_body(), limit)
            .collect()
            .await
            .map(|body| Some(body.to_bytes().to_vec()))
            .map_err(FetchError::Body),
        StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
        status => Err(FetchError::Status(status)),
    };
    driven.abort();
    body
}
