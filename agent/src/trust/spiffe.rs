//! Who a node is: `spiffe://<tenant>.outstation/account/<id>/group/<name>/node/<instance>`.

use std::fmt;

use outstation_protocol::ids::{AccountId, GroupName, InstanceId, TenantId};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeId {
    pub tenant: TenantId,
    pub account: AccountId,
    pub group: GroupName,
    pub instance: InstanceId,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}.outstation/account/{}/group/{}/node/{}",
            self.tenant, self.account, self.group, self.instance
        )
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    #[error("{0:?} is not the SPIFFE id of a node")]
    NotANode(String),
    #[error("the certificate cannot be read")]
    Certificate,
    #[error("the certificate has {count} names; a node's has one, its SPIFFE id")]
    Names { count: usize },
}

impl TryFrom<&str> for NodeId {
    type Error = SpiffeError;
    fn try_from(raw: &str) -> Result<NodeId, SpiffeError> {
        parse(raw).ok_or_else(|| SpiffeError::NotANode(raw.chars().take(200).collect()))
    }
}

fn parse(raw: &str) -> Option<NodeId> {
    let (domain, path) = raw.strip_prefix("spiffe://")?.split_once('/')?;
    let segments: Vec<&str> = path.split('/').collect();
    let &["account", account, "group", group, "node", instance] = segments.as_slice() else {
        return None;
    };
    Some(NodeId {
        tenant: domain.strip_suffix(".outstation")?.try_into().ok()?,
        account: account.try_into().ok()?,
        group: group.try_into().ok()?,
        instance: instance.try_into().ok()?,
    })
}

/// What a node's certificate says, its chain being verified elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCertificate {
    pub id: NodeId,
    pub not_after_unix_secs: u64,
}

impl NodeCertificate {
    pub fn from_der(der: &[u8]) -> Result<NodeCertificate, SpiffeError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| SpiffeError::Certificate)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| SpiffeError::Certificate)?
            .map_or(&[][..], |names| &names.value.general_names);
        let [GeneralName::URI(uri)] = names else {
            return Err(SpiffeError::Names { count: names.len() });
        };
        let not_after = certificate.validity().not_after.timestamp();
        let not_after_unix_secs = u64::try_from(not_after).map_err(|_| SpiffeError::Certificate)?;
        Ok(NodeCertificate { id: NodeId::try_from(*uri)?, not_after_unix_secs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_nodes_id_is_one() {
        let honest = "spiffe://dev.outstation/account/123456789012/group/delay/node/i-0123abcd";
        assert_eq!(NodeId::try_from(honest).expect("a node's").to_string(), honest);
        for raw in [
            "",
            "https://dev.outstation/account/123456789012/group/delay/node/i-0123abcd",
            "spiffe://dev/account/123456789012/group/delay/node/i-0123abcd",
            "spiffe://dev.outstation/account/12345678901/group/delay/node/i-0123abcd",
            "spiffe://dev.outstation/account/123456789012/group/delay/node/i-0123abcd/",
            "spiffe://dev.outstation/account/123456789012/group/delay/node/x",
            "spiffe://dev.outstation/account/123456789012/group/a/b/node/i-0123abcd",
            "spiffe://dev.outstation/account/123456789012/agent/a1",
            "spiffe://dev.outstation/account/123456789012/group/delay/node/i-0123abcd?x",
        ] {
            assert!(NodeId::try_from(raw).is_err(), "{raw}");
        }
    }
}
