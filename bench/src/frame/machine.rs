//! What the figures were measured on.

use std::fs;

/// One line: processor, memory, kernel.
pub(crate) fn machine() -> String {
    let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let memory_info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processor = field(&cpu_info, "model name").unwrap_or("unknown processor");
    let model = field(&cpu_info, "model").unwrap_or("?");
    let processors = cpu_info.lines().filter(|line| line.starts_with("processor")).count();
    let memory_gib = kib_field(&memory_info, "MemTotal").unwrap_or(0) as f64 / f64::from(1 << 20);
    format!(
        "{processor} (model {model}), {processors} processors, {memory_gib:.1} GiB of memory, Linux {}, CRC-32C by {}",
        kernel.trim(),
        crc_fast::get_calculator_target(crc_fast::CrcAlgorithm::Crc32Iscsi),
    )
}

/// How many bytes can be had without swapping, as the kernel guesses.
pub(crate) fn available_bytes() -> Option<u64> {
    let memory_info = fs::read_to_string("/proc/meminfo").ok()?;
    Some(kib_field(&memory_info, "MemAvailable")? * 1024)
}

/// The value of the first line `name : value`.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then_some(value.trim())
    })
}

fn kib_field(info: &str, name: &str) -> Option<u64> {
    field(info, name)?.strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_files_are_found_by_their_whole_name() {
        let info =
            "MemTotal:       24600000 kB\nMemFree:  7 kB\nmodel\t\t: 143\nmodel name\t: Some Processor\n";
        assert_eq!(kib_field(info, "MemTotal"), Some(24_600_000));
        assert_eq!(field(info, "model"), Some("143"));
        assert_eq!(field(info, "model name"), Some("Some Processor"));
        assert_eq!(kib_field(info, "Mem"), None);
    }
}
