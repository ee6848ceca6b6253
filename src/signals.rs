//! Ctrl-C and SIGTERM: the first asks for an orderly end and grants the calls in flight a grace, the second ends
//! the grace. Everything said to be done is on disk at any time, so neither loses anything but calls in flight.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use shelfmill_pipeline::{health::health, shutdown::Stopper};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::end::INTERRUPTED;

/// How long a process may take to end after the second signal.
const LAST_WORDS: Duration = Duration::from_secs(1);

static FORCED: AtomicBool = AtomicBool::new(false);

/// Whether a second signal has ended the grace.
pub(crate) fn forced() -> bool {
    FORCED.load(Ordering::Relaxed)
}

/// A stopper that the process' signals stop.
pub(crate) fn stopper(grace: Duration) -> anyhow::Result<Stopper> {
    let stopper = Stopper::new();
    let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(listen(stopper.clone(), grace, interrupt, terminate));
    Ok(stopper)
}

async fn listen(stopper: Stopper, grace: Duration, mut interrupt: Signal, mut terminate: Signal) {
    either(&mut interrupt, &mut terminate).await;
    tracing::warn!(
        grace_seconds = grace.as_secs(),
        "stopping: calls in flight are finished first; a second signal ends at once"
    );
    health().stopping();
    stopper.stop();
    tokio::select! {
        () = either(&mut interrupt, &mut terminate) => {}
        () = tokio::time::sleep(grace) => {
            stopper.abort();
            either(&mut interrupt, &mut terminate).await;
        }
    }
    FORCED.store(true, Ordering::Relaxed);
    // For the last words: products that are under way are given up.
    stopper.abort();
    tokio::select! {
        () = either(&mut interrupt, &mut terminate) => {}
        () = tokio::time::sleep(LAST_WORDS) => {}
    }
    std::process::exit(i32::from(INTERRUPTED));
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
