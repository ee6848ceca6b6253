//! Several ways to the model: who is asked, what happens when one dies, and which key is shown.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::support::{
    catalog::Catalog,
    checker::{Evidence, Repeats, check, examine},
    fleet::{DEADLINE, Fleet, ended},
    ports,
    process::{Program, shelfmill},
    rabbitmq, redis,
    results::{Results, journal_lines},
    simulator::Simulator,
    wait::eventually,
};

fn endpoint(name: &str, url: &str, more: &str) -> String {
    format!("[[llm.endpoints]]\nname = \"{name}\"\nbase_url = \"{url}\"\napi_keys = []\n{more}\n")
}

fn run(catalog: &Catalog, job: &str) -> Program {
    let job = catalog.file("job.toml", job);
    shelfmill().arg("run").args(catalog.args()).arg("--job").arg(job).args(["--concurrency", "16"])
}

/// Lines by the endpoint that answered.
fn answered(results: &Results) -> BTreeMap<String, usize> {
    let mut by = BTreeMap::new();
    for line in &results.journal {
        *by.entry(line["meta"]["endpoint"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    by
}

#[track_caller]
fn promises_hold(catalog: &Catalog) -> Results {
    let results = Results::read(&catalog.out());
    let evidence =
        Evidence { catalog, results: &results, model: None, queues: BTreeMap::new(), keys: BTreeMap::new() };
    examine(&evidence).assert_promises_hold(Repeats::None);
    results
}

#[test]
fn calls_are_shared_by_weight_and_lines_say_who_answered() {
    let catalog = Catalog::of(400);
    let [small, large] = [(); 2].map(|()| Simulator::start(&["--latency", "5ms"]));
    let job = endpoint("small", small.url(), "") + &endpoint("large", large.url(), "weight = 3");
    ended(run(&catalog, &job).run(DEADLINE));
    let by = answered(&promises_hold(&catalog));
    assert_eq!((by["small"] as u64, by["large"] as u64), (small.calls(), large.calls()));
    assert!((95..=105).contains(&by["small"]), "{by:?}");
}

#[test]
fn one_of_two_endpoints_dies_and_is_used_again_when_it_is_back() {
    let fleet = Fleet { concurrency: 20, ..Fleet::new("failover", 3_000, &["--latency", "40ms"]) };
    let port = ports::free();
    let options = ["--latency", "40ms"];
    let mortal = Simulator::start_at(port, &options);
    let job = endpoint("steady", fleet.simulator.url(), "") + &endpoint("mortal", mortal.url(), "");
    let job = fleet.catalog.file("job.toml", &format!("{job}[limits]\nmax_attempts = 1\n"));
    let worker = || fleet.command("worker").args(["-c", "20"]).start();
    let workers = [worker(), worker()];
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().arg("--job").arg(job).run(DEADLINE));
    fleet.wait_for_lines(500);
    drop(mortal);
    fleet.wait_for_lines(1_000);
    let back = Simulator::start_at(port, &options);
    eventually(DEADLINE, "calls to the endpoint that is back", || match back.calls() {
        calls if calls > 50 => Ok(()),
        calls => Err(calls.to_string()),
    });
    ended(aggregator.wait(DEADLINE));
    // With one attempt for each, an outage that counted would have failed some.
    let results = Results::read(&fleet.catalog.out());
    assert!(results.failures.is_empty(), "{:?}", results.failures);
    let repeated = fleet.kills(2);
    let evidence = Evidence {
        catalog: &fleet.catalog,
        results: &results,
        model: None,
        queues: BTreeMap::new(),
        keys: crate::support::checker::keys_of(&fleet.run, redis::shared()),
    };
    examine(&evidence).assert_promises_hold(repeated);
    let by = answered(&results);
    assert!(by["mortal"] > 300 && by["steady"] > 1_000, "{by:?}");
    drop((workers, rabbitmq::shared()));
}

#[test]
fn a_lone_server_that_goes_away_is_waited_for() {
    let catalog = Catalog::of(600);
    let port = ports::free();
    let options = ["--latency", "30ms"];
    let mortal = Simulator::start_at(port, &options);
    let job = format!("[llm]\nbase_url = \"{}\"\n[limits]\nmax_attempts = 2\n", mortal.url());
    let running = run(&catalog, &job).start();
    eventually(DEADLINE, "lines", || match journal_lines(&catalog.out()) {
        lines if lines > 200 => Ok(()),
        lines => Err(lines.to_string()),
    });
    drop(mortal);
    eventually(DEADLINE, "word of it", || {
        let told = running.stderr();
        if told.contains("seems to be down, waiting for it") { Ok(()) } else { Err(told) }
    });
    let _back = Simulator::start_at(port, &options);
    let end = ended(running.wait(DEADLINE));
    assert!(end.stderr.contains("answers again"), "{end}");
    assert!(promises_hold(&catalog).failures.is_empty());
}

#[test]
fn a_key_that_is_refused_is_not_shown_any_more_and_the_other_one_is() {
    let [right, wrong] = ["sk-canary-the-right-one-012345", "sk-canary-of-a-wrong-key-0123"];
    let catalog = Catalog::of(100);
    let simulator = Simulator::start(&["--api-key", right]);
    let job = format!("[llm]\nbase_url = \"{}\"\napi_keys = [\"KEY_ONE\", \"KEY_TWO\"]\n", simulator.url());
    let missing = run(&catalog, &job).env("KEY_ONE", wrong).run(DEADLINE);
    assert!(missing.code != Some(0) && missing.stderr.contains("KEY_TWO"), "{missing}");
    assert_eq!(simulator.calls(), 0);
    let end = ended(run(&catalog, &job).env("KEY_ONE", wrong).env("KEY_TWO", right).run(DEADLINE));
    assert!(end.stderr.contains("is not taken any more"), "{end}");
    assert!(!end.stderr.contains("canary"), "{end}");
    let refused = simulator.calls() - 100;
    assert!((1..=16).contains(&refused), "{refused} refused");
    assert!(check(&catalog, &simulator, Repeats::None).failures.is_empty());
}

#[test]
fn what_no_endpoint_can_be_asked_for_any_more_pauses_the_run() {
    let catalog = Catalog::of(300);
    let [first, second] = [(); 2].map(|()| Simulator::start(&["--latency", "5ms", "--quota-after", "60"]));
    let job = endpoint("first", first.url(), "") + &endpoint("second", second.url(), "");
    let end = run(&catalog, &job).run(DEADLINE).expect_code(4);
    assert!(end.stderr.contains("has no money left"), "{end}");
    assert_eq!(Results::read(&catalog.out()).journal.len(), 120);
}

#[test]
fn a_prompt_that_is_too_long_for_one_goes_to_another() {
    let mut catalog = Catalog::of(20);
    let long = serde_json::json!({"id": "long", "title": "T", "description": "word ".repeat(4_000)});
    let text = std::fs::read_to_string(catalog.input()).unwrap() + &format!("{long}\n");
    std::fs::write(catalog.input(), text).unwrap();
    catalog.ids.push("long".to_owned());
    let small = Simulator::start(&["--context-window", "3000"]);
    let large = Simulator::start(&[]);
    let job = "[llm]\non_overflow = \"fallback\"\n".to_owned()
        + &endpoint("small", small.url(), "context_window = 3000\nweight = 1000")
        + &endpoint("large", large.url(), "context_window = 100000");
    ended(run(&catalog, &job).run(DEADLINE));
    let results = Results::read(&catalog.out());
    let line = results.journal.iter().find(|line| line["id"] == "long").unwrap();
    assert_eq!(line["meta"]["endpoint"], "large");
    assert_eq!((large.calls(), small.calls()), (1, 20));
}

#[test]
fn hung_calls_do_not_hold_up_the_end() {
    let catalog = Catalog::of(1_000);
    let hung = "SM-000998,SM-000999";
    let simulator = Simulator::start(&["--latency", "10ms", "--hang-products", hung]);
    let job =
        format!("[llm]\nbase_url = \"{}\"\ntimeout = \"3s\"\n[limits]\nmax_attempts = 1\n", simulator.url());
    let running = run(&catalog, &job).start();
    eventually(DEADLINE, "all others", || match journal_lines(&catalog.out()) {
        998 => Ok(()),
        lines => Err(lines.to_string()),
    });
    let since = Instant::now();
    running.wait(DEADLINE).expect_code(3);
    assert!(since.elapsed() < Duration::from_secs(3 + 5), "{:?}", since.elapsed());
    let results = check(&catalog, &simulator, Repeats::None);
    assert!(results.failures.iter().all(|line| line["failure"]["class"] == "timeout"));
    assert_eq!(results.failures.len(), 2);
}

#[test]
fn a_second_call_beside_a_slow_one_brings_the_answer_and_is_counted() {
    let catalog = Catalog::of(600);
    let simulator = Simulator::start(&["--latency", "10ms", "--hung", "0.02", "--seed", "3"]);
    let job = format!(
        "[llm]\nbase_url = \"{}\"\ntimeout = \"60s\"\nprices = {{ prompt = 1.0, completion = 1.0 }}\n",
        simulator.url()
    );
    let began = Instant::now();
    ended(run(&catalog, &job).args(["--hedge-after", "p95", "--budget", "100"]).run(DEADLINE));
    let stats = simulator.stats();
    let hung = stats["faults"]["hung"].as_u64().unwrap();
    assert!(hung > 3 && began.elapsed() < Duration::from_secs(60), "{hung}, {:?}", began.elapsed());
    let results = Results::read(&catalog.out());
    assert_eq!(results.journal.len(), 600);
    for line in &results.journal {
        let id = line["id"].as_str().unwrap();
        let made = stats["by_product"][id]["calls"].as_u64().unwrap();
        let answered = stats["by_product"][id]["answers"].as_u64().unwrap();
        let told = line["meta"]["attempts"].as_u64().unwrap();
        // A second call is counted when it is begun; the first one's answer may come before it has left.
        let may_have_stayed = u64::from(answered == made);
        assert!((made..=made + may_have_stayed).contains(&told), "{id}: {told} told, {made} made");
        assert!(told <= 2, "{id}: {told}");
    }
}
