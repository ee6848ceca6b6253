use super::*;

fn requests(per_minute: f64) -> Bucket {
    Bucket { name: "requests".to_owned(), call_ms: 60_000.0 / per_minute, burst_ms: 100.0, owed_ms: 0.0 }
}

fn ask(calls: u32, buckets: &[Bucket]) -> Ask<'_> {
    Ask { lane: "one", calls, made: 0, buckets }
}

fn refusal(wait: Duration, made: u32) -> RateRefusal {
    RateRefusal { wait, made, ..RateRefusal::default() }
}

/// Calls that begin within so many milliseconds, where somebody always waits for `waiting` places.
fn begun(pace: &mut Pace, from_ms: f64, for_ms: f64, waiting: u32, buckets: &[Bucket]) -> Vec<f64> {
    let (mut now_ms, mut starts) = (from_ms, Vec::new());
    while now_ms < from_ms + for_ms {
        match pace.permits(now_ms, &ask(waiting, buckets)) {
            Permits::Places { count, first_ms, spacing_ms } => {
                starts.extend((0..count).map(|n| now_ms + (first_ms + f64::from(n) * spacing_ms).max(0.0)));
                now_ms = now_ms.max(starts.last().copied().unwrap_or(0.0));
            }
            Permits::After(wait) => now_ms += wait.as_secs_f64() * 1_000.0,
            Permits::Free => panic!("there is a limit"),
        }
    }
    starts.retain(|start| *start < from_ms + for_ms);
    starts
}

#[test]
fn a_minute_holds_as_many_calls_as_allowed_however_they_are_asked_for() {
    for waiting in [1, 7, 500] {
        let starts = begun(&mut Pace::default(), 0.0, 60_000.0, waiting, &[requests(600.0)]);
        assert!((600..=602).contains(&starts.len()), "{waiting}: {}", starts.len());
    }
}

#[test]
fn what_was_left_unused_is_caught_up_for_a_tenth_of_a_second() {
    let mut pace = Pace::default();
    let buckets = [requests(6_000.0)];
    begun(&mut pace, 0.0, 1_000.0, 100, &buckets);
    let Permits::Places { count, first_ms, .. } = pace.permits(60_000.0, &ask(1_000, &buckets)) else {
        panic!()
    };
    assert_eq!((count, first_ms), (36, -100.0), "100 ms back, 250 ms ahead, 10 ms each");
}

#[test]
fn the_slowest_limit_counts_and_all_are_taken_from() {
    let mut pace = Pace::default();
    let tokens = Bucket { name: "tokens".to_owned(), call_ms: 50.0, ..Bucket::default() };
    let both = [requests(6_000.0), tokens.clone()];
    assert_eq!(begun(&mut pace, 0.0, 10_000.0, 50, &both).len(), 200);
    // A call that takes more of the same limit begins when what the others took has come back.
    let larger = [Bucket { call_ms: 60_000.0, ..tokens }];
    assert!(begun(&mut pace, 10_000.0, 50_000.0, 50, &larger).len() == 1);
}

#[test]
fn what_was_estimated_is_settled() {
    let mut pace = Pace::default();
    let tokens = |owed_ms| [Bucket { name: "tokens".to_owned(), call_ms: 100.0, burst_ms: 0.0, owed_ms }];
    let first = pace.permits(1_000.0, &ask(1, &tokens(0.0)));
    assert_eq!(first, Permits::Places { count: 1, first_ms: 0.0, spacing_ms: 100.0 });
    let less = pace.permits(1_000.0, &ask(1, &tokens(-60.0)));
    assert_eq!(less, Permits::Places { count: 1, first_ms: 40.0, spacing_ms: 100.0 });
    let more = pace.permits(1_000.0, &ask(1, &tokens(1_110.0)));
    assert_eq!(more, Permits::After(Duration::from_secs(1)), "140 + 1110 are 1000 more than is given away");
}

