//! `evidenceos server`: what a server is, and what only an operator tells it.

use clap::Subcommand;
use evidenceos_proto as proto;
use serde_json::json;

use crate::{
    client::{Client, Connection},
    error::CliError,
    output::{Output, value},
};

/// The commands about a server.
#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Show what the server is, your principal, and warnings for its operator.
    #[command(after_help = "Example:\n  evidenceos server info")]
    Info,
    /// Accept the system clock after a forward jump. Until then no credit is minted and nothing expires.
    #[command(after_help = "Example:\n  evidenceos server confirm-clock")]
    ConfirmClock,
}

impl ServerCommand {
    /// Runs the command and returns what it prints.
    pub async fn run(self, connection: &Connection) -> Result<Output, CliError> {
        let mut client = Client::connect(connection).await?;
        match self {
            Self::Info => info(&mut client).await,
            Self::ConfirmClock => confirm_clock(&mut client).await,
        }
    }
}

/// The name of a principal after a comma, if it has one.
fn named(name: &str) -> String {
    if name.is_empty() {
        String::new()
    } else {
        format!(", {}", value(name))
    }
}

async fn info(client: &mut Client) -> Result<Output, CliError> {
    let info = client
        .get_server_info(proto::GetServerInfoRequest {})
        .await?;
    let mut lines = vec![
        format!("server     {}, {}", info.daemon_version, info.engine),
        format!("guests     {}", walls(info.guest_walls)),
        format!("log        {}", info.log_origin),
        format!("log key    {}", info.log_vkey),
        format!(
            "you are    {}{} (tag {})",
            info.principal,
            named(&info.principal_name),
            info.owner_tag_hex
        ),
    ];
    let warnings = info.warnings.iter();
    lines.extend(warnings.map(|warning| format!("warning    {}", value(warning))));
    Ok(Output::new(
        json!({
            "daemon_version": info.daemon_version,
            "engine": info.engine,
            "guest_walls": info.guest_walls.map(|walls| json!({
                "seccomp": walls.seccomp,
                "landlock": walls.landlock,
            })),
            "log_origin": info.log_origin,
            "log_vkey": info.log_vkey,
            "principal": info.principal,
            "principal_name": info.principal_name,
            "owner_tag": info.owner_tag_hex,
            "development": info.development,
            "warnings": info.warnings,
        }),
        lines.join("\n"),
    ))
}

/// The walls around guests.
fn walls(walls: Option<proto::GuestWalls>) -> String {
    let Some(walls) = walls else {
        return "run in the server's own process".to_owned();
    };
    let there = [("seccomp", walls.seccomp), ("Landlock", walls.landlock)]
        .map(|(name, holds)| format!("{name} {}", if holds { "on" } else { "off" }));
    format!("run in processes of their own, {}", there.join(", "))
}

async fn confirm_clock(client: &mut Client) -> Result<Output, CliError> {
    let confirmed = client.confirm_clock(proto::ConfirmClockRequest {}).await?;
    let (from, to) = (confirmed.from_unix_ms, confirmed.to_unix_ms);
    let text = if from == to {
        "the clock had not jumped; nothing was changed".to_owned()
    } else {
        format!("the server's time went from {from} to {to} ms since 1970")
    };
    Ok(Output::new(
        json!({ "from_unix_ms": from, "to_unix_ms": to }),
        text,
    ))
}
