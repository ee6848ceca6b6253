//! Who may look at the page.
//!
//! - Without a token only who asks this machine by a name of its own: a page of somebody else whose name was made to mean
//!   this machine (DNS rebinding) is not let in. Beyond loopback nobody is.
//! - With a token whoever knows it: once as `?token=`, from then on by a cookie that no script reads and no other site's
//!   page sends, or as `Authorization: Bearer`.
//! - The token is compared in constant time. It, and what is derived from it, is in no log and in no page.

use std::{net::SocketAddr, path::Path};

use anyhow::Context as _;
use axum::http::{
    HeaderMap,
    header::{AUTHORIZATION, COOKIE, HOST},
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use url::form_urlencoded;

/// Where the token comes from, unless a file is named.
pub(crate) const TOKEN_VARIABLE: &str = "SHELFMILL_STATUS_TOKEN";
/// Keeps the cookie's value from being the token.
const COOKIE_DOMAIN: &[u8] = b"shelfmill status cookie v1\0";

/// The token that is wanted, if any: from this file, else from the environment.
pub(crate) fn find_token(file: Option<&Path>) -> anyhow::Result<Option<SecretString>> {
    let Some(file) = file else { return Ok(crate::fleet::find_key(TOKEN_VARIABLE).map(trimmed)) };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the token of the status page from {}", file.display()))?;
    let token = trimmed(SecretString::from(text));
    anyhow::ensure!(
        !token.expose_secret().is_empty(),
        "{} is empty; write the token of the status page into it, such as one of: openssl rand -hex 16",
        file.display()
    );
    Ok(Some(token))
}

fn trimmed(token: SecretString) -> SecretString {
    token.expose_secret().trim().into()
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Welcome,
    /// By the token in the address: this cookie stands for it from now on.
    WelcomeWith(String),
    Refused(&'static str),
}

/// Who may look, at this address.
pub(super) struct Gate {
    is_loopback: bool,
    cookie: String,
    token: Option<[u8; 32]>,
    pass: String,
}

const WANTS_TOKEN: &str = "This page wants a token: open it once as /?token=TOKEN, or send 'Authorization: Bearer TOKEN'. \
The token is the one that the process was given in SHELFMILL_STATUS_TOKEN or with --status-token-file.\n";
const HAS_NO_TOKEN: &str = "This page is shown beyond this machine only to those who know a token, and none is set. Set \
SHELFMILL_STATUS_TOKEN (such as: openssl rand -hex 16) or --status-token-file FILE, start again, and open /?token=TOKEN. \
Or listen on 127.0.0.1 and come through ssh -L.\n";
const STRANGE_NAME: &str = "This page is shown to this machine only, under the names localhost, 127.0.0.1 and [::1]. For \
other names set SHELFMILL_STATUS_TOKEN or --status-token-file FILE, and open /?token=TOKEN.\n";

impl Gate {
    pub(super) fn new(address: SocketAddr, token: Option<&SecretString>) -> Self {
        let digest = |prefix: &[u8], token: &SecretString| -> [u8; 32] {
            Sha256::new().chain_update(prefix).chain_update(token.expose_secret()).finalize().into()
        };
        Self {
            is_loopback: address.ip().is_loopback(),
            // Cookies do not tell ports apart.
            cookie: format!("shelfmill-status-{}", address.port()),
            token: token.map(|token| digest(b"", token)),
            pass: token.map(|token| hex(&digest(COOKIE_DOMAIN, token))).unwrap_or_default(),
        }
    }

    pub(super) fn judge(&self, query: Option<&str>, headers: &HeaderMap) -> Verdict {
        let Some(wanted) = &self.token else {
            return match (self.is_loopback, is_own_name(headers)) {
                (true, true) => Verdict::Welcome,
                (true, false) => Verdict::Refused(STRANGE_NAME),
                (false, _) => Verdict::Refused(HAS_NO_TOKEN),
            };
        };
        let is_it = |token: &str| bool::from(Sha256::digest(token).as_slice().ct_eq(wanted));
        let asked = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        if let Some((_, token)) = asked.into_iter().find(|(name, _)| name == "token") {
            return if is_it(&token) {
                Verdict::WelcomeWith(format!(
                    "{}={}; Path=/; HttpOnly; SameSite=Strict",
                    self.cookie, self.pass
                ))
            } else {
                Verdict::Refused(WANTS_TOKEN)
            };
        }
        let texts = |name| headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        let is_bearer = texts(AUTHORIZATION).any(|value| {
            value
                .split_once(' ')
                .is_some_and(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && is_it(token.trim()))
        });
        let has_cookie = texts(COOKIE).flat_map(|value| value.split(';')).any(|pair| {
            pair.trim().split_once('=').is_some_and(|(name, pass)| {
                name == self.cookie && bool::from(pass.as_bytes().ct_eq(self.pass.as_bytes()))
            })
        });
        if is_bearer || has_cookie { Verdict::Welcome } else { Verdict::Refused(WANTS_TOKEN) }
    }
}

fn is_own_name(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).into_iter();
    let (Some(host), None) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) else {
        return false;
    };
    ["localhost", "127.0.0.1", "[::1]"].iter().any(|name| {
        let rest = host
            .get(..name.len())
            .filter(|start| start.eq_ignore_ascii_case(name))
            .map(|_| &host[name.len()..]);
        rest.is_some_and(|rest| {
            rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
        })
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn gate(address: &str, token: Option<&str>) -> Gate {
        Gate::new(address.parse().unwrap(), token.map(SecretString::from).as_ref())
    }

    #[test]
    fn without_a_token_only_own_names_of_this_machine_are_answered() {
        let gate = gate("127.0.0.1:9000", None);
        let at = |host: &str| gate.judge(None, &headers(&[("host", host)])) == Verdict::Welcome;
        for own in ["localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:9000", "[::1]"] {
            assert!(at(own), "{own}");
        }
        for strange in
            ["evil.example", "localhost.evil.example", "localhost:9000@evil", "127.0.0.1.nip.io", "", "ö"]
        {
            assert!(!at(strange), "{strange}");
        }
        assert_eq!(gate.judge(None, &headers(&[])), Verdict::Refused(STRANGE_NAME));
    }

    #[test]
    fn beyond_loopback_nobody_is_let_in_without_a_token() {
        let gate = gate("0.0.0.0:9000", None);
        assert_eq!(
            gate.judge(Some("token="), &headers(&[("host", "localhost")])),
            Verdict::Refused(HAS_NO_TOKEN)
        );
    }

    #[test]
    fn a_token_is_known_in_all_its_forms_and_nothing_else_is() {
        let gate = gate("0.0.0.0:9000", Some("se+cret ö"));
        let Verdict::WelcomeWith(cookie) = gate.judge(Some("a=b&token=se%2Bcret+%C3%B6"), &headers(&[]))
        else {
            panic!("the token in the address")
        };
        assert!(cookie.ends_with("; HttpOnly; SameSite=Strict") && !cookie.contains("cret"), "{cookie}");
        let pair = cookie.split(';').next().unwrap();
        let cookies = format!("other=1; {pair}");
        assert_eq!(gate.judge(None, &headers(&[("cookie", &cookies)])), Verdict::Welcome);
        let plain = super::tests::gate("0.0.0.0:9000", Some("secret"));
        assert_eq!(plain.judge(None, &headers(&[("authorization", "bearer secret")])), Verdict::Welcome);
        for (query, pairs) in [
            (None, vec![]),
            (Some("token=secre"), vec![]),
            (Some("token="), vec![]),
            (None, vec![("authorization", "Bearer secrets")]),
            (None, vec![("authorization", "Basic secret")]),
            (None, vec![("cookie", pair)]),
            (None, vec![("cookie", "shelfmill-status-9000=secret")]),
            (None, vec![("cookie", "shelfmill-status-9000=")]),
        ] {
            assert_eq!(
                plain.judge(query, &headers(&pairs)),
                Verdict::Refused(WANTS_TOKEN),
                "{query:?} {pairs:?}"
            );
        }
    }
}
