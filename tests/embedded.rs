//! `shelfmill run`: one process, killed and started again.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::support::{
    catalog::Catalog,
    checker::{Repeats, Report, check},
    process::{Finished, Program, shelfmill},
    results::{Results, id, journal_lines},
    simulator::Simulator,
    wait::eventually,
};

const DEADLINE: Duration = Duration::from_secs(120);

fn run(catalog: &Catalog, simulator: &Simulator) -> Program {
    run_many(catalog, simulator, 16)
}

fn run_many(catalog: &Catalog, simulator: &Simulator, concurrency: u32) -> Program {
    let options = ["--base-url", simulator.url(), "--concurrency", &concurrency.to_string()];
    shelfmill().arg("run").args(catalog.args()).args(options)
}

fn finished(program: Program) -> Finished {
    program.run(DEADLINE)
}

#[test]
fn a_catalog_goes_in_and_every_product_comes_out_once() {
    let (catalog, simulator) = (Catalog::of(229), Simulator::start(&["--jitter", "5ms", "--latency", "5ms"]));
    let end = finished(run(&catalog, &simulator)).expect_code(0);
    assert!(end.stderr.contains("Completed: 229/229 products (100.0%)"), "{end}");
    assert!(end.stderr.contains("enriched_products_analysis.json"), "{end}");
    assert!(end.stdout.is_empty(), "{end}");
    let results = check(&catalog, &simulator, Repeats::None);
    assert_eq!((simulator.calls(), results.calls()), (229, (229, 0)));
    assert_eq!(results.summary["model"], "simulated");
    assert_eq!(results.summary["cost_usd"], Value::Null);
    let product = &results.results[7]["product"];
    assert_eq!(product["title"], "Kettle \"No. 7\", größer");
    assert_eq!(product["description"], "Boils water.\nQuietly.");
}

#[test]
fn run_again_makes_no_call_and_new_products_are_done() {
    let (catalog, simulator) = (Catalog::of(50), Simulator::start(&[]));
    finished(run(&catalog, &simulator)).expect_code(0);
    finished(run(&catalog, &simulator)).expect_code(0);
    assert_eq!(simulator.calls(), 50);
    let catalog = catalog.with(0..80);
    finished(run(&catalog, &simulator)).expect_code(0);
    assert_eq!(simulator.calls(), 80);
    check(&catalog, &simulator, Repeats::None);
}

#[test]
fn killed_at_any_moment_and_started_again_no_product_is_lost_or_doubled() {
    const CONCURRENCY: u64 = 16;
    let (catalog, simulator) =
        (Catalog::of(1_500), Simulator::start(&["--latency", "20ms", "--jitter", "10ms"]));
    let mut kills = 0;
    for share in 1..6 {
        let running = run(&catalog, &simulator).start();
        eventually(DEADLINE, "some progress", || match journal_lines(&catalog.out()) {
            lines if lines >= share * 200 => Ok(()),
            lines => Err(lines.to_string()),
        });
        assert_eq!(running.kill9().signal, Some(9));
        kills += 1;
    }
    finished(run(&catalog, &simulator)).expect_code(0);
    // Calls in flight, and answers that were not yet on disk: at 800 products a second a batch of 50 ms has 40.
    check(&catalog, &simulator, Repeats::AtMost(kills * (CONCURRENCY + 40)));
}

#[test]
fn a_torn_last_line_is_cut_and_its_product_done_again() {
    let (catalog, simulator) = (Catalog::of(20), Simulator::start(&[]));
    finished(run(&catalog, &simulator)).expect_code(0);
    let journal = catalog.out().join("enriched_products_incremental.jsonl");
    let text = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, &text[..text.len() - 30]).unwrap();
    let end = finished(run(&catalog, &simulator)).expect_code(0);
    assert!(end.stderr.contains("cut off a torn last line"), "{end}");
    // Nobody tells a tool that its file was cut.
    check(&catalog, &simulator, Repeats::UntoldAtMost(1));
    assert_eq!(simulator.calls(), 21);
}

#[test]
fn damage_in_the_middle_of_the_journal_is_told_with_its_line() {
    let (catalog, simulator) = (Catalog::of(20), Simulator::start(&[]));
    finished(run(&catalog, &simulator)).expect_code(0);
    let journal = catalog.out().join("enriched_products_incremental.jsonl");
    let text = fs::read_to_string(&journal).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines[7] = "garbage";
    fs::write(&journal, lines.join("\n") + "\n").unwrap();
    let end = finished(run(&catalog, &simulator)).expect_code(1);
    assert!(end.stderr.contains("incremental.jsonl, line 8: damaged"), "{end}");
    assert_eq!(simulator.calls(), 20);
}

