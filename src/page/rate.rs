//! How fast a run went, over its whole time, in a bounded number of points.

use std::time::Duration;

use tokio::time::Instant;

/// When there are so many points, each two become one.
const MOST_POINTS: usize = 240;
const FIRST_STEP: Duration = Duration::from_secs(1);

/// Products per second, in steps that double with the length of the run.
#[derive(Debug)]
pub(super) struct RateCurve {
    started: Instant,
    step: Duration,
    /// When the last point was made, and how much was done then; `None` before anything is known.
    last: Option<(Instant, u64)>,
    /// When anything was known first, and how much was done then.
    first: Option<(Instant, u64)>,
    points: Vec<(f64, f64)>,
}

impl Default for RateCurve {
    fn default() -> Self {
        Self { started: Instant::now(), step: FIRST_STEP, last: None, first: None, points: Vec::new() }
    }
}

impl RateCurve {
    /// So many products are done now.
    pub(super) fn add(&mut self, done: u64) {
        self.add_at(Instant::now(), done);
    }

    fn add_at(&mut self, now: Instant, done: u64) {
        let Some((at, before)) = self.last else {
            self.last = Some((now, done));
            self.first = self.last;
            return;
        };
        let took = now - at;
        if took < self.step {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "of a few seconds")]
        let rate = done.saturating_sub(before) as f64 / took.as_secs_f64();
        self.points.push((round((now - self.started).as_secs_f64()), round(rate)));
        self.last = Some((now, done));
        if self.points.len() >= MOST_POINTS {
            self.step *= 2;
            let (pairs, _) = self.points.as_chunks::<2>();
            self.points = pairs
                .iter()
                .map(|[(_, one), (at, other)]| (*at, round(f64::midpoint(*one, *other))))
                .collect();
        }
    }

    /// Seconds since the start, and products per second then.
    pub(super) fn points(&self) -> &[(f64, f64)] {
        &self.points
    }

    /// The rate of the whole time.
    pub(super) fn overall(&self) -> f64 {
        let Some(((from, before), (to, done))) = self.first.zip(self.last) else { return 0.0 };
        let took = (to - from).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let done = done.saturating_sub(before) as f64;
        if took > 0.0 { round(done / took) } else { 0.0 }
    }

    /// The rate at the end.
    pub(super) fn latest(&self) -> f64 {
        self.points.last().map_or(0.0, |(_, rate)| *rate)
    }
}

fn round(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_has_no_more_points_than_a_short_one_and_the_same_rate() {
        let mut curve = RateCurve::default();
        for second in 0..100_000_u64 {
            curve.add_at(curve.started + Duration::from_secs(second), second * 7);
        }
        let points = curve.points();
        assert!((MOST_POINTS / 2 - 1..MOST_POINTS).contains(&points.len()), "{}", points.len());
        assert!(points.iter().all(|(_, rate)| (rate - 7.0).abs() < 0.01), "{points:?}");
        assert!(points.last().unwrap().0 > 99_000.0);
        assert!((curve.latest() - 7.0).abs() < 0.01);
    }
}
