//! The broker within one process: bounded channels, nothing on disk.
//!
//! The number of tasks between producer and acknowledgement is bounded by `capacity`: a publish waits for a
//! place, and a task keeps its place while it waits for another try, so retries cannot pile up. Handing a task
//! back never waits, so a worker can always settle.

use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};

use super::{Broker, BrokerError, Consumer, DeadLetter, DeadLetters, Delivery, Depths, Prefetch, Receipt};
use crate::{
    message::{Outcome, Task},
    trace::Parent,
};

struct Queued {
    task: Task,
    trace: Parent,
    place: OwnedSemaphorePermit,
}

type Told = (Outcome, Parent);

/// Both queues of a run, in memory. Consumed by one worker and one aggregator.
pub struct MemoryBroker {
    places: Arc<Semaphore>,
    tasks: mpsc::UnboundedSender<Queued>,
    task_source: Mutex<Option<mpsc::UnboundedReceiver<Queued>>>,
    outcomes: std::sync::Mutex<Option<mpsc::Sender<Told>>>,
    outcome_source: Mutex<Option<mpsc::Receiver<Told>>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    ready: AtomicU64,
    waiting: AtomicU64,
}

impl MemoryBroker {
    /// A broker that holds at most `capacity` tasks and as many outcomes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let (tasks, task_source) = mpsc::unbounded_channel();
        let (outcomes, outcome_source) = mpsc::channel(capacity);
        Self {
            places: Arc::new(Semaphore::new(capacity)),
            tasks,
            task_source: Mutex::new(Some(task_source)),
            outcomes: std::sync::Mutex::new(Some(outcomes)),
            outcome_source: Mutex::new(Some(outcome_source)),
            counts: Arc::default(),
        }
    }

    /// No more outcomes will be published: whoever consumes them gets those there are, and then
    /// [`BrokerError::Closed`].
    pub fn end_outcomes(&self) {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn outcome_sender(&self) -> Result<mpsc::Sender<Told>, BrokerError> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(BrokerError::Closed)
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn publish_task(&self, task: Task) -> Result<(), BrokerError> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| BrokerError::Closed)?;
        self.counts.ready.fetch_add(1, Ordering::Relaxed);
        self.tasks.send(Queued { task, trace: Parent::current(), place }).map_err(|_| BrokerError::Closed)
    }

    async fn publish_outcome(&self, outcome: &Outcome) -> Result<(), BrokerError> {
        let told = (outcome.clone(), Parent::current());
        self.outcome_sender()?.send(told).await.map_err(|_| BrokerError::Closed)
    }

    /// What is in a channel is not safe before its line is on disk.
    fn takes_at_once(&self) -> bool {
        false
    }

    fn repeats(&self) -> bool {
        false
    }

    async fn tasks(&self, _prefetch: Prefetch) -> Result<Box<dyn Consumer<Task>>, BrokerError> {
        let source = self.task_source.lock().await.take().ok_or(BrokerError::Closed)?;
        Ok(Box::new(Tasks { source, sender: self.tasks.downgrade(), counts: Arc::clone(&self.counts) }))
    }

    async fn outcomes(&self, _prefetch: u16) -> Result<Box<dyn Consumer<Outcome>>, BrokerError> {
        let source = self.outcome_source.lock().await.take().ok_or(BrokerError::Closed)?;
        Ok(Box::new(Outcomes { source }))
    }

    async fn depths(&self) -> Result<Depths, BrokerError> {
        Ok(Depths {
            tasks: self.counts.ready.load(Ordering::Relaxed),
            retries: self.counts.waiting.load(Ordering::Relaxed),
            outcomes: self
                .outcome_sender()
                .map_or(0, |sender| (sender.max_capacity() - sender.capacity()) as u64),
            dead: 0,
        })
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetters>, BrokerError> {
        Ok(Box::new(NoDeadLetters))
    }
}

/// Nothing dies in memory: what cannot be worked on ends the process.
struct NoDeadLetters;

#[async_trait]
impl DeadLetters for NoDeadLetters {
    async fn next(&mut self) -> Result<Option<DeadLetter>, BrokerError> {
        Ok(None)
    }
}

struct Tasks {
    source: mpsc::UnboundedReceiver<Queued>,
    sender: mpsc::WeakUnboundedSender<Queued>,
    counts: Arc<Counts>,
}

#[async_trait]
impl Consumer<Task> for Tasks {
    async fn next(&mut self) -> Result<Delivery<Task>, BrokerError> {
        let Queued { task, trace, place } = self.source.recv().await.ok_or(BrokerError::Closed)?;
        self.counts.ready.fetch_sub(1, Ordering::Relaxed);
        let receipt = TaskReceipt { place, sender: self.sender.clone(), counts: Arc::clone(&self.counts) };
        Ok(Delivery::new(task, trace, receipt))
    }

    fn set_prefetch(&mut self, _prefetch: Prefetch) -> bool {
        false
    }

    async fn close(&mut self) -> Result<(), BrokerError> {
        // What is still queued dies with the process, and the next start reads the input again.
        self.source.close();
        Ok(())
    }

    async fn told(&mut self) -> Result<(), BrokerError> {
        Ok(())
    }
}

struct TaskReceipt {
    place: OwnedSemaphorePermit,
    sender: mpsc::WeakUnboundedSender<Queued>,
    counts: Arc<Counts>,
}

#[async_trait]
impl Receipt for TaskReceipt {
    fn done(&self) -> Option<(usize, u64)> {
        None
    }

    async fn settle(self: Box<Self>, _: Vec<u64>) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn retry_later(self: Box<Self>, task: Task, delay: Duration) -> Result<(), BrokerError> {
        let Self { place, sender, counts } = *self;
        counts.waiting.fetch_add(1, Ordering::Relaxed);
        let trace = Parent::current();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            counts.waiting.fetch_sub(1, Ordering::Relaxed);
            if let Some(sender) = sender.upgrade() {
                counts.ready.fetch_add(1, Ordering::Relaxed);
                // Fails only when the worker is gone, and then the next start reads the input again.
                let _ = sender.send(Queued { task, trace, place });
            }
        });
        Ok(())
    }
}

struct Outcomes {
    source: mpsc::Receiver<Told>,
}

#[async_trait]
impl Consumer<Outcome> for Outcomes {
    async fn next(&mut self) -> Result<Delivery<Outcome>, BrokerError> {
        let (outcome, trace) = self.source.recv().await.ok_or(BrokerError::Closed)?;
        Ok(Delivery::new(outcome, trace, OutcomeReceipt))
    }

    fn set_prefetch(&mut self, _prefetch: Prefetch) -> bool {
        false
    }

    async fn close(&mut self) -> Result<(), BrokerError> {
        self.source.close();
        Ok(())
    }

    async fn told(&mut self) -> Result<(), BrokerError> {
        Ok(())
    }
}

struct OutcomeReceipt;

#[async_trait]
impl Receipt for OutcomeReceipt {
    fn done(&self) -> Option<(usize, u64)> {
        None
    }

    async fn settle(self: Box<Self>, _: Vec<u64>) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn retry_later(self: Box<Self>, _: Task, _: Duration) -> Result<(), BrokerError> {
        Ok(())
    }
}
