//! Join tokens: single-use, expiring, stored as hashes. For places without AWS: where a data plane
//! is registered with an IAM role, they are refused.

use std::fmt;
use std::str::FromStr;

use outstation_protocol::ids::DataPlaneName;
use outstation_protocol::{AgentId, DataPlane, Digest};
use rand::RngCore as _;
use rusqlite::{Connection, params};
use subtle::ConstantTimeEq as _;

use super::admitted::Admitted;
use super::events::{append, of_agent};
use super::news::EventKind;
use super::{Store, StoreError, integer, read_data_plane, read_digest, read_id, unsigned};
use super::{agents, planes};

/// Somebody who makes tokens in a loop should notice; expired ones do not count.
pub const OPEN_TOKENS_MAX: usize = 1000;

const PREFIX: &str = "outstation-join";

/// What an agent needs to enroll: `outstation-join-<id>-<secret>`. Prints nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: TokenId,
    secret: [u8; 32],
}

/// Names a token without being able to use it: 16 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenId(String);

/// A token as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredToken {
    pub secret_hash: Digest,
    pub data_plane: DataPlane,
    pub expires_at_unix_secs: u64,
    /// Who used it, with which key.
    pub bound: Option<(Digest, AgentId)>,
}

/// Who asks, with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    pub secret_hash: Digest,
    pub data_plane: DataPlane,
    /// SHA-256 of the SubjectPublicKeyInfo of a request whose signature was checked.
    pub key: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenVerdict {
    /// A new agent; from now on the token is bound to its key.
    First,
    /// The same key again: the reply was lost, or the certificate expired in a long outage.
    /// Who holds that key gains nothing that it did not have.
    Again(AgentId),
    Refused(TokenRefusal),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    #[error(
        "data plane {name} is registered with an IAM role: its agents enroll with that, not with a join token"
    )]
    Registered { name: DataPlaneName },
    #[error("the join token is not one of this broker's")]
    Unknown,
    #[error("the join token is for data plane {token}, not for {asked}")]
    DataPlane { token: DataPlane, asked: DataPlane },
    #[error("agent {0}, which used the join token, was revoked")]
    Revoked(AgentId),
    #[error("the join token was used with another key")]
    Used,
    #[error("the join token expired {secs} s ago")]
    Expired { secs: u64 },
}

impl TokenRefusal {
    pub fn hint(&self) -> &'static str {
        match self {
            TokenRefusal::Registered { .. } => {
                "remove broker.join_token_file from the agent's configuration, and let it have its role"
            }
            TokenRefusal::Unknown => {
                "check that the whole token was copied, or make a new one at the broker"
            }
            TokenRefusal::DataPlane { .. } => {
                "correct account and region of the agent, or make a token for this data plane"
            }
            TokenRefusal::Revoked(_) => "a new agent needs a new token, and a new key",
            TokenRefusal::Used => {
                "a token serves one agent; make a new one, or restore the key that used this one"
            }
            TokenRefusal::Expired { .. } => "make a new token at the broker and use it sooner",
        }
    }
}

/// Decides on a token. The secret comes first: without it nothing is told about the token.
pub fn judge(token: Option<&StoredToken>, asking: &Asking, now_unix_secs: u64) -> TokenVerdict {
    let Some(token) = token else {
        return TokenVerdict::Refused(TokenRefusal::Unknown);
    };
    let same = token.secret_hash.as_bytes().ct_eq(asking.secret_hash.as_bytes());
    if !bool::from(same) {
        return TokenVerdict::Refused(TokenRefusal::Unknown);
    }
    if token.data_plane != asking.data_plane {
        return TokenVerdict::Refused(TokenRefusal::DataPlane {
            token: token.data_plane.clone(),
            asked: asking.data_plane.clone(),
        });
    }
    match &token.bound {
        Some((key, agent)) if *key == asking.key => TokenVerdict::Again(agent.clone()),
        Some(_) => TokenVerdict::Refused(TokenRefusal::Used),
        None if now_unix_secs >= token.expires_at_unix_secs => {
            let secs = now_unix_secs - token.expires_at_unix_secs;
            TokenVerdict::Refused(TokenRefusal::Expired { secs })
        }
        None => TokenVerdict::First,
    }
}

