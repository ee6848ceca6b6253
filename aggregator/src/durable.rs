//! Files that are there whole or not at all, also after a power cut: written beside their place, fsynced,
//! renamed over it, and the folder fsynced. (Pillai et al., "All File Systems Are Not Created Equal", 2014.)

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    sync::mpsc,
    thread,
};

use tempfile::NamedTempFile;

/// What the names of files begin with that are not yet in their place.
pub(crate) const TEMPORARY_PREFIX: &str = ".shelfmill-";

/// Replaces the file by what `write` writes.
pub(crate) fn replace<T, E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<T, E>,
) -> Result<T, E> {
    let (prepared, value) = prepare(path, write)?;
    prepared.put_in_place()?;
    Ok(value)
}

/// A file that is on disk beside its place.
pub(crate) struct Prepared<'p> {
    path: &'p Path,
    temporary: NamedTempFile,
}

/// Everything that a full disk can refuse.
pub(crate) fn prepare<T, E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<T, E>,
) -> Result<(Prepared<'_>, T), E> {
    const BUFFER_BYTES: usize = 256 * 1024;
    let temporary = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(folder_of(path))?;
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, temporary.as_file());
    let value = write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    readable_by_all(temporary.as_file())?;
    temporary.as_file().sync_all()?;
    Ok((Prepared { path, temporary }, value))
}

/// Writes on a thread of its own: what comes next is read meanwhile.
pub(crate) fn write_behind<T>(
    file: &File,
    write: impl FnOnce(&mut Behind) -> io::Result<T>,
) -> io::Result<T> {
    thread::scope(|scope| {
        let (full, blocks) = mpsc::sync_channel(BLOCKS_AHEAD);
        let writer =
            scope.spawn(move || blocks.iter().try_for_each(|block: Vec<u8>| (&*file).write_all(&block)));
        let mut behind = Behind { block: Vec::new(), full };
        let written = write(&mut behind).and_then(|value| behind.flush().map(|()| value));
        drop(behind);
        // What went wrong there is why nothing more could be written here.
        writer.join().map_err(|_| io::Error::other("the thread that writes has ended abnormally"))??;
        written
    })
}

/// A block of so many bytes is written at once, and so many wait for it.
const BLOCK_BYTES: usize = 256 * 1024;
const BLOCKS_AHEAD: usize = 2;

/// What a thread writes.
pub(crate) struct Behind {
    block: Vec<u8>,
    full: mpsc::SyncSender<Vec<u8>>,
}

impl Write for Behind {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.block.len() + bytes.len() > BLOCK_BYTES {
            self.flush()?;
            self.block.reserve(BLOCK_BYTES.max(bytes.len()));
        }
        self.block.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.full.send(std::mem::take(&mut self.block)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Prepared<'_> {
    pub(crate) fn put_in_place(self) -> io::Result<()> {
        self.temporary.persist(self.path)?;
        sync_folder(folder_of(self.path))
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes new and renamed files of the folder survive a power cut.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Temporary files are private; results are as public as any other file of the user.
fn readable_by_all(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_behind_arrives_whole_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let lines: Vec<String> = (0..3_000).map(|n: usize| format!("{n} {}\n", "x".repeat(n))).collect();
        replace(&path, |file| {
            write_behind(file.get_ref(), |file| {
                lines.iter().try_for_each(|line| file.write_all(line.as_bytes()))
            })
        })
        .unwrap();
        assert!(std::fs::read_to_string(&path).unwrap() == lines.concat());
    }

    #[test]
    fn what_the_disk_says_is_told() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let line = [b'x'; 1000];
        let error =
            write_behind(&full, |file| (0..10_000).try_for_each(|_| file.write_all(&line))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let error = write_behind(&full, |file| file.write_all(&line)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
