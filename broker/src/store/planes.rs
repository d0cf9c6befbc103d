//! Data planes that were registered beforehand: which account and region, and the IAM role by which
//! their agents are known. An agent whose proof STS has confirmed is admitted here.

use outstation_protocol::ids::{DataPlaneName, InstanceId, RoleId, RoleName};
use outstation_protocol::{AgentId, DataPlane, Digest};
use outstation_sts::Attested;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::admitted::Admitted;
use super::events::{append, of_agent};
use super::news::EventKind;
use super::{Changed, Store, StoreError, integer, read_data_plane, read_id, unsigned};
use crate::ca::Csr;

/// People type them in.
pub const DATA_PLANES_MAX: usize = 4096;
/// Two are usual. Each replaced host leaves one behind, until its certificate has expired.
pub const AGENTS_MAX: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    pub name: DataPlaneName,
    pub data_plane: DataPlane,
    pub role: RoleName,
    /// A role made again under the same name has another one.
    pub role_id: RoleId,
    pub added_at_unix_secs: u64,
}

impl Registration {
    fn is_same(&self, other: &Registration) -> bool {
        (&self.name, &self.data_plane, &self.role, &self.role_id)
            == (&other.name, &other.data_plane, &other.role, &other.role_id)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Taken {
    #[error("{0} is registered already, with another account, region or role")]
    Name(DataPlaneName),
    #[error("data plane {data_plane} is registered already, as {name}")]
    DataPlane { data_plane: DataPlane, name: DataPlaneName },
    #[error("{DATA_PLANES_MAX} data planes are registered already")]
    TooMany,
}

/// Why an agent gets no certificate although STS has spoken for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("data plane {0} is not registered any more, or with another role")]
    NotRegistered(DataPlane),
    #[error("the proof is for another certificate request")]
    OtherRequest,
    #[error("agent {0} was revoked")]
    Revoked(AgentId),
    #[error("instance {instance} is that of agent {agent}, which was revoked")]
    RevokedInstance { instance: String, agent: AgentId },
    #[error("data plane {0} has {AGENTS_MAX} agents whose certificates are still valid")]
    TooManyAgents(DataPlane),
}

impl Refusal {
    pub fn hint(&self) -> &'static str {
        match self {
            Refusal::NotRegistered(_) => {
                "register it at the broker with `outstation dataplane add`"
            }
            Refusal::Revoked(_) | Refusal::RevokedInstance { .. } => {
                "it was revoked at the broker; a new instance of the role enrolls as another agent"
            }
            Refusal::OtherRequest => "the agent tries again; if it goes on, compare both releases",
            Refusal::TooManyAgents(_) => "something enrolls in a loop: look at `outstation agents`",
        }
    }
}

const SELECT: &str = "SELECT name, account, region, role, role_id, added_at FROM data_planes";

impl Store {
    /// The same again is no error: a lost reply costs nothing.
    pub async fn register(
        &self,
        asked: Registration,
    ) -> Result<Result<Registration, Taken>, StoreError> {
        let data_plane = asked.data_plane.clone();
        let registered = self.run(move |connection| register(connection, asked)).await?;
        self.announce(data_plane, Changed::Access);
        Ok(registered)
    }

