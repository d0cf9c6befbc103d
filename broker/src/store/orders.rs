//! Orders: written by compare-and-swap on the generation, the newest thousand of each group kept.

use outstation_protocol::envelope::Envelope;
use outstation_protocol::model::Scaling;
use outstation_protocol::order::{Intent, Order};
use outstation_protocol::session::{Answers, DesiredSet};
use outstation_protocol::v1::{SET_ENTRIES_MAX, SetEntry};
use outstation_protocol::{DataPlane, Digest, Generation, GroupName};
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::answers::AnsweredAt;
use super::news::{EventKind, News};
use super::{Changed, Store, StoreError};
use super::{answers, events, integer, read_digest, read_generation, read_id, unsigned};

/// Of each group. Far more than anybody looks back; at some 2 KiB each, 500 groups that change every
/// minute stay below a gibibyte.
pub const ORDERS_KEPT_MAX: u64 = 1000;

/// A group as the store knows it: its newest order, and the answers to it and to older ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRecord {
    pub data_plane: DataPlane,
    pub group: GroupName,
    pub generation: Generation,
    pub digest: Digest,
    pub envelope: Envelope,
    pub put_at_unix_secs: u64,
    pub answers: Answers,
    pub answered_at: AnsweredAt,
    /// What the account acts on, and when that was put; only if it is not the newest order.
    pub accepted_order: Option<(Envelope, u64)>,
    /// Of each of the status's `held`, in its order; 0 where it was not told.
    pub held_since_unix_secs: Vec<u64>,
}

/// What becomes of an order that is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutVerdict {
    /// It follows the newest order: stored.
    Stored,
    /// The very same envelope is stored already: a reply was lost.
    StoredBefore,
    Conflict(Conflict),
}

/// Why an order cannot be stored. Each names both generations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    #[error(
        "generation {offered} of group {group} does not follow the newest, which is generation {newest}"
    )]
    Generation { group: GroupName, offered: Generation, newest: Generation },
    #[error(
        "generation {offered} of group {group} is made for another parent than the newest, \
         generation {newest} ({digest})"
    )]
    Parent { group: GroupName, offered: Generation, newest: Generation, digest: Digest },
    #[error(
        "another order came first as generation {offered} of group {group}; the newest is \
         generation {newest}"
    )]
    Taken { group: GroupName, offered: Generation, newest: Generation },
    #[error(
        "generation {offered} of group {group} would be the first of one more group than the \
         {SET_ENTRIES_MAX} that a data plane may have"
    )]
    TooManyGroups { group: GroupName, offered: Generation },
}

/// What the store knows when an order is put.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub newest: Option<(Generation, Digest)>,
    /// What is stored under the very generation that is offered.
    pub same_generation: Option<&'a Envelope>,
    /// Groups that the data plane has, deleted ones included.
    pub groups: usize,
}

/// Compare-and-swap, decided: an order is stored if it follows the newest by exactly one
/// generation and names its digest as parent. So generations only rise, one by one.
pub fn judge(known: Known<'_>, order: &Order, envelope: &Envelope) -> PutVerdict {
    let (group, offered) = (order.group.clone(), order.generation);
    if known.same_generation == Some(envelope) {
        return PutVerdict::StoredBefore;
    }
    let newest = known.newest.map_or(Generation(0), |(generation, _)| generation);
    if known.same_generation.is_some() {
        return PutVerdict::Conflict(Conflict::Taken { group, offered, newest });
    }
    if offered != newest.next() {
        return PutVerdict::Conflict(Conflict::Generation { group, offered, newest });
    }
    match known.newest {
        Some((_, digest)) if order.parent != Some(digest) => {
            PutVerdict::Conflict(Conflict::Parent { group, offered, newest, digest })
        }
        Some(_) => PutVerdict::Stored,
        None if known.groups >= SET_ENTRIES_MAX => {
            PutVerdict::Conflict(Conflict::TooManyGroups { group, offered })
        }
        None => PutVerdict::Stored,
    }
}

