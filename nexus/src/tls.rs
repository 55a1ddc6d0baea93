//! What secures a connection.

use std::sync::Arc;

use tokio_rustls::{TlsAcceptor, TlsConnector};

/// How a door secures what comes in.
#[derive(Clone)]
pub enum ServerSecurity {
    /// Not at all. Whoever reaches the port may do everything.
    Plain,
    /// By TLS.
    Tls(TlsAcceptor),
}

/// How a dial secures what it opens.
#[derive(Clone)]
pub enum ClientSecurity {
    /// Not at all.
    Plain,
    /// By TLS, with whatever certificate the connector shows.
    Tls(TlsConnector),
}

impl ServerSecurity {
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, ServerSecurity::Tls(_))
    }
}

impl From<Arc<rustls::ServerConfig>> for ServerSecurity {
    fn from(config: Arc<rustls::ServerConfig>) -> ServerSecurity {
        ServerSecurity::Tls(TlsAcceptor::from(config))
    }
}

impl From<Arc<rustls::ClientConfig>> for ClientSecurity {
    fn from(config: Arc<rustls::ClientConfig>) -> ClientSecurity {
        ClientSecurity::Tls(TlsConnector::from(config))
    }
}
