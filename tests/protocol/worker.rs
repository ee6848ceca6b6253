//! A worker at one product, as in `worker/src/product.rs`.

use super::{
    ledger::{Claim, Kept, Line, Spent},
    moves::{Moves, spend},
    program::{Protocol, WorkerStep},
    state::{Desk, Path, Task, Worker, World},
};

/// The classes of failures, as numbers.
const FAILED: u8 = 0;
const POISONED: u8 = 1;

const ASKED_AGAIN: &str = "a product whose answer is safe is asked for again";

fn program(protocol: &Protocol, path: Path) -> &[WorkerStep] {
    match path {
        Path::Asked => &protocol.asked,
        Path::Analysed => &protocol.analysed,
        Path::Later => &protocol.later,
        Path::Known => &protocol.known,
        Path::Busy => &protocol.busy,
        Path::Done => &protocol.done,
    }
}

pub(super) fn moves(world: &World, number: usize, moves: &mut Moves<'_>) {
    let Worker::At(desk) = world.workers[number] else {
        return take_task(world, number, moves);
    };
    let product = desk.task.product;
    troubles(world, number, desk, moves);
    let step = program(moves.protocol, desk.path)[usize::from(desk.at)];
    if step == WorkerStep::Call {
        return call(world, number, desk, moves);
    }
    let mut to = *world;
    if step == WorkerStep::Begin && spend(&mut to.left.stops) {
        to.workers[number] = Worker::At(Desk { path: Path::Later, at: 0, ..desk });
        moves.chance("is stopped before it calls", Some(product), to);
    }
    let (what, done, next) = take(world, number, desk, step, moves);
    let mut to = done;
    to.workers[number] = Worker::At(next);
    if usize::from(next.at) >= program(moves.protocol, next.path).len() {
        to.retire_worker(number);
    }
    moves.step(what, Some(product), to);
    let mut to = done;
    if !matches!(step, WorkerStep::Ack | WorkerStep::Send) && spend(&mut to.left.lost_replies) {
        moves.chance("does not hear that this was done, and asks again", Some(product), to);
    }
}

fn take_task(world: &World, number: usize, moves: &mut Moves<'_>) {
    let mut last = None;
    for (at, task) in world.tasks.iter().enumerate() {
        if last.replace(task) == Some(task) {
            continue;
        }
        let mut to = *world;
        to.tasks.remove(at);
        let (path, delivery) = (Path::Asked, Some(task));
        to.workers[number] =
            Worker::At(Desk { path, at: 0, task, delivery, known: task.spent, line: None, late: None });
        moves.step("takes the task", Some(task.product), to);
    }
}

fn troubles(world: &World, number: usize, desk: Desk, moves: &mut Moves<'_>) {
    let product = Some(desk.task.product);
    let mut to = *world;
    if spend(&mut to.left.crashes) {
        to.tasks.insert_all(desk.delivery);
        to.retire_worker(number);
        moves.chance("is killed", product, to);
    }
    let mut to = *world;
    if desk.delivery.is_some() && spend(&mut to.left.disconnects) {
        to.tasks.insert_all(desk.delivery);
        to.workers[number] = Worker::At(Desk { delivery: None, ..desk });
        moves.chance("loses its connection, and the delivery with it", product, to);
    }
    let mut to = *world;
    if holds_claim(desk, moves.protocol) && spend(&mut to.left.stops) {
        to.ledger.abandon(desk.task.product, number as u8, moves.protocol.ledger);
        to.tasks.insert_all(desk.delivery);
        to.retire_worker(number);
        moves.chance("ends with its grace, and abandons its claim", product, to);
    }
    let mut to = *world;
    to.ledger.renew(desk.task.product, number as u8);
    if holds_claim(desk, moves.protocol) && to != *world {
        moves.step("renews its claim", product, to);
    }
}

/// From the claim until the answer is kept, or what was spent: so long it is renewed, and abandoned at the end.
fn holds_claim(desk: Desk, protocol: &Protocol) -> bool {
    let to_do = &program(protocol, desk.path)[usize::from(desk.at)..];
    match desk.path {
        Path::Asked => desk.at > 0,
        _ => to_do.iter().any(|step| matches!(step, WorkerStep::Keep | WorkerStep::Release)),
    }
}