    pub async fn registrations(&self) -> Result<Vec<Registration>, StoreError> {
        self.run(|connection| {
            let mut statement = connection.prepare_cached(&format!("{SELECT} ORDER BY name"))?;
            let mut rows = statement.query([])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(read(row)?);
            }
            Ok(found)
        })
        .await
    }

    pub async fn registration(
        &self,
        data_plane: DataPlane,
    ) -> Result<Option<Registration>, StoreError> {
        self.run(move |connection| of_data_plane(connection, &data_plane)).await
    }

    /// What it was; `None` if there was no such name.
    pub async fn unregister(
        &self,
        name: DataPlaneName,
    ) -> Result<Option<Registration>, StoreError> {
        let removed = self
            .run(move |connection| {
                let transaction = connection.transaction()?;
                let found = of_name(&transaction, &name)?;
                transaction.execute("DELETE FROM data_planes WHERE name = ?1", [name.as_str()])?;
                transaction.commit()?;
                Ok(found)
            })
            .await?;
        if let Some(registration) = &removed {
            self.announce(registration.data_plane.clone(), Changed::Access);
        }
        Ok(removed)
    }

    /// Admits whom STS has named. The same key is the same agent, whatever happened to the last
    /// reply; `fresh` becomes the name of a new one.
    pub async fn admit_attested(
        &self,
        attested: Attested,
        csr: &Csr,
        fresh: AgentId,
        now_unix_secs: u64,
    ) -> Result<Result<Admitted, Refusal>, StoreError> {
        if attested.csr() != csr.digest() {
            return Ok(Err(Refusal::OtherRequest));
        }
        let key = *csr.key();
        self.run(move |connection| admit(connection, &attested, key, fresh, now_unix_secs)).await
    }
}

fn register(
    connection: &mut Connection,
    asked: Registration,
) -> Result<Result<Registration, Taken>, StoreError> {
    let transaction = connection.transaction()?;
    if let Some(found) = of_name(&transaction, &asked.name)? {
        return Ok(if found.is_same(&asked) { Ok(found) } else { Err(Taken::Name(asked.name)) });
    }
    if let Some(Registration { name, data_plane, .. }) =
        of_data_plane(&transaction, &asked.data_plane)?
    {
        return Ok(Err(Taken::DataPlane { data_plane, name }));
    }
    let count: i64 =
        transaction.query_row("SELECT COUNT(*) FROM data_planes", [], |row| row.get(0))?;
    if usize::try_from(count).is_ok_and(|count| count >= DATA_PLANES_MAX) {
        return Ok(Err(Taken::TooMany));
    }
    transaction.execute(
        "INSERT INTO data_planes (name, account, region, role, role_id, added_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            asked.name.as_str(),
            asked.data_plane.account.as_str(),
            asked.data_plane.region.as_str(),
            asked.role.as_str(),
            asked.role_id.as_str(),
            integer(asked.added_at_unix_secs),
        ],
    )?;
    transaction.commit()?;
    Ok(Ok(asked))
}

fn admit(
    connection: &mut Connection,
    attested: &Attested,
    key: Digest,
    fresh: AgentId,
    now_unix_secs: u64,
) -> Result<Result<Admitted, Refusal>, StoreError> {
    let (audience, caller) = (attested.audience(), attested.caller());
    let data_plane =
        DataPlane { account: audience.account.clone(), region: audience.region.clone() };
    let transaction = connection.transaction()?;
    // Asked before STS was, too: a removal in between counts.
    let registered = of_data_plane(&transaction, &data_plane)?.is_some_and(|found| {
        found.role.as_str() == caller.role && found.role_id.as_str() == caller.role_id
    });
    if !registered {
        return Ok(Err(Refusal::NotRegistered(data_plane)));
    }
    let (account, region) = (data_plane.account.as_str(), data_plane.region.as_str());
    let known: Option<String> = transaction
        .query_row(
            "SELECT id FROM agents WHERE account = ?1 AND region = ?2 AND key = ?3",
            params![account, region, key.as_bytes()],
            |row| row.get(0),
        )
        .optional()?;
    let (role, session) = (&caller.role, &caller.session);
    if let Some(agent) = revoked(&transaction, &data_plane, &key, session)? {
        let instance = session.clone();
        return Ok(Err(match &known {
            Some(_) => Refusal::Revoked(agent),
            None => Refusal::RevokedInstance { instance, agent },
        }));
    }
    let (agent, message) = match known {
        Some(id) => {
            let message = format!("again, with the same key, as {role}/{session}");
            (read_id("an agent id", AgentId::try_from(id))?, message)
        }
        None => {
            if !has_room(&transaction, &data_plane, now_unix_secs)? {
                return Ok(Err(Refusal::TooManyAgents(data_plane)));
            }
            transaction.execute(
                "INSERT INTO agents (id, account, region, enrolled_at, since, key, session)
                 VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6)",
                params![
                    fresh.as_str(),
                    account,
                    region,
                    integer(now_unix_secs),
                    key.as_bytes(),
                    session,
                ],
            )?;
            (fresh, format!("as {role}/{session}"))
        }
    };
    let event = of_agent(EventKind::AgentEnrolled, message);
    append(&transaction, &data_plane, None, Some(&agent), event, now_unix_secs)?;
    transaction.commit()?;
    Ok(Ok(Admitted::new(agent, data_plane, key)))
}

