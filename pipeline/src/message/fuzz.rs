//! What holds for damaged messages: what is taken for one says the same when it is sent on, and makes one line.

use proptest::prelude::*;
use shelfmill_testing::nearly;

use super::*;
use crate::record::MAX_LINE_BYTES;

const TASK: &str = include_str!("../../golden/task.v1.json");
const TASK_WITH_CHANGES: &str = include_str!("../../golden/task.v2.json");
const OUTCOMES: [&str; 3] = [
    include_str!("../../golden/completed.v1.json"),
    include_str!("../../golden/failed.v1.json"),
    include_str!("../../golden/rejected.v1.json"),
];

fn check_line(line: &Line) -> Result<(), TestCaseError> {
    prop_assert!(!line.json().contains('\n') && line.json().len() <= MAX_LINE_BYTES);
    let read = Line::parse(&RawValue::from_string(line.json().to_owned()).unwrap()).unwrap();
    prop_assert_eq!((read.id(), read.seq(), read.class()), (line.id(), line.seq(), line.class()));
    Ok(())
}

proptest! {
    #[test]
    fn a_damaged_task_is_sent_on_as_it_is_or_told(bytes in nearly([TASK, TASK_WITH_CHANGES])) {
        let Ok(task) = Task::decode(&bytes) else { return Ok(()) };
        prop_assert!(!task.product.get().contains('\n'));
        prop_assert!(task.changes.check().is_ok());
        let sent = task.encode();
        let read = Task::decode(&sent).unwrap();
        prop_assert_eq!(read.encode(), sent);
        prop_assert_eq!(
            (read.id, read.seq, read.attempts, read.spent, read.changes, read.product.get()),
            (task.id, task.seq, task.attempts, task.spent, task.changes, task.product.get())
        );
    }

    #[test]
    fn a_damaged_outcome_is_sent_on_as_it_is_or_told(bytes in nearly(OUTCOMES)) {
        let Ok(outcome) = Outcome::decode(&bytes) else { return Ok(()) };
        match &outcome {
            Outcome::Completed(line) | Outcome::Failed(line) => check_line(line)?,
            Outcome::Rejected(rejects) => {
                for line in &rejects.lines {
                    prop_assert!(!serde_json::to_string(line).unwrap().contains('\n'));
                }
            }
        }
        let sent = outcome.encode();
        prop_assert_eq!(Outcome::decode(&sent).unwrap().encode(), sent);
    }
}

#[test]
fn what_is_larger_than_any_message_is_told() {
    let bytes = vec![b' '; MAX_MESSAGE_BYTES + 1];
    assert!(
        matches!(Task::decode(&bytes), Err(DecodeError::TooLarge { size_bytes }) if size_bytes == bytes.len())
    );
    assert!(matches!(Outcome::decode(&bytes), Err(DecodeError::TooLarge { .. })));
}

#[test]
fn the_largest_line_is_a_message() {
    let product = format!("{{\"title\":\"{}\"}}", "x".repeat(MAX_LINE_BYTES - 1000));
    let line = format!("{{\"id\":\"a\",\"seq\":1,\"product\":{product},\"analysis\":{{}},\"meta\":{{}}}}");
    let line = Line::parse(&RawValue::from_string(line).unwrap()).unwrap();
    Outcome::decode(&Outcome::Completed(line).encode()).unwrap();
}

#[test]
fn a_product_of_several_lines_would_forge_lines_of_results() {
    let task = TASK.replace("\"title\"", "\n\"title\"");
    assert!(matches!(Task::decode(task.trim_end().as_bytes()), Err(DecodeError::Malformed(_))));
}
