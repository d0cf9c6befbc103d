//! Who governs the data plane and whether the broker hears them: so how old is what is shown. Pure.

use serde::Serialize;

use outstation_api::admin::Agent;

use crate::view::GroupView;

/// An account agent and since when it is connected, or since when it is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Linked {
    pub agent: String,
    pub since_unix_secs: u64,
    pub release: String,
}

/// The control link of a data plane, from its account agents to the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Link {
    /// Nobody has ever enrolled.
    Never,
    /// Usually one; two while one replaces the other.
    Up { agents: Vec<Linked> },
    /// The one that was heard last.
    Down { last: Linked },
}

impl Link {
    /// From the agents of one data plane.
    pub fn of(agents: &[Agent]) -> Link {
        let linked = |agent: &Agent| Linked {
            agent: agent.id.clone(),
            since_unix_secs: agent.since_unix_secs,
            release: agent.release.clone(),
        };
        let up: Vec<Linked> = agents.iter().filter(|agent| agent.connected).map(linked).collect();
        if !up.is_empty() {
            return Link::Up { agents: up };
        }
        match agents.iter().max_by_key(|agent| agent.since_unix_secs) {
            Some(last) => Link::Down { last: linked(last) },
            None => Link::Never,
        }
    }

    /// Since when nothing is heard of this group; none while its agent is connected, which tells
    /// every change, or when nothing was ever heard.
    pub fn stale_since_unix_secs(&self, group: &GroupView) -> Option<u64> {
        let reported = group.status.as_ref()?.reported_at_unix_secs;
        match self {
            Link::Up { .. } => None,
            Link::Down { last } => Some(last.since_unix_secs.max(reported)),
            Link::Never => Some(reported),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_is_that_of_who_is_heard_or_was_heard_last() {
        let agent = |id: &str, connected, since_unix_secs| Agent {
            id: id.into(),
            data_plane: None,
            connected,
            since_unix_secs,
            release: String::new(),
            revoked_at_unix_secs: None,
        };
        for (agents, wanted) in [
            (vec![], "never"),
            (vec![agent("a", false, 5)], "down a 5"),
            (vec![agent("a", false, 5), agent("b", false, 9), agent("c", false, 7)], "down b 9"),
            (vec![agent("a", false, 99), agent("b", true, 9)], "up b 9"),
            (vec![agent("a", true, 3), agent("b", true, 9)], "up a 3 b 9"),
        ] {
            let words = |linked: &Linked| format!(" {} {}", linked.agent, linked.since_unix_secs);
            let seen = match Link::of(&agents) {
                Link::Never => "never".into(),
                Link::Up { agents } => {
                    format!("up{}", agents.iter().map(words).collect::<String>())
                }
                Link::Down { last } => format!("down{}", words(&last)),
            };
            assert_eq!(seen, wanted);
        }
    }
}
