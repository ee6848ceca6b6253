//! The URL of a server, read so that nothing that is told of it can be its password.
//!
//! A `/`, `?` or `#` in a password that is not escaped ends the host early: the rest of the password would pass for a
//! virtual host or a database, which are told.

use url::Url;

pub(crate) fn parse(text: &str) -> Result<Url, String> {
    // These errors do not repeat the URL.
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if text.rsplit_once('@').is_some_and(|(before, _)| {
        let after_scheme = before.split_once("://").map_or(before, |(_, rest)| rest);
        after_scheme.contains(['/', '?', '#'])
    }) {
        return Err(
            "there is a / ? or # before an @; in a password they are written %2F, %3F and %23".to_owned()
        );
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_password_passes_for_another_part() {
        for fine in [
            "amqp://u:p@h:5672/%2f",
            "redis://127.0.0.1/0",
            "redis://:p%2Fq@h/1",
            "amqps://u:p@h/v?heartbeat=9",
        ] {
            parse(fine).unwrap();
        }
        for bad in
            ["amqp://u:12/canary@h/v", "amqp://u:12?canary@h", "redis://:1#canary@h/0", "redis://u:canary"]
        {
            let told = parse(bad).unwrap_err();
            assert!(!told.contains("canary"), "{told}");
        }
    }
}