/// What the step leaves in the world, and where the worker is after it.
fn take(
    world: &World,
    number: usize,
    desk: Desk,
    step: WorkerStep,
    moves: &Moves<'_>,
) -> (&'static str, World, Desk) {
    let mut to = *world;
    let mut next = Desk { at: desk.at + 1, ..desk };
    let (product, token, rules) = (desk.task.product, number as u8, moves.protocol.ledger);
    let what = match step {
        WorkerStep::Claim => match to.ledger.claim(product, token, rules) {
            Claim::Done => {
                next = Desk { path: Path::Done, at: 0, ..desk };
                "claimed: it is done"
            }
            Claim::Answered(line) => {
                next = Desk { path: Path::Known, at: 0, line: Some(line), ..desk };
                "claimed: it is answered"
            }
            Claim::Busy => {
                next = Desk { path: Path::Busy, at: 0, ..desk };
                "claimed: somebody else is at it"
            }
            Claim::Granted(lost, spent) => {
                next.known = desk.task.spent.or_more(spent);
                next.task.spent = Spent { repeated: next.known.repeated + lost.calls, ..next.known };
                if has_durable_answer(world, product) && !moves.has_forgotten(world) {
                    to.past.broken = Some(ASKED_AGAIN);
                }
                if lost.claims >= moves.protocol.poisoned_after {
                    let line = Line { product, class: Some(POISONED), spent: next.task.spent };
                    next = Desk { path: Path::Analysed, at: 0, line: Some(line), ..next };
                    "claimed: given up as poisoned"
                } else if lost.claims > 0 {
                    "claimed: granted, an earlier claim ran out"
                } else {
                    "claimed: granted"
                }
            }
        },
        WorkerStep::Begin => {
            if to.ledger.begin_call(product, token, desk.calls() + 1, rules) {
                // Asked for again after a lost reply, it is noted once.
                let is_new = !rules.calls_need_the_claim || to.ledger != world.ledger;
                to.past.noted[usize::from(product)] += u8::from(is_new);
                if has_durable_answer(world, product) && !moves.has_forgotten(world) {
                    to.past.broken = Some(ASKED_AGAIN);
                }
                "is about to call"
            } else {
                next = Desk { path: Path::Busy, at: 0, ..put_off(desk, moves.protocol) };
                "finds its claim lost before the call"
            }
        }
        WorkerStep::Keep => {
            match desk.line.map(|line| to.ledger.put_answer(product, token, line, desk.late, rules)) {
                Some(Kept::Late { calls, spent }) => {
                    let more = others_calls(desk, calls, spent, moves.protocol);
                    let line = desk.line.map(|line| {
                        let told = desk.task.spent;
                        Line { spent: Spent { repeated: told.repeated + more, ..told }, ..line }
                    });
                    next = Desk { line, late: Some(spent.total() + calls), ..desk };
                    "finds its claim gone, and adds the calls of others"
                }
                Some(Kept::Earlier(failure))
                    if failure.class.is_some() && desk.line.is_some_and(|line| line.class.is_none()) =>
                {
                    let all = failure.spent.total();
                    let line = desk.line.map(|line| {
                        let told = desk.task.spent;
                        let repeated = told.repeated + all.saturating_sub(told.total());
                        Line { spent: Spent { repeated, ..told }, ..line }
                    });
                    next = Desk { line, late: Some(all), ..desk };
                    "finds an earlier failure, and adds its calls"
                }
                Some(Kept::Earlier(line)) => {
                    next.line = Some(line);
                    "finds an earlier answer, which it tells"
                }
                Some(Kept::Done) => {
                    next = Desk { path: Path::Done, at: 0, ..desk };
                    "finds the product done"
                }
                Some(Kept::Yes) | None => "kept the answer",
            }
        }
        WorkerStep::Send => "sends the outcome",
        WorkerStep::Tell => {
            to.outcomes.insert_all(desk.line);
            "told the outcome"
        }
        WorkerStep::Release => {
            if to.ledger.release(product, token, desk.task.spent, rules) {
                "released its claim"
            } else {
                next = put_off(next, moves.protocol);
                "has no claim left to release"
            }
        }
        WorkerStep::Delay => {
            to.delayed.insert(desk.task);
            "delayed the task"
        }
        WorkerStep::Ack => {
            next.delivery = None;
            if desk.delivery.is_some() { "acked the task" } else { "acks in vain: the delivery is lost" }
        }
        WorkerStep::Call => unreachable!("has several ends"),
    };
    (what, to, next)
}

/// The calls of a claim that is another's by now are among those that the ledger counts as lost: the task goes as it came.
fn put_off(desk: Desk, protocol: &Protocol) -> Desk {
    let spent = if protocol.lost_claims_keep_calls { desk.task.spent } else { desk.known };
    Desk { task: Task { spent, ..desk.task }, ..desk }
}

/// `Desk::keep`: what a late answer's line does not tell yet.
fn others_calls(desk: Desk, calls: u8, spent: Spent, protocol: &Protocol) -> u8 {
    if protocol.late_answers_tell_losses_twice {
        let repeated = desk.task.spent.repeated;
        let others = spent.calls.saturating_sub(desk.known.calls) + spent.repeated.saturating_sub(repeated);
        return (others + calls).saturating_sub(desk.calls());
    }
    (desk.known.or_more(spent).total() + calls).saturating_sub(desk.task.spent.total())
}

/// Whether an answer is where no crash of a worker takes it away.
fn has_durable_answer(world: &World, product: u8) -> bool {
    world.ledger.answers[usize::from(product)].is_some()
        || world.outcomes.iter().chain(world.aggregator.batch.iter()).any(|line| line.product == product)
        || world.disk.journal.of(product) + world.disk.failures.of(product) > 0
}

/// The call and its ends.
fn call(world: &World, number: usize, desk: Desk, moves: &mut Moves<'_>) {
    let Task { product, spent } = desk.task;
    let mut called = *world;
    called.past.calls[usize::from(product)] += 1;
    let task = Task { product, spent: Spent { calls: spent.calls + 1, ..spent } };
    let desk = Desk { task, ..desk };
    let analysed = |class| {
        let line = Some(Line { product, class, spent: task.spent });
        Worker::At(Desk { path: Path::Analysed, at: 0, line, ..desk })
    };
    let mut to = called;
    to.workers[number] = analysed(None);
    moves.step("called and was answered", Some(product), to);
    let mut to = called;
    if spend(&mut to.left.failures) {
        to.workers[number] = analysed(Some(FAILED));
        moves.chance("called and failed for good", Some(product), to);
    }
    let mut to = called;
    if spend(&mut to.left.retries) {
        to.workers[number] = Worker::At(Desk { path: Path::Later, at: 0, ..desk });
        moves.chance("called and is to try again later", Some(product), to);
        let at = moves.protocol.asked.iter().position(|step| *step == WorkerStep::Begin).unwrap_or_default();
        to.workers[number] = Worker::At(Desk { at: at as u8, ..desk });
        moves.chance("called and tries again in place", Some(product), to);
    }
}
