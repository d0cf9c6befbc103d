//! Who is at the other end of a control session: the SPIFFE URI in its certificate.

use std::fmt;

use outstation_protocol::ids::IdError;
use outstation_protocol::{AccountId, AgentId, TenantId};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

/// `spiffe://<tenant>.outstation/account/<account>/agent/<agent id>`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentIdentity {
    pub tenant: TenantId,
    pub account: AccountId,
    pub agent: AgentId,
}

/// A certificate that an agent has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub identity: AgentIdentity,
    /// In hexadecimal digits, as the CA names it.
    pub serial: String,
    pub expires_at_unix_secs: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate cannot be read")]
    Certificate,
    #[error("the certificate has {count} URI names instead of one")]
    Uris { count: usize },
    #[error("{uri:?} is not the identity of an account agent")]
    Shape { uri: String },
    #[error("{uri:?} is not the identity of an account agent")]
    Id { uri: String, source: IdError },
}

impl fmt::Display for AgentIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AgentIdentity { tenant, account, agent } = self;
        write!(f, "spiffe://{tenant}.outstation/account/{account}/agent/{agent}")
    }
}

impl AgentIdentity {
    pub fn parse(uri: &str) -> Result<AgentIdentity, IdentityError> {
        let shape = || IdentityError::Shape { uri: uri.to_owned() };
        let id = |source| IdentityError::Id { uri: uri.to_owned(), source };
        let path = uri.strip_prefix("spiffe://").ok_or_else(shape)?;
        let parts: Vec<&str> = path.split('/').collect();
        let [domain, "account", account, "agent", agent] = parts[..] else {
            return Err(shape());
        };
        let tenant = domain.strip_suffix(".outstation").ok_or_else(shape)?;
        Ok(AgentIdentity {
            tenant: TenantId::try_from(tenant).map_err(id)?,
            account: AccountId::try_from(account).map_err(id)?,
            agent: AgentId::try_from(agent).map_err(id)?,
        })
    }

    /// What a certificate says whose chain TLS has verified.
    pub fn of_certificate(der: &[u8]) -> Result<Shown, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| IdentityError::Certificate)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| IdentityError::Certificate)?
            .map_or(&[][..], |names| &names.value.general_names);
        let uris: Vec<&str> = names
            .iter()
            .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
            .collect();
        let [uri] = uris[..] else {
            return Err(IdentityError::Uris { count: uris.len() });
        };
        let expires_at = certificate.validity().not_after.timestamp();
        Ok(Shown {
            identity: AgentIdentity::parse(uri)?,
            serial: certificate.raw_serial_as_string(),
            expires_at_unix_secs: u64::try_from(expires_at).unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_shape_is_an_identity() {
        let good = "spiffe://dev.outstation/account/123456789012/agent/a-1";
        let identity = AgentIdentity::parse(good).expect("a good identity");
        assert_eq!(identity.to_string(), good);
        for bad in [
            "",
            "https://dev.outstation/account/123456789012/agent/a-1",
            "spiffe://dev/account/123456789012/agent/a-1",
            "spiffe://dev.outstation/account/1234/agent/a-1",
            "spiffe://dev.outstation/account/123456789012/agent/A",
            "spiffe://dev.outstation/account/123456789012/agent/a-1/x",
            "spiffe://dev.outstation/account/123456789012/agent/a-1?x",
            "spiffe://Dev.outstation/account/123456789012/agent/a-1",
            "spiffe://dev.outstation/account/123456789012/node/a-1",
        ] {
            assert!(AgentIdentity::parse(bad).is_err(), "{bad:?}");
        }
    }
}
