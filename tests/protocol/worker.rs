//! A worker at one product, as in `worker/src/product.rs`.

use super::{
    ledger::{Claim, Kept, Line},
    moves::{Moves, spend},
    program::{Protocol, WorkerStep},
    state::{Desk, Path, Task, Worker, World},
};

/// The classes of failures, as numbers.
const FAILED: u8 = 0;
const POISONED: u8 = 1;

fn program(protocol: &Protocol, path: Path) -> &[WorkerStep] {
    match path {
        Path::Asked => &protocol.asked,
        Path::Analysed => &protocol.analysed,
        Path::Unbegun => &protocol.unbegun,
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
        let path = if desk.calls == 0 { Path::Unbegun } else { Path::Later };
        to.workers[number] = Worker::At(Desk { path, at: 0, ..desk });
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
            Worker::At(Desk { path, at: 0, task, delivery, calls: 0, line: None, is_late: false });
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
    // Renewed from the claim until the answer is kept, or the task that counts the calls is safe.
    let is_renewed = match desk.path {
        Path::Asked => desk.at > 0,
        Path::Analysed | Path::Later => desk.at == 0,
        _ => false,
    };
    let mut to = *world;
    to.ledger.renew(desk.task.product, number as u8);
    if is_renewed && to != *world {
        moves.step("renews its claim", product, to);
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
            Claim::Granted(lost) => {
                next.task.repeated += lost.calls;
                if has_durable_answer(world, product) && !moves.has_forgotten(world) {
                    to.past.broken = Some("a product whose answer is safe is asked for again");
                }
                if lost.claims >= moves.protocol.poisoned_after {
                    let Task { calls, repeated, .. } = next.task;
                    let line = Line { product, class: Some(POISONED), calls, repeated };
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
            if to.ledger.begin_call(product, token, desk.calls + 1) {
                "is about to call"
            } else {
                next = Desk { path: Path::Busy, at: 0, ..desk };
                "finds its claim lost before the call"
            }
        }
        WorkerStep::Keep => {
            match desk.line.map(|line| to.ledger.put_answer(product, token, line, desk.is_late, rules)) {
                Some(Kept::Late { calls }) => {
                    let more = calls.saturating_sub(desk.calls);
                    let line = desk.line.map(|line| Line { repeated: line.repeated + more, ..line });
                    next = Desk { line, is_late: true, ..desk };
                    "finds another at it, and adds the other's calls"
                }
                _ => "kept the answer",
            }
        }
        WorkerStep::Send => "sends the outcome",
        WorkerStep::Tell => {
            to.outcomes.insert_all(desk.line);
            "told the outcome"
        }
        WorkerStep::Release => {
            to.ledger.release(product, token);
            "released its claim"
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

/// Whether an answer is where no crash of a worker takes it away.
fn has_durable_answer(world: &World, product: u8) -> bool {
    world.ledger.answers[usize::from(product)].is_some()
        || world.outcomes.iter().chain(world.aggregator.batch.iter()).any(|line| line.product == product)
        || world.disk.journal.of(product) + world.disk.failures.of(product) > 0
}

/// The call and its ends.
fn call(world: &World, number: usize, desk: Desk, moves: &mut Moves<'_>) {
    let Task { product, calls, repeated } = desk.task;
    let mut called = *world;
    called.past.calls[usize::from(product)] += 1;
    let task = Task { product, calls: calls + 1, repeated };
    let desk = Desk { task, calls: desk.calls + 1, ..desk };
    let analysed = |class| {
        let line = Some(Line { product, class, calls: task.calls, repeated });
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
