//! Reads `job.toml`. Every problem in the file is told, each with its line, so that one round of editing is
//! enough; a key nobody reads is a problem too, because it is a setting somebody believes in.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{AnswerSchema, Job, Limits, Output, Prompt, PromptTemplates};

mod llm;
mod reader;

use reader::{Reader, Section, json};

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

impl<'t> Reader<'t> {
    fn job(&mut self, root: DeTable<'t>, folder: &Path) -> Job {
        let mut root = Section::root(root);
        let mut llm = self.section(&mut root, "llm");
        let mut prompt = self.section(&mut root, "prompt");
        let mut output = self.section(&mut root, "output");
        let mut limits = self.section(&mut root, "limits");
        self.finish(root);
        let job = Job {
            llm: self.llm(&mut llm, folder),
            prompt: self.prompt(&mut prompt),
            output: self.output(&mut output, folder),
            limits: self.limits(&mut limits),
        };
        [llm, prompt, output, limits].into_iter().for_each(|section| self.finish(section));
        job
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
        let budget_at = section.span("budget");
        let budget = self.number(section, "budget", 0.0..=f64::MAX);
        if budget == Some(0.0) {
            self.problem(budget_at, "'limits.budget' must be more than 0 US dollars");
        }
        Limits {
            concurrency: self.whole(section, "concurrency", 1).unwrap_or(default.concurrency),
            requests_per_minute: self.whole(section, "requests_per_minute", 1),
            tokens_per_minute: self.whole(section, "tokens_per_minute", 1),
            delay_ms: self.duration_ms(section, "delay", 0).unwrap_or(default.delay_ms),
            max_attempts: self.whole(section, "max_attempts", 1).unwrap_or(default.max_attempts),
            budget,
            abort_failure_rate: self
                .number(section, "abort_failure_rate", 0.0..=1.0)
                .unwrap_or(default.abort_failure_rate),
            hedge_after: self.word(section, "hedge_after", "a percentile from \"p50\" to \"p99.9\""),
            dedupe_prompts: self.flag(section, "dedupe_prompts").unwrap_or(default.dedupe_prompts),
        }
    }
}

#[cfg(test)]
mod docs;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
