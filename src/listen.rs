//! What a process tells those who ask over HTTP (`--listen`): `/metrics` for Prometheus, `/healthz` and `/readyz` for probes, and
//! the run's page (`page`) for people.
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

use crate::page::Site;

/// What OpenMetrics calls its text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Begins to tell, if an address is given; with the page of a run, if the role has one. Where it listens.
pub(crate) async fn start(
    address: Option<SocketAddr>,
    site: Option<Site>,
) -> anyhow::Result<Option<SocketAddr>> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; choose another address with --listen (port 0: a free one)")
    })?;
    let local = listener.local_addr()?;
    tracing::info!(addr = %local, "listening: /metrics, /healthz, /readyz");
    let mut pages = Router::new()
        .route("/metrics", get(tell))
        .route("/healthz", get(|| async { probed(health().is_alive()) }))
        .route("/readyz", get(|| async { probed(health().is_ready()) }));
    if let Some(site) = site {
        pages = pages.merge(site.router(local)?);
    }
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, pages).await {
            tracing::warn!(%error, "nobody is answered any more; the work goes on");
        }
    });
    Ok(Some(local))
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
