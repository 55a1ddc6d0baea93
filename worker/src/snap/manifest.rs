//! The record that makes a slice exist on disk: written last, named by its key.
//!
//! The bytes are told in `docs/manifest.md`: an envelope with version and checksum, so that a newer
//! or damaged one is told apart, around a postcard record.

use std::sync::Arc;

use pelton_region_format::{ContentId, Fingerprint, Key, crc32c};
use serde::{Deserialize, Serialize};

use crate::budget::ledger::Stored;
use crate::snap::metrics::{BlobSizes, LoadFacts, SliceMetrics};
use crate::snap::state::Version;
use crate::spindle::identity::SpindleUuid;

/// Which format this crate writes.
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"pelton M";
const HEAD_BYTES: usize = 20;
/// A file system's names have 255 bytes at most. While it is written, `.manifest` becomes a dot, a load number of up to 20
/// digits, and `.tmp`.
const FILE_NAME_BYTES_MAX: usize = 255 - (20 + ".tmp".len() - "manifest".len());
/// So much of a name that is too long stays readable.
const HASHED_NAME_BYTES: usize = 128;
/// No honest manifest is larger: a thousand regions with long paths take less than a tenth.
const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// A slice that is committed: which one, and where each of its regions lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) key: Key,
    pub(crate) fingerprint: Fingerprint,
    /// Counts up with every load of the process's folders: of two manifests of a key, the higher wins.
    pub(crate) load_number: u64,
    /// Over how many regions the blobs were dealt. Those without a blob have no file.
    pub(crate) region_count: u32,
    pub(crate) regions: Vec<RegionRecord>,
    /// All spindles that hold a region, the home spindle first.
    pub(crate) spindles: Vec<SpindleUuid>,
    /// What was known of the slice when it was committed. Advice: nothing is decided by it alone. None once its entry
    /// has it, and goes on with it.
    pub(crate) metrics: Option<Box<SliceMetrics>>,
}

/// One region file of a committed slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RegionRecord {
    pub(crate) index: u32,
    /// Which of the manifest's spindles it lies on.
    pub(crate) spindle: u32,
    /// Where in the spindle's folder.
    pub(crate) path: String,
    pub(crate) file_bytes: u64,
    pub(crate) blob_count: u64,
    pub(crate) blob_bytes: u64,
    pub(crate) content_id: [u8; 32],
    /// What the file takes of its spindle. Not a part of the record.
    #[serde(skip)]
    pub(crate) space: FileCount,
}

/// Counts a file's space as long as somebody shares this: the manifest that names the file, and whoever has it
/// open or mapped, since the disk gives the space back with the last of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct FileCount(pub(crate) Option<Arc<Stored>>);

/// Records are compared by what is written.
impl PartialEq for FileCount {
    fn eq(&self, _: &FileCount) -> bool {
        true
    }
}

impl Eq for FileCount {}

impl RegionRecord {
    pub(crate) fn content_id(&self) -> ContentId {
        ContentId::from_bytes(self.content_id)
    }
}

/// The record as it is encoded: plain types only. Behind it stand the metrics, as bytes; the first manifests have none.
#[derive(Serialize, Deserialize)]
struct Record {
    key: String,
    fingerprint: [u8; 32],
    load_number: u64,
    region_count: u32,
    regions: Vec<RegionRecord>,
    spindles: Vec<[u8; 16]>,
}

impl Manifest {
    /// Whether both say the same but for the metrics, which an entry keeps by itself.
    pub(crate) fn is_of_the_same_load(&self, other: &Manifest) -> bool {
        let parts = |manifest: &Manifest| (manifest.fingerprint, manifest.load_number, manifest.region_count);
        parts(self) == parts(other)
            && self.key == other.key
            && self.regions == other.regions
            && self.spindles == other.spindles
    }

    /// What the decider calls it.
    pub(crate) fn version(&self) -> Version {
        Version { load: self.load_number, fingerprint: self.fingerprint }
    }

    /// Its file's name: what is not a digit, letter, dot, dash or underscore in the key becomes a plus. Where that is too long,
    /// the beginning, two pluses and a hash of the key.
    pub(crate) fn file_name(key: &Key) -> String {
        // Names can't hold `/`; and no name holds `+`, so different keys have different file names. None is empty, so that two
        // pluses never meet otherwise.
        let name = format!("{}+{}+{}+{}.manifest", key.domain(), key.view(), key.clock(), key.slice());
        if name.len() <= FILE_NAME_BYTES_MAX {
            return name;
        }
        let hash = blake3::hash(key.to_string().as_bytes());
        format!("{}++{}.manifest", &name[..HASHED_NAME_BYTES], hash.to_hex())
    }

