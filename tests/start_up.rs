//! What a start finds: spindles that are missing and come back, files of later versions, other machines.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pelton::*;

const SPINDLES: usize = 3;

fn open(folder: &Path, present: &[usize], scan_threads: usize) -> Cache {
    let mut builder = Cache::builder().memory(256 << 20).scan_threads(scan_threads);
    for number in present {
        builder = builder.spindle(folder.join(format!("spindle-{number}")), 1 << 30);
    }
    builder.open().unwrap()
}

fn key(number: usize) -> Key {
    format!("shop/orders@{number}#0").parse().unwrap()
}

/// The blobs of one of the slices: so few that some regions are small, and one slice has none at all.
fn blobs(number: usize) -> Vec<String> {
    (0..7 * number).map(|blob| format!("blob {blob} of {number}")).collect()
}

fn load(cache: &Cache, number: usize, regions: u32) {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([number as u8; 32]));
    plan.regions = Some(regions);
    plan.durability = Durability::Wait;
    let writer = cache.snap(&key(number)).open_for_writes(plan).unwrap();
    let mut parcel = ParcelBuilder::default();
    blobs(number).iter().for_each(|blob| parcel.push(blob.as_bytes()).unwrap());
    writer.queue_parcel(parcel.finish()).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

fn scan(cache: &Cache, number: usize) -> Result<Vec<String>, LeaseError> {
    let fold = |blobs: &mut Blobs<'_>, all: &mut Vec<String>| {
        while let Some(blob) = blobs.next()? {
            all.push(String::from_utf8(blob.to_vec()).unwrap());
        }
        Ok(())
    };
    let mut all = cache.lease(&key(number), Want::Latest, None)?.scan(fold, |a, b| [a, b].concat()).unwrap();
    all.sort();
    Ok(all)
}

fn sorted(mut blobs: Vec<String>) -> Vec<String> {
    blobs.sort();
    blobs
}

/// File systems take shorter names than keys may be.
#[test]
fn a_slice_with_the_longest_key_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let name = "n".repeat(128);
    let key = Key::new(&name, &name, u64::MAX, u32::MAX).unwrap();
    let cache = open(folder.path(), &[0], 1);
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
    plan.durability = Durability::Wait;
    let writer = cache.snap(&key).open_for_writes(plan).unwrap();
    let mut parcel = ParcelBuilder::default();
    parcel.push(b"blob").unwrap();
    writer.queue_parcel(parcel.finish()).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    assert_eq!(cache.spindles()[0].state, HealthState::Ok);
    cache.close(None).unwrap();
    let cache = open(folder.path(), &[0], 1);
    assert_eq!(cache.recovery().kept, 1);
    assert_eq!(cache.lease(&key, Want::Latest, None).unwrap().region_count(), 1);
    assert!(cache.snap(&key).flush(None).unwrap());
    assert_eq!(manifests(folder.path()), [] as [PathBuf; 0]);
}

/// All files below a folder but the access logs, with what tells whether they were touched.
fn files(folder: &Path) -> BTreeMap<PathBuf, (u64, i64, u64)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            match metadata.is_dir() {
                true => folders.push(path),
                // Of what was leased it says so.
                false if path.file_name().is_some_and(|name| name == "access-log") => {}
                false => _ = found.insert(path, (metadata.ino(), metadata.mtime_nsec(), metadata.len())),
            }
        }
    }
    found
}

fn regions(folder: &Path) -> Vec<PathBuf> {
    files(folder).into_keys().filter(|path| path.extension().is_some_and(|name| name == "region")).collect()
}

fn manifests(folder: &Path) -> Vec<PathBuf> {
    files(folder).into_keys().filter(|path| path.extension().is_some_and(|name| name == "manifest")).collect()
}

/// Goal: a spindle that is missing costs what lies on it and nothing else, and brings it back with it. Method: slices
/// over three spindles with every home; each choice of spindles opens, then all of them.
#[test]
fn spindles_that_are_missing_and_come_back_in_every_combination() {
    let folder = tempfile::tempdir().unwrap();
    let all = [0, 1, 2];
    let cache = open(folder.path(), &all, 2);
    // Over one, two and three spindles; more than there are homes.
    let slices: Vec<usize> = (0..12).collect();
    slices.iter().for_each(|&number| load(&cache, number, 1 + number as u32 % 3));
    drop(cache);
    let whole = files(folder.path());
    for choice in 1..1 << SPINDLES {
        let present: Vec<usize> = all.into_iter().filter(|number| choice & (1 << number) != 0).collect();
        let cache = open(folder.path(), &present, 2);
        let report = cache.recovery().clone();
        // Of what is cleaned only the folder of the empty slice is there, and nothing in it.
        assert_eq!(report.dropped, [], "{present:?}: {report:?}");
        for (path, reason) in &report.left_alone {
            assert!(reason.contains("is not here"), "{}: {reason}", path.display());
        }
        let mut served = 0;
        for &number in &slices {
            match scan(&cache, number) {
                Ok(found) => {
                    assert_eq!(found, sorted(blobs(number)), "{present:?}");
                    served += 1;
                }
                Err(LeaseError::NotThere { .. }) => assert!(present.len() < SPINDLES, "{number}"),
                Err(error) => panic!("{present:?}: {error}"),
            }
        }
        assert_eq!(served, report.kept, "{present:?}");
        let homes: usize = present
            .iter()
            .map(|number| manifests(&folder.path().join(format!("spindle-{number}"))).len())
            .sum();
        assert_eq!(report.kept + report.left_alone.len(), homes, "{present:?}");
        drop(cache);
        assert_eq!(files(folder.path()), whole, "{present:?}: nothing was touched");
    }
    // Another order of the same spindles is the same cache.
    assert_eq!(open(folder.path(), &[2, 0, 1], 2).recovery().kept, slices.len());
}

