//! Memory for the bodies of parcels, kept from one parcel to the next.
//!
//! Fresh memory costs as much as sending what stands in it: each of its pages is a fault, and the kernel fills it with
//! zeros that nobody reads.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Rooms for bodies. Clones are the same.
///
/// Invariant: what is kept has at most [`Rooms::KEPT_BYTES_MAX`]. Whoever uses a room has counted what stands in it as a parcel's
/// memory; a room has at most twice that, or 64 KiB.
#[derive(Clone, Debug, Default)]
pub struct Rooms {
    /// Who was used last goes first: most of it is still in the processor's cache.
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Rooms {
    /// What is kept while nobody uses it, in bytes: two streams' windows.
    pub const KEPT_BYTES_MAX: usize = 16 << 20;

    /// An empty room with place for so many bytes at least.
    pub fn take(&self, bytes: usize) -> Vec<u8> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        // Another one is dropped: those that are kept become as large as what is asked for, and no small parcel holds what
        // nobody has counted.
        let fitting = bytes..=bytes.saturating_mul(2).max(64 << 10);
        kept.filter(|room| fitting.contains(&room.capacity())).unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    /// What stands in a room. The room comes back when nobody has the bytes any more.
    pub fn filled(&self, room: Vec<u8>) -> Bytes {
        Bytes::from_owner(Filled { room, rooms: self.clone() })
    }

    /// Takes a room back.
    pub fn give_back(&self, mut room: Vec<u8>) {
        room.clear();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().chain([&room]).map(Vec::capacity).sum::<usize>() <= Rooms::KEPT_BYTES_MAX {
            kept.push(room);
        }
    }
}

struct Filled {
    room: Vec<u8>,
    rooms: Rooms,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.room
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        self.rooms.give_back(std::mem::take(&mut self.room));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_comes_back_when_the_last_one_has_let_go() {
        let rooms = Rooms::default();
        let mut room = rooms.take(3000);
        room.extend_from_slice(&[7; 3000]);
        let place = room.as_ptr();
        let bytes = rooms.filled(room);
        let part = bytes.slice(10..20);
        drop(bytes);
        let other = rooms.take(3000);
        assert_ne!(other.as_ptr(), place, "a part is still used");
        assert_eq!(part, [7; 10][..]);
        drop(part);
        let again = rooms.take(2999);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
    }

    #[test]
    fn a_small_parcel_holds_no_large_room() {
        let rooms = Rooms::default();
        rooms.give_back(Vec::with_capacity(1 << 20));
        assert!(rooms.take(100).capacity() <= 64 << 10);
    }

    #[test]
    fn a_room_that_is_too_small_is_not_used() {
        let rooms = Rooms::default();
        rooms.give_back(Vec::with_capacity(100));
        assert!(rooms.take(101).capacity() >= 101);
        assert!(rooms.kept.lock().unwrap().is_empty(), "the smaller one is gone");
    }

    #[test]
    fn no_more_is_kept_than_the_limit() {
        let rooms = Rooms::default();
        for bytes in [Rooms::KEPT_BYTES_MAX / 2, Rooms::KEPT_BYTES_MAX / 2, 1] {
            rooms.give_back(Vec::with_capacity(bytes));
        }
        assert_eq!(rooms.kept.lock().unwrap().len(), 2);
    }
}
