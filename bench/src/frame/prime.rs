//! Memory that is quick to come.
//!
//! A virtual machine may report its free pages to its host, which takes them back. First touch of
//! such a page then costs a fault in the host as well: we saw 0.5 GB/s against 8 GB/s, which can make
//! a good design look ten times slower than it is. So the memory is *primed*: touched and freed.
//!
//! To prime everything before each of a hundred samples would take longer than the samples. So
//! everything is primed once at the start. Before each sample a probe touches at least as much fresh
//! memory as the sample will; the kernel hands out first what was freed last, so the sample gets the
//! probe's pages. A probe slower than half of the primed rate means that the host took pages back, or
//! that somebody else has the machine: then some probes' worth is primed again and the probe repeated,
//! before the sample runs. So no sample has to be thrown away.

use std::fmt;
use std::hint::black_box;
use std::time::Instant;

use super::knobs::Knobs;
use super::machine;
use super::memory::Memory;
use super::statistics::Summary;

const PAGE_BYTES: usize = 4096;

/// What stays untouched when all memory is primed: a sixteenth, and at least this. The page cache and
/// other processes live there, and the kernel's guess of what can be had is only a guess.
const SPARED_BYTES_MIN: u64 = 512 << 20;

/// How often memory is primed again for one sample, and in one call of the program. After that the
/// machine is what it is: the sample is taken and marked unsteady.
const PRIMINGS_MAX: u32 = 3;
const PRIMINGS_TOTAL_MAX: u32 = 40;

/// How many probes' worth is primed again. All of the memory could take a minute each time.
const PRIMING_PROBES: u64 = 4;

/// A rate below this share of the primed one means that something is wrong.
const STEADY_SHARE: f64 = 0.5;

/// Touches fresh memory and says how fast that went.
pub(crate) struct Primer {
    prime_bytes: u64,
    probe_bytes: u64,
    /// Bytes touched by one call of `touch`, in bytes per second. A field, so that tests can put
    /// another world there.
    touch: Box<dyn FnMut(u64) -> f64>,
    /// What a probe does right after priming.
    primed_rate: f64,
    primings: u32,
    probe_rates: Vec<f64>,
}

/// Whether memory was quick to come right before a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Steadiness {
    Steady,
    Unsteady,
}

/// What priming at the start found.
pub(crate) struct Primed {
    bytes: u64,
    first_rate: f64,
    primed_rate: f64,
}

impl Primer {
    pub(crate) fn new(knobs: &mut Knobs) -> Primer {
        Primer::with_touch(
            knobs.knob("prime_bytes", (256 << 20, 1 << 40)),
            knobs.knob("probe_bytes", (64 << 20, 256 << 20)),
            Box::new(touch),
        )
    }

    fn with_touch(prime_bytes: u64, probe_bytes: u64, touch: Box<dyn FnMut(u64) -> f64>) -> Primer {
        Primer { prime_bytes, probe_bytes, touch, primed_rate: 0.0, primings: 0, probe_rates: Vec::new() }
    }

    /// Primes, and learns what the primed rate is.
    pub(crate) fn start(&mut self) -> Primed {
        let bytes = self.priming_bytes();
        let first_rate = (self.touch)(bytes);
        let probes = [(); 5].map(|()| (self.touch)(self.probe_bytes));
        self.primed_rate = Summary::of(probes).median;
        Primed { bytes, first_rate, primed_rate: self.primed_rate }
    }

    /// Call it right before a sample whose timed part touches `fresh_bytes` of memory that it did
    /// not hold before.
    pub(crate) fn before_sample(&mut self, fresh_bytes: u64) -> Steadiness {
        let probe_bytes = self.probe_bytes.max(fresh_bytes);
        for priming in 0..=PRIMINGS_MAX {
            // The second try costs little, and a passing disturbance is over by then.
            for _ in 0..2 {
                let rate = (self.touch)(probe_bytes);
                self.probe_rates.push(rate);
                if rate >= STEADY_SHARE * self.primed_rate {
                    return Steadiness::Steady;
                }
            }
            if priming == PRIMINGS_MAX || self.primings == PRIMINGS_TOTAL_MAX {
                break;
            }
            let bytes = self.priming_bytes().min(PRIMING_PROBES * probe_bytes);
            (self.touch)(bytes);
            self.primings += 1;
        }
        Steadiness::Unsteady
    }

