//! Each event, where it happens.

use super::*;

/// All that was told so far, without `Started`.
fn told(events: &mut Events) -> Vec<Event> {
    let all: Vec<Event> = std::iter::from_fn(|| events.try_recv()).collect();
    all.into_iter().filter(|event| !matches!(event, Event::Started { .. })).collect()
}

/// What kinds they are, in short.
fn kinds(events: &[Event]) -> Vec<&'static str> {
    let kind = |event: &Event| match event {
        Event::Started { .. } => "started",
        Event::Stopped => "stopped",
        Event::LoadBegan { .. } => "began",
        Event::LoadSealed { .. } => "sealed",
        Event::LoadFailed { .. } => "failed",
        Event::PlanFailed { .. } => "plan failed",
        Event::LoadInvalid { .. } => "invalid",
        Event::Resliced { .. } => "resliced",
        Event::Durable { .. } => "durable",
        Event::CommitFailed { .. } => "commit failed",
        Event::Warmed { .. } => "warmed",
        Event::WarmFailed { .. } => "warm failed",
        Event::Damaged { .. } => "damaged",
        Event::HotLeased { .. } => "hot",
        Event::Evicted { .. } => "evicted",
        Event::Flushed { .. } => "flushed",
        Event::Erased { .. } => "erased",
        Event::Pressure { .. } => "pressure",
        Event::Spindle { .. } => "spindle",
    };
    events.iter().map(kind).collect()
}

#[test]
fn a_slices_whole_life_is_told_in_order() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    let mut events = cache.events();
    assert!(matches!(events.try_recv(), Some(Event::Started { slices: 0, .. })));
    load(&cache, plan(WritePath::Image)).unwrap();
    scan(&cache).unwrap();
    assert!(cache.snap(&key()).evict());
    scan(&cache).unwrap();
    let other = Fingerprint::from_bytes([2; 32]);
    load(&cache, LoadPlan { fingerprint: other, ..plan(WritePath::Image) }).unwrap();
    let file_bytes = cache.snap(&key()).status().file_bytes;
    assert!(cache.snap(&key()).flush(None).unwrap());
    assert!(!cache.snap(&key()).flush(None).unwrap(), "what is not there is not told either");
    cache.close(None).unwrap();

    let all = told(&mut events);
    let first = ["began", "sealed", "durable", "hot", "evicted", "warmed"];
    let second = ["began", "sealed", "resliced", "durable", "flushed", "stopped"];
    assert_eq!(kinds(&all), [first, second].concat(), "{all:#?}");
    let (before, key) = (Fingerprint::from_bytes([1; 32]), key());
    assert_eq!(all[0], Event::LoadBegan { key: key.clone(), fingerprint: before });
    assert!(matches!(&all[1], Event::LoadSealed { bytes, .. } if *bytes == BLOBS * MIB), "{:?}", all[1]);
    assert!(matches!(&all[2], Event::Durable { bytes, .. } if *bytes == file_bytes), "{:?}", all[2]);
    assert!(matches!(&all[4], Event::Evicted { bytes, .. } if *bytes >= BLOBS * MIB), "{:?}", all[4]);
    assert!(matches!(&all[5], Event::Warmed { bytes, .. } if *bytes == file_bytes), "{:?}", all[5]);
    assert_eq!(all[8], Event::Resliced { key: key.clone(), before, fingerprint: other });
    assert_eq!(all[10], Event::Flushed { key, bytes: file_bytes, reason: None });
    assert_eq!((events.recv(None), events.lost()), (Err(crate::NoEvent::Stopped), 0));
}

#[test]
fn loads_that_fail_are_told_once_with_the_reason() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    let mut events = cache.events();
    let why = |events: &mut Events| match &told(events)[..] {
        [Event::LoadBegan { .. }, .., Event::LoadFailed { why, .. }] => why.clone(),
        other => panic!("{other:#?}"),
    };
    drop(cache.snap(&key()).open_for_writes(plan(WritePath::Image)).unwrap());
    assert_eq!(why(&mut events), "its writer was dropped");
    drop(cache.snap(&key()).open_for_writes(plan(WritePath::Image)).unwrap().wait_for_writes().unwrap());
    assert_eq!(why(&mut events), "it was dropped before it was closed");
    let small = LoadPlan { max_bytes: Some(MIB), ..plan(WritePath::Image) };
    load(&cache, small).unwrap_err();
    assert!(why(&mut events).contains("its plan allows"));
    rig.disks[0].clone().with_fault(When::Every("write"), Failure::Error(Errno::IO));
    load(&cache, plan(WritePath::Direct)).unwrap_err();
    let all = told(&mut events);
    assert!(all.iter().any(|event| matches!(event, Event::CommitFailed { in_memory: false, .. })
        || matches!(event, Event::LoadFailed { why, .. } if why.contains("could not write"))));
}

