//! What a worker is done with, told together: RabbitMQ takes one word for a task and all before it, and each word is work for it.
//!
//! A word waits for others, but not for long. Until it is told the task is the worker's; where it never is (the process dies, the
//! connection is lost) the task comes again, and its claim says that it is done.

use std::{mem, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::consumer::RabbitReceipt;

/// How long the first of them waits.
const WAITS: Duration = Duration::from_millis(5);

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
    pub(super) fn open(together: u16) -> Self {
        let (words, said) = mpsc::unbounded_channel();
        tokio::spawn(tell(said, together.into()));
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

async fn tell(mut said: mpsc::UnboundedReceiver<Word>, together: usize) {
    let (mut done, mut waiting) = (Vec::new(), Vec::new());
    while let Some(first) = said.recv().await {
        let deadline = Instant::now() + WAITS;
        let mut word = Some(first);
        while let Some(next) = word.take() {
            match next {
                Word::Done(receipt) => done.push(receipt),
                Word::Tell(teller) => waiting.push(teller),
            }
            if done.len() < together && waiting.is_empty() {
                word = timeout_at(deadline, said.recv()).await.ok().flatten();
            }
        }
        settle(mem::take(&mut done)).await;
        for teller in waiting.drain(..) {
            let _ = teller.send(());
        }
    }
}

/// Of one connection, but where it was replaced meanwhile.
async fn settle(mut done: Vec<RabbitReceipt>) {
    while let Some(last) = done.pop() {
        let (same, others): (Vec<_>, Vec<_>) =
            done.into_iter().partition(|receipt| Arc::ptr_eq(receipt.link(), last.link()));
        let numbers = same.iter().map(|receipt| receipt.tag()).chain([last.tag()]).collect();
        last.link().acknowledge(numbers).await;
        done = others;
    }
}
