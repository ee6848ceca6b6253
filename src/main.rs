//! The command `shelfmill`: parse, run the role, exit with a code that says how it ended.

use std::process::ExitCode;

use clap::Parser;

mod check;
mod cli;
mod embedded;
mod end;
mod fleet;
mod foreign;
mod health;
mod job;
mod listen;
mod operate;
mod page;
mod progress;
mod requeue;
mod signals;
mod simulate;
mod status;
mod telemetry;
mod traces;

use cli::{Cli, Command};

/// A third less CPU time than with glibc's allocator, and no more memory; how it is set up stands in `.cargo/config.toml`.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let Cli { command, output } = Cli::parse();
    let screen = telemetry::start(&command, &output);
    // One TLS implementation for model, broker and ledger; it is there before any of them is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let traces = match traces::start(role(&command)) {
        Ok(traces) => traces,
        Err(error) => return end::failed(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end::failed(&anyhow::Error::new(error).context("cannot start")),
    };
    let ended = runtime.block_on(async {
        match command {
            Command::Run(args) => embedded::run(args, &screen).await,
            Command::Producer(args) => fleet::producer(args).await,
            Command::Worker(args) => fleet::worker(args).await,
            Command::Aggregator(args) => fleet::aggregator(args, &screen).await,
            Command::Progress(args) => status::run(args).await,
            Command::Requeue(args) => requeue::run(args).await,
            Command::Pause(args) => operate::pause(args).await,
            Command::Resume(args) => operate::resume(args).await,
            Command::Purge(args) => operate::purge(args).await,
            Command::Check(args) => check::run(&args),
            Command::Health(args) => health::run(&args),
            Command::Simulate(args) => simulate::run(args).await,
        }
    });
    screen.finish();
    traces.finish();
    // Reads of standard input cannot be cancelled: do not wait for them.
    runtime.shutdown_background();
    let code = ended.unwrap_or_else(|error| end::failed(&error));
    if signals::forced() { ExitCode::from(end::INTERRUPTED) } else { code }
}

/// As traces name it.
const fn role(command: &Command) -> &'static str {
    match command {
        Command::Run(_) => "run",
        Command::Producer(_) => "producer",
        Command::Worker(_) => "worker",
        Command::Aggregator(_) => "aggregator",
        _ => "command",
    }
}
