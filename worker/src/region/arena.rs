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
//!
//! First touch of fresh memory costs as much as filling it. So the large pages of an image that nobody needs any more are
//! kept as [`SparePage`]s by the [memory budget](crate::budget::memory), and the next image takes them in: the
//! kernel moves them to where the image grows, by changing its page tables. Spare pages hold what was written last. So
//! whoever fills a piece writes every byte of it that counts.

use std::any::Any;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::budget::memory::MemoryGrant;
use crate::spindle::engine::{IoBytes, IoRoom};

/// Images begin at multiples of this, the size of the large pages.
pub(crate) const LARGE_PAGE_BYTES: usize = 2 << 20;
/// What O_DIRECT wants lengths to be multiples of.
const DISK_PAGE_BYTES: usize = 4096;

/// How many pages there may be, in the whole process, that are spare or were so before they were moved into an image. The
/// kernel keeps a record for each that was moved, and gives a process 65,530 of them for everything it maps. What is
/// beyond is unmapped when its image goes.
const RECYCLED_PAGES_MAX: usize = 16_384;

/// How many there are: counted from the moment that a page becomes spare until it is unmapped.
static RECYCLED_PAGES: AtomicUsize = AtomicUsize::new(0);

/// Set when the kernel has refused to move a page, which a sandbox may have it do: then none is kept any more.
static MOVES_REFUSED: AtomicBool = AtomicBool::new(false);

/// Whether the system may take our memory to a swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Paging {
    #[default]
    Free,
    /// It stays where it is (mlock).
    Locked,
}

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
    /// Moved by whoever grows it, who is one.
    usable: AtomicUsize,
    /// How many spare pages were moved in.
    moved: AtomicUsize,
    /// How much of `reserved` is surely ours: all, unless a move has failed in the middle of it.
    owned: AtomicUsize,
    paging: Paging,
    /// What it takes of the memory budget: given back after the memory, or with the memory.
    grant: Mutex<Option<MemoryGrant>>,
}

