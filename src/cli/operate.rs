//! Arguments of the commands that act on a fleet's run, or ask its roles, while it goes on.

use std::net::SocketAddr;

use clap::Args;

use super::FleetArgs;

#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,
    /// Why, for those who ask how far the run is.
    #[arg(long, value_name = "TEXT", env = "SHELFMILL_REASON")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PurgeArgs {
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,
    /// Do not ask: for scripts.
    #[arg(long, env = "SHELFMILL_YES")]
    pub(crate) yes: bool,
    /// Also while workers, an aggregator or a producer are at work for it.
    #[arg(long, env = "SHELFMILL_FORCE")]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// Where the role listens; a container's health check has it from the role's own environment.
    #[arg(long, value_name = "ADDR:PORT", env = "SHELFMILL_LISTEN", default_value = "127.0.0.1:9464")]
    pub(crate) listen: SocketAddr,
    /// Ask whether work should come to it, rather than whether it makes progress.
    #[arg(long, env = "SHELFMILL_READY")]
    pub(crate) ready: bool,
}