#[test]
fn nothing_limits_but_a_pause() {
    let mut pace = Pace::default();
    assert_eq!(pace.permits(0.0, &ask(5, &[])), Permits::Free);
    pace.refused(10.0, "one", &refusal(Duration::from_secs(2), 0));
    assert_eq!(pace.permits(10.0, &ask(5, &[])), Permits::After(Duration::from_secs(2)));
    let other = Ask { lane: "two", ..ask(5, &[]) };
    assert_eq!(pace.permits(10.0, &other), Permits::Free, "another provider, or another key");
}

/// A provider with a bucket of one second's worth that is filled steadily, and names whole seconds to wait.
struct Provider {
    per_ms: f64,
    left: f64,
    at_ms: f64,
    let_through: u32,
    refused: u32,
}

impl Provider {
    fn of(per_second: f64) -> Self {
        Self {
            per_ms: per_second / 1_000.0,
            left: per_second.max(1.0),
            at_ms: 0.0,
            let_through: 0,
            refused: 0,
        }
    }

    fn takes(&mut self, now_ms: f64) -> bool {
        let full = (self.per_ms * 1_000.0).max(1.0);
        self.left = (self.left + (now_ms - self.at_ms) * self.per_ms).min(full);
        self.at_ms = now_ms;
        let takes = self.left >= 1.0;
        self.left -= f64::from(u8::from(takes));
        self.let_through += u32::from(takes);
        self.refused += u32::from(!takes);
        takes
    }
}

/// One worker that has always something to do, and nobody has told it of a limit.
fn learns(per_second: f64, blast: u32, seconds: f64) -> Provider {
    let (mut pace, mut provider) = (Pace::default(), Provider::of(per_second));
    let wait = Duration::from_secs_f64((1.0 / per_second).ceil());
    assert_eq!(pace.permits(0.0, &ask(1, &[])), Permits::Free);
    let mut now_ms = 1.0;
    for n in 0..blast {
        if !provider.takes(now_ms) {
            pace.refused(now_ms, "one", &refusal(wait, if n + 1 == blast { blast } else { 0 }));
        }
    }
    while now_ms < seconds * 1_000.0 {
        match pace.permits(now_ms, &ask(20, &[])) {
            Permits::Places { count, first_ms, spacing_ms } => {
                for n in 0..count {
                    now_ms = now_ms.max(now_ms + if n == 0 { first_ms } else { spacing_ms });
                    if !provider.takes(now_ms) {
                        pace.refused(now_ms, "one", &refusal(wait, 0));
                        break;
                    }
                }
            }
            Permits::After(wait) => now_ms += wait.as_secs_f64() * 1_000.0,
            Permits::Free => panic!("it was refused"),
        }
    }
    provider
}

#[test]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers")]
fn a_limit_that_nobody_told_is_learned_from_refusals() {
    for per_second in [0.2_f64, 5.0, 50.0, 2_000.0] {
        let seconds = if per_second < 1.0 { 600.0 } else { 60.0 };
        // More than the provider's bucket holds, all at once.
        let blast = (per_second * 2.0).max(20.0) as u32;
        let provider = learns(per_second, blast, seconds);
        let used = f64::from(provider.let_through) / (per_second * seconds);
        let refused = f64::from(provider.refused.saturating_sub(blast)) / f64::from(provider.let_through);
        // Of few calls, a refusal is a large share.
        let bearable = if per_second < 10.0 { 0.15 } else { 0.05 };
        assert!(used > 0.8 && refused < bearable, "{per_second}: {used:.2} used, {refused:.3} refused");
    }
}

