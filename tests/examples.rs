//! The examples, run as part of the tests: what people copy must work.

// Each example has a `main`, which nobody calls here.
#[allow(dead_code)]
#[path = "../examples/async_load.rs"]
mod async_load;
#[allow(dead_code)]
#[path = "../examples/custom_loader.rs"]
mod custom_loader;
#[allow(dead_code)]
#[path = "../examples/load_and_scan.rs"]
mod load_and_scan;
#[allow(dead_code)]
#[path = "../examples/own_threads.rs"]
mod own_threads;
#[allow(dead_code)]
#[path = "../examples/producers.rs"]
mod producers;

/// The second run finds the first one's slices, and loads them anew.
#[test]
fn examples_find_what_they_load_also_when_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let spindle = folder.path().join("pelton-data");
    for _ in 0..2 {
        // The numbers from 0 to 9999.
        assert_eq!(async_load::run(&spindle).unwrap(), 10_000 * 9_999 / 2);
        assert_eq!(custom_loader::run(&spindle).unwrap(), 30_000 * 29_999);
        assert_eq!(load_and_scan::run(&spindle).unwrap(), 3);
        assert_eq!(own_threads::run(&spindle).unwrap(), "99999".len());
        // Sensors 0 to 3 tell their number each time, and 0 to 99 a hundred times over.
        let sum = (1 + 2 + 3) * 10_000 + 4 * 100 * (99 * 100 / 2);
        assert_eq!(producers::run(&spindle).unwrap(), (40_000, sum));
    }
}
