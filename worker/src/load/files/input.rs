//! Where blobs come from: one file or stream, or all files of a folder.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::FileError;

/// One file or stream.
#[derive(Clone, Debug)]
pub struct Input {
    path: PathBuf,
    name: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Stdin,
    /// A pipe or a device: what was read is gone.
    Stream,
    File(Stamp),
}

/// What changes when somebody writes a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Standard input.
    pub fn stdin() -> Input {
        let name = PathBuf::from("standard input");
        Input { path: name.clone(), name, kind: Kind::Stdin }
    }

    /// As people know it: where it lies, or "standard input".
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name, which counts for the fingerprint: in a folder its path from there.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// How many bytes it holds, if that is known before it is read. Files under /proc say 0 and are not empty.
    #[allow(clippy::len_without_is_empty, reason = "it is not always known")]
    pub fn len(&self) -> Option<u64> {
        match self.kind {
            Kind::File(stamp) => Some(stamp.len),
            Kind::Stdin | Kind::Stream => None,
        }
    }

    /// Opens it for reading from its start.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn open(&self) -> Result<File, FileError> {
        let file = match self.kind {
            Kind::Stdin => io::stdin().as_fd().try_clone_to_owned().map(File::from),
            Kind::Stream | Kind::File(_) => File::open(&self.path),
        };
        file.map_err(|error| FileError::io(&self.path, error))
    }

    /// Refuses a file that is not as it was when it was found: its fingerprint was for that.
    ///
    /// # Errors
    /// [`FileError::Changed`], [`FileError::Io`].
    pub fn check_unchanged(&self) -> Result<(), FileError> {
        let Kind::File(before) = self.kind else { return Ok(()) };
        let metadata = fs::metadata(&self.path).map_err(|error| FileError::io(&self.path, error))?;
        match Stamp::of(&metadata) == before {
            true => Ok(()),
            false => Err(FileError::Changed { path: self.path.clone() }),
        }
    }
}

/// The inputs at a path, in the order in which they are loaded: a file or a pipe is one, a folder is all regular files in it
/// and in its folders. Links in it are not followed.
///
/// # Errors
/// [`FileError`].
pub fn find(from: &Path) -> Result<Vec<Input>, FileError> {
    let metadata = fs::metadata(from).map_err(|error| FileError::io(from, error))?;
    let kind = match metadata.file_type() {
        kind if kind.is_file() => Kind::File(Stamp::of(&metadata)),
        kind if kind.is_dir() => return find_in_folder(from),
        kind if kind.is_socket() => {
            return Err(FileError::content(from, "is a socket, expected a file, a folder or a pipe"));
        }
        _ => Kind::Stream,
    };
    let name = from.file_name().map_or_else(|| from.to_owned(), PathBuf::from);
    Ok(vec![Input { path: from.to_owned(), name, kind }])
}

/// The regular files in a folder and its folders. Links are not followed: they may lead out, or in circles.
fn find_in_folder(root: &Path) -> Result<Vec<Input>, FileError> {
    let mut inputs = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let failure = |error: io::Error| FileError::io(&folder, error);
        for entry in fs::read_dir(&folder).map_err(failure)? {
            let entry = entry.map_err(failure)?;
            let kind = entry.file_type().map_err(failure)?;
            let path = entry.path();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                let metadata = entry.metadata().map_err(|error| FileError::io(&path, error))?;
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
        let inputs = find(folder.path()).unwrap();
        let names: Vec<&str> = inputs.iter().map(|input| input.name.to_str().unwrap()).collect();
        assert_eq!(names, ["a", "b/0", "b/c/1", "z"]);
    }

    #[test]
    fn a_file_that_was_written_to_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, "one").unwrap();
        let inputs = find(&path).unwrap();
        assert!(inputs[0].check_unchanged().is_ok());
        fs::write(&path, "another").unwrap();
        assert!(inputs[0].check_unchanged().is_err());
    }
}
