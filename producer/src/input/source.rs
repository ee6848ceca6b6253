//! From a file, standard input or any reader to plain text bytes in bounded chunks.
//!
//! Gzip is known by its first bytes and not by the file's name, because names lie and standard input has none; a
//! stream of several gzip members is one text. A UTF-8 byte order mark is dropped. What is plainly another kind
//! of file (a spreadsheet, UTF-16, another compression) is refused here by name: further on it would come out as
//! a million unreadable records. Memory: one chunk of [`CHUNK_BYTES`] on each side of the decompressor.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};
use std::path::PathBuf;

use flate2::bufread::MultiGzDecoder;

use super::error::InputError;

/// How much text is read ahead at once.
const CHUNK_BYTES: usize = 128 * 1024;
/// How much of the beginning is looked at to know the kind of a file.
const PEEK_BYTES: usize = 6;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const UTF8_BOM: &[u8] = &[0xef, 0xbb, 0xbf];

/// First bytes, the kind of file they tell, and what to do about it.
const NOT_TEXT: &[(&[u8], &str, &str)] = &[
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or save it as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "save it as CSV"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it, or use gzip"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it, or use gzip"),
    (b"BZh", "compressed with bzip2", "unpack it, or use gzip"),
    (b"PAR1", "a Parquet file", "export it as JSONL"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
];

/// Where the catalog comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Stdin,
}

impl Source {
    /// `-` is standard input; everything else is a path.
    pub fn new(argument: impl Into<PathBuf>) -> Self {
        let path = argument.into();
        if path.as_os_str() == "-" { Self::Stdin } else { Self::File(path) }
    }

    /// The name under which messages speak of it.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Stdin => "standard input".to_owned(),
        }
    }

    pub(super) fn reader(&self) -> Result<Box<dyn Read + Send>, InputError> {
        let path = match self {
            Self::Stdin => return Ok(Box::new(io::stdin())),
            Self::File(path) => path,
        };
        let name = self.name();
        let file = File::open(path).map_err(|source| match source.kind() {
            ErrorKind::NotFound => InputError::NotFound { name: name.clone() },
            _ => InputError::Open { name: name.clone(), source },
        })?;
        match file.metadata() {
            Ok(facts) if facts.is_dir() => Err(InputError::Directory { name }),
            Ok(_) => Ok(Box::new(file)),
            Err(source) => Err(InputError::Open { name, source }),
        }
    }
}

/// The decompressed text of an input, chunk by chunk.
pub(super) struct Text {
    reader: BufReader<Box<dyn Read + Send>>,
    name: String,
    is_gzip: bool,
}

