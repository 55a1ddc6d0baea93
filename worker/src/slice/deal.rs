//! Which region gets a blob.

/// How blobs are dealt over a slice's regions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Deal {
    /// One after the other: the regions' counts differ by at most one, whatever the parcels were.
    #[default]
    RoundRobin,
    /// Each to the region with the fewest bytes: for blobs of very different lengths.
    LeastBytes,
}

/// Deals. A plain value: it is told what comes and answers where it goes.
#[derive(Clone, Debug)]
pub(crate) struct Dealer {
    deal: Deal,
    next: usize,
    /// The bytes that each region has been dealt.
    bytes: Vec<u64>,
}

impl Dealer {
    pub(crate) fn new(deal: Deal, regions: usize) -> Dealer {
        assert!(regions > 0, "a slice has at least one region");
        Dealer { deal, next: 0, bytes: vec![0; regions] }
    }

    /// The region that gets the next blob, of this many bytes.
    #[inline]
    pub(crate) fn deal(&mut self, len: usize) -> usize {
        let region = match self.deal {
            Deal::RoundRobin => self.next,
            // Regions are as few as cores: a plain look at all of them is the fastest heap.
            Deal::LeastBytes => {
                (0..self.bytes.len()).min_by_key(|&region| self.bytes[region]).expect("there is a region")
            }
        };
        self.next = if region + 1 == self.bytes.len() { 0 } else { region + 1 };
        self.bytes[region] += len as u64;
        region
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_robin_counts_differ_by_at_most_one() {
        for regions in 1..10 {
            let mut dealer = Dealer::new(Deal::RoundRobin, regions);
            let mut counts = vec![0u32; regions];
            for blob in 0..100 {
                counts[dealer.deal(blob * 13 % 7)] += 1;
                let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                assert!(most - least <= 1, "{counts:?}");
            }
        }
    }

    #[test]
    fn least_bytes_evens_out_what_round_robin_does_not() {
        let lengths: Vec<usize> = (0..1000).map(|blob| if blob % 4 == 0 { 10_000 } else { 10 }).collect();
        let spread = |deal| {
            let mut dealer = Dealer::new(deal, 4);
            lengths.iter().for_each(|&len| _ = dealer.deal(len));
            dealer.bytes.iter().max().unwrap() - dealer.bytes.iter().min().unwrap()
        };
        assert!(spread(Deal::LeastBytes) <= 10_000);
        assert!(spread(Deal::RoundRobin) > 2_000_000);
    }
}
