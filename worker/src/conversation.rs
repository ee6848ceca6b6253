//! What is asked for one product, and what is asked next when the answer cannot be used.
//!
//! - An answer that hit the ceiling is asked for once more with a ceiling twice as high, and never repaired.
//! - An answer that is not what was asked for is shown to the model with what is wrong about it, so often as the job says;
//!   then the question is asked anew.
//! - The images go with the product's own question, and stay there when it is gone on about.
//! - A prompt that cannot fit the model's window is told before it costs anything, or shortened where the job says so.

use std::sync::Arc;

use serde_json::{Value, value::RawValue};
use shelfmill_pipeline::{
    failure::FailureClass,
    job::{Image, Job, Message, OnOverflow, Prompt, PromptError, Structured},
    message::Task,
    record::Shortened,
};

use crate::{
    estimate::{Estimate, Estimator},
    model::CallFailure,
};

/// Of an answer that is shown to the model again.
const SHOWN_BYTES: usize = 16 * 1024;
/// Texts are cut shorter so often, until the prompt fits.
const CUTS: usize = 16;

/// The question as it stands.
#[derive(Clone, Debug)]
pub(crate) struct Conversation {
    first: Vec<Message>,
    /// Answers that could not be used, and what was said to them.
    further: Vec<Message>,
    /// They go with the last message of the user among the first.
    pub(crate) images: Vec<Arc<Image>>,
    /// The ceiling of the next answer.
    pub(crate) ceiling: u32,
    is_doubled: bool,
    reasks_left: u32,
    pub(crate) shortened: Option<Shortened>,
}

impl Conversation {
    /// The question for this product; why there is none.
    pub(crate) fn begin(job: &Job, prompt: &Prompt, task: &Task) -> Result<Self, CallFailure> {
        Ok(Self {
            first: render(prompt, task, &task.product)?,
            further: Vec::new(),
            images: Vec::new(),
            ceiling: job.llm.max_output_tokens,
            is_doubled: false,
            reasks_left: job.llm.reask,
            shortened: None,
        })
    }

    /// The question, before anything was answered, and without what a server must be told of the schema.
    pub(crate) fn first(&self) -> &[Message] {
        &self.first
    }

    /// The messages, for a server that is told in this way what the answer must look like.
    pub(crate) fn messages(&self, structured: Structured, schema: &Value) -> Vec<Message> {
        let mut messages = self.first.clone();
        if structured != Structured::JsonSchema {
            // In the first message, whoever says it: some models know no system message.
            let rule = format!(
                "Answer with one JSON value that this JSON schema allows, and with nothing else.\nJSON schema:\n{schema}"
            );
            match messages.first_mut() {
                Some(first) => first.content = format!("{}\n\n{rule}", first.content).into(),
                None => messages.push(Message::new("user", rule)),
            }
        }
        if let Some(question) = messages.iter_mut().rfind(|message| message.role == "user") {
            question.images.clone_from(&self.images);
        }
        messages.extend(self.further.iter().cloned());
        messages
    }

    /// Sees to it that the prompt and the longest answer fit the model's window, where that is known.
    pub(crate) fn fit(
        &mut self,
        job: &Job,
        prompt: &Prompt,
        task: &Task,
        (window, estimator): (Option<u32>, &Estimator),
        structured: Structured,
    ) -> Result<Estimate, CallFailure> {
        let measure = |this: &Self| estimator.measure(&this.messages(structured, &job.output.schema));
        let mut estimate = measure(self);
        let Some(room) = window.map(|window| u64::from(window).saturating_sub(u64::from(self.ceiling)))
        else {
            return Ok(estimate);
        };
        let too_long = |tokens: u64| {
            let message = format!(
                "the prompt has about {tokens} tokens; with an answer of up to {} it does not fit the model's window of {}",
                self.ceiling,
                window.unwrap_or(0)
            );
            CallFailure::new(FailureClass::ContextTooLong, message)
        };
        if estimate.tokens > room && !self.further.is_empty() {
            // Rather than the product, what was said to an answer that could not be used.
            self.further.clear();
            estimate = measure(self);
        }
        if estimate.tokens <= room {
            return Ok(estimate);
        }
        let failure = too_long(estimate.tokens);
        if job.llm.on_overflow != OnOverflow::Truncate {
            return Err(failure);
        }
        let mut product: Value = serde_json::from_str(task.product.get())
            .map_err(|error| CallFailure::new(FailureClass::Unpromptable, error.to_string()))?;
        for _ in 0..CUTS {
            let excess = estimate.tokens.saturating_sub(room);
            let Some(field) = shorten_longest(&mut product, excess) else { return Err(failure) };
            let body = serde_json::value::to_raw_value(&product)
                .map_err(|error| CallFailure::new(FailureClass::Unpromptable, error.to_string()))?;
            self.first = render(prompt, task, &body)?;
            let removed = task.product.get().len().saturating_sub(body.get().len());
            self.shortened = Some(Shortened { field, removed_bytes: removed as u64 });
            estimate = measure(self);
            if estimate.tokens <= room {
                return Ok(estimate);
            }
        }
        Err(failure)
    }

