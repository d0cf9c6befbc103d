//! The second floor under a group's generation. AutoScaling groups carry their generation as a tag:
//! when the account store has lost what it held, the tag shows it. Then everything is held until
//! a person has decided which of the two is right. Pure.

use std::collections::BTreeMap;

use outstation_protocol::ids::{Generation, GroupName};
use outstation_protocol::status::Held;
use outstation_protocol::v1::{Refusal, RefusalRule};
use serde::{Deserialize, Serialize};

use super::ledger::Accepted;
use super::plan::{GroupPlan, Observed, ObservedGroup, Plan, TAG_GENERATION};

/// What a person has decided about one group: a file of the account store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Floor {
    pub group: GroupName,
    /// Nothing at or below it is accepted any more, and nothing at or below it counts as an order.
    pub generation: Option<Generation>,
    /// This value of the generation's tag is wrong, and what the ledger holds is right.
    pub wrong_tag: Option<String>,
    pub decided_at_unix_secs: u64,
}

pub type Floors = BTreeMap<GroupName, Floor>;

/// A group whose AutoScaling group knows better than the account store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contradiction {
    pub group: GroupName,
    /// The accepted order's, or the floor's if that is all there is.
    pub ledger: Option<Generation>,
    pub tag: Tag,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tag {
    Generation(Generation),
    NoGeneration(String),
    Missing,
}

impl Tag {
    pub fn of(group: &ObservedGroup) -> Tag {
        match group.tags.get(TAG_GENERATION) {
            None => Tag::Missing,
            Some(text) => match text.parse() {
                Ok(generation) if generation > 0 => Tag::Generation(Generation(generation)),
                Ok(_) | Err(_) => Tag::NoGeneration(text.clone()),
            },
        }
    }
}

/// Everything that the ledger and the floors do not explain. A lower tag is work in progress or
/// drift, and a group that is gone is created again: neither is here. Nor is what a stale answer of
/// AWS shows: the ledger has a generation before its tag is written.
pub fn contradictions(
    ledger: &BTreeMap<GroupName, Accepted>,
    floors: &Floors,
    observed: &Observed,
) -> Vec<Contradiction> {
    let contradicts = |(group, observed): (&GroupName, &ObservedGroup)| {
        let ordered = ledger.get(group).map(|accepted| accepted.order.generation);
        let floor = floors.get(group);
        let known = ordered.max(floor.and_then(|floor| floor.generation));
        let tag = Tag::of(observed);
        let contradicts = match (&tag, known) {
            (Tag::Generation(tagged), Some(known)) => *tagged > known,
            (Tag::NoGeneration(_), _) | (Tag::Generation(_) | Tag::Missing, None) => true,
            // Somebody took it away: drift, and the other floor still holds.
            (Tag::Missing, Some(_)) => false,
        };
        let called_wrong = ordered.is_some()
            && floor.and_then(|floor| floor.wrong_tag.as_ref())
                == Some(observed.tags.get(TAG_GENERATION).unwrap_or(&String::new()));
        (contradicts && !called_wrong).then(|| Contradiction {
            group: group.clone(),
            ledger: known,
            tag,
        })
    };
    observed.iter().filter_map(contradicts).collect()
}

impl Contradiction {
    pub fn message(&self) -> String {
        let Contradiction { group, ledger, tag } = self;
        let tag = match tag {
            Tag::Generation(generation) => format!("is tagged generation {generation}"),
            Tag::NoGeneration(text) => {
                let text: String = text.chars().take(40).collect();
                format!("is tagged generation {text:?}, which is none")
            }
            Tag::Missing => "carries no generation".to_owned(),
        };
        let ledger = match ledger {
            Some(generation) => format!("generation {generation}"),
            None => "no order of it".to_owned(),
        };
        format!("group {group}: its AutoScaling group {tag}, the account store holds {ledger}")
    }

    fn held(&self, ordered: Option<Generation>) -> Held {
        Held {
            generation: ordered,
            rule: "contradiction".to_owned(),
            message: self.message(),
            hint: HINT.to_owned(),
        }
    }
}

pub const HINT: &str = "everything in this account is held until a person has decided: \
     run outstation-agent adopt --config … on the account agent's host";

/// So many are told in each group's status; the log and `outstation-agent status` name them all.
const TOLD_MAX: usize = 4;

/// As they are told in the status of `group`: its own first.
fn told(
    contradictions: &[Contradiction],
    group: &GroupName,
    ordered: Option<Generation>,
) -> Vec<Held> {
    let (own, others): (Vec<_>, Vec<_>) = contradictions.iter().partition(|c| c.group == *group);
    let mut held: Vec<Held> = own
        .iter()
        .map(|contradiction| contradiction.held(ordered))
        .chain(others.iter().map(|contradiction| contradiction.held(None)))
        .take(TOLD_MAX)
        .collect();
    if let Some(last) = held.last_mut()
        && contradictions.len() > TOLD_MAX
    {
        last.message.push_str(&format!(", and {} groups more", contradictions.len() - TOLD_MAX));
    }
    held
}

