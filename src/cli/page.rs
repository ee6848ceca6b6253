//! Who may look at the page of a run.

use std::path::PathBuf;

use clap::Args;

#[derive(Clone, Debug, Args)]
pub(crate) struct PageArgs {
    /// A file with the token that the page at --listen wants (or the token itself in SHELFMILL_STATUS_TOKEN): open it once
    /// as /?token=TOKEN. Without one only this machine may look.
    #[arg(long, value_name = "FILE", env = "SHELFMILL_STATUS_TOKEN_FILE", help_heading = "Work")]
    pub(crate) status_token_file: Option<PathBuf>,
}