    /// How many bytes its files have.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.file_bytes).sum()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let record = Record {
            key: self.key.to_string(),
            fingerprint: *self.fingerprint.as_bytes(),
            load_number: self.load_number,
            region_count: self.region_count,
            regions: self.regions.clone(),
            spindles: self.spindles.iter().map(|uuid| uuid.bytes()).collect(),
        };
        let encodes = "plain values in memory always encode";
        let mut body = postcard::to_stdvec(&record).expect(encodes);
        let metrics = self.metrics.as_deref().copied().unwrap_or_else(|| metrics_of(&self.regions));
        body.extend(postcard::to_stdvec(&metrics.encode()).expect(encodes));
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&body);
        // Over everything but itself: a changed version or length is damage too, not another format.
        let crc = envelope_crc(&bytes);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the bytes of a manifest file.
    ///
    /// # Errors
    /// [`ManifestError`]; nothing is believed before the checksum holds.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let damaged = |what: &str| ManifestError::Damaged { what: what.to_owned() };
        if bytes.len() < HEAD_BYTES || bytes[..8] != MAGIC {
            return Err(damaged("it does not begin like a manifest"));
        }
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if word(16) != envelope_crc(bytes) {
            return Err(damaged("its checksum does not hold"));
        }
        if word(8) != VERSION {
            return Err(ManifestError::Newer { found: word(8) });
        }
        let body = &bytes[HEAD_BYTES..];
        if word(12) as usize != body.len() || body.len() > MANIFEST_BYTES_MAX {
            return Err(damaged("its length is not the one it tells"));
        }
        let (record, rest): (Record, &[u8]) =
            postcard::take_from_bytes(body).map_err(|error| damaged(&error.to_string()))?;
        let metrics = read_metrics(rest).map_err(|error| damaged(&error.to_string()))?;
        let manifest = Manifest {
            metrics: Some(Box::new(metrics.unwrap_or_else(|| metrics_of(&record.regions)))),
            key: record.key.parse().map_err(|error| damaged(&format!("{error}")))?,
            fingerprint: Fingerprint::from_bytes(record.fingerprint),
            load_number: record.load_number,
            region_count: record.region_count,
            regions: record.regions,
            spindles: record.spindles.into_iter().map(SpindleUuid::new).collect(),
        };
        manifest.check().map_err(damaged)?;
        Ok(manifest)
    }

    /// A record can be well spelled and still lead out of the spindle's folder.
    fn check(&self) -> Result<(), &'static str> {
        if self.load_number == u64::MAX {
            return Err("no load could follow it");
        }
        let rises = self.regions.windows(2).all(|pair| pair[0].index < pair[1].index);
        if !rises || self.regions.last().is_some_and(|last| last.index >= self.region_count) {
            return Err("its regions are out of order");
        }
        for region in &self.regions {
            let plain = |name: &str| !name.is_empty() && name != "." && name != "..";
            if region.path.starts_with('/') || !region.path.split('/').all(plain) {
                return Err("a region lies outside of its spindle");
            }
            if region.spindle as usize >= self.spindles.len() {
                return Err("a region lies on a spindle that is not told");
            }
        }
        Ok(())
    }
}

/// The metrics behind a record: none if there are none, or if they are of a newer format. What follows them is for newer
/// versions.
fn read_metrics(rest: &[u8]) -> Result<Option<SliceMetrics>, postcard::Error> {
    if rest.is_empty() {
        return Ok(None);
    }
    let (bytes, _): (Vec<u8>, &[u8]) = postcard::take_from_bytes(rest)?;
    Ok(SliceMetrics::decode(&bytes).ok())
}

/// What the regions tell of a slice of which nothing else is known.
fn metrics_of(regions: &[RegionRecord]) -> SliceMetrics {
    let sizes = |region: &RegionRecord| BlobSizes::alike(region.blob_count, region.blob_bytes);
    let blobs = regions.iter().map(sizes).fold(BlobSizes::default(), BlobSizes::merge);
    SliceMetrics::of_unknown_load(LoadFacts::of(blobs, regions.len() as u64))
}

fn envelope_crc(bytes: &[u8]) -> u32 {
    crc32c(&[&bytes[..16], &bytes[HEAD_BYTES..]].concat())
}

