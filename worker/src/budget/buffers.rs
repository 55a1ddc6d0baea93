//! Memory for parcels that are still on their way, taken before they come.
//!
//! Whoever lets somebody else send (over a network, say) takes the memory first and gives leave for so much. What was
//! taken goes along with the parcel, which then takes nothing of its own.

use std::fmt;

use crate::budget::memory::{MemoryBudget, MemoryGrant, MemoryRefused, MemoryUse};

/// What a cache's parcels may use. Clones are the same.
#[derive(Clone)]
pub struct Buffers {
    budget: MemoryBudget,
}

/// Memory for parcels. Dropping it gives it back.
#[derive(Debug)]
#[must_use = "dropping it gives the memory back"]
pub struct BufferGrant {
    grant: MemoryGrant,
}

impl Buffers {
    pub(crate) fn new(budget: MemoryBudget) -> Buffers {
        Buffers { budget }
    }

    /// How much there is, in all.
    pub fn share(&self) -> u64 {
        self.budget.counts().buffers_max
    }

    /// Takes memory if nobody waits for it and at least `rest` is free afterwards: for what is good to have, not needed.
    pub fn spare(&self, bytes: u64, rest: u64) -> Option<BufferGrant> {
        let counts = self.budget.counts();
        if bytes.saturating_add(rest) > counts.buffers_max.saturating_sub(counts.buffers) {
            return None;
        }
        let grant = self.budget.try_take(MemoryUse::Buffers, bytes).ok()?;
        Some(BufferGrant { grant })
    }

    /// Takes memory, after everyone who asked earlier. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`MemoryRefused::NeverFits`] if it is more than there is in all.
    pub async fn take(&self, bytes: u64) -> Result<BufferGrant, MemoryRefused> {
        let grant = self.budget.taking(MemoryUse::Buffers, bytes)?.await?;
        Ok(BufferGrant { grant })
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers").field("share", &self.share()).finish_non_exhaustive()
    }
}

impl BufferGrant {
    /// How much it is.
    pub fn bytes(&self) -> u64 {
        self.grant.bytes()
    }

    /// Cuts a part off.
    ///
    /// # Panics
    /// If the part is larger than the whole.
    pub fn split(&mut self, bytes: u64) -> BufferGrant {
        BufferGrant { grant: self.grant.split(bytes) }
    }

    /// Takes another one of the same cache in.
    ///
    /// # Panics
    /// If it is another cache's.
    pub fn join(&mut self, other: BufferGrant) {
        self.grant.join(other.grant);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn what_is_spare_leaves_the_rest_free_and_what_is_needed_waits_for_it() {
        let buffers = Buffers::new(MemoryBudget::new(200, 100));
        let mut window = buffers.spare(60, 40).expect("exactly the rest is free");
        assert!(buffers.spare(1, 40).is_none());
        let mut context = Context::from_waker(Waker::noop());
        let mut needed = pin!(buffers.take(70));
        assert!(needed.as_mut().poll(&mut context).is_pending());
        assert!(buffers.spare(1, 0).is_none(), "somebody waits");
        drop(window.split(30));
        let Poll::Ready(Ok(needed)) = needed.as_mut().poll(&mut context) else { panic!("30 came back") };
        assert_eq!((needed.bytes(), window.bytes(), buffers.budget.counts().buffers), (70, 30, 100));
        window.join(needed);
        drop(window);
        assert_eq!(buffers.budget.counts().buffers, 0);
        let too_much = pin!(buffers.take(101)).poll(&mut context);
        assert!(matches!(
            too_much,
            Poll::Ready(Err(MemoryRefused::NeverFits { wanted: 101, share: 100, .. }))
        ));
    }
}
