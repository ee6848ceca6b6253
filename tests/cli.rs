//! What the command says and how it exits when it is called wrongly, and what it says of itself.

use std::{fs, time::Duration};

use crate::support::{
    catalog::Catalog,
    process::{Finished, shelfmill},
};

const DEADLINE: Duration = Duration::from_secs(30);

fn call(args: &[&str]) -> Finished {
    shelfmill().args(args.iter().copied()).run(DEADLINE)
}

/// Exits with this code, says all of this, and leaves no output folder behind.
#[track_caller]
fn refused(catalog: &Catalog, args: &[&str], code: i32, says: &[&str]) {
    let end = shelfmill().args(args.iter().copied()).run(DEADLINE).expect_code(code);
    for expected in says {
        assert!(end.stderr.contains(expected), "'{expected}' is not said: {end}");
    }
    assert!(!catalog.out().exists(), "an output folder was made: {end}");
}

fn path(path: std::path::PathBuf) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn without_a_model_the_three_ways_are_named() {
    let catalog = Catalog::of(1);
    let (input, out) = (path(catalog.input()), path(catalog.out()));
    refused(&catalog, &["run", &input, "--out", &out], 2, &["--simulate", "OPENAI_API_KEY", "--base-url"]);
    let openai = ["run", &input, "--out", &out, "--base-url", "https://api.openai.com/v1"];
    let end = call(&openai).expect_code(2);
    assert!(end.stderr.contains("set OPENAI_API_KEY"), "{end}");
}

#[test]
fn bad_input_is_told_with_its_name() {
    let catalog = Catalog::of(1);
    let out = path(catalog.out());
    let file = |name: &str, text: &str| path(catalog.file(name, text));
    let missing = path(catalog.input().with_file_name("nowhere.csv"));
    let no_id = file("no_id.csv", "title,price\nKettle,3\n");
    let odd = file("catalog.xlsx", "x");
    let empty = file("empty.csv", "");
    for (input, extra, says) in [
        (missing.as_str(), vec![], vec!["nowhere.csv"]),
        (&no_id, vec![], vec!["id, sku, product_id, uniq_id, handle", "title, price", "--id-field"]),
        (&no_id, vec!["--id-field", "isbn"], vec!["isbn", "title, price"]),
        (&odd, vec![], vec!["catalog.xlsx", "--format"]),
        (&empty, vec![], vec!["empty.csv"]),
        ("-", vec![], vec!["--format"]),
    ] {
        let mut args = vec!["run", input, "--out", &out, "--simulate"];
        args.extend(extra);
        refused(&catalog, &args, 2, &says);
    }
}

#[test]
fn a_bad_job_is_told_whole() {
    let catalog = Catalog::of(1);
    let job =
        path(catalog.file(
            "job.toml",
            "[llm]\nmodle = \"x\"\n[prompt]\nuser = \"{{ titel }}\"\n[output]\nschema = 7\n",
        ));
    let (input, out) = (path(catalog.input()), path(catalog.out()));
    let says = ["job.toml:2: unknown key 'llm.modle'", "job.toml:4: prompt.user", "'titel'", "job.toml:6:"];
    refused(&catalog, &["run", &input, "--out", &out, "--simulate", "--job", &job], 2, &says);
    refused(&catalog, &["check", &input, "--job", &job], 2, &says);
    refused(&catalog, &["check", &input, "--job", "nowhere.toml"], 2, &["nowhere.toml"]);
}

#[test]
fn a_field_that_no_product_has_is_told_before_anything_is_done() {
    let catalog = Catalog::of(30);
    let job = path(catalog.file("job.toml", "[prompt]\nuser = \"{{ product.colour }}\"\n"));
    let (input, out) = (path(catalog.input()), path(catalog.out()));
    let says = ["line 1", "prompt.user", "default('')"];
    refused(&catalog, &["run", &input, "--out", &out, "--simulate", "--job", &job], 2, &says);
}

#[test]
fn the_example_job_is_a_good_one() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let [job, products] = ["job.toml", "products.csv"].map(|name| path(examples.join(name)));
    let end = call(&["check", &products, "--job", &job]).expect_code(0);
    assert!(end.stdout.contains("Products: 229\nRejects: 0\n"), "{end}");
    assert!(!end.stdout.contains("without a prompt"), "{end}");
}

