//! Files that are there whole or not at all, also after a power cut: written beside their place, fsynced,
//! renamed over it, and the folder fsynced. (Pillai et al., "All File Systems Are Not Created Equal", 2014.)

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
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
