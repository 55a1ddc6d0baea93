//! Where a region's bytes lie: images in our own memory, maps of sealed files.

pub(crate) mod arena;
pub(crate) mod map;
pub(crate) mod residence;
pub(crate) mod smaps;
pub(crate) mod watermark;
