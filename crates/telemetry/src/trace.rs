//! Lines of the log for people and machines, and spans for a collector of traces.
//!
//! Two targets exist beside the modules' own: [`AUDIT`] has a line for each call and decision, with
//! its caller and result; [`TARGET`] has spans, which are only for a collector. Neither has the
//! contents of a call.

use std::{io::IsTerminal as _, time::Duration};

use clap::ValueEnum;
use http::HeaderMap;
use opentelemetry::{
    KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::TracerProvider as _,
};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{ParseError, Targets},
    layer::SubscriberExt as _,
    registry::Registry,
    util::SubscriberInitExt as _,
};

/// Calls and decisions, at level debug: `--log info,evidenceos_audit=debug`.
pub const AUDIT: &str = "evidenceos_audit";
/// Spans, at level debug.
pub const TARGET: &str = "evidenceos_trace";

/// How long a batch of spans may take to a collector.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The format of the daemon's log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people to read.
    Text,
    /// For machines, one object a line.
    Json,
}

/// The settings of logs and traces.
#[derive(Debug, Clone)]
pub struct Config {
    /// A `tracing` filter; [`Config::check`] tells whether it is valid.
    pub filter: String,
    /// The format of log lines.
    pub format: LogFormat,
    /// The address of a collector that accepts traces by OTLP over gRPC.
    pub otlp_endpoint: Option<String>,
}

impl Default for Config {
    /// Everything from `info` up, for people, and no traces.
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::Text,
            otlp_endpoint: None,
        }
    }
}

impl Config {
    /// Checks the filter.
    ///
    /// # Errors
    /// If the filter is invalid, with the reason.
    pub fn check(&self) -> Result<(), ParseError> {
        EnvFilter::try_new(&self.filter).map(drop)
    }
}

/// No exporter can be made for the collector that `--otlp-endpoint` names.
#[derive(Debug, Error)]
#[error("--otlp-endpoint {endpoint}: {source}")]
pub struct NoCollector {
    endpoint: String,
    source: ExporterBuildError,
}

/// The exporter of spans; `None` without a collector.
#[derive(Default)]
pub struct Tracing(Option<SdkTracerProvider>);

impl Tracing {
    /// Sets up logs and traces. If a collector is configured, this must be called within a runtime.
    /// An existing set-up, as in a test, stays.
    ///
    /// # Errors
    /// [`NoCollector`] if no exporter can be made for the configured collector.
    pub fn start(config: &Config) -> Result<Self, NoCollector> {
        // The configuration has refused a filter that does not parse.
        let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        let lines = match config.format {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().boxed(),
        };
        let lines = Registry::default().with(lines.with_filter(filter));
        let Some(endpoint) = &config.otlp_endpoint else {
            let _ = lines.try_init();
            return Ok(Self(None));
        };
        let provider = exporting_to(endpoint)?;
        let spans = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("evidenceosd"))
            .with_filter(Targets::new().with_target(TARGET, tracing::Level::DEBUG));
        let _ = lines.with(spans).try_init();
        Ok(Self(Some(provider)))
    }

    /// Sends the last spans, and waits for a limited time. Blocks.
    pub fn end(self) {
        if let Some(provider) = self.0
            && let Err(error) = provider.shutdown_with_timeout(EXPORT_TIMEOUT)
        {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

fn exporting_to(endpoint: &str) -> Result<SdkTracerProvider, NoCollector> {
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT);
    if endpoint.starts_with("https://") {
        let tls = tonic::transport::ClientTlsConfig::new().with_native_roots();
        exporter = exporter.with_tls_config(tls);
    }
    let exporter = exporter.build().map_err(|source| NoCollector {
        endpoint: endpoint.to_owned(),
        source,
    })?;
    let resource = Resource::builder()
        .with_service_name("evidenceosd")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}

/// Makes a span part of the trace that the caller's headers name (W3C Trace Context).
pub fn follow(span: &Span, headers: &HeaderMap) {
    if span.is_disabled() || !headers.contains_key("traceparent") {
        return;
    }
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    // A span that is not exported has no parent either.
    let _ = span.set_parent(parent);
}

struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
