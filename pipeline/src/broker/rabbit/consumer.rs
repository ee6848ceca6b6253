//! Consuming, across lost connections.

use std::{
    iter,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::try_join_all;
use lapin::{message::Delivery as LapinDelivery, types::DeliveryTag};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    acks::Acks,
    connection::{Link, Shared},
    outage::{Loss, Purpose},
    publish::Epitaph,
    subscription::{Live, Unbegun, parents},
};
use crate::{
    broker::{BrokerError, Consumer, Delivery, Prefetch, Receipt},
    crash::{self, Point},
    message::{DecodeError, Outcome, Task},
    trace::Parent,
};

const MAX_REASON_BYTES: usize = 1024;
/// How long an end waits for messages that are on their way to the dead queue; those that stay behind come again.
const BURIAL_PATIENCE: Duration = Duration::from_secs(5);

/// A message, to the wire and back.
pub(super) trait Wire: Sized + Send + 'static {
    /// Whether what was fetched and not handed out is given back as a copy, which spends none of its deliveries,
    /// rather than in its place, which keeps the order.
    const GIVEN_BACK_AS_COPY: bool;
    /// Messages that wait to be asked for; the others wait in the connection, up to the prefetch.
    const WAITING: usize;
    /// What comes in one message: those that were told at the same time come together, one to a line.
    fn parts(bytes: &[u8]) -> impl Iterator<Item = &[u8]>;
    fn decode(part: &[u8]) -> Result<Self, DecodeError>;
    fn encode(&self) -> Vec<u8>;
}

impl Wire for Task {
    const GIVEN_BACK_AS_COPY: bool = true;
    /// No more than needed: one that waits here while the connection breaks is another worker's meanwhile.
    const WAITING: usize = 1;

    fn parts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
        iter::once(bytes)
    }

    fn decode(part: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(part)
    }

    fn encode(&self) -> Vec<u8> {
        self.encode()
    }
}

impl Wire for Outcome {
    const GIVEN_BACK_AS_COPY: bool = false;
    /// A batch takes what has arrived, and what waits in the connection has not.
    const WAITING: usize = 512;

    fn parts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
        bytes.split(|byte| *byte == b'\n')
    }

    fn decode(part: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(part)
    }

    fn encode(&self) -> Vec<u8> {
        self.encode()
    }
}

/// A message with its receipt, on its way from the connection to whoever asks for the next one.
type Fetched<M> = (M, Parent, RabbitReceipt);

/// The connection is kept by a task of its own, so that giving up waiting for a message never interrupts the
/// making of a connection.
pub(super) struct RabbitConsumer<M> {
    shared: Arc<Shared>,
    queue: String,
    fetched: mpsc::Receiver<Result<Fetched<M>, BrokerError>>,
    acks: Acks,
    prefetch: watch::Sender<Prefetch>,
    closing: CancellationToken,
    pump: AbortOnDropHandle<Option<Live>>,
}

impl<M: Wire> RabbitConsumer<M> {
    pub(super) async fn start(
        shared: Arc<Shared>,
        queue: &str,
        prefetch: Prefetch,
    ) -> Result<Self, BrokerError> {
        let live = shared.subscribe(queue, prefetch).await?;
        let (sender, fetched) = mpsc::channel(M::WAITING);
        let (prefetch, wanted) = watch::channel(prefetch);
        let (closing, acks) = (CancellationToken::new(), Acks::open(wanted.clone()));
        let pump = tokio::spawn({
            let (shared, queue, closing) = (Arc::clone(&shared), queue.to_owned(), closing.clone());
            let acks = acks.clone();
            async move {
                match shared.pump(&queue, wanted, live, &sender, &acks, &closing).await {
                    Ok(live) => live,
                    Err(error) => {
                        tokio::select! {
                            _ = sender.send(Err(error)) => {}
                            () = closing.cancelled() => {}
                        }
                        None
                    }
                }
            }
        });
        let pump = AbortOnDropHandle::new(pump);
        Ok(Self { shared, queue: queue.to_owned(), fetched, acks, prefetch, closing, pump })
    }
}