// SAFETY: a reservation is an address range that belongs to this value alone; nothing in it is tied to a
// thread. Access to the bytes goes through the types below, which argue for themselves.
unsafe impl Send for Reservation {}
// SAFETY: as above; a shared `Reservation` offers no access to bytes at all.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Reserves address space; takes no memory.
    fn new(bytes: usize, paging: Paging) -> io::Result<Reservation> {
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
        Ok(Reservation {
            mapping,
            mapping_bytes,
            start,
            reserved,
            usable: AtomicUsize::new(0),
            moved: AtomicUsize::new(0),
            owned: AtomicUsize::new(reserved),
            paging,
            grant: Mutex::new(None),
        })
    }

    /// Reserves address space, the first `usable` bytes of which can be used at once.
    fn growing(
        bytes: usize,
        usable: usize,
        spares: Vec<SparePage>,
        paging: Paging,
    ) -> io::Result<Reservation> {
        let reservation = Reservation::new(bytes, paging)?;
        if reservation.grow_usable(usable, spares).is_ok() {
            return Ok(reservation);
        }
        let reservation = Reservation::new(bytes, paging)?;
        reservation.grow_usable(usable, Vec::new())?;
        Ok(reservation)
    }

    /// Makes what lies from the end of the usable to `to` usable as well: with spare pages first, which hold what was
    /// written last, then with fresh memory, which is zeros. Only for who grows it.
    fn grow_usable(&self, to: usize, spares: Vec<SparePage>) -> io::Result<()> {
        let mut from = self.usable.load(Ordering::Relaxed);
        for spare in spares {
            if from.is_multiple_of(LARGE_PAGE_BYTES)
                && from + LARGE_PAGE_BYTES <= to
                && self.adopt(from, spare)?
            {
                from += LARGE_PAGE_BYTES;
            }
        }
        self.make_usable(from, to)?;
        self.usable.store(to, Ordering::Relaxed);
        Ok(())
    }

    /// Moves a spare page to `at`. Says whether it is there; if not it is gone, and all is as before.
    ///
    /// # Errors
    /// The kernel refused in the middle, and the addresses may be somebody else's now. No memory is lost, but the
    /// reservation ends here.
    fn adopt(&self, at: usize, spare: SparePage) -> io::Result<bool> {
        assert!(at.is_multiple_of(LARGE_PAGE_BYTES) && at >= self.usable.load(Ordering::Relaxed));
        if MOVES_REFUSED.load(Ordering::Relaxed) {
            return Ok(false);
        }
        assert!(at + LARGE_PAGE_BYTES <= self.owned.load(Ordering::Relaxed));
        // SAFETY: `at` is below `owned`, so inside of the reservation.
        let target = unsafe { self.start.add(at) }.cast::<libc::c_void>().as_ptr();
        // SAFETY: the call replaces one page of our own mapping, which nobody can reach yet since it lies beyond
        // `usable`, by a page that belongs to `spare` alone and that nobody refers to. Both begin at multiples of
        // 2 MiB, in mappings of whole such pages, so the page never lies in two of the kernel's mappings.
        let moved = unsafe {
            libc::mremap(
                spare.start.cast().as_ptr(),
                LARGE_PAGE_BYTES,
                LARGE_PAGE_BYTES,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                target,
            )
        };
        if moved != libc::MAP_FAILED {
            self.moved.fetch_add(1, Ordering::Relaxed);
            // Nothing is mapped there any more: the addresses are the kernel's, and the page is ours.
            std::mem::forget(spare);
            return Ok(true);
        }
        let refused = io::Error::last_os_error();
        MOVES_REFUSED.store(true, Ordering::Relaxed);
        if self.close_hole(at) {
            return Ok(false);
        }
        // Either the kernel has not unmapped them, or another thread has got them since: nobody can tell.
        self.owned.store(at, Ordering::Relaxed);
        Err(refused)
    }

    /// Reserves one page's addresses again after a move that has failed: the kernel may have unmapped them already.
    /// Says whether they are ours for sure.
    fn close_hole(&self, at: usize) -> bool {
        // SAFETY: `at` is below `owned`, so inside of the reservation.
        let target = unsafe { self.start.add(at) }.cast::<libc::c_void>().as_ptr();
        // SAFETY: with MAP_FIXED_NOREPLACE the call maps only what is not mapped. Had another thread got these
        // addresses in between, or had the kernel not unmapped them, it would fail, and touch nothing.
        let closed = unsafe {
            libc::mmap(
                target,
                LARGE_PAGE_BYTES,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if closed != libc::MAP_FAILED && closed != target {
            // A kernel before 4.17 takes the address for a wish.
            // SAFETY: it was mapped just now, for nobody.
            unsafe { unmap(closed, LARGE_PAGE_BYTES) };
        }
        closed == target
    }

    fn paid(&self) -> u64 {
        let grant = self.grant.lock().unwrap_or_else(PoisonError::into_inner);
        grant.as_ref().map_or(0, MemoryGrant::bytes)
    }

    /// Takes over what pays for its memory.
    fn pay(&self, more: MemoryGrant) {
        let mut grant = self.grant.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *grant {
            Some(grant) => grant.join(more),
            none => *none = Some(more),
        }
    }

    /// Makes `[from, to)` readable and writable, zeros until written.
    fn make_usable(&self, from: usize, to: usize) -> io::Result<()> {
        assert!(from.is_multiple_of(DISK_PAGE_BYTES) && from <= to && to <= self.reserved);
        if from == to {
            return Ok(());
        }
        if to > self.owned.load(Ordering::Relaxed) {
            return Err(io::Error::other("the reservation has ended where a page could not be moved"));
        }
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
            // Locked when it is touched, not now: a piece ahead may never be filled.
            if self.paging == Paging::Locked
                && libc::mlock2(address, to - from, libc::MLOCK_ONFAULT as libc::c_uint) != 0
            {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let usable = *self.usable.get_mut();
        let grant = self.grant.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // Pages for which nobody has paid are not kept.
        let paid = grant.as_ref().map_or(0, |grant| usize::try_from(grant.bytes()).unwrap_or(usize::MAX));
        RECYCLED_PAGES.fetch_sub(*self.moved.get_mut(), Ordering::Relaxed);
        let pages = recycle(usable.min(paid) / LARGE_PAGE_BYTES);
        let kept = pages * LARGE_PAGE_BYTES;
        let mapping = self.mapping.as_ptr();
        let before = self.start.addr().get() - mapping.addr();
        let owned = *self.owned.get_mut();
        let end = if owned == self.reserved { self.mapping_bytes } else { before + owned };
        // SAFETY: `[0, end)` of the mapping is ours, and whoever could still reach a byte of it holds this value
        // alive. What is not unmapped becomes the spare pages' below: each byte has one owner.
        unsafe {
            unmap(mapping, before);
            unmap(mapping.byte_add(before + kept), end - before - kept);
        }
        let spares = (0..pages)
            // SAFETY: `kept` lies inside of the reservation.
            .map(|page| SparePage { start: unsafe { self.start.add(page * LARGE_PAGE_BYTES) } })
            .collect();
        if let Some(grant) = grant {
            grant.give_back_with(spares);
        }
    }
}

/// Counts pages that become spare: so many of them as the limit allows, which it says.
fn recycle(pages: usize) -> usize {
    if MOVES_REFUSED.load(Ordering::Relaxed) {
        return 0;
    }
    let before = RECYCLED_PAGES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
        Some(count.saturating_add(pages).min(RECYCLED_PAGES_MAX).max(count))
    });
    pages.min(RECYCLED_PAGES_MAX.saturating_sub(before.expect("it is always changed")))
}

