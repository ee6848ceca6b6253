//! Arguments of the commands that act on a fleet's run while it goes on.

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
