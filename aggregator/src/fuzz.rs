//! What holds for damaged files of a run: each line is read or told with its number, nothing is written that was not
//! there, and what can be read can be read again.

use std::{fs, io, path::Path, sync::OnceLock};

use proptest::prelude::*;
use serde::de::IgnoredAny;
use shelfmill_pipeline::{changes::Changes, ledger::EmbeddedLedger};
use shelfmill_testing::nearly;
use tokio::runtime::Runtime;

use super::*;
use crate::line_file::LineFile;

const JOURNAL_LINE: &str = include_str!("../../pipeline/golden/journal_line.json");
const RECORD: &str = r#"{
  "version": 1, "run": "spring", "journal": "00112233445566ff", "job": null,
  "started_at": "2026-01-01T00:00:00Z", "active_ms": 1234, "session_started_at": "2026-01-01T00:00:01Z",
  "expected": 229, "rejects_scan": 2
}"#;

fn journal() -> Vec<String> {
    let line = JOURNAL_LINE.trim_end();
    vec![
        (1..4)
            .map(|n| {
                line.replace("SM-1", &format!("SM-{n}")).replace("\"seq\":1", &format!("\"seq\":{n}")) + "\n"
            })
            .collect(),
        String::new(),
    ]
}

fn aside() -> Vec<String> {
    let changes = r#"{"changes":{"model":"big","max_output_tokens":4096},"line":"#;
    let with = |line: &str| format!("{changes}{line}}}\n");
    failures().iter().map(|lines| lines.lines().map(with).collect::<String>() + lines).collect()
}

fn failures() -> Vec<String> {
    let failure = "\"failure\":{\"class\":\"malformed\",\"message\":\"no\",\"raw\":\"Sure!\\n\"},\"meta\"";
    let analysis = JOURNAL_LINE.find("\"analysis\"").unwrap();
    let meta = JOURNAL_LINE.find("\"meta\"").unwrap();
    let line = format!("{}{failure}{}", &JOURNAL_LINE[..analysis], &JOURNAL_LINE[meta + 6..]);
    vec![line.repeat(3), line.replace("SM-1", "SM-9") + &line, String::new()]
}

/// Memory where there is some: thousands of fsyncs of a real disk would take the day.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    })
}

/// Whole lines, counted without the reader.
fn whole_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