/// Unmaps a range that may be empty.
///
/// # Safety
/// The range is the caller's own, and nobody reaches it any more.
unsafe fn unmap(address: *mut libc::c_void, bytes: usize) {
    if bytes > 0 {
        // SAFETY: the caller's.
        let result = unsafe { libc::munmap(address, bytes) };
        debug_assert_eq!(result, 0, "unmapping our own mapping: {}", io::Error::last_os_error());
    }
}

/// A large page of memory that is kept for the next image. What stands in it is what was written last: nobody reads it.
#[derive(Debug)]
pub(crate) struct SparePage {
    /// A multiple of 2 MiB; the mapping from here on is this value's own.
    start: NonNull<u8>,
}

#[cfg(test)]
impl SparePage {
    /// One that nobody has written to.
    pub(crate) fn fresh() -> SparePage {
        let budget = crate::budget::memory::MemoryBudget::new(4 * LARGE_PAGE_BYTES as u64, 0);
        let first = budget.try_take_for_image(LARGE_PAGE_BYTES as u64).unwrap();
        drop(ImageWriter::new(LARGE_PAGE_BYTES, LARGE_PAGE_BYTES, first).unwrap());
        budget.try_take_for_image(LARGE_PAGE_BYTES as u64).unwrap().spares.pop().expect("it was kept")
    }
}

// SAFETY: a spare page is an address range that belongs to this value alone, and it offers no access to its bytes.
unsafe impl Send for SparePage {}
// SAFETY: as above.
unsafe impl Sync for SparePage {}

impl Drop for SparePage {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own, and whoever had reached it has dropped its reservation.
        unsafe { unmap(self.start.cast().as_ptr(), LARGE_PAGE_BYTES) };
        RECYCLED_PAGES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Memory that an image may take: paid for, and as far as there are spare pages, there already.
#[derive(Debug)]
pub(crate) struct ImageMemory {
    pub(crate) grant: MemoryGrant,
    pub(crate) spares: Vec<SparePage>,
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
    pub(crate) fn new(piece_bytes: usize, bytes_max: usize, first: ImageMemory) -> io::Result<ImageWriter> {
        assert!(piece_bytes > 0 && piece_bytes.is_multiple_of(LARGE_PAGE_BYTES));
        let reserved = bytes_max.max(piece_bytes).next_multiple_of(piece_bytes);
        let memory = Reservation::growing(reserved, piece_bytes, first.spares, first.grant.paging())?;
        memory.pay(first.grant);
        Ok(ImageWriter { memory: Arc::new(memory), piece_bytes, frozen: 0 })
    }

