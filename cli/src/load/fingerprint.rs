//! What decides the blobs of a load, if the user does not say it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

use pelton::Fingerprint;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::failure::Failure;
use crate::load::input::Input;
use crate::progress::Progress;

/// What one read takes.
const CHUNK_BYTES: usize = 1 << 20;

/// The fingerprint of these inputs: of how they are read and dealt, and of each one's name, length and
/// content. What can be read only once gets a random one, so it is never taken for something else.
///
/// How many slices there are counts, too: the same inputs over three slices are other blobs in each of them
/// than over two.
pub(super) fn of_inputs(
    inputs: &[Input],
    format: &str,
    codec: &str,
    slices: u32,
) -> Result<Fingerprint, Failure> {
    let Some(bytes_total) = inputs.iter().map(Input::len).sum::<Option<u64>>() else { return random() };
    let progress = Progress::new("fingerprinting", Some(bytes_total));
    let mut builder =
        Fingerprint::builder().format(format).text("codec", codec).number("slices", slices.into());
    for input in inputs {
        let (len, content) =
            hash(&mut input.open()?, &progress).map_err(|error| Failure::io(&input.path, "read", &error))?;
        builder = builder
            .bytes("input.name", input.name.as_os_str().as_bytes())
            .number("input.len", len)
            .bytes("input.content", content.as_bytes());
    }
    Ok(builder.finish())
}

fn hash(file: &mut File, progress: &Progress) -> io::Result<(u64, blake3::Hash)> {
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut len_total = 0;
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok((len_total, hasher.finalize())),
            Ok(len) => {
                hasher.update(&chunk[..len]);
                progress.advance(len);
                len_total += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn random() -> Result<Fingerprint, Failure> {
    let mut bytes = [0; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())
            .map_err(|error| Failure::Cache(format!("the system gave no random numbers: {error}")))?;
    }
    Ok(Fingerprint::from_bytes(bytes))
}
