//! The least that anybody could do with a disk: moving bytes past the page cache, or plainly into it.
//!
//! Several threads with one transfer each stand for a queue: for transfers of some MiB that is as fast as a
//! ring (`docs/performance.md`), and needs no unsafe code.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags, Mode, OFlags};

use crate::frame::{Failure, Memory};
use crate::words::{Words, sum_words};

const MIB: usize = 1 << 20;

/// Plain writes have this many bytes.
pub(crate) const PLAIN_BYTES: usize = 8 * MIB;

/// How raw transfers are cut: this many at once, of this size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) threads: usize,
    pub(crate) bytes: usize,
}

/// The shapes that are tried, before anything counts. More at once is not always faster: what a virtual disk's
/// host copies is slower when it no longer fits a cache.
const SHAPES: [Shape; 10] = [
    Shape { threads: 1, bytes: 4 * MIB },
    Shape { threads: 1, bytes: 8 * MIB },
    Shape { threads: 2, bytes: MIB },
    Shape { threads: 2, bytes: 4 * MIB },
    Shape { threads: 2, bytes: 8 * MIB },
    Shape { threads: 4, bytes: MIB },
    Shape { threads: 4, bytes: 4 * MIB },
    Shape { threads: 8, bytes: MIB },
    Shape { threads: 8, bytes: 4 * MIB },
    Shape { threads: 16, bytes: MIB },
];

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} MiB", self.threads, self.bytes / MIB)
    }
}

impl Shape {
    /// The shape in which `run` takes the least time, by the middle one of three tries, taken in turn.
    pub(crate) fn best(mut run: impl FnMut(Shape) -> Result<(), Failure>) -> Result<Shape, Failure> {
        let mut tries = [[Duration::ZERO; 3]; SHAPES.len()];
        for number in 0..3 {
            for (shape, tries) in SHAPES.iter().zip(&mut tries) {
                let started = Instant::now();
                run(*shape)?;
                tries[number] = started.elapsed();
            }
        }
        tries.iter_mut().for_each(|tries| tries.sort());
        let best = (0..SHAPES.len()).min_by_key(|&n| tries[n][1]).expect("there are shapes");
        Ok(SHAPES[best])
    }
}

/// What stands at the start of each MiB of some files, added up: tells whether a raw transfer was whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks(pub(crate) u64);

impl Marks {
    /// Reads them one by one, through the page cache.
    pub(crate) fn of(files: &[PathBuf]) -> io::Result<Marks> {
        let mut marks = Marks::default();
        for path in files {
            let file = File::open(path)?;
            // One page each, and none ahead.
            rustix::fs::fadvise(&file, 0, None, Advice::Random)?;
            let len = file.metadata()?.len();
            for offset in (0..len).step_by(MIB) {
                let mut word = [0; 8];
                file.read_exact_at(&mut word, offset)?;
                marks.0 = marks.0.wrapping_add(u64::from_le_bytes(word));
            }
        }
        Ok(marks)
    }

    /// Those that files have into which a source was written, by transfers of this size.
    pub(crate) fn of_written(count: usize, file_bytes: u64, transfer_bytes: usize, source: &[u8]) -> Marks {
        let steps = steps_of(std::iter::repeat_n(file_bytes, count), transfer_bytes);
        Marks(
            steps.fold(0, |sum, step| {
                sum.wrapping_add(Marks::in_bytes(source_of(&step, file_bytes, source)).0)
            }),
        )
    }

    /// Those of a transfer that begins at a whole MiB.
    fn in_bytes(bytes: &[u8]) -> Marks {
        Marks(bytes.chunks(MIB).fold(0, |sum, mib| {
            let word = mib.first_chunk().expect("files are whole pages");
            sum.wrapping_add(u64::from_le_bytes(*word))
        }))
    }
}

/// Opens a file to be read past the page cache.
pub(crate) fn open_direct(path: &Path) -> io::Result<File> {
    Ok(direct(path, OFlags::RDONLY)?.into())
}

/// Opens a file to be written past the page cache.
pub(crate) fn open_direct_to_write(path: &Path) -> io::Result<File> {
    Ok(direct(path, OFlags::WRONLY)?.into())
}

