//! Our own memory: images of regions, and the pieces they are written in.
//!
//! An image is one stretch of anonymous memory, on 2 MiB pages where the kernel gives them. Its
//! address space is reserved at once and its memory taken piece by piece, so an image grows without
//! ever moving: pieces are on their way to the disk while later ones are filled.
//!
//! ```text
//! | frozen pieces: shared, never written again | the current piece | reserved, no memory yet |
//! ```
//!
//! The border between frozen and current only ever moves forward, and only [`ImageWriter`], which can't
//! be copied, moves it. That is the whole argument for the unsafe code in this file.

use std::any::Any;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::budget::memory::MemoryGrant;
use crate::spindle::engine::{IoBytes, IoRoom};

/// Images begin at multiples of this, the size of the large pages.
const LARGE_PAGE_BYTES: usize = 2 << 20;
/// What O_DIRECT wants lengths to be multiples of.
const DISK_PAGE_BYTES: usize = 4096;

/// A stretch of anonymous memory: address space reserved, memory taken from the front.
///
/// Invariants: `start` is a multiple of 2 MiB, `usable <= reserved`, and `[start, start + usable)` can be
/// read and written as far as the page tables go; who may do so is for the types below to say.
#[derive(Debug)]
struct Reservation {
    /// What mmap returned, and how much it was asked for: more than is used, to align the start.
    mapping: NonNull<libc::c_void>,
    mapping_bytes: usize,
    start: NonNull<u8>,
    reserved: usize,
}

// SAFETY: a reservation is an address range that belongs to this value alone; nothing in it is tied to a
// thread. Access to the bytes goes through the types below, which argue for themselves.
unsafe impl Send for Reservation {}
// SAFETY: as above; a shared `Reservation` offers no access to bytes at all.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Reserves address space; takes no memory.
    fn new(bytes: usize) -> io::Result<Reservation> {
        let reserved = bytes.next_multiple_of(LARGE_PAGE_BYTES);
        let mapping_bytes = reserved + LARGE_PAGE_BYTES;
        // SAFETY: a fresh private mapping at an address of the kernel's choice touches nothing that exists.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapping_bytes,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping = NonNull::new(mapping).expect("mmap without MAP_FIXED never returns null");
        let skip = mapping.cast::<u8>().align_offset(LARGE_PAGE_BYTES);
        // SAFETY: `skip` is below 2 MiB, by which the mapping is longer than `reserved`.
        let start = unsafe { mapping.cast::<u8>().add(skip) };
        Ok(Reservation { mapping, mapping_bytes, start, reserved })
    }

    /// Makes `[from, to)` readable and writable, zeros until written.
    fn make_usable(&self, from: usize, to: usize) -> io::Result<()> {
        assert!(from.is_multiple_of(DISK_PAGE_BYTES) && from <= to && to <= self.reserved);
        // SAFETY: the range lies in our own mapping. It only gains access rights, so nothing that is valid
        // becomes invalid. The advice changes how pages are backed and what a forked child sees, not bytes.
        unsafe {
            let address = self.start.add(from).cast::<libc::c_void>().as_ptr();
            if libc::mprotect(address, to - from, libc::PROT_READ | libc::PROT_WRITE) != 0 {
                return Err(io::Error::last_os_error());
            }
            // Both are wishes: a kernel without large pages is slower, not wrong. A child of fork(2) has no
            // use for the memory, and a copy on write would double it.
            libc::madvise(address, to - from, libc::MADV_HUGEPAGE);
            libc::madvise(address, to - from, libc::MADV_DONTFORK);
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever could still reach a byte of it holds this value alive.
        let result = unsafe { libc::munmap(self.mapping.as_ptr(), self.mapping_bytes) };
        debug_assert_eq!(result, 0, "unmapping our own mapping: {}", io::Error::last_os_error());
    }
}

