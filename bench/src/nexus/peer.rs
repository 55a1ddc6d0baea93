//! A slice that is fetched from another worker, against its files, sent by `sendfile` over one connection and written
//! past the page cache to the same disk. Both are durable at the end.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use pelton::nexus::peer::{FetchOptions, Holder};
use pelton::nexus::{ClientSecurity, Dial};
use pelton::{Durability, WritePath};
use tokio::runtime::Runtime;

use super::holder::{HolderProcess, Residence};
use super::{GIB, MIB};
use crate::disk::{Marks, Store, open_direct_to_write, preallocate, sum_blobs};
use crate::frame::{Answers, Failure, Memory, Pair, Stopwatch};

/// How the limit writes: so many writes at once, of so many bytes, and as many that are being received.
const WRITERS: usize = 2;
const PIECE_BYTES: usize = 4 * MIB as usize;
const PIECES: usize = 2 * WRITERS;

/// One slice, from one holder.
pub(super) struct PeerPair {
    holder: HolderProcess,
    residence: Residence,
    store: Store,
    runtime: Runtime,
    /// Where the limit's files go.
    folder: PathBuf,
    pieces: Vec<Memory>,
    bytes: u64,
    expected: Answers,
}

impl PeerPair {
    pub(super) fn new(
        folder: &Path,
        seed: u64,
        bytes: u64,
        residence: Residence,
    ) -> Result<PeerPair, Failure> {
        let of_holder = folder.join("holder");
        let holder = HolderProcess::start(seed, bytes, &of_holder)?;
        let own = folder.join("bare");
        fs::create_dir_all(&own)?;
        let store = Store::open(&folder.join("fetcher"), 2 * bytes + GIB)?;
        let marks = Marks::of(&Store::files_in(&of_holder)?)?;
        let pieces = (0..PIECES).map(|_| Memory::zeroed(PIECE_BYTES)).collect::<io::Result<_>>()?;
        let expected = Answers { limit: marks.0, subject: holder.sum };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(PeerPair { holder, residence, store, runtime, folder: own, pieces, bytes, expected })
    }
}

impl Pair for PeerPair {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn expected(&self) -> Answers {
        self.expected
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        self.holder.place(self.residence)?;
        stopwatch.beside(self.holder.id());
        let (address, folder, pieces) = (&self.holder.bare, &self.folder, std::mem::take(&mut self.pieces));
        let (paths, pieces) = stopwatch.time(|| receive_files(address, folder, pieces))?;
        self.pieces = pieces;
        let marks = Marks::of(&paths)?;
        paths.iter().try_for_each(fs::remove_file)?;
        Ok(marks.0)
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        self.holder.place(self.residence)?;
        stopwatch.beside(self.holder.id());
        let mut options = FetchOptions::default();
        (options.durability, options.write_path) = (Durability::Wait, WritePath::Direct);
        let from = Holder::new(Dial::new(&self.holder.peer, ClientSecurity::Plain)?, options);
        let (cache, key) = (self.store.cache(), self.store.key());
        stopwatch.time(|| self.runtime.block_on(from.fetch(cache, key, None)))?;
        let sum = sum_blobs(&self.store.lease()?)?;
        self.store.flush()?;
        Ok(sum)
    }
}

/// A piece on its way to the disk.
struct Write<'f> {
    file: &'f File,
    offset: u64,
    piece: Memory,
    len: usize,
}

/// Receives by one thread and writes by two.
fn receive_files(
    address: &str,
    folder: &Path,
    pieces: Vec<Memory>,
) -> Result<(Vec<PathBuf>, Vec<Memory>), Failure> {
    let mut from = TcpStream::connect(address)?;
    let lens =
        (0..read_number(&mut from)?).map(|_| read_number(&mut from)).collect::<io::Result<Vec<_>>>()?;
    let paths: Vec<PathBuf> = (0..lens.len()).map(|number| folder.join(number.to_string())).collect();
    let mut files = Vec::new();
    for (path, len) in paths.iter().zip(&lens) {
        drop(preallocate(path, *len)?);
        files.push(open_direct_to_write(path)?);
    }
    let ((give, free), (write, writes)) = (channel(), channel::<Write<'_>>());
    pieces.into_iter().for_each(|piece| drop(give.send(piece)));
    let writes = Mutex::new(writes);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                let (give, writes) = (give.clone(), &writes);
                scope.spawn(move || {
                    while let Some(Write { file, offset, piece, len }) = next(writes) {
                        file.write_all_at(&piece[..len], offset)?;
                        // Nobody wants it any more when all has come.
                        let _ = give.send(piece);
                    }
                    Ok::<_, io::Error>(())
                })
            })
            .collect();
        drop(give);
        let received = (|| {
            for (file, len) in files.iter().zip(&lens) {
                let mut offset = 0;
                while offset < *len {
                    let mut piece: Memory =
                        free.recv().map_err(|_| io::Error::other("no piece comes back"))?;
                    let part = usize::try_from(*len - offset).unwrap_or(usize::MAX).min(PIECE_BYTES);
                    from.read_exact(&mut piece[..part])?;
                    write
                        .send(Write { file, offset, piece, len: part })
                        .map_err(|_| io::Error::other("nobody writes"))?;
                    offset += part as u64;
                }
            }
            Ok::<_, io::Error>(())
        })();
        drop(write);
        for writer in writers {
            writer.join().expect("writing does not panic")?;
        }
        received
    })?;
    files.iter().try_for_each(File::sync_data)?;
    Ok((paths, free.into_iter().collect()))
}

fn next<'f>(writes: &Mutex<Receiver<Write<'f>>>) -> Option<Write<'f>> {
    writes.lock().expect("receiving does not panic").recv().ok()
}

fn read_number(from: &mut TcpStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