proptest! {
    #[test]
    fn lines_are_what_is_between_line_breaks(bytes in nearly(journal())) {
        let folder = folder();
        let path = folder.path().join("lines");
        fs::write(&path, &bytes).unwrap();
        let file = LineFile::open(&path).unwrap();
        let kept = fs::read(&path).unwrap();
        prop_assert!(bytes.starts_with(&kept) && kept.len() as u64 == file.size_bytes());
        prop_assert!(kept.is_empty() || kept.ends_with(b"\n"));
        prop_assert_eq!(whole_lines(&kept), whole_lines(&bytes));
        let mut again = Vec::new();
        let read = read_lines::<io::Error>(&path, 0, |at_bytes, _, line| {
            assert_eq!(at_bytes, again.len() as u64);
            again.extend_from_slice(line.as_bytes());
            again.push(b'\n');
            Ok(())
        });
        match read {
            Ok(()) => prop_assert_eq!(again, kept),
            Err(error) => {
                prop_assert!(std::str::from_utf8(&kept).is_err());
                let place = format!("line {}: damaged", 1 + whole_lines(&again));
                prop_assert!(error.to_string().contains(&place));
            }
        }
    }

    #[test]
    fn a_run_with_damaged_files_is_told_or_goes_on(journal in nearly(journal()), failures in nearly(failures())) {
        let place = folder();
        let folder = Folder::open(place.path(), "spring").unwrap();
        fs::write(folder.journal(), &journal).unwrap();
        fs::write(folder.failures(), &failures).unwrap();
        let ledger = EmbeddedLedger::new();
        let ended = runtime().block_on(async {
            let (mut writer, cost_usd) = Writer::open(folder, &ledger, Stopper::new()).await?;
            assert!(!cost_usd.is_nan());
            finalize(&mut writer.folder, &ledger, 0, Status::Complete).await
        });
        let results = place.path().join("enriched_products_analysis.json");
        match ended {
            Ok(summary) => {
                let results: Vec<IgnoredAny> = serde_json::from_slice(&fs::read(results).unwrap()).unwrap();
                prop_assert_eq!(results.len(), whole_lines(&journal));
                prop_assert!(serde_json::to_string(&summary).is_ok());
            }
            Err(error) => {
                let told = format!("{error:#}");
                prop_assert!(told.contains("damaged") && told.contains(", line "), "{}", told);
                prop_assert!(!results.exists());
                // Lines are the user's: nothing but a torn end is gone.
                let kept = fs::read(place.path().join("enriched_products_incremental.jsonl")).unwrap();
                prop_assert_eq!(whole_lines(&kept), whole_lines(&journal));
            }
        }
    }

    #[test]
    fn of_damaged_failures_all_are_put_back_or_none(failures in nearly(failures()), every in 1_usize..3) {
        let place = folder();
        let folder = Folder::open(place.path(), "spring").unwrap();
        fs::write(folder.failures(), &failures).unwrap();
        let wanted = |product: &shelfmill_pipeline::ledger::FailedProduct| product.task.id.len().is_multiple_of(every);
        match requeue(&folder, wanted, &Changes::default()) {
            Ok(count) => {
                let left = if count == 0 { whole_lines(&failures) } else { whole_lines(&fs::read(folder.failures()).unwrap()) };
                prop_assert_eq!(left + usize::try_from(count).unwrap(), whole_lines(&failures));
                let aside = fs::read(folder.state_file("requeued.jsonl")).unwrap();
                prop_assert_eq!(whole_lines(&aside) as u64, count);
                prop_assert!(put_back(&folder).unwrap().len() as u64 <= count);
            }
            Err(error) => {
                let told = format!("{:#}", anyhow::Error::new(error));
                prop_assert!(told.contains("damaged") && told.contains(", line "), "{}", told);
                prop_assert_eq!(fs::read(folder.failures()).unwrap(), failures);
            }
        }
    }

    #[test]
    fn damaged_lines_aside_are_told_or_can_be_asked(aside in nearly(aside())) {
        let place = folder();
        let folder = Folder::open(place.path(), "spring").unwrap();
        fs::write(folder.state_file("requeued.jsonl"), &aside).unwrap();
        match put_back(&folder) {
            Ok(products) => {
                prop_assert!(products.len() <= whole_lines(&aside));
                prop_assert!(products.values().all(|product| product.changes.check().is_ok()));
            }
            Err(error) => {
                let told = format!("{:#}", anyhow::Error::new(error));
                prop_assert!(told.contains("damaged") && told.contains(", line "), "{}", told);
            }
        }
    }

    #[test]
    fn a_damaged_record_of_a_run_is_told_or_kept(bytes in nearly([RECORD])) {
        let place = folder();
        let state = place.path().join(".shelfmill");
        fs::create_dir(&state).unwrap();
        fs::write(state.join("run.json"), &bytes).unwrap();
        let Ok(Some(record)) = Folder::read_record(place.path()) else {
            prop_assert!(Folder::open(place.path(), "spring").is_err());
            prop_assert_eq!(fs::read(state.join("run.json")).unwrap(), bytes);
            return Ok(());
        };
        let mut folder = Folder::open(place.path(), &record.run).unwrap();
        let _ = folder.active();
        folder.close().unwrap();
        let read = Folder::read_record(place.path()).unwrap().unwrap();
        prop_assert_eq!((read.run, read.journal, read.expected), (record.run, record.journal, record.expected));
        let _ = recent_rate(&folder.journal());
    }
}

#[test]
fn a_line_without_end_is_told_without_being_read_whole() {
    let place = folder();
    let folder = Folder::open(place.path(), "spring").unwrap();
    let long = "x".repeat(shelfmill_pipeline::record::MAX_LINE_BYTES + 1);
    fs::write(folder.journal(), format!("{JOURNAL_LINE}{long}\n{JOURNAL_LINE}")).unwrap();
    let error = read_lines::<io::Error>(&folder.journal(), 0, |_, _, _| Ok(())).unwrap_err().to_string();
    assert!(error.contains("line 2: damaged (longer than 4194304 bytes)"), "{error}");
    fs::write(place.path().join(".shelfmill/run.json"), " ".repeat(17 * 1024 * 1024)).unwrap();
    let told = Folder::read_record(place.path()).unwrap_err().to_string();
    assert!(told.contains("larger than"), "{told}");
}
