//! The cache entry that owns a slice: what it is, where it lies, who holds it.

pub(crate) mod commit;
pub(crate) mod entry;
pub(crate) mod hot;
pub(crate) mod manifest;
pub(crate) mod recovery;
pub(crate) mod stream;
pub(crate) mod warm;
