//! Feeds the `view` entry: see `tests/support/entries.rs`.
#![no_main]

#[path = "../../tests/support/entries.rs"]
#[allow(dead_code, reason = "each target calls its own entry")]
mod entries;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = entries::view(bytes);
});