#[test]
fn a_commit_that_fails_is_told_and_says_that_the_slice_is_in_memory() {
    let rig = Rig::new(1);
    rig.disks[0].clone().with_fault(When::Nth("sync", 0), Failure::Writeback(Errno::IO));
    let cache = rig.open(HealthLimits::default());
    let mut events = cache.events();
    load(&cache, plan(WritePath::Image)).unwrap_err();
    let all = told(&mut events);
    assert_eq!(kinds(&all), ["began", "sealed", "spindle", "commit failed"], "{all:#?}");
    let Event::CommitFailed { in_memory, why, .. } = &all[3] else { unreachable!() };
    assert!(*in_memory && why.contains("could not sync"), "{why}");
}

#[test]
fn a_warming_that_fails_is_told() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Direct)).unwrap();
    rig.disks[0].clone().with_fault(When::Every("open"), Failure::Error(Errno::IO));
    let mut events = cache.events();
    scan(&cache).unwrap_err();
    let all = told(&mut events);
    let failed = all.iter().find(|event| matches!(event, Event::WarmFailed { .. }));
    let Some(Event::WarmFailed { why, .. }) = failed else { panic!("{all:#?}") };
    assert!(why.contains("could not open"), "{why}");
}

/// Goal: what an evict or a flush takes is told once, when it goes. Method: both, with leases and without files.
#[test]
fn what_leaves_is_told_once_and_when_it_goes() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Image)).unwrap();
    let snap = cache.snap(&key());
    let mut events = cache.events();
    let first = cache.lease(&key(), Want::Latest, None).unwrap();
    assert!(snap.evict() && snap.evict());
    assert_eq!(kinds(&told(&mut events)), ["hot"], "it stays for the lease");
    let second = cache.lease(&key(), Want::Latest, None).unwrap();
    drop((first, second));
    assert_eq!(kinds(&told(&mut events)), ["hot"], "somebody wanted it again");
    let lease = cache.lease(&key(), Want::Latest, None).unwrap();
    assert!(snap.evict());
    drop(lease);
    assert_eq!(kinds(&told(&mut events)), ["hot", "evicted"]);
    let lease = cache.lease(&key(), Want::Latest, None).unwrap();
    assert!(snap.flush(None).unwrap());
    drop(lease);
    assert_eq!(kinds(&told(&mut events)), ["warmed", "flushed"]);
    rig.disks[0].clone().with_fault(When::Every("rename"), Failure::Error(Errno::IO));
    load(&cache, plan(WritePath::Image)).unwrap_err();
    assert!(snap.status().unsaved && snap.flush(None).unwrap() && !snap.flush(None).unwrap());
    let all = told(&mut events);
    let all: Vec<_> = kinds(&all).into_iter().filter(|kind| *kind != "spindle").collect();
    assert_eq!(all, ["began", "sealed", "commit failed", "flushed"]);
}

#[test]
fn a_spindles_way_into_quarantine_and_back_is_told() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits { faults_max: 2, ..impatient() });
    let mut events = cache.events();
    rig.disks[0].clone().with_fault(When::Every("create"), Failure::Error(Errno::IO));
    load(&cache, plan(WritePath::Direct)).unwrap_err();
    load(&cache, plan(WritePath::Direct)).unwrap_err();
    rig.disks[0].heal();
    load(&cache, plan(WritePath::Direct)).unwrap();
    let states: Vec<(HealthState, bool)> = told(&mut events)
        .into_iter()
        .filter_map(|event| match event {
            Event::Spindle { folder, state, fault } => {
                assert_eq!(folder, Rig::path(rig.folder.path(), 0));
                Some((state, fault.is_some()))
            }
            _ => None,
        })
        .collect();
    use HealthState::{Probing, Quarantined, Suspect};
    let only: Vec<HealthState> = states.iter().map(|(state, _)| *state).collect();
    assert!(only.starts_with(&[Suspect, Quarantined]) && only.ends_with(&[Probing, Suspect]), "{only:?}");
    assert!(states.iter().all(|(_, has_fault)| *has_fault), "{states:?}");
}

#[test]
fn the_last_handle_tells_that_the_cache_has_stopped() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    let mut events = cache.events();
    let other = cache.clone();
    drop(cache);
    assert_eq!(told(&mut events), []);
    drop(other);
    assert_eq!(told(&mut events), [Event::Stopped]);
}
