//! The decoders under many small damages, the same ones in every run.
//!
//! Goal: no bytes make a decoder panic, hang, or disagree with another. Method: take a whole file,
//! change a few bytes, often make the checksums right again so that the change gets past them, and
//! call the entries that the fuzzer calls too.
//!
//! `PELTON_MUTATIONS=1000000000 cargo test --release -p pelton-region-format --test mutations` is the
//! long form; `PELTON_SEED` starts elsewhere.

#[path = "support/entries.rs"]
#[allow(unreachable_pub, reason = "public for the fuzzer, which includes the same file")]
mod entries;
mod support;

use pelton_region_format::*;
use support::*;

fn knob(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn mutated_files_are_read_without_panic_or_disagreement() {
    let (mutations, seed) = (knob("PELTON_MUTATIONS", 1_000_000), knob("PELTON_SEED", 1));
    println!("{mutations} mutations, seed {seed}");
    let plain = encode_to_vec(&Header::default(), ["hello", "", "last"], None).unwrap();
    let files = [sample_v2(), plain, encode_v1_to_vec(sample_blobs()).unwrap()];
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let opened = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (files, opened) = (&files, &opened);
            scope.spawn(move || {
                for mutation in (thread..mutations).step_by(threads as usize) {
                    let mut random = Random(seed.wrapping_mul(0xD129_0D62_5B1C_4E55).wrapping_add(mutation));
                    let bytes = mutate(&files[random.below(3) as usize], &mut random);
                    let run = std::panic::catch_unwind(|| {
                        entries::stream(&bytes);
                        entries::view(&bytes)
                    });
                    let Ok(opens) = run else { panic!("mutation {mutation} of seed {seed}") };
                    opened.fetch_add(opens.into(), std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    let opened = opened.into_inner();
    println!("{opened} of them could still be opened");
    assert!(opened > mutations / 10 && opened < mutations, "mutations reach behind the first checks");
}

fn mutate(file: &[u8], random: &mut Random) -> Vec<u8> {
    let mut forger = Forger::of(file);
    for _ in 0..1 + random.below(3) {
        // Most of the first and last page, and of what is between, is zeros: aim where the fields are.
        let len = forger.bytes.len() as u64;
        let from_page =
            [0, 4096, len.saturating_sub(4096), len.saturating_sub(8192)][random.below(4) as usize];
        let at = if random.below(4) == 0 { random.below(len) } else { from_page + random.below(700) };
        let at = at.min(len - 1) as usize;
        match random.below(5) {
            0 => forger.bytes[at] ^= 1 << random.below(8),
            1 => forger.bytes[at] = random.next() as u8,
            2 => {
                let edge =
                    [0, 1, 7, 8, 4095, 4096, u64::from(BLOB_BYTES_MAX), u64::MAX, u64::MAX >> 1, 1 << 32];
                let number = edge[random.below(10) as usize].wrapping_add(random.below(3)).wrapping_sub(1);
                let width = [4, 8][random.below(2) as usize].min(forger.bytes.len() - at);
                forger.put(at, &number.to_le_bytes()[..width]);
            }
            3 => {
                let from = random.below(len) as usize;
                let width = (random.below(64) as usize).min(forger.bytes.len() - at.max(from));
                forger.bytes.copy_within(from..from + width, at);
            }
            _ if random.below(8) == 0 => forger.bytes.truncate(at.max(1)),
            _ => {}
        }
    }
    seal_if_possible(&mut forger, random.below(5));
    forger.bytes
}

/// Makes checksums right again up to some depth, where the fields that say what to sum still lead somewhere.
fn seal_if_possible(forger: &mut Forger, depth: u64) {
    let len = forger.bytes.len();
    if len < 12_288 {
        return;
    }
    let (body_end, table) = (forger.body_end(), forger.table());
    let entries = u32_at(&forger.bytes, forger.trailer() + 48) as usize;
    let in_file = |offset: u64| offset <= forger.trailer() as u64;
    let table_fits = table <= forger.trailer() && entries <= 16 && table + 32 * entries <= forger.trailer();
    let sections_fit = table_fits
        && (0..entries).all(|i| {
            let (start, len) =
                (u64_at(&forger.bytes, table + 32 * i + 8), u64_at(&forger.bytes, table + 32 * i + 16));
            in_file(start) && in_file(len) && in_file(start + len.next_multiple_of(8))
        });
    let sums = (0..if table_fits { entries } else { 0 }).find(|i| u32_at(&forger.bytes, table + 32 * i) == 1);
    let block_bytes = u32_at(&forger.bytes, 20) as usize;
    let blocks_fit = sections_fit
        && sums.is_some()
        && block_bytes >= 4096
        && (4096..=forger.trailer()).contains(&body_end)
        && forger.section(1) + 4 * body_end.div_ceil(block_bytes) <= forger.trailer();
    match depth {
        4 if blocks_fit => _ = forger.seal_all(),
        3 | 4 if sections_fit && sums.is_some() => _ = forger.seal_content().seal_header(),
        2..=4 if table_fits => _ = forger.seal_table().seal_header(),
        1..=4 => _ = forger.seal_trailer().seal_header(),
        _ => {}
    }
}

#[test]
fn mutated_texts_are_read_without_panic() {
    let texts = ["shop/orders@1719878400000#3", "*/*@*#*", &"0123456789abcdef".repeat(4)];
    for mutation in 0..200_000 {
        let mut random = Random(mutation);
        let mut bytes = texts[random.below(3) as usize].as_bytes().to_vec();
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = b"/@#*0a-\x80 .Z9"[random.below(12) as usize];
        }
        entries::text(&bytes);
    }
}
