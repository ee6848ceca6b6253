//! The lines of a file in the order of their `seq`, with memory that does not follow the file's size.
//!
//! What is sorted is an index (where each line is), in chunks that are spilled to temporary files and merged;
//! the lines are then read where they lie. A journal is nearly in order already (products overtake each other by
//! no more than the workers' concurrency), so those reads run through the file and hit a small window.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    ops::RangeInclusive,
    os::unix::fs::FileExt,
    path::Path,
};

/// Entries sorted in memory at a time, at first: 768 KiB.
const CHUNK_ENTRIES: usize = 32 * 1024;
/// Temporary files of one size; the next ones have twice as much, so that their number stays below a process' limit
/// of open files: 640 of them hold an index of 130 million lines, with 12 MiB in memory.
const FILES_OF_A_SIZE: usize = 128;
const ENTRY_BYTES: usize = 24;

/// Where a line is: ordered by `seq`, and lines of the same `seq` as they were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) seq: u64,
    pub(crate) at_bytes: u64,
    pub(crate) size_bytes: u64,
}

impl Place {
    fn encode(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        for (field, value) in
            bytes.as_chunks_mut::<8>().0.iter_mut().zip([self.seq, self.at_bytes, self.size_bytes])
        {
            *field = value.to_le_bytes();
        }
        bytes
    }

    fn decode(bytes: [u8; ENTRY_BYTES]) -> Self {
        let [seq, at_bytes, size_bytes] =
            [0, 1, 2].map(|field| u64::from_le_bytes(bytes.as_chunks::<8>().0[field]));
        Self { seq, at_bytes, size_bytes }
    }
}

/// An index under construction.
pub(crate) struct Sorter<'f> {
    folder: &'f Path,
    chunk: Vec<Place>,
    chunk_entries: usize,
    files_of_a_size: usize,
    spilled: Vec<File>,
}

impl<'f> Sorter<'f> {
    /// Spills into temporary files of this folder.
    pub(crate) fn new(folder: &'f Path) -> Self {
        Self::of_part(folder, 1)
    }

    /// The same, for one of so many parts that are merged: together they have as many files as one would.
    pub(crate) fn of_part(folder: &'f Path, parts: usize) -> Self {
        let files_of_a_size = (FILES_OF_A_SIZE / parts).max(1);
        Self { folder, chunk: Vec::new(), chunk_entries: CHUNK_ENTRIES, files_of_a_size, spilled: Vec::new() }
    }

