//! What decides the blobs of a load from files.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use pelton_region_format::Fingerprint;

use super::FileError;
use super::format::FileFormat;
use super::input::Input;

/// What one read takes.
const CHUNK_BYTES: usize = 1 << 20;

/// A file's length and content, as it is read: told each stretch of its bytes, in order.
#[derive(Clone, Debug, Default)]
pub struct Content {
    hasher: blake3::Hasher,
    len: u64,
}

impl Content {
    /// The next bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
    }
}

/// The fingerprint of these inputs: of how they are read and dealt, and of each one's name, length and content. Reads all
/// of them, and tells `seen` what it reads. Nothing if one of them can be read only once.
///
/// How many slices there are counts, too: the same inputs over three slices are other blobs in each of them than over two.
///
/// # Errors
/// [`FileError::Io`].
pub fn fingerprint(
    inputs: &[Input],
    format: FileFormat,
    codec: &str,
    slices: u32,
    seen: &mut dyn FnMut(&[u8]),
) -> Result<Option<Fingerprint>, FileError> {
    if inputs.iter().any(|input| input.len().is_none()) {
        return Ok(None);
    }
    let mut contents = Vec::new();
    for input in inputs {
        contents.push((input.name(), read(input, seen)?));
    }
    Ok(Some(of_contents(&contents, format, codec, slices)))
}

/// The same for what was read already.
pub(super) fn of_contents(
    contents: &[(&Path, Content)],
    format: FileFormat,
    codec: &str,
    slices: u32,
) -> Fingerprint {
    let mut builder =
        Fingerprint::builder().format(format.name()).text("codec", codec).number("slices", slices.into());
    for (name, content) in contents {
        builder = builder
            .bytes("input.name", name.as_os_str().as_bytes())
            .number("input.len", content.len)
            .bytes("input.content", content.hasher.finalize().as_bytes());
    }
    builder.finish()
}

fn read(input: &Input, seen: &mut dyn FnMut(&[u8])) -> Result<Content, FileError> {
    let mut content = Content::default();
    let mut file = input.open()?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(content),
            Ok(len) => {
                seen(&chunk[..len]);
                content.add(&chunk[..len]);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FileError::io(input.path(), error)),
        }
    }
}
