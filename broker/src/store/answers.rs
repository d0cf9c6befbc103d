//! What the agents answered, per group: kept, so that a restarted broker knows it.

use std::collections::BTreeSet;

use outstation_protocol::session::{Answer, Answers, Report, Reports};
use outstation_protocol::{AgentId, DataPlane, GroupName};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Changed, Store, StoreError, events, integer, read_id, unsigned};

/// When the broker received each answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnsweredAt {
    pub accepted: Option<u64>,
    pub refused: Option<u64>,
    pub converged: Option<u64>,
    pub status: Option<u64>,
}

impl Store {
    /// Puts this answer in place of the older one of its kind. Returns the answers of before.
    pub async fn record(
        &self,
        data_plane: DataPlane,
        agent: AgentId,
        report: Report,
        now_unix_secs: u64,
    ) -> Result<Answers, StoreError> {
        let (plane, group) = (data_plane.clone(), report.group.clone());
        let (before, changed) = self
            .run(move |connection| record(connection, &plane, &agent, report, now_unix_secs))
            .await?;
        if changed {
            self.announce(data_plane, Changed::Answer(group));
        }
        Ok(before)
    }

    /// Keeps exactly these answers: what the agent no longer says is forgotten.
    pub async fn settle(
        &self,
        data_plane: DataPlane,
        agent: AgentId,
        reports: Reports,
        now_unix_secs: u64,
    ) -> Result<(), StoreError> {
        self.run(move |connection| settle(connection, &data_plane, &agent, &reports, now_unix_secs))
            .await
    }

    /// Everything that the data plane's agent answered, as a session starts from it.
    pub async fn reports(&self, data_plane: DataPlane) -> Result<Reports, StoreError> {
        self.run(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT name, answers FROM answers WHERE account = ?1 AND region = ?2",
            )?;
            let rows = statement.query_map(
                params![data_plane.account.as_str(), data_plane.region.as_str()],
                |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)),
            )?;
            let mut reports = Reports::new();
            for row in rows {
                let (name, json) = row?;
                let name = read_id("a group name", GroupName::try_from(name))?;
                reports.insert(name, read_answers(&json)?);
            }
            Ok(reports)
        })
        .await
    }
}

/// Rows of groups that the agent no longer answers about go, those that another agent's session has
/// removed come back; single answers that it no longer gives leave their rows. Times stay as they were.
fn settle(
    connection: &mut Connection,
    data_plane: &DataPlane,
    agent: &AgentId,
    reports: &Reports,
    now_unix_secs: u64,
) -> Result<(), StoreError> {
    let transaction = connection.transaction()?;
    let plane = [data_plane.account.as_str(), data_plane.region.as_str()];
    let stored: Vec<(String, String)> = transaction
        .prepare_cached("SELECT name, answers FROM answers WHERE account = ?1 AND region = ?2")?
        .query_map(plane, |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut known = BTreeSet::new();
    for (name, answers) in stored {
        let group = read_id("a group name", GroupName::try_from(name.clone()))?;
        known.insert(group.clone());
        match reports.get(&group) {
            Some(settled) if *settled == read_answers(&answers)? => {}
            Some(settled) => {
                events::tell(&transaction, data_plane, agent, &group, settled, now_unix_secs)?;
                let answers = write_answers(settled)?;
                transaction.execute(
                    "UPDATE answers SET answers = ?4
                     WHERE account = ?1 AND region = ?2 AND name = ?3",
                    params![plane[0], plane[1], name, answers],
                )?;
            }
            None => {
                let nothing = Answers::default();
                events::tell(&transaction, data_plane, agent, &group, &nothing, now_unix_secs)?;
                events::forget_told(&transaction, data_plane, &group)?;
                transaction.execute(
                    "DELETE FROM answers WHERE account = ?1 AND region = ?2 AND name = ?3",
                    params![plane[0], plane[1], name],
                )?;
            }
        }
    }
    for (group, settled) in reports.iter().filter(|(group, _)| !known.contains(group)) {
        events::tell(&transaction, data_plane, agent, group, settled, now_unix_secs)?;
        let at = |answered: bool| answered.then(|| integer(now_unix_secs));
        transaction.execute(
            "INSERT INTO answers (account, region, name, answers,
                                  accepted_at, refused_at, converged_at, status_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                plane[0],
                plane[1],
                group.as_str(),
                write_answers(settled)?,
                at(settled.accepted.is_some()),
                at(settled.refused.is_some()),
                at(settled.converged.is_some()),
                at(settled.status.is_some()),
            ],
        )?;
    }
    transaction.commit()?;
    Ok(())
}

fn record(
    connection: &mut Connection,
    data_plane: &DataPlane,
    agent: &AgentId,
    report: Report,
    now_unix_secs: u64,
) -> Result<(Answers, bool), StoreError> {
    let transaction = connection.transaction()?;
    let group = report.group.clone();
    let (before, mut at) = of_group(&transaction, data_plane, &group)?;
    let slot = match &report.answer {
        Answer::Accepted { .. } => &mut at.accepted,
        Answer::Refused { .. } => &mut at.refused,
        Answer::Converged { .. } => &mut at.converged,
        Answer::Status(_) => &mut at.status,
    };
    *slot = Some(now_unix_secs);

    let mut reports = Reports::from([(group.clone(), before.clone())]);
    if !report.record(&mut reports) {
        return Ok((before, false));
    }
    events::tell(&transaction, data_plane, agent, &group, &reports[&group], now_unix_secs)?;
    let answers = write_answers(&reports[&group])?;
    transaction.execute(
        "INSERT INTO answers (account, region, name, answers,
                              accepted_at, refused_at, converged_at, status_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT DO UPDATE SET answers = ?4,
             accepted_at = ?5, refused_at = ?6, converged_at = ?7, status_at = ?8",
        params![
            data_plane.account.as_str(),
            data_plane.region.as_str(),
            group.as_str(),
            answers,
            at.accepted.map(integer),
            at.refused.map(integer),
            at.converged.map(integer),
            at.status.map(integer),
        ],
    )?;
    transaction.commit()?;
    Ok((before, true))
}

pub(super) fn of_group(
    connection: &Connection,
    data_plane: &DataPlane,
    group: &GroupName,
) -> Result<(Answers, AnsweredAt), StoreError> {
    let row = connection
        .query_row(
            "SELECT answers, accepted_at, refused_at, converged_at, status_at FROM answers
             WHERE account = ?1 AND region = ?2 AND name = ?3",
            params![data_plane.account.as_str(), data_plane.region.as_str(), group.as_str()],
            |row| {
                let at = |column| row.get::<_, Option<i64>>(column).map(|at| at.map(unsigned));
                let answered_at = AnsweredAt {
                    accepted: at(1)?,
                    refused: at(2)?,
                    converged: at(3)?,
                    status: at(4)?,
                };
                Ok((row.get::<_, String>(0)?, answered_at))
            },
        )
        .optional()?;
    match row {
        Some((json, at)) => Ok((read_answers(&json)?, at)),
        None => Ok(Default::default()),
    }
}

fn write_answers(answers: &Answers) -> Result<String, StoreError> {
    serde_json::to_string(answers)
        .map_err(|error| StoreError::Content { what: "an answer", why: error.to_string() })
}

pub(super) fn read_answers(json: &str) -> Result<Answers, StoreError> {
    serde_json::from_str(json)
        .map_err(|error| StoreError::Content { what: "an answer", why: error.to_string() })
}