    pub(crate) fn summary(&self) -> String {
        if self.probe_rates.is_empty() {
            return String::from("first touch: no sample was taken");
        }
        let rates = Summary::of(self.probe_rates.iter().copied());
        format!(
            "first touch before the samples: median {:.2} GB/s ({:.2} to {:.2}), primed again {} times",
            rates.median / 1e9,
            rates.min / 1e9,
            rates.max / 1e9,
            self.primings
        )
    }

    fn priming_bytes(&self) -> u64 {
        priming_bytes(self.prime_bytes, machine::available_bytes())
    }
}

/// Almost all of what can be had, but not more than was asked for. Unknown: what was asked for, if that is
/// modest.
fn priming_bytes(asked: u64, available: Option<u64>) -> u64 {
    let Some(available) = available else { return asked.min(1 << 30) };
    let spared = SPARED_BYTES_MIN.max(available / 16);
    asked.min(available.saturating_sub(spared)).max(PAGE_BYTES as u64)
}

impl fmt::Display for Primed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "primed {:.2} GB of memory: first touch at {:.2} GB/s, once primed {:.2} GB/s",
            self.bytes as f64 / 1e9,
            self.first_rate / 1e9,
            self.primed_rate / 1e9
        )
    }
}

/// Touches and frees fresh memory. Gives bytes per second of the touching.
fn touch(bytes: u64) -> f64 {
    let bytes = usize::try_from(bytes).expect("addresses have 64 bits");
    let mut memory = Memory::zeroed(bytes).expect("a probe is no larger than the memory");
    let started = Instant::now();
    for page in memory.chunks_mut(PAGE_BYTES) {
        page[0] = 1;
    }
    black_box(&mut *memory);
    bytes as f64 / started.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    const PRIME: u64 = 64 << 20;
    const PROBE: u64 = 1 << 20;

    /// A primer in a world where touch number n has the n-th rate; the last one holds on. Also
    /// gives what was touched.
    fn primer(rates: &[f64]) -> (Primer, Rc<RefCell<Vec<u64>>>) {
        let touched = Rc::new(RefCell::new(Vec::new()));
        let (rates, log) = (rates.to_vec(), Rc::clone(&touched));
        let touch = move |bytes| {
            log.borrow_mut().push(bytes);
            rates[(log.borrow().len() - 1).min(rates.len() - 1)]
        };
        (Primer::with_touch(PRIME, PROBE, Box::new(touch)), touched)
    }

    #[test]
    fn a_quick_probe_is_all_a_sample_waits_for() {
        let (mut primer, touched) = primer(&[0.5, 8.0]);
        let primed = primer.start();
        assert_eq!((primed.first_rate, primed.primed_rate), (0.5, 8.0));
        assert_eq!(primer.before_sample(0), Steadiness::Steady);
        assert_eq!(primer.before_sample(3 * PROBE), Steadiness::Steady);
        assert_eq!(*touched.borrow(), [PRIME, PROBE, PROBE, PROBE, PROBE, PROBE, PROBE, 3 * PROBE]);
    }

    #[test]
    fn slow_memory_is_primed_again_before_the_sample() {
        // The start takes 6 touches, then two slow probes, the priming, and a quick probe.
        let (mut primer, touched) = primer(&[0.5, 8.0, 8.0, 8.0, 8.0, 8.0, 0.5, 3.9, 0.5, 4.0]);
        primer.start();
        assert_eq!(primer.before_sample(0), Steadiness::Steady);
        assert_eq!(touched.borrow()[6..], [PROBE, PROBE, PRIMING_PROBES * PROBE, PROBE]);
        assert_eq!(primer.primings, 1);
    }

    #[test]
    fn a_machine_that_never_gets_quick_is_unsteady_not_endless() {
        let (mut primer, _) = primer(&[0.5, 8.0, 8.0, 8.0, 8.0, 8.0, 0.5]);
        primer.start();
        assert_eq!(primer.before_sample(0), Steadiness::Unsteady);
        assert_eq!(primer.primings, PRIMINGS_MAX);
    }

    #[test]
    fn priming_leaves_room_for_others() {
        const GIB: u64 = 1 << 30;
        assert_eq!(priming_bytes(1 << 40, Some(32 * GIB)), 30 * GIB);
        assert_eq!(priming_bytes(1 << 40, Some(GIB)), GIB / 2);
        assert_eq!(priming_bytes(GIB, Some(32 * GIB)), GIB);
        assert_eq!(priming_bytes(1 << 40, Some(0)), 4096);
        assert_eq!(priming_bytes(1 << 40, None), GIB);
    }

    #[test]
    fn touching_takes_time() {
        let rate = touch(1 << 20);
        assert!(rate.is_finite() && rate > 0.0);
    }
}
