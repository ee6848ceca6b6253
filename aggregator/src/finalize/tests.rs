//! What is left at the end of a run, over a journal with everything that can be in one.

use std::{fmt::Write as _, fs};

use serde_json::{Value, json};
use shelfmill_pipeline::{
    identity::IdHash,
    ledger::{EmbeddedLedger, Ledger},
    shutdown::Stopper,
};

use super::*;
use crate::{Writer, replay::ReplayError};

fn line(id: &str, seq: u64, attempts: u32, failure: Option<&str>) -> String {
    let mut line = json!({
        "id": id, "seq": seq, "product": {"id": id}, "analysis": {"category": "Kitchen"},
        "meta": {
            "model": "gpt-4.1-mini", "prompt_tokens": 100 * attempts, "completion_tokens": 10 * attempts,
            "cost_usd": 0.001 * f64::from(attempts), "latency_ms": 100 * seq, "attempts": attempts, "worker": "w",
            "fingerprint": "f", "completed_at": "2026-01-01T00:00:00Z"
        }
    });
    if let Some(class) = failure {
        line.as_object_mut().unwrap().remove("analysis");
        line["failure"] = json!({"class": class, "message": "because"});
        line["meta"]["repeated_calls"] = json!(1);
    }
    line.to_string()
}

fn lines(all: &[String]) -> String {
    all.iter().fold(String::new(), |mut text, line| {
        writeln!(text, "{line}").unwrap();
        text
    })
}

/// A run of five products: `a` and `c` done out of order, `b` failed and then succeeded, `d` failed twice, `e` is left.
async fn written(folder: &Folder) -> EmbeddedLedger {
    let journal = [line("c", 3, 1, None), line("a", 1, 2, None), line("b", 2, 1, None)];
    let failures = [
        line("d", 4, 1, Some("timeout")),
        line("b", 2, 5, Some("malformed")),
        line("d", 4, 3, Some("server_error")),
    ];
    fs::write(folder.journal(), lines(&journal)).unwrap();
    fs::write(folder.failures(), lines(&failures)).unwrap();
    let ledger = EmbeddedLedger::new();
    let scan = ledger.begin_scan("p").await.unwrap().unwrap();
    let products = ["a", "b", "c", "d", "e"].map(IdHash::of);
    ledger.admit(scan, 1, &products).await.unwrap();
    ledger.seal(scan, 1, 0).await.unwrap();
    ledger
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_files_are_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let folder = Folder::open(directory.path(), "spring").unwrap();
    let ledger = written(&folder).await;
    let (writer, cost_usd) = Writer::open(folder, &ledger, Stopper::new()).await.unwrap();
    assert!((cost_usd - 0.013).abs() < 1e-9, "{cost_usd}");
    let mut folder = writer.folder;
    for _ in 0..2 {
        finalize(&mut folder, &ledger, 2, Status::Complete).await.unwrap();
        let results: Vec<Value> = serde_json::from_slice(&fs::read(folder.results()).unwrap()).unwrap();
        assert_eq!(
            results.iter().map(|result| result["id"].as_str().unwrap()).collect::<Vec<_>>(),
            ["a", "b", "c"]
        );
        let failures = fs::read_to_string(folder.failures()).unwrap();
        assert_eq!(failures, lines(&[line("d", 4, 3, Some("server_error"))]));

        let mut summary: Value = serde_json::from_slice(&fs::read(folder.summary()).unwrap()).unwrap();
        for clock in ["started_at", "finished_at", "elapsed_seconds", "products_per_second"] {
            summary[clock] = json!("…");
        }
        let golden: Value = serde_json::from_str(include_str!("../../golden/summary.json")).unwrap();
        assert_eq!(summary, golden, "{summary:#}");
        let fields: Vec<_> = summary.as_object().unwrap().keys().collect();
        assert_eq!(fields, golden.as_object().unwrap().keys().collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_products_leaves_an_empty_list() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = EmbeddedLedger::new();
    let (writer, _) =
        Writer::open(Folder::open(directory.path(), "spring").unwrap(), &ledger, Stopper::new())
            .await
            .unwrap();
    let mut folder = writer.folder;
    let summary = finalize(&mut folder, &ledger, 0, Status::Complete).await.unwrap();
    assert_eq!(fs::read_to_string(folder.results()).unwrap(), "[]\n");
    assert_eq!((summary.cost_usd, summary.latency_ms, summary.counts.input), (None, None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_lost_lines_or_is_another_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let folder = Folder::open(directory.path(), "spring").unwrap();
    let ledger = written(&folder).await;
    let (writer, _) = Writer::open(folder, &ledger, Stopper::new()).await.unwrap();
    drop(writer);
    let journal = directory.path().join("enriched_products_incremental.jsonl");
    let text = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, text.lines().take(2).fold(String::new(), |all, line| all + line + "\n")).unwrap();
    let refused = async |path: &std::path::Path| {
        let folder = Folder::open(path, "spring").unwrap();
        let error = Writer::open(folder, &ledger, Stopper::new()).await.map(drop).unwrap_err();
        error.downcast::<ReplayError>().unwrap()
    };
    assert!(matches!(refused(directory.path()).await, ReplayError::Shorter { .. }));
    let elsewhere = tempfile::tempdir().unwrap();
    assert!(matches!(refused(elsewhere.path()).await, ReplayError::OtherJournal { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_has_forgotten_takes_no_failure_away() {
    let directory = tempfile::tempdir().unwrap();
    let folder = Folder::open(directory.path(), "spring").unwrap();
    let ledger = written(&folder).await;
    let (mut writer, _) = Writer::open(folder, &ledger, Stopper::new()).await.unwrap();
    let emptied = EmbeddedLedger::new();
    finalize(&mut writer.folder, &emptied, 0, Status::Interrupted).await.unwrap();
    let failures = fs::read_to_string(writer.folder.failures()).unwrap();
    assert!(failures.contains("\"d\""), "{failures}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_set_back_to_before_the_failures_were_rewritten_is_told_all_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let folder = Folder::open(directory.path(), "spring").unwrap();
    let ledger = written(&folder).await;
    let (mut writer, _) = Writer::open(folder, &ledger, Stopper::new()).await.unwrap();
    let before = ledger.journal().await.unwrap().unwrap();
    let edition = writer.folder.record().failures_edition;
    finalize(&mut writer.folder, &ledger, 0, Status::Interrupted).await.unwrap();
    assert_eq!(writer.folder.record().failures_edition, edition + 1);
    assert_eq!(
        ledger.journal().await.unwrap(),
        Some(JournalMark {
            failures_bytes: fs::metadata(writer.folder.failures()).unwrap().len(),
            failures_edition: edition + 1,
            ..before.clone()
        })
    );
    drop(writer);
    let set_back = EmbeddedLedger::new();
    set_back.record(&[], None, &before).await.unwrap();
    let folder = Folder::open(directory.path(), "spring").unwrap();
    Writer::open(folder, &set_back, Stopper::new()).await.unwrap();
    let (_, states) = set_back.states(&[IdHash::of("d")]).await.unwrap();
    assert_eq!(states, [State::Failed]);
}
