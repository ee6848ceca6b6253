use super::{
    super::{Images, OnOverflow, Structured},
    *,
};

/// A job with every key about calls and what they may cost.
pub(super) const CALLS: &str = r#"
[llm]
max_output_tokens_limit = 4000
structured = "json_object"
reask = 0
context_window = 32_000
on_overflow = "truncate"
api_keys = ["FIRST_KEY", "_SECOND_KEY2"]
[llm.images]
fields = ["photo", "more"]
max_bytes = 1000
max_images = 2
allow_private = true
folder = "photos"
[[llm.endpoints]]
name = "near"
base_url = "http://localhost:8000/v1"
model = "llama"
api_keys = []
weight = 2
prices = { prompt = 0.4, completion = 1.6 }
requests_per_minute = 5
tokens_per_minute = 6
context_window = 8000
[limits]
budget = 5.50
abort_failure_rate = 1
hedge_after = "p99.9"
dedupe_prompts = true
"#;

fn parse(text: &str) -> Result<Job, JobProblems> {
    Job::parse(text, "job.toml", Path::new("/nonexistent"))
}

fn told(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn an_empty_file_is_the_built_in_job() {
    assert_eq!(parse("").unwrap(), Job::default());
}

#[test]
fn everything_can_be_set() {
    let job = parse(
        r#"
        [llm]
        base_url = "http://localhost:8000/v1"
        model = "llama"
        temperature = 0
        max_output_tokens = 300
        timeout = "1m 30s"
        prices = { prompt = 0.4, completion = 1.6 }
        extra = { seed = 7, reasoning = { effort = "low" } }
        [prompt]
        system = "Be brief."
        user = "{{ product.title }}"
        [output]
        schema = { type = "object", required = ["a"] }
        [limits]
        concurrency = 8
        requests_per_minute = 500
        tokens_per_minute = 30_000
        delay = 0.1
        max_attempts = 2
        "#,
    )
    .unwrap();
    assert_eq!(job.llm.timeout_ms, 90_000);
    assert_eq!(job.llm.temperature, Some(0.0));
    assert_eq!(job.llm.extra["reasoning"]["effort"], "low");
    assert_eq!(job.output.schema["required"][0], "a");
    assert_eq!(job.limits.delay_ms, 100);
    assert_eq!(job.limits.tokens_per_minute, Some(30_000));
    assert_eq!(job.cost_usd(1_000_000, 500_000), Some(1.2));
}

#[test]
fn everything_about_calls_can_be_set() {
    let job = parse(CALLS).unwrap();
    let Job { llm, limits, .. } = &job;
    assert_eq!((llm.structured, llm.on_overflow), (Structured::JsonObject, OnOverflow::Truncate));
    assert_eq!((llm.reask, llm.max_output_tokens_limit, llm.context_window), (0, Some(4000), Some(32_000)));
    assert_eq!(llm.api_keys, ["FIRST_KEY", "_SECOND_KEY2"]);
    assert_eq!(
        llm.images,
        Some(Images {
            fields: vec!["photo".to_owned(), "more".to_owned()],
            max_bytes: 1000,
            max_images: 2,
            allow_private: true,
            folder: Some("/nonexistent/photos".to_owned()),
        })
    );
    assert_eq!(llm.endpoints.len(), 1);
    assert_eq!((limits.budget, limits.dedupe_prompts), (Some(5.5), true));
    assert!((limits.abort_failure_rate - 1.0).abs() < f64::EPSILON);
    assert_eq!(limits.hedge_after.unwrap().to_string(), "p99.9");
    // It travels to workers as JSON.
    assert_eq!(serde_json::from_str::<Job>(&serde_json::to_string(&job).unwrap()).unwrap(), job);
}

/// Each line that begins with `!` holds a part of what is told of it, and then the line itself.
#[test]
fn what_is_wrong_with_calls_is_told_with_its_line() {
    let marked = r#"
[llm]
!'llm.base_url': the model's URL must end before| base_url = "http://h/v1?key=sk-canary"
!'llm.base_url' and [[llm.endpoints]] exclude each other| # the same line
max_output_tokens = 100
!must not be less than 'llm.max_output_tokens', which is 100| max_output_tokens_limit = 99
!'llm.structured' must be "auto", "json_schema", "json_object" or "none"| structured = "yaml"
!'llm.on_overflow' must be "fail", "truncate" or "fallback"| on_overflow = { fail = inf }
!'llm.reask' must be a whole number from 0| reask = -1
!'llm.context_window' must be more than 'llm.max_output_tokens'| context_window = 100
!'llm.api_keys' must name environment variables| api_keys = ["sk_canary"]
[llm.images]
!'llm.images.fields' must be a list of texts| fields = ["photo", ""]
!'llm.images.max_bytes' must be a whole number| max_bytes = 0
!'llm.images.allow_private' must be true or false| allow_private = "no"
!unknown key 'llm.images.max_size'| max_size = 3
[[llm.endpoints]]
!'llm.endpoints.name' must be letters| name = "a b"
!'llm.endpoints.base_url': the model's URL has a login| base_url = "http://canary@h"
!'llm.endpoints.weight' must be a whole number from 1| weight = 0
!'llm.endpoints.prices' needs both| prices = { prompt = 1 }
!'llm.endpoints.api_keys' names A_KEY twice| api_keys = ["A_KEY", "A_KEY"]
!unknown key 'llm.endpoints.api_key'| api_key = "canary"
!'llm.endpoints.base_url' is missing| [[llm.endpoints]]
name = "b"
[[llm.endpoints]]
!there is an endpoint 'b' already| name = "b"
base_url = "http://h"
[limits]
!'limits.budget' must be more than 0 US dollars| budget = 0.0
!'limits.abort_failure_rate' must be a number from 0 to 1| abort_failure_rate = 1.1
!'limits.hedge_after' must be a percentile| hedge_after = "99"
!'limits.dedupe_prompts' must be true or false| dedupe_prompts = 1
"#;
    let (mut text, mut expected) = (String::new(), Vec::new());
    for line in marked.lines() {
        let Some((what, line)) = line.strip_prefix('!').and_then(|line| line.split_once("| ")) else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        if line != "# the same line" {
            text.push_str(line);
            text.push('\n');
        }
        expected.push((text.lines().count(), what));
    }
    let told = parse(&text).unwrap_err();
    assert!(!told.to_string().contains("canary"), "{told}");
    for (line, what) in &expected {
        let is_told =
            told.problems.iter().any(|found| found.line == Some(*line) && found.what.contains(what));
        assert!(is_told, "line {line}: {what}\nis not in\n{told}");
    }
    assert_eq!(told.problems.len(), expected.len(), "{told}");
}

#[test]
fn a_key_in_place_of_its_variable_is_refused_and_not_repeated() {
    for key in ["sk-proj-AbC123", "gsk_AbC123canary", "hf_canary", "AIzaSyCanary", "0123CANARY", "a b"] {
        let told = told(&format!("[llm]\napi_keys = [\"{key}\"]\n"));
        assert!(told.contains("job.toml:2: 'llm.api_keys' must name") && !told.contains(key), "{told}");
    }
    assert!(parse("[llm]\napi_keys = []\n").unwrap().llm.api_keys.is_empty());
}

#[test]
fn tables_and_lists_must_be_such() {
    assert!(told("[llm]\nendpoints = 3\n").contains("must be a list of tables: [[llm.endpoints]]"));
    assert!(told("[llm]\nendpoints = [3]\n").contains("must be a table, [[llm.endpoints]], not integer"));
    assert!(told("[llm]\nimages = 3\n").contains("'llm.images' must be a table, [llm.images], not integer"));
    assert!(told("[llm.images]\n").contains("job.toml:1: 'llm.images.fields' is missing"));
    assert!(told("[llm]\nprices = 3\n").contains("must be a table, prices = { prompt"));
}

#[test]
fn all_problems_are_told_at_once_with_their_lines() {
    let text = "[llm]\nmodle = \"x\"\ntemperature = 9\n\n[prompt]\nuser = \"{{ title }} {% if %}\"\n\
                [output]\nschema = { type = \"objekt\" }\n[limits]\nconcurrency = 0\n[extras]\n";
    let told = told(text);
    for expected in [
        "job.toml:2: unknown key 'llm.modle' (there are: prices, base_url, model",
        "job.toml:3: 'llm.temperature' must be a number from 0 to 2",
        "job.toml:6: prompt.user, line 1",
        "job.toml:8: the schema is not a JSON schema",
        "job.toml:10: 'limits.concurrency' must be a whole number from 1",
        "job.toml:11: unknown key 'extras'",
    ] {
        assert!(told.contains(expected), "{expected}\nis not in\n{told}");
    }
}

#[test]
fn syntax_errors_have_a_line_too() {
    assert!(told("[llm]\nmodel = \n").contains("job.toml:2:"));
}

#[test]
fn a_schema_file_that_is_not_there_is_named() {
    assert!(
        told("[output]\nschema_file = \"s.json\"\n")
            .contains("job.toml:2: the schema file s.json cannot be read")
    );
}

#[test]
fn fields_of_shelfmill_cannot_be_overridden() {
    assert!(told("[llm]\nextra = { stream = true }\n").contains("'llm.extra.stream'"));
}

#[test]
fn what_does_not_change_the_question_does_not_change_the_fingerprint() {
    let base = Job::default().fingerprint();
    let other = parse("[llm]\ntimeout = 5\n[limits]\nconcurrency = 3\n").unwrap().fingerprint();
    assert_eq!(base, other);
    let other = parse("[llm]\nmodel = \"m\"\n[prompt]\nuser = \"{{ id }}\"\n").unwrap().fingerprint();
    assert_eq!(base.differences(&other), ["prompt", "model"]);
}
