//! The other process: has blobs in memory, and gives them by Feed or as bare bytes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;

use pelton::nexus::feed::{FeedService, Offering, Outlet, SliceRequest, Source, SourceError};
use pelton::nexus::{Door, LaneLimits, ServerSecurity};

use crate::frame::Failure;
use crate::words::Words;

/// Says, by its seed, that this process is to be the source.
const ASKED: &str = "PELTON_BENCH_SOURCE_SEED";
/// Blobs that differ. Together they fit into no core's cache.
const BLOBS: usize = 1024;
pub(super) const BLOB_BYTES: usize = 64 << 10;

/// The other process, as the benchmark has it. Dropping it ends it.
pub(super) struct SourceProcess {
    child: Child,
    pub(super) bare: String,
    pub(super) feed: String,
}

impl SourceProcess {
    pub(super) fn start(seed: u64) -> Result<SourceProcess, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(ASKED, seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line)?;
        match line.trim().split_once(' ') {
            Some((bare, feed)) => Ok(SourceProcess { child, bare: bare.to_owned(), feed: feed.to_owned() }),
            None => Err(Failure::because(format!("the other process says {line:?}"))),
        }
    }
}

impl SourceProcess {
    /// Its number, to count its processor time.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for SourceProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One blob of a source.
pub(super) fn blob(seed: u64, number: u64, bytes: &mut [u8]) -> u64 {
    Words::new(seed.wrapping_add(number % BLOBS as u64)).fill(bytes)
}

/// Is the source if this process was started for that, until its standard input ends.
pub(crate) fn serve_if_asked() -> Option<ExitCode> {
    let seed = std::env::var(ASKED).ok()?.parse().ok()?;
    match serve(seed) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("pelton-bench: the source failed: {error}");
            Some(ExitCode::FAILURE)
        }
    }
}

fn serve(seed: u64) -> io::Result<()> {
    let mut all = vec![0; BLOBS * BLOB_BYTES];
    for (number, bytes) in all.chunks_exact_mut(BLOB_BYTES).enumerate() {
        blob(seed, number as u64, bytes);
    }
    let all = Arc::new(all);
    let bare = TcpListener::bind("127.0.0.1:0")?;
    let bare_address = bare.local_addr()?;
    let of_bare = all.clone();
    std::thread::spawn(move || {
        for caller in bare.incoming().flatten() {
            let all = of_bare.clone();
            // A caller that hangs up has what it wanted.
            std::thread::spawn(move || drop(send_bare(caller, &all)));
        }
    });
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let any = "127.0.0.1:0".parse().expect("it is an address");
        let door = Door::open(any, ServerSecurity::Plain, LaneLimits::default()).await?;
        println!("{bare_address} {}", door.address());
        io::stdout().flush()?;
        std::thread::spawn(|| {
            let _ = io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(0);
        });
        let service = FeedService::of_source(Blobs(all)).lanes(door.lanes().clone());
        service.serve_behind(door, std::future::pending()).await
    })
}

/// As many bytes as the caller says, as fast as it takes them.
fn send_bare(mut caller: TcpStream, all: &[u8]) -> io::Result<()> {
    let mut wanted = [0; 8];
    caller.read_exact(&mut wanted)?;
    let mut left = u64::from_le_bytes(wanted);
    for chunk in all.chunks(1 << 20).cycle() {
        if left == 0 {
            break;
        }
        let len = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        caller.write_all(&chunk[..len])?;
        left -= len as u64;
    }
    Ok(())
}

/// As many blobs as the caps say.
struct Blobs(Arc<Vec<u8>>);

impl Source for Blobs {
    fn open(&self, request: &SliceRequest) -> Result<Offering, SourceError> {
        let (all, count) = (self.0.clone(), request.caps.map_or(0, |caps| caps.items_max));
        Ok(Offering::new(move |outlet: &Outlet| {
            let blobs = all.chunks_exact(BLOB_BYTES).cycle();
            for (_, blob) in (0..count).zip(blobs) {
                outlet.push(blob)?;
            }
            Ok(outlet.tally())
        }))
    }
}
