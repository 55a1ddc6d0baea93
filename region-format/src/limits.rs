//! Every number that bounds a region file. The meaning of each stands in `docs/region-format.md`.

/// Header and trailer are one page each, and the body starts on the second page.
pub const PAGE_BYTES: usize = 4096;
/// The longest blob: what a signed 32-bit length can say, because version 1 says lengths so.
pub const BLOB_BYTES_MAX: u32 = i32::MAX as u32;
/// The most a version 1 file may hold: the systems that read it map with 31-bit lengths.
pub const V1_FILE_BYTES_MAX: u64 = i32::MAX as u64;
/// The most a version 2 file may hold: what a signed file offset can say.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;
/// The most user metadata in one file.
pub const METADATA_BYTES_MAX: usize = 1 << 20;
/// The most that may stand after the body. A reader may take this much memory to open a file.
pub const TAIL_BYTES_MAX: u64 = 1 << 30;
/// The most sections in one file.
pub const SECTIONS_MAX: u32 = 1024;
/// Pieces handed to a disk are multiples of this, so that mapped files can use 2 MiB pages.
pub const PIECE_BYTES_STEP: usize = 2 << 20;

/// The smallest alignment of blobs.
pub const ALIGNMENT_MIN: u32 = 8;
/// The alignment of blobs that nobody asked to be otherwise.
pub const ALIGNMENT_DEFAULT: u32 = 8;
/// The largest alignment of blobs.
pub const ALIGNMENT_MAX: u32 = 4096;

/// The smallest checksum block.
pub const BLOCK_BYTES_MIN: u32 = 4096;
/// The checksum block that nobody asked to be otherwise.
pub const BLOCK_BYTES_DEFAULT: u32 = 1 << 20;
/// The largest checksum block: what a reader may have to buffer to verify before it hands out.
pub const BLOCK_BYTES_MAX: u32 = 64 << 20;

/// How far apart the blobs in the index are, unless asked otherwise.
pub const INDEX_STRIDE_DEFAULT: u32 = 64 << 10;

/// A writer's own bounds, so that the tail stays below [`TAIL_BYTES_MAX`]: 512 MiB of index...
pub(crate) const INDEX_ENTRIES_MAX: usize = 1 << 25;
/// ...and 256 MiB of checksums.
pub(crate) const BLOCKS_MAX: usize = 1 << 26;

const _: () = assert!(
    INDEX_ENTRIES_MAX as u64 * 16 + BLOCKS_MAX as u64 * 4 + METADATA_BYTES_MAX as u64 + (64 << 10)
        <= TAIL_BYTES_MAX,
    "what a writer may put into a tail, a reader takes"
);