/// Why a manifest file can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ManifestError {
    /// Drop it: the slice is as if it had never been committed.
    #[error("the manifest is damaged: {what}")]
    Damaged {
        /// What does not hold.
        what: String,
    },
    /// Leave it alone, and all that it may name.
    #[error("the manifest has format {found}, this version knows {VERSION}")]
    Newer {
        /// The version that wrote it.
        found: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let region = |index| RegionRecord {
            index,
            spindle: index % 2,
            path: format!("loads/12-7/{index:04}.region"),
            file_bytes: 12_288,
            blob_count: 3,
            blob_bytes: 100,
            content_id: [index as u8; 32],
            space: FileCount::default(),
        };
        Manifest {
            key: "shop/orders@1719878400000#3".parse().unwrap(),
            fingerprint: Fingerprint::from_bytes([9; 32]),
            load_number: 7,
            region_count: 4,
            regions: vec![region(0), region(1), region(3)],
            spindles: vec![SpindleUuid::new([1; 16]), SpindleUuid::new([2; 16])],
            metrics: {
                let mut sizes = BlobSizes::default();
                (0..9).for_each(|blob| sizes.add(30 + blob));
                let mut metrics = SliceMetrics::default();
                metrics.cold_loaded(LoadFacts::of(sizes, 3), 1_719_878_400_000, 250);
                metrics.evicted();
                Some(Box::new(metrics))
            },
        }
    }

    /// These bytes are on disks we cannot reach: the first manifests, which had no metrics, and those that have some.
    #[test]
    fn manifest_v1_bytes() {
        let golden = include_bytes!("golden/manifest_v1_metrics.bin");
        assert_eq!(sample().encode(), golden);
        assert_eq!(Manifest::decode(golden), Ok(sample()));
        let first = Manifest::decode(include_bytes!("golden/manifest_v1.bin")).unwrap();
        let sizes = [BlobSizes::alike(3, 100); 3].into_iter().fold(BlobSizes::default(), BlobSizes::merge);
        let metrics = SliceMetrics::of_unknown_load(LoadFacts::of(sizes, 3));
        assert_eq!(first, Manifest { metrics: Some(Box::new(metrics)), ..sample() });
    }

    /// A version that comes may write more, or metrics of another format: the slice is the same.
    #[test]
    fn what_stands_behind_the_record_is_read_as_far_as_it_is_known() {
        let first = include_bytes!("golden/manifest_v1.bin");
        let with = |rest: &[u8]| {
            let mut bytes = [&first[..], rest].concat();
            let len = (bytes.len() - HEAD_BYTES) as u32;
            bytes[12..16].copy_from_slice(&len.to_le_bytes());
            let crc = envelope_crc(&bytes);
            bytes[16..20].copy_from_slice(&crc.to_le_bytes());
            Manifest::decode(&bytes)
        };
        let known = postcard::to_stdvec(&sample().metrics.unwrap().encode()).unwrap();
        assert_eq!(with(&[&known[..], b"more"].concat()), Ok(sample()));
        let newer = postcard::to_stdvec(&vec![99u8, 1, 2, 3]).unwrap();
        assert_eq!(with(&newer), Manifest::decode(first));
        assert!(with(&known[..known.len() - 1]).is_err(), "cut");
    }

    #[test]
    fn a_manifest_reads_back() {
        assert_eq!(Manifest::decode(&sample().encode()), Ok(sample()));
        let empty = Manifest { regions: vec![], spindles: vec![], ..sample() };
        assert_eq!(Manifest::decode(&empty.encode()), Ok(empty));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let mut bytes = sample().encode();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Manifest::decode(&bytes), Err(ManifestError::Damaged { .. })), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for len in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn a_newer_format_is_not_called_damaged() {
        let mut bytes = sample().encode();
        bytes[8] = 2;
        let crc = envelope_crc(&bytes);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Manifest::decode(&bytes), Err(ManifestError::Newer { found: 2 }));
    }

    #[test]
    fn a_path_that_leads_out_of_the_spindle_is_refused() {
        for path in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/."] {
            let mut manifest = sample();
            manifest.regions[0].path = path.to_owned();
            assert!(Manifest::decode(&manifest.encode()).is_err(), "{path:?}");
        }
        let mut manifest = sample();
        manifest.regions[0].spindle = 2;
        assert!(Manifest::decode(&manifest.encode()).is_err());
        let mut manifest = sample();
        manifest.regions.swap(0, 1);
        assert!(Manifest::decode(&manifest.encode()).is_err());
    }

    #[test]
    fn a_load_that_no_other_could_follow_is_damage() {
        let last = Manifest { load_number: u64::MAX, ..sample() };
        assert!(matches!(Manifest::decode(&last.encode()), Err(ManifestError::Damaged { .. })));
    }

    /// File systems take 255 bytes. Names that fit are on disks we cannot reach, and stay.
    #[test]
    fn a_key_of_any_length_has_a_file_name() {
        let key =
            |view: usize, clock: u64| Key::new("d".repeat(128), "v".repeat(view), clock, u32::MAX).unwrap();
        let name = |key: &Key| Manifest::file_name(key);
        let longest = key(128, u64::MAX);
        let hash = "78fe674ef7594428e31a91ea48ba5054c536d36c417314339c42e4646a51923b";
        assert_eq!(name(&longest), format!("{}++{hash}.manifest", "d".repeat(128)));
        assert_ne!(name(&longest), name(&key(128, u64::MAX - 1)));
        let fits = key(69, u64::MAX);
        assert_eq!(name(&fits).len(), FILE_NAME_BYTES_MAX);
        assert!(name(&fits).ends_with("+18446744073709551615+4294967295.manifest"));
        assert!(name(&key(70, u64::MAX)).contains("++"));
        for key in [longest, fits] {
            let temporary = std::path::Path::new(&name(&key)).with_extension(format!("{}.tmp", u64::MAX));
            assert!(temporary.as_os_str().len() <= 255, "{temporary:?}");
        }
    }

    #[test]
    fn different_keys_have_different_file_names() {
        let names: std::collections::BTreeSet<String> =
            ["a/b@1#2", "a/b@1#20", "a/b@12#0", "a.b/b@1#2", "a/b.b@1#2"]
                .map(|key| Manifest::file_name(&key.parse().unwrap()))
                .into();
        assert_eq!(names.len(), 5);
    }
}
