//! Reads `job.toml`. Every problem in the file is told, each with its line, so that one round of editing is
//! enough; a key nobody reads is a problem too, because it is a setting somebody believes in.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    ops::Range,
    path::Path,
    time::Duration,
};

use serde_json::{Map, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{AnswerSchema, Job, Limits, Llm, Output, Prompt, PromptTemplates};

/// Fields of a request that Shelfmill itself writes.
const OWN_FIELDS: [&str; 6] =
    ["model", "messages", "stream", "n", "response_format", "max_completion_tokens"];

/// A file that is larger was named by mistake.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    Ok(text)
}

/// One thing that is wrong with a job file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobProblem {
    /// The line, from 1; `None` where the file as a whole is meant.
    pub line: Option<usize>,
    /// What is wrong, and what would be right.
    pub what: String,
}

/// Everything that is wrong with a job file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobProblems {
    /// The file.
    pub file: String,
    /// In the order of the file; at least one.
    pub problems: Vec<JobProblem>,
}

impl fmt::Display for JobProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the job file cannot be used:")?;
        self.problems.iter().try_for_each(|problem| match problem.line {
            Some(line) => write!(f, "\n  {}:{line}: {}", self.file, problem.what),
            None => write!(f, "\n  {}: {}", self.file, problem.what),
        })
    }
}

impl std::error::Error for JobProblems {}

impl Job {
    /// Reads and checks a job file. Paths in it are relative to its folder.
    pub fn read(path: &Path) -> Result<Self, JobProblems> {
        let file = path.display().to_string();
        match read_text(path) {
            Ok(text) => Self::parse(&text, &file, path.parent().unwrap_or(Path::new("."))),
            Err(error) => {
                let what = format!("cannot be read: {error}");
                Err(JobProblems { file, problems: vec![JobProblem { line: None, what }] })
            }
        }
    }

    /// Reads and checks the text of a job file; `folder` is what its paths are relative to.
    pub fn parse(text: &str, file: &str, folder: &Path) -> Result<Self, JobProblems> {
        let mut reader = Reader { text, problems: Vec::new() };
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            reader.problem(error.span(), error.message().to_owned());
        }
        let job = reader.job(root.into_inner(), folder);
        if reader.problems.is_empty() {
            return Ok(job);
        }
        reader.problems.sort_by_key(|problem| problem.line);
        Err(JobProblems { file: file.to_owned(), problems: reader.problems })
    }
}

struct Reader<'t> {
    text: &'t str,
    problems: Vec<JobProblem>,
}

/// A table from which known keys are taken; what is left over is unknown.
struct Section<'t> {
    name: &'static str,
    keys: DeTable<'t>,
    known: Vec<&'static str>,
    at: Option<Range<usize>>,
}