/// The revoked agent that this is: by its key, or as the same instance with another key. An instance
/// cannot choose the name of its role's session, and its id is never given again; every other session
/// is named as its caller likes.
fn revoked(
    connection: &Connection,
    data_plane: &DataPlane,
    key: &Digest,
    session: &str,
) -> Result<Option<AgentId>, StoreError> {
    let instance = InstanceId::try_from(session).is_ok().then_some(session);
    let found: Option<String> = connection
        .query_row(
            "SELECT id FROM agents
             WHERE account = ?1 AND region = ?2 AND revoked_at IS NOT NULL
                 AND (key = ?3 OR session = ?4)
             ORDER BY key = ?3 DESC LIMIT 1",
            params![
                data_plane.account.as_str(),
                data_plane.region.as_str(),
                key.as_bytes(),
                instance
            ],
            |row| row.get(0),
        )
        .optional()?;
    found.map(|id| read_id("an agent id", AgentId::try_from(id))).transpose()
}

/// Forgets the agent that has been away longest, if its certificate has expired, to make room.
fn has_room(
    connection: &Connection,
    data_plane: &DataPlane,
    now_unix_secs: u64,
) -> Result<bool, StoreError> {
    let (account, region) = (data_plane.account.as_str(), data_plane.region.as_str());
    let count: i64 = connection.query_row(
        "SELECT COUNT(*) FROM agents WHERE account = ?1 AND region = ?2 AND key IS NOT NULL",
        [account, region],
        |row| row.get(0),
    )?;
    if usize::try_from(count).is_ok_and(|count| count < AGENTS_MAX) {
        return Ok(true);
    }
    let forgotten = connection.execute(
        "DELETE FROM agents WHERE id = (
             SELECT id FROM agents
             WHERE account = ?1 AND region = ?2 AND key IS NOT NULL AND connected = 0
                 AND revoked_at IS NULL
                 AND COALESCE(certificate_expires_at, 0) <= ?3
             ORDER BY since LIMIT 1)",
        params![account, region, integer(now_unix_secs)],
    )?;
    Ok(forgotten > 0)
}

pub(super) fn of_data_plane(
    connection: &Connection,
    data_plane: &DataPlane,
) -> Result<Option<Registration>, StoreError> {
    let (account, region) = (data_plane.account.as_str(), data_plane.region.as_str());
    connection
        .prepare_cached(&format!("{SELECT} WHERE account = ?1 AND region = ?2"))?
        .query_row([account, region], |row| Ok(read(row)))
        .optional()?
        .transpose()
}

fn of_name(
    connection: &Connection,
    name: &DataPlaneName,
) -> Result<Option<Registration>, StoreError> {
    connection
        .prepare_cached(&format!("{SELECT} WHERE name = ?1"))?
        .query_row([name.as_str()], |row| Ok(read(row)))
        .optional()?
        .transpose()
}

fn read(row: &Row<'_>) -> Result<Registration, StoreError> {
    let text = |column| row.get::<_, String>(column);
    Ok(Registration {
        name: read_id("a data plane's name", DataPlaneName::try_from(text(0)?))?,
        data_plane: read_data_plane(text(1)?, text(2)?)?,
        role: read_id("a role's name", RoleName::try_from(text(3)?))?,
        role_id: read_id("a role's id", RoleId::try_from(text(4)?))?,
        added_at_unix_secs: unsigned(row.get(5)?),
    })
}
