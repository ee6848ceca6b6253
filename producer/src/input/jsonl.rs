//! JSONL: every line that is not blank is one record, whatever the lines around it are.

use shelfmill_pipeline::json_text::is_space;

use super::entry::{Entry, Refusal};
use super::error::InputError;
use super::lines::Lines;
use super::object::Objects;
use super::source::Text;

pub(super) struct JsonLines {
    lines: Lines,
    objects: Objects,
}

impl JsonLines {
    pub(super) fn new(text: Text, id_field: Option<String>) -> Self {
        let objects = Objects::new(text.name(), id_field);
        Self { lines: Lines::new(text), objects }
    }

    fn next_entry(&mut self) -> Result<Option<Entry>, InputError> {
        while let Some(line) = self.lines.next()? {
            if line.is_overlong {
                let refusal = Refusal::too_large("the line");
                return Ok(Some(Entry::reject(line.number, line.bytes, refusal)));
            }
            if !line.bytes.iter().copied().all(is_space) {
                return self.objects.read(line.number, line.bytes).map(Some);
            }
        }
        Ok(None)
    }
}

impl Iterator for JsonLines {
    type Item = Result<Entry, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_entry().transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use super::super::testing::{gzip, outcome, outcome_of};
    use super::super::{Format, MAX_RECORD_BYTES, RejectReason};

    #[test]
    fn every_line_is_a_record_with_its_number() {
        let text = "\u{feff}{\"id\":\"a\"}\r\n\r\n  \t\n{\"id\":2, \"v\":\"x y\"}\n{\"id\":\"c\"}";
        for bytes in [text.as_bytes().to_vec(), gzip(text.as_bytes())] {
            let read = outcome(Format::Jsonl, &bytes);
            assert_eq!(
                read.records,
                [(1, "a", r#"{"id":"a"}"#), (4, "2", r#"{"id":2,"v":"x y"}"#), (5, "c", r#"{"id":"c"}"#)]
                    .map(|(line, id, body)| (line, id.to_owned(), body.to_owned()))
            );
            assert!(read.rejects.is_empty() && read.error.is_none());
        }
    }

    #[test]
    fn no_text_is_no_records() {
        for text in ["", "\n", "\r\n  \n"] {
            let read = outcome(Format::Jsonl, text.as_bytes());
            assert!(read.records.is_empty() && read.rejects.is_empty() && read.error.is_none());
        }
    }

    #[test]
    fn a_bad_line_does_not_touch_its_neighbours() {
        let text = b"{\"id\":1}\n{\"id\":2\n\0\n[3]\n{\"id\":\"\xff\"}\n{\"id\":6}\n";
        let read = outcome(Format::Jsonl, text);
        assert_eq!(read.ids(), ["1", "6"]);
        assert_eq!(
            read.reasons(),
            [
                (2, RejectReason::Unreadable),
                (3, RejectReason::Unreadable),
                (4, RejectReason::NotAnObject),
                (5, RejectReason::NotUtf8),
            ]
        );
    }

    #[test]
    fn an_overlong_line_is_refused_and_passed_over() {
        const LONG_BYTES: u64 = 32 * 1024 * 1024;
        let long = Cursor::new("{\"id\":1}\n{\"id\":\"").chain(std::io::repeat(b'x').take(LONG_BYTES));
        let read = outcome_of(Format::Jsonl, Box::new(long.chain(Cursor::new("\"}\n{\"id\":3}"))));
        assert_eq!(read.ids(), ["1", "3"]);
        assert_eq!(read.reasons(), [(2, RejectReason::TooLarge)]);
        assert_eq!(read.rejects[0].detail, format!("the line is longer than {MAX_RECORD_BYTES} bytes"));
        assert!(read.rejects[0].excerpt.starts_with("{\"id\":\"xxx"));
    }

    #[test]
    fn what_was_read_before_a_gzip_stream_breaks_is_kept() {
        let packed = gzip(&b"{\"id\":1}\n".repeat(100_000));
        let read = outcome(Format::Jsonl, &packed[..packed.len() - 9]);
        assert!(!read.records.is_empty() && read.rejects.is_empty());
        assert!(read.error.expect("cut off").contains("damaged or cut off"));
    }
}
