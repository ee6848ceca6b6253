//! Physical lines, each at most [`MAX_RECORD_BYTES`] long in memory.
//!
//! A longer line, were it of many gigabytes, is passed over chunk by chunk; only its beginning is kept, to tell it
//! by. Line ends are `\n` and `\r\n`. Every line counts, blank ones too, so numbers agree with any editor.

use super::entry::MAX_RECORD_BYTES;
use super::error::InputError;
use super::source::Text;

pub(super) struct Lines {
    text: Text,
    /// The number of the line that was read last.
    number: u64,
    line: Vec<u8>,
}

/// One line without its end.
pub(super) struct Line<'a> {
    /// From 1.
    pub(super) number: u64,
    /// The whole line, or the beginning of an overlong one.
    pub(super) bytes: &'a [u8],
    pub(super) is_overlong: bool,
}

impl Lines {
    pub(super) fn new(text: Text) -> Self {
        Self { text, number: 0, line: Vec::new() }
    }

    /// The next line, or nothing at the end of the text. A last line without an end is a line.
    pub(super) fn next(&mut self) -> Result<Option<Line<'_>>, InputError> {
        self.line.clear();
        let mut is_overlong = false;
        let mut has_begun = false;
        loop {
            let chunk = self.text.fill()?;
            if chunk.is_empty() {
                break;
            }
            has_begun = true;
            let end = memchr::memchr(b'\n', chunk);
            let part = &chunk[..end.unwrap_or(chunk.len())];
            // One byte more than a record may have: it can be the `\r` of the line's end.
            let room = (MAX_RECORD_BYTES + 1).saturating_sub(self.line.len());
            is_overlong |= part.len() > room;
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            let count = part.len() + usize::from(end.is_some());
            self.text.consume(count);
            if end.is_some() {
                break;
            }
        }
        if !has_begun {
            return Ok(None);
        }
        self.number += 1;
        let bytes = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        Ok(Some(Line {
            number: self.number,
            bytes,
            is_overlong: is_overlong || bytes.len() > MAX_RECORD_BYTES,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use super::super::testing::OneByte;
    use super::*;

    fn lines_of(raw: Box<dyn Read + Send>) -> Lines {
        Lines::new(Text::new("x".into(), raw).expect("text"))
    }

    fn split(text: &[u8]) -> Vec<(u64, String)> {
        let mut lines = lines_of(Box::new(OneByte::new(text)));
        let mut all = Vec::new();
        while let Some(line) = lines.next().expect("memory can be read") {
            assert!(!line.is_overlong);
            all.push((line.number, String::from_utf8_lossy(line.bytes).into_owned()));
        }
        all
    }

    #[test]
    fn lines_end_at_line_feeds_with_or_without_a_carriage_return() {
        let expected: Vec<_> = [(1, "a"), (2, ""), (3, "b\0\rc"), (4, "d")]
            .map(|(number, line)| (number, line.to_owned()))
            .into();
        assert_eq!(split(b"a\n\nb\0\rc\nd"), expected);
        assert_eq!(split(b"a\r\n\r\nb\0\rc\r\nd\r\n"), expected);
        assert!(split(b"").is_empty());
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_whole_and_one_more_is_overlong() {
        for (length, end, is_overlong) in [
            (MAX_RECORD_BYTES, "\n", false),
            (MAX_RECORD_BYTES, "\r\n", false),
            (MAX_RECORD_BYTES, "", false),
            (MAX_RECORD_BYTES + 1, "\n", true),
            (MAX_RECORD_BYTES + 1, "\r\n", true),
            (MAX_RECORD_BYTES + 1, "", true),
        ] {
            let text = format!("{}{end}", "x".repeat(length));
            let mut lines = lines_of(Box::new(Cursor::new(text)));
            let line = lines.next().expect("memory").expect("a line");
            assert_eq!(line.is_overlong, is_overlong, "{length} {end:?}");
            assert!(lines.next().expect("memory").is_none());
        }
    }

    #[test]
    fn an_overlong_line_costs_no_more_memory_than_a_long_one() {
        const LONG_BYTES: u64 = 64 * 1024 * 1024;
        let text = std::io::repeat(b'x').take(LONG_BYTES).chain(Cursor::new("\nnext\n"));
        let mut lines = lines_of(Box::new(text));
        assert!(lines.next().expect("memory").expect("a line").is_overlong);
        let next = lines.next().expect("memory").expect("a line");
        assert_eq!((next.number, next.bytes), (2, &b"next"[..]));
        assert!(lines.line.capacity() <= 2 * MAX_RECORD_BYTES + 2);
    }
}
