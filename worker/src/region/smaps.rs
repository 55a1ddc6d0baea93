//! How much of our memory lies in large pages, as the kernel tells.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;

/// How many bytes of these address ranges are mapped by large pages. Reads a file that has a paragraph for
/// each mapping of the process: for a look now and then.
pub(crate) fn large_page_bytes(ranges: &[Range<usize>]) -> io::Result<u64> {
    count(BufReader::new(File::open("/proc/self/smaps")?), ranges)
}

fn count(smaps: impl BufRead, ranges: &[Range<usize>]) -> io::Result<u64> {
    let mut sum = 0;
    let mut of_ours = 0;
    for line in smaps.lines() {
        let line = line?;
        if let Some(mapping) = address_range(&line) {
            // Neighbours of one kind are one mapping for the kernel, so it may be larger than our part.
            let shared = |range: &Range<usize>| {
                range.end.min(mapping.end).saturating_sub(range.start.max(mapping.start)) as u64
            };
            of_ours = ranges.iter().map(shared).sum();
        } else if of_ours > 0
            && let Some((name, value)) = line.split_once(':')
            && matches!(name, "AnonHugePages" | "ShmemPmdMapped" | "FilePmdMapped")
        {
            let kib = value.trim().strip_suffix(" kB").and_then(|text| text.parse::<u64>().ok());
            sum += kib.map_or(0, |kib| kib * 1024).min(of_ours);
        }
    }
    Ok(sum)
}

/// The first line of a mapping's paragraph: `7f00-7fff r--s 00000000 fe:00 12 /path`.
fn address_range(line: &str) -> Option<Range<usize>> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_part_of_our_mappings_counts() {
        let smaps = "1000000-1800000 r--s 00000000 fe:00 12   /a: file\n\
            Size:               8192 kB\nFilePmdMapped:      6144 kB\nAnonHugePages:         0 kB\n\
            VmFlags: rd sh\n\
            2000000-2400000 rw-p 00000000 00:00 0\nAnonHugePages:      4096 kB\n\
            3000000-3400000 rw-p 00000000 00:00 0\nAnonHugePages:      4096 kB\n";
        let of = |ranges: &[Range<usize>]| count(smaps.as_bytes(), ranges).unwrap();
        assert_eq!(of(&[]), 0);
        let one_range = 0x1000000..0x1800000;
        assert_eq!(of(&[one_range]), 6 << 20);
        assert_eq!(of(&[0x1000000..0x1800000, 0x2000000..0x2200000]), 8 << 20);
        assert!(large_page_bytes(&[]).is_ok(), "the kernel's own can be read");
    }
}