impl Text {
    pub(super) fn new(name: String, raw: Box<dyn Read + Send>) -> Result<Self, InputError> {
        let (head, raw) = peek(raw).map_err(|source| InputError::Read { name: name.clone(), source })?;
        let is_gzip = head.starts_with(GZIP_MAGIC);
        let (head, reader) = if is_gzip {
            let unpacked = MultiGzDecoder::new(BufReader::with_capacity(CHUNK_BYTES, raw));
            peek(Box::new(unpacked)).map_err(|source| broken(&name, is_gzip, source))?
        } else {
            (head, raw)
        };
        for &(magic, kind, advice) in NOT_TEXT {
            if head.starts_with(magic) {
                return Err(InputError::NotText { name, kind, advice });
            }
        }
        let mut text = Self { reader: BufReader::with_capacity(CHUNK_BYTES, reader), name, is_gzip };
        if head.starts_with(UTF8_BOM) {
            text.skip(UTF8_BOM.len())?;
        }
        Ok(text)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The text that is at hand, at least one byte of it; empty only at the end.
    pub(super) fn fill(&mut self) -> Result<&[u8], InputError> {
        loop {
            match self.reader.fill_buf() {
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(broken(&self.name, self.is_gzip, source)),
            }
        }
        Ok(self.reader.buffer())
    }

    /// Goes past `count` bytes of what [`Text::fill`] gave.
    pub(super) fn consume(&mut self, count: usize) {
        self.reader.consume(count);
    }

    fn skip(&mut self, mut count: usize) -> Result<(), InputError> {
        while count > 0 {
            let step = self.fill()?.len().min(count);
            if step == 0 {
                break;
            }
            self.consume(step);
            count -= step;
        }
        Ok(())
    }
}

/// Reads the first bytes and puts them back in front.
fn peek(mut reader: Box<dyn Read + Send>) -> io::Result<(Vec<u8>, Box<dyn Read + Send>)> {
    let mut head = Vec::with_capacity(PEEK_BYTES);
    reader.by_ref().take(PEEK_BYTES as u64).read_to_end(&mut head)?;
    let whole = Cursor::new(head.clone()).chain(reader);
    Ok((head, Box::new(whole)))
}

/// Tells a bad gzip stream from a bad disk: the decompressor speaks of bad input or of an early end.
fn broken(name: &str, is_gzip: bool, source: io::Error) -> InputError {
    let name = name.to_owned();
    match source.kind() {
        ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::UnexpectedEof if is_gzip => {
            InputError::CorruptGzip { name, source }
        }
        _ => InputError::Read { name, source },
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{OneByte, gzip};
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<u8>, InputError> {
        let mut text = Text::new("x".into(), Box::new(OneByte::new(bytes)))?;
        let mut all = Vec::new();
        loop {
            let chunk = text.fill()?;
            if chunk.is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(chunk);
            let count = chunk.len();
            text.consume(count);
        }
    }

    #[test]
    fn plain_text_comes_through_whatever_its_length() {
        for text in ["", "a", "ab", "abc", "abcdefghij"] {
            assert_eq!(read(text.as_bytes()).expect("plain"), text.as_bytes());
        }
    }

    #[test]
    fn the_byte_order_mark_is_dropped_once_plain_or_packed() {
        assert_eq!(read(b"\xef\xbb\xbfabc").expect("plain"), b"abc");
        assert_eq!(read(b"\xef\xbb\xbf").expect("plain"), b"");
        assert_eq!(read(&gzip(b"\xef\xbb\xbfabc")).expect("packed"), b"abc");
    }

    #[test]
    fn gzip_members_follow_each_other() {
        let mut members = gzip(b"one ");
        members.extend(gzip(b""));
        members.extend(gzip(b"two"));
        assert_eq!(read(&members).expect("three members"), b"one two");
    }

    #[test]
    fn a_cut_or_damaged_gzip_stream_is_bad_input() {
        let packed = gzip(&b"some text that goes on ".repeat(100));
        for cut in [2, 5, 12, packed.len() - 1] {
            let error = read(&packed[..cut]).expect_err("cut off");
            assert!(matches!(error, InputError::CorruptGzip { .. }), "{cut}: {error:?}");
            assert!(error.is_usage());
        }
        let mut damaged = packed.clone();
        let last = damaged.len() - 6;
        damaged[last] ^= 0xff;
        assert!(matches!(read(&damaged), Err(InputError::CorruptGzip { .. })));
    }

    #[test]
    fn other_kinds_of_file_are_named() {
        let told = |bytes: &[u8]| read(bytes).expect_err("not text").to_string();
        assert_eq!(
            told(b"PK\x03\x04rest"),
            "x is a zip archive or an Excel workbook, which can not be read; unpack it, or save it as CSV"
        );
        assert!(told(b"\xff\xfei\0d\0").contains("UTF-16"));
        assert!(told(&gzip(b"PAR1...")).contains("Parquet"));
    }

    #[test]
    fn trouble_while_reading_is_not_bad_input() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("disk on fire"))
            }
        }
        let raw = Box::new(Cursor::new(b"0123456789".to_vec()).chain(Broken));
        let mut text = Text::new("x".into(), raw).expect("the beginning is fine");
        while let Ok(chunk) = text.fill() {
            let count = chunk.len();
            text.consume(count);
        }
        let error = text.fill().expect_err("still broken");
        assert!(matches!(error, InputError::Read { .. }) && !error.is_usage());
    }

    #[test]
    fn a_missing_file_and_a_folder_are_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let told = |path: PathBuf| Source::File(path).reader().err().expect("refused").to_string();
        assert!(told(folder.path().join("none.csv")).ends_with("there is no such file"));
        assert!(told(folder.path().to_owned()).contains("is a directory"));
        assert_eq!(Source::new("-"), Source::Stdin);
    }
}
