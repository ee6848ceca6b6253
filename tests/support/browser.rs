//! A real Chromium without a window, driven over the DevTools protocol.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

use super::{
    process::{Running, program},
    wait::eventually,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// One page of a browser of its own. Dropping it ends the browser.
pub(crate) struct Browser {
    socket: WebSocket<TcpStream>,
    sent: u64,
    /// What the page did by itself.
    pub(crate) events: Vec<Value>,
    _process: Running,
    _profile: TempDir,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let profile = super::watchdog::temp_dir("browser");
        let data = format!("--user-data-dir={}", profile.path().display());
        let process = program("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--remote-debugging-port=0", &data, "about:blank"])
            .start();
        let address = eventually(PATIENCE, "the browser", || {
            let said = process.stderr();
            let told =
                said.split("DevTools listening on ws://").nth(1).and_then(|rest| rest.split('/').next());
            told.map(str::to_owned).ok_or(said)
        });
        let url = eventually(PATIENCE, "the browser's page", || {
            let mut stream = TcpStream::connect(&address).map_err(|error| error.to_string())?;
            write!(stream, "GET /json/list HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")
                .map_err(|error| error.to_string())?;
            let mut reply = String::new();
            // The server may keep the connection: what came until then is looked at.
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = stream.read_to_string(&mut reply);
            reply
                .lines()
                .filter_map(|line| line.trim().strip_prefix("\"webSocketDebuggerUrl\": \""))
                .find(|url| url.contains("/page/"))
                .map(|url| url.trim_end_matches(['"', ',']).to_owned())
                .ok_or(reply)
        });
        let stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, _) = tungstenite::client(url.as_str(), stream).expect("the browser's page");
        let mut browser = Self { socket, sent: 0, events: Vec::new(), _process: process, _profile: profile };
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.ask(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Sends a command, and returns its result.
    #[track_caller]
    pub(crate) fn ask(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let command = json!({"id": self.sent, "method": method, "params": params});
        self.socket.send(Message::text(command.to_string())).unwrap();
        loop {
            let Message::Text(text) = self.socket.read().unwrap() else { continue };
            let mut told: Value = serde_json::from_str(&text).unwrap();
            if told["id"] == self.sent {
                assert!(told["error"].is_null(), "{method}: {told}");
                return told["result"].take();
            }
            self.events.push(told);
        }
    }

    /// What this JavaScript says of the page.
    #[track_caller]
    pub(crate) fn evaluate(&mut self, script: &str) -> Value {
        let mut told = self.ask("Runtime.evaluate", json!({"expression": script, "returnByValue": true}));
        assert!(told["exceptionDetails"].is_null(), "{script}: {told}");
        told["result"]["value"].take()
    }

    /// A screen of this width, for somebody who likes it `light` or `dark`.
    pub(crate) fn look_as(&mut self, width: u32, scheme: &str) {
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": false}),
        );
        // They would take from the width of the picture.
        self.ask("Emulation.setScrollbarsHidden", json!({"hidden": true}));
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.ask("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// The whole page, as PNG.
    pub(crate) fn screenshot(&mut self) -> Vec<u8> {
        let told =
            self.ask("Page.captureScreenshot", json!({"format": "png", "captureBeyondViewport": true}));
        STANDARD.decode(told["data"].as_str().unwrap()).unwrap()
    }

    /// The addresses it asked, and what it complained of.
    pub(crate) fn asked_and_complained(&self) -> (Vec<&str>, Vec<&Value>) {
        let of = |method: &'static str| self.events.iter().filter(move |event| event["method"] == method);
        let asked =
            of("Network.requestWillBeSent").filter_map(|event| event["params"]["request"]["url"].as_str());
        let errors = of("Runtime.consoleAPICalled").filter(|event| event["params"]["type"] == "error");
        let entries = of("Log.entryAdded").filter(|event| event["params"]["entry"]["level"] == "error");
        (asked.collect(), errors.chain(entries).chain(of("Runtime.exceptionThrown")).collect())
    }
}
