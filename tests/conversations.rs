//! What is asked next when an answer cannot be used, seen from outside: by the model's own counts and the lines.

use serde_json::Value;

use crate::support::{
    catalog::Catalog,
    checker::{Repeats, check},
    fleet::{DEADLINE, Fleet, ended},
    process::{Program, shelfmill},
    rabbitmq, redis,
    results::Results,
    simulator::Simulator,
};

fn run(catalog: &Catalog, simulator: &Simulator) -> Program {
    shelfmill().arg("run").args(catalog.args()).args(["--base-url", simulator.url(), "--concurrency", "8"])
}

fn with_job(catalog: &Catalog, simulator: &Simulator, job: &str) -> Program {
    run(catalog, simulator).arg("--job").arg(catalog.file("job.toml", job))
}

fn count(stats: &Value, name: &str) -> u64 {
    stats[name].as_u64().unwrap_or_else(|| panic!("{name} in {stats}"))
}

/// Every token that the model billed is in the summary, and in the sum of the lines.
#[track_caller]
fn tokens_add_up(simulator: &Simulator, results: &Results) {
    let stats = simulator.stats();
    let told = |kind: &str| count(&results.summary["tokens"], kind);
    assert_eq!(
        (told("prompt"), told("completion")),
        (count(&stats, "prompt_tokens"), count(&stats, "completion_tokens"))
    );
}

#[test]
fn a_server_that_takes_no_schema_is_asked_in_its_own_way() {
    for (known, refused_at_most) in [("json_object", 8), ("none", 16)] {
        let (catalog, simulator) =
            (Catalog::of(60), Simulator::start(&["--structured", known, "--latency", "5ms"]));
        ended(run(&catalog, &simulator).run(DEADLINE));
        let results = check(&catalog, &simulator, Repeats::None);
        assert!(results.failures.is_empty());
        let refused = count(&simulator.stats(), "rejected");
        assert!((1..=refused_at_most).contains(&refused), "{known}: {refused} refused");
        tokens_add_up(&simulator, &results);
    }
}

#[test]
fn json_is_taken_out_of_prose() {
    let (catalog, simulator) = (Catalog::of(40), Simulator::start(&["--prose", "1"]));
    ended(run(&catalog, &simulator).run(DEADLINE));
    assert_eq!(check(&catalog, &simulator, Repeats::None).calls(), (40, 0));
}

#[test]
fn a_truncated_answer_is_asked_for_once_more_with_twice_the_room() {
    let (catalog, simulator) = (Catalog::of(30), Simulator::start(&[]));
    ended(with_job(&catalog, &simulator, "[llm]\nmax_output_tokens = 100\n").run(DEADLINE));
    let results = check(&catalog, &simulator, Repeats::None);
    let cut = count(&simulator.stats()["faults"], "at_ceiling");
    assert!(cut > 0, "the answers are longer than 100 tokens");
    assert_eq!(results.calls().0, 30 + cut, "each of those was asked for once more");
    assert!(results.failures.is_empty());
    tokens_add_up(&simulator, &results);

    let (catalog, simulator) = (Catalog::of(5), Simulator::start(&[]));
    let job =
        "[llm]\nmax_output_tokens = 20\nmax_output_tokens_limit = 30\n[limits]\nabort_failure_rate = 1.0\n";
    with_job(&catalog, &simulator, job).run(DEADLINE).expect_code(3);
    let results = Results::read(&catalog.out());
    assert_eq!((results.failures.len(), results.calls().0), (5, 10));
    for line in &results.failures {
        assert_eq!(line["failure"]["class"], "truncated");
        assert!(line["failure"]["raw"].as_str().unwrap().starts_with('{'), "{line}");
    }
}

