//! Who may sign: principals from the configuration, and the session credentials that instances get from IMDS.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::names::{AccessKeyId, InstanceId};
use super::random::Ids;

/// As real instance credentials: about six hours, renewed well before they end.
pub const SESSION_LIFE: Duration = Duration::from_secs(6 * 3600);
/// AWS makes new ones available at least five minutes before the old ones end; an hour spares the reader races.
pub const RENEW_BEFORE: Duration = Duration::from_secs(3600);
/// An ended session still answers ExpiredToken (rather than unknown) this long; then it is forgotten.
const REMEMBER_EXPIRED: Duration = Duration::from_secs(3600);

/// What an instance reads from `iam/security-credentials/<role>`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCredentials {
    pub access_key_id: AccessKeyId,
    pub secret_access_key: String,
    pub session_token: String,
    #[serde(with = "super::unix_time")]
    pub issued: OffsetDateTime,
    #[serde(with = "super::unix_time")]
    pub expires: OffsetDateTime,
}

impl fmt::Debug for SessionCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionCredentials({}, ..)", self.access_key_id)
    }
}

/// Someone who may call, and how their signature is checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Principal {
    pub secret_access_key: String,
    /// Must accompany each call if there is one.
    pub session_token: Option<String>,
    pub arn: String,
    pub user_id: String,
    pub expires: Option<OffsetDateTime>,
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Principal({}, ..)", self.arn)
    }
}

/// Every credential that is valid in this account, by key id.
#[derive(Debug, Clone, Default)]
pub struct Principals {
    known: BTreeMap<AccessKeyId, Principal>,
}

impl Principals {
    pub fn insert(&mut self, key: AccessKeyId, principal: Principal) {
        self.known.insert(key, principal);
    }

    pub fn get(&self, key: &AccessKeyId) -> Option<&Principal> {
        self.known.get(key)
    }

    /// New credentials of an instance role's session. As at AWS they stay valid until they expire, also when the instance
    /// is gone: what leaked is not undone by terminating the instance.
    pub fn issue(
        &mut self,
        ids: &mut Ids,
        role: &InstanceRole,
        instance: &InstanceId,
        now: OffsetDateTime,
    ) -> SessionCredentials {
        let credentials = SessionCredentials {
            access_key_id: ids.session_key_id(),
            secret_access_key: ids.secret(),
            session_token: ids.session_token(),
            issued: now,
            expires: now + SESSION_LIFE,
        };
        let principal = Principal {
            secret_access_key: credentials.secret_access_key.clone(),
            session_token: Some(credentials.session_token.clone()),
            arn: format!("arn:aws:sts::{}:assumed-role/{}/{instance}", role.account, role.name),
            user_id: format!("{}:{instance}", role.id),
            expires: Some(credentials.expires),
        };
        self.known.insert(credentials.access_key_id.clone(), principal);
        credentials
    }

    pub fn forget_expired(&mut self, now: OffsetDateTime) {
        self.known.retain(|_, principal| {
            principal.expires.is_none_or(|expires| expires + REMEMBER_EXPIRED > now)
        });
    }
}

/// The role in the instance profile of every simulated instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRole {
    pub account: String,
    pub name: String,
    /// `AROA…`
    pub id: String,
}
