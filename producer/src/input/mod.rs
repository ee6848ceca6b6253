//! From a catalog file to records, in a memory that does not depend on the file.
//!
//! Every piece of the input becomes one [`Entry`], a record or a reject with its line, in input order; an error of
//! the iteration is about the input as a whole and is its end. No record, line, row or array element takes more
//! than [`MAX_RECORD_BYTES`], whatever the input holds. Everything here blocks: run it on a thread that may.

mod compact;
mod delimited;
mod entry;
mod error;
#[cfg(test)]
mod fuzz;
mod identify;
mod json_array;
mod json_scan;
mod jsonl;
mod lines;
mod object;
#[cfg(test)]
mod properties;
mod rows;
mod source;
#[cfg(test)]
mod testing;

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

pub use entry::{Entry, MAX_EXCERPT_CHARS, MAX_RECORD_BYTES, Record, Reject, RejectReason};
pub use error::{InputError, UnknownFormatName};
pub use identify::{ID_FIELDS, MAX_ID_BYTES};
pub use source::Source;

use self::{lines::Lines, source::Text};

/// How the text of an input is made of records; gzip is told from the bytes and is no format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// One JSON array of objects, or objects one after another.
    JsonArray,
    /// A header row and rows, separated by commas.
    Csv,
    /// A header row and rows, separated by tabs.
    Tsv,
}

impl Format {
    /// The format a file of this name has, with or without `.gz`.
    pub fn of_path(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let (_, extension) = name.strip_suffix(".gz").unwrap_or(&name).rsplit_once('.')?;
        match extension {
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "json" => Some(Self::JsonArray),
            "csv" => Some(Self::Csv),
            "tsv" | "tab" => Some(Self::Tsv),
            _ => None,
        }
    }
}

impl FromStr for Format {
    type Err = UnknownFormatName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "jsonl" => Ok(Self::Jsonl),
            "json" => Ok(Self::JsonArray),
            "csv" => Ok(Self::Csv),
            "tsv" => Ok(Self::Tsv),
            _ => Err(UnknownFormatName(name.to_owned())),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jsonl => "jsonl",
            Self::JsonArray => "json",
            Self::Csv => "csv",
            Self::Tsv => "tsv",
        })
    }
}

/// What to read and how.
#[derive(Debug, Clone)]
pub struct InputOptions {
    pub source: Source,
    /// Told from the file's name if absent.
    pub format: Option<Format>,
    /// The first of [`ID_FIELDS`] that is there if absent.
    pub id_field: Option<String>,
    /// Ends after so many records; rejects do not count.
    pub limit: Option<u64>,
}

impl InputOptions {
    fn format(&self) -> Result<Format, InputError> {
        match (self.format, &self.source) {
            (Some(format), _) => Ok(format),
            (None, Source::Stdin) => Err(InputError::FormatOfStdin),
            (None, Source::File(path)) => {
                Format::of_path(path).ok_or_else(|| InputError::UnknownFormat { name: self.source.name() })
            }
        }
    }
}

/// Opens the input and reads as much of it as shows that it is of its kind: for CSV and TSV the header.
pub fn open(options: &InputOptions) -> Result<Records, InputError> {
    let reader = options.source.reader()?;
    let format = options.format()?;
    let name = options.source.name();
    Records::from_reader(&name, reader, format, options.id_field.as_deref(), options.limit)
}

/// How many records the input seems to have; nothing once `is_over`, or where it cannot be read. Lines of JSONL are
/// counted without being checked: that takes a tenth of the time, and the scan beside it needs the cores.
pub fn count(options: &InputOptions, is_over: impl Fn() -> bool) -> Option<u64> {
    let mut count = 0;
    if options.format().ok()? == Format::Jsonl {
        let mut lines = Lines::new(Text::new(options.source.name(), options.source.reader().ok()?).ok()?);
        while let Some(line) = lines.next().ok()? {
            count += u64::from(line.bytes.trim_ascii_start().starts_with(b"{"));
            if is_over() {
                return None;
            }
        }
        return Some(options.limit.map_or(count, |limit| count.min(limit)));
    }
    for entry in open(options).ok()? {
        count += u64::from(matches!(entry, Ok(Entry::Record(_))));
        if is_over() {
            return None;
        }
    }
    Some(count)
}

/// The entries of one input, in its order. After an error, which concerns all that would follow, it is at its end.
pub struct Records {
    entries: Box<dyn Iterator<Item = Result<Entry, InputError>> + Send>,
    /// How many records may still come.
    left: Option<u64>,
    is_at_end: bool,
}

impl Records {
    /// Reads from any reader, packed with gzip or not; `name` is what messages call it.
    pub fn from_reader(
        name: &str,
        reader: Box<dyn Read + Send>,
        format: Format,
        id_field: Option<&str>,
        limit: Option<u64>,
    ) -> Result<Self, InputError> {
        let text = Text::new(name.to_owned(), reader)?;
        let named = id_field.map(str::to_owned);
        Ok(Self {
            entries: match format {
                Format::Jsonl => Box::new(jsonl::JsonLines::new(text, named)),
                Format::JsonArray => Box::new(json_array::JsonArray::new(text, named)),
                Format::Csv => Box::new(delimited::Table::new(text, b',', id_field)?),
                Format::Tsv => Box::new(delimited::Table::new(text, b'\t', id_field)?),
            },
            left: limit,
            is_at_end: false,
        })
    }
}

