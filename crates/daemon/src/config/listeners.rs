//! The addresses to serve, and their protection.

use std::{net::SocketAddr, time::Duration};

use evidenceos_access::{ClientCertificates, Limits, TlsFiles};

use super::{IdentityConfig, PreflightConfig, Settings};

/// The addresses that are listened on, and their TLS.
#[derive(Debug, Clone)]
pub struct Listeners {
    /// gRPC; port 0 takes a free one.
    pub grpc: SocketAddr,
    /// HTTP: health, and the gate for agents.
    pub http: Option<SocketAddr>,
    /// Prometheus metrics; `None` serves none.
    pub metrics: Option<SocketAddr>,
    /// `None` serves plain connections.
    pub tls: Option<TlsConfig>,
    /// Whether HTTP is served under TLS.
    pub http_tls: bool,
    /// Whether metrics are served under TLS.
    pub metrics_tls: bool,
    /// The age at which the daemon asks the client of a connection to connect again.
    pub max_connection_age: Duration,
    /// The time after that in which calls may finish; then the daemon closes the connection.
    pub max_connection_age_grace: Duration,
}

/// The server's certificate, and its requirements for clients.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// Certificate, key and the authorities of clients.
    pub files: TlsFiles,
    /// Whether gRPC clients need a certificate.
    pub clients: ClientCertificates,
    /// Whether to accept client certificates that do not state their purpose (extended key usage).
    pub allow_without_eku: bool,
}

impl Default for Listeners {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            grpc: SocketAddr::from(([127, 0, 0, 1], 50051)),
            http: None,
            metrics: None,
            tls: None,
            http_tls: false,
            metrics_tls: false,
            max_connection_age: limits.max_age,
            max_connection_age_grace: limits.age_grace,
        }
    }
}

impl Listeners {
    pub(super) fn new(settings: &Settings, problems: &mut Vec<String>) -> Self {
        let default = Self::default();
        let tls = tls(settings, problems);
        let http_tls = settings.preflight_tls.unwrap_or(false);
        let metrics_tls = settings.metrics_tls.unwrap_or(false);
        for (asked, flag) in [
            (http_tls, "--preflight-tls"),
            (metrics_tls, "--metrics-tls"),
        ] {
            if asked && settings.tls_cert.is_none() {
                problems.push(format!("{flag} needs --tls-cert and --tls-key"));
            }
        }
        if settings.max_connection_age == Some(0) {
            problems.push(
                "--max-connection-age 0: no call would get through; give at least 1 second"
                    .to_owned(),
            );
        }
        Self {
            grpc: address("--listen", settings.listen.as_deref(), problems).unwrap_or(default.grpc),
            http: or_off(
                "--preflight-listen",
                settings.preflight_listen.as_deref(),
                8081,
                problems,
            ),
            metrics: or_off(
                "--metrics-listen",
                settings.metrics_listen.as_deref(),
                9464,
                problems,
            ),
            tls,
            http_tls,
            metrics_tls,
            max_connection_age: settings
                .max_connection_age
                .map_or(default.max_connection_age, Duration::from_secs),
            max_connection_age_grace: settings
                .max_connection_age_grace
                .map_or(default.max_connection_age_grace, Duration::from_secs),
        }
    }

