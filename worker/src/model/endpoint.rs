//! Where requests go, and what they look like.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};
use shelfmill_pipeline::{
    identity::fingerprint,
    job::{AnswerSchema, Job, JobFingerprint, Message, ModelEndpoint, Structured, is_http2_at_once},
};
use url::Url;

use super::{Dialect, Http, Sent};
use crate::{OPENAI_BASE_URL, check_base_url};

/// What is around an image's URL.
const IMAGE_PART_BYTES: usize = 64;
/// What a request has beside its texts and the schema.
const USUAL_BYTES: usize = 512;

/// Where requests go, and the parts that are the same in all of them.
#[derive(Debug)]
pub(crate) struct Endpoint {
    at: ModelEndpoint,
    url: Url,
    http: Http,
    temperature: Option<f64>,
    pub(crate) dialect: Dialect,
    json_schema: Box<RawValue>,
    json_object: Box<RawValue>,
    extra: Map<String, Value>,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    messages: &'a [Message],
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<&'a RawValue>,
    #[serde(flatten)]
    extra: &'a Map<String, Value>,
}

impl Endpoint {
    pub(crate) fn new(at: ModelEndpoint, job: &Job) -> anyhow::Result<Self> {
        let base = at.base_url.as_deref().unwrap_or(OPENAI_BASE_URL);
        let mut url = check_base_url(base)?;
        let path = format!("{}/chat/completions", url.path().trim_end_matches('/'));
        url.set_path(&path);
        let schema = &job.output.schema;
        let json_schema = serde_json::value::to_raw_value(&serde_json::json!({
            "type": "json_schema",
            "json_schema": {"name": "product_analysis", "strict": AnswerSchema::is_strict(schema), "schema": schema}
        }))?;
        let is_openai = url.host_str().is_some_and(|host| host.ends_with("openai.com"));
        Ok(Self {
            dialect: Dialect::new(name_of(&url, &at, job), job.llm.structured, is_openai),
            http: if is_http2_at_once(base) { Http::Two } else { Http::Agreed },
            at,
            url,
            temperature: job.llm.temperature,
            json_schema,
            json_object: serde_json::value::to_raw_value(&serde_json::json!({"type": "json_object"}))?,
            extra: job.llm.extra.clone(),
        })
    }

    /// What the job says of it.
    pub(crate) const fn at(&self) -> &ModelEndpoint {
        &self.at
    }

    pub(super) const fn http(&self) -> Http {
        self.http
    }

    pub(super) fn url(&self) -> Url {
        self.url.clone()
    }

    /// The server's name.
    pub(crate) fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// Whether this is OpenAI itself, which answers nobody without a key.
    pub(crate) fn is_openai(&self) -> bool {
        self.url.host_str().is_some_and(|host| host == "openai.com" || host.ends_with(".openai.com"))
    }

    /// The body of a request, for an answer of at most so many tokens.
    pub(crate) fn request(&self, messages: &[Message], ceiling: u32, sent: Sent) -> anyhow::Result<Bytes> {
        let ceiling = Some(ceiling);
        let (max_tokens, max_completion_tokens) =
            if sent.has_new_token_field { (None, ceiling) } else { (ceiling, None) };
        // Images are most of a request: a buffer that grows by doubling would take twice their room.
        let images = messages.iter().flat_map(|message| &message.images);
        let image_bytes: usize = images.map(|image| image.data_url.len() + IMAGE_PART_BYTES).sum();
        // Escapes take room, too.
        let text_bytes: usize = messages.iter().map(|message| message.content.len() * 9 / 8).sum();
        let mut body =
            Vec::with_capacity(image_bytes + text_bytes + self.json_schema.get().len() + USUAL_BYTES);
        let request = Request {
            model: &self.at.model,
            messages,
            temperature: self.temperature,
            max_tokens,
            max_completion_tokens,
            response_format: match sent.structured {
                Structured::JsonSchema | Structured::Auto => Some(&self.json_schema),
                Structured::JsonObject => Some(&self.json_object),
                Structured::None => None,
            },
            extra: &self.extra,
        };
        serde_json::to_writer(&mut body, &request)?;
        Ok(Bytes::from(body))
    }
}

/// What the ledger calls a server that is asked this question: what it refused of another need not hold.
pub(super) fn name_of(url: &Url, at: &ModelEndpoint, job: &Job) -> String {
    let JobFingerprint { prompt, schema, model } = job.fingerprint();
    let way = format!("{:?}", job.llm.structured);
    let parts = [url.as_str(), &at.model, &way, &prompt, &schema, &model];
    fingerprint(&parts.map(str::as_bytes))
}
