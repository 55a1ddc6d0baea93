//! The role of a holder: has a slice on its disk, and gives it as a peer or as bare files.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use pelton::nexus::node::Node;
use pelton::nexus::peer::{PeerOptions, PeerService};
use pelton::nexus::{Door, LaneLimits, ServerSecurity};
use pelton::{Durability, WritePath};

use super::other::{OtherProcess, obey};
use super::source::BLOB_BYTES;
use super::{GIB, MIB};
use crate::disk::{Blobs, Store};
use crate::frame::Failure;

/// The process, as the benchmark has it.
pub(super) struct HolderProcess {
    other: OtherProcess,
    pub(super) bare: String,
    pub(super) peer: String,
    /// What its blobs' words add up to.
    pub(super) sum: u64,
}

/// Where the bytes of a slice are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Residence {
    PageCache,
    Disk,
}

impl HolderProcess {
    /// Starts it, with a slice of so many bytes in a folder.
    pub(super) fn start(seed: u64, bytes: u64, folder: &Path) -> Result<HolderProcess, Failure> {
        let folder = folder.to_str().ok_or_else(|| Failure::because("the folder's name is no text"))?;
        let (other, words) = OtherProcess::start(&["holder", &seed.to_string(), &bytes.to_string(), folder])?;
        let parsed = match <[String; 3]>::try_from(words) {
            Ok([bare, peer, sum]) => sum.parse().ok().map(|sum| (bare, peer, sum)),
            Err(_) => None,
        };
        let (bare, peer, sum) =
            parsed.ok_or_else(|| Failure::because("the other process says something else"))?;
        Ok(HolderProcess { other, bare, peer, sum })
    }

    /// Brings its slice to where it is to be sent from.
    pub(super) fn place(&mut self, residence: Residence) -> Result<(), Failure> {
        self.other.ask(if residence == Residence::Disk { "disk" } else { "page cache" })
    }

    /// Its number, to count its processor time.
    pub(super) fn id(&self) -> u32 {
        self.other.id()
    }
}

/// Serves until its standard input ends.
pub(super) fn serve(seed: &str, bytes: &str, folder: &str) -> Result<(), Failure> {
    let number = |text: &str| text.parse::<u64>().map_err(|_| Failure::because("that is no number"));
    let store = Store::open(Path::new(folder), GIB)?;
    let blobs = Blobs::filling(number(seed)?, number(bytes)?, BLOB_BYTES);
    let sum = store.load(Store::plan(WritePath::Direct, Durability::Wait), &blobs)?;
    let files = store.files()?;
    let bare = send_files(files.clone())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let any = "127.0.0.1:0".parse().expect("it is an address");
    let opening = Door::open(any, ServerSecurity::Plain, LaneLimits::default());
    let door = runtime.block_on(opening)?;
    let (address, lanes) = (door.address(), door.lanes().clone());
    let peer = PeerService::new(store.cache().clone(), Some(lanes), PeerOptions::default());
    runtime.spawn(Node::new(store.cache().clone(), door).service(peer.into_server()).serve());
    obey(&[bare, address.to_string(), sum.to_string()], |asked| match asked {
        "disk" => store.make_cold(),
        _ => Ok(read_through(&files)?),
    })
}

/// Sends all of the files to each caller: how many there are, how long each is, and their bytes. Says where.
fn send_files(files: Vec<PathBuf>) -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for caller in listener.incoming().flatten() {
            // Who hangs up has failed, and says so.
            let _ = send_all(caller, &files);
        }
    });
    Ok(address.to_string())
}

fn send_all(mut caller: TcpStream, paths: &[PathBuf]) -> io::Result<()> {
    let files: Vec<File> = paths.iter().map(File::open).collect::<io::Result<_>>()?;
    caller.write_all(&(files.len() as u64).to_le_bytes())?;
    for file in &files {
        caller.write_all(&file.metadata()?.len().to_le_bytes())?;
    }
    for file in &files {
        let (mut offset, len) = (0, file.metadata()?.len());
        while offset < len {
            let left = usize::try_from(len - offset).unwrap_or(usize::MAX);
            rustix::fs::sendfile(&caller, file, Some(&mut offset), left)?;
        }
    }
    Ok(())
}

/// Has the page cache hold the files.
fn read_through(files: &[PathBuf]) -> io::Result<()> {
    let mut room = vec![0; MIB as usize];
    for path in files {
        let mut file = File::open(path)?;
        while file.read(&mut room)? > 0 {}
    }
    Ok(())
}
