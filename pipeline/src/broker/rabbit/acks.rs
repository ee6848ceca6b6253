//! What a worker is done with, told together: RabbitMQ takes one word for a task and all before it, and each word is work for it.
//!
//! What is done with waits for what came before it, but not for long, and few do. Until it is told the task is the worker's; where it
//! never is (the process dies, the connection is lost) the task comes again, and its claim says that it is done.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};

use super::consumer::RabbitReceipt;
use crate::broker::Prefetch;

/// How long one waits for those before it.
const WAITS: Duration = Duration::from_millis(10);

/// Where it is said what is done with.
#[derive(Clone)]
pub(super) struct Acks(mpsc::UnboundedSender<Word>);

enum Word {
    /// Of a message whose last part is done with.
    Done(RabbitReceipt),
    /// Somebody waits until all that was said before is told.
    Tell(oneshot::Sender<()>),
}

impl Acks {
    /// Tells what is said here, until nobody can say anything.
    pub(super) fn open(prefetch: watch::Receiver<Prefetch>) -> Self {
        let (words, said) = mpsc::unbounded_channel();
        tokio::spawn(tell(said, prefetch));
        Self(words)
    }

    pub(super) fn done(&self, receipt: RabbitReceipt) {
        // Where nobody listens the process ends, and the task comes again.
        let _ = self.0.send(Word::Done(receipt));
    }

    /// Returns when RabbitMQ was told of all that was said before.
    pub(super) async fn told(&self) {
        let (teller, told) = oneshot::channel();
        if self.0.send(Word::Tell(teller)).is_ok() {
            let _ = told.await;
        }
    }
}

/// Done with, and until when that may wait.
type Done = (RabbitReceipt, Instant);

async fn tell(mut said: mpsc::UnboundedReceiver<Word>, prefetch: watch::Receiver<Prefetch>) {
    let mut done = Vec::<Done>::new();
    // So many together, those that wait for others beside them.
    let mut enough = 0;
    loop {
        let word = match done.first() {
            Some((_, until)) => timeout_at(*until, said.recv()).await,
            None => Ok(said.recv().await),
        };
        let most = usize::from(prefetch.borrow().told_together);
        let (is_due, teller) = match word {
            Ok(Some(Word::Done(receipt))) => {
                done.push((receipt, Instant::now() + WAITS));
                (done.len() >= enough.clamp(most / 2, most), None)
            }
            Ok(Some(Word::Tell(teller))) => (true, Some(teller)),
            Ok(None) => break,
            Err(_) => (true, None),
        };
        if is_due {
            let all = teller.is_some() || done.len() >= most;
            settle(&mut done, all).await;
            enough = done.len() + most / 2;
        }
        if let Some(teller) = teller {
            let _ = teller.send(());
        }
    }
}

/// Those that wait for none before them, and those that have waited long enough; or all. They are of one connection, but where
/// it was replaced meanwhile.
async fn settle(done: &mut Vec<Done>, all: bool) {
    let now = Instant::now();
    let mut waiting = Vec::new();
    while let Some((last, _)) = done.last() {
        let link = Arc::clone(last.link());
        let (same, others): (Vec<_>, Vec<_>) =
            std::mem::take(done).into_iter().partition(|(receipt, _)| Arc::ptr_eq(receipt.link(), &link));
        let tags = same.iter().map(|(receipt, _)| receipt.tag()).collect();
        let overdue: BTreeSet<_> =
            same.iter().filter(|(_, until)| all || *until <= now).map(|(receipt, _)| receipt.tag()).collect();
        let told = link.acknowledge(&tags, |tag| overdue.contains(&tag)).await;
        waiting.extend(same.into_iter().filter(|(receipt, _)| !told.contains(&receipt.tag())));
        *done = others;
    }
    waiting.sort_by_key(|(_, until)| *until);
    *done = waiting;
}
