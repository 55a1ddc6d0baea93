//! Whether a spindle's regions are mapped, or read into our own memory.
//!
//! A scan runs at the speed of memory only over large pages. Whether a mapped file gets them is for its file
//! system and kernel to say, and nothing but a look at a mapped file tells. So the first warming of a spindle
//! writes a small file, maps it as regions are mapped, and looks.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::region::map::{RegionMap, SealedFile};
use crate::region::smaps::large_page_bytes;
use crate::spindle::engine::{DiskError, Op, PageBuffer};
use crate::spindle::file::FileMode;
use crate::spindle::held::Spindle;
use crate::spindle::impeller::Impellers;

/// Where the bytes of a region lie when they come from a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Residence {
    /// Whatever is faster on each spindle: the first warming finds out.
    #[default]
    Auto,
    /// In the page cache, mapped. The system may take the memory back, and a restart finds it warm.
    Map,
    /// In memory of the cache's own, read past the page cache.
    Image,
}

impl fmt::Display for Residence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Residence::Auto => "auto",
            Residence::Map => "map",
            Residence::Image => "image",
        })
    }
}

pub(crate) const PROBE_BYTES: usize = 8 << 20;
/// Half of the file: where large pages are had at all, nearly all of it lies in them.
pub(crate) const LARGE_BYTES_MIN: u64 = PROBE_BYTES as u64 / 2;
const PROBE_WAIT_MAX: Duration = Duration::from_secs(2);
/// The file that a probe writes and removes.
pub(crate) const PROBE_NAME: &str = "residence-probe";

/// What one spindle's regions are brought into.
#[derive(Debug)]
pub(crate) struct SpindleResidence {
    wanted: Residence,
    found: OnceLock<(Residence, String)>,
    /// Held while it is looked into, so that one looks and the others wait, on threads of this spindle.
    looking: Mutex<()>,
}

impl SpindleResidence {
    pub(crate) fn new(wanted: Residence) -> SpindleResidence {
        SpindleResidence { wanted, found: OnceLock::new(), looking: Mutex::new(()) }
    }

    /// What is known now, and why: `Auto` before the first warming.
    pub(crate) fn known(&self) -> (Residence, String) {
        match (self.wanted, self.found.get()) {
            (Residence::Auto, Some(found)) => found.clone(),
            (Residence::Auto, None) => (Residence::Auto, "the first warming finds out".to_owned()),
            (wanted, _) => (wanted, "configured".to_owned()),
        }
    }

    /// Whether regions are to be mapped. The first call looks, with the disk's help.
    pub(crate) fn maps(&self, spindle: &Spindle) -> bool {
        if self.wanted == Residence::Auto && self.found.get().is_none() {
            let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
            self.found.get_or_init(|| match large_bytes_mapped(&spindle.impellers, &spindle.folder) {
                Ok(large) if large >= LARGE_BYTES_MIN => {
                    (Residence::Map, "mapped files get large pages here".to_owned())
                }
                Ok(_) => (Residence::Image, "mapped files get only small pages here".to_owned()),
                // Images ask least of a file system.
                Err(error) => (Residence::Image, format!("mapped files could not be looked at: {error}")),
            });
        }
        self.known().0 == Residence::Map
    }
}

/// How many bytes of a mapped file in this folder lie in large pages. Writes one of [`PROBE_BYTES`], and removes it.
pub(crate) fn large_bytes_mapped(impellers: &Impellers, folder: &Path) -> Result<u64, String> {
    let deadline = Some(Instant::now() + PROBE_WAIT_MAX);
    let run = |op| impellers.run(op, deadline).map_err(|error| chain(&error));
    let path = folder.join(PROBE_NAME);
    let _ = run(Op::Unlink { path: path.clone() }); // One that a crash has left.
    let write = || -> Result<_, String> {
        let file = run(Op::CreateFile { path: path.clone(), mode: FileMode::Direct })?.into_file();
        let bytes = Box::new(PageBuffer::zeroed(PROBE_BYTES));
        run(Op::Write { file: file.clone(), offset: 0, bytes, len: PROBE_BYTES })?;
        run(Op::SyncData { file: file.clone() })?;
        run(Op::DropCache { file })?; // Where O_DIRECT is refused the bytes went through it.
        Ok(run(Op::OpenFile { path: path.clone(), mode: FileMode::Buffered })?.into_file())
    };
    let written = write();
    let _ = run(Op::Unlink { path });
    let map = || {
        let file = SealedFile::committed(written?, PROBE_BYTES as u64).map_err(text)?;
        let file = file.ok_or("the file is not as long as was written")?;
        let map = RegionMap::new(file, false).map_err(text)?;
        map.expect_front_to_back().map_err(text)?;
        map.populate(0..PROBE_BYTES).map_err(text)?;
        let start = map.bytes().as_ptr().addr();
        large_page_bytes(std::slice::from_ref(&(start..start + PROBE_BYTES))).map_err(text)
    };
    map()
}

fn text(error: std::io::Error) -> String {
    error.to_string()
}

fn chain(error: &DiskError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
