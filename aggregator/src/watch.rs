//! Notices what keeps a run from its end and only a person can mend: its producer must be run (again). Each is told once
//! when it begins, and once when it is over.

use std::time::{Duration, Instant};

use shelfmill_pipeline::ledger::Progress;

/// A producer that reads is heard of several times in this time, even while it waits for its backlog.
const SILENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(crate) struct Watch {
    known: Option<bool>,
    /// The latest scan there was: an older one is that of a Redis that was set back.
    scan: u64,
    heard: Option<(u64, Instant)>,
    silence_told: bool,
}

impl Watch {
    /// Whether the ledger's facts about the run can be relied on.
    pub(crate) fn look(&mut self, progress: &Progress, has_lines: bool) -> bool {
        let scan = progress.scan.map_or(0, |scan| scan.scan);
        let is_known = progress.begun && scan >= self.scan;
        self.scan = self.scan.max(scan);
        self.tell_whether_known(is_known, has_lines);
        if is_known {
            self.listen(progress);
        }
        is_known
    }

    fn tell_whether_known(&mut self, is_known: bool, has_lines: bool) {
        let before = self.known.replace(is_known);
        if before == Some(is_known) {
            return;
        }
        if is_known {
            if before.is_some() {
                tracing::info!("the run has a producer's job again");
            }
        } else if before.is_some() || has_lines {
            tracing::warn!(
                "Redis has lost the run: it was emptied, or set back to an older state. Every result is on disk, and Redis \
                 is told of it; run the producer again, with the same input, or this run has no end"
            );
        } else {
            tracing::info!("the run has no job yet, waiting for its producer");
        }
    }

    /// The reading was broken off: its producer was killed, or Redis was set back to before the end of the input.
    fn listen(&mut self, progress: &Progress) {
        let reads = progress.scan.is_some_and(|scan| !scan.sealed);
        let Some(until_ms) = progress.read_until_ms.filter(|_| reads) else {
            self.heard = None;
            self.silence_told = false;
            return;
        };
        match self.heard {
            Some((heard, since)) if heard == until_ms => {
                if since.elapsed() >= SILENCE && !std::mem::replace(&mut self.silence_told, true) {
                    tracing::warn!(
                        "the input was not read to its end, and no producer was heard of for {} s; if none runs, run it \
                         again, with the same input, or this run has no end",
                        SILENCE.as_secs()
                    );
                }
            }
            _ => {
                self.heard = Some((until_ms, Instant::now()));
                self.silence_told = false;
            }
        }
    }
}
