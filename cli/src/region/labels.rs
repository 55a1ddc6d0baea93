//! What `pack` and `convert` let the user say about a new version 2 file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use pelton::{
    ALIGNMENT_MAX, ALIGNMENT_MIN, BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Fingerprint, Header, Key,
    METADATA_BYTES_MAX,
};

use crate::failure::Failure;
use crate::file_kind::other_kind;
use crate::region::file_name;
use pelton::units::{Unrounded, parse_size};

/// Who wrote a file, as the header has it: 16 bytes.
const WRITER: &str = concat!("pelton ", env!("CARGO_PKG_VERSION"));
const _: () = assert!(WRITER.len() <= 16);

/// What is written on a file, and how its body is laid out. What is not given stays as it was.
#[derive(Args)]
pub(super) struct Labels {
    /// The slice it belongs to, as domain/view@clock#slice
    #[arg(long)]
    key: Option<Key>,
    /// What decided its blobs, as 64 hexadecimal digits
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<Fingerprint>,
    /// Blobs begin at multiples of this file offset: a power of two, 8 to 4096
    #[arg(long, value_name = "BYTES", value_parser = alignment)]
    align: Option<u32>,
    /// How much one checksum covers: a power of two, 4KiB to 64MiB
    #[arg(long, value_name = "SIZE", value_parser = block_bytes)]
    block: Option<u32>,
    /// How far apart the blobs in the index are, at least
    #[arg(long, value_name = "SIZE", value_parser = stride)]
    stride: Option<u32>,
    /// A file to keep as the user metadata: at most 1 MiB of anything
    #[arg(long, value_name = "FILE", value_parser = file_name())]
    meta: Option<PathBuf>,
}

impl Labels {
    /// The first option that was given, for commands that can't follow any.
    pub(super) fn any(&self) -> Option<&'static str> {
        let given = [
            ("--key", self.key.is_some()),
            ("--fingerprint", self.fingerprint.is_some()),
            ("--align", self.align.is_some()),
            ("--block", self.block.is_some()),
            ("--stride", self.stride.is_some()),
            ("--meta", self.meta.is_some()),
        ];
        given.iter().find(|(_, given)| *given).map(|(name, _)| *name)
    }

    /// The header of a file that comes from no other version 2 file. Without a fingerprint it is still
    /// to be made of the blobs.
    pub(super) fn new_header(&self) -> Header {
        let key = Key::new("local", "file", 0, 0).expect("local/file@0#0 is a key");
        self.header(&Header { key: Some(key), ..Header::default() })
    }

    /// The header of a file that is made of another one.
    pub(super) fn header(&self, source: &Header) -> Header {
        let mut writer = [0; 16];
        writer[..WRITER.len()].copy_from_slice(WRITER.as_bytes());
        Header {
            alignment: self.align.unwrap_or(source.alignment),
            block_bytes: self.block.unwrap_or(source.block_bytes),
            writer,
            key: self.key.clone().or_else(|| source.key.clone()),
            fingerprint: self.fingerprint.or(source.fingerprint),
            // What they would mean for this file is not known.
            optional_features: 0,
            ..*source
        }
    }

    /// How far apart the blobs in the index are.
    pub(super) fn stride(&self, source: Option<u32>) -> u32 {
        self.stride.or(source).unwrap_or(pelton::INDEX_STRIDE_DEFAULT)
    }

    /// The bytes of the metadata file, if there is one.
    pub(super) fn metadata(&self) -> Result<Option<Vec<u8>>, Failure> {
        self.meta.as_deref().map(read_metadata).transpose()
    }
}

fn read_metadata(path: &Path) -> Result<Vec<u8>, Failure> {
    let failure = |error| Failure::io(path, "read", &error);
    let file = File::open(path).map_err(failure)?;
    if let Some(kind @ "a folder") = other_kind(&file.metadata().map_err(failure)?) {
        return Err(Failure::file(path, format!("is {kind}, expected a file")));
    }
    let mut metadata = Vec::new();
    file.take(METADATA_BYTES_MAX as u64 + 1).read_to_end(&mut metadata).map_err(failure)?;
    if metadata.len() > METADATA_BYTES_MAX {
        let most = Unrounded(METADATA_BYTES_MAX as u64);
        return Err(Failure::file(path, format!("is too large: a region keeps at most {most} of metadata")));
    }
    Ok(metadata)
}

/// Reads where blobs may begin.
pub(crate) fn alignment(text: &str) -> Result<u32, String> {
    power_in(text, ALIGNMENT_MIN, ALIGNMENT_MAX)
}

fn block_bytes(text: &str) -> Result<u32, String> {
    power_in(text, BLOCK_BYTES_MIN, BLOCK_BYTES_MAX)
}

fn stride(text: &str) -> Result<u32, String> {
    match u32::try_from(parse_size(text).map_err(|error| error.to_string())?) {
        Ok(0) | Err(_) => Err("expected 1 byte to 4 GiB less one".to_owned()),
        Ok(stride) => Ok(stride),
    }
}

fn power_in(text: &str, min: u32, max: u32) -> Result<u32, String> {
    match u32::try_from(parse_size(text).map_err(|error| error.to_string())?) {
        Ok(value) if value.is_power_of_two() && (min..=max).contains(&value) => Ok(value),
        _ => Err(format!("expected a power of two, {} to {}", Unrounded(min.into()), Unrounded(max.into()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_header_takes_is_taken() {
        for value in [8, 16, 64, 4096] {
            assert_eq!(alignment(&value.to_string()), Ok(value));
        }
        for text in ["0", "4", "24", "8192", "x", "-8"] {
            assert!(alignment(text).is_err(), "{text}");
        }
        assert_eq!(block_bytes("4KiB"), Ok(4096));
        assert_eq!(block_bytes("64MiB"), Ok(64 << 20));
        assert!(block_bytes("128MiB").is_err());
        assert_eq!(stride("1"), Ok(1));
        assert!(stride("0").is_err());
        assert!(stride("4GiB").is_err());
    }
}
