//! `evidenceos probe`: checks whether a server can be reached and trusted from this machine.
//!
//! For operators after an installation, and for `helm test`. Each port is checked separately, so
//! that a closed one is named. Without a client certificate it checks what it can: that the
//! server's certificate is valid for the server's name.

use std::time::{Duration, Instant};

use clap::Args;
use evidenceos_notary::fetch;
use serde_json::json;

use crate::{
    client::{Client, Connection},
    error::CliError,
    output::{Output, progress, table},
};

/// The longest page that a port may return.
const MAX_BODY: usize = 4 << 20;
/// The pause between two attempts while waiting.
const PAUSE: Duration = Duration::from_millis(250);

/// The ports to check beside gRPC, which is `--endpoint`.
#[derive(Debug, Args)]
#[command(
    after_help = "Checks the connection to --endpoint, its certificate and name; with --tls-cert and --tls-key or a token also a call.\n\
    Exit status: 0 all checks pass, 1 one fails.\n\n\
    Examples:\n  \
    evidenceos probe\n  \
    evidenceos --profile ops/clients/operator/profile.toml probe --preflight https://localhost:8081 --metrics http://localhost:9464\n  \
    evidenceos --endpoint https://evidenceos.lab.svc:50051 --tls-ca ca.crt probe --wait 60"
)]
pub struct ProbeArgs {
    /// Address of HTTP; its /readyz must report that the daemon serves
    #[arg(long, value_name = "URL")]
    preflight: Option<String>,
    /// Address of metrics
    #[arg(long, value_name = "URL")]
    metrics: Option<String>,
    /// Repeat until all checks pass, for at most this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u64,
}

/// One check.
struct Check {
    name: &'static str,
    at: String,
    /// What works, or what does not.
    found: Result<String, String>,
}

impl ProbeArgs {
    /// Checks until all is well or the wait is over.
    pub async fn run(self, connection: &Connection) -> Result<Output, CliError> {
        let deadline = Instant::now() + Duration::from_secs(self.wait);
        let mut waits = false;
        loop {
            let checks = self.look(connection).await;
            if checks.iter().all(|check| check.found.is_ok()) || Instant::now() >= deadline {
                return Ok(shown(&checks));
            }
            if !waits {
                progress(&format!(
                    "a check fails; retrying for up to {} s",
                    self.wait
                ));
                waits = true;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn look(&self, connection: &Connection) -> Vec<Check> {
        let mut checks = vec![Check {
            name: "gRPC",
            at: connection.endpoint.clone(),
            found: grpc(connection).await,
        }];
        for (name, at, path) in [
            ("preflight", &self.preflight, "readyz"),
            ("metrics", &self.metrics, "metrics"),
        ] {
            if let Some(at) = at {
                checks.push(Check {
                    name,
                    at: at.clone(),
                    found: http(connection, at, path).await,
                });
            }
        }
        checks
    }
}

async fn grpc(connection: &Connection) -> Result<String, String> {
    // This check is separate, so that a bad certificate is distinguished from a refused call.
    fetch::handshake(&connection.endpoint, connection.trust())
        .await
        .map_err(|error| error.to_string())?;
    let reached = if connection.is_secure() {
        "TLS, certificate and name are valid"
    } else {
        "connected, without TLS"
    };
    // Under TLS, a server may close the connection of a client without a certificate.
    if connection.is_secure() && !connection.has_credentials() {
        return Ok(format!(
            "{reached}; no call was made, because no credentials were given"
        ));
    }
    let mut client = Client::connect(connection)
        .await
        .map_err(|error| error.to_string())?;
    let info = client.get_server_info(evidenceos_proto::GetServerInfoRequest {});
    match info.await {
        Ok(info) => Ok(format!(
            "{reached}; {} serves log {}",
            info.daemon_version, info.log_origin
        )),
        // The server answers, and a caller without credentials cannot learn more.
        Err(error) if error.is_unauthenticated() && !connection.has_credentials() => {
            Ok(format!("{reached}; it answers, and calls need credentials"))
        }
        Err(error) => Err(error.to_string()),
    }
}

async fn http(connection: &Connection, at: &str, path: &str) -> Result<String, String> {
    let url = format!("{}/{path}", at.trim_end_matches('/'));
    let page = fetch::get(&url, MAX_BODY, connection.trust()).await;
    match page.map_err(|error| error.to_string())? {
        Some(_) => Ok(format!("/{path} answers")),
        None => Err(format!("there is no /{path}; is it another port's URL?")),
    }
}

fn shown(checks: &[Check]) -> Output {
    let is_well = checks.iter().all(|check| check.found.is_ok());
    let rows: Vec<_> = checks
        .iter()
        .map(|check| {
            let (word, text) = match &check.found {
                Ok(text) => ("ok", text),
                Err(text) => ("FAILED", text),
            };
            [check.name, word, check.at.as_str(), text.as_str()]
                .map(str::to_owned)
                .to_vec()
        })
        .collect();
    let json: Vec<_> = checks
        .iter()
        .map(|check| {
            let text = check.found.as_ref().unwrap_or_else(|error| error);
            json!({ "what": check.name, "at": check.at, "ok": check.found.is_ok(), "found": text })
        })
        .collect();
    let mut output = Output::new(
        json!({ "ok": is_well, "checks": json }),
        table(&["what", "", "at", "found"], &rows),
    );
    output.exit_code = u8::from(!is_well);
    output
}