impl JoinToken {
    pub fn generate() -> JoinToken {
        let (mut id, mut secret) = ([0; 8], [0; 32]);
        rand::rng().fill_bytes(&mut id);
        rand::rng().fill_bytes(&mut secret);
        JoinToken { id: TokenId(hex::encode(id)), secret }
    }

    pub fn id(&self) -> &TokenId {
        &self.id
    }

    /// The whole token, to be shown once.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}-{}-{}", self.id, hex::encode(self.secret))
    }

    fn secret_hash(&self) -> Digest {
        Digest::of(&self.secret)
    }
}

impl FromStr for JoinToken {
    type Err = TokenRefusal;

    fn from_str(raw: &str) -> Result<JoinToken, TokenRefusal> {
        let parse = || {
            let rest = raw.trim().strip_prefix(PREFIX)?.strip_prefix('-')?;
            let (id, secret_hex) = rest.split_once('-')?;
            let mut secret = [0; 32];
            hex::decode_to_slice(secret_hex, &mut secret).ok()?;
            let shape = id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit());
            shape.then(|| JoinToken { id: TokenId(id.to_owned()), secret })
        };
        parse().ok_or(TokenRefusal::Unknown)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, ..)", self.id)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Store {
    /// Stores a token's hash. False: there are [`OPEN_TOKENS_MAX`] unused ones already.
    pub async fn add_token(
        &self,
        token: &JoinToken,
        data_plane: DataPlane,
        expires_at_unix_secs: u64,
        now_unix_secs: u64,
    ) -> Result<bool, StoreError> {
        let (id, secret_hash) = (token.id.clone(), token.secret_hash());
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute(
                "DELETE FROM join_tokens WHERE bound_key IS NULL AND expires_at <= ?1",
                [integer(now_unix_secs)],
            )?;
            let open: i64 = transaction.query_row(
                "SELECT COUNT(*) FROM join_tokens WHERE bound_key IS NULL",
                [],
                |row| row.get(0),
            )?;
            let room = usize::try_from(open).is_ok_and(|open| open < OPEN_TOKENS_MAX);
            if room {
                transaction.execute(
                    "INSERT INTO join_tokens
                         (id, secret_hash, account, region, created_at, expires_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        id.0,
                        secret_hash.as_bytes(),
                        data_plane.account.as_str(),
                        data_plane.region.as_str(),
                        integer(now_unix_secs),
                        integer(expires_at_unix_secs),
                    ],
                )?;
            }
            transaction.commit()?;
            Ok(room)
        })
        .await
    }

    /// Uses a token for the holder of `key`. `fresh` becomes the name of a new agent.
    pub async fn admit(
        &self,
        token: JoinToken,
        data_plane: DataPlane,
        key: Digest,
        fresh: AgentId,
        now_unix_secs: u64,
    ) -> Result<Result<Admitted, TokenRefusal>, StoreError> {
        let asking = Asking { secret_hash: token.secret_hash(), data_plane, key };
        self.run(move |connection| admit(connection, &token.id, asking, fresh, now_unix_secs)).await
    }
}

fn admit(
    connection: &mut Connection,
    id: &TokenId,
    asking: Asking,
    fresh: AgentId,
    now_unix_secs: u64,
) -> Result<Result<Admitted, TokenRefusal>, StoreError> {
    let transaction = connection.transaction()?;
    if let Some(found) = planes::of_data_plane(&transaction, &asking.data_plane)? {
        return Ok(Err(TokenRefusal::Registered { name: found.name }));
    }
    let token = stored(&transaction, id)?;
    let verdict = judge(token.as_ref(), &asking, now_unix_secs);
    let Asking { data_plane, key, .. } = asking;
    match verdict {
        TokenVerdict::Refused(refusal) => Ok(Err(refusal)),
        TokenVerdict::Again(agent) => {
            let known = agents::find(&transaction, &agent)?;
            if known.is_some_and(|known| known.revoked_at_unix_secs.is_some()) {
                return Ok(Err(TokenRefusal::Revoked(agent)));
            }
            let message = format!("again, with the same key and join token {id}");
            let event = of_agent(EventKind::AgentEnrolled, message);
            append(&transaction, &data_plane, None, Some(&agent), event, now_unix_secs)?;
            transaction.commit()?;
            Ok(Ok(Admitted::new(agent, data_plane, key)))
        }
        TokenVerdict::First => {
            transaction.execute(
                "INSERT INTO agents (id, account, region, enrolled_at, since)
                 VALUES (?1, ?2, ?3, ?4, ?4)",
                params![
                    fresh.as_str(),
                    data_plane.account.as_str(),
                    data_plane.region.as_str(),
                    integer(now_unix_secs),
                ],
            )?;
            transaction.execute(
                "UPDATE join_tokens SET bound_key = ?2, agent = ?3 WHERE id = ?1",
                params![id.0, key.as_bytes(), fresh.as_str()],
            )?;
            let event = of_agent(EventKind::AgentEnrolled, format!("with join token {id}"));
            append(&transaction, &data_plane, None, Some(&fresh), event, now_unix_secs)?;
            transaction.commit()?;
            Ok(Ok(Admitted::new(fresh, data_plane, key)))
        }
    }
}

