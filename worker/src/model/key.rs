//! A provider's key: part of a header marked as sensitive, and of nothing else.

use memchr::memmem;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use secrecy::{ExposeSecret, SecretString};

/// Shorter keys are placeholders for servers that want none ("none", "EMPTY"), and words that answers may have.
const LEAST_KEY_BYTES: usize = 16;

/// What a server is shown; nothing, where it wants none.
#[derive(Debug)]
pub(crate) struct Key {
    secret: Option<SecretString>,
    headers: HeaderMap,
}

impl Default for Key {
    fn default() -> Self {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        Self { secret: None, headers }
    }
}

impl Key {
    pub(crate) fn new(secret: SecretString) -> anyhow::Result<Self> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", secret.expose_secret().trim()))
            .map_err(|_| anyhow::anyhow!("the API key has characters that no key has"))?;
        value.set_sensitive(true);
        let mut key = Self { secret: Some(secret), ..Self::default() };
        key.headers.insert(AUTHORIZATION, value);
        Ok(key)
    }

    /// What every call with it begins with.
    pub(super) const fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// What a server sent, without the key it may have repeated: it would be kept in files.
    pub(super) fn hide_in(&self, mut body: Vec<u8>) -> Vec<u8> {
        let key = self.secret.as_ref().map_or("", |key| key.expose_secret().trim()).as_bytes();
        if key.len() < LEAST_KEY_BYTES {
            return body;
        }
        let mut from = 0;
        while let Some(at) = memmem::find(&body[from..], key) {
            body[from + at..from + at + key.len()].fill(b'*');
            from += at + key.len();
        }
        body
    }
}
