//! `shelfmill simulate`, and the simulator inside `run --simulate`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use secrecy::ExposeSecret;
use shelfmill_simulator::{Config, Faults, Simulator};

use crate::{
    cli::{FaultArgs, SimulateArgs},
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
    let config = Config {
        latency: args.latency,
        jitter: args.jitter,
        faults: faults(&args.faults),
        seed: args.seed,
        max_requests_per_second: args.max_requests_per_second,
        api_key: args.api_key.map(|key| key.expose_secret().to_owned()),
        count_by_product: !args.no_product_counts,
    };
    config.faults.validate().map_err(|error| Usage(error.to_string()))?;
    let simulator = Simulator::bind(SocketAddr::new(args.bind, args.port), config).await?;
    // On stdout: whoever starts this with --port 0 reads it.
    println!("http://{}/v1", simulator.addr());
    simulator.serve(async move { stopper.stopped().await }).await?;
    Ok(ExitCode::from(DONE))
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
    }
}
