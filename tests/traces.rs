//! One trace per product, across the processes of a fleet: what a collector gets.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, http::HeaderMap, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, trace::v1::Span,
};
use prost::Message as _;
use tokio::{net::TcpListener, runtime::Runtime};

use crate::support::{
    catalog::Catalog,
    fleet::{DEADLINE, Fleet, ended},
    process::shelfmill,
    simulator::Simulator,
};

/// What was collected.
#[derive(Debug, Default)]
struct Collected {
    spans: Vec<(String, Span)>,
    keys: BTreeSet<String>,
}

/// A collector that speaks OTLP over HTTP.
struct Collector {
    url: String,
    collected: Arc<Mutex<Collected>>,
    _runtime: Runtime,
}

fn text(attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{name}: {other:?}"),
    }
}

impl Collector {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let collected: Arc<Mutex<Collected>> = Arc::default();
        let told = Arc::clone(&collected);
        let collect = post(move |headers: HeaderMap, body: Bytes| async move {
            let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
            let mut told = told.lock().unwrap();
            told.keys.extend(headers.get("x-api-key").map(|key| key.to_str().unwrap().to_owned()));
            for spans in request.resource_spans {
                let attributes = spans.resource.expect("a resource").attributes;
                assert_eq!(text(&attributes, "service.name").as_deref(), Some("shelfmill"));
                let role = text(&attributes, "shelfmill.role").expect("a role");
                let spans = spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
                told.spans.extend(spans.map(|span| (role.clone(), span)));
            }
        });
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, Router::new().route("/v1/traces", collect)).await });
        Self { url, collected, _runtime: runtime }
    }

    /// By product: its spans, of one trace.
    fn traces(&self) -> BTreeMap<String, Vec<(String, Span)>> {
        let collected = self.collected.lock().unwrap();
        let mut traces: BTreeMap<Vec<u8>, Vec<(String, Span)>> = BTreeMap::new();
        for (role, span) in &collected.spans {
            traces.entry(span.trace_id.clone()).or_default().push((role.clone(), span.clone()));
        }
        let count = traces.len();
        let by_product: BTreeMap<_, _> = traces
            .into_values()
            .map(|spans| {
                let ids: BTreeSet<String> = spans
                    .iter()
                    .filter_map(|(_, span)| text(&span.attributes, "shelfmill.product.id"))
                    .collect();
                assert_eq!(ids.len(), 1, "one product per trace: {spans:#?}");
                (ids.into_iter().next().unwrap(), spans)
            })
            .collect();
        assert_eq!(by_product.len(), count, "one trace per product");
        by_product
    }
}

/// Each product was published once, and what was published last is the parent of what handled it.
fn assert_whole(traces: &BTreeMap<String, Vec<(String, Span)>>, roles: [&str; 3]) -> usize {
    let mut calls = 0;
    for (id, spans) in traces {
        let named = |name: &'static str| spans.iter().filter(move |(_, span)| span.name == name);
        let one = |name: &'static str, role: &str| {
            let found: Vec<_> = named(name).collect();
            assert!(found.len() == 1 && found[0].0 == role, "{id}: one {name} by {role}: {spans:#?}");
            &found[0].1
        };
        let published = one("publish", roles[0]);
        assert!(published.parent_span_id.is_empty(), "{id}: the first");
        let recorded = one("record", roles[2]);
        let processed: Vec<_> = named("process").map(|(_, span)| span).collect();
        let parents: BTreeSet<_> =
            processed.iter().map(|span| &span.span_id).chain([&published.span_id]).collect();
        assert!(processed.iter().all(|span| parents.contains(&span.parent_span_id)), "{id}: {spans:#?}");
        let last = processed
            .iter()
            .find(|span| span.span_id == recorded.parent_span_id)
            .unwrap_or_else(|| panic!("{id}: recorded for the one that told: {spans:#?}"));
        let outcome = text(&last.attributes, "shelfmill.outcome").expect("an outcome");
        assert!(["completed", "failed"].contains(&outcome.as_str()), "{id}: {outcome}");
        for (role, call) in named("call") {
            assert_eq!(role, roles[1]);
            assert!(processed.iter().any(|span| span.span_id == call.parent_span_id), "{id}: {spans:#?}");
            assert!(text(&call.attributes, "gen_ai.request.model").is_some(), "{id}: {call:?}");
            calls += 1;
        }
    }
    calls
}

#[test]
fn a_fleet_leaves_one_trace_per_product() {
    let collector = Collector::start();
    // Some wait for another try in a queue, and some fail.
    let fleet = Fleet::new("traces", 120, &["--latency", "10ms", "--server-error", "0.1"]);
    let traced = |program: crate::support::process::Program| {
        program
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url)
            .env("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=canary-of-the-collector")
    };
    let mut worker = traced(fleet.worker()).start();
    ended(traced(fleet.producer()).run(DEADLINE));
    let end = ended(traced(fleet.aggregator()).run(DEADLINE));
    worker.terminate();
    let worked = ended(worker.wait(DEADLINE));
    for log in [&end.stderr, &worked.stderr] {
        assert!(!log.contains("canary-of"), "{log}");
    }
    let traces = collector.traces();
    assert_eq!(traces.len(), 120);
    let calls = assert_whole(&traces, ["producer", "worker", "aggregator"]);
    assert_eq!(calls as u64, fleet.simulator.calls());
    assert!(calls > 120, "some are called for again");
    assert!(collector.collected.lock().unwrap().keys.contains("canary-of-the-collector"));
}

#[test]
fn a_run_in_one_process_does_too() {
    let collector = Collector::start();
    let (catalog, simulator) = (Catalog::of(50), Simulator::start(&[]));
    let run = shelfmill().arg("run").args(catalog.args()).args(["--base-url", simulator.url()]);
    ended(
        run.env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{}/v1/traces", collector.url)).run(DEADLINE),
    );
    let traces = collector.traces();
    assert_eq!(traces.len(), 50);
    assert_eq!(assert_whole(&traces, ["run"; 3]), 50);
}

#[test]
fn a_collector_that_is_away_is_told_once_and_holds_up_nobody() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (catalog, simulator) = (Catalog::of(2_000), Simulator::start(&[]));
    let run = || shelfmill().arg("run").args(catalog.args()).args(["--base-url", simulator.url()]);
    let url = format!("http://user:canary-password@{nobody}");
    let end = ended(run().env("OTEL_EXPORTER_OTLP_ENDPOINT", url).run(DEADLINE));
    assert_eq!(end.stderr.matches("the collector of traces does not take them").count(), 1, "{end}");
    assert!(!end.stderr.contains("canary"), "{end}");
    let end = run().env("OTEL_EXPORTER_OTLP_ENDPOINT", "not a url").run(DEADLINE).expect_code(1);
    assert!(end.stderr.contains("OTEL_EXPORTER_OTLP_ENDPOINT must be a URL"), "{end}");
}
