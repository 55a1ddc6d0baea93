//! What went wrong in a handshake, in words that tell whose certificate is meant.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

/// Says what an error of a connection under TLS means to the side that has it.
pub(crate) fn explain(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match (tls, error.kind()) {
        (Some(tls), _) => explain_tls(tls),
        (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            "it closed the connection during the handshake; perhaps it does not speak TLS".to_owned()
        }
        (None, _) => error.to_string(),
    }
}

fn explain_tls(error: &Error) -> String {
    match error {
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => "what it says is not TLS; perhaps it speaks plain".to_owned(),
        Error::InvalidCertificate(problem) => format!("its certificate {}", explain_certificate(problem)),
        Error::NoCertificatesPresented => "it shows no certificate, and one is needed".to_owned(),
        Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
            "no kind of signature is known to both".to_owned()
        }
        Error::PeerIncompatible(_) => "it does not speak TLS 1.3".to_owned(),
        Error::NoApplicationProtocol => "it speaks no HTTP/2".to_owned(),
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => "it wants a certificate, and none was shown".to_owned(),
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                "it refuses the certificate from here: it is not from a CA that it trusts".to_owned()
            }
            AlertDescription::CertificateExpired => {
                "it refuses the certificate from here: it is expired or not valid yet".to_owned()
            }
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied => {
                format!("it refuses the certificate from here: {alert:?}")
            }
            AlertDescription::ProtocolVersion => "it does not speak TLS 1.3".to_owned(),
            AlertDescription::NoApplicationProtocol => "it speaks no HTTP/2".to_owned(),
            other => format!("it ended the handshake: {other:?}"),
        },
        other => other.to_string(),
    }
}

fn explain_certificate(problem: &CertificateError) -> String {
    match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet; do both clocks go right?".to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "is not from a CA that is trusted here".to_owned()
        }
        CertificateError::NotValidForName => "is for another name".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let presented = if presented.is_empty() { "no name".to_owned() } else { presented.join(", ") };
            format!("is for {presented}, not for {}", expected.to_str())
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "is not made for this end of a connection (its extended key usage)".to_owned()
        }
        other => format!("is refused: {other}"),
    }
}
