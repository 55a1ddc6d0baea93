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
//! be copied, moves it. An image that is read from a disk grows in the same way: [`ImageRooms`] hands out what
//! lies beyond the border, each stretch once, and [`Image::accept`] takes filled stretches back in their order.
//! That is the whole argument for the unsafe code in this file.

use std::any::Any;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
        let len = self.frozen + used;
        (last, Image { memory: self.memory, len, frozen: AtomicUsize::new(len), tail: len })
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

/// A region in our own memory: all of it, or as much as has come from the disk so far.
///
/// The end of a region comes first, since it says what the rest has to be; then the others, from the front.
///
/// Invariant: `[0, frozen)` and `[tail, len)` are usable and never written again.
#[derive(Debug)]
pub(crate) struct Image {
    memory: Arc<Reservation>,
    len: usize,
    /// Moved by [`Image::accept`], read by whoever reads the image: it publishes the bytes before it.
    frozen: AtomicUsize,
    /// The same for the bytes behind it. Set once, before others see the image.
    tail: usize,
}

impl Image {
    /// Starts an image of `len` bytes that are to be read from a disk.
    ///
    /// # Errors
    /// If there is no address space left, or no memory to promise.
    pub(crate) fn to_fill(len: usize) -> io::Result<(Image, ImageRooms)> {
        let whole_pages = len.next_multiple_of(DISK_PAGE_BYTES);
        let memory = Reservation::new(whole_pages)?;
        memory.make_usable(0, whole_pages)?;
        let memory = Arc::new(memory);
        let rooms = ImageRooms { memory: memory.clone(), end: whole_pages, next: 0 };
        Ok((Image { memory, len, frozen: AtomicUsize::new(0), tail: len }, rooms))
    }

    /// How long it is when it is whole.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// What is there, from its start.
    pub(crate) fn bytes(&self) -> &[u8] {
        let frozen = self.frozen.load(Ordering::Acquire);
        // SAFETY: by the invariant these bytes are usable and never written again. It holds from the start:
        // - `ImageWriter::seal` makes an image of frozen bytes and its last piece, and consumes the only value
        //   that could write to them;
        // - `accept` moves the border over a room that it has consumed, which was the only way to its bytes.
        // Who filled the room did so before `accept` stored the border that was loaded here.
        unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr(), frozen) }
    }

    /// What is there, from here to its end.
    ///
    /// # Panics
    /// If not all of it is there.
    pub(crate) fn bytes_from(&self, offset: usize) -> &[u8] {
        if offset <= self.frozen.load(Ordering::Acquire) && self.bytes().len() == self.len {
            return &self.bytes()[offset..];
        }
        assert!(self.tail <= offset && offset <= self.len, "the tail is there from {} on", self.tail);
        // SAFETY: by the invariant, as in `bytes`: `accept_tail` has consumed the room.
        unsafe { std::slice::from_raw_parts(self.memory.start.add(offset).as_ptr(), self.len - offset) }
    }

    /// A stretch of it for the disk, to write it once more.
    pub(crate) fn stretch(&self, offset: usize, len: usize) -> FrozenBytes {
        assert!(self.bytes().get(offset..).is_some_and(|rest| len <= rest.len()));
        FrozenBytes { memory: self.memory.clone(), offset, len }
    }

    /// Takes a filled room back: the one that follows what is there. Says how much is there now.
    pub(crate) fn accept(&self, room: ImageRoom) -> usize {
        assert!(Arc::ptr_eq(&room.memory, &self.memory), "a room of this image");
        let end = room.offset + room.len;
        let frozen = if end >= self.tail { self.len } else { end };
        let moved = self.frozen.compare_exchange(room.offset, frozen, Ordering::Release, Ordering::Relaxed);
        assert_eq!(moved, Ok(room.offset), "rooms come back in their order");
        frozen
    }

    /// Takes the filled room of the end back.
    pub(crate) fn accept_tail(&mut self, room: ImageRoom) {
        assert!(Arc::ptr_eq(&room.memory, &self.memory), "a room of this image");
        assert!(room.offset <= self.len && self.len <= room.offset + room.len, "it reaches the end");
        self.tail = room.offset;
        if *self.frozen.get_mut() == self.tail {
            *self.frozen.get_mut() = self.len;
        }
    }
}

/// Hands out an image's memory to be filled: the tail if it is wanted first, and the rest front to back, each
/// stretch once.
///
/// Invariant: no room within `[next, end)` was handed out.
#[derive(Debug)]
pub(crate) struct ImageRooms {
    memory: Arc<Reservation>,
    next: usize,
    /// A whole page, since disks read no less.
    end: usize,
}