/// What was loaded anew while a spindle was away wins over what comes back with it.
#[test]
fn what_comes_back_does_not_win_over_what_was_loaded_since() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), &[0, 1], 2);
    (0..4).for_each(|number| load(&cache, number, 1));
    drop(cache);
    for present in [0, 1] {
        let cache = open(folder.path(), &[present], 2);
        cache.recovery();
        let absent: Vec<usize> = (0..4).filter(|&number| scan(&cache, number).is_err()).collect();
        assert!(!absent.is_empty(), "some have their home on the other one");
        absent.iter().for_each(|&number| load(&cache, number, 1));
        drop(cache);
    }
    let cache = open(folder.path(), &[0, 1], 2);
    assert_eq!(cache.recovery().kept, 4, "{:?}", cache.recovery());
    for (_, reason) in &cache.recovery().dropped {
        assert!(reason.contains("has replaced it"), "{reason}");
    }
    (0..4).for_each(|number| assert_eq!(scan(&cache, number).unwrap(), sorted(blobs(number))));
    let kept = manifests(folder.path()).len();
    assert_eq!(
        (kept, regions(folder.path()).len()),
        (4, 3),
        "what was replaced is gone; one slice has no region"
    );
}

/// Regions belong to the slice: another number of cores binds them anew, and loads nothing.
#[test]
fn another_number_of_cores_scans_the_same_regions() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), &[0], 2);
    load(&cache, 9, 5);
    drop(cache);
    let before = files(folder.path());
    for threads in [1, 3, 8, 2] {
        let cache = open(folder.path(), &[0], threads);
        let lease = cache.lease(&key(9), Want::Latest, None).unwrap();
        assert_eq!(lease.region_count(), 5);
        drop(lease);
        assert_eq!(scan(&cache, 9).unwrap(), sorted(blobs(9)), "{threads} threads");
        drop(cache);
        assert_eq!(files(folder.path()), before, "{threads} threads");
    }
}

#[test]
fn a_manifest_of_a_later_version_is_left_alone_with_all_it_may_name() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), &[0], 2);
    load(&cache, 1, 2);
    load(&cache, 2, 2);
    drop(cache);
    let later = manifests(folder.path()).remove(0);
    let mut bytes = fs::read(&later).unwrap();
    bytes[8] = 2;
    let crc = crc32c(&[&bytes[..16], &bytes[20..]].concat());
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    fs::write(&later, bytes).unwrap();
    // Of a load that did not end: it may be what that manifest names.
    let unnamed = folder.path().join("spindle-0/loads/1-99-0123456789abcdef0123456789abcdef");
    fs::create_dir(&unnamed).unwrap();
    let before = files(folder.path());
    for _ in 0..2 {
        let cache = open(folder.path(), &[0], 2);
        let report = cache.recovery();
        assert_eq!((report.kept, &report.newer), (1, &vec![later.clone()]), "{report:?}");
        assert_eq!((report.left_alone.len(), report.dropped.len(), report.cleaned.len()), (1, 0, 0));
        assert!(report.left_alone[0].1.contains("format 2"), "{report:?}");
        assert!(matches!(scan(&cache, 1), Err(LeaseError::NotThere { .. })));
        assert_eq!(scan(&cache, 2).unwrap(), sorted(blobs(2)));
        drop(cache);
        assert_eq!(files(folder.path()), before);
        assert!(unnamed.exists());
    }
}

