//! The output folder of a run: who may write in it, and which run it belongs to.
//!
//! Beside the result files it has a folder `.shelfmill` with
//! - `lock`: held (flock) by the one process that writes; the kernel lets go of it when that process ends,
//! - `run.json`: which run this is, its job, and how long it has been worked on,
//! - what the embedded ledger keeps.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shelfmill_pipeline::{
    job::Job,
    record::{FAILURES_FILE, JOURNAL_FILE, REJECTS_FILE, RESULTS_FILE, SUMMARY_FILE},
};

use crate::durable;

const STATE_FOLDER: &str = ".shelfmill";
const RECORD_VERSION: u32 = 1;
/// The record has a job in it, and that a schema, which may be long.
const MAX_RECORD_BYTES: u64 = 16 * 1024 * 1024;
/// A process that was killed holds its lock until the kernel has cleared it away; whoever restarts it at once
/// should not be refused for that.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another process writes in it.
    #[error(
        "another process is writing results in {folder}; wait for it, stop it, or choose another folder with --out"
    )]
    InUse {
        /// The folder.
        folder: String,
    },
    /// It has the results of another run.
    #[error(
        "{folder} belongs to the run '{found}', not to '{asked}'; choose another folder with --out, or --run {found}"
    )]
    OtherRun {
        /// The folder.
        folder: String,
        /// Its run.
        found: String,
        /// The run that was asked for.
        asked: String,
    },
    /// Its record cannot be read.
    #[error(
        "{file} cannot be read ({reason}); was it written by another version of Shelfmill? If it is damaged, restore it \
         from a copy; without one, delete it: `shelfmill run` goes on without it, a fleet does not"
    )]
    Unreadable {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Its results are gone.
    #[error(
        "{journal} is gone or empty, but there were results in it; going on would ask for every product again. Restore \
         the file from a copy, or begin anew in another folder with --out, under another name with --run"
    )]
    ResultsGone {
        /// The journal.
        journal: String,
    },
    /// The disk or its permissions do not let it.
    #[error("cannot write in {folder}")]
    Io {
        /// The folder.
        folder: String,
        /// The system's words.
        #[source]
        source: io::Error,
    },
}

/// What a folder knows of its run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRecord {
    version: u32,
    /// The run's name.
    pub run: String,
    /// Distinguishes this folder's journal from any other.
    pub journal: String,
    /// The job, where the run is embedded; a fleet's is in its ledger.
    pub job: Option<Job>,
    /// When the run began.
    pub started_at: Timestamp,
    /// How long it was worked on, in sessions that have ended.
    pub active_ms: u64,
    /// When the present session began, or the last one that did not end in good order.
    pub session_started_at: Option<Timestamp>,
    /// Products in the input, as far as known.
    pub expected: Option<u64>,
    /// Which reading of the input the rejects are of.
    pub rejects_scan: u64,
    /// Whether there is a line in the journal.
    #[serde(default)]
    pub has_results: bool,
    /// How often the failures were rewritten: the ledger's mark in them is of one edition.
    #[serde(default)]
    pub failures_edition: u64,
}

/// An output folder that only this process writes in.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    record: RunRecord,
    lock: File,
}

