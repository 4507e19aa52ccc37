//! The server itself over gRPC.

use std::sync::atomic::{AtomicU64, Ordering};

use evidenceos_proto as wire;
use evidenceos_sandbox::Walls;
use evidenceos_store::Done;
use tonic::Status;

use super::call::Call;
use crate::services::Services;

/// SHA-256 of the published schema, which identifies the wire protocol.
const PROTO_HASH: &str = "9d53726935aa537ab68849be060bc20cef2fe675b57a1ec8fc974aab928a4099";
/// The version of the protocol.
const PROTOCOL: &str = "2.1.0";

/// `Health`: the status is always `SERVING`, since gRPC answers only when the daemon serves.
pub fn health(_: &Services, _: &wire::HealthRequest) -> Result<wire::HealthResponse, Status> {
    Ok(wire::HealthResponse {
        status: "SERVING".to_owned(),
    })
}

/// `GetServerInfo`: versions, the log's name and key, warnings, and the caller's name and tag.
pub async fn info(
    services: &Services,
    call: Call<wire::GetServerInfoRequest>,
) -> Result<wire::GetServerInfoResponse, Status> {
    let server = &services.server;
    let setup = server.setup();
    let principal = call.principal;
    Ok(wire::GetServerInfoResponse {
        protocol_semver: PROTOCOL.to_owned(),
        proto_hash: PROTO_HASH.to_owned(),
        build_git_commit: option_env!("EVIDENCEOS_BUILD_COMMIT")
            .unwrap_or("unknown")
            .to_owned(),
        build_time_utc: option_env!("EVIDENCEOS_BUILD_TIME")
            .unwrap_or("unknown")
            .to_owned(),
        daemon_version: format!("evidenceosd/{}", env!("CARGO_PKG_VERSION")),
        feature_flags: Some(wire::FeatureFlags {
            tls_enabled: setup.tls,
            mtls_enabled: setup.client_certificates,
            ..Default::default()
        }),
        development: setup.development,
        log_origin: server.log_origin(),
        log_vkey: server.log_vkey(),
        engine: server.engine().to_owned(),
        warnings: server.warnings(),
        owner_tag_hex: principal.caller.tag.to_hex(),
        principal_name: services.names.of(&principal.caller.tag),
        principal: principal.name,
        counters: Some(counters(server.done())),
        guest_walls: Some(guest_walls(server.walls())),
    })
}

/// `ConfirmClock`: accepts the system clock after a forward jump.
pub async fn confirm_clock(
    services: &Services,
    call: Call<wire::ConfirmClockRequest>,
) -> Result<wire::ConfirmClockResponse, Status> {
    let (from_unix_ms, to_unix_ms) = services.server.confirm_clock(&call.principal).await?;
    Ok(wire::ConfirmClockResponse {
        from_unix_ms,
        to_unix_ms,
    })
}

fn guest_walls(walls: Walls) -> wire::GuestWalls {
    wire::GuestWalls {
        seccomp: walls.seccomp,
        landlock: walls.landlock,
    }
}

fn counters(done: &Done) -> wire::ServerCounters {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    wire::ServerCounters {
        commits: read(&done.commits),
        store_checkpoints: read(&done.checkpoints),
        rows_read: read(&done.rows_read),
        log_files_synced: read(&done.log_files_synced),
    }
}
