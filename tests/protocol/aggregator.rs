//! The aggregator, as in `aggregator/src/{lib,writer,replay,finalize}.rs`.

use super::{
    ledger::{Ledger, Line, Mark, Standing},
    moves::{Moves, spend},
    program::{FinalStep, WriterStep},
    state::{Aggregator, Few, File, Phase, Then, World},
};

/// Outcomes of a batch at most.
const BATCH: usize = 2;

pub(super) fn moves(world: &World, moves: &mut Moves<'_>) {
    match world.aggregator.phase {
        Phase::Down => start(world, moves),
        Phase::Ended => {
            if !world.outcomes.is_empty() || !world.ledger.is_complete() {
                start(world, moves);
            }
            return;
        }
        Phase::Replaying { known, failures_told, then } => replay(world, known, failures_told, then, moves),
        Phase::Collecting => collect(world, moves),
        Phase::Writing { at } => write(world, at, moves),
        Phase::Finishing { at } => finish(world, at, moves),
    }
    troubles(world, moves);
}

fn start(world: &World, moves: &mut Moves<'_>) {
    let mut to = *world;
    if moves.protocol.opening_syncs {
        to.disk.journal.synced = to.disk.journal.len();
        to.disk.failures.synced = to.disk.failures.len();
    }
    to.aggregator = Aggregator {
        phase: Phase::Replaying { known: None, failures_told: false, then: Then::Collect },
        ..Aggregator::default()
    };
    moves.step("starts and opens its files", None, to);
}

fn troubles(world: &World, moves: &mut Moves<'_>) {
    if world.aggregator.phase == Phase::Down {
        return;
    }
    let mut down = *world;
    if world.aggregator.is_mine {
        down.outcomes.insert_all(world.aggregator.batch.iter());
    }
    down.aggregator = Aggregator::default();
    // Killed while it writes, it leaves any number of the lines; what is torn is cut off on opening.
    let is_appending = matches!(world.aggregator.phase, Phase::Writing { at } if moves.protocol.writer[usize::from(at)] == WriterStep::Append);
    let torn = if is_appending { world.aggregator.fresh.len() } else { 1 };
    for written in 0..torn {
        let mut to = down;
        append(&mut to, world.aggregator.fresh.iter().take(written));
        if spend(&mut to.left.crashes) {
            moves.chance(
                if written > 0 { "is killed in the middle of the lines" } else { "is killed" },
                None,
                to,
            );
        }
    }
    if world.left.power_cuts > 0 {
        for journal in world.disk.journal.synced..=world.disk.journal.len() {
            for failures in world.disk.failures.synced..=world.disk.failures.len() {
                let mut to = down;
                spend(&mut to.left.power_cuts);
                to.disk.journal.lines.truncate(journal.into());
                to.disk.failures.lines.truncate(failures.into());
                moves.chance("loses power, and what was not on disk", None, to);
            }
        }
    }
    let mut to = down;
    to.aggregator = Aggregator { is_mine: false, ..world.aggregator };
    if matches!(world.aggregator.phase, Phase::Writing { .. })
        && world.aggregator.is_mine
        && spend(&mut to.left.disconnects)
    {
        moves.chance("loses its connection, and the batch with it", None, to);
    }
}

fn replaying(then: Then) -> Phase {
    Phase::Replaying { known: None, failures_told: false, then }
}

