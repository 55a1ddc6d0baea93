//! The options that secure a connection, for both ends of it.

use std::path::PathBuf;

use clap::Args;
use pelton::nexus::{ClientSecurity, ClientTls, ServerSecurity, ServerTls, TlsFileError};

use crate::failure::Failure;
use crate::usage::usage;

/// Certificates, or none on request.
#[derive(Args)]
pub(crate) struct TlsOptions {
    /// The certificate to show, in PEM, with the chain after it
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The certificates of those whose signatures are trusted, in PEM
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Without TLS: whoever reaches the port may do everything, and whoever is on the way can read it
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key", "tls_ca"])]
    insecure: bool,
}

impl TlsOptions {
    /// Whether any of them was given.
    pub(crate) fn is_given(&self) -> bool {
        self.insecure || self.tls_cert.is_some() || self.tls_key.is_some() || self.tls_ca.is_some()
    }

    /// For a command that listens. `command` leads to it, for what makes no sense.
    pub(crate) fn server(&self, command: &[&str]) -> Result<ServerSecurity, Failure> {
        if self.insecure {
            return Ok(ServerSecurity::Plain);
        }
        match (&self.tls_cert, &self.tls_key, &self.tls_ca) {
            (Some(certificate), Some(key), Some(ca)) => {
                let tls = ServerTls::from_files(certificate, key, Some(ca)).map_err(failure)?;
                Ok(tls.into())
            }
            _ => {
                let message = "give --tls-cert, --tls-key and --tls-ca, or say --insecure";
                Err(usage(command, message.to_owned()))
            }
        }
    }

    /// For a command that connects.
    pub(crate) fn client(&self, command: &[&str]) -> Result<ClientSecurity, Failure> {
        if self.insecure {
            return Ok(ClientSecurity::Plain);
        }
        let Some(ca) = &self.tls_ca else {
            let message =
                "give --tls-ca, and --tls-cert and --tls-key to show who you are; or say --insecure";
            return Err(usage(command, message.to_owned()));
        };
        let identity = self.tls_cert.as_deref().zip(self.tls_key.as_deref());
        Ok(ClientTls::from_files(identity, ca).map_err(failure)?.into())
    }
}

fn failure(error: TlsFileError) -> Failure {
    Failure::cache(&error)
}
