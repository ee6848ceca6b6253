//! What the journal holds: the place of each line, and what they add up to.
//!
//! A long journal is read by several threads, each its part: when it is, the run is over, and nobody else needs the cores.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Seek, SeekFrom},
    ops::Range,
    path::Path,
    thread,
};

use anyhow::Context as _;

use crate::{
    folder::Folder,
    line_file::{damaged, read_lines_within},
    order::{Place, Sorter},
    summary::{Counted, Tally},
};

/// A thread is worth its start for a part of this size.
const LEAST_PART_BYTES: u64 = 8 * 1024 * 1024;
/// A disk serves no more readers any faster.
const MOST_PARTS: usize = 8;

/// Counts the journal's lines and sorts their places.
pub(crate) fn index<'f>(folder: &'f Folder, tally: &mut Tally) -> anyhow::Result<Sorter<'f>> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_PARTS);
    index_by(folder, tally, threads, LEAST_PART_BYTES)
}

fn index_by<'f>(
    folder: &'f Folder,
    tally: &mut Tally,
    threads: usize,
    least_part_bytes: u64,
) -> anyhow::Result<Sorter<'f>> {
    let path = folder.journal();
    let parts = parts(&path, threads, least_part_bytes)?;
    let part_of =
        |part: &Range<u64>| index_part(Sorter::of_part(folder.path(), parts.len()), &path, part.clone());
    let indexed: Vec<_> = thread::scope(|scope| {
        let readers: Vec<_> = parts.iter().map(|part| scope.spawn(move || part_of(part))).collect();
        readers.into_iter().map(|reader| reader.join().ok()?.ok()).collect()
    });
    let indexed = match indexed.into_iter().collect::<Option<Vec<_>>>() {
        Some(indexed) => indexed,
        // What is wrong is told with its line, which only one who has read all lines before it can number.
        None => vec![index_part(Sorter::new(folder.path()), &path, 0..u64::MAX)?],
    };
    let mut sorter = Sorter::new(folder.path());
    for (counted, places) in indexed {
        tally.merge(&counted).context("counting latencies")?;
        sorter.merge(places)?;
    }
    Ok(sorter)
}

fn index_part<'f>(
    mut sorter: Sorter<'f>,
    path: &Path,
    part: Range<u64>,
) -> anyhow::Result<(Tally, Sorter<'f>)> {
    let mut tally = Tally::new();
    read_lines_within::<anyhow::Error>(path, part, |at_bytes, number, line| {
        let result = counted(path, number, line)?;
        tally.add(&result);
        Ok(sorter.push(Place { seq: result.seq, at_bytes, size_bytes: line.len() as u64 })?)
    })?;
    Ok((tally, sorter))
}

/// Parts of about the same size, each of which begins where a line does.
fn parts(path: &Path, most: usize, least_bytes: u64) -> io::Result<Vec<Range<u64>>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => BufReader::new(opened?),
    };
    let size_bytes = file.get_ref().metadata()?.len();
    let count = (size_bytes / least_bytes).clamp(1, most as u64);
    let mut begins = vec![0];
    for number in 1..count {
        // The line that has this byte ends the part before.
        let within = size_bytes * number / count - 1;
        file.seek(SeekFrom::Start(within))?;
        begins.push(within + file.skip_until(b'\n')? as u64);
    }
    begins.dedup();
    let ends = begins[1..].iter().copied().chain([u64::MAX]);
    Ok(begins.iter().copied().zip(ends).map(|(begin, end)| begin..end).collect())
}

/// A line, as far as it is counted.
pub(crate) fn counted<'l>(path: &Path, number: u64, line: &'l str) -> anyhow::Result<Counted<'l>> {
    serde_json::from_str(line).map_err(|error| anyhow::anyhow!(damaged(path, number, error)))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn journal(folder: &Folder, lines: u64) {
        let text = (0..lines).fold(String::new(), |mut text, n| {
            let (seq, long) = (n * 7919 % lines, "x".repeat((n % 50) as usize * 10));
            let meta = format!(
                r#"{{"model":"m{}","prompt_tokens":{n},"completion_tokens":1,"cost_usd":0.5,"latency_ms":{n},"attempts":1}}"#,
                n % 3
            );
            writeln!(text, r#"{{"id":"{n}","seq":{seq},"product":"{long}","meta":{meta}}}"#).unwrap();
            text
        });
        std::fs::write(folder.journal(), text).unwrap();
    }

    fn told(folder: &Folder, threads: usize) -> (Vec<(u64, u64)>, String) {
        let mut tally = Tally::new();
        let mut merged = index_by(folder, &mut tally, threads, 1).unwrap().finish().unwrap();
        let mut places = Vec::new();
        while let Some(place) = merged.next().unwrap() {
            places.push((place.seq, place.at_bytes));
        }
        (places, format!("{tally:?}"))
    }

    #[test]
    fn several_threads_find_what_one_finds() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::open(directory.path(), "spring").unwrap();
        for lines in [0, 1, 2, 500] {
            journal(&folder, lines);
            let alone = told(&folder, 1);
            assert_eq!(alone.0.len() as u64, lines);
            for threads in [2, 3, 8] {
                assert!(told(&folder, threads) == alone, "{threads} threads over {lines} lines");
            }
        }
    }

    #[test]
    fn damage_is_told_with_its_line_whoever_finds_it() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::open(directory.path(), "spring").unwrap();
        journal(&folder, 500);
        let text =
            std::fs::read_to_string(folder.journal()).unwrap().replace(r#"{"id":"399""#, r#"{"id"::"399""#);
        std::fs::write(folder.journal(), text).unwrap();
        let told = index_by(&folder, &mut Tally::new(), 4, 1).map(drop).unwrap_err().to_string();
        assert!(told.contains("line 400: damaged"), "{told}");
    }
}
