//! How fast it goes, of late.

use std::{collections::VecDeque, path::Path, time::Instant};

use jiff::Timestamp;
use serde::Deserialize;

/// What counts as "of late".
const WINDOW_SECONDS: f64 = 10.0;
/// Samples kept: a tenth of a second each is fine enough.
const SAMPLES: usize = 100;

/// Products per second over the last ten seconds.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    started: Option<Instant>,
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    pub(crate) fn add(&mut self, products: u64) {
        let now = Instant::now();
        self.started.get_or_insert(now);
        match self.samples.back_mut() {
            Some((at, count)) if now.duration_since(*at).as_secs_f64() < WINDOW_SECONDS / SAMPLES as f64 => {
                *count += products;
            }
            _ => self.samples.push_back((now, products)),
        }
        while self
            .samples
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at).as_secs_f64() > WINDOW_SECONDS)
        {
            self.samples.pop_front();
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53 products")]
    pub(crate) fn per_second(&self) -> f64 {
        let Some(started) = self.started else { return 0.0 };
        let span = started.elapsed().as_secs_f64().clamp(0.1, WINDOW_SECONDS);
        let recent = self.samples.iter().filter(|(at, _)| at.elapsed().as_secs_f64() <= WINDOW_SECONDS);
        recent.map(|(_, count)| count).sum::<u64>() as f64 / span
    }
}

/// Products per second at the end of a journal, for those who only look; `None` where it does not tell.
#[must_use]
pub fn recent_rate(journal: &Path) -> Option<f64> {
    const TAIL_BYTES: u64 = 256 * 1024;
    #[derive(Deserialize)]
    struct Dated {
        meta: Meta,
    }
    #[derive(Deserialize)]
    struct Meta {
        completed_at: Timestamp,
    }
    let from_bytes = std::fs::metadata(journal).ok()?.len().saturating_sub(TAIL_BYTES);
    let mut times = Vec::new();
    crate::line_file::read_lines::<std::io::Error>(journal, from_bytes, |_, _, line| {
        // The first line of the tail is cut off, and does not parse.
        times.extend(serde_json::from_str::<Dated>(line).ok().map(|line| line.meta.completed_at));
        Ok(())
    })
    .ok()?;
    let (first, last) = (times.iter().min()?, times.iter().max()?);
    let seconds = last.duration_since(*first).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a few hundred lines")]
    (seconds > 0.0).then(|| (times.len() - 1) as f64 / seconds)
}
