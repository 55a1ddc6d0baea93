//! Memory to measure in.

use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};

/// Zeroed anonymous memory that begins on a page and lies, where the kernel can, on 2 MiB pages.
///
/// Regions lie like that when they are mapped or kept as an image, so benchmarks measure there too.
/// Dropping it gives the memory back to the kernel at once, which an allocator may not do.
pub(crate) struct Memory {
    map: MmapMut,
}

impl Memory {
    /// # Errors
    /// If the kernel has no such memory, or none of this size.
    pub(crate) fn zeroed(bytes: usize) -> io::Result<Memory> {
        let map = MmapMut::map_anon(bytes)?;
        // Refused where the kernel has no transparent huge pages. Then 4 KiB pages have to do.
        let _ = map.advise(Advice::HugePage);
        Ok(Memory { map })
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }
}
