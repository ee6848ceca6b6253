//! Files of a run that others delete, move, replace, change or damage, in mid-run and between two starts.
//!
//! Always: told plainly, nothing acknowledged that is not safely written, no product lost or doubled; and where what was
//! written is still held open, nothing is lost and no call made twice.

use std::{fs, path::PathBuf};

use crate::{
    disk_faults::{JOURNAL, count, run, wait_for, wait_for_lines},
    support::{
        catalog::Catalog,
        checker::Repeats,
        fleet::{DEADLINE, Fleet, ended},
        rabbitmq, redis,
        results::Results,
        simulator::Simulator,
    },
};

const FAILURES: &str = "failed_products.jsonl";
const REJECTS: &str = "rejected_products.jsonl";

/// A run in one process that is complete, with its simulator.
fn complete(products: usize) -> (Catalog, Simulator) {
    let (catalog, simulator) = (Catalog::of(products), Simulator::start(&[]));
    run(&catalog, &simulator).run(DEADLINE).expect_code(0);
    (catalog, simulator)
}

#[test]
fn files_that_are_deleted_in_mid_run_are_written_back() {
    let fleet = Fleet::new("disk-deleted", 400, &["--latency", "50ms", "--bad-request", "0.1"]);
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    for (lines, name) in [(50, JOURNAL), (100, FAILURES), (150, JOURNAL)] {
        fleet.wait_for_lines(lines);
        fs::remove_file(fleet.catalog.out().join(name)).unwrap();
    }
    let end = aggregator.wait(DEADLINE).expect_code(3);
    assert_eq!(count(&end.stderr, "the file was deleted while it is written"), 3, "{end}");
    assert_eq!(count(&end.stderr, "wrote the file back, with every line"), 3, "{end}");
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert!(results.failures.len() > 5);
    assert_eq!(fleet.simulator.calls(), 400);
    drop(workers);
}

#[test]
fn a_journal_that_is_replaced_in_mid_run_is_written_back_and_the_other_set_aside() {
    let (catalog, simulator) = (Catalog::of(400), Simulator::start(&["--latency", "50ms"]));
    let running = run(&catalog, &simulator).start();
    wait_for_lines(&catalog, 100);
    // As `sed -i` and editors do.
    let journal = catalog.out().join(JOURNAL);
    fs::write(catalog.out().join("edited"), "theirs\n").unwrap();
    fs::rename(catalog.out().join("edited"), &journal).unwrap();
    let end = ended(running.wait(DEADLINE));
    assert_eq!(count(&end.stderr, "another file was put in this one's place; it is set aside"), 1, "{end}");
    Results::read(&catalog.out()).assert_every_product_once(&catalog);
    assert_eq!(simulator.calls(), 400);
    let names = fs::read_dir(catalog.out()).unwrap().flatten().map(|entry| entry.file_name());
    let aside: Vec<_> = names.filter(|name| name.to_string_lossy().contains(".replaced-")).collect();
    assert_eq!(fs::read_to_string(catalog.out().join(&aside[0])).unwrap(), "theirs\n");
}

#[test]
fn a_folder_that_is_deleted_or_moved_in_mid_run_is_made_again() {
    let fleet = Fleet::new("disk-folder", 400, &["--latency", "50ms"]);
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    fleet.wait_for_lines(100);
    let moved = fleet.catalog.out().with_file_name("moved");
    fs::rename(fleet.catalog.out(), &moved).unwrap();
    fleet.wait_for_lines(200);
    // Away in one step: what is deleted file by file would meet the folder as it is made again.
    let deleted = fleet.catalog.out().with_file_name("deleted");
    fs::rename(fleet.catalog.out(), &deleted).unwrap();
    fs::remove_dir_all(deleted).unwrap();
    let end = ended(aggregator.wait(DEADLINE));
    assert_eq!(count(&end.stderr, "the folder was deleted or moved while it is written to"), 2, "{end}");
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!(fleet.simulator.calls(), 400);
    drop(workers);
}

#[test]
fn a_journal_that_is_cut_short_in_mid_run_stops_the_aggregator_before_it_acknowledges() {
    let fleet = Fleet::new("disk-cut", 300, &["--latency", "50ms"]);
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    fleet.wait_for_lines(100);
    let journal = fleet.catalog.out().join(JOURNAL);
    let copy = fs::read(&journal).unwrap();
    fs::OpenOptions::new().write(true).open(&journal).unwrap().set_len(10).unwrap();
    let end = aggregator.wait(DEADLINE).expect_code(1);
    assert!(end.stderr.contains("something else has changed it"), "{end}");
    let end = fleet.aggregator().run(DEADLINE).expect_code(1);
    assert!(end.stderr.contains("results are missing"), "{end}");
    // Restored from a copy that is older than the end: what it lacks is gone, and said so.
    fs::write(&journal, copy).unwrap();
    let end = fleet.aggregator().run(DEADLINE);
    match end.code {
        // The copy had every line that was told.
        Some(0) => {}
        _ => {
            assert!(end.stderr.contains("results are missing"), "{end}");
            // Then only what the journal has counts: the run's keys go, and the producer is run again.
            let keys = redis::shared().cli(&["KEYS", &format!("shelfmill:{{{}}}:*", fleet.run)]);
            let keys: Vec<&str> = keys.lines().collect();
            redis::shared().cli(&[&["DEL"], &keys[..]].concat());
            let aggregator = fleet.aggregator().start();
            wait_for(&aggregator, "Redis has lost the run");
            ended(fleet.producer().run(DEADLINE));
            ended(aggregator.wait(DEADLINE));
        }
    }
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    drop(workers);
}

