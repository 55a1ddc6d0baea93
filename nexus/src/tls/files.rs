//! Certificates and keys in files, read again when they change.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::told::told;

/// How often the files are looked at, if anybody connects.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// No chain and no list of CAs that people keep in a file is longer.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why certificates or a key could not be taken from files.
///
/// What stands in a file is never told: one of them is a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFileError {
    /// The system refused, or the file is too large for what it should be.
    #[error("{}: can't be read", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file was read, but has not what it must have.
    #[error("{}: {problem}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A certificate and a key that do not belong together.
    #[error("the key in {} does not fit the certificate in {}", key.display(), certificate.display())]
    KeyUnfit {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

/// Which files.
#[derive(Clone, Debug)]
pub(super) struct TlsFiles {
    /// A certificate and its key.
    identity: Option<(PathBuf, PathBuf)>,
    /// Whose signatures are trusted.
    ca: Option<PathBuf>,
}

/// How a configuration is made of what the files have. Text says what is missing.
type Make<C> = fn(Option<CertifiedKey>, Option<RootCertStore>) -> Result<C, String>;

/// A configuration that follows its files.
pub(super) struct Reloaded<C> {
    shared: Arc<Shared<C>>,
    look_every: Duration,
}

struct Shared<C> {
    files: TlsFiles,
    make: Make<C>,
    state: Mutex<State<C>>,
}

struct State<C> {
    config: Arc<C>,
    /// How the files looked when they were last read, well or badly.
    stamps: Vec<Stamp>,
    looked: Instant,
}

/// What changes when a file does. Nothing if it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp(Option<[i64; 6]>);

impl TlsFiles {
    pub(super) fn new(identity: Option<(&Path, &Path)>, ca: Option<&Path>) -> TlsFiles {
        let owned = |(certificate, key): (&Path, &Path)| (certificate.to_owned(), key.to_owned());
        TlsFiles { identity: identity.map(owned), ca: ca.map(Path::to_owned) }
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let identity = self.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        identity.chain(&self.ca).map(PathBuf::as_path)
    }

    fn stamps(&self) -> Vec<Stamp> {
        self.paths().map(Stamp::of).collect()
    }

    fn read<C>(&self, make: Make<C>) -> Result<C, TlsFileError> {
        let identity = match &self.identity {
            Some((certificate, key)) => Some(read_identity(certificate, key)?),
            None => None,
        };
        let ca = self.ca.as_deref().map(read_ca).transpose()?;
        make(identity, ca).map_err(|problem| {
            let path = self.paths().next().unwrap_or(Path::new("")).to_owned();
            TlsFileError::Content { path, problem }
        })
    }
}

impl<C: Send + Sync + 'static> Reloaded<C> {
    pub(super) fn read(files: TlsFiles, make: Make<C>) -> Result<Reloaded<C>, TlsFileError> {
        // Before the files are read: what changes in between is seen at the next look.
        let stamps = files.stamps();
        let config = Arc::new(files.read(make)?);
        let state = Mutex::new(State { config, stamps, looked: Instant::now() });
        Ok(Reloaded { shared: Arc::new(Shared { files, make, state }), look_every: LOOK_EVERY })
    }

    pub(super) fn look_every(&mut self, pause: Duration) {
        self.look_every = pause;
    }

    /// Whether both are clones of one.
    pub(super) fn is_same(&self, other: &Reloaded<C>) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    pub(super) fn has_ca(&self) -> bool {
        self.shared.files.ca.is_some()
    }

    /// As the files have it now, or had it when they were last good.
    pub(super) async fn current(&self) -> Arc<C> {
        if self.is_time_to_look() {
            let shared = Arc::clone(&self.shared);
            // A disk that hangs keeps one connection waiting, not the runtime.
            match tokio::task::spawn_blocking(move || shared.look()).await {
                Ok(Some(Ok(()))) => {
                    tracing::info!(files = %self.shared.files, "certificates were read again");
                }
                Ok(Some(Err(error))) => {
                    let error = told(&error);
                    tracing::error!(%error, "new certificates can't be used; the ones from before are kept");
                }
                // Nothing has changed, or the runtime ends.
                Ok(None) | Err(_) => {}
            }
        }
        Arc::clone(&self.shared.lock().config)
    }

    fn is_time_to_look(&self) -> bool {
        let mut state = self.shared.lock();
        let now = Instant::now();
        let is_time = now.duration_since(state.looked) >= self.look_every;
        if is_time {
            // The others go on with what there is.
            state.looked = now;
        }
        is_time
    }
}

impl<C> Shared<C> {
    /// Reads the files if they have changed since they were last read. Nothing if they have not.
    fn look(&self) -> Option<Result<(), TlsFileError>> {
        let stamps = self.files.stamps();
        if self.lock().stamps == stamps {
            return None;
        }
        let read = self.files.read(self.make);
        let mut state = self.lock();
        state.stamps = stamps;
        Some(read.map(|config| state.config = Arc::new(config)))
    }

    fn lock(&self) -> MutexGuard<'_, State<C>> {
        // Each change is one step: what a panic left is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> Clone for Reloaded<C> {
    fn clone(&self) -> Reloaded<C> {
        Reloaded { shared: Arc::clone(&self.shared), look_every: self.look_every }
    }
}

impl<C> fmt::Debug for Reloaded<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What they have is not for logs.
        f.debug_tuple("Reloaded").field(&self.shared.files).finish()
    }
}

impl fmt::Display for TlsFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, path) in self.paths().enumerate() {
            write!(f, "{}{}", if index > 0 { ", " } else { "" }, path.display())?;
        }
        Ok(())
    }
}

impl Stamp {
    fn of(path: &Path) -> Stamp {
        let stamp = |of: fs::Metadata| {
            let (ino, len) = (of.ino().cast_signed(), of.len().cast_signed());
            [ino, len, of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()]
        };
        Stamp(fs::metadata(path).ok().map(stamp))
    }
}

fn read_identity(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsFileError> {
    let chain = read_certificates(certificate)?;
    let pem = read_file(key)?;
    let private_key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        // Not the error itself: it may quote the file.
        let is_encrypted = pem.windows(9).any(|window| window == b"ENCRYPTED");
        content(
            key,
            if is_encrypted {
                "the key is encrypted, and nobody is there to type a password; decrypt it with \"openssl pkey\""
            } else {
                "has no private key in PEM"
            },
        )
    })?;
    CertifiedKey::from_der(chain, private_key, &super::provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsFileError::KeyUnfit { certificate: certificate.to_owned(), key: key.to_owned() }
        }
        rustls::Error::InvalidCertificate(_) => content(certificate, "its first certificate is damaged"),
        _ => content(key, "is no key that TLS 1.3 can use; take ECDSA P-256 or P-384, Ed25519 or RSA"),
    })
}

fn read_ca(path: &Path) -> Result<RootCertStore, TlsFileError> {
    let mut store = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        store
            .add(certificate)
            .map_err(|_| content(path, "a certificate in it is no CA that can be trusted"))?;
    }
    Ok(store)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let pem = read_file(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(content(path, "has no certificate in PEM")),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsFileError> {
    let refuse = |source| TlsFileError::Read { path: path.to_owned(), source };
    let len = fs::metadata(path).map_err(refuse)?.len();
    if len > FILE_BYTES_MAX {
        return Err(content(path, "is too large for certificates"));
    }
    fs::read(path).map_err(refuse)
}

fn content(path: &Path, problem: &str) -> TlsFileError {
    TlsFileError::Content { path: path.to_owned(), problem: problem.to_owned() }
}
