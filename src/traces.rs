//! Traces, for those who name a collector as OpenTelemetry's own variables do: `OTEL_EXPORTER_OTLP_ENDPOINT`, and the others of
//! its specification (headers, sampler, service name).
//!
//! Spans leave in batches, beside the work; a collector that is away loses its spans and holds up nobody. It is told once, and
//! without the collector's address, which may have a login.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::SpanExporter as OtlpExporter;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use shelfmill_pipeline::trace;

/// Any of them says that somebody collects.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// How long the last spans may take.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// The spans of this process, until it ends.
pub(crate) struct Traces(Option<SdkTracerProvider>);

/// Begins to tell of every product, if a collector is named.
pub(crate) fn start(role: &'static str) -> anyhow::Result<Traces> {
    let is_named = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if !ENDPOINTS.iter().any(is_named) {
        return Ok(Traces(None));
    }
    // Its error may quote the URL.
    let exporter = OtlpExporter::builder().with_http().build().ok().with_context(|| {
        format!("cannot send traces: {} must be a URL like http://localhost:4318", ENDPOINTS.join(" or "))
    })?;
    let service =
        [KeyValue::new("service.version", env!("CARGO_PKG_VERSION")), KeyValue::new("shelfmill.role", role)];
    let named = std::env::var_os("OTEL_SERVICE_NAME").is_some();
    let mut resource = Resource::builder().with_attributes(service);
    if !named {
        resource = resource.with_service_name("shelfmill");
    }
    let provider = SdkTracerProvider::builder()
        .with_resource(resource.build())
        .with_batch_exporter(Told { exporter, is_away: AtomicBool::new(false) })
        .build();
    global::set_text_map_propagator(TraceContextPropagator::new());
    global::set_tracer_provider(provider.clone());
    trace::turn_on();
    Ok(Traces(Some(provider)))
}

impl Traces {
    /// Sends what is left.
    pub(crate) fn finish(&self) {
        if let Some(provider) = &self.0 {
            let _ = provider.shutdown_with_timeout(LAST_SPANS);
        }
    }
}

/// An exporter whose trouble is told, once until it is over.
#[derive(Debug)]
struct Told {
    exporter: OtlpExporter,
    is_away: AtomicBool,
}

impl SpanExporter for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = self.exporter.export(batch).await;
        let was_away = self.is_away.swap(exported.is_err(), Ordering::Relaxed);
        match &exported {
            Err(_) if !was_away => tracing::warn!(
                spans,
                "the collector of traces does not take them: they are lost, and the work goes on"
            ),
            Ok(()) if was_away => tracing::info!("the collector of traces takes them again"),
            _ => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
