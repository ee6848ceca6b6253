//! Logs, and the terminal they share with the progress bar.
//!
//! Logs go to stderr, above the bar where there is one. What is never logged: keys, URLs with passwords,
//! prompts, answers, and product text other than an id.
//!
//! - What others wrote cannot leave its field: every value goes through [`foreign`], whoever logs it and however.
//! - `RUST_LOG` has no power over what libraries would tell of their wires: below `info` they print frames, and with
//!   them logins and products.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use indicatif::MultiProgress;
use tracing::{Level, Metadata, field::Field};
use tracing_subscriber::{
    EnvFilter,
    field::MakeExt,
    filter::filter_fn,
    fmt::{
        MakeWriter,
        format::{Writer, debug_fn},
    },
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{
    cli::{Command, LogFormat, OutputArgs},
    foreign,
};

/// The terminal: where the bar is drawn, and lines are written above it.
#[derive(Clone)]
pub(crate) struct Screen {
    bars: Option<MultiProgress>,
}

impl Screen {
    /// What bars are added to; `None` where there is no terminal or nobody wants one.
    pub(crate) fn bars(&self) -> Option<&MultiProgress> {
        self.bars.as_ref()
    }

    /// A line for people, above the bar.
    pub(crate) fn say(&self, line: &str) {
        let line = foreign::line(line);
        match &self.bars {
            Some(bars) => bars.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }
}

/// Starts logging; roles of a fleet say what they do, the others only what goes wrong.
pub(crate) fn start(command: &Command, output: &OutputArgs) -> Screen {
    let talks = matches!(
        command,
        Command::Producer(_) | Command::Worker(_) | Command::Aggregator(_) | Command::Simulate(_)
    );
    let level = if talks && !output.quiet { "info" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        // lapin tells the loss of a connection in its own words, too.
        EnvFilter::new(format!("{level},lapin=off,async_rs=off,redis=off"))
    });
    let has_bar = matches!(command, Command::Run(_) | Command::Aggregator(_))
        && !output.quiet
        && output.log_format == LogFormat::Text
        && io::stderr().is_terminal();
    let screen = Screen { bars: has_bar.then(MultiProgress::new) };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter);
    let shown = filter_fn(is_shown);
    match output.log_format {
        LogFormat::Text => subscriber
            .with_writer(Lines { screen: screen.clone(), is_json: false })
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
            .fmt_fields(debug_fn(field).delimited(" "))
            .finish()
            .with(shown)
            .init(),
        LogFormat::Json => subscriber
            .with_writer(Lines { screen: screen.clone(), is_json: true })
            .json()
            .flatten_event(true)
            .finish()
            .with(shown)
            .init(),
    }
    screen
}

fn is_shown(event: &Metadata<'_>) -> bool {
    event.target().starts_with("shelfmill") || *event.level() <= Level::INFO
}

/// `key="value"`; the message stands without its name.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let text = foreign::line(&format!("{value:?}"));
    match field.name() {
        "message" => write!(writer, "{text}"),
        name => write!(writer, "{}={text}", name.trim_start_matches("r#")),
    }
}

/// Makes writers of log lines.
struct Lines {
    screen: Screen,
    is_json: bool,
}

/// One log line, written above the bar.
struct Above<'l>(&'l Lines);

impl Write for Above<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A line comes whole.
        let line = String::from_utf8_lossy(bytes);
        let line = if self.0.is_json { foreign::json(&line) } else { line.into_owned() };
        let write = || io::stderr().write_all(line.as_bytes());
        match &self.0.screen.bars {
            Some(bars) => bars.suspend(write)?,
            None => write()?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'l> MakeWriter<'l> for Lines {
    type Writer = Above<'l>;

    fn make_writer(&'l self) -> Above<'l> {
        Above(self)
    }
}
