//! What a process tells those who ask over HTTP (`--listen`): `/metrics`, for Prometheus.
//!
//! It is beside the role and never in its way: an address that cannot be had is told before the role begins, and from then on
//! nothing that happens here is felt there. It tells until the process ends.

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::{Router, http::header::CONTENT_TYPE, response::IntoResponse, routing::get};
use shelfmill_pipeline::metrics::metrics;
use tokio::net::TcpListener;

/// What OpenMetrics calls its text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Begins to tell, if an address is given.
pub(crate) async fn start(address: Option<SocketAddr>) -> anyhow::Result<()> {
    let Some(address) = address else { return Ok(()) };
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; choose another address with --listen (port 0: a free one)")
    })?;
    tracing::info!(addr = %listener.local_addr()?, "metrics are told at /metrics");
    let pages = Router::new().route("/metrics", get(tell));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, pages).await {
            tracing::warn!(%error, "metrics are not told any more; the work goes on");
        }
    });
    Ok(())
}

async fn tell() -> impl IntoResponse {
    ([(CONTENT_TYPE, OPENMETRICS)], metrics().encode())
}
