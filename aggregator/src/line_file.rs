//! A file of lines that only grows.
//!
//! - [`LineFile::commit`] returns when the lines are on disk, all of them; when it fails, none of them count,
//!   and what was half written is cut off.
//! - A line that is longer than any of ours is damage, and is told without being read whole.
//! - A process that dies while writing leaves at most one line without its end; it is cut off on opening. It was
//!   never told to anybody. Its whole lines are brought to the disk on opening, before anybody is told of them.
//! - An open file outlives its name: writes to a deleted file succeed and go nowhere. [`LineFile::keep`] finds that
//!   out, and writes the file back from what is still open. Whoever tells others of lines asks it first.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::Instant,
};

use jiff::Timestamp;
use shelfmill_pipeline::{
    crash::{self, Point},
    metrics::metrics,
    record::MAX_LINE_BYTES,
};

/// Somebody else writes in a file that is ours alone.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} has {found_bytes} bytes, but {written_bytes} were written: something else has changed it. Nothing was \
     acknowledged since. Find out what did it; if lines are missing, restore the file from a copy; then start again",
    path.display()
)]
pub(crate) struct Changed {
    path: PathBuf,
    found_bytes: u64,
    written_bytes: u64,
}

/// An append-only file of lines.
#[derive(Debug)]
pub(crate) struct LineFile {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    pending: Vec<u8>,
    /// Whether bytes of a failed commit may stand behind the last line.
    torn: bool,
}

impl LineFile {
    /// Opens or makes the file, and cuts off a torn last line.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let is_new = !path.exists();
        let file = open(path)?;
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
        Ok(Self { file, path: path.to_owned(), size_bytes, pending: Vec::new(), torn: false })
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

    /// Brings the pushed lines to the disk. When that fails they are still pushed, and it may be tried again.
    pub(crate) fn commit(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.cut()?;
        let began = Instant::now();
        let written = self.write_pending().and_then(|()| self.file.sync_data());
        metrics().synced(began.elapsed());
        if let Err(error) = written {
            self.torn = true;
            // What cannot be cut off now is cut off before the next attempt, or when the file is opened again, or is a
            // line that the ledger does not know of and learns when it is.
            let _ = self.cut();
            return Err(error);
        }
        self.size_bytes += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    fn cut(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.size_bytes)?;
            self.torn = false;
        }
        Ok(())
    }

    /// Sees to it that what was committed is what others find under the file's name. A file that is gone is written
    /// back; one that was put in its place is set aside first.
    pub(crate) fn keep(&mut self) -> anyhow::Result<()> {
        let found = match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            found => Some(found?),
        };
        let own = self.file.metadata()?;
        match found {
            Some(found) if (found.dev(), found.ino()) == (own.dev(), own.ino()) => {
                if found.len() == self.size_bytes {
                    return Ok(());
                }
                let (found_bytes, written_bytes) = (found.len(), self.size_bytes);
                return Err(Changed { path: self.path.clone(), found_bytes, written_bytes }.into());
            }
            Some(_) => {
                let mut aside = self.path.clone().into_os_string();
                aside.push(format!(".replaced-{}", Timestamp::now().as_millisecond()));
                std::fs::rename(&self.path, &aside)?;
                let file = self.path.display();
                tracing::warn!(%file, ?aside, "another file was put in this one's place; it is set aside");
            }
            None => tracing::warn!(file = %self.path.display(), "the file was deleted while it is written"),
        }
        crate::durable::replace(&self.path, |copy| self.copy_to(copy))?;
        self.file = open(&self.path)?;
        tracing::warn!(file = %self.path.display(), size_bytes = self.size_bytes, "wrote the file back, with every line");
        Ok(())
    }

    fn copy_to(&self, copy: &mut impl Write) -> io::Result<()> {
        const BLOCK_BYTES: u64 = 256 * 1024;
        let (mut at_bytes, mut block) = (0, Vec::new());
        while at_bytes < self.size_bytes {
            block.resize(BLOCK_BYTES.min(self.size_bytes - at_bytes) as usize, 0);
            self.file.read_exact_at(&mut block, at_bytes)?;
            copy.write_all(&block)?;
            at_bytes += block.len() as u64;
        }
        Ok(())
    }

    fn write_pending(&mut self) -> io::Result<()> {
        if crash::is_due(Point::AggregatorTorn, None) {
            self.file.write_all(&self.pending[..self.pending.len() / 2])?;
            crash::now(Point::AggregatorTorn);
        }
        self.file.write_all(&self.pending)?;
        crash::point(Point::AggregatorAppended);
        Ok(())
    }

    /// Makes the file empty, and forgets what was pushed.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.pending.clear();
        self.file.set_len(0)?;
        self.size_bytes = 0;
        self.torn = false;
        self.file.sync_all()
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

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).open(path)
}

