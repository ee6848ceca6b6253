//! Puts failed products of an embedded run back: their lines leave the failures, and the next start finds them
//! neither completed nor failed. What was spent on them is kept aside and added to what they cost in the end.

use std::{collections::HashMap, io::Write};

use shelfmill_pipeline::{identity::IdHash, ledger::FailedProduct, message::Spent, record::FailureLine};

use crate::{
    durable,
    folder::Folder,
    line_file::{damaged, read_lines},
};

/// Why failed products could not be put back.
#[derive(Debug, thiserror::Error)]
pub enum RequeueError {
    /// A line of the failures is no failure.
    #[error("{0}")]
    Damaged(String),
    /// The disk or its permissions do not let it.
    #[error("cannot put failed products back")]
    Io(#[from] std::io::Error),
}

const ASIDE: &str = "requeued.jsonl";

/// Puts back the failed products that are `wanted`; how many there were.
pub fn requeue(folder: &Folder, wanted: impl Fn(&FailedProduct) -> bool) -> Result<u64, RequeueError> {
    let (path, aside) = (folder.failures(), folder.state_file(ASIDE));
    let mut count = 0;
    // Cut off between the two, a product is in both: it is still failed, and is put back by asking again.
    durable::replace(&aside, |file| {
        if let Ok(mut before) = std::fs::File::open(&aside) {
            std::io::copy(&mut before, file)?;
        }
        each_failure(&path, |line, product| {
            if wanted(product) {
                count += 1;
                writeln!(file, "{line}")?;
            }
            Ok(())
        })
    })?;
    if count > 0 {
        durable::replace(&path, |file| {
            each_failure(
                &path,
                |line, product| if wanted(product) { Ok(()) } else { Ok(writeln!(file, "{line}")?) },
            )
        })?;
    }
    Ok(count)
}

fn each_failure(
    path: &std::path::Path,
    mut each: impl FnMut(&str, &FailedProduct) -> Result<(), RequeueError>,
) -> Result<(), RequeueError> {
    read_lines::<RequeueError>(path, 0, |_, number, line| {
        let failure: FailureLine = serde_json::from_str(line)
            .map_err(|error| RequeueError::Damaged(damaged(path, number, error)))?;
        each(line, &FailedProduct::of_line(failure))
    })
}

/// The run is complete: every product that was put back has a line with what it cost.
pub(crate) fn forget_spent(folder: &Folder) -> std::io::Result<()> {
    match std::fs::remove_file(folder.state_file(ASIDE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What was spent on products that were put back.
pub fn spent_before(folder: &Folder) -> Result<HashMap<IdHash, Spent>, RequeueError> {
    let mut spent = HashMap::new();
    each_failure(&folder.state_file(ASIDE), |_, product| {
        // A later line holds what the earlier ones do.
        spent.insert(product.task.hash(), product.task.spent);
        Ok(())
    })?;
    Ok(spent)
}