impl Store {
    /// Stores an order if it follows the newest one. `order` is what `envelope` says.
    pub async fn put_order(
        &self,
        order: Order,
        envelope: Envelope,
        now_unix_secs: u64,
    ) -> Result<PutVerdict, StoreError> {
        let (data_plane, group) = (order.data_plane.clone(), order.group.clone());
        let verdict =
            self.run(move |connection| put(connection, &order, &envelope, now_unix_secs)).await?;
        if verdict == PutVerdict::Stored {
            self.announce(data_plane, Changed::Order(group));
        }
        Ok(verdict)
    }

    /// Takes over an order that the account has accepted and this database has lost: it was put
    /// back from a backup. False if it is not newer than what is stored.
    pub async fn take_over(
        &self,
        order: Order,
        envelope: Envelope,
        now_unix_secs: u64,
    ) -> Result<bool, StoreError> {
        let (data_plane, group) = (order.data_plane.clone(), order.group.clone());
        let taken = self
            .run(move |connection| take_over(connection, &order, &envelope, now_unix_secs))
            .await?;
        if taken {
            self.announce(data_plane, Changed::Order(group));
        }
        Ok(taken)
    }

    /// The newest generation and digest of every group, tombstones included.
    pub async fn desired_set(&self, data_plane: DataPlane) -> Result<DesiredSet, StoreError> {
        self.run(move |connection| desired_set(connection, &data_plane)).await
    }

    /// The envelope that this entry names, whether it is the newest or not.
    pub async fn envelope(
        &self,
        data_plane: DataPlane,
        entry: SetEntry,
    ) -> Result<Option<Envelope>, StoreError> {
        self.run(move |connection| {
            let stored = stored(connection, &data_plane, &entry.group, entry.generation)?;
            Ok(stored.filter(|envelope| envelope.digest() == entry.digest))
        })
        .await
    }

    pub async fn group(
        &self,
        data_plane: DataPlane,
        group: GroupName,
    ) -> Result<Option<GroupRecord>, StoreError> {
        self.run(move |connection| record(connection, &data_plane, group)).await
    }

    /// Every group of the data plane, by name.
    pub async fn groups(&self, data_plane: DataPlane) -> Result<Vec<GroupRecord>, StoreError> {
        self.run(move |connection| {
            let names = desired_set(connection, &data_plane)?.into_keys();
            names.filter_map(|group| record(connection, &data_plane, group).transpose()).collect()
        })
        .await
    }
}

fn put(
    connection: &mut Connection,
    order: &Order,
    envelope: &Envelope,
    now_unix_secs: u64,
) -> Result<PutVerdict, StoreError> {
    let DataPlane { account, region } = &order.data_plane;
    let transaction = connection.transaction()?;
    let newest = newest(&transaction, &order.data_plane, &order.group)?;
    let same_generation = stored(&transaction, &order.data_plane, &order.group, order.generation)?;
    let groups: i64 = transaction.query_row(
        "SELECT COUNT(DISTINCT name) FROM orders WHERE account = ?1 AND region = ?2",
        params![account.as_str(), region.as_str()],
        |row| row.get(0),
    )?;
    let known = Known {
        newest,
        same_generation: same_generation.as_ref(),
        groups: usize::try_from(groups).unwrap_or(usize::MAX),
    };
    let verdict = judge(known, order, envelope);
    if verdict == PutVerdict::Stored {
        insert(&transaction, order, envelope, EventKind::OrderPut, now_unix_secs)?;
        transaction.commit()?;
    }
    Ok(verdict)
}

/// Generations may be missing in between: the account has long passed them.
fn take_over(
    connection: &mut Connection,
    order: &Order,
    envelope: &Envelope,
    now_unix_secs: u64,
) -> Result<bool, StoreError> {
    let transaction = connection.transaction()?;
    let newest = newest(&transaction, &order.data_plane, &order.group)?;
    let newer = newest.is_none_or(|(generation, _)| generation < order.generation);
    if newer {
        insert(&transaction, order, envelope, EventKind::TakenOver, now_unix_secs)?;
        transaction.commit()?;
    }
    Ok(newer)
}

