//! Metrics of connections and certificates, by listener.

use std::{fmt, sync::Arc};

use evidenceos_access::{Counts, Stats, Tls};
use evidenceos_telemetry::write::family;
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::DescriptorEncoder,
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// A port that is listened on.
pub(super) struct Port {
    pub(super) name: &'static str,
    pub(super) stats: Arc<Stats>,
    pub(super) tls: Option<Arc<Tls>>,
}

/// The ports whose connections the metrics count.
#[derive(Default)]
pub(super) struct Ports(pub(super) Mutex<Vec<Port>>);

pub(super) struct PortCollector(pub(super) Arc<Ports>);

impl fmt::Debug for PortCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PortCollector")
    }
}

type Read = fn(&Counts) -> u64;

/// The counts of every listener's connections: name, help and value.
const COUNTED: [(&str, &str, Read); 6] = [
    ("connections_accepted", "Connections accepted", |c| {
        c.accepted
    }),
    (
        "connections_closed_unused",
        "Connections that the client closed before it sent anything, as port probes do",
        |c| c.probe_like,
    ),
    (
        "handshakes_refused",
        "TLS handshakes refused by either side",
        |c| c.handshake_failures,
    ),
    (
        "handshakes_timed_out",
        "TLS handshakes that took too long",
        |c| c.handshake_timeouts,
    ),
    (
        "connections_over_limit",
        "Connections closed for a limit",
        |c| c.over_limit,
    ),
    (
        "accept_errors",
        "Connections that could not be accepted",
        |c| c.accept_errors,
    ),
];

impl Collector for PortCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let ports = self.0.0.lock();
        for (name, help, read) in COUNTED {
            let counts = ports.iter().map(|port| {
                let count = read(&port.stats.counts());
                (listener(port.name), ConstCounter::new(count))
            });
            family(&mut encoder, (name, help, None), counts)?;
        }
        let open = ports.iter().map(|port| {
            let open = port.stats.counts().open;
            (listener(port.name), ConstGauge::new(open))
        });
        let named = ("connections_open", "Connections open", None);
        family(&mut encoder, named, open)?;
        certificates(&mut encoder, &ports)
    }
}

/// The label that names a listener.
fn listener(name: &'static str) -> [(&'static str, &'static str); 1] {
    [("listener", name)]
}

/// Metrics of the certificates of listeners with TLS.
fn certificates(encoder: &mut DescriptorEncoder<'_>, ports: &[Port]) -> fmt::Result {
    let tls = || {
        ports
            .iter()
            .filter_map(|port| Some((listener(port.name), port.tls.as_ref()?)))
    };
    family(
        encoder,
        (
            "tls_certificate_not_after",
            "When the server's certificate expires, in Unix time",
            Some(&Unit::Seconds),
        ),
        tls().map(|(labels, tls)| (labels, ConstGauge::new(tls.not_after_unix()))),
    )?;
    family(
        encoder,
        (
            "tls_client_crl_next_update",
            "When the first of the revocation lists of client certificates must be replaced, in Unix time",
            Some(&Unit::Seconds),
        ),
        tls().filter_map(|(labels, tls)| {
            Some((labels, ConstGauge::new(tls.crl_next_update_unix()?)))
        }),
    )?;
    family(
        encoder,
        (
            "tls_reload_failures",
            "Sets of certificate, key, authorities and revocation lists that were invalid and not taken over",
            None,
        ),
        tls().map(|(labels, tls)| (labels, ConstCounter::new(tls.reload_failures()))),
    )
}