fn replay(
    world: &World,
    known: Option<Option<Mark>>,
    failures_told: bool,
    then: Then,
    moves: &mut Moves<'_>,
) {
    let mut to = *world;
    let disk = world.disk.mark();
    let Some(known) = known else {
        let mark = world.ledger.mark;
        if mark.is_some_and(|mark| mark.journal > disk.journal) {
            to.past.broken = Some("the ledger knows lines that the journal does not have");
        }
        to.aggregator.phase = Phase::Replaying { known: Some(mark), failures_told: false, then };
        return moves.step("reads the ledger's mark", None, to);
    };
    let from = known.unwrap_or_default();
    let (lines, skip, after) = if failures_told {
        (world.disk.journal.lines, from.journal, disk)
    } else {
        (
            world.disk.failures.lines,
            from.failures.min(disk.failures),
            Mark { failures: disk.failures, ..from },
        )
    };
    let lines: Vec<Line> = lines.iter().skip(skip.into()).collect();
    let is_last = failures_told && lines.is_empty();
    if lines.is_empty() && !is_last {
        to.aggregator.phase = Phase::Replaying { known: Some(known), failures_told: true, then };
        return moves.step("has no failures to tell", None, to);
    }
    if !to.ledger.record(&lines, known, after, moves.protocol.ledger) {
        to.aggregator.phase = replaying(then);
        return moves.step("finds the ledger changed, and tells it again", None, to);
    }
    let done = to;
    to.aggregator.phase = Phase::Replaying { known: Some(Some(after)), failures_told: true, then };
    if is_last {
        to.aggregator.told = Some(after);
        to.aggregator.phase = match then {
            Then::Collect => Phase::Collecting,
            Then::Write { at } => return proceed(to, at, "told the ledger what is on disk", moves),
        };
    }
    moves.step("told the ledger what is on disk", None, to);
    lost_reply(done, moves);
}

fn lost_reply(mut to: World, moves: &mut Moves<'_>) {
    if spend(&mut to.left.lost_replies) {
        moves.chance("does not hear that this was done, and asks again", None, to);
    }
}

fn collect(world: &World, moves: &mut Moves<'_>) {
    let mut last = None;
    for (at, line) in world.outcomes.iter().enumerate() {
        if world.aggregator.batch.len() >= BATCH || last.replace(line) == Some(line) {
            continue;
        }
        let mut to = *world;
        to.outcomes.remove(at);
        to.aggregator.batch.insert(line);
        to.aggregator.is_mine = true;
        moves.step("takes the outcome", Some(line.product), to);
    }
    let mut to = *world;
    if !world.aggregator.batch.is_empty() {
        return proceed(to, 0, "begins to write its batch", moves);
    }
    if moves.protocol.idle_compares_mark && world.ledger.mark != world.aggregator.told {
        to.aggregator.phase = replaying(Then::Collect);
        return moves.step("finds that the ledger has forgotten something", None, to);
    }
    if world.ledger.is_complete() && world.outcomes.is_empty() {
        to.aggregator.phase = Phase::Finishing { at: 0 };
        to.aggregator.completing = true;
        return moves.step("finds the run complete", None, to);
    }
    if spend(&mut to.left.stops) {
        to.aggregator.phase = Phase::Finishing { at: 0 };
        moves.chance("is stopped", None, to);
    }
}

/// On to a step of the writer; past the last one, to the next batch.
fn proceed(mut to: World, at: u8, what: &'static str, moves: &mut Moves<'_>) {
    to.aggregator.phase = Phase::Writing { at };
    if usize::from(at) >= moves.protocol.writer.len() {
        let told = to.aggregator.told;
        to.aggregator = Aggregator { phase: Phase::Collecting, told, ..Aggregator::default() };
    }
    moves.step(what, None, to);
}

fn write(world: &World, at: u8, moves: &mut Moves<'_>) {
    let mut to = *world;
    let Aggregator { fresh, told, .. } = world.aggregator;
    match moves.protocol.writer[usize::from(at)] {
        WriterStep::Ask => {
            if moves.protocol.asking_compares_mark && world.ledger.mark != told {
                to.aggregator.phase = replaying(Then::Write { at });
                return moves.step("finds that the ledger has forgotten something", None, to);
            }
            to.aggregator.fresh =
                fresh_of(&world.aggregator.batch, &world.ledger, moves.protocol.asking_drops_done);
            proceed(to, at + 1, "asks what of it is written", moves);
        }
        WriterStep::Append => {
            to.past.broken = fresh.iter().find_map(|line| miscounted(world, line, moves)).or(to.past.broken);
            append(&mut to, fresh.iter());
            proceed(to, at + 1, "appended", moves);
        }
        WriterStep::Sync => {
            to.disk.journal.synced = to.disk.journal.len();
            to.disk.failures.synced = to.disk.failures.len();
            proceed(to, at + 1, "synced", moves);
        }
        WriterStep::Record if fresh.is_empty() => proceed(to, at + 1, "has nothing to record", moves),
        WriterStep::Record => {
            let after = world.disk.mark();
            let lines: Vec<Line> = fresh.iter().collect();
            if to.ledger.record(&lines, told, after, moves.protocol.ledger) {
                lost_reply(to, moves);
                to.aggregator.told = Some(after);
                proceed(to, at + 1, "recorded", moves);
            } else {
                to.aggregator.phase = replaying(Then::Write { at: at + 1 });
                moves.step("is refused the record: the ledger has forgotten something", None, to);
            }
        }
        WriterStep::Ack => {
            to.aggregator.is_mine = false;
            proceed(to, at + 1, "acked", moves);
        }
    }
}

