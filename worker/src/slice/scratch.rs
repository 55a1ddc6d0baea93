//! Room that parcels are inflated into, kept from one parcel to the next.
//!
//! Fresh memory costs more than inflating: each of its pages is a fault, and the kernel fills it with zeros that
//! nobody reads. Room that is used again costs nothing, and lies in the processor's cache.

use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

/// The rooms of one cache. What is kept was set aside when the cache was opened; while a room is in use, its
/// parcel has paid for it.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    bytes_max: usize,
    kept: Mutex<Vec<Vec<u8>>>,
}

impl Scratch {
    /// Keeps at most this many bytes.
    pub(crate) fn new(bytes_max: usize) -> Scratch {
        Scratch { bytes_max, kept: Mutex::default() }
    }

    /// Room for so many bytes. What stands in it is what an earlier parcel left, or zeros.
    pub(crate) fn room(&self, len: usize) -> Room<'_> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        // Nothing of a smaller one is worth copying to a larger place.
        let bytes = kept.filter(|bytes| len <= bytes.len()).unwrap_or_else(|| vec![0; len]);
        Room { bytes, len, scratch: self }
    }

    fn give_back(&self, bytes: Vec<u8>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().chain([&bytes]).map(Vec::capacity).sum::<usize>() <= self.bytes_max {
            kept.push(bytes);
        }
    }
}

/// Room for one parcel. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    bytes: Vec<u8>,
    len: usize,
    scratch: &'a Scratch,
}

impl Room<'_> {
    /// All of the room, to be filled.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Deref for Room<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.scratch.give_back(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_used_again_and_has_the_length_that_was_asked_for() {
        let scratch = Scratch::new(10_000);
        let first = scratch.room(3000).as_ptr();
        for len in [3000, 10, 0, 2999] {
            let mut room = scratch.room(len);
            assert_eq!((room.as_ptr(), room.len(), room.bytes_mut().len()), (first, len, len));
        }
        assert_eq!(scratch.room(5000).len(), 5000);
    }

    #[test]
    fn no_more_is_kept_than_was_set_aside() {
        let scratch = Scratch::new(10_000);
        let rooms = [4000, 4000, 4000, 20_000].map(|len| scratch.room(len));
        drop(rooms);
        let kept: usize = scratch.kept.lock().unwrap().iter().map(Vec::capacity).sum();
        assert_eq!(kept, 8000);
    }
}