    /// Whether the question is to be asked again at once, otherwise than before.
    pub(crate) fn goes_on_after(&mut self, failure: &CallFailure, limit: u32) -> bool {
        match failure.class {
            FailureClass::Truncated if !self.is_doubled && self.ceiling < limit => {
                self.is_doubled = true;
                self.ceiling = self.ceiling.saturating_mul(2).min(limit);
                // What was cut off is of no use to anybody.
                true
            }
            FailureClass::Malformed | FailureClass::SchemaViolation => {
                let Some(answer) = failure.raw.as_deref().filter(|_| self.reasks_left > 0) else {
                    return false;
                };
                self.reasks_left -= 1;
                let shown = &answer[..answer.floor_char_boundary(SHOWN_BYTES)];
                let correction = format!(
                    "This cannot be used: {}. Answer again, to the same question, with the whole corrected JSON and \
                     nothing else.",
                    failure.message.trim_end_matches('.')
                );
                self.further.push(Message::new("assistant", shown));
                self.further.push(Message::new("user", correction));
                true
            }
            _ => false,
        }
    }

    /// The question as it was in the beginning, but for what was learned of its length.
    pub(crate) fn ask_anew(&mut self, job: &Job) {
        self.further.clear();
        self.reasks_left = job.llm.reask;
    }
}

fn render(prompt: &Prompt, task: &Task, product: &RawValue) -> Result<Vec<Message>, CallFailure> {
    prompt
        .render(&task.id, product)
        .map_err(|error: PromptError| CallFailure::new(FailureClass::Unpromptable, error.to_string()))
}

/// Cuts the longest text of the product by about so many tokens; where it is, as `description` or `variants.0.text`.
fn shorten_longest(product: &mut Value, tokens: u64) -> Option<String> {
    /// No token is much longer; less would be cut too often.
    const BYTES_PER_TOKEN: u64 = 4;
    /// Shorter texts are left alone.
    const LEAST_BYTES: usize = 64;
    let (path, text) = longest(product, &mut Vec::new())?;
    if text.len() <= LEAST_BYTES {
        return None;
    }
    let cut =
        usize::try_from(tokens.saturating_mul(BYTES_PER_TOKEN)).unwrap_or(usize::MAX).max(LEAST_BYTES / 2);
    let kept = text.floor_char_boundary(text.len().saturating_sub(cut).max(LEAST_BYTES / 2));
    text.truncate(kept);
    Some(path)
}

fn longest<'v>(value: &'v mut Value, path: &mut Vec<String>) -> Option<(String, &'v mut String)> {
    let longer =
        |best: Option<(String, &'v mut String)>, next: Option<(String, &'v mut String)>| match (best, next) {
            (Some(best), Some(next)) => Some(if next.1.len() > best.1.len() { next } else { best }),
            (best, next) => best.or(next),
        };
    match value {
        Value::String(text) => Some((path.join("."), text)),
        Value::Array(items) => items.iter_mut().enumerate().fold(None, |best, (index, item)| {
            path.push(index.to_string());
            let next = longest(item, path);
            path.pop();
            longer(best, next)
        }),
        Value::Object(fields) => fields.iter_mut().fold(None, |best, (name, field)| {
            path.push(name.clone());
            let next = longest(field, path);
            path.pop();
            longer(best, next)
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
