//! The page over HTTP: `/`, and its snapshots at `/events`.
//!
//! A browser is told to let the page run its own script and style and speak to its own server, and nothing else.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, SET_COOKIE,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    middleware::{Next, from_fn_with_state},
    response::{
        Html, IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::stream;
use secrecy::SecretString;
use sha2::{Digest, Sha256};

use super::{
    PAGE,
    gate::{Gate, Verdict},
    live::Live,
};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The page of a run, to be served where `--listen` says.
pub(crate) struct Site {
    pub(crate) live: Live,
    pub(crate) token: Option<SecretString>,
}

impl Site {
    /// Its routes at this address.
    pub(crate) fn router(self, address: SocketAddr) -> anyhow::Result<Router> {
        let gate = Arc::new(Gate::new(address, self.token.as_ref()));
        let policy: HeaderValue = policy().parse()?;
        Ok(Router::new()
            .route("/", get(|| async { Html(PAGE) }))
            .route("/events", get(events).with_state(self.live))
            .layer(from_fn_with_state((gate, policy), guard)))
    }
}

/// What the page may do, by the hashes of its script and its style.
fn policy() -> String {
    let hash = |begin: &str, end: &str| {
        let inside = PAGE
            .split_once(begin)
            .and_then(|(_, rest)| rest.split_once(end))
            .map_or("", |(inside, _)| inside);
        format!("'sha256-{}'", STANDARD.encode(Sha256::digest(inside)))
    };
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash("<script>", "</script>"),
        hash("<style>", "</style>")
    )
}

async fn guard(
    State((gate, policy)): State<(Arc<Gate>, HeaderValue)>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = match gate.judge(request.uri().query(), request.headers()) {
        Verdict::Welcome => next.run(request).await,
        Verdict::WelcomeWith(cookie) => {
            let mut response = next.run(request).await;
            if let Ok(cookie) = cookie.parse() {
                response.headers_mut().insert(SET_COOKIE, cookie);
            }
            response
        }
        Verdict::Refused(why) => (StatusCode::FORBIDDEN, why).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, policy);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn events(State(live): State<Live>, headers: HeaderMap) -> Response {
    // It could not read them, but it could take all places.
    let is_others = headers.get(FETCH_SITE).is_some_and(|site| site != "same-origin" && site != "none");
    if is_others {
        return (StatusCode::FORBIDDEN, "These are for the page of this server.\n").into_response();
    }
    let Some((shown, place)) = live.join() else {
        let why = "Too many look at this run; close a page and try again.\n";
        return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    };
    // The first at once, each other one when there is a newer; the place is given back with the stream.
    let frames = stream::unfold((shown, place, None), |(mut shown, place, last)| async move {
        match last {
            Some(true) => return None,
            Some(false) => shown.changed().await.ok()?,
            None => {}
        }
        let frame = shown.borrow_and_update().clone();
        let event = Event::default().data(&*frame.json);
        let event = if frame.is_last { event.event("end") } else { event };
        Some((Ok::<_, Infallible>(event), (shown, place, Some(frame.is_last))))
    });
    let mut response = Sse::new(frames).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    response
}
