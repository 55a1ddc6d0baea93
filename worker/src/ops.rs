//! What people do to many snaps at once, by pattern and filters.

#[expect(unreachable_pub, reason = "becomes public with the operations")]
#[cfg_attr(not(test), expect(dead_code, reason = "operations are not wired to the cache yet"))]
pub(crate) mod filter;