#[test]
fn ctrl_c_finishes_calls_in_flight_and_says_how_to_go_on() {
    let (catalog, simulator) = (Catalog::of(400), Simulator::start(&["--latency", "100ms"]));
    let mut running = run(&catalog, &simulator).start();
    eventually(DEADLINE, "some progress", || match journal_lines(&catalog.out()) {
        0 => Err("no line".to_owned()),
        _ => Ok(()),
    });
    running.interrupt();
    let end = running.wait(DEADLINE).expect_code(130);
    assert!(end.stderr.contains("to go on: run the same command again"), "{end}");
    let results = Results::read(&catalog.out());
    assert_eq!(results.summary["status"], "interrupted");
    assert_eq!(simulator.calls(), results.journal.len() as u64, "a call in flight was not finished");
    Report::of_summary(&results).assert_promises_hold(Repeats::None);

    finished(run(&catalog, &simulator)).expect_code(0);
    let results = check(&catalog, &simulator, Repeats::None);
    assert_eq!((simulator.calls(), results.calls()), (400, (400, 0)));
}

#[test]
fn a_second_signal_and_a_short_grace_end_what_hangs() {
    let (catalog, simulator) = (Catalog::of(40), Simulator::start(&["--hung", "1"]));
    for second_signal in [true, false] {
        let mut running =
            run(&catalog, &simulator).args(["--grace", if second_signal { "1h" } else { "200ms" }]).start();
        let before = simulator.calls();
        eventually(DEADLINE, "calls that hang", || match simulator.calls() - before {
            16 => Ok(()),
            calls => Err(calls.to_string()),
        });
        running.terminate();
        eventually(DEADLINE, "the first signal to be heard", || {
            if running.stderr().contains("stopping") { Ok(()) } else { Err(running.stderr()) }
        });
        if second_signal {
            running.terminate();
        }
        running.wait(Duration::from_secs(20)).expect_code(130);
    }
}

#[test]
fn faults_cost_retries_and_no_product() {
    let shares = ["rate-limited", "server-error", "malformed", "cut-off", "schema-violation"];
    let mut options = vec!["--latency".to_owned(), "2ms".to_owned()];
    options.extend(shares.iter().flat_map(|fault| [format!("--{fault}"), "0.04".to_owned()]));
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let (catalog, simulator) = (Catalog::of(300), Simulator::start(&options));
    let job = catalog.file("job.toml", "[limits]\nmax_attempts = 20\n");
    finished(run(&catalog, &simulator).arg("--job").arg(job)).expect_code(0);
    let results = check(&catalog, &simulator, Repeats::None);
    assert!(results.failures.is_empty());
    let retries = results.summary["calls"]["retries"].as_u64().unwrap();
    assert_eq!(simulator.calls(), 300 + retries);
    assert!(retries > 20, "{retries}");
}

#[test]
fn failures_are_told_kept_and_put_back() {
    let (catalog, simulator) =
        (Catalog::of(40), Simulator::start(&["--bad-request", "0.2", "--refused", "0.1"]));
    let end = finished(run(&catalog, &simulator)).expect_code(3);
    assert!(end.stderr.contains("shelfmill requeue"), "{end}");
    let results = check(&catalog, &simulator, Repeats::None);
    let classes = &results.summary["failures_by_class"];
    let count = |class: &str| classes[class].as_u64().unwrap_or(0);
    assert_eq!(count("model_refused") + count("content_filtered"), results.failures.len() as u64);
    assert!(count("model_refused") > 0 && count("content_filtered") > 0, "{classes}");

    // Nothing is tried again without being asked for.
    let simulator = Simulator::start(&[]);
    finished(run(&catalog, &simulator)).expect_code(3);
    assert_eq!(simulator.calls(), 0);

    let requeue = |options: &[&str]| {
        finished(shelfmill().arg("requeue").arg("--out").arg(catalog.out()).args(options))
            .expect_code(0)
            .stdout
    };
    assert!(requeue(&["--class", "timeout"]).contains("nothing was put back"));
    let progress =
        finished(shelfmill().args(["progress", "--json", "--out"]).arg(catalog.out())).expect_code(0).stdout;
    let progress: Value = serde_json::from_str(&progress).unwrap();
    assert_eq!(&progress["failures_by_class"], classes);
    let one = id(&results.failures[0]).to_owned();
    assert!(requeue(&["--id", &one]).contains("Put back 1 failed product"));
    finished(run(&catalog, &simulator)).expect_code(3);
    assert_eq!(simulator.calls(), 1);
    requeue(&[]);
    finished(run(&catalog, &simulator)).expect_code(0);
    let after = check(&catalog, &simulator, Repeats::None);
    assert!(after.failures.is_empty());
    assert_eq!(simulator.calls(), results.failures.len() as u64);
    // What the failed attempts cost is part of the bill.
    assert_eq!(after.calls().0, 40 + results.failures.len() as u64);
}

#[test]
fn a_changed_job_is_refused_until_it_is_accepted() {
    let (catalog, simulator) = (Catalog::of(10), Simulator::start(&[]));
    finished(run(&catalog, &simulator)).expect_code(0);
    let end = finished(run(&catalog, &simulator).args(["--model", "another"])).expect_code(2);
    for expected in ["(model)", "--run NAME", "--accept-changed-job"] {
        assert!(end.stderr.contains(expected), "{end}");
    }
    let catalog = catalog.with(0..12);
    finished(run(&catalog, &simulator).args(["--model", "another", "--accept-changed-job"])).expect_code(0);
    check(&catalog, &simulator, Repeats::None);
    assert_eq!(simulator.calls(), 12);
}

