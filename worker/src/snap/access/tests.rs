use std::time::Duration;

use proptest::prelude::*;
use rustix::io::Errno;

use super::*;
use crate::spindle::engine::EngineKind;
use crate::spindle::engine::sim::{Failure, SimDisk, When};
use crate::spindle::health::HealthLimits;
use crate::spindle::held::SpindlePlan;
use crate::spindle::identity::NetworkFolders;

fn key(number: u64) -> Key {
    format!("shop/orders@{number}#0").parse().unwrap()
}

fn sample() -> Vec<Record> {
    let facts = |pinned, failures| Facts {
        pinned,
        queried_at_ms: Some(1_795_000_000_000),
        gap_ms: 0,
        leases: 300,
        evicts: 2,
        flushes: 1,
        failures,
        next_load_at_ms: (failures > 0).then_some(1_795_000_060_000),
    };
    vec![
        Record::Snap(key(1), facts(true, 0)),
        Record::Snap(key(2), facts(false, 3)),
        Record::Snap(key(1), facts(false, 0)),
        Record::Erased(key(2)),
        Record::Snap(key(3), Facts::default()),
        Record::Snap(key(4), facts(true, 1)),
    ]
}

/// The records of the golden file: between those of the sample stand two of kind 3, which nobody reads any more.
fn golden_sample() -> Vec<u8> {
    let view = |ttls: Option<(u64, u64, u64)>| postcard::to_stdvec(&("shop/orders", ttls)).unwrap();
    let (sample, mut encoder) = (sample(), Encoder::of_a_new_file());
    sample[..2].iter().for_each(|record| encoder.push(record));
    encoder.push_raw(3, &view(Some((900_000, 7_200_000, 1_800_000))));
    sample[2..5].iter().for_each(|record| encoder.push(record));
    encoder.push_raw(3, &view(None));
    encoder.push(&sample[5]);
    encoder.bytes
}

fn encoded(records: &[Record]) -> Vec<u8> {
    let mut encoder = Encoder::of_a_new_file();
    records.iter().for_each(|record| encoder.push(record));
    encoder.bytes
}

/// What the log says after each of its records.
fn prefixes(records: &[Record]) -> Vec<AccessFacts> {
    let mut facts = AccessFacts::default();
    let mut all = vec![facts.clone()];
    for record in records {
        facts.fold(record.clone());
        all.push(facts.clone());
    }
    all
}

/// These bytes are on disks we cannot reach. If this fails, write version 2 beside version 1.
#[test]
fn access_log_v1_bytes() {
    let golden = include_bytes!("golden/access_log_v1_sample.bin");
    assert_eq!(golden_sample(), golden);
    assert_eq!(decode(golden), (prefixes(&sample()).pop().unwrap(), Opened::Whole));
    // What a crash leaves that came before the head.
    let empty = include_bytes!("golden/access_log_v1_empty.bin");
    assert_eq!(decode(empty), (AccessFacts::default(), Opened::Cut));
}

/// Goal: damage costs what stands behind it and makes nothing up. Method: each bit flipped, and each length; what is
/// read is what some number of whole records say.
#[test]
fn every_flipped_bit_and_every_cut_leaves_a_beginning() {
    let (whole, prefixes) = (encoded(&sample()), prefixes(&sample()));
    let mut bytes = whole.clone();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (facts, opened) = decode(&bytes);
        assert!(prefixes.contains(&facts), "bit {bit}: {facts:?}");
        assert_ne!(opened, Opened::Whole, "bit {bit}");
        assert!(!matches!(opened, Opened::Newer { .. }), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    let mut ends = Vec::new();
    for len in 0..whole.len() {
        let (facts, opened) = decode(&whole[..len]);
        assert!(prefixes.contains(&facts), "cut to {len}");
        match opened {
            Opened::Whole => ends.push(len),
            opened => assert_eq!(opened, Opened::Cut, "cut to {len}"),
        }
    }
    assert_eq!(ends.len(), sample().len(), "after the head and after each record but the last");
}

#[test]
fn what_a_later_version_adds_is_skipped_and_its_format_left_alone() {
    let mut encoder = Encoder::of_a_new_file();
    encoder.push(&sample()[0]);
    encoder.push_raw(200, b"who knows");
    // A field more at the end of a kind that is known.
    let mut longer = Encoder::after(encoder.crc);
    longer.push(&sample()[5]);
    let body = longer.bytes[5..longer.bytes.len() - 4].to_vec();
    encoder.push_raw(1, &[&body[..], b"more"].concat());
    let (facts, opened) = decode(&encoder.bytes);
    assert_eq!(opened, Opened::Whole);
    assert!(facts.snap(&key(1)).unwrap().pinned && facts.snap(&key(4)).unwrap().pinned);

    let mut newer = encoder.bytes;
    newer[8] = 2;
    let crc = pelton_region_format::crc32c(&newer[..12]);
    newer[12..16].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(decode(&newer), (AccessFacts::default(), Opened::Newer { found: 2 }));
}

#[test]
fn what_was_added_to_a_record_is_read_and_what_has_it_not_is_read_without() {
    let with = |gap_ms| Facts { gap_ms, leases: 2, ..Facts::default() };
    for gap_ms in [0, 1, 127, 128, u64::MAX] {
        let records = [Record::Snap(key(1), with(gap_ms))];
        assert_eq!(decode(&encoded(&records)).0.snap(&key(1)), Some(&with(gap_ms)));
    }
}

/// Notes some facts, and forgets all else.
fn note(log: &AccessLog, known: &[(u64, Facts)]) {
    let known: Vec<(Key, Facts)> =
        known.iter().map(|(number, facts)| (key(*number), facts.clone())).collect();
    let stays = |other: &Key| known.iter().any(|(key, _)| key == other);
    log.note(known.iter().map(|(key, facts)| (key, facts.clone())), stays);
}

fn pinned() -> Facts {
    Facts { pinned: true, ..Facts::default() }
}

fn queried(at_ms: u64) -> Facts {
    Facts { queried_at_ms: Some(at_ms), leases: at_ms, ..Facts::default() }
}

/// A spindle on a simulated disk.
struct Rig {
    _folder: tempfile::TempDir,
    path: PathBuf,
    disk: SimDisk,
}

impl Rig {
    fn new() -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spindle");
        Rig { disk: SimDisk::healthy(&path, 7), path, _folder: folder }
    }

    fn spindle(&self, disk: &SimDisk) -> Arc<Spindle> {
        let plan = SpindlePlan {
            impellers: 1,
            depth: Some(8),
            queue_bytes_max: 1 << 20,
            engine: EngineKind::Sim(disk.clone()),
            network: NetworkFolders::Refuse,
            health: HealthLimits::default(),
            registrar: crate::stats::recorder::Registrar::default(),
        };
        Arc::new(Spindle::open(0, &self.path, &plan).unwrap())
    }
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(10))
}