fn direct(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::DIRECT, mode) {
        // Where O_DIRECT is refused the page cache is the only way, for us as for others.
        Err(rustix::io::Errno::INVAL) => Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, mode)?),
        opened => Ok(opened?),
    }
}

/// Makes a new file with space for this many bytes.
pub(crate) fn preallocate(path: &Path, bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes)?,
        done => done?,
    }
    Ok(file)
}

/// Moves bytes past the page cache, with memory that is there already.
pub(crate) struct Raw {
    shape: Shape,
    /// A stretch for each thread, used again and again. In one piece, so that it lies on large pages: in small ones a
    /// transfer has a segment for each of them, and a disk takes only so many at once.
    buffers: Memory,
    /// Where what is read stays instead, if it is to.
    kept: Option<Memory>,
    /// Whether each byte is looked at.
    looks: bool,
}

impl Raw {
    pub(crate) fn new(shape: Shape) -> io::Result<Raw> {
        let mut buffers = Memory::zeroed((shape.threads * shape.bytes).next_multiple_of(2 * MIB))?;
        Words::new(0).fill(&mut buffers);
        Ok(Raw { shape, buffers, kept: None, looks: false })
    }

    /// The same, but each byte that is read is looked at, by the thread that read it.
    pub(crate) fn looking(shape: Shape) -> io::Result<Raw> {
        Ok(Raw { looks: true, ..Raw::new(shape)? })
    }

    /// The same, but what is read is still there afterwards, all of it. The memory was touched before: this is for
    /// what can't be had for less by anybody who keeps the bytes.
    pub(crate) fn keeping(shape: Shape, kept: Memory) -> io::Result<Raw> {
        Ok(Raw { kept: Some(kept), ..Raw::new(shape)? })
    }

    /// The memory that it was given.
    pub(crate) fn into_kept(self) -> Option<Memory> {
        self.kept
    }

    /// Reads the files from front to back, and drops the bytes or keeps them.
    pub(crate) fn read(&mut self, files: &[File]) -> io::Result<Marks> {
        let steps = steps(files, self.shape.bytes)?;
        let mut kept = self.kept.as_deref_mut();
        let rooms: Vec<Option<&mut [u8]>> = steps
            .iter()
            .map(|step| {
                let (room, rest) = kept.take()?.split_at_mut(step.len);
                kept = Some(rest);
                Some(room)
            })
            .collect();
        let next = Mutex::new(steps.iter().zip(rooms));
        let next = || next.lock().expect("nothing panics under it").next();
        let (next, looks) = (&next, self.looks);
        let marks = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .buffers
                .chunks_exact_mut(self.shape.bytes)
                .take(self.shape.threads)
                .map(|buffer| {
                    scope.spawn(move || {
                        let mut marks = 0u64;
                        while let Some((step, room)) = next() {
                            let bytes = room.unwrap_or(&mut buffer[..step.len]);
                            files[step.file].read_exact_at(bytes, step.offset)?;
                            marks = marks.wrapping_add(Marks::in_bytes(bytes).0);
                            if looks {
                                black_box(sum_words(bytes));
                            }
                        }
                        io::Result::Ok(marks)
                    })
                })
                .collect();
            join(threads)
        })?;
        Ok(Marks(marks))
    }

    /// Writes the source into new files, from front to back, each with space for its share, and brings them to the disk.
    /// The clock is the caller's; the files are made by [`preallocate`].
    pub(crate) fn write(&self, paths: &[PathBuf], file_bytes: u64, source: &[u8]) -> io::Result<()> {
        let files: Vec<File> =
            paths.iter().map(|path| Ok(direct(path, OFlags::WRONLY)?.into())).collect::<io::Result<_>>()?;
        let next = AtomicUsize::new(0);
        let steps: Vec<Step> = steps_of(files.iter().map(|_| file_bytes), self.shape.bytes).collect();
        let (files, steps, next) = (&files, &steps, &next);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.shape.threads)
                .map(|_| {
                    scope.spawn(move || {
                        while let Some(step) = steps.get(next.fetch_add(1, Ordering::Relaxed)) {
                            files[step.file]
                                .write_all_at(source_of(step, file_bytes, source), step.offset)?;
                        }
                        io::Result::Ok(0)
                    })
                })
                .collect();
            join(threads)
        })?;
        files.iter().try_for_each(File::sync_data)
    }
}