    /// Has the kernel give the piece's memory now, instead of while it is filled.
    pub(crate) fn touch(&mut self) {
        for page in self.piece().chunks_mut(DISK_PAGE_BYTES) {
            std::hint::black_box(page)[0] = 0;
        }
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

    /// Freezes the piece, which is full, and goes on to the next one, in memory for one piece more.
    ///
    /// # Errors
    /// If the image may not grow further, or no memory is left. The piece is then still the current one.
    pub(crate) fn next_piece(&mut self, more: ImageMemory) -> io::Result<FrozenBytes> {
        let next = self.frozen + self.piece_bytes;
        if next + self.piece_bytes > self.memory.reserved {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "the image has grown to its limit"));
        }
        self.memory.grow_usable(next + self.piece_bytes, more.spares)?;
        self.memory.pay(more.grant);
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
    /// Starts an image of `len` bytes that are to be read from a disk, with spare pages as far as there are any.
    ///
    /// # Errors
    /// If there is no address space left, or no memory to promise.
    pub(crate) fn to_fill(
        len: usize,
        spares: Vec<SparePage>,
        paging: Paging,
    ) -> io::Result<(Image, ImageRooms)> {
        let whole_pages = len.next_multiple_of(DISK_PAGE_BYTES);
        let memory = Arc::new(Reservation::growing(whole_pages, whole_pages, spares, paging)?);
        let rooms = ImageRooms { memory: memory.clone(), end: whole_pages, next: 0 };
        Ok((Image { memory, len, frozen: AtomicUsize::new(0), tail: len }, rooms))
    }

    /// How much was paid for it: what comes free when it goes.
    pub(crate) fn paid(&self) -> u64 {
        self.memory.paid()
    }