/// The writing end of an image: there is one, and only it can reach what is not frozen.
///
/// Invariant: `[0, frozen)` is never written again; `[frozen, frozen + piece_bytes)` is usable and reached
/// through `&mut self` only.
#[derive(Debug)]
pub(crate) struct ImageWriter {
    memory: Arc<Reservation>,
    piece_bytes: usize,
    frozen: usize,
}

impl ImageWriter {
    /// Starts an image that can grow to `bytes_max`, with memory for its first piece.
    ///
    /// # Errors
    /// If there is no address space left (`ulimit -v`), or no memory to promise.
    pub(crate) fn new(piece_bytes: usize, bytes_max: usize) -> io::Result<ImageWriter> {
        assert!(piece_bytes > 0 && piece_bytes.is_multiple_of(LARGE_PAGE_BYTES));
        let memory = Reservation::new(bytes_max.max(piece_bytes).next_multiple_of(piece_bytes))?;
        memory.make_usable(0, piece_bytes)?;
        Ok(ImageWriter { memory: Arc::new(memory), piece_bytes, frozen: 0 })
    }

    /// The piece that is being filled.
    pub(crate) fn piece(&mut self) -> &mut [u8] {
        // SAFETY: in bounds and usable by the invariant. Nobody else reaches these bytes: every
        // `FrozenBytes` ends at or before `frozen`, an `Image` is made by consuming this writer, and
        // `&mut self` keeps a second call out while the slice lives.
        unsafe {
            std::slice::from_raw_parts_mut(self.memory.start.add(self.frozen).as_ptr(), self.piece_bytes)
        }
    }

    /// Freezes the piece, which is full, and goes on to the next one.
    ///
    /// # Errors
    /// If the image may not grow further, or no memory is left. The piece is then still the current one.
    pub(crate) fn next_piece(&mut self) -> io::Result<FrozenBytes> {
        let next = self.frozen + self.piece_bytes;
        if next + self.piece_bytes > self.memory.reserved {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "the image has grown to its limit"));
        }
        self.memory.make_usable(next, next + self.piece_bytes)?;
        let piece = FrozenBytes { memory: self.memory.clone(), offset: self.frozen, len: self.piece_bytes };
        self.frozen = next;
        Ok(piece)
    }

    /// Ends the image with the first `used` bytes of the current piece: the last stretch for the disk,
    /// and the whole for scanners.
    pub(crate) fn seal(self, used: usize) -> (FrozenBytes, Image) {
        assert!(used <= self.piece_bytes);
        let last = FrozenBytes { memory: self.memory.clone(), offset: self.frozen, len: used };
        (last, Image { memory: self.memory, len: self.frozen + used })
    }
}

/// Bytes of an image that never change again: on their way to the disk.
#[derive(Clone, Debug)]
pub(crate) struct FrozenBytes {
    memory: Arc<Reservation>,
    offset: usize,
    len: usize,
}

impl Deref for FrozenBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: only `ImageWriter` makes one, of bytes behind the border, which are usable and never
        // written again. `memory` keeps them mapped, at the same address, as long as this value lives.
        unsafe { std::slice::from_raw_parts(self.memory.start.add(self.offset).as_ptr(), self.len) }
    }
}

/// A whole region in our own memory.
#[derive(Debug)]
pub(crate) struct Image {
    memory: Arc<Reservation>,
    len: usize,
}

impl Deref for Image {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `ImageWriter::seal` makes it of usable bytes, and consumes the only value that could write.
        unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr(), self.len) }
    }
}

impl Image {
    /// A stretch of it for the disk, to write it once more.
    pub(crate) fn stretch(&self, offset: usize, len: usize) -> FrozenBytes {
        assert!(offset <= self.len && len <= self.len - offset);
        FrozenBytes { memory: self.memory.clone(), offset, len }
    }
}

