//! How many tokens a prompt may have, before the model counts them.
//!
//! Where the model's tokenizer is known it is used, and elsewhere bytes are counted. Both are corrected by what
//! the model has counted so far, for the rest: a provider's own additions, another way to count images, another tokenizer.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use shelfmill_pipeline::job::Message;
use tiktoken_rs::{
    CoreBPE, cl100k_base_singleton, o200k_base_singleton,
    tokenizer::{Tokenizer, get_tokenizer},
};

use images::ImageTokens;

/// English text has about four characters a token; other scripts fewer, so that bytes are the safer measure.
const BYTES_PER_TOKEN: u64 = 4;
/// What a message costs beside its text. (OpenAI cookbook, "How to count tokens".)
const TOKENS_PER_MESSAGE: u64 = 4;
/// What begins the answer. (The same.)
const TOKENS_OF_BEGINNING: u64 = 3;
/// A tokenizer gets no more at once: on a long run of one character it takes more than linear time, or gives up.
const PIECE_BYTES: usize = 4096;
/// Of a longer text, so many pieces are counted, and the rest is taken to be like them: a megabyte must not hold up
/// the other calls of its thread.
const PIECES_COUNTED: usize = 16;
/// Where models have the names and tokenizers of OpenAI's: OpenAI itself, Azure, OpenRouter.
const OPENAI_HOSTS: [&str; 5] = [
    "openai.com",
    "openai.azure.com",
    "cognitiveservices.azure.com",
    "services.ai.azure.com",
    "openrouter.ai",
];

/// Tokens that the messages probably have, whatever the model, and so many images with them.
#[must_use]
pub fn estimate_tokens(messages: &[Message], images: u64) -> u64 {
    let of_message = |message: &Message| TOKENS_PER_MESSAGE + by_bytes(&message.content);
    messages.iter().map(of_message).sum::<u64>() + images * ImageTokens::of("").estimate(None)
}

fn by_bytes(text: &str) -> u64 {
    (text.len() as u64).div_ceil(BYTES_PER_TOKEN)
}

/// Estimates the prompts of one model at one place.
#[derive(Debug)]
pub struct Estimator {
    tokenizer: Option<Encoding>,
    images: ImageTokens,
    /// Of the request, whatever the messages.
    fixed: u64,
    corrector: Corrector,
}

/// What was expected of one prompt; given back with what it turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Tokens that the prompt probably has.
    pub tokens: u64,
    /// Before the correction.
    uncorrected: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Cl100k,
    O200k,
}

impl Encoding {
    /// By the model's name, where names mean what they say.
    fn of(model: &str, host: &str) -> Option<Self> {
        let host = host.to_ascii_lowercase();
        let is_openai = OPENAI_HOSTS.iter().any(|known| {
            host.strip_suffix(known).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        });
        if !is_openai {
            return None;
        }
        match get_tokenizer(model.strip_prefix("openai/").unwrap_or(model))? {
            Tokenizer::O200kBase | Tokenizer::O200kHarmony => Some(Self::O200k),
            Tokenizer::Cl100kBase => Some(Self::Cl100k),
            Tokenizer::P50kBase | Tokenizer::R50kBase | Tokenizer::P50kEdit | Tokenizer::Gpt2 => None,
        }
    }

    /// Made when first used, which takes 0.15 s and 45 MB; once in a process.
    fn table(self) -> &'static CoreBPE {
        match self {
            Self::Cl100k => cl100k_base_singleton(),
            Self::O200k => o200k_base_singleton(),
        }
    }

    fn count(self, text: &str) -> u64 {
        let stride = text.len().div_ceil(PIECE_BYTES * PIECES_COUNTED).max(1);
        let (mut tokens, mut bytes) = (0, 0);
        for piece in pieces(text).step_by(stride) {
            tokens += self.table().count_ordinary(piece) as u128;
            bytes += piece.len() as u128;
        }
        u64::try_from((tokens * text.len() as u128).div_ceil(bytes.max(1))).unwrap_or(u64::MAX)
    }
}