    /// Takes over what pays for its memory: it is given back when the last who reads the image is gone.
    pub(crate) fn pay(&self, grant: MemoryGrant) {
        self.memory.pay(grant);
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
    pub(crate) fn new(len: usize, paging: Paging) -> io::Result<PieceBuffer> {
        let memory = Reservation::new(len, paging)?;
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
    use crate::budget::memory::{MemoryBudget, MemoryUse};

    const PIECE: usize = 2 << 20;

    fn budget(pieces: usize) -> MemoryBudget {
        MemoryBudget::new((pieces * PIECE) as u64, 0)
    }

    fn writer(budget: &MemoryBudget, pieces_max: usize) -> ImageWriter {
        ImageWriter::new(PIECE, pieces_max * PIECE, one_more(budget)).unwrap()
    }

    fn one_more(budget: &MemoryBudget) -> ImageMemory {
        budget.try_take_for_image(PIECE as u64).unwrap()
    }

    #[test]
    fn an_image_grows_without_moving_while_frozen_pieces_are_read() {
        let budget = budget(5);
        let mut writer = writer(&budget, 5);
        let start = writer.piece().as_ptr() as usize;
        assert!(start.is_multiple_of(LARGE_PAGE_BYTES));
        let mut frozen = Vec::new();
        for k in 0..4u8 {
            writer.piece().fill(k + 1);
            frozen.push(writer.next_piece(one_more(&budget)).unwrap());
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
        let budget = budget(3);
        let mut writer = writer(&budget, 2);
        writer.piece().fill(1);
        writer.next_piece(one_more(&budget)).unwrap();
        writer.piece().fill(2);
        assert_eq!(writer.next_piece(one_more(&budget)).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        let (_, image) = writer.seal(PIECE);
        let image = image.bytes();
        assert_eq!((image[0], image[PIECE], image.len()), (1, 2, 2 * PIECE));
    }

    #[test]
    fn a_frozen_piece_outlives_writer_and_image() {
        let budget = budget(3);
        let mut writer = writer(&budget, 2);
        writer.piece().fill(7);
        let piece = writer.next_piece(one_more(&budget)).unwrap();
        drop(writer.seal(0));
        assert!(piece.iter().all(|&byte| byte == 7));
    }

    #[test]
    fn an_image_is_filled_in_order_and_shows_only_what_has_come() {
        let (image, mut rooms) = Image::to_fill(PIECE + 5000, Vec::new(), Paging::Free).unwrap();
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
        let (mut image, mut rooms) = Image::to_fill(PIECE + 5000, Vec::new(), Paging::Free).unwrap();
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
        let (image, mut rooms) = Image::to_fill(2 * PIECE, Vec::new(), Paging::Free).unwrap();
        let _first = rooms.next_room(PIECE);
        image.accept(rooms.next_room(PIECE).unwrap());
    }

    /// An image of so many pieces, each full of this byte.
    fn filled(budget: &MemoryBudget, pieces: usize, byte: u8) -> Image {
        let mut writer = writer(budget, pieces);
        for _ in 1..pieces {
            writer.piece().fill(byte);
            writer.next_piece(one_more(budget)).unwrap();
        }
        writer.piece().fill(byte);
        writer.seal(PIECE).1
    }

    fn spares(budget: &MemoryBudget) -> usize {
        budget.counts().spares as usize / PIECE
    }

    #[test]
    fn the_memory_of_an_image_that_goes_is_the_next_ones() {
        let budget = budget(20);
        drop(filled(&budget, 6, 7));
        assert_eq!((spares(&budget), budget.counts().images), (6, 0));
        let mut writer = writer(&budget, 8);
        for piece in 0..7 {
            // Pages that were moved hold what they held; fresh ones are zeros.
            let expected = if piece < 6 { 7 } else { 0 };
            assert!(writer.piece().iter().all(|&byte| byte == expected), "piece {piece}");
            assert_eq!(spares(&budget), 5usize.saturating_sub(piece));
            writer.piece().fill(9);
            writer.next_piece(one_more(&budget)).unwrap();
        }
        let (_, image) = writer.seal(100);
        assert_eq!(image.bytes().len(), 7 * PIECE + 100);
        assert!(image.bytes()[..7 * PIECE].iter().all(|&byte| byte == 9));
        assert_eq!(budget.counts().images as usize, 8 * PIECE);
    }

    #[test]
    fn the_memory_goes_when_the_last_goes_that_reads_it() {
        let budget = budget(20);
        let mut writer = writer(&budget, 3);
        writer.piece().fill(7);
        let on_its_way = writer.next_piece(one_more(&budget)).unwrap();
        drop(writer); // As a load that is dropped.
        assert_eq!((spares(&budget), budget.counts().images as usize), (0, 2 * PIECE));
        assert!(on_its_way.iter().all(|&byte| byte == 7));
        drop(on_its_way);
        assert_eq!((spares(&budget), budget.counts().images), (2, 0));
    }

    #[test]
    fn an_image_that_is_read_takes_spare_pages_and_keeps_whole_ones() {
        let budget = budget(20);
        drop(filled(&budget, 4, 7));
        let grant = budget.try_take(MemoryUse::Images, (2 * PIECE + 5000) as u64).unwrap();
        let (image, mut rooms) = Image::to_fill(2 * PIECE + 5000, grant.spares(), Paging::Free).unwrap();
        image.pay(grant);
        assert_eq!(spares(&budget), 2);
        let mut reached = 0;
        while let Some(mut room) = rooms.next_room(PIECE) {
            let was = if room.offset() < 2 * PIECE { 7 } else { 0 };
            assert!(room.room().iter().all(|&byte| byte == was));
            room.room().fill(3);
            reached = image.accept(room);
        }
        assert_eq!(reached, 2 * PIECE + 5000);
        assert!(image.bytes().iter().all(|&byte| byte == 3));
        drop((image, rooms));
        assert_eq!((spares(&budget), budget.counts().images), (4, 0), "the last page was not a whole one");
    }

    #[test]
    fn memory_that_nobody_has_paid_for_is_not_kept() {
        let budget = budget(20);
        drop(filled(&budget, 2, 7));
        let grant = budget.try_take(MemoryUse::Images, 2 * PIECE as u64).unwrap();
        drop(Image::to_fill(2 * PIECE, grant.spares(), Paging::Free).unwrap());
        drop(grant);
        assert_eq!((spares(&budget), budget.counts().images), (0, 0));
    }

    /// Goal: where moves are refused images are made of fresh memory. Method: a process in which the call is forbidden.
    #[test]
    fn a_move_that_is_refused_leaves_fresh_memory() {
        const ROLE: &str = "PELTON_TEST_REFUSED_MOVE";
        if std::env::var_os(ROLE).is_none() {
            let module = module_path!().split_once("::").expect("below the crate").1;
            let name = format!("{module}::a_move_that_is_refused_leaves_fresh_memory");
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "--nocapture", &name]).env(ROLE, "1");
            crate::sys::forbid_calls(&mut child, libc::SYS_mremap as u32..=libc::SYS_mremap as u32);
            let output = child.output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !text.contains("panicked"), "{text}");
            return;
        }
        let budget = budget(20);
        drop(filled(&budget, 3, 7));
        let mut first = one_more(&budget);
        let reservation = Reservation::new(4 * PIECE, Paging::Free).unwrap();
        reservation.grow_usable(PIECE, Vec::new()).unwrap();
        assert!(reservation.grow_usable(2 * PIECE, std::mem::take(&mut first.spares)).is_err());
        assert_eq!(reservation.owned.load(Ordering::Relaxed), PIECE, "what comes then may be anybody's");
        assert!(reservation.grow_usable(2 * PIECE, Vec::new()).is_err());
        drop(reservation);

        assert_eq!(spares(&budget), 2);
        let image = filled(&budget, 4, 9);
        assert!(image.bytes().iter().all(|&byte| byte == 9));
        drop(image);
        assert_eq!(spares(&budget), 0, "nothing is kept any more");

        let reservation = Reservation::new(PIECE, Paging::Free).unwrap();
        reservation.grow_usable(PIECE, Vec::new()).unwrap();
        // SAFETY: all of it is usable, and this test's own.
        let bytes = unsafe { std::slice::from_raw_parts_mut(reservation.start.as_ptr(), PIECE) };
        bytes.fill(5);
        assert!(!reservation.close_hole(0), "what is mapped is never mapped over");
        assert!(bytes.iter().all(|&byte| byte == 5));
    }

    /// Goal: what is touched of a locked cache's memory stays, and what is moved on stays locked. Method: the kernel's own
    /// count of what this process has locked, in a process of its own.
    #[test]
    fn locked_memory_is_locked_as_it_is_touched_and_when_it_is_used_again() {
        const ROLE: &str = "PELTON_TEST_LOCKED";
        if std::env::var_os(ROLE).is_none() {
            let module = module_path!().split_once("::").expect("below the crate").1;
            let name =
                format!("{module}::locked_memory_is_locked_as_it_is_touched_and_when_it_is_used_again");
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            let output = child.args(["--exact", "--nocapture", &name]).env(ROLE, "1").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            if text.contains("skipped:") {
                eprintln!("skipped: this process may not lock 8 MiB");
            }
            assert!(output.status.success(), "{text}");
            return;
        }
        let locked = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
            line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
        };
        if crate::config::host::lockable_bytes().is_some_and(|bytes| bytes < 8 << 20) {
            println!("skipped: this process may not lock 8 MiB");
            return;
        }
        assert_eq!(locked(), 0);
        let budget = budget(4).with_paging(Paging::Locked);
        let image = filled(&budget, 2, 7);
        assert_eq!(locked(), 2 * PIECE);
        drop(image);
        assert_eq!((spares(&budget), locked()), (2, 2 * PIECE));
        let image = filled(&budget, 3, 8);
        assert_eq!(locked(), 3 * PIECE);
        drop(image);
        budget.drop_spares();
        assert_eq!(locked(), 0);
        let piece = PieceBuffer::new(PIECE, Paging::Locked).unwrap();
        assert_eq!(locked(), PIECE);
        drop(piece);
    }
}