/// Takes every action out of the plans while there is a contradiction, and says why.
pub fn hold(
    plans: &mut Plan,
    ledger: &BTreeMap<GroupName, Accepted>,
    contradictions: &[Contradiction],
) {
    if contradictions.is_empty() {
        return;
    }
    for (group, GroupPlan { actions, held, drift: _, rolling }) in plans {
        *rolling = None;
        actions.clear();
        let ordered = ledger.get(group).map(|accepted| accepted.order.generation);
        *held = told(contradictions, group, ordered);
    }
}

/// Groups that are there, or that a person has decided about, without an order that counts: why
/// they are left alone.
pub fn left_alone(
    ledger: &BTreeMap<GroupName, Accepted>,
    floors: &Floors,
    observed: &Observed,
    contradictions: &[Contradiction],
) -> BTreeMap<GroupName, Vec<Held>> {
    let adopted = floors.iter().filter(|(_, floor)| floor.generation.is_some());
    let groups = observed.keys().chain(adopted.map(|(group, _)| group));
    groups
        .filter(|group| !ledger.contains_key(*group))
        .map(|group| {
            let mut held = told(contradictions, group, None);
            if let Some(generation) = floors.get(group).and_then(|floor| floor.generation) {
                held.push(Held {
                    generation: None,
                    rule: "adopted".to_owned(),
                    message: format!(
                        "it was adopted at generation {generation}, and is left as it is until \
                         a newer order comes"
                    ),
                    hint: "apply again from the declarations".to_owned(),
                });
            }
            (group.clone(), held)
        })
        .collect()
}

/// Whether orders can be judged now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The first look at the account is still to come.
    NotLooked,
    /// And it did not succeed yet.
    Blind(String),
    /// Nodes of groups that no order counts for.
    Clear {
        unordered_nodes: BTreeMap<GroupName, u32>,
    },
    Contradicted(Vec<Contradiction>),
}

impl Standing {
    pub fn of(
        ledger: &BTreeMap<GroupName, Accepted>,
        observed: &Observed,
        contradictions: Vec<Contradiction>,
    ) -> Standing {
        if !contradictions.is_empty() {
            return Standing::Contradicted(contradictions);
        }
        let unordered = observed.iter().filter(|(group, _)| !ledger.contains_key(*group));
        let unordered_nodes = unordered
            .map(|(group, is)| {
                let nodes = if is.policy.is_some() { is.max } else { is.desired };
                (group.clone(), nodes)
            })
            .collect();
        Standing::Clear { unordered_nodes }
    }

    pub fn contradictions(&self) -> &[Contradiction] {
        match self {
            Standing::Contradicted(contradictions) => contradictions,
            Standing::NotLooked | Standing::Blind(_) | Standing::Clear { .. } => &[],
        }
    }

    /// Nodes that are there without an order that counts, in all groups but this one.
    pub fn unordered_nodes(&self, group: &GroupName) -> u64 {
        match self {
            Standing::Clear { unordered_nodes } => {
                let others = unordered_nodes.iter().filter(|(name, _)| *name != group);
                others.map(|(_, nodes)| u64::from(*nodes)).sum()
            }
            Standing::NotLooked | Standing::Blind(_) | Standing::Contradicted(_) => 0,
        }
    }

    /// Why no order can be judged. Never final: nobody has said anything about the order itself.
    pub fn refusal(&self) -> Option<Refusal> {
        let refusal = |message: String, hint: &str| {
            Some(Refusal { rule: RefusalRule::Contradiction, message, hint: hint.to_owned() })
        };
        match self {
            Standing::Clear { .. } => None,
            Standing::NotLooked => refusal(
                "the account has not been looked at yet".to_owned(),
                "nobody has to do anything: the agent asks for the order again",
            ),
            Standing::Blind(why) => refusal(
                format!("what the account holds is not known since the agent has started: {why}"),
                "the agent asks for the order again when AWS has answered",
            ),
            Standing::Contradicted(contradictions) => {
                let first = contradictions.first().map(Contradiction::message).unwrap_or_default();
                let more = match contradictions.len() {
                    0 | 1 => String::new(),
                    count => format!(", and {} groups more", count - 1),
                };
                refusal(format!("{first}{more}"), HINT)
            }
        }
    }
}

#[cfg(test)]
#[path = "floor_tests.rs"]
mod tests;