impl<'t> Section<'t> {
    fn take(&mut self, key: &'static str) -> Option<Spanned<DeValue<'t>>> {
        self.known.push(key);
        self.keys.remove(key)
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}

impl<'t> Reader<'t> {
    fn problem(&mut self, at: Option<Range<usize>>, what: impl Into<String>) {
        let line = at.map(|at| 1 + self.text[..at.start.min(self.text.len())].matches('\n').count());
        self.problems.push(JobProblem { line, what: what.into() });
    }

    fn job(&mut self, root: DeTable<'t>, folder: &Path) -> Job {
        let mut root = Section { name: "", keys: root, known: Vec::new(), at: None };
        let mut llm = self.section(&mut root, "llm");
        let mut prompt = self.section(&mut root, "prompt");
        let mut output = self.section(&mut root, "output");
        let mut limits = self.section(&mut root, "limits");
        self.finish(root);
        let job = Job {
            llm: self.llm(&mut llm),
            prompt: self.prompt(&mut prompt),
            output: self.output(&mut output, folder),
            limits: self.limits(&mut limits),
        };
        [llm, prompt, output, limits].into_iter().for_each(|section| self.finish(section));
        job
    }

    fn section(&mut self, root: &mut Section<'t>, name: &'static str) -> Section<'t> {
        let mut section = Section { name, keys: DeTable::new(), known: Vec::new(), at: None };
        if let Some(found) = root.take(name) {
            section.at = Some(found.span());
            match found.into_inner() {
                DeValue::Table(keys) => section.keys = keys,
                other => self.problem(
                    section.at.clone(),
                    format!("'{name}' must be a table, [{name}], not {}", other.type_str()),
                ),
            }
        }
        section
    }

    fn finish(&mut self, section: Section<'t>) {
        for (key, _) in &section.keys {
            let what = format!(
                "unknown key '{}' (there are: {})",
                section.path(key.get_ref()),
                section.known.join(", ")
            );
            self.problem(Some(key.span()), what);
        }
    }

    fn llm(&mut self, section: &mut Section<'t>) -> Llm {
        let default = Llm::default();
        let (prompt_price, completion_price) = self.prices(section);
        Llm {
            base_url: self.text_of(section, "base_url"),
            model: self.text_of(section, "model").unwrap_or(default.model),
            temperature: self.number(section, "temperature", 0.0..=2.0),
            max_output_tokens: self
                .whole(section, "max_output_tokens", 1)
                .unwrap_or(default.max_output_tokens),
            timeout_ms: self.duration_ms(section, "timeout", 1).unwrap_or(default.timeout_ms),
            prompt_price_per_million: prompt_price,
            completion_price_per_million: completion_price,
            extra: self.extra(section),
        }
    }

    fn prices(&mut self, section: &mut Section<'t>) -> (Option<f64>, Option<f64>) {
        let Some(found) = section.take("prices") else { return (None, None) };
        let at = Some(found.span());
        let DeValue::Table(keys) = found.into_inner() else {
            let form = "prices = { prompt = 0.40, completion = 1.60 }, in US dollars per million tokens";
            self.problem(at, format!("'llm.prices' must be a table: {form}"));
            return (None, None);
        };
        let mut prices = Section { name: "llm.prices", keys, known: Vec::new(), at };
        let found = (
            self.number(&mut prices, "prompt", 0.0..=f64::MAX),
            self.number(&mut prices, "completion", 0.0..=f64::MAX),
        );
        if found.0.is_some() != found.1.is_some() {
            self.problem(prices.at.clone(), "'llm.prices' needs both 'prompt' and 'completion'");
        }
        self.finish(prices);
        found
    }

    fn extra(&mut self, section: &mut Section<'t>) -> Map<String, Value> {
        let Some(found) = section.take("extra") else { return Map::new() };
        let at = Some(found.span());
        match json(found.get_ref()) {
            Value::Object(fields) => {
                for own in OWN_FIELDS.iter().filter(|own| fields.contains_key(**own)) {
                    self.problem(
                        at.clone(),
                        format!("'llm.extra.{own}' is a field that Shelfmill writes itself"),
                    );
                }
                fields
            }
            _ => {
                self.problem(at, "'llm.extra' must be a table of request fields");
                Map::new()
            }
        }
    }

    fn prompt(&mut self, section: &mut Section<'t>) -> PromptTemplates {
        let default = PromptTemplates::default();
        let spans = ["system", "user"].map(|key| section.keys.get(key).map(Spanned::span));
        let system = self.text_of(section, "system");
        let user = self.text_of(section, "user");
        if section.at.is_some() && user.is_none() {
            self.problem(section.at.clone(), "'prompt.user' is missing: the template of the user message");
        }
        let templates = match user {
            Some(user) => PromptTemplates { system, user },
            None => PromptTemplates { system: system.or(default.system), user: default.user },
        };
        if let Err(errors) = Prompt::compile(&templates) {
            for error in errors {
                let told = error.to_string();
                let at = spans[usize::from(told.starts_with("prompt.user"))].clone();
                self.problem(at.or(section.at.clone()), told);
            }
        }
        templates
    }

    fn output(&mut self, section: &mut Section<'t>, folder: &Path) -> Output {
        let inline = section.take("schema");
        let file = section.take("schema_file");
        let at = inline.as_ref().or(file.as_ref()).map(Spanned::span);
        let schema = match (inline, file) {
            (None, None) => return Output::default(),
            (Some(_), Some(_)) => Err("give 'output.schema' or 'output.schema_file', not both".to_owned()),
            (Some(inline), None) => match inline.get_ref() {
                DeValue::String(text) => serde_json::from_str(text)
                    .map_err(|error| format!("'output.schema' is not JSON: {error}")),
                table => Ok(json(table)),
            },
            (None, Some(file)) => match file.get_ref().as_str() {
                None => Err("'output.schema_file' must be a path".to_owned()),
                Some(name) => read_text(&folder.join(name))
                    .map_err(|error| format!("the schema file {name} cannot be read: {error}"))
                    .and_then(|text| {
                        serde_json::from_str(&text)
                            .map_err(|error| format!("the schema file {name} is not JSON: {error}"))
                    }),
            },
        };
        match schema {
            Ok(schema) => {
                if let Err(violation) = AnswerSchema::compile(&schema) {
                    self.problem(at, format!("the schema is not a JSON schema: {violation}"));
                }
                Output { schema }
            }
            Err(what) => {
                self.problem(at, what);
                Output::default()
            }
        }
    }

    fn limits(&mut self, section: &mut Section<'t>) -> Limits {
        let default = Limits::default();
        Limits {
            concurrency: self.whole(section, "concurrency", 1).unwrap_or(default.concurrency),
            requests_per_minute: self.whole(section, "requests_per_minute", 1),
            tokens_per_minute: self.whole(section, "tokens_per_minute", 1),
            delay_ms: self.duration_ms(section, "delay", 0).unwrap_or(default.delay_ms),
            max_attempts: self.whole(section, "max_attempts", 1).unwrap_or(default.max_attempts),
        }
    }

    fn text_of(&mut self, section: &mut Section<'t>, key: &'static str) -> Option<String> {
        let found = section.take(key)?;
        let text = found.get_ref().as_str().filter(|text| !text.trim().is_empty());
        if text.is_none() {
            self.problem(
                Some(found.span()),
                format!("'{}' must be a text that is not empty", section.path(key)),
            );
        }
        text.map(ToOwned::to_owned)
    }

    fn whole(&mut self, section: &mut Section<'t>, key: &'static str, least: u32) -> Option<u32> {
        let found = section.take(key)?;
        let value = match json(found.get_ref()) {
            Value::Number(number) => {
                number.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n >= least)
            }
            _ => None,
        };
        if value.is_none() {
            let what = format!("'{}' must be a whole number from {least} to {}", section.path(key), u32::MAX);
            self.problem(Some(found.span()), what);
        }
        value
    }