impl Shared {
    /// Fetches until it is closing; then returns the subscription, if there is one.
    async fn pump<M: Wire>(
        self: &Arc<Self>,
        queue: &str,
        mut wanted: watch::Receiver<Prefetch>,
        mut live: Live,
        sender: &mpsc::Sender<Result<Fetched<M>, BrokerError>>,
        acks: &Acks,
        closing: &CancellationToken,
    ) -> Result<Option<Live>, BrokerError> {
        // On the side: under an alarm of RabbitMQ nothing is published, and reading on may be what ends it. What is not
        // published when this ends is delivered again. There are never more than the prefetch.
        let mut burials = JoinSet::new();
        loop {
            // A place first: what is taken from the connection can be handed on.
            let place = tokio::select! {
                place = sender.reserve() => place.map_err(|_| BrokerError::Closed)?,
                () = closing.cancelled() => return finish(burials).await.map(|()| Some(live)),
            };
            let next = loop {
                tokio::select! {
                    next = live.next() => break Ok(next),
                    // A subscription cannot be changed: it ends, and there is another when less of what it has fetched is
                    // unsettled than the new one may fetch (for a while it may be both). Not given up half way, it takes but a
                    // moment.
                    Ok(()) = wanted.changed(), if live.is_open() => {
                        if let Err(loss) = live.end(queue).await {
                            break Err(loss);
                        }
                    }
                    Some(buried) = burials.join_next() => buried.map_err(|_| BrokerError::Closed)??,
                    () = closing.cancelled() => return finish(burials).await.map(|()| Some(live)),
                }
            };
            let loss = match next {
                Ok(Some(Ok(found))) => {
                    live.link.taken(found.delivery_tag);
                    let (fetched, unreadable) = self.open_parcel(&live.link, &found, acks);
                    if let Some(unreadable) = unreadable {
                        let (shared, queue) = (Arc::clone(self), queue.to_owned());
                        burials.spawn(async move { shared.dead_letter(&queue, unreadable).await });
                    }
                    tokio::select! {
                        // What can be handed on is: who closes looks for it there.
                        biased;
                        handed = hand_over(place, sender, fetched) => handed?,
                        () = closing.cancelled() => return finish(burials).await.map(|()| Some(live)),
                    }
                    continue;
                }
                Ok(None) if !live.is_open() && live.link.is_alive() => {
                    let prefetch = *wanted.borrow_and_update();
                    tokio::select! {
                        () = live.link.has_unsettled_below(prefetch.messages.into()) => {}
                        () = closing.cancelled() => return finish(burials).await.map(|()| Some(live)),
                    }
                    match live.renew(queue, prefetch).await {
                        Ok(()) => continue,
                        Err(loss) => loss,
                    }
                }
                Ok(Some(Err(error))) => Loss::Connection(error.to_string()),
                // RabbitMQ cancels a consumer whose queue is gone, and leaves it its connection.
                Ok(None) if live.link.is_alive() => Loss::Queue(queue.to_owned()),
                Ok(None) => Loss::Connection("the connection has ended".to_owned()),
                Err(loss) => loss,
            };
            self.outages.lost(Purpose::Consume, Some(live.link.opened), &loss);
            // What came on this connection comes again.
            burials.shutdown().await;
            drop(live);
            let subscribed = async {
                self.breathe().await?;
                let prefetch = *wanted.borrow_and_update();
                self.subscribe(queue, prefetch).await
            };
            live = tokio::select! {
                live = subscribed => live?,
                () = closing.cancelled() => return Ok(None),
            };
        }
    }

    /// The deliveries of a message, and what in it nobody here can read.
    fn open_parcel<M: Wire>(
        self: &Arc<Self>,
        link: &Arc<Link>,
        found: &LapinDelivery,
        acks: &Acks,
    ) -> (Vec<Fetched<M>>, Option<Unreadable>) {
        let mut traces = parents(found).into_iter();
        let (mut readable, mut unreadable) = (Vec::new(), None::<(Vec<u8>, DecodeError)>);
        for part in M::parts(&found.data) {
            let trace = traces.next().unwrap_or_default();
            match (M::decode(part), &mut unreadable) {
                (Ok(message), _) => readable.push((message, trace)),
                (Err(error), None) => unreadable = Some((part.to_vec(), error)),
                (Err(_), Some((body, _))) => {
                    body.push(b'\n');
                    body.extend_from_slice(part);
                }
            }
        }
        let open = AtomicUsize::new(readable.len() + usize::from(unreadable.is_some()));
        let parcel = Arc::new(Parcel { link: Arc::clone(link), tag: found.delivery_tag, open });
        let receipt =
            || RabbitReceipt { shared: Arc::clone(self), acks: acks.clone(), parcel: Arc::clone(&parcel) };
        let fetched = readable.into_iter().map(|(message, trace)| (message, trace, receipt())).collect();
        (fetched, unreadable.map(|(body, error)| Unreadable { body, error, receipt: receipt() }))
    }

    /// Puts what nobody here can read where a person will look.
    async fn dead_letter(
        &self,
        queue: &str,
        Unreadable { body, error, receipt }: Unreadable,
    ) -> Result<(), BrokerError> {
        let mut reason = std::error::Error::source(&error)
            .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
        // It quotes the message, and a header must fit into a frame.
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        tracing::error!(queue, reason, "a message went to the dead queue");
        self.publish(&self.topology.dead, &body, &[], Some(Epitaph { reason: &reason, queue })).await?;
        match receipt.done() {
            Some((_, tag)) => Box::new(receipt).settle(vec![tag]).await,
            None => Ok(()),
        }
    }
}

