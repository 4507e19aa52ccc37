//! Connections and certificates, by listener.

use std::{fmt, sync::Arc};

use evidenceos_access::{Stats, Tls};
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
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

impl Collector for PortCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let ports = self.0.0.lock();
        type Read = fn(&evidenceos_access::Counts) -> u64;
        let counters: [(&str, &str, Read); 6] = [
            ("connections_accepted", "Connections accepted", |c| {
                c.accepted
            }),
            (
                "connections_closed_unused",
                "Connections that were closed before a word was said, as port probes do",
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
        for (name, help, read) in counters {
            let kind = ConstCounter::new(0u64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for port in ports.iter() {
                let labels = [("listener", port.name)];
                let value = ConstCounter::new(read(&port.stats.counts()));
                value.encode(family.encode_family(&labels)?)?;
            }
        }
        let kind = ConstGauge::new(0u64).metric_type();
        let mut open =
            encoder.encode_descriptor("connections_open", "Connections open", None, kind)?;
        for port in ports.iter() {
            let value = ConstGauge::new(port.stats.counts().open);
            value.encode(open.encode_family(&[("listener", port.name)])?)?;
        }
        let tls = || {
            ports
                .iter()
                .filter_map(|port| Some((port.name, port.tls.as_ref()?)))
        };
        let mut expiry = encoder.encode_descriptor(
            "tls_certificate_not_after",
            "When the server's certificate expires, in Unix time",
            Some(&Unit::Seconds),
            kind,
        )?;
        for (name, tls) in tls() {
            let value = ConstGauge::new(tls.not_after_unix());
            value.encode(expiry.encode_family(&[("listener", name)])?)?;
        }
        let mut update = encoder.encode_descriptor(
            "tls_client_crl_next_update",
            "When the first of the revocation lists of client certificates must be replaced, in Unix time",
            Some(&Unit::Seconds),
            kind,
        )?;
        for (name, tls) in tls() {
            if let Some(next_update_unix) = tls.crl_next_update_unix() {
                let value = ConstGauge::new(next_update_unix);
                value.encode(update.encode_family(&[("listener", name)])?)?;
            }
        }
        let counter = ConstCounter::new(0u64).metric_type();
        let mut failures = encoder.encode_descriptor(
            "tls_reload_failures",
            "Sets of certificate, key, authorities and revocation lists that did not fit and were not taken",
            None,
            counter,
        )?;
        for (name, tls) in tls() {
            let value = ConstCounter::new(tls.reload_failures());
            value.encode(failures.encode_family(&[("listener", name)])?)?;
        }
        Ok(())
    }
}