/// Whole characters, in pieces that are not longer than what a tokenizer gets at once.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (piece, rest) = text.split_at(text.floor_char_boundary(PIECE_BYTES));
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

impl Estimator {
    /// For this model at this host. `schema` is what travels beside the messages, in `response_format`: providers
    /// count it as part of the prompt.
    #[must_use]
    pub fn new(model: &str, host: &str, schema: Option<&Value>) -> Self {
        let tokenizer = Encoding::of(model, host);
        let (images, corrector) = (ImageTokens::of(model), Corrector::default());
        let mut estimator = Self { tokenizer, images, fixed: TOKENS_OF_BEGINNING, corrector };
        // Makes the table, too: better now than while a product waits.
        estimator.fixed += estimator.count(&schema.map(Value::to_string).unwrap_or_default());
        estimator
    }

    /// Tokens that a request with these messages probably has.
    #[must_use]
    pub fn estimate(&self, messages: &[Message]) -> u64 {
        self.measure(messages).tokens
    }

    /// The same, to be compared with what the model counts.
    #[must_use]
    pub fn measure(&self, messages: &[Message]) -> Estimate {
        let of_message = |message: &Message| {
            let images = message.images.iter().map(|image| self.images.estimate(image.size)).sum::<u64>();
            TOKENS_PER_MESSAGE + self.count(&message.content) + images
        };
        let uncorrected = self.fixed + messages.iter().map(of_message).sum::<u64>();
        Estimate { tokens: self.corrector.correct(uncorrected), uncorrected }
    }

    /// The most tokens that the prompt of such a request can have. No token of a text is shorter than a byte; images count
    /// by their pixels, and their bytes say nothing.
    #[must_use]
    pub(crate) fn most(&self, messages: &[Message], request_bytes: usize) -> u64 {
        let images = || messages.iter().flat_map(|message| &message.images);
        let image_bytes: usize = images().map(|image| image.data_url.len()).sum();
        request_bytes.saturating_sub(image_bytes) as u64 + images().count() as u64 * self.images.most()
    }

    /// Tokens of a text alone, such as an answer without usage.
    #[must_use]
    pub fn count(&self, text: &str) -> u64 {
        self.tokenizer.map_or_else(|| by_bytes(text), |encoding| encoding.count(text))
    }

    /// Learns from the model's own count of a prompt.
    pub fn observe(&self, estimate: Estimate, prompt_tokens: u64) {
        self.corrector.observe(estimate.uncorrected, prompt_tokens);
    }
}

/// How many tokens there were for each that was expected: a mean in which what is recent weighs more. Of one process;
/// any thread may use it.
#[derive(Debug)]
pub struct Corrector(AtomicU64);

impl Default for Corrector {
    fn default() -> Self {
        Self(AtomicU64::new(1.0_f64.to_bits()))
    }
}

impl Corrector {
    /// What a new observation weighs.
    const WEIGHT: f64 = 0.125;
    /// A count outside of these is somebody's mistake.
    const LEAST: f64 = 0.25;
    const MOST: f64 = 8.0;

    /// The mean; 1 before anything was observed.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// What is to be expected, after all that was observed.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate, and never negative"
    )]
    pub fn correct(&self, estimate: u64) -> u64 {
        (estimate as f64 * self.ratio()).ceil() as u64
    }

    /// There were `observed` tokens where `estimate` were expected, before any correction. A server that does not
    /// count says 0, which teaches nothing.
    pub fn observe(&self, estimate: u64, observed: u64) {
        if estimate == 0 || observed == 0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let found = (observed as f64 / estimate as f64).clamp(Self::LEAST, Self::MOST);
        // Of two observations at the same time one may get lost: there will be others.
        let ratio = self.ratio();
        self.0.store((ratio + (found - ratio) * Self::WEIGHT).to_bits(), Ordering::Relaxed);
    }
}

mod images;

#[cfg(test)]
mod tests;
