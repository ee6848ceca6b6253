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
pub fn requeue(folder: &Folder, mut wanted: impl FnMut(&FailedProduct) -> bool) -> Result<u64, RequeueError> {
    let (mut kept, mut aside) = (Vec::new(), Vec::new());
    let mut count = 0;
    let path = folder.failures();
    read_lines::<RequeueError>(&path, 0, |_, number, line| {
        let failure: FailureLine = serde_json::from_str(line)
            .map_err(|error| RequeueError::Damaged(damaged(&path, number, error)))?;
        if wanted(&FailedProduct::of_line(failure)) {
            aside.extend_from_slice(line.as_bytes());
            aside.push(b'\n');
            count += 1;
        } else {
            kept.extend_from_slice(line.as_bytes());
            kept.push(b'\n');
        }
        Ok(())
    })?;
    if count > 0 {
        // Cut off between the two, a product is in both: it is still failed, and is put back by asking again.
        let before = std::fs::read(folder.state_file(ASIDE)).unwrap_or_default();
        durable::replace(&folder.state_file(ASIDE), |file| {
            file.write_all(&before)?;
            file.write_all(&aside)
        })?;
        durable::replace(&path, |file| file.write_all(&kept))?;
    }
    Ok(count)
}

/// What was spent on products that were put back.
pub fn spent_before(folder: &Folder) -> Result<HashMap<IdHash, Spent>, RequeueError> {
    let path = folder.state_file(ASIDE);
    let mut spent = HashMap::new();
    read_lines::<RequeueError>(&path, 0, |_, number, line| {
        let failure: FailureLine = serde_json::from_str(line)
            .map_err(|error| RequeueError::Damaged(damaged(&path, number, error)))?;
        let failed = FailedProduct::of_line(failure);
        // A later line holds what the earlier ones do.
        spent.insert(failed.task.hash(), failed.task.spent);
        Ok(())
    })?;
    Ok(spent)
}
