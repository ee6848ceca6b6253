//! Text of products and of the model stays in its place, wherever it is shown.
//!
//! (There is no output as CSV, where a formula could be run.)

use std::{fmt::Write as _, fs, time::Duration};

use serde_json::{Value, json};

use super::http::{Server, completion, send};
use crate::support::{
    catalog::Catalog,
    process::{Finished, shelfmill},
    results::Results,
};

const DEADLINE: Duration = Duration::from_secs(120);
/// Clears the screen, sets the title, begins a line, turns the direction, ends a text, rings, and says that all is well.
const EVIL: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\r\nFORGED 2026-01-01T00:00:00Z ERROR Completed: 9/9\n\
                    {\"level\":\"FORGED\"}\n\u{202e}\u{2066}\u{200f}\u{2028}\0\u{7f}\u{8}end";

fn steers(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Nothing in what was written steers a terminal, and no line begins with text of others.
#[track_caller]
fn harmless(end: &Finished) {
    for text in [&end.stdout, &end.stderr] {
        for line in text.lines() {
            assert!(!line.chars().any(steers), "{line:?}");
            assert!(!line.trim_start().starts_with("FORGED") || line.starts_with("  "), "{line:?}");
            assert!(!line.starts_with("{\"level\":\"FORGED"), "{line:?}");
        }
    }
}

/// Ids, titles, keys and values that are evil; the ids differ.
fn evil_catalog(products: usize) -> Catalog {
    let mut catalog = Catalog::of(1);
    catalog.ids = (0..products).map(|number| format!("{number}{EVIL}")).collect();
    let text = catalog.ids.iter().fold(String::new(), |mut text, id| {
        writeln!(text, "{}", json!({"id": id, "title": EVIL, EVIL: [EVIL]})).unwrap();
        text
    });
    fs::write(catalog.input(), text + "{\"id\":\"\u{1b}\u{202e}\n" + "\u{9b}\u{1b}[2J\n").unwrap();
    catalog
}

#[test]
fn logs_status_and_reports_show_evil_text_as_escapes() {
    let catalog = evil_catalog(6);
    let model = Server::start(|call, stream| {
        let error = |message: &str| json!({"error": {"message": message, "code": message}}).to_string();
        match call.as_bytes().first() {
            Some(b'0') => send(stream, "200 OK", &completion(&json!({ "said": EVIL }).to_string())),
            Some(b'1') => send(stream, "400 No", error(EVIL).as_bytes()),
            Some(b'2') => send(stream, "422 No", EVIL.as_bytes()),
            Some(b'3') => send(stream, "200 OK", &completion(EVIL)),
            Some(b'4') => send(stream, "200 OK", &completion(&json!([EVIL]).to_string())),
            _ => {
                let refusal = json!({"choices": [{"message": {"refusal": EVIL}}], "model": EVIL});
                send(stream, "200 OK", refusal.to_string().as_bytes())
            }
        }
    });
    let job = catalog.file(
        "job.toml",
        "[limits]\nmax_attempts = 1\n[output]\nschema = { type = \"object\", required = [\"said\"] }\n",
    );
    for format in ["text", "json"] {
        let _ = fs::remove_dir_all(catalog.out());
        let run = shelfmill().arg("run").args(catalog.args()).args([
            "--base-url",
            model.url(),
            "--model",
            &EVIL.replace('\0', ""),
        ]);
        let run = run.arg("--job").arg(&job).args(["--log-format", format]).env("RUST_LOG", "trace");
        let end = run.run(DEADLINE).expect_code(3);
        harmless(&end);
        let failed: Vec<&str> = end
            .stderr
            .lines()
            .filter(|line| line.contains("model_refused") && line.contains("failed"))
            .collect();
        assert!(failed.len() >= 2 && failed[0].contains("FORGED"), "the log shows what was said: {end}");
        if format == "json" {
            for line in end.stderr.lines().filter(|line| line.starts_with('{')) {
                let logged: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
                assert_ne!(logged["level"], "FORGED");
            }
            let reason =
                failed.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()["reason"].clone());
            assert!(reason.into_iter().any(|reason| reason.as_str().unwrap().contains(EVIL.trim())));
        }
        // What was said is kept as it was said.
        let results = Results::read(&catalog.out());
        results.assert_every_product_once(&catalog);
        assert_eq!(results.journal[0]["analysis"]["said"], EVIL);
        assert_eq!(results.rejects.len(), 2);
    }

    let out = catalog.out();
    let about = |command: &str| shelfmill().arg(command).arg("--out").arg(&out);
    harmless(&about("progress").run(DEADLINE).expect_code(0));
    harmless(&about("progress").arg("--json").run(DEADLINE).expect_code(0));
    let input = catalog.input();
    let check = shelfmill().arg("check").arg(&input).arg("--job").arg(&job).run(DEADLINE).expect_code(0);
    harmless(&check);
    assert!(check.stdout.contains("Products: 6\nRejects: 2\n"), "{check}");
    let strict = shelfmill().arg("check").arg(&input).arg("--strict").run(DEADLINE).expect_code(2);
    harmless(&strict);
    harmless(
        &about("requeue")
            .args(["--class", "model_refused", "--id", &EVIL.replace('\0', "")])
            .run(DEADLINE)
            .expect_code(0),
    );

    // Files of the run that somebody has changed.
    let failures = out.join("failed_products.jsonl");
    let whole = fs::read_to_string(&failures).unwrap();
    fs::write(&failures, whole.replace("model_refused", &EVIL.escape_default().to_string())).unwrap();
    harmless(&about("requeue").run(DEADLINE).expect_code(1));
    let class = serde_json::to_string(EVIL).unwrap();
    fs::write(&failures, whole.replace("\"model_refused\"", &class)).unwrap();
    harmless(&about("progress").run(DEADLINE).expect_code(0));
    harmless(&about("requeue").run(DEADLINE).expect_code(1));
    let record = out.join(".shelfmill/run.json");
    let text = fs::read_to_string(&record).unwrap();
    let changed = text.replace("\"run\": \"default\"", &format!("\"run\": {class}"));
    assert_ne!(text, changed);
    fs::write(&record, changed).unwrap();
    harmless(&about("progress").run(DEADLINE).expect_code(0));
    harmless(&shelfmill().arg("run").args(catalog.args()).arg("--simulate").run(DEADLINE).expect_code(2));
}

#[test]
fn errors_about_inputs_and_jobs_show_evil_text_as_escapes() {
    let catalog = Catalog::of(1);
    let refused = |name: &str, text: &str, args: &[&str]| {
        let input = catalog.file(name, text);
        for command in ["check", "run"] {
            let end = shelfmill().arg(command).arg(&input).args(args).run(DEADLINE);
            assert_ne!(end.code, Some(0), "{end}");
            harmless(&end);
        }
    };
    let quoted = format!("\"{}\"", EVIL.replace('"', "\"\""));
    refused("header.csv", &format!("{quoted},b\n1,2\n"), &[]);
    refused("fields.jsonl", &format!("{}\n", json!({EVIL: 1})), &[]);
    refused("array.json", &format!("[{}]", json!({EVIL: 1})), &[]);
    refused(&EVIL.replace(['/', '\0'], ""), "x", &[]);
    refused("id.csv", "a,b\n1,2\n", &["--id-field", &EVIL.replace('\0', "")]);
    let toml = json!(EVIL).to_string().replace("\\b", "\\u0008");
    for job in [
        format!("[llm]\n{toml} = 1\n"),
        format!("[prompt]\nuser = {toml}\nsystem = \"{{{{ nothing }}}}\"\n"),
        format!("[output]\nschema_file = {toml}\n"),
        format!("[output]\nschema = {{ type = {toml} }}\n"),
        EVIL.to_owned(),
    ] {
        let job = catalog.file("job.toml", &job);
        refused("good.csv", "id,b\n1,2\n", &["--job", job.to_str().unwrap()]);
    }
}
