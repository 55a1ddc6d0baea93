//! Slices whose blobs tell whose they are, and what may be there of them by what was promised.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pelton::*;

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, count: u64) -> u64 {
        self.next() % count
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// A number from the environment.
pub fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// The fingerprint of a load. No two loads have the same number.
pub fn fingerprint(load: u64) -> Fingerprint {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&load.to_le_bytes());
    Fingerprint::from_bytes(bytes)
}

/// Which load has that fingerprint.
pub fn load_of(found: Fingerprint) -> u64 {
    let load = u64::from_le_bytes(found.as_bytes()[..8].try_into().unwrap());
    assert_eq!(found, fingerprint(load), "the fingerprint of no load");
    load
}

/// How many blobs a load has. Some have none.
pub fn blob_count(load: u64) -> u64 {
    match Rng(load).below(12) {
        0 => 0,
        count => count * 3,
    }
}

/// A blob that tells the key, the load and its number, and is otherwise drawn from them.
pub fn blob(key: &Key, load: u64, number: u64) -> Vec<u8> {
    let mut rng = Rng(load.wrapping_mul(1 << 20) + number);
    let length = if rng.below(8) == 0 { rng.below(200_000) } else { rng.below(4000) };
    let mut bytes = format!("{key} {load} {number} ").into_bytes();
    for _ in 0..length / 8 {
        bytes.extend(rng.next().to_le_bytes());
    }
    bytes
}

/// Loads a slice.
pub fn load(cache: &Cache, key: &Key, number: u64, plan: LoadPlan) -> Result<(), LoadError> {
    let writer = cache.snap(key).open_for_writes(plan)?;
    let mut blobs = 0..blob_count(number);
    while !blobs.is_empty() {
        let mut parcel = ParcelBuilder::default();
        blobs.by_ref().take(4).for_each(|n| parcel.push(&blob(key, number, n)).unwrap());
        writer.queue_parcel(parcel.finish())?;
    }
    writer.wait_for_writes()?.close_for_writes()
}

/// A plan as a seed has it.
pub fn plan(rng: &mut Rng, load: u64) -> LoadPlan {
    let mut plan = LoadPlan::new(fingerprint(load));
    plan.regions = Some(1 + rng.below(3) as u32);
    plan.write_path = if rng.coin() { WritePath::Image } else { WritePath::Direct };
    plan.durability = if rng.coin() { Durability::Wait } else { Durability::Background };
    plan
}

/// Scans a lease, and compares every byte with what its fingerprint stands for.
///
/// # Errors
/// The scan's own.
pub fn check(lease: &Lease) -> Result<(), ScanError> {
    let (key, load) = (lease.key().clone(), load_of(lease.fingerprint()));
    let of_region = key.clone();
    let fold = move |blobs: &mut Blobs<'_>, numbers: &mut Vec<u64>| {
        while let Some(found) = blobs.next()? {
            // "key load number ..."
            let number = found.split(|&byte| byte == b' ').nth(2);
            let number = number.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
            let number = number.unwrap_or_else(|| panic!("a blob of {of_region} load {load} has no number"));
            assert!(
                found == blob(&of_region, load, number),
                "{of_region} load {load}: another blob {number}"
            );
            numbers.push(number);
        }
        Ok(())
    };
    let join = |mut all: Vec<u64>, more| {
        all.extend(more);
        all
    };
    let mut numbers = lease.scan(fold, join)?;
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(0..blob_count(load)), "{key} load {load} has blobs {numbers:?}");
    Ok(())
}

/// What is there of a key: the slice of this load, or nothing.
pub type There = Option<u64>;

/// What may be there of each key, by what was begun and what was promised.
#[derive(Debug, Default)]
pub struct Promises {
    may: BTreeMap<Key, BTreeMap<There, u64>>,
    heard: u64,
}

impl Promises {
    /// From here on this may be there, beside what might be there before.
    pub fn begun(&mut self, key: &Key, there: There) {
        self.heard += 1;
        let may = self.may.entry(key.clone()).or_insert_with(|| BTreeMap::from([(None, 0)]));
        may.insert(there, self.heard);
    }

    /// This is there, unless something else has begun since.
    pub fn done(&mut self, key: &Key, there: There) {
        if let Some(may) = self.may.get_mut(key)
            && let Some(&since) = may.get(&there)
        {
            may.retain(|_, begun| *begun >= since);
        }
    }

    /// Exactly this is there.
    pub fn settle(&mut self, key: &Key, there: There) {
        self.may.insert(key.clone(), BTreeMap::from([(there, 0)]));
    }

    pub fn keys(&self) -> Vec<Key> {
        self.may.keys().cloned().collect()
    }

    pub fn allow(&self, key: &Key, there: There) -> bool {
        self.may.get(key).map_or(there.is_none(), |may| may.contains_key(&there))
    }

    pub fn of(&self, key: &Key) -> Vec<There> {
        self.may.get(key).map(|may| may.keys().copied().collect()).unwrap_or_default()
    }
}

/// Compares what lies on the spindles with what the cache has told; says what is left over.
pub fn left_over(cache: &Cache, spindles: &[PathBuf]) -> Option<String> {
    let told = cache.search(&"*/*".parse().unwrap());
    let (mut manifests, mut region_bytes, mut others) = (0, 0, Vec::new());
    for spindle in spindles {
        for path in files_in(spindle) {
            let text = path.strip_prefix(spindle).unwrap().to_string_lossy().into_owned();
            let extension = path.extension().map(|extension| extension.to_string_lossy().into_owned());
            match extension.as_deref() {
                Some("manifest") => manifests += 1,
                Some("region") => region_bytes += std::fs::metadata(&path).unwrap().len(),
                _ if ["manifests", "loads", "pelton-spindle"].contains(&text.as_str()) => {}
                // It may be saved at any time.
                _ if ["access-log", "access-log.new"].contains(&text.as_str()) => {}
                // A load's folder goes with its last region.
                _ if path.is_dir() && std::fs::read_dir(&path).unwrap().next().is_some() => {}
                _ => others.push(text),
            }
        }
    }
    let bytes_told: u64 = told.iter().map(|status| status.file_bytes).sum();
    if (manifests, region_bytes, others.len()) == (told.len(), bytes_told, 0) {
        return None;
    }
    Some(format!(
        "{manifests} manifests for {} snaps, {region_bytes} bytes in regions for {bytes_told}, and {others:?}",
        told.len()
    ))
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files_in(&path));
        }
        all.push(path);
    }
    all
}
