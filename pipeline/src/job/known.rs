//! What is publicly known of models, and where it holds.
//!
//! It holds at the provider's own address only: a local model that is called `gpt-4o` costs nothing known, a
//! reseller has prices of its own, and so have a provider's regional addresses.

use url::Url;

/// Who makes a model and sells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    OpenAi,
    Anthropic,
}

impl Provider {
    /// Who answers there; without a URL, calls go to OpenAI.
    pub(super) fn at(base_url: Option<&str>) -> Option<Self> {
        let Some(base_url) = base_url else { return Some(Self::OpenAi) };
        match host_of(base_url)?.as_str() {
            "api.openai.com" => Some(Self::OpenAi),
            "api.anthropic.com" => Some(Self::Anthropic),
            _ => None,
        }
    }
}

/// The host of a URL, in small letters.
pub(super) fn host_of(base_url: &str) -> Option<String> {
    Url::parse(base_url).ok()?.host_str().map(str::to_ascii_lowercase)
}

/// One fact about one model.
pub(super) type Fact<T> = (Provider, &'static str, T);

/// What a table has of a model: under its name, else under its name without a date (`-2024-07-18`, `-20251001`).
pub(super) fn look_up<T: Copy>(table: &[Fact<T>], provider: Provider, model: &str) -> Option<T> {
    let find = |wanted: &str| {
        table.iter().find(|(of, name, _)| *of == provider && *name == wanted).map(|(_, _, fact)| *fact)
    };
    find(model).or_else(|| find(without_date(model)?))
}

fn without_date(model: &str) -> Option<&str> {
    ["-dddd-dd-dd", "-dddddddd"].iter().find_map(|form| {
        let (name, date) = model.split_at_checked(model.len().checked_sub(form.len())?)?;
        let fits = |(found, wanted): (u8, u8)| {
            if wanted == b'd' { found.is_ascii_digit() } else { found == wanted }
        };
        date.bytes().zip(form.bytes()).all(fits).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [Fact<u8>; 3] =
        [(Provider::OpenAi, "m", 1), (Provider::OpenAi, "m-2024-05-13", 2), (Provider::Anthropic, "c", 3)];

    #[test]
    fn a_name_is_found_with_and_without_a_date() {
        let of = |provider, model| look_up(&TABLE, provider, model);
        assert_eq!(of(Provider::OpenAi, "m"), Some(1));
        assert_eq!(of(Provider::OpenAi, "m-2024-08-06"), Some(1));
        assert_eq!(of(Provider::OpenAi, "m-2024-05-13"), Some(2), "a snapshot may have prices of its own");
        assert_eq!(of(Provider::Anthropic, "c-20251001"), Some(3));
        for other in [
            "",
            "M",
            "m-",
            "m-mini",
            "m-latest",
            "m-2024-08",
            "m2024-08-06",
            "ft:m-2024-08-06:me",
            "語-語語語語",
        ] {
            assert_eq!(of(Provider::OpenAi, other), None, "{other}");
        }
        assert_eq!(of(Provider::OpenAi, "c"), None);
    }

    #[test]
    fn only_the_provider_itself_is_one() {
        assert_eq!(Provider::at(None), Some(Provider::OpenAi));
        assert_eq!(Provider::at(Some("https://API.openai.com/v1")), Some(Provider::OpenAi));
        assert_eq!(Provider::at(Some("https://api.anthropic.com/v1/")), Some(Provider::Anthropic));
        for other in
            ["http://localhost/v1", "https://eu.api.openai.com/v1", "https://api.openai.com.example/v1", "x"]
        {
            assert_eq!(Provider::at(Some(other)), None, "{other}");
        }
    }
}
