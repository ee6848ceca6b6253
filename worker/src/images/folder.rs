//! Images in the one folder that a job names. A path is followed through every link to what it is in the end, and that
//! must lie in the folder and be a plain file: no `..`, link, pipe or device leads elsewhere.

use std::{
    fs::File,
    io::{ErrorKind, Read as _},
    path::{Path, PathBuf},
};

use super::Trouble;

/// The folder of a job.
#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(path: &str) -> Self {
        Self(path.into())
    }

    /// The file, if it is in the folder and not too large.
    pub(super) async fn read(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>, Trouble> {
        let (folder, path) = (self.clone(), path.to_owned());
        tokio::task::spawn_blocking(move || folder.read_now(Path::new(&path), max_bytes))
            .await
            .unwrap_or_else(|error| Err(Trouble::passing(format!("it could not be read: {error}"))))
    }

    fn read_now(&self, path: &Path, max_bytes: u64) -> Result<Vec<u8>, Trouble> {
        // Mounts come and go: a folder that is missing is no fault of the product.
        let folder = self.0.canonicalize().map_err(|error| {
            Trouble::passing(format!("the folder {:?} (llm.images.folder) is not there: {error}", self.0))
        })?;
        let whole = folder.join(path).canonicalize().map_err(unreadable)?;
        if !whole.starts_with(&folder) {
            return Err(Trouble::for_good("it leads out of the folder (llm.images.folder)"));
        }
        // Before it is opened, which a pipe would never end and a device might act on.
        let is_file = whole.metadata().map_err(unreadable)?.is_file();
        if !is_file {
            return Err(Trouble::for_good("it is not a file"));
        }
        let file = File::open(&whole).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.len() > max_bytes {
            return Err(Trouble::too_large(max_bytes));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
        // It may have grown meanwhile.
        file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > max_bytes {
            return Err(Trouble::too_large(max_bytes));
        }
        Ok(bytes)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err gives")]
fn unreadable(error: std::io::Error) -> Trouble {
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::PermissionDenied
        | ErrorKind::InvalidInput
        | ErrorKind::InvalidFilename => Trouble::for_good(format!("it cannot be read: {error}")),
        _ => Trouble::passing(format!("it cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use shelfmill_pipeline::failure::FailureClass;

    use super::*;

    #[test]
    fn only_plain_files_within_the_folder_are_read() {
        let place = tempfile::tempdir().unwrap();
        let (inside, outside) = (place.path().join("in"), place.path().join("in-not"));
        fs::create_dir_all(inside.join("deep")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(inside.join("a.png"), "inside").unwrap();
        fs::write(outside.join("b.png"), "outside").unwrap();
        symlink(outside.join("b.png"), inside.join("link.png")).unwrap();
        symlink(&outside, inside.join("linked")).unwrap();
        symlink(inside.join("a.png"), inside.join("deep/good.png")).unwrap();
        symlink("loop.png", inside.join("loop.png")).unwrap();
        symlink("/dev/zero", inside.join("zero.png")).unwrap();
        let folder = Folder::new(inside.to_str().unwrap());
        let read = |path: &str| folder.read_now(Path::new(path), 6);
        let whole = inside.join("a.png");
        for good in ["a.png", "./deep/../a.png", "deep/good.png", whole.to_str().unwrap()] {
            assert_eq!(read(good).unwrap(), b"inside", "{good}");
        }
        let elsewhere = outside.join("b.png");
        for bad in [
            "../in-not/b.png",
            "link.png",
            "linked/b.png",
            "deep/../../in-not/b.png",
            elsewhere.to_str().unwrap(),
            "/etc/passwd",
            "zero.png",
            "/dev/zero",
            "deep",
            ".",
            "missing.png",
            "a.png/b.png",
            "a\0b.png",
        ] {
            let trouble = read(bad).unwrap_err();
            assert_eq!(trouble.class, FailureClass::ImageUnusable, "{bad}: {trouble:?}");
        }
        read("loop.png").unwrap_err();
        let too_large = folder.read_now(Path::new("a.png"), 5).unwrap_err();
        assert!(too_large.why.contains("larger than 5 bytes"), "{too_large:?}");
        let gone = Folder::new("/nowhere/at/all").read_now(Path::new("a.png"), 5).unwrap_err();
        assert_eq!(gone.class, FailureClass::Network, "a mount may come back");
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let pipe = place.path().join("pipe.png");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let folder = Folder::new(place.path().to_str().unwrap());
        let trouble = folder.read_now(Path::new("pipe.png"), 5).unwrap_err();
        assert_eq!(trouble.why, "it is not a file");
    }
}
