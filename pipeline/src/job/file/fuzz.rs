//! What holds for damaged job files: all that is wrong is told with a line of the file, and what is accepted can be done.

use proptest::prelude::*;
use shelfmill_testing::nearly;

use super::{tests::CALLS, *};

const EXAMPLE: &str = include_str!("../../../../examples/job.toml");
const FULL: &str = r#"
[llm]
base_url = "http://localhost:8000/v1"
model = "llama"
temperature = 0
timeout = "1m 30s"
prices = { prompt = 0.4, completion = 1.6 }
extra = { seed = 7, reasoning = { effort = "low" }, when = 1979-05-27T07:32:00Z, f = [1.5, inf] }
[prompt]
user = "{{ product.title | upper }} {% for k in product %}{{ k }}{% endfor %}"
[output]
schema = '{"type": "object", "properties": {"a": {"enum": [1, null]}}}'
[limits]
concurrency = 8
delay = 0.1
"#;

proptest! {
    #[test]
    fn a_damaged_job_is_told_or_can_be_done(bytes in nearly([EXAMPLE, FULL, CALLS])) {
        let text = String::from_utf8_lossy(&bytes);
        match Job::parse(&text, "job.toml", Path::new("/nonexistent")) {
            Ok(job) => {
                prop_assert!(Prompt::compile(&job.prompt).is_ok());
                prop_assert!(AnswerSchema::compile(&job.output.schema).is_ok());
                // It travels to workers, and is kept, as JSON.
                let kept = serde_json::to_string(&job).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Job>(&kept).unwrap(), &job);
            }
            Err(problems) => {
                prop_assert!(!problems.problems.is_empty());
                let lines = 1 + text.matches('\n').count();
                for problem in &problems.problems {
                    prop_assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)), "{}", problems);
                }
            }
        }
    }
}

#[test]
fn a_file_that_is_no_job_is_not_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.toml");
    std::fs::write(&path, "#".repeat(1 + usize::try_from(MAX_FILE_BYTES).unwrap())).unwrap();
    assert!(Job::read(&path).unwrap_err().to_string().contains("larger than"));
    assert!(Job::read(Path::new("/dev/zero")).unwrap_err().to_string().contains("larger than"));
}