#[test]
fn damage_in_the_middle_of_a_fleets_journal_is_told_and_can_be_mended() {
    let fleet = Fleet::new("disk-damage", 60, &[]);
    let workers = fleet.workers(1);
    ended(fleet.producer().run(DEADLINE));
    ended(fleet.aggregator().run(DEADLINE));
    let journal = fleet.catalog.out().join(JOURNAL);
    let text = fs::read_to_string(&journal).unwrap();
    let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    lines[7] = "x".repeat(lines[7].len());
    fs::write(&journal, lines.join("\n") + "\n").unwrap();
    let end = fleet.aggregator().run(DEADLINE).expect_code(1);
    assert!(end.stderr.contains("incremental.jsonl, line 8: damaged"), "{end}");
    // As the message says.
    lines.remove(7);
    fs::write(&journal, lines.join("\n") + "\n").unwrap();
    let keys = redis::shared().cli(&["KEYS", &format!("shelfmill:{{{}}}:*", fleet.run)]);
    redis::shared().cli(&[&["DEL"], &keys.lines().collect::<Vec<_>>()[..]].concat());
    let aggregator = fleet.aggregator().start();
    wait_for(&aggregator, "Redis has lost the run");
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    // The line that was deleted by hand was paid for, and nothing is left that knows.
    fleet.assert_done_with(rabbitmq::shared(), redis::shared(), Repeats::UntoldAtMost(1));
    assert_eq!(fleet.simulator.calls(), 61);
    drop(workers);
}

#[test]
fn damage_in_the_other_files_is_told_with_its_line_or_harms_nobody() {
    let catalog = Catalog::of(40);
    let mut text = fs::read_to_string(catalog.input()).unwrap();
    text += "broken\nbroken, too\n";
    fs::write(catalog.input(), text).unwrap();
    let simulator = Simulator::start(&["--bad-request", "0.3"]);
    run(&catalog, &simulator).run(DEADLINE).expect_code(3);
    let state = catalog.out().join(".shelfmill");
    let with = |path: PathBuf, bytes: &[u8], code: i32| {
        let before = fs::read(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let end = run(&catalog, &simulator).run(DEADLINE).expect_code(code);
        fs::write(&path, before).unwrap();
        end.stderr
    };
    let told = with(catalog.out().join(FAILURES), b"{\"id\":\n", 1);
    assert!(told.contains("failed_products.jsonl, line 1: damaged"), "{told}");
    let told = with(catalog.out().join(REJECTS), b"\xff\n", 1);
    assert!(told.contains("rejected_products.jsonl, line 1: damaged"), "{told}");
    // A scan writes its rejects anew.
    with(catalog.out().join(REJECTS), b"garbage\n", 3);
    assert_eq!(Results::read(&catalog.out()).rejects.len(), 2);
    let told = with(state.join("run.json"), b"{\"version\":1,", 1);
    assert!(told.contains("run.json cannot be read") && told.contains("restore it from a copy"), "{told}");
    let told = with(state.join("run.json"), b"", 1);
    assert!(told.contains("run.json cannot be read"), "{told}");
    // A count may be wrong for it, and nothing else.
    with(state.join("inflight"), &[0xa5; 1_001], 3);
    assert_eq!(simulator.calls(), 40);
    // Without its record a run in one process goes on, as the message says.
    fs::remove_file(state.join("run.json")).unwrap();
    run(&catalog, &simulator).run(DEADLINE).expect_code(3);
    assert_eq!(simulator.calls(), 40);
}

#[test]
fn a_journal_that_is_gone_at_the_start_is_told_before_anything_is_paid_again() {
    let (catalog, simulator) = complete(20);
    let journal = catalog.out().join(JOURNAL);
    let text = fs::read(&journal).unwrap();
    let check = || {
        let end = run(&catalog, &simulator).run(DEADLINE).expect_code(1);
        assert!(end.stderr.contains("is gone or empty, but there were results in it"), "{end}");
    };
    fs::remove_file(&journal).unwrap();
    check();
    fs::write(&journal, "").unwrap();
    check();
    fs::write(&journal, &text).unwrap();
    ended(run(&catalog, &simulator).run(DEADLINE));
    assert_eq!(simulator.calls(), 20);

    // Also where the first session was killed.
    let (catalog, simulator) = (Catalog::of(100), Simulator::start(&["--latency", "100ms"]));
    let running = run(&catalog, &simulator).start();
    wait_for_lines(&catalog, 30);
    running.kill9();
    fs::remove_file(catalog.out().join(JOURNAL)).unwrap();
    let end = run(&catalog, &simulator).run(DEADLINE).expect_code(1);
    assert!(end.stderr.contains("there were results in it"), "{end}");
}
