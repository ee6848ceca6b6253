//! The model's URL, which nobody repeats: a key that was put into it by mistake would be in logs and files.

use url::Url;

/// Why a URL cannot be the model's; never says what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBaseUrl {
    /// No URL, or not one of the web.
    #[error("the model's URL (--base-url, OPENAI_BASE_URL or llm.base_url) must be like https://host/v1")]
    NotOne,
    /// `https://user:password@host`.
    #[error(
        "the model's URL has a login or a password in it, which would be kept in files; give keys in OPENAI_API_KEY"
    )]
    HasLogin,
    /// `https://host/v1?key=…`: the path of a call cannot be put behind it.
    #[error("the model's URL must end before any '?' or '#'; give keys in OPENAI_API_KEY")]
    HasQuery,
}

/// Of a server that speaks HTTP/2 without TLS, where nothing can be agreed upon: `h2c://host/v1`.
const HTTP2_AT_ONCE: &str = "h2c://";

/// Whether the server is said to speak HTTP/2 without TLS.
#[must_use]
pub fn is_http2_at_once(text: &str) -> bool {
    text.starts_with(HTTP2_AT_ONCE)
}

/// Checks the root of an OpenAI-compatible API, and returns it as one of HTTP.
pub fn check_base_url(text: &str) -> Result<Url, BadBaseUrl> {
    let of_http = text.strip_prefix(HTTP2_AT_ONCE).map(|rest| format!("http://{rest}"));
    let url = Url::parse(of_http.as_deref().unwrap_or(text)).map_err(|_| BadBaseUrl::NotOne)?;
    if !["http", "https"].contains(&url.scheme()) || !url.has_host() {
        return Err(BadBaseUrl::NotOne);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(BadBaseUrl::HasLogin);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(BadBaseUrl::HasQuery);
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_or_refused_without_being_repeated() {
        for fine in ["http://localhost:8000/v1", "https://api.openai.com/v1/", "http://[::1]:1"] {
            check_base_url(fine).unwrap();
            assert!(!is_http2_at_once(fine));
        }
        assert_eq!(check_base_url("h2c://host:1/v1").unwrap().as_str(), "http://host:1/v1");
        assert!(is_http2_at_once("h2c://host:1/v1"));
        for (bad, why) in [
            ("sk-canary", BadBaseUrl::NotOne),
            ("canary:8000", BadBaseUrl::NotOne),
            ("ftp://canary/v1", BadBaseUrl::NotOne),
            ("http://sk-canary@host/v1", BadBaseUrl::HasLogin),
            ("http://user:canary@host/v1", BadBaseUrl::HasLogin),
            ("http://host/v1?key=canary", BadBaseUrl::HasQuery),
            ("http://host/v1#canary", BadBaseUrl::HasQuery),
            ("h2c://user:canary@host/v1", BadBaseUrl::HasLogin),
        ] {
            let told = check_base_url(bad).unwrap_err();
            assert_eq!(told, why, "{bad}");
            assert!(!format!("{told} {told:?}").contains("canary"));
        }
    }
}
