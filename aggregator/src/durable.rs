//! Files that are there whole or not at all, also after a power cut: written beside their place, fsynced,
//! renamed over it, and the folder fsynced. (Pillai et al., "All File Systems Are Not Created Equal", 2014.)

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

/// What the names of files begin with that are not yet in their place.
pub(crate) const TEMPORARY_PREFIX: &str = ".shelfmill-";

/// Replaces the file by what `write` writes.
pub(crate) fn replace<T, E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<T, E>,
) -> Result<T, E> {
    const BUFFER_BYTES: usize = 256 * 1024;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(folder)?;
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, temporary.as_file());
    let value = write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    readable_by_all(temporary.as_file())?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(io::Error::from)?;
    sync_folder(folder)?;
    Ok(value)
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