#[test]
fn what_was_saved_is_known_after_a_power_cut() {
    let rig = Rig::new();
    let (log, opened) = AccessLog::open(&rig.spindle(&rig.disk), soon()).unwrap();
    assert_eq!(opened, Opened::New);
    note(&log, &[(1, pinned()), (4, pinned())]);
    log.save(soon()).unwrap();
    note(&log, &[(1, pinned()), (2, queried(7))]);
    log.save(soon()).unwrap();
    note(&log, &[(1, pinned()), (2, queried(7)), (3, pinned())]);
    drop(log);
    let disk = rig.disk.restart();
    for opened_before in 0..3 {
        let (log, opened) = AccessLog::open(&rig.spindle(&disk), soon()).unwrap();
        assert_eq!(opened, Opened::Whole, "{opened_before}");
        assert_eq!(
            [1, 2, 3, 4].map(|number| log.facts(&key(number))),
            [Some(pinned()), Some(queried(7)), None, None]
        );
        assert_eq!(log.pinned(), [key(1)]);
        note(&log, &[(1, pinned()), (2, queried(7))]);
        assert!(!log.has_changed(), "nothing has changed, so nothing is written");
        log.save(soon()).unwrap();
    }
}

/// Power loss at each operation of a few saves: what is found is what was known at some moment, and not before the last
/// save that worked.
#[test]
fn power_loss_at_every_operation_leaves_what_was_known_at_some_moment() {
    let story = |rig: &Rig, disk: &SimDisk| {
        let mut saved = 0;
        let Ok((log, _)) = AccessLog::open(&rig.spindle(disk), soon()) else { return saved };
        for at_ms in 1..=4 {
            note(&log, &[(1, queried(at_ms))]);
            if log.save(soon()).is_ok() {
                saved = at_ms;
            }
        }
        saved
    };
    let rig = Rig::new();
    story(&rig, &rig.disk);
    let ops = rig.disk.ops();
    assert!(ops > 8, "{ops}");
    for at in 0..=ops {
        let rig = Rig::new();
        let disk = SimDisk::healthy(&rig.path, at).losing_power_at(at);
        let saved = story(&rig, &disk);
        let disk = disk.restart();
        let (log, opened) = AccessLog::open(&rig.spindle(&disk), soon()).unwrap();
        let found = log.facts(&key(1)).map_or(0, |facts| facts.leases);
        assert!((saved..=4).contains(&found), "power lost at {at}: {found} of {saved}, {opened:?}");
    }
}

#[test]
fn after_a_failed_sync_all_is_written_anew() {
    let rig = Rig::new();
    let spindle = rig.spindle(&rig.disk);
    let (log, _) = AccessLog::open(&spindle, soon()).unwrap();
    note(&log, &[(1, pinned())]);
    log.save(soon()).unwrap();
    let _ = rig.disk.clone().with_fault(When::Nth("sync", 1), Failure::Writeback(Errno::IO));
    note(&log, &[(1, pinned()), (2, pinned())]);
    assert!(log.save(soon()).is_err());
    assert!(log.facts(&key(2)).unwrap().pinned, "it is still known");
    log.save(soon()).unwrap();
    drop((log, spindle));
    let disk = rig.disk.restart();
    let (log, opened) = AccessLog::open(&rig.spindle(&disk), soon()).unwrap();
    assert_eq!(opened, Opened::Whole);
    assert!([1, 2].into_iter().all(|number| log.facts(&key(number)).unwrap().pinned));
}

proptest! {
    /// Garbage in the middle, at the end, instead of all of it.
    #[test]
    fn any_bytes_are_read_as_far_as_they_hold(
        at in 0usize..400,
        garbage in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let mut bytes = encoded(&sample());
        let at = at.min(bytes.len());
        let end = (at + garbage.len()).min(bytes.len());
        bytes.splice(at..end, garbage.clone());
        let (facts, _) = decode(&bytes);
        prop_assert!(prefixes(&sample()).contains(&facts));
        prop_assert_eq!(decode(&garbage).0, AccessFacts::default());
    }
}