#[test]
fn a_violation_is_asked_about_in_the_same_conversation() {
    let options = ["--schema-violation", "0.3", "--malformed", "0.1"];
    let (catalog, simulator) = (Catalog::of(100), Simulator::start(&options));
    ended(run(&catalog, &simulator).run(DEADLINE));
    let results = check(&catalog, &simulator, Repeats::None);
    assert!(results.failures.is_empty());
    let corrected: Vec<u64> = results
        .journal
        .iter()
        .filter(|line| line["meta"]["attempts"] == 2)
        .filter_map(|line| line["meta"]["prompt_tokens"].as_u64())
        .collect();
    let plain = results.journal.iter().filter(|line| line["meta"]["attempts"] == 1);
    let most = plain.filter_map(|line| line["meta"]["prompt_tokens"].as_u64()).max().unwrap();
    // The second prompt holds the first, the answer, and what is wrong about it.
    assert!(
        corrected.len() > 10 && corrected.iter().all(|tokens| *tokens > 2 * most),
        "{corrected:?} {most}"
    );
    tokens_add_up(&simulator, &results);
}

#[test]
fn a_prompt_beyond_the_window_costs_no_call_or_is_shortened_where_the_job_says_so() {
    let (catalog, simulator) = (Catalog::of(3), Simulator::start(&[]));
    let window = "[llm]\ncontext_window = 1100\nmax_output_tokens = 1000\n";
    let never = "[limits]\nabort_failure_rate = 1.0\n";
    with_job(&catalog, &simulator, &format!("{window}{never}")).run(DEADLINE).expect_code(3);
    let results = Results::read(&catalog.out());
    assert_eq!((results.failures.len(), simulator.calls()), (3, 0));
    assert!(results.failures.iter().all(|line| line["failure"]["class"] == "context_too_long"));
    assert_eq!(results.summary["cost_usd"], 0.0, "nothing was spent");

    let text = "a very long description ".repeat(2_000);
    let product = serde_json::json!({"id": "long", "title": "Mug", "description": text});
    let catalog = Catalog::of(0);
    let input = catalog.file("long.jsonl", &format!("{product}\n"));
    let job = "[llm]\ncontext_window = 3000\nmax_output_tokens = 1000\non_overflow = \"truncate\"\n";
    let out = catalog.out();
    let command = shelfmill().arg("run").arg(&input).arg("--out").arg(&out);
    let command =
        command.args(["--base-url", simulator.url()]).arg("--job").arg(catalog.file("cut.toml", job));
    ended(command.run(DEADLINE));
    let line = &Results::read(&out).journal[0];
    assert_eq!(line["meta"]["shortened"]["field"], "description", "{}", line["meta"]);
    assert!(line["meta"]["prompt_tokens"].as_u64().unwrap() <= 2_000, "{}", line["meta"]);
    assert_eq!(line["product"]["description"].as_str().unwrap().len(), text.len(), "the line has it whole");
}

#[test]
fn faults_of_every_kind_add_up_to_the_models_own_counts() {
    let shares = [
        "rate-limited",
        "server-error",
        "malformed",
        "schema-violation",
        "truncated",
        "cut-off",
        "hung",
        "refused",
    ];
    let mut options = vec!["--latency".to_owned(), "10ms".to_owned()];
    options.extend(shares.iter().flat_map(|fault| [format!("--{fault}"), "0.0375".to_owned()]));
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let fleet = Fleet::new("all-faults", 400, &options);
    let job =
        "[llm]\ntimeout = \"2s\"\nprices = { prompt = 1.0, completion = 2.0 }\n[limits]\nmax_attempts = 8\n";
    let job = fleet.catalog.file("job.toml", job);
    let workers = fleet.workers(2);
    ended(fleet.producer().arg("--job").arg(&job).run(DEADLINE));
    let end = fleet.aggregator().run(DEADLINE);
    assert!(matches!(end.code, Some(0 | 3)), "{end}");
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    for line in &results.failures {
        let class = line["failure"]["class"].as_str().unwrap();
        assert!(["truncated", "content_filtered"].contains(&class), "{line}");
    }
    tokens_add_up(&fleet.simulator, &results);
    let stats = fleet.simulator.stats();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let cost = (count(&stats, "prompt_tokens") + 2 * count(&stats, "completion_tokens")) as f64 / 1e6;
    let told = results.summary["cost_usd"].as_f64().unwrap();
    assert!((told - cost).abs() < 1e-6, "{told} and {cost}");
    assert_eq!(results.calls().0, fleet.simulator.calls());
    drop(workers);
}