/// What in a message cannot be read, line by line, and why its first line cannot.
struct Unreadable {
    body: Vec<u8>,
    error: DecodeError,
    receipt: RabbitReceipt,
}

/// Sees what was begun to its end, within reason.
async fn finish(mut burials: JoinSet<Result<(), BrokerError>>) -> Result<(), BrokerError> {
    let all = async {
        while let Some(buried) = burials.join_next().await {
            buried.map_err(|_| BrokerError::Closed)??;
        }
        Ok(())
    };
    timeout(BURIAL_PATIENCE, all).await.unwrap_or(Ok(()))
}

#[async_trait]
impl<M: Wire> Consumer<M> for RabbitConsumer<M> {
    async fn next(&mut self) -> Result<Delivery<M>, BrokerError> {
        let (message, trace, receipt) = self.fetched.recv().await.ok_or(BrokerError::Closed)??;
        Ok(Delivery::new(message, trace, receipt))
    }

    fn set_prefetch(&mut self, prefetch: Prefetch) -> bool {
        // Where nobody listens there is nothing to fetch any more.
        self.prefetch.send_replace(prefetch);
        true
    }

    async fn close(&mut self) -> Result<(), BrokerError> {
        let stopper = self.shared.stopper.clone();
        tokio::select! {
            closed = self.give_back() => closed,
            // RabbitMQ delivers again what was not given back.
            () = stopper.aborted() => Ok(()),
        }
    }

    async fn told(&mut self) -> Result<(), BrokerError> {
        tokio::select! {
            () = self.acks.told() => {}
            () = self.shared.stopper.aborted() => {}
        }
        Ok(())
    }
}

impl<M: Wire> RabbitConsumer<M> {
    async fn give_back(&mut self) -> Result<(), BrokerError> {
        self.closing.cancel();
        let live = (&mut self.pump).await.ok().flatten();
        if !M::GIVEN_BACK_AS_COPY {
            // The broker puts them back in their places when the connection goes with its last receipt.
            self.fetched.close();
            while self.fetched.try_recv().is_ok() {}
            return Ok(());
        }
        // Cancelled first: what is given back must not come here again.
        let mut unbegun = match live {
            Some(live) => live.close(&self.queue).await,
            None => Vec::new(),
        };
        self.fetched.close();
        while let Ok(fetched) = self.fetched.try_recv() {
            let (message, trace, RabbitReceipt { parcel, .. }) = fetched?;
            let Some(Parcel { link, tag, .. }) = Arc::into_inner(parcel) else { continue };
            unbegun.push(Unbegun { link, tag, body: message.encode(), trace });
        }
        let given_back = unbegun.iter().map(|message| message.give_back(&self.shared, &self.queue));
        try_join_all(given_back).await.map(drop)
    }
}

/// The first has its place already.
async fn hand_over<M>(
    place: mpsc::Permit<'_, Result<Fetched<M>, BrokerError>>,
    sender: &mpsc::Sender<Result<Fetched<M>, BrokerError>>,
    fetched: Vec<Fetched<M>>,
) -> Result<(), BrokerError> {
    let mut fetched = fetched.into_iter();
    if let Some(first) = fetched.next() {
        place.send(Ok(first));
    }
    for next in fetched {
        sender.send(Ok(next)).await.map_err(|_| BrokerError::Closed)?;
    }
    Ok(())
}

/// A message of RabbitMQ's, of which there is a delivery for each task or outcome in it.
struct Parcel {
    link: Arc<Link>,
    tag: DeliveryTag,
    /// Deliveries that are not done with.
    open: AtomicUsize,
}

pub(super) struct RabbitReceipt {
    shared: Arc<Shared>,
    acks: Acks,
    parcel: Arc<Parcel>,
}

impl RabbitReceipt {
    pub(super) fn tag(&self) -> DeliveryTag {
        self.parcel.tag
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.parcel.link
    }
}

#[async_trait]
impl Receipt for RabbitReceipt {
    async fn ack(self: Box<Self>) -> Result<(), BrokerError> {
        if self.done().is_some() {
            self.acks.clone().done(*self);
        }
        Ok(())
    }

    fn done(&self) -> Option<(usize, u64)> {
        let is_last = self.parcel.open.fetch_sub(1, Ordering::AcqRel) == 1;
        is_last.then(|| (Arc::as_ptr(self.link()).addr(), self.tag()))
    }

    async fn settle(self: Box<Self>, numbers: Vec<u64>) -> Result<(), BrokerError> {
        self.link().acknowledge(&numbers.into_iter().collect(), |_| true).await;
        Ok(())
    }

    async fn retry_later(self: Box<Self>, task: Task, delay: Duration) -> Result<(), BrokerError> {
        let queue = self.shared.topology.queue_for(delay);
        self.shared.publish(queue, &task.encode(), &[Parent::current()], None).await?;
        crash::point_of(Point::WorkerDelayed, &task.id);
        self.ack().await
    }
}
