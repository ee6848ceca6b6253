//! A message of a request, as OpenAI's API has it: a text, or a text and images. A message without images is written with
//! its text alone, because that is what every server takes.

use std::{fmt, sync::Arc};

use serde::{
    Serialize, Serializer,
    ser::{SerializeSeq as _, SerializeStruct as _},
};
use serde_json::json;

/// A message of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// What it says.
    pub content: Arc<str>,
    /// What it shows, after that.
    pub images: Vec<Arc<Image>>,
}

/// An image, as it is sent.
#[derive(PartialEq, Eq)]
pub struct Image {
    /// `data:image/png;base64,…`
    pub data_url: String,
    /// Width and height in pixels, which is what servers count its tokens by; `None`: its header is an odd one.
    pub size: Option<(u32, u32)>,
}

impl Message {
    /// A text alone.
    #[must_use]
    pub fn new(role: &'static str, content: impl Into<Arc<str>>) -> Self {
        Self { role, content: content.into(), images: Vec::new() }
    }
}

impl fmt::Debug for Image {
    /// Without its bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { data_url, size } = self;
        write!(f, "Image({size:?}, {} bytes as a URL)", data_url.len())
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut message = serializer.serialize_struct("Message", 2)?;
        message.serialize_field("role", self.role)?;
        if self.images.is_empty() {
            message.serialize_field("content", &*self.content)?;
        } else {
            message.serialize_field("content", &Parts(self))?;
        }
        message.end()
    }
}

/// The text and the images as parts.
struct Parts<'a>(&'a Message);

#[derive(Serialize)]
struct ImagePart<'a> {
    r#type: &'static str,
    image_url: ImageUrl<'a>,
}

#[derive(Serialize)]
struct ImageUrl<'a> {
    url: &'a str,
}

impl Serialize for Parts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(message) = self;
        let mut parts = serializer.serialize_seq(Some(1 + message.images.len()))?;
        parts.serialize_element(&json!({"type": "text", "text": &*message.content}))?;
        for image in &message.images {
            let image_url = ImageUrl { url: &image.data_url };
            parts.serialize_element(&ImagePart { r#type: "image_url", image_url })?;
        }
        parts.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_text_or_parts() {
        let mut message = Message::new("user", "a \"mug\"");
        let written = |message: &Message| serde_json::to_string(message).unwrap();
        assert_eq!(written(&message), r#"{"role":"user","content":"a \"mug\""}"#);
        let data_url = "data:image/png;base64,AAAA".to_owned();
        message.images.push(Arc::new(Image { data_url, size: None }));
        assert_eq!(
            written(&message),
            concat!(
                r#"{"role":"user","content":[{"type":"text","text":"a \"mug\""},"#,
                r#"{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}"#
            )
        );
        assert!(!format!("{message:?}").contains("AAAA"));
    }
}
