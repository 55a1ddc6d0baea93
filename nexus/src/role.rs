//! Who is at the other end, and what it may do.

use std::fmt;

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::door::Caller;

/// What a certificate allows. Each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads slices: Peer, Feed to pull, search, who holds leases.
    Reader,
    /// Brings slices in: Feed to push, pin, unpin, warm.
    Loader,
    /// Takes slices away, and stops the node.
    Admin,
}

/// Whom a certificate names. It was checked before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    name: String,
    role: Option<Role>,
}

/// What comes before a role in the URI that names it.
const ROLE_PATH: &str = "/pelton/role/";
const SCHEME: &str = "spiffe://";

impl Role {
    /// All there are, the least first.
    pub const ALL: [Role; 3] = [Role::Reader, Role::Loader, Role::Admin];

    /// As a URI has it.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Reader => "reader",
            Role::Loader => "loader",
            Role::Admin => "admin",
        }
    }

    /// The role that a URI names: `spiffe://TRUST-DOMAIN[/ANY/PATH]/pelton/role/NAME`, exactly.
    pub fn of_uri(uri: &str) -> Option<Role> {
        let rest = uri.strip_prefix(SCHEME)?;
        let (before, name) = rest.rsplit_once(ROLE_PATH)?;
        let domain = before.split('/').next()?;
        if domain.is_empty() {
            return None;
        }
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Identity {
    /// Whom a certificate names: by the URI of its highest role, else by its first URI, else by its first DNS name. One
    /// without a name is told from others by its number.
    pub fn of(certificate: &CertificateDer<'_>) -> Identity {
        let Ok(certificate) = EndEntityCert::try_from(certificate) else {
            return Identity { name: "a certificate that can't be read".to_owned(), role: None };
        };
        let uris = || certificate.valid_uri_names();
        let best = uris().filter_map(|uri| Some((Role::of_uri(uri)?, uri))).max_by_key(|(role, _)| *role);
        let name = best.map(|(_, uri)| uri);
        let name = name.or_else(|| uris().next()).or_else(|| certificate.valid_dns_names().next());
        // What stands in a certificate goes to logs: no line ends there.
        let name = match name {
            Some(name) => name.chars().flat_map(char::escape_debug).collect(),
            None => {
                let digits: String = certificate.serial().iter().map(|byte| format!("{byte:02x}")).collect();
                format!("a certificate without a name, serial number {digits}")
            }
        };
        Identity { name, role: best.map(|(role, _)| role) }
    }

    /// For logs and limits.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Nothing if the certificate names none.
    pub fn role(&self) -> Option<Role> {
        self.role
    }
}

/// Refuses whoever has not the role that `what` needs, with who it is and what it has. Nobody is known to have no role.
pub(crate) fn permit(caller: Option<&Caller>, needed: Role, what: &str) -> Result<(), String> {
    let role = caller.and_then(Caller::role);
    if role >= Some(needed) {
        return Ok(());
    }
    let who = caller.map_or_else(|| "nobody".to_owned(), Caller::name);
    let has = role.map_or_else(|| "none".to_owned(), |role| format!("the role {role}"));
    tracing::warn!(%who, %needed, what, "a call was refused");
    Err(format!("{what} needs the role {needed}, and {who} has {has}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn identity(uris: &[&str], names: &[&str]) -> Identity {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
        }
        let key = KeyPair::generate().unwrap();
        Identity::of(params.self_signed(&key).unwrap().der())
    }

    #[test]
    fn a_role_is_named_by_the_end_of_a_spiffe_uri() {
        for role in Role::ALL {
            for before in ["example.org", "example.org/node/7", "d/pelton/role/x"] {
                assert_eq!(Role::of_uri(&format!("spiffe://{before}/pelton/role/{role}")), Some(role));
            }
        }
        for uri in [
            "spiffe://example.org/pelton/role/owner",
            "spiffe://example.org/pelton/role/",
            "spiffe://example.org/pelton/role/admin/",
            "spiffe://example.org/pelton/role/admin?x",
            "spiffe://example.org/pelton/role/Admin",
            "spiffe:///pelton/role/admin",
            "spiffe:///x/pelton/role/admin",
            "spiffe://pelton/role/admin",
            "https://example.org/pelton/role/admin",
            "example.org/pelton/role/admin",
            "",
        ] {
            assert_eq!(Role::of_uri(uri), None, "{uri}");
        }
    }

    #[test]
    fn a_certificate_is_called_by_its_role_or_else_by_what_name_it_has() {
        let reader = "spiffe://d/pelton/role/reader";
        let admin = "spiffe://d/pelton/role/admin";
        let both = identity(&["https://d/", reader, admin], &["node.example.org"]);
        assert_eq!((both.name(), both.role()), (admin, Some(Role::Admin)));
        let other = identity(&["https://d/"], &["node.example.org"]);
        assert_eq!((other.name(), other.role()), ("https://d/", None));
        let named = identity(&[], &["node.example.org"]);
        assert_eq!((named.name(), named.role()), ("node.example.org", None));
        let (one, other) = (identity(&[], &[]), identity(&[], &[]));
        assert_eq!(one.role(), None);
        assert!(one.name().starts_with("a certificate without a name, serial number "), "{}", one.name());
        assert_ne!(one.name(), other.name(), "what each may have is counted apart");
        assert_eq!(Identity::of(&CertificateDer::from(&b"no certificate"[..])).role(), None);
    }

    #[test]
    fn a_name_is_one_line() {
        let odd = identity(&["spiffe://d/a\nb/pelton/role/reader"], &[]);
        assert_eq!((odd.name(), odd.role()), ("spiffe://d/a\\nb/pelton/role/reader", Some(Role::Reader)));
    }
}
