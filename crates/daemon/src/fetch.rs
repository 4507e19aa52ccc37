//! A small HTTP client: one GET at a time, for a log that is published somewhere.
//!
//! Certificates are verified against the system's authorities, or those that `SSL_CERT_FILE` and
//! `SSL_CERT_DIR` name instead; they are read anew for each GET. Redirects are not followed: a log
//! has one address. What comes back is believed only as far as signatures and hashes go.

use std::{io, sync::Arc, time::Duration};

use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use prost::bytes::Bytes;
use rustls::{CertificateError, ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long one GET may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The body of a URL of at most `limit` bytes; none where the server says that there is none.
///
/// # Errors
/// A sentence: why there is no answer, or not this one.
pub async fn get(url: &str, limit: usize) -> Result<Option<Vec<u8>>, String> {
    match tokio::time::timeout(TIMEOUT, get_now(url, limit)).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
    }
}

async fn get_now(url: &str, limit: usize) -> Result<Option<Vec<u8>>, String> {
    let uri: Uri = url.parse().map_err(|error| format!("no URL: {error}"))?;
    let host = uri.host().ok_or("a URL without a host")?;
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    // An IPv6 address stands in brackets in a URL, and nowhere else.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((name, port))
        .await
        .map_err(|error| format!("cannot connect: {error}"))?;
    if !secure {
        return exchange(TokioIo::new(tcp), &uri, limit).await;
    }
    let server = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
    let tls = TlsConnector::from(Arc::new(trusting_the_system()?))
        .connect(server, tcp)
        .await
        .map_err(|error| not_secured(&error))?;
    exchange(TokioIo::new(tls), &uri, limit).await
}

fn not_secured(error: &io::Error) -> String {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    match cause {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => "TLS: none of the certificate authorities that are trusted here issued the server's certificate; add its authority to the system's, or name a PEM file with it in SSL_CERT_FILE".to_owned(),
        _ => format!("TLS: {error}"),
    }
}

fn trusting_the_system() -> Result<ClientConfig, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(format!(
            "no certificate authority is trusted here: install the system's (ca-certificates), or name a PEM file of them in SSL_CERT_FILE {errors:?}"
        ));
    }
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
