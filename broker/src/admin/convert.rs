//! From the store's records and the links' types to the messages of `admin.proto`.

use outstation_api::admin as api;
use outstation_protocol::DataPlane;
use outstation_protocol::ids::{AccountId, IdError, Region};
use outstation_protocol::status::{Drift, GroupStatus, Held, NodeStatus};

use crate::store::agents::AgentRecord;
use crate::store::events::{After, Cursor, EventRecord, Gap, GapReason};
use crate::store::news::rule_name;
use crate::store::orders::GroupRecord;
use crate::store::planes::Registration;

pub fn group(record: GroupRecord) -> api::Group {
    let (answers, at) = (record.answers, record.answered_at);
    let since = record.held_since_unix_secs;
    let accepted_order = record.accepted_order.map(|(envelope, put_at_unix_secs)| {
        api::AcceptedOrder { envelope: envelope.to_json().into(), put_at_unix_secs }
    });
    api::Group {
        accepted_order,
        data_plane: Some(data_plane(&record.data_plane)),
        name: record.group.into(),
        generation: record.generation.0,
        digest: record.digest.to_string(),
        envelope: record.envelope.to_json().into(),
        put_at_unix_secs: record.put_at_unix_secs,
        accepted: answers.accepted.map(|(generation, digest)| api::Accepted {
            generation: generation.0,
            digest: digest.to_string(),
            at_unix_secs: at.accepted.unwrap_or(0),
        }),
        refused: answers.refused.map(|(generation, digest, reason)| api::Refused {
            generation: generation.0,
            digest: digest.to_string(),
            at_unix_secs: at.refused.unwrap_or(0),
            rule: rule_name(reason.rule).into(),
            message: reason.message,
            hint: reason.hint,
        }),
        converged: answers.converged.map(|(generation, observed)| api::Converged {
            generation: generation.0,
            observed: observed.to_string(),
            at_unix_secs: at.converged.unwrap_or(0),
        }),
        status: answers.status.map(|status| group_status(status, &since, at.status.unwrap_or(0))),
    }
}

pub fn agent(record: AgentRecord) -> api::Agent {
    api::Agent {
        id: record.id.into(),
        data_plane: Some(data_plane(&record.data_plane)),
        connected: record.connected,
        since_unix_secs: record.since_unix_secs,
        release: record.release,
        revoked_at_unix_secs: record.revoked_at_unix_secs,
    }
}

pub fn registration(found: Registration) -> api::RegisteredDataPlane {
    api::RegisteredDataPlane {
        name: found.name.into(),
        data_plane: Some(data_plane(&found.data_plane)),
        role: found.role.into(),
        role_id: found.role_id.into(),
        added_at_unix_secs: found.added_at_unix_secs,
    }
}

pub fn data_plane(data_plane: &DataPlane) -> api::DataPlane {
    api::DataPlane {
        account: data_plane.account.to_string(),
        region: data_plane.region.to_string(),
    }
}

pub fn read_data_plane(raw: api::DataPlane) -> Result<DataPlane, IdError> {
    Ok(DataPlane {
        account: AccountId::try_from(raw.account)?,
        region: Region::try_from(raw.region)?,
    })
}

pub fn event(log: &str, event: EventRecord) -> api::Event {
    api::Event {
        cursor: Some(api::Cursor { log: log.into(), run: event.run, sequence: event.sequence }),
        at_unix_secs: event.at_unix_secs,
        group: event.group.map(String::from).unwrap_or_default(),
        generation: event.generation.map(|generation| generation.0),
        digest: event.digest.unwrap_or_default(),
        agent: event.agent.map(String::from).unwrap_or_default(),
        kind: event.kind,
        rule: event.rule,
        message: event.message,
        hint: event.hint,
    }
}

pub fn reached(cursor: Cursor, newest: bool) -> api::Reached {
    let Cursor { log, run, sequence } = cursor;
    api::Reached { cursor: Some(api::Cursor { log, run, sequence }), newest }
}

pub fn gap(gap: Gap) -> api::Gap {
    let reason = match gap.reason {
        GapReason::Pruned => api::gap::Reason::Pruned,
        GapReason::OtherLog => api::gap::Reason::OtherLog,
        GapReason::OlderLog => api::gap::Reason::OlderLog,
        GapReason::Beyond => api::gap::Reason::Beyond,
    };
    api::Gap { reason: reason.into(), after: gap.after, resumes_after: gap.resumes_after }
}

/// A cursor without a log is a number that a person typed.
pub fn read_after(after: Option<api::Cursor>) -> After {
    match after {
        None => After::Nothing,
        Some(api::Cursor { log, sequence, .. }) if log.is_empty() => After::Sequence(sequence),
        Some(api::Cursor { log, run, sequence }) => After::Cursor(Cursor { log, run, sequence }),
    }
}

fn group_status(
    status: GroupStatus,
    held_since: &[u64],
    reported_at_unix_secs: u64,
) -> api::GroupStatus {
    api::GroupStatus {
        phase: status.phase.to_string(),
        desired_nodes: status.desired_nodes,
        observed_nodes: status.observed_nodes,
        ready_nodes: status.ready_nodes,
        reason: status.reason,
        phase_since_unix_secs: status.phase_since_unix_secs,
        held: (status.held.into_iter().enumerate())
            .map(|(index, it)| held(it, held_since.get(index).copied().unwrap_or(0)))
            .collect(),
        drift: status.drift.into_iter().map(drift).collect(),
        nodes: status.nodes.into_iter().map(node).collect(),
        reported_at_unix_secs,
    }
}

fn held(held: Held, since_unix_secs: u64) -> api::Held {
    api::Held {
        generation: held.generation.map(|generation| generation.0),
        rule: held.rule,
        message: held.message,
        hint: held.hint,
        since_unix_secs,
    }
}

fn drift(drift: Drift) -> api::Drift {
    api::Drift { change: drift.change, repaired: drift.repaired, at_unix_secs: drift.at_unix_secs }
}

fn node(node: NodeStatus) -> api::NodeStatus {
    api::NodeStatus {
        instance: node.instance.into(),
        phase: node.phase.to_string(),
        endpoint: node.endpoint,
        bundle: node.bundle.map(|digest| digest.to_string()),
        reason: node.reason,
        since_unix_secs: node.since_unix_secs,
    }
}
