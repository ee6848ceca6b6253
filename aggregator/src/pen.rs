//! The right to write the results of a run: one aggregator at a time has it, and keeps it by renewing it.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use shelfmill_pipeline::{ledger::Ledger, shutdown::Stopper};
use tokio::task::JoinHandle;

use crate::{Event, Listener, folder::Folder};

const PEN_LEASE: Duration = Duration::from_secs(15);
/// Two renewals may be lost before the pen is.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How often one that stands by asks for it.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// A pen that is held and renewed, also while a long replay or the last files keep its holder busy.
pub(crate) struct Pen {
    name: String,
    ledger: Arc<dyn Ledger>,
    lost_to: Arc<OnceLock<String>>,
    keeper: JoinHandle<()>,
}

impl Pen {
    pub(crate) fn keep(name: String, ledger: Arc<dyn Ledger>) -> Self {
        let lost_to = Arc::new(OnceLock::new());
        let keeper = tokio::spawn({
            let (name, ledger, lost_to) = (name.clone(), Arc::clone(&ledger), Arc::clone(&lost_to));
            async move {
                loop {
                    tokio::time::sleep(RENEW_EVERY).await;
                    match ledger.hold_pen(&name, PEN_LEASE).await {
                        Ok(Ok(())) => {}
                        Ok(Err(holder)) => return drop(lost_to.set(holder)),
                        Err(error) => return tracing::warn!(%error, "could not renew the right to write"),
                    }
                }
            }
        });
        Self { name, ledger, lost_to, keeper }
    }

    /// Who has it now, if this holder was not heard of for too long.
    pub(crate) fn lost_to(&self) -> Option<&str> {
        self.lost_to.get().map(String::as_str)
    }

    /// Gives it back; where that fails, its lease runs out.
    pub(crate) async fn give_back(&self) {
        self.keeper.abort();
        if let Err(error) = self.ledger.drop_pen(&self.name).await {
            tracing::debug!(%error, "could not give back the right to write");
        }
    }
}

impl Drop for Pen {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Who writes: this folder on this machine. Its lock sees to it that only one process does, so one that is started
/// again after a kill goes on at once, while one elsewhere waits for the pen's lease to run out.
pub(crate) fn pen_of(host: &str, folder: &Folder) -> String {
    format!("{host}:{} ({})", folder.place(), folder.record().journal)
}

/// Waits for the right to write; `false` when it was stopped first.
pub(crate) async fn take_pen(
    pen: &str,
    ledger: &dyn Ledger,
    stopper: &Stopper,
    listener: &Listener,
) -> anyhow::Result<bool> {
    let mut told = None;
    loop {
        let held = tokio::select! {
            held = ledger.hold_pen(pen, PEN_LEASE) => held?,
            () = stopper.stopped() => return Ok(false),
        };
        let Err(holder) = held else {
            // The mark is there before the holder writes; without it, this folder would be taken for the run's.
            if let Some(holder) = told
                && ledger.journal().await?.is_none()
            {
                ledger.drop_pen(pen).await?;
                anyhow::bail!(
                    "Redis was emptied while this process stood by: the results are with {holder}; start again when that \
                     one has told Redis of them"
                );
            }
            return Ok(true);
        };
        if told.as_ref() != Some(&holder) {
            listener(Event::StandingBy { holder: holder.clone() });
            told = Some(holder);
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            () = stopper.stopped() => return Ok(false),
        }
    }
}
