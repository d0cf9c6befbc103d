//! The account agents that ever enrolled, and whether they are connected.

use outstation_protocol::{AgentId, DataPlane};
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::events::{append, of_agent};
use super::news::{EventKind, News};
use super::revoked::retire;
use super::{Changed, Store, StoreError, integer, read_data_plane, read_id, unsigned};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRecord {
    pub id: AgentId,
    pub data_plane: DataPlane,
    pub enrolled_at_unix_secs: u64,
    /// Of the newest certificate, in hexadecimal digits; none if issuing it failed.
    pub certificate_serial: Option<String>,
    pub certificate_expires_at_unix_secs: Option<u64>,
    pub release: String,
    pub connected: bool,
    /// Since when it is connected, or since when it is not.
    pub since_unix_secs: u64,
    pub revoked_at_unix_secs: Option<u64>,
}

const SELECT: &str = "SELECT id, account, region, enrolled_at, certificate_serial,
                             certificate_expires_at, release, connected, since, revoked_at FROM agents";

impl Store {
    pub async fn agents(&self) -> Result<Vec<AgentRecord>, StoreError> {
        self.run(|connection| {
            let mut statement = connection.prepare_cached(&format!("{SELECT} ORDER BY id"))?;
            let mut rows = statement.query([])?;
            let mut agents = Vec::new();
            while let Some(row) = rows.next()? {
                agents.push(read_agent(row)?);
            }
            Ok(agents)
        })
        .await
    }

    pub async fn agent(&self, id: AgentId) -> Result<Option<AgentRecord>, StoreError> {
        self.run(move |connection| find(connection, &id)).await
    }

    /// Writes that this broker runs, and so hears its agents.
    pub async fn alive(&self, now_unix_secs: u64) -> Result<(), StoreError> {
        self.run(move |connection| {
            connection.execute("UPDATE event_log SET alive_at = ?1", [integer(now_unix_secs)])?;
            Ok(())
        })
        .await
    }

    pub async fn certified(
        &self,
        id: AgentId,
        serial: String,
        expires_at_unix_secs: u64,
        now_unix_secs: u64,
    ) -> Result<(), StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            // One that was issued and never shown: its reply was lost, or somebody kept it.
            let unused: Option<String> = transaction
                .query_row(
                    "SELECT certificate_serial FROM agents
                     WHERE id = ?1 AND certificate_serial IS NOT shown_serial",
                    [id.as_str()],
                    |row| row.get(0),
                )
                .optional()?
                .flatten();
            if let Some(unused) = unused {
                retire(&transaction, &id, &unused, now_unix_secs)?;
            }
            transaction.execute(
                "UPDATE agents SET certificate_serial = ?2, certificate_expires_at = ?3
                 WHERE id = ?1",
                params![id.as_str(), serial, integer(expires_at_unix_secs)],
            )?;
            Ok(transaction.commit()?)
        })
        .await
    }

    pub async fn connected(
        &self,
        id: AgentId,
        release: String,
        now_unix_secs: u64,
    ) -> Result<(), StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute(
                "UPDATE agents SET connected = 1, release = ?2, since = ?3 WHERE id = ?1",
                params![id.as_str(), release, integer(now_unix_secs)],
            )?;
            let event = of_agent(EventKind::AgentConnected, format!("release {release}"));
            log(&transaction, &id, event, now_unix_secs)?;
            Ok(transaction.commit()?)
        })
        .await
    }

    pub async fn disconnected(
        &self,
        data_plane: DataPlane,
        id: AgentId,
        reason: String,
        now_unix_secs: u64,
    ) -> Result<(), StoreError> {
        let ended = self.run(move |connection| {
            let transaction = connection.transaction()?;
            let changed = transaction.execute(
                "UPDATE agents SET connected = 0, since = ?2 WHERE id = ?1 AND connected = 1",
                params![id.as_str(), integer(now_unix_secs)],
            )?;
            if changed > 0 {
                let event = of_agent(EventKind::AgentDisconnected, reason);
                log(&transaction, &id, event, now_unix_secs)?;
            }
            Ok(transaction.commit()?)
        });
        ended.await?;
        self.announce(data_plane, Changed::AgentLeft);
        Ok(())
    }
}

/// A broker that was killed could not say goodbye. It heard its agents until it last wrote that it
/// runs: to take the start of the next one instead would make old statuses look fresh.
pub(super) fn disconnect_all(
    connection: &Connection,
    now_unix_secs: u64,
) -> Result<(), StoreError> {
    let transaction = connection.unchecked_transaction()?;
    let alive_at = alive_at(&transaction, now_unix_secs)?;
    let connected: Vec<String> = transaction
        .prepare("SELECT id FROM agents WHERE connected = 1 ORDER BY id")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for id in connected {
        let id = read_id("an agent id", AgentId::try_from(id))?;
        let ago = now_unix_secs.saturating_sub(alive_at);
        let message = format!("the broker was killed, {ago} s or less before this start");
        let event = of_agent(EventKind::AgentDisconnected, message);
        log(&transaction, &id, event, now_unix_secs)?;
    }
    transaction.execute(
        "UPDATE agents SET connected = 0, since = MAX(since, ?1) WHERE connected = 1",
        [integer(alive_at)],
    )?;
    Ok(transaction.commit()?)
}

/// When a broker last wrote that it runs; for a database that never heard of it, now.
fn alive_at(connection: &Connection, now_unix_secs: u64) -> Result<u64, StoreError> {
    let at = connection.query_row("SELECT alive_at FROM event_log", [], |row| row.get(0))?;
    Ok(if at == 0 { now_unix_secs } else { unsigned(at).min(now_unix_secs) })
}

/// Events of an agent that enrolled; of any other there is no data plane to file them under.
pub(super) fn log(
    transaction: &Transaction<'_>,
    id: &AgentId,
    news: Vec<News>,
    now_unix_secs: u64,
) -> Result<(), StoreError> {
    let plane = transaction
        .prepare_cached("SELECT account, region FROM agents WHERE id = ?1")?
        .query_row([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match plane {
        Some((account, region)) => {
            let data_plane = read_data_plane(account, region)?;
            append(transaction, &data_plane, None, Some(id), news, now_unix_secs)
        }
        None => Ok(()),
    }
}

pub(super) fn find(
    connection: &Connection,
    id: &AgentId,
) -> Result<Option<AgentRecord>, StoreError> {
    connection
        .prepare_cached(&format!("{SELECT} WHERE id = ?1"))?
        .query_row([id.as_str()], |row| Ok(read_agent(row)))
        .optional()?
        .transpose()
}

fn read_agent(row: &Row<'_>) -> Result<AgentRecord, StoreError> {
    Ok(AgentRecord {
        id: read_id("an agent id", AgentId::try_from(row.get::<_, String>(0)?))?,
        data_plane: read_data_plane(row.get(1)?, row.get(2)?)?,
        enrolled_at_unix_secs: unsigned(row.get(3)?),
        certificate_serial: row.get(4)?,
        certificate_expires_at_unix_secs: row.get::<_, Option<i64>>(5)?.map(unsigned),
        release: row.get(6)?,
        connected: row.get(7)?,
        since_unix_secs: unsigned(row.get(8)?),
        revoked_at_unix_secs: row.get::<_, Option<i64>>(9)?.map(unsigned),
    })
}
