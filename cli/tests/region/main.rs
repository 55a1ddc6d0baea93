//! Stories of `pelton region`, told with the real binary.
//!
//! Each test has a folder of its own and looks at what a user would see: output, one line of error,
//! exit code, files.
#![allow(missing_docs, reason = "a test's name is its claim")]

mod convert;
mod damage;
mod inspect;
mod large;
mod output;
mod pipes;
mod refusal;
mod round_trip;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use pelton::Header;
use tempfile::TempDir;

/// A folder in which one test runs its commands.
struct Story {
    folder: TempDir,
}

impl Story {
    fn new() -> Story {
        Story { folder: tempfile::tempdir().unwrap() }
    }

    /// For gigabytes: on the disk of the build, since the usual place may be in memory.
    fn on_the_build_disk() -> Story {
        Story { folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// All that is in the folder.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// `pelton region ...`, not started, in this folder.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pelton"));
        command.arg("region").args(args).current_dir(self.folder.path()).stdin(Stdio::null());
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

    /// The output of a command that works and has nothing to complain about.
    fn ok(&self, args: &[&str]) -> Vec<u8> {
        self.run(args).ok()
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_slice(&self.ok(args)).unwrap()
    }
}

/// A command that has ended.
struct Run {
    args: String,
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Run {
    fn of(args: &[&str], output: Output) -> Run {
        Run {
            args: args.join(" "),
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn ok(self) -> Vec<u8> {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.args);
        self.stdout
    }

    /// Exit code 1 and one line that says all of this. Gives the line.
    fn fails_saying(self, texts: &[&str]) -> String {
        assert_eq!(self.code, Some(1), "{}: {}", self.args, self.stderr);
        assert_eq!(self.stderr.lines().count(), 1, "{}: {}", self.args, self.stderr);
        assert!(self.stderr.starts_with("pelton: ") && self.stderr.ends_with('\n'), "{}", self.stderr);
        for text in texts {
            assert!(self.stderr.contains(text), "{}: {text:?} is not in {:?}", self.args, self.stderr);
        }
        self.stderr
    }
}

/// Bytes that do not repeat early, the same in every run.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

fn framed<B: AsRef<[u8]>>(blobs: &[B]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for blob in blobs {
        bytes.extend_from_slice(&(blob.as_ref().len() as u32).to_le_bytes());
        bytes.extend_from_slice(blob.as_ref());
    }
    bytes
}

/// Blobs that fill 36 checksum blocks of 4 KiB.
fn sample_blobs() -> Vec<Vec<u8>> {
    (0..200).map(|index| noise(index * 7 % 1600, index as u64)).collect()
}

/// A version 2 file of them, with every section that there is.
fn sample_region() -> Vec<u8> {
    let header = Header {
        block_bytes: 4096,
        key: Some("shop/orders@1719878400000#3".parse().unwrap()),
        fingerprint: Some("ab".repeat(32).parse().unwrap()),
        region_index: 2,
        region_count: 5,
        writer: *b"somebody else\0\0\0",
        ..Header::default()
    };
    pelton::encode_to_vec(&header, sample_blobs(), Some(b"what the user wants to keep")).unwrap()
}

fn shell(story: &Story, script: &str, args: &[&OsStr]) -> Output {
    Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_pelton")])
        .args(args)
        .current_dir(story.folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Whether files without a name are known here. Else a killed command leaves a temporary one.
fn knows_nameless_files(folder: &Path) -> bool {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o600)).is_ok()
}