/// Reads the whole lines of a file from a place on; a missing file has none, and a torn last line is left out.
pub fn read_lines<E: From<io::Error>>(
    path: &Path,
    from_bytes: u64,
    each: impl FnMut(u64, u64, &str) -> Result<(), E>,
) -> Result<(), E> {
    read_lines_within(path, from_bytes..u64::MAX, each)
}

/// The same, of those lines that begin in this part of the file; a line begins where the part does.
pub(crate) fn read_lines_within<E: From<io::Error>>(
    path: &Path,
    part: Range<u64>,
    mut each: impl FnMut(u64, u64, &str) -> Result<(), E>,
) -> Result<(), E> {
    const BUFFER_BYTES: usize = 256 * 1024;
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    file.seek(SeekFrom::Start(part.start))?;
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
    let (mut at_bytes, mut number, mut line) = (part.start, 0, Vec::new());
    while at_bytes < part.end {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line)?;
        let damage =
            |what: String| io::Error::new(io::ErrorKind::InvalidData, damaged(path, number + 1, what));
        if line.last() != Some(&b'\n') {
            if read > MAX_LINE_BYTES {
                return Err(damage(format!("longer than {MAX_LINE_BYTES} bytes")).into());
            }
            return Ok(());
        }
        let text = std::str::from_utf8(&line[..read - 1]).map_err(|_| damage("not UTF-8".to_owned()))?;
        number += 1;
        each(at_bytes, number, text)?;
        at_bytes += read as u64;
    }
    Ok(())
}

/// What is told of a line that cannot be read.
pub(crate) fn damaged(path: &Path, number: u64, what: impl std::fmt::Display) -> String {
    format!(
        "{}, line {number}: damaged ({what}). Shelfmill does not write such a line: restore the file from a copy. Without \
         one, delete the line, and its product is done again; a fleet's keys in Redis must be deleted with it, and the \
         producer run again",
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
    fn a_file_that_was_deleted_or_replaced_is_written_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let mut file = LineFile::open(&path).unwrap();
        file.push("one");
        file.commit().unwrap();
        file.keep().unwrap();
        std::fs::remove_file(&path).unwrap();
        file.push("two");
        file.commit().unwrap();
        file.keep().unwrap();
        assert_eq!(lines(&path), ["one", "two"]);
        std::fs::rename(&path, folder.path().join("elsewhere")).unwrap();
        std::fs::write(&path, "theirs").unwrap();
        file.keep().unwrap();
        file.push("three");
        file.commit().unwrap();
        file.keep().unwrap();
        assert_eq!(lines(&path), ["one", "two", "three"]);
        let aside = std::fs::read_dir(folder.path())
            .unwrap()
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with("lines.replaced-"));
        assert_eq!(std::fs::read_to_string(aside.unwrap().path()).unwrap(), "theirs");
    }

    #[test]
    fn a_file_that_somebody_changed_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let mut file = LineFile::open(&path).unwrap();
        file.push("one");
        file.commit().unwrap();
        for found in ["", "one\ntwo\n"] {
            std::fs::write(&path, found).unwrap();
            let told = file.keep().unwrap_err().to_string();
            assert!(told.contains(&format!("has {} bytes, but 4 were written", found.len())), "{told}");
        }
    }

    #[test]
    fn lines_of_a_failed_commit_are_still_to_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let mut file = LineFile::open(&path).unwrap();
        file.push("one");
        file.commit().unwrap();
        file.push("two");
        // As after a disk that was full half way.
        file.file.write_all(b"tw").unwrap();
        file.torn = true;
        file.commit().unwrap();
        file.keep().unwrap();
        assert_eq!(lines(&path), ["one", "two"]);
    }

    #[test]
    fn a_file_that_is_one_torn_line_becomes_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        std::fs::write(&path, "torn").unwrap();
        assert_eq!(LineFile::open(&path).unwrap().size_bytes(), 0);
    }
}
