//! The memory of a load that is far larger than its budget. Alone in its process, whose memory is what it measures.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pelton::*;

const MIB: u64 = 1 << 20;
const BUDGET: u64 = 64 * MIB;

/// What is not counted: code, stacks, the allocator, the test itself.
const BESIDE: u64 = 64 * MIB;

/// Goal: a load takes its budget and no more, however large it is and however fast its producers are. Method: load eight
/// times the budget by two producers that never wait for anything but the cache, whichever way it goes to the disk, and look
/// at the process every 10 ms.
#[test]
fn a_load_takes_its_budget_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::builder().memory(BUDGET).spindle(folder.path().join("s"), None).open().unwrap();
    let (peak, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                peak.fetch_max(own_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        // However the loads end, the watch ends with them.
        let _over = SetOnDrop(&done);
        for (number, write_path) in
            [WritePath::Auto, WritePath::Image, WritePath::Direct].into_iter().enumerate()
        {
            let key = Key::new("test", "memory", 1, number as u32).unwrap();
            load(&cache, &key, write_path);
            cache.snap(&key).flush(None).unwrap();
        }
    });
    let peak = peak.into_inner();
    println!("{} MiB at most, the budget is {} MiB", peak / MIB, BUDGET / MIB);
    assert!(peak > BUDGET / 8, "nothing was looked at: {peak}");
    assert!(peak <= BUDGET + BESIDE, "{peak} bytes");
}

fn load(cache: &Cache, key: &Key, write_path: WritePath) {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
    plan.regions = Some(2);
    plan.write_path = write_path;
    plan.durability = Durability::Wait;
    let writer = cache.snap(key).open_for_writes(plan).unwrap();
    let left = AtomicU64::new(8 * BUDGET / MIB);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let blob = vec![7; 64 << 10];
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok()
                {
                    let mut parcel = ParcelBuilder::with_capacity(MIB as usize + 64);
                    (0..16).for_each(|_| parcel.push(&blob).unwrap());
                    writer.queue_parcel(parcel.finish()).unwrap();
                }
            });
        }
    });
    let sealed = writer.wait_for_writes().unwrap();
    assert_eq!(sealed.blob_bytes(), 8 * BUDGET);
    sealed.close_for_writes().unwrap();
}

/// What of this process lies in memory and is no file's.
fn own_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().strip_suffix("kB").unwrap().trim().parse().unwrap()
    };
    (kib("RssAnon:") + kib("RssShmem:")) * 1024
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