// SAFETY: address and length are those of the reservation and never change; the bytes are frozen, and
// `memory` keeps them mapped while the value lives; they lie in the mapping, not in the value.
unsafe impl IoBytes for FrozenBytes {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

/// A piece that is filled, written, and filled again: for regions of which no image is kept; and the
/// room that bytes are read into.
#[derive(Debug)]
pub(crate) struct PieceBuffer {
    memory: Reservation,
    len: usize,
    /// What it takes of the memory budget, if it is counted by itself. Given back after the memory.
    _grant: Option<MemoryGrant>,
}

impl PieceBuffer {
    /// A piece of zeros.
    ///
    /// # Errors
    /// If there is no address space left, or no memory to promise.
    pub(crate) fn new(len: usize) -> io::Result<PieceBuffer> {
        let memory = Reservation::new(len)?;
        memory.make_usable(0, len.next_multiple_of(DISK_PAGE_BYTES))?;
        Ok(PieceBuffer { memory, len, _grant: None })
    }

    /// Has it keep its share of the memory budget, wherever it goes: a disk may hold it longer than its owner.
    pub(crate) fn counted(self, grant: MemoryGrant) -> PieceBuffer {
        PieceBuffer { _grant: Some(grant), ..self }
    }
}

impl Deref for PieceBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is usable, and belongs to this value alone: nothing else is made of its
        // reservation. `&self` keeps writers out.
        unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr(), self.len) }
    }
}

impl DerefMut for PieceBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` keeps everybody else out.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start.as_ptr(), self.len) }
    }
}

// SAFETY: the bytes lie in a mapping of this value's own, at one address until it is dropped, and whoever
// holds the box, which is the operation, holds the only way to them.
unsafe impl IoBytes for PieceBuffer {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

// SAFETY: as for `IoBytes`; the mapping can be written, too.
unsafe impl IoRoom for PieceBuffer {
    fn room(&mut self) -> &mut [u8] {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 2 << 20;

    #[test]
    fn an_image_grows_without_moving_while_frozen_pieces_are_read() {
        let mut writer = ImageWriter::new(PIECE, 5 * PIECE).unwrap();
        let start = writer.piece().as_ptr() as usize;
        assert!(start.is_multiple_of(LARGE_PAGE_BYTES));
        let mut frozen = Vec::new();
        for k in 0..4u8 {
            writer.piece().fill(k + 1);
            frozen.push(writer.next_piece().unwrap());
        }
        let reader = std::thread::spawn({
            let frozen = frozen.clone();
            move || {
                frozen.iter().map(|piece| piece.iter().map(|&byte| u64::from(byte)).sum::<u64>()).sum::<u64>()
            }
        });
        writer.piece()[..10].fill(9);
        assert_eq!(reader.join().unwrap(), 10 * PIECE as u64);
        let (last, image) = writer.seal(10);
        assert_eq!(last[..], [9; 10]);
        assert_eq!((image.as_ptr() as usize, image.len()), (start, 4 * PIECE + 10));
        drop(frozen);
        for k in 0..4 {
            assert!(image[k * PIECE..(k + 1) * PIECE].iter().all(|&byte| byte == k as u8 + 1));
        }
    }

    #[test]
    fn an_image_ends_at_its_limit_and_keeps_what_it_has() {
        let mut writer = ImageWriter::new(PIECE, 2 * PIECE).unwrap();
        writer.piece().fill(1);
        writer.next_piece().unwrap();
        writer.piece().fill(2);
        assert_eq!(writer.next_piece().unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        let (_, image) = writer.seal(PIECE);
        assert_eq!((image[0], image[PIECE], image.len()), (1, 2, 2 * PIECE));
    }

    #[test]
    fn a_frozen_piece_outlives_writer_and_image() {
        let mut writer = ImageWriter::new(PIECE, 2 * PIECE).unwrap();
        writer.piece().fill(7);
        let piece = writer.next_piece().unwrap();
        drop(writer.seal(0));
        assert!(piece.iter().all(|&byte| byte == 7));
    }
}
