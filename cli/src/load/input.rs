//! Where blobs come from: one file or stream, or all files of a folder.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::file_kind::other_kind;

/// One file or stream.
pub(super) struct Input {
    /// As people know it: where it lies, or "standard input".
    pub(super) path: PathBuf,
    /// Its name, which counts for the fingerprint: in a folder its path from there.
    pub(super) name: PathBuf,
    kind: Kind,
}

enum Kind {
    Stdin,
    /// A pipe or a device: what was read is gone.
    Stream,
    File(Stamp),
}

/// What changes when somebody writes a file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp { len: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

impl Input {
    /// How much it holds, if that is known before it is read. Files under /proc say 0 and are not empty.
    pub(super) fn len(&self) -> Option<u64> {
        match self.kind {
            Kind::File(stamp) => Some(stamp.len),
            Kind::Stdin | Kind::Stream => None,
        }
    }

    /// Opens it for reading from its start.
    pub(super) fn open(&self) -> Result<File, Failure> {
        let file = match self.kind {
            Kind::Stdin => io::stdin().as_fd().try_clone_to_owned().map(File::from),
            Kind::Stream | Kind::File(_) => File::open(&self.path),
        };
        file.map_err(|error| Failure::io(&self.path, "read", &error))
    }

    /// Refuses a file that is not as it was when the load began: its fingerprint was for that.
    pub(super) fn check_unchanged(&self) -> Result<(), Failure> {
        let Kind::File(before) = self.kind else { return Ok(()) };
        let metadata = fs::metadata(&self.path).map_err(|error| Failure::io(&self.path, "read", &error))?;
        match Stamp::of(&metadata) == before {
            true => Ok(()),
            false => Err(Failure::file(&self.path, "was changed while it was loaded; load it again")),
        }
    }
}

/// What `--from` means: the inputs, in the order in which they are loaded.
pub(super) fn find(from: &Path) -> Result<Vec<Input>, Failure> {
    if from == Path::new("-") {
        let name = PathBuf::from("standard input");
        return Ok(vec![Input { path: name.clone(), name, kind: Kind::Stdin }]);
    }
    let metadata = fs::metadata(from).map_err(|error| Failure::io(from, "read", &error))?;
    let kind = match other_kind(&metadata) {
        None => Kind::File(Stamp::of(&metadata)),
        Some("a folder") => return find_in_folder(from),
        Some("a socket") => {
            return Err(Failure::file(from, "is a socket, expected a file, a folder or a pipe"));
        }
        Some(_) => Kind::Stream,
    };
    let name = from.file_name().map_or_else(|| from.to_owned(), PathBuf::from);
    Ok(vec![Input { path: from.to_owned(), name, kind }])
}

/// The regular files in a folder and its folders. Links are not followed: they may lead out, or in circles.
fn find_in_folder(root: &Path) -> Result<Vec<Input>, Failure> {
    let mut inputs = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let failure = |error: io::Error| Failure::io(&folder, "read", &error);
        for entry in fs::read_dir(&folder).map_err(failure)? {
            let entry = entry.map_err(failure)?;
            let kind = entry.file_type().map_err(failure)?;
            let path = entry.path();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                let metadata = entry.metadata().map_err(|error| Failure::io(&path, "read", &error))?;
                let name = path.strip_prefix(root).expect("it was found in there").to_owned();
                inputs.push(Input { path, name, kind: Kind::File(Stamp::of(&metadata)) });
            }
        }
    }
    inputs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_its_regular_files_in_order_of_path() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("b/c")).unwrap();
        for name in ["z", "b/c/1", "b/0", "a"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("z", folder.path().join("link")).unwrap();
        std::os::unix::fs::symlink(".", folder.path().join("circle")).unwrap();
        let inputs = find(folder.path()).unwrap_or_else(|failure| panic!("{failure}"));
        let names: Vec<&str> = inputs.iter().map(|input| input.name.to_str().unwrap()).collect();
        assert_eq!(names, ["a", "b/0", "b/c/1", "z"]);
    }

    #[test]
    fn a_file_that_was_written_to_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, "one").unwrap();
        let inputs = find(&path).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(inputs[0].check_unchanged().is_ok());
        fs::write(&path, "another").unwrap();
        assert!(inputs[0].check_unchanged().is_err());
    }
}
