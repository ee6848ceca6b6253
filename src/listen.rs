//! What a process tells those who ask over HTTP (`--listen`): `/metrics` for Prometheus, `/healthz` and `/readyz` for probes.
//!
//! It is beside the role and never in its way: an address that cannot be had is told before the role begins, and from then on
//! nothing that happens here is felt there. It tells until the process ends.

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use shelfmill_pipeline::{health::health, metrics::metrics};
use tokio::net::TcpListener;

/// What OpenMetrics calls its text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Begins to tell, if an address is given.
pub(crate) async fn start(address: Option<SocketAddr>) -> anyhow::Result<()> {
    let Some(address) = address else { return Ok(()) };
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; choose another address with --listen (port 0: a free one)")
    })?;
    tracing::info!(addr = %listener.local_addr()?, "listening: /metrics, /healthz, /readyz");
    let pages = Router::new()
        .route("/metrics", get(tell))
        .route("/healthz", get(|| async { probed(health().is_alive()) }))
        .route("/readyz", get(|| async { probed(health().is_ready()) }));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, pages).await {
            tracing::warn!(%error, "metrics are not told any more; the work goes on");
        }
    });
    Ok(())
}

fn probed(verdict: Result<(), String>) -> (StatusCode, String) {
    match verdict {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn tell() -> impl IntoResponse {
    ([(CONTENT_TYPE, OPENMETRICS)], metrics().encode())
}
