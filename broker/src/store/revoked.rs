//! Agents that may not come back, and certificates that have been replaced. An agent shows its present
//! certificate at every session and renewal; one that a newer has taken the place of is a copy in
//! somebody's hands.

use outstation_protocol::AgentId;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::agents::AgentRecord;
use super::events::{append, of_agent};
use super::news::EventKind;
use super::{Changed, Store, StoreError, agents, integer};

/// Of an agent: half a year of renewals, far more than are valid at a time.
const RETIRED_KEPT_MAX: u32 = 64;

impl Store {
    /// Ends what sessions the agent has; none and no certificate from now on. `None`: no such agent.
    pub async fn revoke(
        &self,
        id: AgentId,
        now_unix_secs: u64,
    ) -> Result<Option<AgentRecord>, StoreError> {
        let revoked = self
            .run(move |connection| {
                let transaction = connection.transaction()?;
                let changed = transaction.execute(
                    "UPDATE agents SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL",
                    params![id.as_str(), integer(now_unix_secs)],
                )?;
                if changed > 0 {
                    let event = of_agent(EventKind::AgentRevoked, "by the broker's admin");
                    agents::log(&transaction, &id, event, now_unix_secs)?;
                }
                let agent = agents::find(&transaction, &id)?;
                transaction.commit()?;
                Ok(agent)
            })
            .await?;
        if let Some(agent) = &revoked {
            self.announce(agent.data_plane.clone(), Changed::Access);
        }
        Ok(revoked)
    }

    /// The agent has shown this certificate. False: a newer one had taken its place, which is told
    /// as an event once.
    pub async fn shown(
        &self,
        id: AgentId,
        serial: String,
        now_unix_secs: u64,
    ) -> Result<bool, StoreError> {
        self.run(move |connection| show(connection, &id, &serial, now_unix_secs)).await
    }
}

fn show(
    connection: &mut Connection,
    id: &AgentId,
    serial: &str,
    now_unix_secs: u64,
) -> Result<bool, StoreError> {
    let transaction = connection.transaction()?;
    let retired: Option<Option<i64>> = transaction
        .prepare_cached("SELECT alarmed_at FROM retired_serials WHERE agent = ?1 AND serial = ?2")?
        .query_row([id.as_str(), serial], |row| row.get(0))
        .optional()?;
    if let Some(alarmed_at) = retired {
        if alarmed_at.is_none() {
            transaction.execute(
                "UPDATE retired_serials SET alarmed_at = ?3 WHERE agent = ?1 AND serial = ?2",
                params![id.as_str(), serial, integer(now_unix_secs)],
            )?;
            let message = format!(
                "certificate {serial} was shown after a newer one had taken its place: two hosts \
                 have this agent's key"
            );
            if let Some(agent) = agents::find(&transaction, id)? {
                let mut event = of_agent(EventKind::AgentCopied, message);
                for news in &mut event {
                    news.hint = format!("find out who, then `outstation agent revoke {id}`");
                }
                append(&transaction, &agent.data_plane, None, Some(id), event, now_unix_secs)?;
            }
            transaction.commit()?;
        }
        return Ok(false);
    }
    // A serial that this database does not know is no copy: it was put back from a backup.
    let before: Option<String> = transaction
        .prepare_cached("SELECT shown_serial FROM agents WHERE id = ?1")?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?
        .flatten();
    if before.as_deref() != Some(serial) {
        if let Some(before) = before {
            retire(&transaction, id, &before, now_unix_secs)?;
        }
        transaction
            .execute("UPDATE agents SET shown_serial = ?2 WHERE id = ?1", [id.as_str(), serial])?;
        transaction.commit()?;
    }
    Ok(true)
}

/// Another certificate takes its place.
pub(super) fn retire(
    connection: &Connection,
    id: &AgentId,
    serial: &str,
    now_unix_secs: u64,
) -> Result<(), StoreError> {
    connection.execute(
        "INSERT OR IGNORE INTO retired_serials (agent, serial, retired_at) VALUES (?1, ?2, ?3)",
        params![id.as_str(), serial, integer(now_unix_secs)],
    )?;
    connection.execute(
        "DELETE FROM retired_serials WHERE agent = ?1 AND serial NOT IN (
             SELECT serial FROM retired_serials WHERE agent = ?1
             ORDER BY retired_at DESC, serial LIMIT ?2)",
        params![id.as_str(), RETIRED_KEPT_MAX],
    )?;
    Ok(())
}
