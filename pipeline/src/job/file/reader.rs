//! Values of a job file, and what is wrong with them.

use std::{ops::Range, time::Duration};

use serde::de::DeserializeOwned;
use serde_json::Value;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::JobProblem;

pub(super) struct Reader<'t> {
    pub(super) text: &'t str,
    pub(super) problems: Vec<JobProblem>,
}

/// A table from which known keys are taken; what is left over is unknown.
pub(super) struct Section<'t> {
    name: &'static str,
    pub(super) keys: DeTable<'t>,
    known: Vec<&'static str>,
    pub(super) at: Option<Range<usize>>,
}

impl<'t> Section<'t> {
    /// The file as a whole.
    pub(super) const fn root(keys: DeTable<'t>) -> Self {
        Self { name: "", keys, known: Vec::new(), at: None }
    }

    fn empty(name: &'static str, at: Option<Range<usize>>) -> Self {
        Self { name, keys: DeTable::new(), known: Vec::new(), at }
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Spanned<DeValue<'t>>> {
        self.known.push(key);
        self.keys.remove(key)
    }

    /// Where the value of a key is, as long as it was not taken.
    pub(super) fn span(&self, key: &str) -> Option<Range<usize>> {
        self.keys.get(key).map(Spanned::span)
    }

    pub(super) fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}

impl<'t> Reader<'t> {
    pub(super) fn problem(&mut self, at: Option<Range<usize>>, what: impl Into<String>) {
        let line = at.map(|at| 1 + self.text[..at.start.min(self.text.len())].matches('\n').count());
        self.problems.push(JobProblem { line, what: what.into() });
    }

    /// The table of that full name, from the one above it; empty where the file has none.
    pub(super) fn section(&mut self, above: &mut Section<'t>, name: &'static str) -> Section<'t> {
        let key = name.rsplit('.').next().unwrap_or(name);
        match above.take(key) {
            Some(found) => self.table(found, name, &format!("[{name}]")),
            None => Section::empty(name, None),
        }
    }

    /// A value that must be a table.
    pub(super) fn table(
        &mut self,
        found: Spanned<DeValue<'t>>,
        name: &'static str,
        form: &str,
    ) -> Section<'t> {
        let mut section = Section::empty(name, Some(found.span()));
        match found.into_inner() {
            DeValue::Table(keys) => section.keys = keys,
            other => self.problem(
                section.at.clone(),
                format!("'{name}' must be a table, {form}, not {}", other.type_str()),
            ),
        }
        section
    }

    pub(super) fn finish(&mut self, section: Section<'t>) {
        for (key, _) in &section.keys {
            let what = format!(
                "unknown key '{}' (there are: {})",
                section.path(key.get_ref()),
                section.known.join(", ")
            );
            self.problem(Some(key.span()), what);
        }
    }

    pub(super) fn text_of(&mut self, section: &mut Section<'t>, key: &'static str) -> Option<String> {
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

    /// A list of texts, none of them empty.
    pub(super) fn texts(&mut self, section: &mut Section<'t>, key: &'static str) -> Option<Vec<String>> {
        let found = section.take(key)?;
        let texts = found.get_ref().as_array().and_then(|items| {
            let text = |item: &Spanned<DeValue<'t>>| item.get_ref().as_str().map(ToOwned::to_owned);
            let texts: Option<Vec<String>> = items.iter().map(text).collect();
            texts.filter(|texts| texts.iter().all(|text| !text.trim().is_empty()))
        });
        if texts.is_none() {
            let what = format!("'{}' must be a list of texts that are not empty", section.path(key));
            self.problem(Some(found.span()), what);
        }
        texts
    }

    pub(super) fn flag(&mut self, section: &mut Section<'t>, key: &'static str) -> Option<bool> {
        let found = section.take(key)?;
        let flag = found.get_ref().as_bool();
        if flag.is_none() {
            self.problem(Some(found.span()), format!("'{}' must be true or false", section.path(key)));
        }
        flag
    }

    /// A text that stands for a value; `form` says which there are.
    pub(super) fn word<T: DeserializeOwned>(
        &mut self,
        section: &mut Section<'t>,
        key: &'static str,
        form: &str,
    ) -> Option<T> {
        let found = section.take(key)?;
        let word = found.get_ref().as_str().map(|text| Value::String(text.to_owned()));
        let value = word.and_then(|word| serde_json::from_value(word).ok());
        if value.is_none() {
            self.problem(Some(found.span()), format!("'{}' must be {form}", section.path(key)));
        }
        value
    }

    pub(super) fn whole(&mut self, section: &mut Section<'t>, key: &'static str, least: u32) -> Option<u32> {
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

    pub(super) fn number(
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

    pub(super) fn duration_ms(
        &mut self,
        section: &mut Section<'t>,
        key: &'static str,
        least_ms: u64,
    ) -> Option<u64> {
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

pub(super) fn json(value: &DeValue<'_>) -> Value {
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
