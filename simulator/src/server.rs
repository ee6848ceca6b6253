//! Connections: accepts them, keeps them alive between requests, and lets go of all of them in time.
//!
//! When told to stop, the listener closes, idle and hung connections end at once, and calls that are being answered
//! have [`STOPPING_TIME`] to finish. Dropping [`Simulator::serve`] has the same effect: no task outlives it for long.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Config;
use crate::routes::Service;

/// Further clients wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 16_384;

/// Clients that connect at the same moment. What is beyond is reset now and then; the kernel may allow fewer.
const BACKLOG: u32 = 16_384;

/// Enough for an answer to be written; latency beyond it is cut short.
const STOPPING_TIME: Duration = Duration::from_millis(500);

/// After an accept has failed (out of file descriptors), so that a full process does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A simulator that is bound to its address; [`Simulator::serve`] makes it answer.
pub struct Simulator {
    listener: TcpListener,
    addr: SocketAddr,
    service: Arc<Service>,
    stopping: CancellationToken,
}

impl Simulator {
    /// Clients may connect as soon as this returns; port 0 takes a free one.
    pub async fn bind(addr: SocketAddr, config: Config) -> anyhow::Result<Self> {
        config.validate().context("the simulator's options")?;
        let listener = listen(addr).with_context(|| format!("the simulator cannot listen on {addr}"))?;
        let addr = listener.local_addr().context("the simulator's address")?;
        let stopping = CancellationToken::new();
        let service = Arc::new(Service::new(config, stopping.clone())?);
        Ok(Self { listener, addr, service, stopping })
    }

    /// The address it is bound to, with the port that was free.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `shutdown` resolves, and returns within a second of it.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
        let Self { listener, addr, service, stopping } = self;
        let _stop_when_dropped = stopping.clone().drop_guard();
        let connections = TaskTracker::new();
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        tracing::info!(%addr, "simulator is listening");
        tokio::pin!(shutdown);
        loop {
            let (stream, permit) = tokio::select! {
                biased;
                () = &mut shutdown => break,
                accepted = accept(&listener, &permits) => accepted?,
            };
            connections.spawn(connection(stream, permit, Arc::clone(&service), stopping.clone()));
        }
        drop(listener);
        stopping.cancel();
        connections.close();
        connections.wait().await;
        tracing::info!(%addr, "simulator has stopped");
        Ok(())
    }
}

/// As `TcpListener::bind` does, with room for more who wait.
fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> anyhow::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Ok((stream, permit)),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
    service: Arc<Service>,
    stopping: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was refused");
    }
    let service = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { service.respond(request).await }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let connection = server.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(STOPPING_TIME, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "connection ended early");
    }
}