fn insert(
    transaction: &Transaction<'_>,
    order: &Order,
    envelope: &Envelope,
    how: EventKind,
    now_unix_secs: u64,
) -> Result<(), StoreError> {
    let DataPlane { account, region } = &order.data_plane;
    transaction.execute(
        "INSERT INTO orders (account, region, name, generation, digest, envelope, put_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            account.as_str(),
            region.as_str(),
            order.group.as_str(),
            integer(order.generation.0),
            envelope.digest().as_bytes(),
            envelope.to_json(),
            integer(now_unix_secs),
        ],
    )?;
    transaction.execute(
        "DELETE FROM orders WHERE account = ?1 AND region = ?2 AND name = ?3 AND generation <= ?4",
        params![
            account.as_str(),
            region.as_str(),
            order.group.as_str(),
            integer(order.generation.0.saturating_sub(ORDERS_KEPT_MAX)),
        ],
    )?;
    let event = News::new(how, summary(order)).of_order(order.generation, Some(envelope.digest()));
    let (plane, group) = (&order.data_plane, Some(&order.group));
    events::append(transaction, plane, group, None, vec![event], now_unix_secs)
}

/// `transform, 3 nodes, environment flights`.
fn summary(order: &Order) -> String {
    match &order.intent {
        Intent::Apply(spec) => {
            let nodes = match &spec.scaling {
                Scaling::Provisioned { desired_nodes: 1 } => "1 node".to_owned(),
                Scaling::Provisioned { desired_nodes } => format!("{desired_nodes} nodes"),
                Scaling::Autoscaling { min_nodes, max_nodes, target } => {
                    format!("{min_nodes}..{max_nodes} nodes at {target}")
                }
            };
            format!("{}, {nodes}, environment {}", spec.kind, spec.environment.name)
        }
        Intent::Destroy => "the group shall be gone".to_owned(),
    }
}

fn newest(
    connection: &Connection,
    data_plane: &DataPlane,
    group: &GroupName,
) -> Result<Option<(Generation, Digest)>, StoreError> {
    let row = connection
        .query_row(
            "SELECT generation, digest FROM orders
             WHERE account = ?1 AND region = ?2 AND name = ?3
             ORDER BY generation DESC LIMIT 1",
            params![data_plane.account.as_str(), data_plane.region.as_str(), group.as_str()],
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)),
        )
        .optional()?;
    row.map(|(generation, digest)| Ok((read_generation(generation), read_digest(&digest)?)))
        .transpose()
}

fn stored(
    connection: &Connection,
    data_plane: &DataPlane,
    group: &GroupName,
    generation: Generation,
) -> Result<Option<Envelope>, StoreError> {
    let json = connection
        .query_row(
            "SELECT envelope FROM orders
             WHERE account = ?1 AND region = ?2 AND name = ?3 AND generation = ?4",
            params![
                data_plane.account.as_str(),
                data_plane.region.as_str(),
                group.as_str(),
                integer(generation.0)
            ],
            |row| row.get::<_, Vec<u8>>(0),
        )
        .optional()?;
    json.map(|json| read_envelope(&json)).transpose()
}

/// An order that is not the newest, and when it was put; the digest must be the very one.
fn put_before(
    connection: &Connection,
    data_plane: &DataPlane,
    group: &GroupName,
    (generation, digest): (Generation, Digest),
) -> Result<Option<(Envelope, u64)>, StoreError> {
    let row = connection
        .query_row(
            "SELECT envelope, put_at FROM orders
             WHERE account = ?1 AND region = ?2 AND name = ?3 AND generation = ?4 AND digest = ?5",
            params![
                data_plane.account.as_str(),
                data_plane.region.as_str(),
                group.as_str(),
                integer(generation.0),
                digest.as_bytes()
            ],
            |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?)),
        )
        .optional()?;
    row.map(|(json, put_at)| Ok((read_envelope(&json)?, unsigned(put_at)))).transpose()
}

fn read_envelope(json: &[u8]) -> Result<Envelope, StoreError> {
    Envelope::from_json(json)
        .map_err(|error| StoreError::Content { what: "an envelope", why: error.to_string() })
}

fn desired_set(connection: &Connection, data_plane: &DataPlane) -> Result<DesiredSet, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT name, generation, digest FROM orders AS newest
         WHERE account = ?1 AND region = ?2 AND generation =
             (SELECT MAX(generation) FROM orders
              WHERE account = ?1 AND region = ?2 AND name = newest.name)",
    )?;
    let rows = statement
        .query_map(params![data_plane.account.as_str(), data_plane.region.as_str()], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, Vec<u8>>(2)?))
        })?;
    let mut set = DesiredSet::new();
    for row in rows {
        let (name, generation, digest) = row?;
        let name = read_id("a group name", GroupName::try_from(name))?;
        set.insert(name, (read_generation(generation), read_digest(&digest)?));
    }
    Ok(set)
}

