//! A small HTTP client: one GET at a time, for a log that is published somewhere, and for probes.
//!
//! Certificates are verified against authorities that the caller names, or the system's, or those
//! that `SSL_CERT_FILE` and `SSL_CERT_DIR` name instead; these are read anew for each GET.
//! Redirects are not followed: a log has one address. What comes back is believed only as far as
//! signatures and hashes go.

use std::{io, sync::Arc, time::Duration};

use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use prost::bytes::Bytes;
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How long one GET may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Whom to believe that a server is who it says.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// The authorities of the system.
    System,
    /// Those of a PEM file.
    Authorities(&'a [u8]),
}

/// The body of a URL of at most `limit` bytes; none where the server says that there is none.
///
/// # Errors
/// A sentence: why there is no answer, or not this one.
pub async fn get(url: &str, limit: usize, trust: Trust<'_>) -> Result<Option<Vec<u8>>, String> {
    in_time(async {
        let uri = parse(url)?;
        match connect(&uri, trust).await? {
            Reached::Plain(tcp) => exchange(TokioIo::new(tcp), &uri, limit).await,
            Reached::Secure(tls) => exchange(TokioIo::new(tls), &uri, limit).await,
        }
    })
    .await
}

/// Connects to a URL's server and, for https, lets it show a certificate that holds for its name.
///
/// # Errors
/// A sentence: what did not work.
pub async fn handshake(url: &str, trust: Trust<'_>) -> Result<(), String> {
    in_time(async { connect(&parse(url)?, trust).await.map(drop) }).await
}

async fn in_time<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(TIMEOUT, work).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
    }
}

fn parse(url: &str) -> Result<Uri, String> {
    url.parse().map_err(|error| format!("no URL: {error}"))
}

/// A connection to a server.
enum Reached {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

async fn connect(uri: &Uri, trust: Trust<'_>) -> Result<Reached, String> {
    let host = uri.host().ok_or("a URL without a host")?;
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    // An IPv6 address stands in brackets in a URL, and nowhere else.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((name, port))
        .await
        .map_err(|error| format!("cannot connect: {error}"))?;
    if !secure {
        return Ok(Reached::Plain(tcp));
    }
    let server = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
    let roots = match trust {
        Trust::System => of_the_system()?,
        Trust::Authorities(pem) => of_file(pem)?,
    };
    let tls = TlsConnector::from(Arc::new(trusting(roots)?))
        .connect(server, tcp)
        .await
        .map_err(|error| not_secured(&error, trust))?;
    Ok(Reached::Secure(Box::new(tls)))
}

fn not_secured(error: &io::Error, trust: Trust<'_>) -> String {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    match (cause, trust) {
        (Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)), Trust::System) => "TLS: none of the certificate authorities that are trusted here issued the server's certificate; add its authority to the system's, or name a PEM file with it in SSL_CERT_FILE".to_owned(),
        _ => format!("TLS: {error}"),
    }
}

fn of_the_system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems come with certificates that cannot be parsed; the others serve all the same.
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(format!(
            "no certificate authority is trusted here: install the system's (ca-certificates), or name a PEM file of them in SSL_CERT_FILE {errors:?}"
        ));
    }
    Ok(roots)
}

fn of_file(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

fn trusting(roots: RootCertStore) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

async fn exchange<T>(io: T, uri: &Uri, limit: usize) -> Result<Option<Vec<u8>>, String>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let said = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(said)?;
    // It ends with the sender.
    let driven = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(
            header::USER_AGENT,
            concat!("evidenceosd/", env!("CARGO_PKG_VERSION")),
        )
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(said)?;
    let status = response.status();
    let body = match status {
        StatusCode::OK => Limited::new(response.into_body(), limit)
            .collect()
            .await
            .map(|body| Some(body.to_bytes().to_vec()))
            .map_err(|error| error.to_string()),
        StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
        status => Err(format!("the server answered {status}")),
    };
    driven.abort();
    body
}
