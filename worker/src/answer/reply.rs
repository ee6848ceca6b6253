//! The shape of a chat completion, as far as it is read. Fields that are missing or unknown do no harm; what is there
//! has to be of its type.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

#[derive(Deserialize)]
pub(super) struct Completion<'a> {
    pub(super) model: Option<String>,
    #[serde(default, borrow, deserialize_with = "first", rename = "choices")]
    pub(super) choice: Option<Choice<'a>>,
    pub(super) usage: Option<Usage>,
    /// OpenRouter's, when a provider behind it fails after it has answered 200.
    #[serde(default, borrow)]
    pub(super) error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct Choice<'a> {
    pub(super) message: Option<Message>,
    pub(super) finish_reason: Option<String>,
    #[serde(default, borrow)]
    pub(super) error: Option<&'a RawValue>,
}

/// `reasoning` and `reasoning_content` are not read: they are not the answer.
#[derive(Deserialize)]
pub(super) struct Message {
    #[serde(default)]
    pub(super) content: Content,
    pub(super) refusal: Option<String>,
}

/// The tokens a provider counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Usage {
    #[serde(default, deserialize_with = "or_zero")]
    pub(crate) prompt_tokens: u64,
    #[serde(default, deserialize_with = "or_zero")]
    pub(crate) completion_tokens: u64,
}

impl Usage {
    /// Tokens read and written.
    pub(crate) const fn total(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}

fn or_zero<'de, D: Deserializer<'de>>(count: D) -> Result<u64, D::Error> {
    Ok(Option::deserialize(count)?.unwrap_or_default())
}

/// A text, or a list of parts: those that are texts are one after the other the answer.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) text: String,
    pub(super) refusal: Option<String>,
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
    refusal: Option<String>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(content: D) -> Result<Self, D::Error> {
        struct Parts;

        impl<'de> Visitor<'de> for Parts {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of parts")
            }

            fn visit_unit<E>(self) -> Result<Content, E> {
                Ok(Content::default())
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content { text: text.to_owned(), refusal: None })
            }

            fn visit_string<E>(self, text: String) -> Result<Content, E> {
                Ok(Content { text, refusal: None })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content, A::Error> {
                let mut content = Content::default();
                while let Some(part) = parts.next_element::<Part>()? {
                    content.text.push_str(&part.text.unwrap_or_default());
                    content.refusal = content.refusal.or(part.refusal);
                }
                Ok(content)
            }
        }

        content.deserialize_any(Parts)
    }
}

/// The first element of a list; the others are passed over.
fn first<'de: 'a, 'a, D: Deserializer<'de>>(list: D) -> Result<Option<Choice<'a>>, D::Error> {
    struct First;

    impl<'de> Visitor<'de> for First {
        type Value = Option<Choice<'de>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let first = list.next_element()?;
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }

    list.deserialize_any(First)
}