    /// The limits of connections on each listener.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            max_age: self.max_connection_age,
            age_grace: self.max_connection_age_grace,
            ..Limits::default()
        }
    }

    /// Whether callers on the HTTP port need a certificate. The handshake only asks for one,
    /// because a kubelet has none.
    #[must_use]
    pub fn http_needs_certificate(&self) -> bool {
        let required = |tls: &TlsConfig| tls.clients == ClientCertificates::Required;
        self.http_tls && self.tls.as_ref().is_some_and(required)
    }

    /// Requires protection, or an explicit flag, for listeners beyond loopback. Metrics hold no
    /// secrets and need none.
    pub(super) fn must_be_protected(
        &self,
        settings: &Settings,
        identity: &IdentityConfig,
        preflight: &PreflightConfig,
        problems: &mut Vec<String>,
    ) {
        let lifted = settings.insecure_allow_plaintext.unwrap_or(false);
        if !self.grpc.ip().is_loopback() && !lifted {
            if self.tls.is_none() {
                problems.push(format!(
                    "--listen {}: beyond loopback gRPC needs TLS: give --tls-cert and --tls-key (`evidenceos lab init DIR` makes a set to try), or --insecure-allow-plaintext if the network is protected otherwise",
                    self.grpc
                ));
            }
            if !identity.authenticates() {
                problems.push(format!(
                    "--listen {}: beyond loopback callers must authenticate: give --mtls-client-ca with --require-client-cert, --auth-policy, --auth-token-file or --auth-hmac-key-file, or --insecure-allow-plaintext to let every caller do everything",
                    self.grpc
                ));
            }
        }
        let Some(http) = self.http.filter(|http| !http.ip().is_loopback()) else {
            return;
        };
        if !identity.authenticates() && !preflight.authenticates() {
            problems.push(format!(
                "--preflight-listen {http}: beyond loopback callers must authenticate; give one of the settings for identity, --preflight-require-bearer-token-file, or \"off\""
            ));
        }
        if !self.http_tls && !settings.preflight_allow_plaintext.unwrap_or(false) {
            problems.push(format!(
                "--preflight-listen {http}: beyond loopback HTTP needs --preflight-tls, or --preflight-allow-plaintext if the network is protected otherwise"
            ));
        }
    }
}

fn tls(settings: &Settings, problems: &mut Vec<String>) -> Option<TlsConfig> {
    let require = settings.require_client_cert.unwrap_or(false);
    let without_eku = settings.allow_client_cert_without_eku.unwrap_or(false);
    let ca = settings.mtls_client_ca.clone();
    let crls = settings.mtls_client_crl.clone().unwrap_or_default();
    if !crls.is_empty() && ca.is_none() {
        problems.push(
            "--mtls-client-crl needs --mtls-client-ca: the authorities that issued the lists"
                .to_owned(),
        );
    }
    if require && ca.is_none() {
        problems.push(
            "--require-client-cert needs --mtls-client-ca: the authorities that issue clients' certificates".to_owned(),
        );
    }
    if without_eku && ca.is_none() {
        problems.push("--allow-client-cert-without-eku needs --mtls-client-ca".to_owned());
    }
    match (&settings.tls_cert, &settings.tls_key) {
        (Some(cert), Some(key)) => Some(TlsConfig {
            clients: match (&ca, require) {
                (None, _) => ClientCertificates::None,
                (Some(_), false) => ClientCertificates::Optional,
                (Some(_), true) => ClientCertificates::Required,
            },
            files: TlsFiles {
                cert: cert.clone(),
                key: key.clone(),
                client_ca: ca,
                client_crls: crls,
            },
            allow_without_eku: without_eku,
        }),
        (None, None) => {
            if ca.is_some() || require {
                problems.push(
                    "client certificates are part of TLS: --mtls-client-ca and --require-client-cert need --tls-cert and --tls-key".to_owned(),
                );
            }
            None
        }
        (Some(_), None) => {
            problems.push("--tls-cert needs --tls-key, the key of that certificate".to_owned());
            None
        }
        (None, Some(_)) => {
            problems.push("--tls-key needs --tls-cert, the certificate of that key".to_owned());
            None
        }
    }
}

fn address(flag: &str, text: Option<&str>, problems: &mut Vec<String>) -> Option<SocketAddr> {
    let text = text?;
    match text.parse() {
        Ok(address) => Some(address),
        Err(error) => {
            problems.push(format!(
                "{flag} {text:?}: {error}; it must be an IP address and a port, as 127.0.0.1:50051"
            ));
            None
        }
    }
}

fn or_off(
    flag: &str,
    text: Option<&str>,
    port: u16,
    problems: &mut Vec<String>,
) -> Option<SocketAddr> {
    match text {
        Some("off" | "") => None,
        None => Some(SocketAddr::from(([127, 0, 0, 1], port))),
        text => address(flag, text, problems),
    }
}
