//! Who has a lease on an entry's slices, each since when, and how often and when somebody asked.

use std::time::Instant;

use pelton_region_format::Fingerprint;

use crate::tender::History;

/// The leases on an entry's slices, and its queries.
///
/// A place that was left is used again. So taking a lease and giving it back allocates nothing, however often, and an
/// entry that nobody has leased yet has no place.
pub(crate) struct Holders {
    places: Vec<Place>,
    /// The place to be used next. Each free one names the one after it; a number that is no place's ends the list.
    free: u32,
    count: u32,
    history: History,
    arrived_ms: u64,
}

enum Place {
    Free { next: u32 },
    Held { fingerprint: Fingerprint, since: Instant },
}

/// How much an entry is used. Times are the runner's, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Its queries.
    pub(crate) history: History,
    /// When it was last loaded or brought into memory.
    pub(crate) arrived_ms: u64,
    /// Whether somebody holds a lease now, be it one that reads from the disk.
    pub(crate) leased: bool,
}

impl Holders {
    /// Of an entry that nobody has asked for yet, made at this moment.
    pub(crate) fn new(now_ms: u64) -> Holders {
        Holders { places: Vec::new(), free: 0, count: 0, history: History::begin(now_ms), arrived_ms: now_ms }
    }

    /// Takes over when an earlier process was asked.
    pub(crate) fn restore(&mut self, history: History, arrived_ms: u64) {
        (self.history, self.arrived_ms) = (history, arrived_ms);
    }

    /// One lease more, which is a query, too. The number is for [`release`](Holders::release).
    pub(crate) fn hold(&mut self, fingerprint: Fingerprint, since: Instant, now_ms: u64) -> u32 {
        let (number, held) = (self.free, Place::Held { fingerprint, since });
        match self.places.get_mut(number as usize) {
            Some(place) => {
                let Place::Free { next } = *place else {
                    unreachable!("place {number} is on the list of the free")
                };
                self.free = next;
                *place = held;
            }
            None => {
                self.places.push(held);
                self.free = self.places.len() as u32;
            }
        }
        self.count += 1;
        self.history.query(now_ms);
        number
    }

    /// A lease is given back.
    pub(crate) fn release(&mut self, number: u32) {
        let place = &mut self.places[number as usize];
        assert!(matches!(place, Place::Held { .. }), "lease {number} is given back once");
        *place = Place::Free { next: self.free };
        self.free = number;
        self.count -= 1;
    }

    /// It was loaded or brought into memory.
    pub(crate) fn arrived(&mut self, now_ms: u64) {
        self.arrived_ms = now_ms;
    }

    /// All leases, each with the fingerprint of what it holds, and its beginning.
    pub(crate) fn held(&self) -> Vec<(Fingerprint, Instant)> {
        let held = self.places.iter().filter_map(|place| match place {
            Place::Free { .. } => None,
            Place::Held { fingerprint, since } => Some((*fingerprint, *since)),
        });
        held.collect()
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage { history: self.history, arrived_ms: self.arrived_ms, leased: self.count > 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Beside a list that is searched: as many leases as there were at once take places, and no more.
    #[test]
    fn places_are_used_again_and_everybody_who_holds_is_listed() {
        let seed = 42;
        println!("seed {seed}");
        let (mut holders, mut model) = (Holders::new(0), Vec::new());
        let (mut random, mut most, begin) = (seed, 0, Instant::now());
        for step in 0..10_000u64 {
            random = u64::wrapping_mul(random, 6_364_136_223_846_793_005).wrapping_add(1);
            let choice = random >> 33;
            // Up and down in waves, and to none at all now and then.
            if model.is_empty() || (choice % 100 < 55) == (step / 700 % 2 == 0) {
                let (fingerprint, since) =
                    (Fingerprint::from_bytes([step as u8; 32]), begin + Duration::from_nanos(step));
                model.push((holders.hold(fingerprint, since, step), fingerprint, since));
            } else {
                holders.release(model.swap_remove(choice as usize % model.len()).0);
            }
            most = most.max(model.len());
            let mut expected: Vec<_> =
                model.iter().map(|(_, fingerprint, since)| (*fingerprint, *since)).collect();
            let mut held = holders.held();
            expected.sort_by_key(|(_, since)| *since);
            held.sort_by_key(|(_, since)| *since);
            assert_eq!(held, expected, "step {step}");
            assert_eq!((holders.count() as usize, holders.usage().leased), (held.len(), !held.is_empty()));
        }
        assert_eq!(holders.places.len(), most);
        assert!(most > 10, "the waves are flat: {most}");
    }

    #[test]
    #[should_panic(expected = "lease 0 is given back once")]
    fn a_lease_that_is_given_back_twice_is_our_bug() {
        let mut holders = Holders::new(0);
        let number = holders.hold(Fingerprint::from_bytes([1; 32]), Instant::now(), 0);
        holders.release(number);
        holders.release(number);
    }
}
