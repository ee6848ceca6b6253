//! Puts failed products of an embedded run back: their lines leave the failures, and the next start finds them
//! neither completed nor failed. What was spent on them is kept aside and added to what they cost in the end, and beside it
//! how they are to be asked otherwise than the job says.
//!
//! A line aside is the line of the failure or, with changes, `{"changes":{..},"line":{..}}`: a build that does not know of
//! changes takes that for damage and stops, instead of asking the old question.

use std::{collections::HashMap, io::Write};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shelfmill_pipeline::{
    changes::Changes, identity::IdHash, ledger::FailedProduct, message::Spent, record::FailureLine,
};

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

/// A line aside of a product that is asked otherwise.
#[derive(Deserialize)]
struct Changed<'l> {
    changes: Box<RawValue>,
    #[serde(borrow)]
    line: &'l RawValue,
}

#[derive(Serialize)]
struct ChangedRef<'l> {
    changes: &'l Changes,
    line: &'l RawValue,
}

/// What is kept of a product that was put back.
#[derive(Clone, Debug, PartialEq)]
pub struct PutBack {
    /// What was spent on it before.
    pub spent: Spent,
    /// How it is to be asked otherwise than the job says.
    pub changes: Changes,
}

/// Puts back the failed products that are `wanted`, to be asked so; how many there were.
pub fn requeue(
    folder: &Folder,
    wanted: impl Fn(&FailedProduct) -> bool,
    changes: &Changes,
) -> Result<u64, RequeueError> {
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
                write_aside(file, line, changes)?;
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

fn write_aside(file: &mut impl Write, line: &str, changes: &Changes) -> std::io::Result<()> {
    if changes.is_empty() {
        return writeln!(file, "{line}");
    }
    serde_json::to_writer(&mut *file, &ChangedRef { changes, line: serde_json::from_str(line)? })?;
    writeln!(file)
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

/// What was spent on products that were put back, and how they are to be asked.
pub fn put_back(folder: &Folder) -> Result<HashMap<IdHash, PutBack>, RequeueError> {
    let path = folder.state_file(ASIDE);
    let mut products = HashMap::new();
    read_lines::<RequeueError>(&path, 0, |_, number, line| {
        let (product, changes) =
            read_aside(line).map_err(|error| RequeueError::Damaged(damaged(&path, number, error)))?;
        // A later line holds what the earlier ones do; how it was asked before does not count any more.
        products.insert(product.task.hash(), PutBack { spent: product.task.spent, changes });
        Ok(())
    })?;
    Ok(products)
}

fn read_aside(line: &str) -> Result<(FailedProduct, Changes), serde_json::Error> {
    let (line, changes) = match serde_json::from_str::<Changed<'_>>(line) {
        Ok(Changed { changes, line }) => (line.get(), Changes::decode(changes.get().as_bytes())?),
        Err(_) => (line, Changes::default()),
    };
    Ok((FailedProduct::of_line(serde_json::from_str(line)?), changes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILURE: &str = include_str!("../../pipeline/golden/failed.v1.json");

    fn failure() -> String {
        FAILURE
            .trim_end()
            .strip_prefix(r#"{"v":1,"m":{"failed":"#)
            .unwrap()
            .strip_suffix("}}")
            .unwrap()
            .to_owned()
    }

    fn aside(changes: &Changes) -> String {
        let mut file = Vec::new();
        write_aside(&mut file, &failure(), changes).unwrap();
        String::from_utf8(file).unwrap()
    }

    #[test]
    fn changes_are_kept_beside_the_line_and_the_last_ones_count() {
        let changes = Changes { max_output_tokens: Some(4096), ..Changes::default() };
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path(), "spring").unwrap();
        for changes in [Changes::default(), changes.clone(), Changes::default(), changes] {
            std::fs::write(folder.failures(), format!("{}\n", failure())).unwrap();
            assert_eq!(requeue(&folder, |_| true, &changes).unwrap(), 1);
            let products: Vec<_> = put_back(&folder).unwrap().into_values().collect();
            assert_eq!((products.len(), &products[0].changes), (1, &changes));
            assert_eq!(products[0].spent.calls, 2);
        }
    }

    #[test]
    fn a_build_that_does_not_know_of_changes_stops_and_changes_it_does_not_know_stop_this_one() {
        let plain = aside(&Changes::default());
        assert_eq!(plain.trim_end(), failure(), "as ever");
        let line = aside(&Changes { max_output_tokens: Some(4096), ..Changes::default() });
        assert!(serde_json::from_str::<FailureLine>(&line).is_err());
        for broken in [
            line.replace("4096", "0"),
            line.replace("max_output_tokens", "seed"),
            line.replace("\"line\"", "\"x\""),
        ] {
            assert!(read_aside(&broken).is_err(), "{broken}");
        }
    }
}