impl Folder {
    /// Makes the folder if it is not there, and takes it for this process and this run.
    pub fn open(path: &Path, run: &str) -> Result<Self, FolderError> {
        let name = path.display().to_string();
        let io = |source| FolderError::Io { folder: name.clone(), source };
        let state = path.join(STATE_FOLDER);
        std::fs::create_dir_all(&state).map_err(io)?;
        let lock = take_lock(&state, &name)?;
        remove_leftovers(&[path, &state]);
        let record = match Self::read_record(path)? {
            Some(record) if record.run != run => {
                return Err(FolderError::OtherRun { folder: name, found: record.run, asked: run.to_owned() });
            }
            Some(record) => record,
            None => RunRecord {
                version: RECORD_VERSION,
                run: run.to_owned(),
                journal: new_identity().map_err(io)?,
                job: None,
                started_at: Timestamp::now(),
                active_ms: 0,
                session_started_at: None,
                expected: None,
                rejects_scan: 0,
                has_results: false,
                failures_edition: 0,
            },
        };
        let mut folder = Self { path: path.to_owned(), record, lock };
        let journal = folder.journal();
        let is_empty = std::fs::metadata(&journal).map_or(true, |journal| journal.len() == 0);
        if is_empty && folder.record.has_results {
            return Err(FolderError::ResultsGone { journal: journal.display().to_string() });
        }
        folder.record.has_results = !is_empty;
        folder.close_torn_session();
        folder.record.session_started_at = Some(Timestamp::now());
        folder.save(&folder.record)?;
        Ok(folder)
    }

    /// What the folder knows, for those who only look.
    pub fn read_record(path: &Path) -> Result<Option<RunRecord>, FolderError> {
        let file = path.join(STATE_FOLDER).join("run.json");
        let unreadable =
            |reason: String| FolderError::Unreadable { file: file.display().to_string(), reason };
        let mut bytes = Vec::new();
        let read = File::open(&file).and_then(|file| file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| unreadable(error.to_string()))?,
        };
        if bytes.len() as u64 > MAX_RECORD_BYTES {
            return Err(unreadable(format!("it is larger than {MAX_RECORD_BYTES} bytes")));
        }
        let record: RunRecord =
            serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if record.version != RECORD_VERSION {
            return Err(unreadable(format!("version {}", record.version)));
        }
        Ok(Some(record))
    }

    /// A session that was killed has lasted at least until its last line.
    fn close_torn_session(&mut self) {
        let Some(started_at) = self.record.session_started_at.take() else { return };
        let last_line = std::fs::metadata(self.journal()).and_then(|meta| meta.modified()).ok();
        let ended_at = last_line.and_then(|time| Timestamp::try_from(time).ok());
        let session_ms = ended_at.map_or(0, |ended_at| elapsed_ms(started_at, ended_at));
        self.record.active_ms = self.record.active_ms.saturating_add(session_ms);
    }

    /// The run's record.
    #[must_use]
    pub const fn record(&self) -> &RunRecord {
        &self.record
    }

    /// Changes the run's record on disk, and then here.
    pub fn update(&mut self, change: impl FnOnce(&mut RunRecord)) -> Result<(), FolderError> {
        let mut record = self.record.clone();
        change(&mut record);
        self.save(&record)?;
        self.record = record;
        Ok(())
    }

    /// Sees to it that the folder is there and this process' own: one that was deleted or moved away is made again.
    pub(crate) fn keep(&mut self) -> Result<(), FolderError> {
        use std::os::unix::fs::MetadataExt;
        let name = self.path.display().to_string();
        let io = |source| FolderError::Io { folder: name.clone(), source };
        let held = self.lock.metadata().map_err(io)?;
        match std::fs::metadata(self.state_file("lock")) {
            Ok(found) if (found.dev(), found.ino()) == (held.dev(), held.ino()) => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let state = self.path.join(STATE_FOLDER);
        std::fs::create_dir_all(&state).map_err(io)?;
        // Taken for good when everything is there, so that a full disk finds all of it still to be done.
        let lock = take_lock(&state, &name)?;
        self.save(&self.record)?;
        self.lock = lock;
        tracing::warn!(
            folder = name,
            "the folder was deleted or moved while it is written to; made it again"
        );
        Ok(())
    }

    /// How long the run was worked on, up to now.
    #[must_use]
    pub fn active(&self) -> Duration {
        let session = self.record.session_started_at.map_or(0, |at| elapsed_ms(at, Timestamp::now()));
        Duration::from_millis(self.record.active_ms.saturating_add(session))
    }

    /// Notes that the session ended in good order.
    pub fn close(&mut self) -> Result<(), FolderError> {
        self.record.active_ms = u64::try_from(self.active().as_millis()).unwrap_or(u64::MAX);
        self.record.session_started_at = None;
        self.save(&self.record)
    }

    fn save(&self, record: &RunRecord) -> Result<(), FolderError> {
        let bytes = serde_json::to_vec_pretty(record).map_err(io::Error::other);
        bytes
            .and_then(|bytes| durable::replace(&self.state_file("run.json"), |file| file.write_all(&bytes)))
            .map_err(|source| FolderError::Io { folder: self.path.display().to_string(), source })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder's absolute path, for those who are elsewhere.
    #[must_use]
    pub fn place(&self) -> String {
        std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone()).display().to_string()
    }

    /// A file beside the results that is not for people.
    #[must_use]
    pub fn state_file(&self, name: &str) -> PathBuf {
        self.path.join(STATE_FOLDER).join(name)
    }

    /// The live results.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.path.join(JOURNAL_FILE)
    }

    /// The final results.
    #[must_use]
    pub fn results(&self) -> PathBuf {
        self.path.join(RESULTS_FILE)
    }

    /// The summary.
    #[must_use]
    pub fn summary(&self) -> PathBuf {
        self.path.join(SUMMARY_FILE)
    }

    /// The failures.
    #[must_use]
    pub fn failures(&self) -> PathBuf {
        self.path.join(FAILURES_FILE)
    }

    /// The rejects.
    #[must_use]
    pub fn rejects(&self) -> PathBuf {
        self.path.join(REJECTS_FILE)
    }
}

