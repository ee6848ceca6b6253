//! Helpers of the readers' tests: the slowest of all readers, and everything an input yields at a glance.

use std::io::{Cursor, Read, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::{Entry, Format, Records, Reject, RejectReason};

/// Gives one byte at a time, so that every place is a boundary between two chunks.
pub(super) struct OneByte(Cursor<Vec<u8>>);

impl OneByte {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(Cursor::new(bytes.to_vec()))
    }
}

impl Read for OneByte {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let room = buffer.len().min(1);
        self.0.read(&mut buffer[..room])
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(bytes).expect("memory takes everything");
    packer.finish().expect("memory takes everything")
}

/// All that an input yields.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Outcome {
    /// Line, id and body.
    pub(super) records: Vec<(u64, String, String)>,
    pub(super) rejects: Vec<Reject>,
    pub(super) error: Option<String>,
}

impl Outcome {
    pub(super) fn ids(&self) -> Vec<&str> {
        self.records.iter().map(|(_, id, _)| &**id).collect()
    }

    pub(super) fn reasons(&self) -> Vec<(u64, RejectReason)> {
        let rejects = self.rejects.iter();
        rejects.map(|reject| (reject.line, reject.reason)).collect()
    }
}

/// Reads `bytes` at once and, when they are few, byte by byte, which must make no difference.
pub(super) fn outcome(format: Format, bytes: &[u8]) -> Outcome {
    const FEW_BYTES: usize = 64 * 1024;
    let at_once = outcome_of(format, Box::new(Cursor::new(bytes.to_vec())));
    if bytes.len() <= FEW_BYTES {
        assert_eq!(at_once, outcome_of(format, Box::new(OneByte::new(bytes))));
    }
    at_once
}

pub(super) fn outcome_of(format: Format, reader: Box<dyn Read + Send>) -> Outcome {
    let mut all = Outcome::default();
    let records = match Records::from_reader("x", reader, format, None, None) {
        Ok(records) => records,
        Err(error) => {
            all.error = Some(error.to_string());
            return all;
        }
    };
    for entry in records {
        assert_eq!(all.error, None, "an error is the end");
        match entry {
            Ok(Entry::Record(record)) => {
                all.records.push((record.line, record.id, record.body.get().to_owned()));
            }
            Ok(Entry::Reject(reject)) => all.rejects.push(reject),
            Err(error) => all.error = Some(error.to_string()),
        }
    }
    all
}
