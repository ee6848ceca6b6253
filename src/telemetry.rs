//! Logs, and the terminal they share with the progress bar.
//!
//! Logs go to stderr, above the bar where there is one. What is never logged: keys, URLs with passwords,
//! prompts, answers, and product text other than an id, whose control characters are escaped.

use std::io::{self, IsTerminal, Write};

use indicatif::MultiProgress;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::cli::{Command, LogFormat, OutputArgs};

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
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(screen.clone());
    match output.log_format {
        LogFormat::Text => subscriber.with_ansi(io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    screen
}

/// One log line, written above the bar.
pub(crate) struct Above<'s>(&'s Screen);

impl Write for Above<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0.bars {
            Some(bars) => bars.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'s> MakeWriter<'s> for Screen {
    type Writer = Above<'s>;

    fn make_writer(&'s self) -> Above<'s> {
        Above(self)
    }
}
