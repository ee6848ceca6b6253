use serde_json::json;

use super::*;
use crate::{identity::fingerprint, job::Job};

fn job(text: &str) -> Job {
    Job::parse(text, "job.toml", std::path::Path::new("/nonexistent")).unwrap()
}

const TWO: &str = r#"
    [llm]
    model = "small"
    api_keys = ["FIRST_KEY", "SECOND_KEY"]
    prices = { prompt = 1, completion = 2 }
    context_window = 8000
    [[llm.endpoints]]
    base_url = "http://LOCALHOST:8000/v1"
    [[llm.endpoints]]
    name = "other"
    base_url = "https://[::1]/v1"
    model = "large"
    api_keys = []
    weight = 3
    prices = { prompt = 3, completion = 4 }
    requests_per_minute = 5
    tokens_per_minute = 6
    context_window = 7000
    [[llm.endpoints]]
    base_url = "https://[::1]/v1"
    model = "large"
"#;

#[test]
fn a_job_without_endpoints_has_one() {
    let endpoints = job("[llm]\nmodel = \"m\"\ncontext_window = 9999").llm.endpoints();
    assert_eq!(endpoints.len(), 1);
    let only = &endpoints[0];
    assert_eq!((only.name.as_str(), only.base_url.as_deref(), only.model.as_str()), ("default", None, "m"));
    assert_eq!((only.weight, only.context_window, only.prices), (1, Some(9999), None));
    assert_eq!(only.api_keys, ["OPENAI_API_KEY"]);
    let there = job("[llm]\nbase_url = \"http://localhost:8000/v1\"").llm.endpoints();
    assert_eq!(there[0].base_url.as_deref(), Some("http://localhost:8000/v1"));
}

#[test]
fn endpoints_inherit_what_they_leave_out() {
    let endpoints = job(TWO).llm.endpoints();
    let names: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
    assert_eq!(names, ["localhost-1", "other", "1-3"]);
    let [first, second, third] = endpoints.as_slice() else { panic!("{endpoints:?}") };
    assert_eq!((first.model.as_str(), first.weight, first.context_window), ("small", 1, Some(8000)));
    assert_eq!(first.api_keys, ["FIRST_KEY", "SECOND_KEY"]);
    assert_eq!(first.prices, Some(Prices { prompt_per_million: 1.0, completion_per_million: 2.0 }));
    assert_eq!((second.model.as_str(), second.weight, second.context_window), ("large", 3, Some(7000)));
    assert!(second.api_keys.is_empty());
    assert_eq!(second.prices, Some(Prices { prompt_per_million: 3.0, completion_per_million: 4.0 }));
    assert_eq!((second.requests_per_minute, second.tokens_per_minute), (Some(5), Some(6)));
    // What another model costs and holds is not known.
    assert_eq!((third.prices, third.context_window), (None, None));
}

#[test]
fn a_cost_is_told_only_where_every_endpoint_has_it() {
    assert_eq!(job(TWO).cost_usd(1, 1), None);
    let same = "[llm]\nmodel = \"m\"\nprices = { prompt = 1, completion = 2 }\n\
                [[llm.endpoints]]\nbase_url = \"http://a\"\n[[llm.endpoints]]\nbase_url = \"http://b\"\n";
    assert_eq!(job(same).cost_usd(1_000_000, 1_000_000), Some(3.0));
}

#[test]
fn the_second_ceiling_is_twice_the_first() {
    assert_eq!(job("[llm]\nmax_output_tokens = 300").llm.output_tokens_limit(), 600);
    assert_eq!(
        job("[llm]\nmax_output_tokens = 300\nmax_output_tokens_limit = 300").llm.output_tokens_limit(),
        300
    );
    assert_eq!(job("[llm]\nmax_output_tokens = 4294967295").llm.output_tokens_limit(), u32::MAX);
}

/// Runs of the first version go on: their fingerprints were made this way.
#[test]
fn a_job_without_endpoints_keeps_its_fingerprint() {
    let job = job("[llm]\nmodel = \"m\"\ntemperature = 0.5\nextra = { seed = 7 }\n");
    let found = job.fingerprint();
    let part = |value: Value| fingerprint(&[value.to_string().as_bytes()]);
    assert_eq!(found.model, part(json!(["m", 0.5, {"seed": 7}])));
    assert_eq!(found.prompt, part(json!([job.prompt.system, job.prompt.user])));
}

#[test]
fn the_fingerprint_is_of_models_and_not_of_where_they_are() {
    let endpoints = |models: &[&str]| {
        let list = models.iter().map(|model| {
            format!("[[llm.endpoints]]\nmodel = \"{model}\"\nbase_url = \"http://h\"\nweight = 2\n")
        });
        job(&format!("[llm]\nmodel = \"a\"\nreask = 0\n{}", list.collect::<String>())).fingerprint()
    };
    let one = job("[llm]\nmodel = \"a\"\n").fingerprint();
    assert_eq!(endpoints(&["a", "a"]), one);
    assert_eq!(endpoints(&["a", "b"]), endpoints(&["b", "a", "b"]));
    assert_eq!(one.differences(&endpoints(&["a", "b"])), ["model"]);
    assert_eq!(endpoints(&["b"]).differences(&job("[llm]\nmodel = \"b\"\n").fingerprint()), [""; 0]);
}

#[test]
fn images_are_part_of_the_question() {
    let with = job("[llm.images]\nfields = [\"photo\"]\n").fingerprint();
    assert_eq!(Job::default().fingerprint().differences(&with), ["prompt"]);
    let limited = job("[llm.images]\nfields = [\"photo\"]\nmax_bytes = 1\nallow_private = true\n");
    assert_eq!(limited.fingerprint(), with);
}

/// It is in Redis while a run goes on, and the run may go on with a newer version.
#[test]
fn a_job_of_the_first_version_is_read() {
    let old = json!({
        "llm": {
            "base_url": "http://localhost/v1", "model": "m", "temperature": null, "max_output_tokens": 50,
            "timeout_ms": 1000, "prompt_price_per_million": 0.4, "completion_price_per_million": 1.6,
            "extra": {"z": 1, "a": 2}
        },
        "prompt": {"system": null, "user": "{{ id }}"},
        "output": {"schema": {"type": "object"}},
        "limits": {
            "concurrency": 3, "requests_per_minute": null, "tokens_per_minute": 9, "delay_ms": 0, "max_attempts": 5
        }
    });
    let mut unpriced = old.clone();
    let job: Job = serde_json::from_value(old).unwrap();
    assert_eq!(job.llm.prices, Some(Prices { prompt_per_million: 0.4, completion_per_million: 1.6 }));
    assert_eq!((job.llm.reask, job.llm.api_keys.len()), (1, 1));
    assert!((job.limits.abort_failure_rate - 0.5).abs() < f64::EPSILON);
    assert_eq!(job.limits.tokens_per_minute, Some(9));
    assert_eq!(job.llm.extra.keys().collect::<Vec<_>>(), ["z", "a"]);
    for key in ["prompt_price_per_million", "completion_price_per_million"] {
        unpriced["llm"][key] = Value::Null;
    }
    assert_eq!(serde_json::from_value::<Job>(unpriced).unwrap().llm.prices, None);
}
