//! `shelfmill simulate`, and the simulator inside `run --simulate`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use secrecy::ExposeSecret;
use shelfmill_simulator::{Config, Faults, Simulator, Structured};

use crate::{
    cli::{self, FaultArgs, SimulateArgs},
    end::{DONE, Usage},
    signals,
};

/// As fast as a small model may be, so that a demonstration shows what there is to see.
const INSIDE_LATENCY: Duration = Duration::from_millis(150);
const INSIDE_JITTER: Duration = Duration::from_millis(75);

/// Starts a simulator in this process; where it listens.
pub(crate) async fn start_inside() -> anyhow::Result<String> {
    let config = Config {
        latency: INSIDE_LATENCY,
        jitter: INSIDE_JITTER,
        count_by_product: false,
        ..Config::default()
    };
    let simulator = Simulator::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), config).await?;
    let url = format!("http://{}/v1", simulator.addr());
    tokio::spawn(simulator.serve(std::future::pending()));
    Ok(url)
}

pub(crate) async fn run(args: SimulateArgs) -> anyhow::Result<ExitCode> {
    let stopper = signals::stopper(Duration::from_secs(1))?;
    let config = config(&args);
    config.validate().map_err(|error| Usage(error.to_string()))?;
    let simulator = Simulator::bind(SocketAddr::new(args.bind, args.port), config).await?;
    // On stdout: whoever starts this with --port 0 reads it.
    println!("http://{}/v1", simulator.addr());
    simulator.serve(async move { stopper.stopped().await }).await?;
    Ok(ExitCode::from(DONE))
}

fn config(args: &SimulateArgs) -> Config {
    Config {
        latency: args.latency,
        jitter: args.jitter,
        faults: faults(&args.faults),
        seed: args.seed,
        max_requests_per_second: args.max_requests_per_second,
        max_tokens_per_minute: args.max_tokens_per_minute,
        limit_headers: !args.no_limit_headers,
        quota_after: args.quota_after,
        overloaded_after: args.overloaded_after,
        unknown_model: args.unknown_model.clone(),
        structured: structured(args.structured),
        context_window: args.context_window,
        hang_products: args.hang_products.clone(),
        forbid_products: args.forbid_products.clone(),
        api_key: args.api_key.as_ref().map(|key| key.expose_secret().to_owned()),
        count_by_product: !args.no_product_counts,
    }
}

fn structured(given: cli::Structured) -> Structured {
    match given {
        cli::Structured::JsonSchema => Structured::JsonSchema,
        cli::Structured::JsonObject => Structured::JsonObject,
        cli::Structured::None => Structured::None,
    }
}

fn faults(args: &FaultArgs) -> Faults {
    Faults {
        rate_limited: args.rate_limited,
        server_error: args.server_error,
        malformed: args.malformed,
        truncated: args.truncated,
        hung: args.hung,
        cut_off: args.cut_off,
        refused: args.refused,
        content_filtered: args.content_filtered,
        schema_violation: args.schema_violation,
        bad_request: args.bad_request,
        prose: args.prose,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn told(options: &[&str]) -> Config {
        let line = ["shelfmill", "simulate"].iter().chain(options);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Simulate(args) => config(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_told_is_the_simulators_own_default() {
        assert_eq!(format!("{:?}", told(&[])), format!("{:?}", Config::default()));
    }

    #[test]
    fn options_reach_the_simulator() {
        let config = told(&[
            "--max-tokens-per-minute=600",
            "--no-limit-headers",
            "--quota-after=7",
            "--overloaded-after=8",
            "--unknown-model=gpt-x",
            "--structured=json_object",
            "--context-window=900",
            "--hang-products=a,b c",
            "--forbid-products=d",
            "--prose=0.25",
        ]);
        assert_eq!((config.max_tokens_per_minute, config.limit_headers), (Some(600), false));
        assert_eq!((config.quota_after, config.overloaded_after), (Some(7), Some(8)));
        assert_eq!(config.unknown_model.as_deref(), Some("gpt-x"));
        assert_eq!((config.structured, config.context_window), (Structured::JsonObject, Some(900)));
        assert_eq!(config.forbid_products, ["d"]);
        assert_eq!((config.hang_products, config.faults.prose), (vec!["a".into(), "b c".into()], 0.25));
        assert_eq!(told(&["--structured=none"]).structured, Structured::None);
    }
}
