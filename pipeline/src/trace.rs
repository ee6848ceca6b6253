//! One trace per product, across the processes that saw it: published, processed with its calls, recorded.
//!
//! The spans are OpenTelemetry's. Where nobody has [turned them on](turn_on) they cost a look at a flag and messages go without
//! a header. The span that publishes a message is the parent of the one that handles it: what is published within a
//! [scope](Span::scope) takes the span along, as W3C's `traceparent`.

use std::{
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::future::Either;
use opentelemetry::{
    Context, KeyValue,
    global::{self, BoxedTracer},
    propagation::{Extractor, Injector},
    trace::{FutureExt as _, Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _},
};

use crate::failure::FailureClass;

/// As W3C names it, and RabbitMQ's messages have it.
pub(crate) const HEADER: &str = "traceparent";
/// 55 characters in the version there is.
const MAX_BYTES: usize = 128;

static IS_ON: AtomicBool = AtomicBool::new(false);

/// From now on spans go to the process' tracer.
pub fn turn_on() {
    IS_ON.store(true, Ordering::Relaxed);
}

fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// What a message tells of the span that published it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parent(Option<Box<str>>);

impl Parent {
    /// Of what is published here and now.
    pub(crate) fn current() -> Self {
        let mut parent = Self::default();
        if is_on() {
            global::get_text_map_propagator(|propagator| propagator.inject(&mut parent));
        }
        parent
    }

    /// As a message had it; nonsense is no parent.
    pub(crate) fn read(header: &str) -> Self {
        Self((is_on() && header.len() <= MAX_BYTES).then(|| header.into()))
    }

    pub(crate) fn header(&self) -> Option<&str> {
        self.0.as_deref()
    }

    fn context(&self) -> Context {
        global::get_text_map_propagator(|propagator| propagator.extract_with_context(&Context::new(), self))
    }
}

impl Injector for Parent {
    fn set(&mut self, key: &str, value: String) {
        if key == HEADER {
            self.0 = Some(value.into());
        }
    }
}

impl Extractor for Parent {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.as_deref().filter(|_| key == HEADER)
    }

    fn keys(&self) -> Vec<&str> {
        vec![HEADER]
    }
}

/// What is done for a product; it ends when this is dropped.
#[derive(Debug)]
pub struct Span(Option<Context>);

impl Span {
    /// The producer asks for a product. The first of its trace.
    #[must_use]
    pub fn publish(id: &str) -> Self {
        Self::begin("publish", SpanKind::Producer, Context::new, Some(id))
    }

    /// A worker sees a product to its outcome, or puts it off.
    #[must_use]
    pub fn process(id: &str, parent: &Parent) -> Self {
        Self::begin("process", SpanKind::Consumer, || parent.context(), Some(id))
    }

    /// A worker calls the model, for the product in whose scope it does.
    #[must_use]
    pub fn call() -> Self {
        Self::begin("call", SpanKind::Client, Context::current, None)
    }

    /// The aggregator writes a product's line.
    #[must_use]
    pub fn record(id: &str, parent: &Parent) -> Self {
        Self::begin("record", SpanKind::Consumer, || parent.context(), Some(id))
    }

    fn begin(name: &'static str, kind: SpanKind, parent: impl FnOnce() -> Context, id: Option<&str>) -> Self {
        if !is_on() {
            return Self(None);
        }
        let tracer: BoxedTracer = global::tracer("shelfmill");
        let mut span = tracer.span_builder(name).with_kind(kind).start_with_context(&tracer, &parent());
        if let Some(id) = id {
            span.set_attribute(KeyValue::new("shelfmill.product.id", id.to_owned()));
        }
        Self(Some(Context::new().with_span(span)))
    }

    /// What is done within is part of it.
    // Not an `async fn`: that would have room for both of its ways, and each is as large as all that is done for a product.
    pub fn scope<F: Future>(&self, what: F) -> impl Future<Output = F::Output> + use<F> {
        match &self.0 {
            Some(context) => Either::Left(what.with_context(context.clone())),
            None => Either::Right(what),
        }
    }

    /// Something to know about it.
    pub fn set(&self, name: &'static str, value: impl Into<opentelemetry::Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(name, value));
        }
    }

    /// It has failed, for this class.
    pub fn fail(&self, class: FailureClass) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new("error.type", class.name()));
            context.span().set_status(Status::error(class.name()));
        }
    }
}
