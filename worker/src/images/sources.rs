//! Where a product says its images are.
//!
//! A field is named as it is, or by the way to it: `media.main`, `variants.0.photo`; a name at a list is looked for in
//! each of its items (`variants.photo`). A name with dots in it that the product has counts as it is.

use std::fmt;

use serde_json::Value;
use shelfmill_pipeline::{failure::FailureClass, job::Images};
use url::Url;

use crate::model::CallFailure;

/// Of what a product says, in a message.
const SHOWN_BYTES: usize = 200;

/// An image that a product names.
#[derive(Debug, PartialEq)]
pub(super) struct Source<'a> {
    /// By its name in the job.
    pub(super) field: &'a str,
    pub(super) place: Place,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Url(Url),
    Path(String),
}

/// What may be said of it: of a URL, nothing that could be a key.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(&shown(url)),
            Self::Path(path) => write!(f, "{:?}", &path[..path.floor_char_boundary(SHOWN_BYTES)]),
        }
    }
}

/// Scheme, host and path.
pub(super) fn shown(url: &Url) -> String {
    let path = url.path();
    let path = &path[..path.floor_char_boundary(SHOWN_BYTES)];
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{}://{host}:{port}{path}", url.scheme()),
        None => format!("{}://{host}{path}", url.scheme()),
    }
}

/// How many images of the product would be sent; what cannot be an image counts as none.
#[must_use]
pub fn count_images(images: &Images, product: &Value) -> u64 {
    sources(images, product).map_or(0, |sources| sources.len() as u64)
}

/// The product's images, in the order of the fields, each once, and no more than the job wants.
pub(super) fn sources<'a>(images: &'a Images, product: &Value) -> Result<Vec<Source<'a>>, CallFailure> {
    let most = images.max_images as usize;
    let mut sources: Vec<Source<'a>> = Vec::new();
    for field in &images.fields {
        let mut named = Vec::new();
        find(product, field, &mut named);
        for value in named {
            let place = match texts(field, value)? {
                Some(text) => place(field, text)?,
                None => continue,
            };
            if sources.len() < most && !sources.iter().any(|source| source.place == place) {
                sources.push(Source { field, place });
            }
            if sources.len() == most {
                return Ok(sources);
            }
        }
    }
    Ok(sources)
}

/// All that is found under this name, lists taken apart.
fn find<'v>(value: &'v Value, name: &str, found: &mut Vec<&'v Value>) {
    match value {
        Value::Object(fields) => {
            if let Some(field) = fields.get(name) {
                flatten(field, found);
            } else if let Some((first, rest)) = name.split_once('.')
                && let Some(field) = fields.get(first)
            {
                find(field, rest, found);
            }
        }
        Value::Array(items) => {
            let (first, rest) =
                name.split_once('.').map_or((name, None), |(first, rest)| (first, Some(rest)));
            match (first.parse::<usize>(), rest) {
                (Ok(place), None) => items.get(place).into_iter().for_each(|item| flatten(item, found)),
                (Ok(place), Some(rest)) => {
                    items.get(place).into_iter().for_each(|item| find(item, rest, found));
                }
                (Err(_), _) => items.iter().for_each(|item| find(item, name, found)),
            }
        }
        _ => {}
    }
}

fn flatten<'v>(value: &'v Value, found: &mut Vec<&'v Value>) {
    match value {
        Value::Array(items) => found.extend(items),
        value => found.push(value),
    }
}

/// What the field says, if it says anything.
fn texts<'v>(field: &str, value: &'v Value) -> Result<Option<&'v str>, CallFailure> {
    let what = match value {
        Value::String(text) => return Ok(Some(text.trim()).filter(|text| !text.is_empty())),
        Value::Null => return Ok(None),
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::Array(_) => "a list of lists",
        Value::Object(_) => "a table",
    };
    let message =
        format!("the field '{field}' holds {what}, and not the URL or path of an image, or a list of these");
    Err(CallFailure::new(FailureClass::ImageUnusable, message))
}

