//! The job that is done where no job file says otherwise, and the defaults of one that does.

use serde_json::{Map, Value, json};

use super::{Images, Limits, Llm, OnOverflow, Output, PromptTemplates, Structured};

impl Llm {
    pub(super) const DEFAULT_MODEL: &str = "gpt-4.1-mini";
    pub(super) const DEFAULT_MAX_OUTPUT_TOKENS: u32 = 1000;
    pub(super) const DEFAULT_TIMEOUT_MS: u64 = 60_000;
    pub(super) const DEFAULT_API_KEY: &str = "OPENAI_API_KEY";
}

impl Default for Llm {
    fn default() -> Self {
        Self {
            base_url: None,
            model: Self::DEFAULT_MODEL.to_owned(),
            temperature: None,
            max_output_tokens: Self::DEFAULT_MAX_OUTPUT_TOKENS,
            timeout_ms: Self::DEFAULT_TIMEOUT_MS,
            prices: None,
            extra: Map::new(),
            structured: Structured::Auto,
            reask: 1,
            max_output_tokens_limit: None,
            context_window: None,
            on_overflow: OnOverflow::Fail,
            api_keys: vec![Self::DEFAULT_API_KEY.to_owned()],
            endpoints: Vec::new(),
            images: None,
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Self {
            fields: Vec::new(),
            max_bytes: 5 * 1024 * 1024,
            max_images: 4,
            allow_private: false,
            folder: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrency: 32,
            requests_per_minute: None,
            tokens_per_minute: None,
            delay_ms: 0,
            max_attempts: 5,
            budget: None,
            abort_failure_rate: 0.5,
            hedge_after: None,
            dedupe_prompts: false,
        }
    }
}

impl Default for PromptTemplates {
    fn default() -> Self {
        Self {
            system: Some(
                "You analyse products for a retailer's catalog. Judge only by what the record says; \
                 where it does not say, leave it out. Answer in English, in JSON."
                    .to_owned(),
            ),
            user: "Analyse this product (id {{ id }}):\n\n{{ product | tojson(indent=2) }}".to_owned(),
        }
    }
}

impl Default for Output {
    fn default() -> Self {
        Self { schema: schema() }
    }
}

/// In the subset that providers' strict modes take: every property required, none besides.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "category": {"type": "string", "description": "The department, such as 'Kitchen'."},
            "subcategory": {"type": "string", "description": "The shelf within it, such as 'Coffee makers'."},
            "tags": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Three to eight lower-case words a customer might search for."
            },
            "key_attributes": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "value": {"type": "string"}},
                    "required": ["name", "value"],
                    "additionalProperties": false
                },
                "description": "What distinguishes the product, such as material, size or capacity."
            },
            "summary": {"type": "string", "description": "One sentence for the product page."},
            "quality_score": {
                "type": "integer",
                "enum": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
                "description": "How complete and useful the record is, from 1 (useless) to 10 (nothing is missing)."
            },
            "quality_reason": {"type": "string", "description": "Why this score, in one sentence."}
        },
        "required": [
            "category", "subcategory", "tags", "key_attributes", "summary", "quality_score", "quality_reason"
        ],
        "additionalProperties": false
    })
}