fn record(
    connection: &Connection,
    data_plane: &DataPlane,
    group: GroupName,
) -> Result<Option<GroupRecord>, StoreError> {
    let row = connection
        .query_row(
            "SELECT generation, envelope, put_at FROM orders
             WHERE account = ?1 AND region = ?2 AND name = ?3
             ORDER BY generation DESC LIMIT 1",
            params![data_plane.account.as_str(), data_plane.region.as_str(), group.as_str()],
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?)),
        )
        .optional()?;
    let Some((generation, envelope, put_at)) = row else {
        return Ok(None);
    };
    let envelope = read_envelope(&envelope)?;
    let digest = envelope.digest();
    let (answers, answered_at) = answers::of_group(connection, data_plane, &group)?;
    let accepted_order = match answers.accepted {
        Some(accepted) if accepted != (read_generation(generation), digest) => {
            put_before(connection, data_plane, &group, accepted)?
        }
        Some(_) | None => None,
    };
    let told = events::told(connection, data_plane, &group)?;
    let held = answers.status.iter().flat_map(|status| &status.held);
    let held_since_unix_secs = held.map(|held| told.held_since_unix_secs(held).unwrap_or(0));
    Ok(Some(GroupRecord {
        data_plane: data_plane.clone(),
        generation: read_generation(generation),
        digest,
        envelope,
        accepted_order,
        held_since_unix_secs: held_since_unix_secs.collect(),
        group,
        put_at_unix_secs: unsigned(put_at),
        answers,
        answered_at,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{order, tombstone};

    #[test]
    fn an_order_is_stored_only_if_it_follows_the_newest() {
        let first = tombstone("delay", 1, None);
        let second = tombstone("delay", 2, Some(&first));
        let mut other_signature = first.clone();
        other_signature
            .signatures
            .push(outstation_protocol::envelope::Signature { keyid: "ops".into(), sig: vec![1] });
        let at_one = Some((Generation(1), first.digest()));
        let at_two = Some((Generation(2), second.digest()));
        let elsewhere = tombstone("other", 1, None);

        #[rustfmt::skip]
        let cases = [
            ("the first", None, None::<&Envelope>, 0, &first, "stored"),
            ("the second", at_one, None, 1, &second, "stored"),
            ("the newest again", at_one, Some(&first), 1, &first, "stored before"),
            ("an older one again", at_two, Some(&first), 1, &first, "stored before"),
            ("same payload, other signatures", at_one, Some(&first), 1, &other_signature,
             "another order came first as generation 1 of group delay; the newest is generation 1"),
            ("first, but there is one", at_one, Some(&elsewhere), 1, &first,
             "another order came first as generation 1 of group delay; the newest is generation 1"),
            ("second without a first", None, None, 0, &second,
             "generation 2 of group delay does not follow the newest, which is generation 0"),
            ("a gap", at_one, None, 1, &tombstone("delay", 3, Some(&first)),
             "generation 3 of group delay does not follow the newest, which is generation 1"),
            ("another parent", at_one, None, 1, &tombstone("delay", 2, Some(&elsewhere)),
             "generation 2 of group delay is made for another parent than the newest, generation 1"),
            ("a new group in a full data plane", None, None, SET_ENTRIES_MAX, &first,
             "generation 1 of group delay would be the first of one more group"),
            ("a known group in a full data plane", at_one, None, SET_ENTRIES_MAX, &second, "stored"),
        ];
        for (case, newest, same_generation, groups, envelope, wanted) in cases {
            let known = Known { newest, same_generation, groups };
            let found = match judge(known, &order(envelope), envelope) {
                PutVerdict::Stored => "stored".to_owned(),
                PutVerdict::StoredBefore => "stored before".to_owned(),
                PutVerdict::Conflict(conflict) => conflict.to_string(),
            };
            assert!(found.starts_with(wanted), "{case}: {found:?} should start with {wanted:?}");
        }
    }
}
