//! The section `[llm]`: which model, where, and how.

use std::{collections::HashSet, path::Path};

use serde_json::{Map, Value};
use toml::de::DeValue;

use super::reader::{Reader, Section, json};
use crate::job::{EndpointSpec, Images, Llm, Prices, check_base_url};

/// Fields of a request that Shelfmill itself writes.
const OWN_FIELDS: [&str; 6] =
    ["model", "messages", "stream", "n", "response_format", "max_completion_tokens"];

const STRUCTURED: &str = "\"auto\", \"json_schema\", \"json_object\" or \"none\"";
const ON_OVERFLOW: &str = "\"fail\", \"truncate\" or \"fallback\"";
/// Names stand in logs, results and keys of Redis.
const MAX_NAME_BYTES: usize = 64;

/// In capital letters, as is the custom: with small ones, most providers' keys would look like names.
fn is_variable(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

fn is_endpoint_name(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

impl<'t> Reader<'t> {
    pub(super) fn llm(&mut self, section: &mut Section<'t>, folder: &Path) -> Llm {
        let default = Llm::default();
        let prices = self.prices(section, "llm.prices");
        let base_url_at = section.span("base_url");
        let base_url = self.base_url(section);
        let model = self.text_of(section, "model").unwrap_or(default.model);
        let temperature = self.number(section, "temperature", 0.0..=2.0);
        let ceiling = self.whole(section, "max_output_tokens", 1).unwrap_or(default.max_output_tokens);
        let limit_at = section.span("max_output_tokens_limit");
        let limit = self.whole(section, "max_output_tokens_limit", 1);
        if limit.is_some_and(|limit| limit < ceiling) {
            let what = format!(
                "'llm.max_output_tokens_limit' must not be less than 'llm.max_output_tokens', which is {ceiling}"
            );
            self.problem(limit_at, what);
        }
        let llm = Llm {
            base_url,
            model,
            temperature,
            max_output_tokens: ceiling,
            max_output_tokens_limit: limit,
            timeout_ms: self.duration_ms(section, "timeout", 1).unwrap_or(default.timeout_ms),
            prices,
            structured: self.word(section, "structured", STRUCTURED).unwrap_or_default(),
            reask: self.whole(section, "reask", 0).unwrap_or(default.reask),
            context_window: self.context_window(section, ceiling),
            on_overflow: self.word(section, "on_overflow", ON_OVERFLOW).unwrap_or_default(),
            api_keys: self.api_keys(section).unwrap_or(default.api_keys),
            extra: self.extra(section),
            endpoints: self.endpoints(section, ceiling),
            images: self.images(section, folder),
        };
        if !llm.endpoints.is_empty() && base_url_at.is_some() {
            let what =
                "'llm.base_url' and [[llm.endpoints]] exclude each other: make it the first endpoint's";
            self.problem(base_url_at, what);
        }
        llm
    }

    /// A URL is never repeated: a key may have been put into it.
    fn base_url(&mut self, section: &mut Section<'t>) -> Option<String> {
        let at = section.span("base_url");
        let text = self.text_of(section, "base_url")?;
        match check_base_url(&text) {
            Ok(_) => Some(text),
            Err(error) => {
                self.problem(at, format!("'{}': {error}", section.path("base_url")));
                None
            }
        }
    }

    fn context_window(&mut self, section: &mut Section<'t>, ceiling: u32) -> Option<u32> {
        let at = section.span("context_window");
        let window = self.whole(section, "context_window", 1)?;
        if window <= ceiling {
            let what = format!(
                "'{}' must be more than 'llm.max_output_tokens', which is {ceiling}: it holds the prompt too",
                section.path("context_window")
            );
            self.problem(at, what);
        }
        Some(window)
    }

    /// Names of variables. What is no name is not repeated: it may be the key itself.
    fn api_keys(&mut self, section: &mut Section<'t>) -> Option<Vec<String>> {
        let at = section.span("api_keys");
        let names = self.texts(section, "api_keys")?;
        let mut met = HashSet::new();
        if !names.iter().all(|name| is_variable(name)) {
            let what = format!(
                "'{}' must name environment variables, such as [\"OPENAI_API_KEY\"], in capital letters, digits and \
                 underscores; a key itself does not belong into a file",
                section.path("api_keys")
            );
            self.problem(at, what);
        } else if let Some(again) = names.iter().find(|name| !met.insert(name.as_str())) {
            self.problem(at, format!("'{}' names {again} twice", section.path("api_keys")));
        }
        Some(names)
    }

    fn endpoints(&mut self, section: &mut Section<'t>, ceiling: u32) -> Vec<EndpointSpec> {
        let Some(found) = section.take("endpoints") else { return Vec::new() };
        let at = found.span();
        let DeValue::Array(items) = found.into_inner() else {
            self.problem(Some(at), "'llm.endpoints' must be a list of tables: [[llm.endpoints]]");
            return Vec::new();
        };
        let mut endpoints: Vec<EndpointSpec> = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let mut section = self.table(item, "llm.endpoints", "[[llm.endpoints]]");
            let at = section.span("name").or(section.at.clone());
            let endpoint = self.endpoint(&mut section, index + 1, ceiling);
            if endpoints.iter().any(|before| before.name == endpoint.name) {
                self.problem(at, format!("there is an endpoint '{}' already", endpoint.name));
            }
            endpoints.push(endpoint);
            self.finish(section);
        }
        endpoints
    }

    fn endpoint(&mut self, section: &mut Section<'t>, place: usize, ceiling: u32) -> EndpointSpec {
        let name_at = section.span("name");
        let name = self.text_of(section, "name");
        if name.as_ref().is_some_and(|name| !is_endpoint_name(name)) {
            let what =
                "'llm.endpoints.name' must be letters, digits, dots, dashes and underscores, 64 at most";
            self.problem(name_at, what);
        }
        let is_missing = section.span("base_url").is_none();
        let base_url = self.base_url(section);
        if is_missing {
            self.problem(section.at.clone(), "'llm.endpoints.base_url' is missing, such as https://host/v1");
        }
        let base_url = base_url.unwrap_or_default();
        EndpointSpec {
            name: name.unwrap_or_else(|| EndpointSpec::default_name(&base_url, place)),
            base_url,
            model: self.text_of(section, "model"),
            api_keys: self.api_keys(section),
            weight: self.whole(section, "weight", 1).unwrap_or(1),
            prices: self.prices(section, "llm.endpoints.prices"),
            requests_per_minute: self.whole(section, "requests_per_minute", 1),
            tokens_per_minute: self.whole(section, "tokens_per_minute", 1),
            context_window: self.context_window(section, ceiling),
        }
    }

    fn prices(&mut self, section: &mut Section<'t>, name: &'static str) -> Option<Prices> {
        let form = "prices = { prompt = 0.40, completion = 1.60 }, in US dollars per million tokens";
        let found = section.take("prices")?;
        let mut prices = self.table(found, name, form);
        let told = self.problems.len();
        let prompt = self.number(&mut prices, "prompt", 0.0..=f64::MAX);
        let completion = self.number(&mut prices, "completion", 0.0..=f64::MAX);
        if told == self.problems.len() && (prompt.is_none() || completion.is_none()) {
            self.problem(prices.at.clone(), format!("'{name}' needs both 'prompt' and 'completion'"));
        }
        self.finish(prices);
        Some(Prices { prompt_per_million: prompt?, completion_per_million: completion? })
    }

    fn images(&mut self, section: &mut Section<'t>, folder: &Path) -> Option<Images> {
        let default = Images::default();
        let mut section = self.section(section, "llm.images");
        section.at.as_ref()?;
        let told = self.problems.len();
        let fields = self.texts(&mut section, "fields").unwrap_or_default();
        if fields.is_empty() && told == self.problems.len() {
            let what =
                "'llm.images.fields' is missing: the product's fields with images, such as [\"image_url\"]";
            self.problem(section.at.clone(), what);
        }
        let images = Images {
            fields,
            max_bytes: self.whole(&mut section, "max_bytes", 1).map_or(default.max_bytes, u64::from),
            max_images: self.whole(&mut section, "max_images", 1).unwrap_or(default.max_images),
            allow_private: self.flag(&mut section, "allow_private").unwrap_or(default.allow_private),
            folder: self.folder(&mut section, folder),
        };
        self.finish(section);
        Some(images)
    }

    /// A folder, whole: workers are started elsewhere.
    fn folder(&mut self, section: &mut Section<'t>, folder: &Path) -> Option<String> {
        let at = section.span("folder");
        let name = self.text_of(section, "folder")?;
        let whole = std::path::absolute(folder.join(name)).ok();
        let whole = whole.and_then(|path| path.into_os_string().into_string().ok());
        if whole.is_none() {
            self.problem(at, format!("'{}' must be a folder's path, in UTF-8", section.path("folder")));
        }
        whole
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
}