    pub(crate) fn push(&mut self, place: Place) -> io::Result<()> {
        self.chunk.push(place);
        if self.chunk.len() >= self.chunk_entries { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> io::Result<()> {
        self.chunk.sort_unstable();
        let file = tempfile::tempfile_in(self.folder)?;
        let mut writer = BufWriter::new(file);
        for place in self.chunk.drain(..) {
            writer.write_all(&place.encode())?;
        }
        let mut file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        self.spilled.push(file);
        if self.spilled.len().is_multiple_of(self.files_of_a_size) {
            self.chunk_entries *= 2;
        }
        Ok(())
    }

    /// With the places that another has.
    pub(crate) fn merge(&mut self, other: Self) -> io::Result<()> {
        self.spilled.extend(other.spilled);
        other.chunk.into_iter().try_for_each(|place| self.push(place))
    }

    /// All places in order.
    pub(crate) fn finish(mut self) -> io::Result<Merged> {
        self.chunk.sort_unstable();
        let mut sources = vec![Source::Memory(self.chunk.into_iter())];
        sources.extend(self.spilled.into_iter().map(|file| Source::Spilled(BufReader::new(file))));
        let mut heads = BinaryHeap::with_capacity(sources.len());
        for (index, source) in sources.iter_mut().enumerate() {
            heads.extend(source.next()?.map(|place| Reverse((place, index))));
        }
        Ok(Merged { sources, heads })
    }
}

enum Source {
    Memory(std::vec::IntoIter<Place>),
    Spilled(BufReader<File>),
}

impl Source {
    fn next(&mut self) -> io::Result<Option<Place>> {
        match self {
            Self::Memory(places) => Ok(places.next()),
            Self::Spilled(reader) => {
                let mut bytes = [0; ENTRY_BYTES];
                match reader.read_exact(&mut bytes) {
                    Ok(()) => Ok(Some(Place::decode(bytes))),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                    Err(error) => Err(error),
                }
            }
        }
    }
}

/// Places in order.
pub(crate) struct Merged {
    sources: Vec<Source>,
    heads: BinaryHeap<Reverse<(Place, usize)>>,
}

impl Merged {
    pub(crate) fn next(&mut self) -> io::Result<Option<Place>> {
        let Some(Reverse((place, index))) = self.heads.pop() else { return Ok(None) };
        self.heads.extend(self.sources[index].next()?.map(|next| Reverse((next, index))));
        Ok(Some(place))
    }
}

/// Reads lines where they lie, through a window that moves with them: large where it serves many of them, and small where they
/// lie so far from each other that it does not.
pub(crate) struct Window {
    file: File,
    start_bytes: u64,
    bytes: Vec<u8>,
    /// Of this one, but at the end of the file.
    size_bytes: u64,
    /// Lines that this one has served.
    lines: u32,
}

impl Window {
    const SIZE_BYTES: RangeInclusive<u64> = 4 * 1024..=1024 * 1024;
    /// The part of it that is behind a line: the next one may be there.
    const BEHIND: u64 = 4;
    /// So much of a window takes as long to read as to read one line more by itself.
    const WORTH_BYTES: u64 = 16 * 1024;

    pub(crate) fn new(file: File) -> Self {
        Self { file, start_bytes: 0, bytes: Vec::new(), size_bytes: *Self::SIZE_BYTES.end(), lines: u32::MAX }
    }

    pub(crate) fn line(&mut self, place: Place) -> io::Result<&[u8]> {
        let end_bytes = place.at_bytes + place.size_bytes;
        if place.at_bytes < self.start_bytes || end_bytes > self.start_bytes + self.bytes.len() as u64 {
            let was_worth_it = u64::from(self.lines.saturating_sub(1)) * Self::WORTH_BYTES >= self.size_bytes;
            let size_bytes = if was_worth_it { self.size_bytes * 4 } else { self.size_bytes / 4 };
            self.size_bytes = size_bytes.clamp(*Self::SIZE_BYTES.start(), *Self::SIZE_BYTES.end());
            self.lines = 0;
            let file_bytes = self.file.metadata()?.len();
            self.start_bytes = place.at_bytes.saturating_sub(self.size_bytes / Self::BEHIND);
            let until_bytes = end_bytes.max(self.start_bytes + self.size_bytes).min(file_bytes);
            self.bytes.resize((until_bytes - self.start_bytes) as usize, 0);
            self.file.read_exact_at(&mut self.bytes, self.start_bytes)?;
        }
        self.lines += 1;
        let from = (place.at_bytes - self.start_bytes) as usize;
        Ok(&self.bytes[from..from + place.size_bytes as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spilled_and_kept_places_come_out_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut sorter = Sorter { chunk_entries: 10, ..Sorter::new(folder.path()) };
        for n in 0..107_u64 {
            let seq = (n * 7919) % 107;
            sorter.push(Place { seq, at_bytes: n, size_bytes: 1 }).unwrap();
        }
        let mut merged = sorter.finish().unwrap();
        let mut seqs = Vec::new();
        while let Some(place) = merged.next().unwrap() {
            seqs.push(place.seq);
        }
        assert_eq!(seqs, (0..107).collect::<Vec<_>>());
    }

    #[test]
    fn a_window_gives_any_line_in_any_order() {
        let mut file = tempfile::tempfile().unwrap();
        let lines: Vec<String> = (0..20_000).map(|n| format!("line {n} {}", "x".repeat(n % 300))).collect();
        let mut places = Vec::new();
        let mut at_bytes = 0;
        for line in &lines {
            file.write_all(line.as_bytes()).unwrap();
            places.push(Place { seq: 0, at_bytes, size_bytes: line.len() as u64 });
            at_bytes += line.len() as u64;
        }
        let mut window = Window::new(file);
        let far_apart = || (0..200).map(|n| (n * 7919) % lines.len());
        let mut sizes = Vec::new();
        for order in [far_apart().collect(), (0..lines.len()).collect::<Vec<_>>(), far_apart().collect()] {
            for n in order {
                assert_eq!(window.line(places[n]).unwrap(), lines[n].as_bytes());
            }
            sizes.push(window.size_bytes);
        }
        let (least, most) = Window::SIZE_BYTES.into_inner();
        assert_eq!(
            sizes,
            [least, most, least],
            "large where lines are in order, and small where they are not"
        );
    }
}