impl ImageRooms {
    /// The room from the page of this offset to the end.
    pub(crate) fn tail_room(&mut self, offset: usize) -> ImageRoom {
        let offset = offset - offset % DISK_PAGE_BYTES;
        assert!(self.next <= offset && offset < self.end, "what is handed out is not handed out again");
        let room = ImageRoom { memory: self.memory.clone(), offset, len: self.end - offset };
        self.end = offset;
        room
    }

    /// The next room: up to the next multiple of `step`, so that reads are cut as the writes were. Nothing at
    /// the end.
    pub(crate) fn next_room(&mut self, step: usize) -> Option<ImageRoom> {
        assert!(step > 0 && step.is_multiple_of(DISK_PAGE_BYTES));
        let len = (step - self.next % step).min(self.end - self.next);
        let room = ImageRoom { memory: self.memory.clone(), offset: self.next, len };
        self.next += len;
        (len > 0).then_some(room)
    }
}

/// Room for a stretch of an image. Whoever holds it is the only one to reach its bytes.
#[derive(Debug)]
pub(crate) struct ImageRoom {
    memory: Arc<Reservation>,
    offset: usize,
    len: usize,
}

impl ImageRoom {
    /// Where in the image.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

// SAFETY: the range is usable, at one address while `memory` lives, and lies in the mapping, not in the value.
// It belongs to this value alone: `ImageRooms` hands out each stretch once, and an image shows no byte of it
// before `Image::accept` has consumed the room.
unsafe impl IoRoom for ImageRoom {
    fn room(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` keeps a second call out while the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start.add(self.offset).as_ptr(), self.len) }
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

// SAFETY: address and length are those of the reservation and never change; the bytes are frozen, and
// `memory` keeps them mapped while the value lives; they lie in the mapping, not in the value.
unsafe impl IoBytes for FrozenBytes {
    fn bytes(&self) -> &[u8] {
        self
    }

    /// They are an image's, and the image's budget has paid for them.
    fn stays(&self) -> bool {
        true
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
        let image = image.bytes();
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
        let image = image.bytes();
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

    #[test]
    fn an_image_is_filled_in_order_and_shows_only_what_has_come() {
        let (image, mut rooms) = Image::to_fill(PIECE + 5000).unwrap();
        let mut handed: Vec<ImageRoom> = std::iter::from_fn(|| rooms.next_room(PIECE / 2)).collect();
        assert_eq!(handed.iter().map(ImageRoom::len).collect::<Vec<_>>(), [PIECE / 2, PIECE / 2, 8192]);
        // Filled from the back, as disks may.
        for (number, room) in handed.iter_mut().enumerate().rev() {
            room.room().fill(number as u8 + 1);
        }
        assert!(image.bytes().is_empty());
        let reached: Vec<_> = handed.into_iter().map(|room| image.accept(room)).collect();
        assert_eq!(reached, [PIECE / 2, PIECE, PIECE + 5000]);
        assert_eq!(image.bytes().len(), image.len());
        assert!(image.bytes().chunks(PIECE / 2).zip(1..).all(|(part, n)| part.iter().all(|&byte| byte == n)));
    }

    #[test]
    fn the_tail_can_come_first() {
        let (mut image, mut rooms) = Image::to_fill(PIECE + 5000).unwrap();
        let mut tail = rooms.tail_room(PIECE + 4500);
        assert_eq!((tail.offset(), tail.len()), (PIECE + 4096, 4096));
        tail.room().fill(9);
        image.accept_tail(tail);
        assert_eq!((image.bytes(), image.bytes_from(PIECE + 4500)), (&[][..], &[9; 500][..]));
        let mut reached = Vec::new();
        // The first room is cut at the step that a read would have, had it begun at the front.
        let first = rooms.next_room(4096).unwrap();
        reached.push(image.accept(first));
        while let Some(room) = rooms.next_room(PIECE) {
            reached.push(image.accept(room));
        }
        assert_eq!(reached, [4096, PIECE, PIECE + 5000]);
        assert_eq!(image.bytes_from(PIECE + 4500), [9; 500]);
    }

    #[test]
    #[should_panic(expected = "rooms come back in their order")]
    fn a_room_that_skips_another_is_not_taken() {
        let (image, mut rooms) = Image::to_fill(2 * PIECE).unwrap();
        let _first = rooms.next_room(PIECE);
        image.accept(rooms.next_room(PIECE).unwrap());
    }
}