#[test]
fn a_region_of_a_later_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), &[0], 2);
    load(&cache, 1, 2);
    load(&cache, 2, 2);
    drop(cache);
    let later = regions(folder.path()).remove(0);
    let mut bytes = fs::read(&later).unwrap();
    let trailer = bytes.len() - PAGE_BYTES;
    (bytes[1], bytes[trailer + 1]) = (3, 3);
    fs::write(&later, bytes).unwrap();
    let before = files(folder.path());
    for _ in 0..2 {
        let cache = open(folder.path(), &[0], 2);
        let report = cache.recovery();
        let counts = (report.kept, report.newer.len(), report.left_alone.len(), report.dropped.len());
        assert_eq!((counts, report.cleaned.len()), ((1, 1, 1, 0), 0), "{report:?}");
        assert!(matches!(scan(&cache, 1), Err(LeaseError::NotThere { .. })));
        drop(cache);
        assert_eq!(files(folder.path()), before);
    }
}

#[test]
fn what_can_never_be_served_is_dropped_told_and_removed() {
    /// A name, what is told, and what is done to the first region file.
    type Case = (&'static str, &'static str, fn(&Path));
    let cases: [Case; 5] = [
        ("gone", "is not there", |region| fs::remove_file(region).unwrap()),
        ("cut", "the manifest says", |region| {
            fs::File::options().write(true).open(region).unwrap().set_len(PAGE_BYTES as u64).unwrap();
        }),
        ("no trailer", "trailer", |region| {
            let mut bytes = fs::read(region).unwrap();
            let end = bytes.len();
            bytes[end - PAGE_BYTES + 70] ^= 1;
            fs::write(region, bytes).unwrap();
        }),
        ("another body", "another body", |region| {
            let header = Header::default();
            let len = region.metadata().unwrap().len();
            let mut bytes = encode_to_vec(&header, [b"other"], None).unwrap();
            if bytes.len() as u64 != len {
                // Another length is told apart before; this case wants the same.
                bytes = encode_to_vec(&header, [b"other body"], None).unwrap();
            }
            assert_eq!(bytes.len() as u64, len);
            fs::write(region, bytes).unwrap();
        }),
        ("manifest", "checksum", |region| {
            let manifest = manifests(region.ancestors().nth(3).unwrap()).remove(0);
            let mut bytes = fs::read(&manifest).unwrap();
            bytes[25] ^= 1;
            fs::write(manifest, bytes).unwrap();
        }),
    ];
    for (name, why, harm) in cases {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path(), &[0], 2);
        load(&cache, 1, 2);
        load(&cache, 2, 2);
        drop(cache);
        harm(&regions(folder.path())[0]);
        let cache = open(folder.path(), &[0], 2);
        let report = cache.recovery();
        assert_eq!(
            (report.kept, report.dropped.len(), report.cleaned.len()),
            (1, 1, 1),
            "{name}: {report:?}"
        );
        assert!(report.dropped[0].1.contains(why), "{name}: {report:?}");
        assert!(matches!(scan(&cache, 1), Err(LeaseError::NotThere { .. })), "{name}");
        assert_eq!(scan(&cache, 2).unwrap(), sorted(blobs(2)), "{name}");
        drop(cache);
        assert_eq!((manifests(folder.path()).len(), regions(folder.path()).len()), (1, 2), "{name}");
        let cache = open(folder.path(), &[0], 2);
        assert_eq!(cache.recovery().dropped, [], "{name}: told once");
        load(&cache, 1, 2);
        assert_eq!(scan(&cache, 1).unwrap(), sorted(blobs(1)), "{name}");
    }
}

/// These files are on disks we cannot reach. If this fails, a later version does not open what version 1 has written:
/// read it as well as before.
#[test]
fn the_golden_folder_opens_and_holds_what_it_held() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("worker/golden/folder-v1");
    if std::env::var_os("PELTON_BLESS").is_some() && !golden.exists() {
        let cache =
            Cache::builder().memory(256 << 20).scan_threads(2).spindle(&golden, 1 << 30).open().unwrap();
        [(0, 2), (1, 2), (3, 1)].into_iter().for_each(|(number, regions)| load(&cache, number, regions));
    }
    let folder = tempfile::tempdir().unwrap();
    let spindle = folder.path().join("spindle-0");
    for (path, _) in files(&golden) {
        let copy = spindle.join(path.strip_prefix(&golden).unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(path, copy).unwrap();
    }
    let before = files(&spindle);
    for residence in [Residence::Map, Residence::Image] {
        let builder = Cache::builder().memory(256 << 20).verify(Verify::Always).residence(residence);
        let cache = builder.spindle(&spindle, 1 << 30).open().unwrap();
        let report = cache.recovery();
        assert_eq!((report.kept, report.dropped.len(), report.left_alone.len()), (3, 0, 0), "{report:?}");
        for number in [0, 1, 3] {
            assert_eq!(scan(&cache, number).unwrap(), sorted(blobs(number)), "{number}");
            let status = cache.snap(&key(number)).status();
            assert_eq!(status.fingerprint, Some(Fingerprint::from_bytes([number as u8; 32])));
        }
        drop(cache);
        assert_eq!(files(&spindle), before);
    }
}