/// A line tells of every call that was made, and of none that was not noted in a claim, whatever died, stalled or lost its
/// delivery. A ledger that was emptied or set back hides calls from whoever writes the line; and a result that comes after
/// a failure was recorded tells its own calls, for with the failure the ledger forgot the others (they were told with it).
fn miscounted(world: &World, line: Line, moves: &Moves<'_>) -> Option<&'static str> {
    let (at, told) = (usize::from(line.product), line.spent.total());
    let follows_failure = world.ledger.standing(line.product) == Standing::Failed;
    if moves.has_forgotten(world) || (follows_failure && !moves.protocol.counts_are_exact_after_failures) {
        None
    } else if told < world.past.calls[at] {
        Some("a line tells of fewer calls than were made")
    } else if told > world.past.noted[at] {
        Some("a line tells of more calls than were made or noted")
    } else {
        None
    }
}

/// The failures first, as in `Writer::write`.
fn append(to: &mut World, lines: impl Iterator<Item = Line> + Clone) {
    lines.clone().filter(|line| line.class.is_some()).for_each(|line| to.disk.failures.lines.push(line));
    lines.filter(|line| line.class.is_none()).for_each(|line| to.disk.journal.lines.push(line));
}

/// `writer::fresh`: results first, one line of each product, and none of what is done.
fn fresh_of(batch: &Few<Line>, ledger: &Ledger, drops_done: bool) -> Few<Line> {
    let mut fresh = Few::<Line>::default();
    let (results, failures) =
        (batch.iter().filter(|line| line.class.is_none()), batch.iter().filter(|line| line.class.is_some()));
    for line in results.chain(failures) {
        let is_fresh = match ledger.standing(line.product) {
            Standing::Open => true,
            Standing::Failed => line.class.is_none(),
            Standing::Completed => false,
        };
        if !drops_done || (is_fresh && fresh.iter().all(|taken| taken.product != line.product)) {
            fresh.push(line);
        }
    }
    fresh
}

fn finish(world: &World, at: u8, moves: &mut Moves<'_>) {
    let mut to = *world;
    let Aggregator { told, stale, completing, .. } = world.aggregator;
    to.aggregator.phase = Phase::Finishing { at: at + 1 };
    let what = match moves.protocol.finish[usize::from(at)] {
        FinalStep::Stale if moves.protocol.finishing_compares_mark && world.ledger.mark != told => {
            "keeps every failure, for the ledger has forgotten something"
        }
        FinalStep::Stale => {
            for product in world.products() {
                to.aggregator.stale[usize::from(product)] =
                    world.ledger.standing(product) != Standing::Failed;
            }
            "asks which failures still are"
        }
        FinalStep::Failures => {
            let mut kept = File::default();
            let lines: Vec<Line> = world.disk.failures.lines.iter().collect();
            for (number, line) in lines.iter().enumerate() {
                let comes_again = lines[number + 1..].iter().any(|later| later.product == line.product);
                if !stale[usize::from(line.product)] && !comes_again {
                    kept.lines.push(*line);
                }
            }
            kept.synced = kept.len();
            to.disk.failures = kept;
            "keeps the failures that still are"
        }
        FinalStep::Results => {
            to.disk.results |= completing;
            "renamed the last files"
        }
        FinalStep::Tell => {
            to.ledger.record(&[], told, world.disk.mark(), moves.protocol.ledger);
            "tells the mark, and ends"
        }
    };
    if matches!(to.aggregator.phase, Phase::Finishing { at } if usize::from(at) >= moves.protocol.finish.len())
    {
        let phase = if completing { Phase::Ended } else { Phase::Down };
        to.aggregator = Aggregator { phase, ..Aggregator::default() };
    }
    moves.step(what, None, to);
}
