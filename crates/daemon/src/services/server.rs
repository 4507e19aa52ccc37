//! The server itself: its setup, its warnings, its clock.

use std::sync::Arc;

use evidenceos_access::{ClientCertificates, Principal};
use evidenceos_custody::Guests;
use evidenceos_driver::clock::Clock;
use evidenceos_kernel::command::{Reply, ServerCommand};
use evidenceos_notary::{
    anchors::{self, Anchoring},
    keys::Keys,
};
use evidenceos_sandbox::Walls;
use evidenceos_store::Done;

use super::{Error, Writer, writer::unexpected};
use crate::config::Config;

/// The use cases of the server itself.
pub struct Server {
    setup: Setup,
    writer: Arc<Writer>,
    clock: Arc<Clock>,
    keys: Arc<Keys>,
    guests: Arc<Guests>,
    done: Arc<Done>,
    anchors: Arc<anchors::State>,
}

/// The daemon's setup, as far as callers may know it.
pub struct Setup {
    /// Whether callers need not authenticate.
    pub development: bool,
    /// Whether gRPC is served under TLS.
    pub tls: bool,
    /// Whether client certificates are verified.
    pub client_certificates: bool,
    /// Lasting warnings for the operator.
    warnings: Vec<String>,
}

impl Setup {
    /// The setup of a configuration and of the guests' walls.
    #[must_use]
    pub fn new(config: &Config, walls: Walls) -> Self {
        let tls = config.listeners.tls.as_ref();
        let mut warnings = Vec::new();
        if tls.is_none() && !config.listeners.grpc.ip().is_loopback() {
            warnings.push("gRPC is served beyond loopback without TLS (--insecure-allow-plaintext): anyone on the network path can read tokens and answers".to_owned());
        }
        if config.anchors == Anchoring::Off {
            warnings.push(
                "no anchor (--anchor none): a data directory restored from an older state will not be noticed"
                    .to_owned(),
            );
        }
        if !walls.seccomp {
            warnings.push("guests run without the kernel's filter of system calls (seccomp), which is not available here: limits, Wasm and their process's rights still confine them".to_owned());
        }
        Self {
            development: config.is_development(),
            tls: tls.is_some(),
            client_certificates: tls.is_some_and(|tls| tls.clients != ClientCertificates::None),
            warnings,
        }
    }
}

impl Server {
    /// The server over a daemon's parts.
    #[must_use]
    pub fn new(
        setup: Setup,
        writer: Arc<Writer>,
        clock: Arc<Clock>,
        keys: Arc<Keys>,
        guests: Arc<Guests>,
        done: Arc<Done>,
        anchors: Arc<anchors::State>,
    ) -> Self {
        Self {
            setup,
            writer,
            clock,
            keys,
            guests,
            done,
            anchors,
        }
    }

    /// The server's setup.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The name of its log.
    #[must_use]
    pub fn log_origin(&self) -> String {
        self.keys.origin()
    }

    /// The key that signs its log, as a C2SP verifier key.
    #[must_use]
    pub fn log_vkey(&self) -> String {
        self.keys.signer().verifier().to_string()
    }

    /// The engine that runs guests; their results depend on it.
    #[must_use]
    pub fn engine(&self) -> &str {
        self.guests.sandbox.engine_id()
    }

    /// The walls around guests.
    #[must_use]
    pub fn walls(&self) -> Walls {
        self.guests.sandbox.walls()
    }

    /// The store's counts since the start.
    #[must_use]
    pub fn done(&self) -> &Done {
        &self.done
    }

    /// Whether the server is read-only until an anchor answers or an operator acts.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.anchors.held_because().is_some()
    }

    /// The present warnings for an operator.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let held = self.anchors.held_because();
        let mut warnings = Vec::new();
        if self.setup.development {
            let what = if held.is_some() { "read" } else { "do" };
            warnings.push(format!(
                "development server: no credentials are checked, every caller without a bearer token may {what} everything"
            ));
        }
        warnings.extend(self.setup.warnings.iter().cloned());
        warnings.extend(held);
        if let Some(held) = self.clock.held() {
            warnings.push(format!(
                "the clock jumped from {} to {} ms since 1970; the server decides as if it had not, until an operator confirms the jump: evidenceos server confirm-clock",
                held.trusted_unix_ms, held.system_unix_ms
            ));
        }
        warnings
    }

    /// Accepts the system clock after a forward jump. Returns the time that decisions used before,
    /// and the one that they use now, in Unix milliseconds.
    ///
    /// # Errors
    /// If the caller is not an operator.
    pub async fn confirm_clock(&self, principal: &Principal) -> Result<(u64, u64), Error> {
        principal.caller.must_operate()?;
        // There is nothing to confirm: a repeated call must not be recorded twice.
        let Some(held) = self.clock.held() else {
            let now = self.clock.now_unix_ms();
            return Ok((now, now));
        };
        let (from_unix_ms, to_unix_ms) = (held.trusted_unix_ms, held.system_unix_ms);
        let command = ServerCommand::ConfirmClock {
            from_unix_ms,
            to_unix_ms,
        }
        .into();
        match self.writer.call(principal, None, command, None).await? {
            Reply::Done => {
                // The clock advances only once the operator's confirmation is durable.
                self.clock.confirm();
                Ok((from_unix_ms, to_unix_ms))
            }
            other => Err(unexpected(&other)),
        }
    }
}
