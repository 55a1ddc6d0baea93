//! Stories of the commands that work on a cache, told with the real binary.
//!
//! Each command is a process of its own, so every scan after a load is also a restart. Each test has a
//! folder of its own, and what a scan says is compared with what is computed over the input here.
#![allow(missing_docs, reason = "a test's name is its claim")]

mod again;
mod config;
mod demo;
mod doctor;
mod feed;
mod formats;
mod layout;
mod node;
mod ops;
mod pull;
mod python_source;
mod refusal;
mod repair;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A folder in which one test runs its commands. The cache is in `pelton-data` there.
struct Story {
    folder: TempDir,
}

impl Story {
    fn new() -> Story {
        Story { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pelton"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        Run::of(args, self.command(args).output().unwrap())
    }

    fn run_with_input(&self, args: &[&str], input: &[u8]) -> Run {
        let mut command = self.command(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The command may end before it has read everything.
        let _ = child.stdin.take().unwrap().write_all(input);
        Run::of(args, child.wait_with_output().unwrap())
    }

    /// What a command that works says in JSON.
    fn json(&self, args: &[&str]) -> Value {
        self.run(&[args, &["--json"]].concat()).json()
    }

    /// Loads `in` to `d/v@1`.
    fn load(&self, format: &str, options: &[&str]) -> Value {
        self.json(&[&["load", "d/v@1", "--from", "in", "--format", format], options].concat())
    }

    /// Looks at `d/v@1` in every way there is, and compares with these blobs.
    fn holds<B: AsRef<[u8]>>(&self, blobs: &[B], options: &[&str]) {
        self.scan_finds("d/v@1", blobs, options);
    }

    fn scan_finds<B: AsRef<[u8]>>(&self, key: &str, blobs: &[B], options: &[&str]) {
        let blobs: Vec<&[u8]> = blobs.iter().map(AsRef::as_ref).collect();
        let bytes: usize = blobs.iter().map(|blob| blob.len()).sum();
        let crc32c: u64 = blobs.iter().map(|blob| u64::from(plain_crc32c(blob))).sum();
        let matches = blobs.iter().filter(|blob| blob.windows(2).any(|window| window == b"ab")).count();
        for op in ["count", "bytes", "crc32c", "grep:ab"] {
            let said = self.json(&[&["scan", key, "--op", op], options].concat());
            assert_eq!((&said["count"], &said["bytes"]), (&blobs.len().into(), &bytes.into()), "{said}");
            match op {
                "crc32c" => assert_eq!(said["crc32c"], crc32c, "{said}"),
                "grep:ab" => assert_eq!(said["matches"], matches, "{said}"),
                _ => assert!(said["crc32c"].is_null() && said["matches"].is_null(), "{said}"),
            }
            let report = &said["report"];
            assert!(report["region_bytes"].as_u64().unwrap() >= bytes as u64, "{said}");
            assert!(report["wall_seconds"].is_f64() && report["threads"].is_u64(), "{said}");
            let ways = ["image_bytes", "map_bytes", "stream_bytes"].map(|way| report[way].as_u64().unwrap());
            assert_eq!(ways.iter().sum::<u64>(), report["region_bytes"], "{said}");
            for seconds in ["cpu_seconds", "waited_seconds", "skew"] {
                assert!(report[seconds].as_f64().unwrap() >= 0.0, "{seconds}: {said}");
            }
            for count in ["faults_major", "threads_pinned"] {
                assert!(report[count].is_u64(), "{count}: {said}");
            }
            assert!(said["key"].as_str().unwrap().starts_with("d/v@") && said["slices"].is_u64(), "{said}");
        }
    }
}

/// A command that has ended.
struct Run {
    args: String,
    code: Option<i32>,
    stdout: String,
    stderr: String,
    /// Lines of standard error about spindles that share a disk.
    warnings: String,
}

impl Run {
    fn of(args: &[&str], output: Output) -> Run {
        // All spindles of a story lie in one folder, which is said each time. One story looks for it.
        let (warnings, stderr): (Vec<&str>, Vec<&str>) = std::str::from_utf8(&output.stderr)
            .unwrap()
            .split_inclusive('\n')
            .partition(|line| line.contains("share a file system"));
        Run {
            args: args.join(" "),
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: stderr.concat(),
            warnings: warnings.concat(),
        }
    }

    fn ok(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.args);
        assert_eq!(self.stdout.lines().count(), 1, "{}: {}", self.args, self.stdout);
        self.stdout
    }

    fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// Exit code 1, nothing on standard output, and one line that says all of this.
    fn fails_saying(self, texts: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{}: {}", self.args, self.stderr);
        assert_eq!(self.stderr.lines().count(), 1, "{}: {}", self.args, self.stderr);
        assert!(self.stderr.starts_with("pelton: "), "{}", self.stderr);
        self.says(texts);
    }

    /// Exit code 2, and all of this on standard error.
    fn refuses_usage(self, texts: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(2), ""), "{}: {}", self.args, self.stderr);
        self.says(texts);
    }

    fn says(&self, texts: &[&str]) {
        for text in texts {
            assert!(self.stderr.contains(text), "{}: {text:?} is not in {:?}", self.args, self.stderr);
        }
    }
}

/// CRC-32C bit by bit: slow, and written without a look at the one that is used.
fn plain_crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[test]
fn the_plain_checksum_is_crc32c() {
    assert_eq!(plain_crc32c(b"123456789"), 0xE306_9283);
}

/// Blobs of many lengths over the letters a to d, none of them a line feed. The same in every run.
fn sample_blobs(count: usize) -> Vec<Vec<u8>> {
    let mut state = 7u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32
    };
    (0..count)
        .map(|index| {
            let len = next() % 40 * (1 + 9 * u64::from(index % 10 == 0));
            (0..len).map(|_| b'a' + (next() % 4) as u8).collect()
        })
        .collect()
}

fn lines(blobs: &[Vec<u8>]) -> Vec<u8> {
    blobs.iter().flat_map(|blob| [blob, &b"\n"[..]].concat()).collect()
}

fn framed(blobs: &[Vec<u8>]) -> Vec<u8> {
    blobs.iter().flat_map(|blob| [&(blob.len() as u32).to_le_bytes(), &blob[..]].concat()).collect()
}