fn take_lock(state: &Path, folder: &str) -> Result<File, FolderError> {
    let io = |source| FolderError::Io { folder: folder.to_owned(), source };
    let lock =
        OpenOptions::new().write(true).create(true).truncate(false).open(state.join("lock")).map_err(io)?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
            Err(TryLockError::WouldBlock) => return Err(FolderError::InUse { folder: folder.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
    }
}

/// Files that a killed process had not yet put in their place; only the holder of the lock makes such.
fn remove_leftovers(folders: &[&Path]) {
    for entry in folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(durable::TEMPORARY_PREFIX) {
            // What cannot be removed is in nobody's way.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn elapsed_ms(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}

/// 64 random bits from the system.
fn new_identity() -> io::Result<String> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_and_one_run_have_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Folder::open(folder.path(), "spring").unwrap();
        let told = Folder::open(folder.path(), "spring").unwrap_err().to_string();
        assert!(told.contains("another process"), "{told}");
        let journal = first.record().journal.clone();
        first.close().unwrap();
        drop(first);
        let told = Folder::open(folder.path(), "autumn").unwrap_err().to_string();
        assert!(told.contains("belongs to the run 'spring'"), "{told}");
        assert_eq!(Folder::open(folder.path(), "spring").unwrap().record().journal, journal);
    }

    #[test]
    fn what_a_killed_process_left_half_made_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(STATE_FOLDER)).unwrap();
        let leftovers =
            [".shelfmill-a1b2c3", ".shelfmill/.shelfmill-d4e5f6"].map(|name| folder.path().join(name));
        for leftover in &leftovers {
            std::fs::write(leftover, "half").unwrap();
        }
        let _open = Folder::open(folder.path(), "spring").unwrap();
        assert!(leftovers.iter().all(|leftover| !leftover.exists()));
        assert!(folder.path().join(STATE_FOLDER).join("run.json").exists());
    }

    #[test]
    fn a_folder_that_was_moved_away_is_made_again_with_its_lock() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("output");
        let mut folder = Folder::open(&path, "spring").unwrap();
        std::fs::rename(&path, parent.path().join("moved")).unwrap();
        folder.keep().unwrap();
        let record = Folder::read_record(&path).unwrap().unwrap();
        assert_eq!(record.journal, folder.record().journal);
        assert!(Folder::open(&path, "spring").unwrap_err().to_string().contains("another process"));
    }
}