#[test]
fn bad_options_are_told_with_their_name() {
    let catalog = Catalog::of(1);
    let input = path(catalog.input());
    refused(&catalog, &["run", &input, "--concurrency", "0"], 2, &["--concurrency"]);
    refused(&catalog, &["run", &input, "--delay", "soon"], 2, &["--delay", "500ms"]);
    refused(&catalog, &["run", &input, "--simulate", "--run", "../up"], 2, &["--run", "letters"]);
    refused(&catalog, &["worker"], 2, &["--run"]);
    refused(&catalog, &["requeue", "--class", "nonsense"], 2, &["nonsense", "rate_limited"]);
    refused(&catalog, &["simulate", "--hung", "1.5"], 2, &["hung"]);
}

#[test]
fn commands_about_a_run_that_is_not_there_say_so() {
    let catalog = Catalog::of(1);
    let out = path(catalog.out());
    for command in ["progress", "requeue"] {
        refused(&catalog, &[command, "--out", &out], 2, &["there is no run in", "--run"]);
    }
}

#[test]
fn servers_that_are_not_there_end_a_command_and_their_passwords_are_not_told() {
    let catalog = Catalog::of(1);
    let args = ["progress", "--run", "r", "--redis-url", "redis://:canary@127.0.0.1:1/0"];
    let end = call(&args).expect_code(1);
    assert!(end.stderr.contains("cannot reach Redis at 127.0.0.1:1"), "{end}");
    assert!(!format!("{}{}", end.stdout, end.stderr).contains("canary"), "{end}");
    for url in
        ["amqp://user:canary@127.0.0.1:notaport", "http://canary@127.0.0.1", "user:canary@127.0.0.1:5672"]
    {
        let input = path(catalog.input());
        let end = call(&["producer", &input, "--run", "r", "--amqp-url", url]).expect_code(1);
        assert!(!format!("{}{}", end.stdout, end.stderr).contains("canary"), "{end}");
    }
}

#[test]
fn a_password_in_the_models_url_is_refused_and_not_told() {
    let catalog = Catalog::of(1);
    let (input, out) = (path(catalog.input()), path(catalog.out()));
    for url in ["http://user:canary@127.0.0.1:1/v1", "htp://user:canary@127.0.0.1", "nonsense"] {
        let end = call(&["run", &input, "--out", &out, "--base-url", url]).expect_code(2);
        assert!(!catalog.out().exists(), "{end}");
        assert!(!format!("{}{}", end.stdout, end.stderr).contains("canary"), "{end}");
    }
}

#[test]
fn check_tells_products_rejects_prompt_tokens_and_cost_without_a_call() {
    let catalog = Catalog::of(3);
    let mut text = fs::read_to_string(catalog.input()).unwrap();
    text += "{]\n";
    fs::write(catalog.input(), text).unwrap();
    let job = path(catalog.file("job.toml", "[llm]\nprices = { prompt = 1000, completion = 0 }\n"));
    let end = call(&["check", &path(catalog.input()), "--job", &job]).expect_code(0);
    for expected in [
        "Products: 3",
        "Rejects: 1",
        "line 4:",
        "--- system",
        "Kettle \\\"No. 0\\\"",
        "Estimated tokens: ",
        "Estimated cost: $",
    ] {
        assert!(end.stdout.contains(expected), "'{expected}' is not said: {end}");
    }
    assert!(!catalog.out().exists());
}

#[test]
fn standard_input_is_a_catalog_too() {
    let catalog = Catalog::of(7);
    let script = format!(
        "cat '{}' | gzip | '{}' run - --format jsonl --simulate --quiet --out '{}'",
        catalog.input().display(),
        env!("CARGO_BIN_EXE_shelfmill"),
        catalog.out().display()
    );
    crate::support::process::program("sh").args(["-c", &script]).run(DEADLINE).expect_code(0);
    crate::support::results::Results::read(&catalog.out()).assert_every_product_once(&catalog);
}

#[test]
fn a_pipe_with_a_name_is_read_once_and_whole() {
    let catalog = Catalog::of(3_000);
    let script = format!(
        "'{}' run <(cat '{}') --format jsonl --simulate --quiet -c 1000 --out '{}'",
        env!("CARGO_BIN_EXE_shelfmill"),
        catalog.input().display(),
        catalog.out().display()
    );
    crate::support::process::program("bash").args(["-c", &script]).run(DEADLINE).expect_code(0);
    crate::support::results::Results::read(&catalog.out()).assert_every_product_once(&catalog);
}

#[test]
fn help_teaches() {
    let help = call(&["--help"]).expect_code(0).stdout;
    for expected in ["run", "worker", "progress", "requeue", "OPENAI_API_KEY", "Exit codes"] {
        assert!(help.contains(expected), "{help}");
    }
    let help = call(&["run", "--help"]).expect_code(0).stdout;
    for expected in ["--checkpoint-every", "SHELFMILL_CONCURRENCY", "Examples", "--recycle-client-every"] {
        assert!(help.contains(expected), "{help}");
    }
}