fn place(field: &str, text: &str) -> Result<Place, CallFailure> {
    // What is no URL is not repeated, because there is no telling what part of it is a key.
    let wrong = |why: &str| {
        let message = format!("the image in field '{field}': {why}");
        Err(CallFailure::new(FailureClass::ImageUnusable, message))
    };
    let scheme = text.split_once(':').map(|(scheme, _)| scheme).filter(|scheme| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    });
    match scheme.map(str::to_ascii_lowercase).as_deref() {
        Some("http" | "https") => match Url::parse(text) {
            Ok(url) => Ok(Place::Url(url)),
            Err(error) => wrong(&format!("it is no URL: {error}")),
        },
        Some(scheme) if text.contains("://") || scheme == "data" => {
            wrong("only URLs that begin with http:// or https://, and paths, are fetched")
        }
        _ if text.starts_with("//") => wrong("a URL must begin with http:// or https://"),
        _ => Ok(Place::Path(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn images(fields: &[&str]) -> Images {
        Images { fields: fields.iter().map(|field| (*field).to_owned()).collect(), ..Images::default() }
    }

    fn found(fields: &[&str], product: &Value) -> Vec<String> {
        let images = images(fields);
        sources(&images, product).unwrap().iter().map(|source| source.place.to_string()).collect()
    }

    #[test]
    fn fields_are_named_as_they_are_or_by_the_way_to_them() {
        let product = json!({
            "photo": " a.png ",
            "more": ["b.png", "", null, "a.png"],
            "media": {"main": "c.png"},
            "media.odd": "d.png",
            "variants": [{"photo": "e.png"}, {"photo": ["f.png"]}, {}],
            "none": null,
        });
        for (field, expected) in [
            ("photo", vec![r#""a.png""#]),
            ("more", vec![r#""b.png""#, r#""a.png""#]),
            ("more.0", vec![r#""b.png""#]),
            ("media.main", vec![r#""c.png""#]),
            ("media.odd", vec![r#""d.png""#]),
            ("variants.photo", vec![r#""e.png""#, r#""f.png""#]),
            ("variants.1.photo", vec![r#""f.png""#]),
            ("none", vec![]),
            ("missing", vec![]),
            ("photo.deeper", vec![]),
            ("more.9", vec![]),
        ] {
            assert_eq!(found(&[field], &product), expected, "{field}");
        }
        assert_eq!(found(&["photo", "more"], &product).len(), 2, "each is sent once");
        assert_eq!(
            found(&["photo", "more", "media.main", "media.odd", "variants.photo"], &product).len(),
            4,
            "no more than the job wants"
        );
    }

    #[test]
    fn what_cannot_be_an_image_is_told_with_its_field_and_without_its_secrets() {
        for (value, why) in [
            (json!(7), "a number"),
            (json!({"url": "x"}), "a table"),
            (json!([["x"]]), "a list of lists"),
            (json!("ftp://secret@host/x"), "only URLs"),
            (json!("file:///etc/secret"), "only URLs"),
            (json!("data:image/png;base64,secret"), "only URLs"),
            (json!("//host/secret"), "must begin with http"),
            (json!("http://[secret"), "no URL"),
        ] {
            let images = images(&["photo"]);
            let failure = sources(&images, &json!({"photo": value})).unwrap_err();
            assert_eq!(failure.class, FailureClass::ImageUnusable);
            assert!(
                failure.message.contains("'photo'") && failure.message.contains(why),
                "{}",
                failure.message
            );
            assert!(!failure.message.contains("secret"), "{}", failure.message);
        }
        let product = json!({"photo": "HTTPS://user:secret@Host:444/a%20b?key=secret#secret"});
        assert_eq!(found(&["photo"], &product), ["https://host:444/a%20b"]);
    }
}
