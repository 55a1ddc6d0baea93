//! Pelton keeps a dataset's slices where every core scans its own region, in place.
//!
//! So far this crate is the format: what the bytes of a region file mean, how to write them in a
//! stream and how to check and read them where they lie. Start at [`RegionView`] to read and at
//! [`RegionEncoder`] to write. The cache itself comes next.
#![forbid(unsafe_code)]

pub use pelton_region_format::*;
