//! What a slice request must be like, on both ends.

use pelton_region_format::Key;
use prost::Message;

use super::{StreamError, Totals};
use crate::limits::{Limit, Limits};
use crate::messages::{Resume, SliceRequest};

/// Whether a request is well formed and within its limits.
pub(super) fn check_request(request: &SliceRequest, limits: &Limits) -> Result<(), StreamError> {
    limits.check(Limit::RequestBytes, request.encoded_len() as u64)?;
    limits.check(Limit::Loci, request.loci.len() as u64)?;
    check_slice(&request.key, &request.fingerprint)?;
    if let Some(resume) = &request.resume {
        check_token(&resume.token, limits)?;
    }
    Ok(())
}

pub(super) fn check_slice(key: &str, fingerprint: &[u8]) -> Result<(), StreamError> {
    key.parse::<Key>()?;
    if fingerprint.len() != 32 {
        let text = format!("it has {} bytes, not 32", fingerprint.len());
        return Err(StreamError::Invalid { field: "fingerprint", text });
    }
    Ok(())
}

/// Whether the peer speaks of the slice that was asked for.
pub(super) fn check_same_slice(expected: (&str, &[u8]), found: (&str, &[u8])) -> Result<(), StreamError> {
    if expected == found {
        return Ok(());
    }
    let name = |(key, fingerprint): (&str, &[u8])| {
        // Of a foreign text no more than a key can have.
        let key: String = key.chars().take(300).collect();
        let digits: String = fingerprint.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("{key:?} with fingerprint {digits}..")
    };
    Err(StreamError::OtherSlice { expected: name(expected), found: name(found) })
}

pub(super) fn check_token(token: &[u8], limits: &Limits) -> Result<(), StreamError> {
    Ok(limits.check(Limit::ResumeTokenBytes, token.len() as u64)?)
}

/// Where counting starts.
pub(super) fn start_of(request: &SliceRequest) -> Totals {
    let resumed =
        |resume: &Resume| Totals { parcels: resume.parcels, items: resume.items, bytes: resume.bytes };
    request.resume.as_ref().map(resumed).unwrap_or_default()
}
