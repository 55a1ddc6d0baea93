//! What secures a connection: TLS 1.3 with files that may change while the process runs.
//!
//! Nothing older than 1.3 is spoken, and no session is resumed: whoever connects shows its certificate anew, so one that
//! is no longer good ends with its connection.

mod files;
mod words;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use files::{Reloaded, TlsFiles};

pub use files::TlsFileError;
pub(crate) use words::explain;

/// What both sides agree on after the handshake. Lanes begin differently, but come by the same port.
const PROTOCOL: &[u8] = b"h2";

/// How a door secures what comes in.
#[derive(Clone, Debug)]
pub enum ServerSecurity {
    /// Not at all. Whoever reaches the port may do everything.
    Plain,
    /// By TLS.
    Tls(ServerTls),
}

/// How a dial secures what it opens.
#[derive(Clone, Debug)]
pub enum ClientSecurity {
    /// Not at all.
    Plain,
    /// By TLS.
    Tls(ClientTls),
}

/// TLS of a side that listens.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Reloaded<rustls::ServerConfig>,
}

/// TLS of a side that connects.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Reloaded<rustls::ClientConfig>,
}

impl ServerTls {
    /// Shows the certificate (PEM, the chain after it) whose key is in `key`. With the certificates in `ca`, whoever connects must
    /// show one that is signed by one of them, and has the role that it names; without, everybody may connect and nobody has a role.
    ///
    /// The files are looked at again when somebody connects, at most once a second. What is wrong then is logged, and what
    /// was read before goes on.
    ///
    /// # Errors
    /// [`TlsFileError`]: which file is not as it must be.
    pub fn from_files(certificate: &Path, key: &Path, ca: Option<&Path>) -> Result<ServerTls, TlsFileError> {
        let files = TlsFiles::new(Some((certificate, key)), ca);
        Ok(ServerTls { config: Reloaded::read(files, server_config)? })
    }

    /// Sets how often the files may be looked at.
    pub fn look_every(mut self, pause: Duration) -> ServerTls {
        self.config.look_every(pause);
        self
    }

    /// Whether whoever connects must show a certificate.
    pub fn asks_for_certificates(&self) -> bool {
        self.config.has_ca()
    }

    pub(crate) async fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.current().await)
    }
}

impl ClientTls {
    /// Trusts whoever shows a certificate that is for the name that was dialled and signed by one of those in `ca` (PEM). Shows
    /// the certificate and uses the key of `identity`, if there is one. Reads files again as [`ServerTls::from_files`] does.
    ///
    /// # Errors
    /// [`TlsFileError`]: which file is not as it must be.
    pub fn from_files(identity: Option<(&Path, &Path)>, ca: &Path) -> Result<ClientTls, TlsFileError> {
        let files = TlsFiles::new(identity, Some(ca));
        Ok(ClientTls { config: Reloaded::read(files, client_config)? })
    }

    /// Sets how often the files may be looked at.
    pub fn look_every(mut self, pause: Duration) -> ClientTls {
        self.config.look_every(pause);
        self
    }

    fn is_same(&self, other: &ClientTls) -> bool {
        self.config.is_same(&other.config)
    }

    pub(crate) async fn connector(&self) -> TlsConnector {
        TlsConnector::from(self.config.current().await)
    }
}

impl ClientSecurity {
    /// Whether both are made of the same.
    pub(crate) fn is_same(&self, other: &ClientSecurity) -> bool {
        match (self, other) {
            (ClientSecurity::Plain, ClientSecurity::Plain) => true,
            (ClientSecurity::Tls(one), ClientSecurity::Tls(other)) => one.is_same(other),
            _ => false,
        }
    }
}

impl ServerSecurity {
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, ServerSecurity::Tls(_))
    }
}

impl ClientSecurity {
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, ClientSecurity::Tls(_))
    }
}

impl From<ServerTls> for ServerSecurity {
    fn from(tls: ServerTls) -> ServerSecurity {
        ServerSecurity::Tls(tls)
    }
}

impl From<ClientTls> for ClientSecurity {
    fn from(tls: ClientTls) -> ClientSecurity {
        ClientSecurity::Tls(tls)
    }
}

fn server_config(
    identity: Option<CertifiedKey>,
    ca: Option<RootCertStore>,
) -> Result<rustls::ServerConfig, String> {
    let identity = identity.ok_or("a side that listens needs a certificate")?;
    let verifier = match ca {
        Some(ca) => WebPkiClientVerifier::builder_with_provider(Arc::new(ca), provider())
            .build()
            .map_err(|error| error.to_string())?,
        None => WebPkiClientVerifier::no_client_auth(),
    };
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(
    identity: Option<CertifiedKey>,
    ca: Option<RootCertStore>,
) -> Result<rustls::ClientConfig, String> {
    let ca = ca.ok_or("a side that connects needs a CA to trust")?;
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .with_root_certificates(ca);
    let mut config = match identity {
        Some(identity) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity))),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Given wherever one is needed: which provider a process has by default is for the process to say.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
