//! Bytes that are kept until it is known how many they are.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use crate::failure::Failure;
use crate::output::{Output, Place};

/// What stays in memory, and the step in which the rest is written and read.
const MEMORY_BYTES: usize = 4 << 20;

/// Bytes whose number is known only at their end: in memory while they are few, else on the disk of
/// the output that they are for, in a file without a name.
pub(crate) struct Spool {
    memory: Vec<u8>,
    file: Option<File>,
    file_bytes: u64,
    output: Place,
}

impl Spool {
    /// An empty one.
    pub(crate) fn beside(output: &Output) -> Spool {
        Spool { memory: Vec::new(), file: None, file_bytes: 0, output: output.place().clone() }
    }

    pub(crate) fn len(&self) -> u64 {
        self.file_bytes + self.memory.len() as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.memory.len() + bytes.len() > MEMORY_BYTES {
            self.write(bytes).map_err(|error| self.output.failure(&error))
        } else {
            self.memory.extend_from_slice(bytes);
            Ok(())
        }
    }

    /// Hands on all bytes in order, in parts, and is empty afterwards.
    pub(crate) fn drain(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if self.file_bytes > 0 {
            self.rewind().map_err(|error| self.output.failure(&error))?;
            let mut part = vec![0; MEMORY_BYTES];
            while self.file_bytes > 0 {
                let len = self.read(&mut part).map_err(|error| self.output.failure(&error))?;
                take(&part[..len])?;
            }
            self.clear().map_err(|error| self.output.failure(&error))?;
        }
        take(&self.memory)?;
        self.memory.clear();
        Ok(())
    }

    /// Everything in memory goes to the file, and these bytes after it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(self.output.nameless_file()?),
        };
        for part in [&self.memory, bytes] {
            file.write_all(part)?;
            self.file_bytes += part.len() as u64;
        }
        self.memory.clear();
        Ok(())
    }

    fn rewind(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Seek::rewind)
    }

    fn read(&mut self, part: &mut [u8]) -> io::Result<usize> {
        let len = self.file_bytes.min(part.len() as u64) as usize;
        if let Some(file) = &mut self.file {
            file.read_exact(&mut part[..len])?;
        }
        self.file_bytes -= len as u64;
        Ok(len)
    }

    fn clear(&mut self) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.set_len(0)?;
        }
        self.rewind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_in_order_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let output = Output::create(&folder.path().join("out")).unwrap();
        let mut spool = Spool::beside(&output);
        for bytes_total in [0, 1, MEMORY_BYTES, 3 * MEMORY_BYTES + 17, 5] {
            let bytes: Vec<u8> = (0..bytes_total).map(|index| ((index * 31) >> 5) as u8).collect();
            for part in bytes.chunks(MEMORY_BYTES / 3) {
                spool.push(part).unwrap();
            }
            assert_eq!(spool.len(), bytes_total as u64);
            let mut drained = Vec::new();
            let take = |part: &[u8]| {
                drained.extend_from_slice(part);
                Ok(())
            };
            spool.drain(take).unwrap();
            assert!(drained == bytes, "{bytes_total} bytes");
            assert_eq!(spool.len(), 0);
        }
    }
}
