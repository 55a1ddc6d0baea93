//! A CA, and a certificate of this machine that it has signed, in files that both processes read. Both show it: who pulls has to be a
//! reader.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pelton::nexus::{ClientTls, ServerTls};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::frame::Failure;

/// Where they lie.
pub(super) struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Those that are in a folder.
    pub(super) fn of(folder: &Path) -> Certificates {
        Certificates { folder: folder.to_owned() }
    }

    /// Makes them. The folder is new.
    pub(super) fn make(folder: &Path) -> Result<Certificates, Failure> {
        fs::create_dir_all(folder)?;
        let made = Certificates::of(folder);
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().map_err(other)?;
        fs::write(made.ca(), params.self_signed(&ca_key).map_err(other)?.pem())?;
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().map_err(other)?;
        let mut own = CertificateParams::new(["127.0.0.1".to_owned()]).map_err(other)?;
        let role = "spiffe://bench/pelton/role/reader".try_into().map_err(other)?;
        own.subject_alt_names.push(SanType::URI(role));
        fs::write(made.certificate(), own.signed_by(&key, &issuer).map_err(other)?.pem())?;
        fs::write(made.key(), key.serialize_pem())?;
        Ok(made)
    }

    pub(super) fn server(&self) -> Result<ServerTls, Failure> {
        ServerTls::from_files(&self.certificate(), &self.key(), Some(&self.ca())).map_err(other)
    }

    pub(super) fn client(&self) -> Result<ClientTls, Failure> {
        ClientTls::from_files(Some((&self.certificate(), &self.key())), &self.ca()).map_err(other)
    }

    /// For rustls alone, which asks for no certificate of the client: its handshake is not what is measured.
    pub(super) fn bare_server(&self) -> Result<Arc<ServerConfig>, Failure> {
        let certificate = CertificateDer::from_pem_file(self.certificate()).map_err(other)?;
        let key = PrivateKeyDer::from_pem_file(self.key()).map_err(other)?;
        let config = ServerConfig::builder().with_no_client_auth();
        Ok(Arc::new(config.with_single_cert(vec![certificate], key).map_err(other)?))
    }

    /// The same for rustls alone.
    pub(super) fn bare_client(&self) -> Result<Arc<ClientConfig>, Failure> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.ca()).map_err(other)?).map_err(other)?;
        Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
    }

    fn ca(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    fn certificate(&self) -> PathBuf {
        self.folder.join("own.crt")
    }

    fn key(&self) -> PathBuf {
        self.folder.join("own.key")
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::Run(Box::new(error))
}
