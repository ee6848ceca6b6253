//! A file of lines that only grows.
//!
//! - [`LineFile::commit`] returns when the lines are on disk, all of them; when it fails, none of them count,
//!   and what was half written is cut off.
//! - A process that dies while writing leaves at most one line without its end; it is cut off on opening. It was
//!   never told to anybody. Its whole lines are brought to the disk on opening, before anybody is told of them.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// An append-only file of lines.
#[derive(Debug)]
pub(crate) struct LineFile {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    pending: Vec<u8>,
}

impl LineFile {
    /// Opens or makes the file, and cuts off a torn last line.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let is_new = !path.exists();
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        if let Some(folder) = path.parent().filter(|_| is_new) {
            crate::durable::sync_folder(folder)?;
        }
        let found_bytes = file.metadata()?.len();
        let size_bytes = end_of_last_line(&file, found_bytes)?;
        if size_bytes < found_bytes {
            tracing::warn!(file = %path.display(), cut_bytes = found_bytes - size_bytes, "cut off a torn last line");
            file.set_len(size_bytes)?;
        }
        // Whoever was killed between write and fsync left lines that are not on disk yet, and will be told now.
        file.sync_all()?;
        Ok(Self { file, path: path.to_owned(), size_bytes, pending: Vec::new() })
    }

    /// Bytes on disk.
    pub(crate) const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Adds a line to the next commit.
    pub(crate) fn push(&mut self, line: &str) {
        self.pending.extend_from_slice(line.as_bytes());
        self.pending.push(b'\n');
    }

    /// Brings the pushed lines to the disk.
    pub(crate) fn commit(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(&self.pending).and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => self.size_bytes += self.pending.len() as u64,
            // Best effort: what cannot be cut off now is cut off when the file is opened again, or is a line
            // that the ledger does not know of and learns when it is.
            Err(_) => drop(self.file.set_len(self.size_bytes)),
        }
        self.pending.clear();
        written
    }

    /// Makes the file empty, and forgets what was pushed.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.pending.clear();
        self.file.set_len(0)?;
        self.file.sync_all()?;
        self.size_bytes = 0;
        Ok(())
    }

    /// Reads the lines from a place on; `each` gets the place, the line's number from there, and the line.
    pub(crate) fn read_from<E: From<io::Error>>(
        &self,
        from_bytes: u64,
        each: impl FnMut(u64, u64, &str) -> Result<(), E>,
    ) -> Result<(), E> {
        read_lines(&self.path, from_bytes, each)
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads the whole lines of a file from a place on; a missing file has none, and a torn last line is left out.
pub(crate) fn read_lines<E: From<io::Error>>(
    path: &Path,
    from_bytes: u64,
    mut each: impl FnMut(u64, u64, &str) -> Result<(), E>,
) -> Result<(), E> {
    const BUFFER_BYTES: usize = 256 * 1024;
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    file.seek(SeekFrom::Start(from_bytes))?;
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
    let (mut at_bytes, mut number, mut line) = (from_bytes, 0, Vec::new());
    loop {
        line.clear();
        let read = reader.by_ref().read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        number += 1;
        let text = std::str::from_utf8(&line[..read - 1])
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, damaged(path, number, "not UTF-8")))?;
        each(at_bytes, number, text)?;
        at_bytes += read as u64;
    }
}

/// What is told of a line that cannot be read.
pub(crate) fn damaged(path: &Path, number: u64, what: impl std::fmt::Display) -> String {
    format!(
        "{}, line {number}: damaged ({what}). Shelfmill does not write such a line: restore the file from a copy, or \
         delete the line, and its product is done again",
        path.display()
    )
}

/// Where the last whole line ends.
fn end_of_last_line(file: &File, size_bytes: u64) -> io::Result<u64> {
    const BLOCK_BYTES: u64 = 64 * 1024;
    let mut end = size_bytes;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        block.resize((end - start) as usize, 0);
        file.read_exact_at(&mut block, start)?;
        if let Some(at) = memchr::memrchr(b'\n', &block) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        let mut all = Vec::new();
        read_lines::<io::Error>(path, 0, |_, _, line| {
            all.push(line.to_owned());
            Ok(())
        })
        .unwrap();
        all
    }

    #[test]
    fn what_is_committed_is_read_again_and_a_torn_line_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let mut file = LineFile::open(&path).unwrap();
        file.push("one");
        file.push("zwei ü");
        file.commit().unwrap();
        drop(file);
        for torn in ["{\"id\"".to_owned(), "x".repeat(200_000)] {
            OpenOptions::new().append(true).open(&path).unwrap().write_all(torn.as_bytes()).unwrap();
            assert_eq!(lines(&path), ["one", "zwei ü"]);
            let mut file = LineFile::open(&path).unwrap();
            assert_eq!(file.size_bytes(), 12);
            file.push("three");
            file.commit().unwrap();
            assert_eq!(lines(&path), ["one", "zwei ü", "three"]);
            file.file.set_len(12).unwrap();
        }
    }

    #[test]
    fn a_file_that_is_one_torn_line_becomes_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        std::fs::write(&path, "torn").unwrap();
        assert_eq!(LineFile::open(&path).unwrap().size_bytes(), 0);
    }
}
