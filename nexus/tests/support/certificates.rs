//! A CA for one test, and the certificates that it signs, in files.

use std::fs;
use std::path::{Path, PathBuf};

use pelton_nexus::{ClientTls, ServerTls};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use tempfile::TempDir;

/// Signs certificates, and knows where they lie.
pub(crate) struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        fs::write(folder.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { folder, issuer: Issuer::new(params, key) }
    }

    /// The CA's own certificate.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// A certificate for this machine, with a role.
    pub(crate) fn with_role(&self, role: &str) -> Pair {
        self.sign(role, &["localhost", "127.0.0.1"], &[&format!("spiffe://test/{role}/pelton/role/{role}")])
    }

    pub(crate) fn sign(&self, file: &str, names: &[&str], uris: &[&str]) -> Pair {
        self.write(file, params(names, uris))
    }

    pub(crate) fn sign_expired(&self, file: &str, names: &[&str]) -> Pair {
        let mut params = params(names, &[]);
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        self.write(file, params)
    }

    fn write(&self, file: &str, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |extension| self.folder.path().join(format!("{file}.{extension}"));
        let pair = Pair { certificate: path("crt"), key: path("key") };
        fs::write(&pair.certificate, certificate.pem()).unwrap();
        fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }

    pub(crate) fn server(&self, pair: &Pair) -> ServerTls {
        ServerTls::from_files(&pair.certificate, &pair.key, Some(&self.file())).unwrap()
    }

    pub(crate) fn client(&self, pair: Option<&Pair>) -> ClientTls {
        ClientTls::from_files(pair.map(Pair::paths), &self.file()).unwrap()
    }
}

impl Pair {
    pub(crate) fn paths(&self) -> (&Path, &Path) {
        (&self.certificate, &self.key)
    }

    /// Takes the place of another, as those do who renew certificates.
    pub(crate) fn replaces(&self, other: &Pair) {
        fs::rename(&self.key, &other.key).unwrap();
        fs::rename(&self.certificate, &other.certificate).unwrap();
    }
}

fn params(names: &[&str], uris: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "a test");
    for uri in uris {
        params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
    }
    params
}