/// Forty calls at once, of which two are refused at once and each other one after another time: all were begun before that.
#[test]
fn those_that_come_late_teach_nothing_new() {
    let learned = |late: u64| {
        let mut pace = Pace::default();
        pace.permits(0.0, &ask(1, &[]));
        for n in 0..40_u64 {
            let age = Duration::from_millis(if n < 2 { 0 } else { n * late });
            let made = if n == 0 { 40 } else { 0 };
            let wait = Duration::from_millis(100);
            pace.refused(age.as_secs_f64() * 1_000.0 + 1.0, "one", &RateRefusal { wait, age, made });
        }
        match pace.permits(4_500.0, &ask(1, &[])) {
            Permits::Places { spacing_ms, .. } => spacing_ms,
            other => panic!("{other:?}"),
        }
    };
    let (together, apart) = (learned(2), learned(100));
    assert!(apart < together * 2.0, "{together} {apart}");
}

/// Half an hour in which each call is refused, and no time is named; then the provider is well again.
#[test]
fn a_time_of_nothing_but_refusals_ends_in_no_crawl() {
    let mut pace = Pace::default();
    let (mut now_ms, mut waits, mut begun) = (1.0, 0, 0);
    pace.permits(now_ms, &ask(20, &[]));
    while now_ms < 1_860_000.0 {
        let is_well = now_ms > 1_800_000.0;
        let refused = match pace.permits(now_ms, &ask(20, &[])) {
            Permits::Free => 20,
            Permits::Places { count, first_ms, .. } => {
                now_ms += first_ms.max(0.0);
                count
            }
            Permits::After(wait) => {
                now_ms += in_ms(wait);
                continue;
            }
        };
        if is_well {
            (begun, now_ms) = (begun + refused, now_ms + 100.0);
            continue;
        }
        let wait = Duration::from_millis(500 << waits.min(6));
        waits += 1;
        for _ in 0..refused {
            pace.refused(now_ms, "one", &refusal(wait, 0));
        }
    }
    assert!(begun > 1_000, "{begun} in the minute after it");
}

#[test]
fn a_learned_rate_is_forgotten_in_the_end() {
    let mut pace = Pace::default();
    pace.permits(0.0, &ask(1, &[]));
    for made in [100, 0] {
        pace.refused(10_000.0, "one", &refusal(Duration::from_secs(1), made));
    }
    let mut now_ms = 11_000.0;
    loop {
        match pace.permits(now_ms, &ask(1_000, &[])) {
            Permits::Free => break,
            Permits::Places { .. } => now_ms += 250.0,
            Permits::After(wait) => now_ms += wait.as_secs_f64() * 1_000.0,
        }
    }
    assert!((70_000.0..75_000.0).contains(&now_ms), "{now_ms}");
}

/// A server that refuses a call now and then, whatever the rate: so many calls in five minutes.
#[test]
fn refusals_that_have_nothing_to_do_with_the_rate_do_not_end_in_a_crawl() {
    let (mut pace, mut now_ms, mut calls) = (Pace::default(), 1.0, 0_u32);
    let (mut dice, mut made) = (1_u32, 0);
    while now_ms < 300_000.0 {
        let ask = Ask { made: std::mem::take(&mut made), ..ask(16, &[]) };
        let count = match pace.permits(now_ms, &ask) {
            Permits::Free => {
                made = 16;
                16
            }
            Permits::Places { count, first_ms, spacing_ms } => {
                now_ms += (first_ms + f64::from(count) * spacing_ms).max(0.0);
                count
            }
            Permits::After(wait) => {
                now_ms += wait.as_secs_f64() * 1_000.0;
                continue;
            }
        };
        calls += count;
        let refused = (0..count)
            .filter(|_| {
                dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                dice >> 16 < 65_536 / 25
            })
            .count();
        // All of them were begun when the first refusal comes.
        for _ in 0..refused {
            pace.refused(now_ms, "one", &refusal(Duration::from_secs(1), std::mem::take(&mut made)));
        }
        now_ms += 10.0;
    }
    let per_second = f64::from(calls) / 300.0;
    assert!(per_second > 8.0, "{per_second} a second, of 25 at best");
}
