//! Disks that fill up or cannot be written.
//!
//! Always: told plainly, nothing acknowledged that is not safely written, no product lost or doubled, and where the
//! fault passes without a restart, no call made twice.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::support::{
    catalog::Catalog,
    fleet::{DEADLINE, Fleet, ended},
    process::{Program, Running, shelfmill},
    rabbitmq, redis,
    results::{Results, journal_lines},
    simulator::Simulator,
    wait::eventually,
};

pub(super) const JOURNAL: &str = "enriched_products_incremental.jsonl";
const FULL: &str = "the disk is full, waiting for space";
const SPACE: &str = "there is space on the disk again";

/// A small disk under a catalog's output folder, gone with this.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where the machine does not let us mount; the test then says so and checks nothing.
    fn under(folder: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let disk = Self(folder.to_owned());
        if disk.mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]) {
            return Some(disk);
        }
        eprintln!("skipped: this needs the right to mount (root)");
        None
    }

    fn grow(&self, size: &str) {
        assert!(self.mount(&["-o", &format!("remount,size={size}")]), "the disk can grow");
    }

    /// Takes what is left, up to the last page.
    fn fill(&self) {
        let mut filler = fs::File::create(self.filler()).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_space(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    fn mount(&self, args: &[&str]) -> bool {
        Command::new("mount").args(args).arg(&self.0).status().is_ok_and(|status| status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

pub(super) fn run(catalog: &Catalog, simulator: &Simulator) -> Program {
    let options = ["--base-url", simulator.url(), "--concurrency", "16"];
    shelfmill().arg("run").args(catalog.args()).args(options)
}

pub(super) fn wait_for_lines(catalog: &Catalog, lines: usize) {
    eventually(DEADLINE, "lines in the journal", || match journal_lines(&catalog.out()) {
        found if found >= lines => Ok(()),
        found => Err(found.to_string()),
    });
}

pub(super) fn wait_for(process: &Running, text: &str) {
    eventually(
        DEADLINE,
        text,
        || {
            if process.stderr().contains(text) { Ok(()) } else { Err(process.stderr()) }
        },
    );
}

pub(super) fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

#[test]
fn one_process_waits_for_space_and_keeps_what_it_has_paid_for() {
    let (catalog, simulator) = (Catalog::of(600), Simulator::start(&["--latency", "5ms"]));
    let Some(disk) = SmallDisk::under(&catalog.out(), "128k") else { return };
    let running = run(&catalog, &simulator).start();
    wait_for(&running, FULL);
    // It asks for no more than its channels hold.
    let calls = simulator.calls();
    std::thread::sleep(Duration::from_secs(2));
    let later = simulator.calls();
    assert!(later <= calls + 150, "{calls} calls, and {later} later");
    disk.grow("64m");
    let end = ended(running.wait(DEADLINE));
    assert_eq!((count(&end.stderr, FULL), count(&end.stderr, SPACE)), (1, 1), "{end}");
    Results::read(&catalog.out()).assert_every_product_once(&catalog);
    assert_eq!(simulator.calls(), 600);
}

#[test]
fn one_process_that_is_stopped_while_the_disk_is_full_ends_after_the_grace() {
    let (catalog, simulator) = (Catalog::of(400), Simulator::start(&[]));
    let Some(disk) = SmallDisk::under(&catalog.out(), "128k") else { return };
    let mut running = run(&catalog, &simulator).args(["--grace", "2s"]).start();
    wait_for(&running, FULL);
    running.interrupt();
    let end = running.wait(Duration::from_secs(20)).expect_code(1);
    assert!(end.stderr.contains("nothing was acknowledged that is not on disk"), "{end}");
    assert!(end.stderr.contains("No space left on device"), "{end}");
    disk.grow("64m");
    ended(run(&catalog, &simulator).run(DEADLINE));
    Results::read(&catalog.out()).assert_every_product_once(&catalog);
}

#[test]
fn a_fleet_whose_disk_fills_up_goes_on_when_there_is_space_and_repeats_nothing() {
    let fleet = Fleet::new("disk-full", 800, &["--latency", "5ms"]);
    let Some(disk) = SmallDisk::under(&fleet.catalog.out(), "128k") else { return };
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    wait_for(&aggregator, FULL);
    // The workers go on: their outcomes wait in RabbitMQ, and their answers in Redis.
    eventually(DEADLINE, "all calls", || match fleet.simulator.calls() {
        800 => Ok(()),
        calls => Err(calls.to_string()),
    });
    let lines = journal_lines(&fleet.catalog.out());
    let answers = || redis::shared().cli(&["HLEN", &format!("shelfmill:{{{}}}:answers", fleet.run)]);
    let waiting = eventually(DEADLINE, "every answer that is not on disk to be in Redis", || match answers()
        .parse::<usize>()
        .unwrap()
    {
        left if left + lines >= 800 => Ok(left),
        left => Err(format!("{left} and {lines}")),
    });
    assert!(waiting > 400, "{waiting}");
    disk.grow("64m");
    let end = ended(aggregator.wait(DEADLINE));
    assert_eq!((count(&end.stderr, FULL), count(&end.stderr, SPACE)), (1, 1), "{end}");
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!(fleet.simulator.calls(), 800);
    drop(workers);
}

#[test]
fn an_aggregator_that_is_stopped_while_its_disk_is_full_ends_at_once_and_loses_nothing() {
    let fleet = Fleet::new("disk-stop", 500, &[]);
    let Some(disk) = SmallDisk::under(&fleet.catalog.out(), "128k") else { return };
    let workers = fleet.workers(1);
    let mut aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    wait_for(&aggregator, FULL);
    aggregator.terminate();
    let end = aggregator.wait(Duration::from_secs(20)).expect_code(1);
    assert!(end.stderr.contains("nothing was acknowledged that is not on disk"), "{end}");
    disk.grow("64m");
    ended(fleet.aggregator().run(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!(fleet.simulator.calls(), 500);
    drop(workers);
}

#[test]
fn the_last_files_wait_for_space_too() {
    let (catalog, simulator) = (Catalog::of(300), Simulator::start(&["--latency", "20ms"]));
    let Some(disk) = SmallDisk::under(&catalog.out(), "8m") else { return };
    let running = run(&catalog, &simulator).start();
    wait_for_lines(&catalog, 20);
    // Room for the journal and not for the results beside it.
    let journal = || fs::metadata(catalog.out().join(JOURNAL)).map_or(0, |file| file.len());
    let line_bytes = journal() / journal_lines(&catalog.out()) as u64;
    let rest_bytes = 300 * line_bytes - journal() + 150 * line_bytes;
    let free = Command::new("stat").args(["-f", "-c", "%a %S"]).arg(catalog.out()).output().unwrap();
    let free = String::from_utf8(free.stdout).unwrap();
    let (blocks, size) = free.trim().split_once(' ').unwrap();
    let free_bytes = blocks.parse::<u64>().unwrap() * size.parse::<u64>().unwrap();
    fs::write(disk.filler(), vec![0; (free_bytes - rest_bytes) as usize]).unwrap();
    wait_for(&running, FULL);
    assert_eq!(journal_lines(&catalog.out()), 300);
    assert!(running.stderr().contains("analysis.json"), "{}", running.stderr());
    disk.make_space();
    ended(running.wait(DEADLINE));
    Results::read(&catalog.out()).assert_every_product_once(&catalog);
    assert_eq!(simulator.calls(), 300);
}

#[test]
fn a_disk_that_is_full_from_the_start_is_told_before_any_call() {
    let (catalog, simulator) = (Catalog::of(5), Simulator::start(&[]));
    let Some(disk) = SmallDisk::under(&catalog.out(), "64k") else { return };
    disk.fill();
    let end = run(&catalog, &simulator).run(DEADLINE).expect_code(1);
    assert!(end.stderr.contains("cannot write in ") && end.stderr.contains("No space left"), "{end}");
    assert_eq!(simulator.calls(), 0);
}

#[test]
fn a_folder_that_cannot_be_written_is_told_before_any_call() {
    let (catalog, simulator) = (Catalog::of(5), Simulator::start(&[]));
    let Some(disk) = SmallDisk::under(&catalog.out(), "1m") else { return };
    assert!(disk.mount(&["-o", "remount,ro"]));
    let end = run(&catalog, &simulator).run(DEADLINE).expect_code(1);
    assert!(end.stderr.contains("cannot write in ") && end.stderr.contains("Read-only file system"), "{end}");
    assert_eq!(simulator.calls(), 0);
}

#[test]
fn a_journal_that_can_no_longer_be_written_ends_the_aggregator_and_nothing_is_lost() {
    let fleet = Fleet::new("disk-forbidden", 300, &["--latency", "50ms"]);
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    fleet.wait_for_lines(100);
    // What root may not write either, also through a file that is open.
    let immutable = |how: &str| {
        let journal = fleet.catalog.out().join(JOURNAL);
        Command::new("chattr").arg(how).arg(journal).status().is_ok_and(|status| status.success())
    };
    if !immutable("+i") {
        eprintln!("skipped: files cannot be made immutable here");
        return;
    }
    let end = aggregator.wait(DEADLINE);
    assert!(immutable("-i"));
    let end = end.expect_code(1);
    assert!(end.stderr.contains("nothing was acknowledged that is not on disk"), "{end}");
    assert!(end.stderr.contains("cannot write") && end.stderr.contains("Operation not permitted"), "{end}");
    ended(fleet.aggregator().run(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!(fleet.simulator.calls(), 300);
    drop(workers);
}
