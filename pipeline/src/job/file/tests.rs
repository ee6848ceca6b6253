use super::*;

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