#[test]
fn one_process_at_a_time_has_the_folder() {
    let (catalog, simulator) = (Catalog::of(10), Simulator::start(&["--hung", "1"]));
    let first = run(&catalog, &simulator).start();
    eventually(DEADLINE, "the first to work", || match simulator.calls() {
        0 => Err("no call".to_owned()),
        _ => Ok(()),
    });
    let end = finished(run(&catalog, &simulator)).expect_code(1);
    assert!(end.stderr.contains("another process is writing results"), "{end}");
    first.kill9();
}

#[test]
fn rejects_are_set_aside_and_strictness_refuses_them() {
    let catalog = Catalog::of(3);
    let mut text = fs::read_to_string(catalog.input()).unwrap();
    text += "not json\n{\"title\":\"no id\"}\n{\"id\":\"SM-000001\",\"title\":\"again\"}\n";
    fs::write(catalog.input(), &text).unwrap();
    let simulator = Simulator::start(&[]);
    let end = finished(run(&catalog, &simulator).arg("--strict")).expect_code(2);
    assert!(end.stderr.contains("line 4"), "{end}");
    for _ in 0..2 {
        finished(run(&catalog, &simulator)).expect_code(0);
        let results = check(&catalog, &simulator, Repeats::None);
        let told: Vec<_> = results
            .rejects
            .iter()
            .map(|r| (r["line"].as_u64().unwrap(), r["reason"].as_str().unwrap()))
            .collect();
        assert_eq!(told, [(4, "unreadable"), (5, "missing_id"), (6, "duplicate_id")]);
        assert_eq!(results.summary["counts"]["input"], 6);
    }
}

#[test]
fn a_repaired_input_leaves_no_rejects() {
    let (catalog, simulator) = (Catalog::of(3), Simulator::start(&[]));
    let whole = fs::read_to_string(catalog.input()).unwrap();
    fs::write(catalog.input(), format!("{whole}broken\n")).unwrap();
    finished(run(&catalog, &simulator)).expect_code(0);
    assert_eq!(Results::read(&catalog.out()).rejects.len(), 1);
    fs::write(catalog.input(), whole).unwrap();
    finished(run(&catalog, &simulator)).expect_code(0);
    let results = check(&catalog, &simulator, Repeats::None);
    assert_eq!((results.rejects.len(), &results.summary["counts"]["input"]), (0, &3.into()));
}

#[test]
fn a_stop_while_the_producer_waits_for_a_place_is_a_stop() {
    // One more than worker and channel hold: the producer's last publish waits.
    let (catalog, simulator) = (Catalog::of(67), Simulator::start(&["--latency", "300ms"]));
    let mut running = run_many(&catalog, &simulator, 1).start();
    eventually(DEADLINE, "a call", || match simulator.calls() {
        0 => Err("none".to_owned()),
        _ => Ok(()),
    });
    running.interrupt();
    running.wait(DEADLINE).expect_code(130);
    finished(run(&catalog, &simulator)).expect_code(0);
    check(&catalog, &simulator, Repeats::None);
    assert_eq!(simulator.calls(), 67);
}

#[test]
fn a_stop_keeps_every_answer_that_was_paid_for() {
    // All answers come at once, more than a batch takes.
    let (catalog, simulator) = (Catalog::of(1_200), Simulator::start(&["--latency", "1s"]));
    let mut running = run_many(&catalog, &simulator, 1_200).start();
    eventually(DEADLINE, "all calls", || match simulator.calls() {
        1_200 => Ok(()),
        calls => Err(calls.to_string()),
    });
    running.interrupt();
    let end = running.wait(DEADLINE);
    assert_eq!(journal_lines(&catalog.out()), 1_200, "{end}");
}

#[test]
fn progress_reads_the_folder() {
    let (catalog, simulator) = (Catalog::of(65), Simulator::start(&[]));
    let progress = |option: &[&str]| {
        finished(shelfmill().arg("progress").arg("--out").arg(catalog.out()).args(option))
            .expect_code(0)
            .stdout
    };
    finished(run(&catalog, &simulator)).expect_code(0);
    assert_eq!(progress(&[]), "Completed: 65/65 products (100.0%)\nRemaining: 0 products\n");
    let json: Value = serde_json::from_str(&progress(&["--json"])).unwrap();
    assert_eq!(
        (&json["completed"], &json["total"], &json["complete"]),
        (&65.into(), &65.into(), &true.into())
    );
}

#[test]
fn the_inside_simulator_says_what_it_is_and_is_not_taken_for_a_model() {
    let catalog = Catalog::of(5);
    finished(shelfmill().arg("run").args(catalog.args()).arg("--simulate")).expect_code(0);
    let results = Results::read(&catalog.out());
    results.assert_every_product_once(&catalog);
    assert_eq!(results.journal[0]["meta"]["model"], "simulated");
    let simulator = Simulator::start(&[]);
    let end = finished(run(&catalog, &simulator)).expect_code(2);
    assert!(end.stderr.contains("(model)"), "{end}");
}