impl Iterator for Records {
    type Item = Result<Entry, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_at_end || self.left == Some(0) {
            return None;
        }
        let entry = self.entries.next();
        match (&entry, &mut self.left) {
            (Some(Ok(Entry::Record(_))), Some(left)) => *left -= 1,
            (Some(Err(_)) | None, _) => self.is_at_end = true,
            _ => {}
        }
        entry
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records")
            .field("left", &self.left)
            .field("is_at_end", &self.is_at_end)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::io::Cursor;

    use super::testing::gzip;
    use super::*;

    fn options(path: &Path) -> InputOptions {
        InputOptions { source: Source::new(path), format: None, id_field: None, limit: None }
    }

    #[test]
    fn the_format_is_told_from_the_name() {
        use Format::*;
        for (name, format) in [
            ("a.jsonl", Some(Jsonl)),
            ("a.b.ndjson.gz", Some(Jsonl)),
            ("dir.csv/A.JSON", Some(JsonArray)),
            ("a.CSV.GZ", Some(Csv)),
            ("a.tsv", Some(Tsv)),
            ("a.tab", Some(Tsv)),
            ("a.gz", None),
            ("csv", None),
            ("a.xlsx", None),
        ] {
            assert_eq!(Format::of_path(Path::new(name)), format, "{name}");
        }
    }

    #[test]
    fn a_format_reads_as_it_is_written() {
        for format in [Format::Jsonl, Format::JsonArray, Format::Csv, Format::Tsv] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        let error = "xml".parse::<Format>().expect_err("no format");
        assert_eq!(error.to_string(), "unknown format \"xml\"; it is one of jsonl, json, csv, tsv");
    }

    #[test]
    fn a_file_is_opened_by_its_name_packed_or_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("catalog.csv");
        for bytes in [b"id,v\n1,a\n2,b\n".to_vec(), gzip(b"id,v\n1,a\n2,b\n")] {
            fs::write(&path, bytes).expect("a file");
            assert_eq!(open(&options(&path)).expect("a catalog").count(), 2);
        }
        let other = folder.path().join("catalog.dat");
        fs::rename(&path, &other).expect("a file");
        let error = open(&options(&other)).expect_err("no known name");
        assert!(error.to_string().ends_with("say --format jsonl|json|csv|tsv"));
        let named = InputOptions { format: Some(Format::Csv), ..options(&other) };
        assert_eq!(open(&named).expect("a catalog").count(), 2);
        assert!(matches!(open(&options(Path::new("-"))), Err(InputError::FormatOfStdin)));
    }

    #[test]
    fn the_limit_counts_records_and_not_rejects() {
        let text = "{\"id\":1}\nbad\n{\"id\":2}\nbad\n{\"id\":3}\n";
        let read = |limit| {
            let reader = Box::new(Cursor::new(text));
            Records::from_reader("x", reader, Format::Jsonl, None, limit).expect("text").count()
        };
        assert_eq!((read(None), read(Some(2)), read(Some(0)), read(Some(9))), (5, 3, 0, 5));
    }

    #[test]
    fn what_is_counted_is_what_is_read_but_for_lines_that_are_no_json() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("catalog.jsonl");
        let text = "\u{feff}{\"id\":1}\r\n\n \t{\"id\":2}\n[3]\n\n{\"id\":4";
        for (name, bytes, seen) in [
            ("a.jsonl", text.as_bytes().to_vec(), 3),
            ("b.jsonl.gz", gzip(text.as_bytes()), 3),
            ("c.csv", b"id,v\n1,a\n2,b\n".to_vec(), 2),
        ] {
            let path = path.with_file_name(name);
            fs::write(&path, bytes).expect("a file");
            assert_eq!(count(&options(&path), || false), Some(seen), "{name}");
            assert_eq!(count(&InputOptions { limit: Some(1), ..options(&path) }, || false), Some(1));
            assert_eq!(count(&options(&path), || true), None);
        }
        assert_eq!(count(&options(&path.with_file_name("none.jsonl")), || false), None);
    }

    #[test]
    fn the_example_catalog_is_sound() {
        let catalog = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/products.csv");
        let entries = open(&options(Path::new(catalog))).expect("a catalog");
        let ids: HashSet<String> = entries
            .map(|entry| match entry.expect("a readable file") {
                Entry::Record(record) => record.id,
                Entry::Reject(reject) => panic!("{reject:?}"),
            })
            .collect();
        assert_eq!(ids.len(), 229);
    }

    #[test]
    fn an_error_is_the_end() {
        let reader = Box::new(Cursor::new("{\"name\":1}\n{\"id\":2}\n"));
        let mut records = Records::from_reader("x", reader, Format::Jsonl, None, None).expect("text");
        assert!(matches!(records.next(), Some(Err(InputError::NoIdField { .. }))));
        assert!(records.next().is_none());
    }
}