/// Writes the source into the files as a program does that thinks no more of it: one thread, 8 MiB at a time,
/// through the page cache.
pub(crate) fn plain_write(files: &[File], file_bytes: u64, source: &[u8]) -> io::Result<()> {
    for step in steps_of(files.iter().map(|_| file_bytes), PLAIN_BYTES) {
        files[step.file].write_all_at(source_of(&step, file_bytes, source), step.offset)?;
    }
    Ok(())
}

/// The stretch of the source that a step writes. A source smaller than the files is used again and again.
fn source_of<'a>(step: &Step, file_bytes: u64, source: &'a [u8]) -> &'a [u8] {
    let at = (step.file as u64 * file_bytes + step.offset) as usize % source.len();
    // At the end of the source the stretch begins earlier instead of being split: they are bytes like others.
    let at = at.min(source.len() - step.len);
    &source[at..at + step.len]
}

/// One transfer.
struct Step {
    file: usize,
    offset: u64,
    len: usize,
}

fn steps(files: &[File], bytes: usize) -> io::Result<Vec<Step>> {
    let lens: Vec<u64> = files.iter().map(|file| Ok(file.metadata()?.len())).collect::<io::Result<_>>()?;
    Ok(steps_of(lens.into_iter(), bytes).collect())
}

fn steps_of(lens: impl Iterator<Item = u64>, bytes: usize) -> impl Iterator<Item = Step> {
    lens.enumerate().flat_map(move |(file, len)| {
        (0..len).step_by(bytes).map(move |offset| Step {
            file,
            offset,
            len: (len - offset).min(bytes as u64) as usize,
        })
    })
}

fn join(threads: Vec<std::thread::ScopedJoinHandle<'_, io::Result<u64>>>) -> io::Result<u64> {
    let mut sum = 0u64;
    for thread in threads {
        sum = sum.wrapping_add(thread.join().expect("raw transfers do not panic")?);
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_raw_or_plainly_is_what_is_read_raw() {
        let folder = tempfile::tempdir().unwrap();
        let mut source = Memory::zeroed(5 * MIB).unwrap();
        Words::new(1).fill(&mut source);
        let bytes = 9 * MIB as u64 + 8192;
        for plain in [false, true] {
            let paths: Vec<PathBuf> = (0..2).map(|n| folder.path().join(format!("{plain}-{n}"))).collect();
            let files: Vec<File> = paths.iter().map(|path| preallocate(path, bytes).unwrap()).collect();
            let source = if plain { &vec![7; 20 * MIB][..] } else { &source[..] };
            match plain {
                true => plain_write(&files, bytes, source).unwrap(),
                false => {
                    Raw::new(Shape { threads: 3, bytes: 2 * MIB })
                        .unwrap()
                        .write(&paths, bytes, source)
                        .unwrap();
                }
            }
            let marks = Marks::of(&paths).unwrap();
            let transfer_bytes = if plain { PLAIN_BYTES } else { 2 * MIB };
            assert_eq!(marks, Marks::of_written(2, bytes, transfer_bytes, source));
            assert_ne!(marks, Marks::default());
            for shape in SHAPES {
                let files: Vec<File> = paths.iter().map(|path| open_direct(path).unwrap()).collect();
                assert_eq!(Raw::new(shape).unwrap().read(&files).unwrap(), marks, "{shape}");
                assert_eq!(Raw::looking(shape).unwrap().read(&files).unwrap(), marks, "{shape}");
                let mut keeping = Raw::keeping(shape, Memory::zeroed(2 * bytes as usize).unwrap()).unwrap();
                assert_eq!(keeping.read(&files).unwrap(), marks, "{shape}");
                let kept = keeping.into_kept().unwrap();
                for (path, kept) in paths.iter().zip(kept.chunks(bytes as usize)) {
                    assert!(std::fs::read(path).unwrap() == kept, "{shape}");
                }
            }
        }
    }
}