    fn number(
        &mut self,
        section: &mut Section<'t>,
        key: &'static str,
        range: std::ops::RangeInclusive<f64>,
    ) -> Option<f64> {
        let found = section.take(key)?;
        let value = json(found.get_ref()).as_f64().filter(|value| range.contains(value));
        if value.is_none() {
            let upper =
                if *range.end() == f64::MAX { "up".to_owned() } else { format!("to {}", range.end()) };
            let what = format!("'{}' must be a number from {} {upper}", section.path(key), range.start());
            self.problem(Some(found.span()), what);
        }
        value
    }

    fn duration_ms(&mut self, section: &mut Section<'t>, key: &'static str, least_ms: u64) -> Option<u64> {
        let found = section.take(key)?;
        let duration = match json(found.get_ref()) {
            Value::String(text) => text
                .parse::<jiff::SignedDuration>()
                .ok()
                .and_then(|duration| Duration::try_from(duration).ok()),
            Value::Number(seconds) => {
                seconds.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            }
            _ => None,
        };
        let value = duration.and_then(|d| u64::try_from(d.as_millis()).ok()).filter(|ms| *ms >= least_ms);
        if value.is_none() {
            let what = format!(
                "'{}' must be a duration such as \"500ms\", \"60s\" or a number of seconds",
                section.path(key)
            );
            self.problem(Some(found.span()), what);
        }
        value
    }
}

fn json(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(&number.as_str().replace('_', ""), number.radix())
            .map_or(Value::Null, Value::from),
        DeValue::Float(number) => {
            number.as_str().replace('_', "").parse::<f64>().map_or(Value::Null, Value::from)
        }
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(items) => items.iter().map(|item| json(item.get_ref())).collect(),
        DeValue::Table(keys) => Value::Object(
            keys.iter().map(|(key, value)| (key.get_ref().to_string(), json(value.get_ref()))).collect(),
        ),
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