fn stored(connection: &Connection, id: &TokenId) -> Result<Option<StoredToken>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT secret_hash, account, region, expires_at, bound_key, agent
         FROM join_tokens WHERE id = ?1",
    )?;
    let mut rows = statement.query([&id.0])?;
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    let bound = match (row.get::<_, Option<Vec<u8>>>(4)?, row.get::<_, Option<String>>(5)?) {
        (Some(key), Some(agent)) => {
            Some((read_digest(&key)?, read_id("an agent id", AgentId::try_from(agent))?))
        }
        (None, _) | (_, None) => None,
    };
    Ok(Some(StoredToken {
        secret_hash: read_digest(&row.get::<_, Vec<u8>>(0)?)?,
        data_plane: read_data_plane(row.get(1)?, row.get(2)?)?,
        expires_at_unix_secs: unsigned(row.get(3)?),
        bound,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agent_id, data_plane};

    #[test]
    fn a_token_serves_one_key() {
        let (ours, other) = (Digest::of(b"our key"), Digest::of(b"another key"));
        let fresh = StoredToken {
            secret_hash: Digest::of(b"secret"),
            data_plane: data_plane("123456789012"),
            expires_at_unix_secs: 1000,
            bound: None,
        };
        let bound = StoredToken { bound: Some((ours, agent_id("a-1"))), ..fresh.clone() };
        let asking = Asking {
            secret_hash: Digest::of(b"secret"),
            data_plane: data_plane("123456789012"),
            key: ours,
        };
        let guess = Asking { secret_hash: Digest::of(b"guess"), ..asking.clone() };
        let elsewhere = Asking { data_plane: data_plane("999999999999"), ..asking.clone() };
        let thief = Asking { key: other, ..asking.clone() };

        use TokenRefusal::{DataPlane, Expired, Unknown, Used};
        use TokenVerdict::{Again, First, Refused};
        let again = Again(agent_id("a-1"));
        let wrong_plane = Refused(DataPlane {
            token: data_plane("123456789012"),
            asked: data_plane("999999999999"),
        });
        #[rustfmt::skip]
        let cases = [
            ("good", Some(&fresh), &asking, 999, First),
            ("none such", None, &asking, 0, Refused(Unknown)),
            ("wrong secret", Some(&fresh), &guess, 0, Refused(Unknown)),
            ("wrong secret tells nothing of its use", Some(&bound), &guess, 0, Refused(Unknown)),
            ("other data plane", Some(&fresh), &elsewhere, 0, wrong_plane.clone()),
            ("other data plane, used", Some(&bound), &elsewhere, 0, wrong_plane),
            ("expired", Some(&fresh), &asking, 1000, Refused(Expired { secs: 0 })),
            ("long expired", Some(&fresh), &asking, 1060, Refused(Expired { secs: 60 })),
            ("same key again", Some(&bound), &asking, 500, again.clone()),
            ("same key again, after the expiry", Some(&bound), &asking, 5000, again),
            ("another key", Some(&bound), &thief, 500, Refused(Used)),
        ];
        for (case, token, asking, now, wanted) in cases {
            assert_eq!(judge(token, asking, now), wanted, "{case}");
        }
    }

    #[test]
    fn a_token_survives_its_text_and_prints_no_secret() {
        let token = JoinToken::generate();
        let text = token.reveal();
        assert_eq!(JoinToken::from_str(&format!(" {text}\n")), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&hex::encode(token.secret)));
        for bad in ["", "outstation-join", "outstation-join-12-34", &text[..text.len() - 1]] {
            assert_eq!(JoinToken::from_str(bad), Err(TokenRefusal::Unknown), "{bad:?}");
        }
    }
}
