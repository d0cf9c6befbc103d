//! Who of the account's people has agreed to the end of which group, where its guardrails say `destroy = "approve"`: one small
//! file per group in `guardrails/approvals/` of the account store. It approves exactly one order, and nothing else.

use std::collections::BTreeMap;

use outstation_protocol::status::Held;
use outstation_protocol::{Digest, Generation, GroupName};
use serde::Deserialize;

use super::ledger::Accepted;
use super::plan::held;
use crate::store::{AccountStore, StoreError};

/// Of one file: four short fields.
const APPROVAL_BYTES_MAX: u64 = 4 << 10;
const WHO_CHARS_MAX: usize = 200;

/// One order may end its group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    group: GroupName,
    generation: Generation,
    /// Of the tombstone's envelope.
    digest: Digest,
    pub who: String,
}

/// Those of the groups that wait for one; or why a file is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Approvals(BTreeMap<GroupName, Result<Approval, String>>);

impl Approvals {
    /// Of `groups`, as far as there are any.
    pub fn read<'a>(
        store: &AccountStore,
        groups: impl Iterator<Item = &'a GroupName>,
    ) -> Approvals {
        let read = |group: &GroupName| {
            let key = format!("guardrails/approvals/{}", file_name(group));
            match store.get(&key, APPROVAL_BYTES_MAX) {
                Ok(found) => Some((group.clone(), parse(&found?.bytes, group))),
                Err(StoreError::TooLarge { bytes_max }) => {
                    Some((group.clone(), Err(format!("it has more than {bytes_max} bytes"))))
                }
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    Some((group.clone(), Err(format!("cannot read it: {error:#}"))))
                }
            }
        };
        Approvals(groups.filter_map(read).collect())
    }

    /// Why `tombstone` may not end its group yet; `None`: somebody has approved this very order.
    pub fn lack(&self, tombstone: &Accepted) -> Option<Held> {
        let group = &tombstone.order.group;
        let (generation, digest) = (tombstone.order.generation, tombstone.digest);
        let lack = match self.0.get(group) {
            Some(Ok(given)) if (given.generation, given.digest) == (generation, digest) => {
                return None;
            }
            Some(Ok(Approval { generation: of, who, .. })) if *of != generation => {
                format!("{who} has approved generation {of}, this is generation {generation}")
            }
            Some(Ok(Approval { who, .. })) => {
                format!("{who} has approved another order of generation {generation}")
            }
            Some(Err(why)) => format!("the approval is none: {why}"),
            None => "it waits for approval".to_owned(),
        };
        let message = format!(
            "destroy = \"approve\" in the account's guardrails, and the group shall be gone: {lack}"
        );
        let hint = format!(
            "whoever may write guardrails/ in the account store approves this order, and no other, with the file \
             guardrails/approvals/{}: {{\"group\":\"{group}\",\"generation\":{generation},\"digest\":\"{digest}\",\
             \"who\":\"\"}} and a name as who",
            file_name(group),
        );
        Some(held(tombstone, "destroy", &message, &hint))
    }

    /// What a person has written that approves nothing.
    pub fn broken(&self) -> impl Iterator<Item = (&GroupName, &String)> {
        self.0.iter().filter_map(|(group, approval)| Some((group, approval.as_ref().err()?)))
    }

    pub fn given(&self) -> impl Iterator<Item = &Approval> {
        self.0.values().filter_map(|approval| approval.as_ref().ok())
    }
}

fn file_name(group: &GroupName) -> String {
    format!("{group}.json")
}

fn parse(bytes: &[u8], group: &GroupName) -> Result<Approval, String> {
    if bytes.len() as u64 > APPROVAL_BYTES_MAX {
        return Err(format!("it has more than {APPROVAL_BYTES_MAX} bytes"));
    }
    let approval: Approval = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if approval.group != *group {
        return Err(format!("it names group {}", approval.group));
    }
    if approval.who.trim().is_empty() || approval.who.chars().count() > WHO_CHARS_MAX {
        return Err(format!("who is not a name of 1-{WHO_CHARS_MAX} characters"));
    }
    Ok(approval)
}

#[cfg(test)]
impl Approvals {
    pub fn of(tombstone: &Accepted, bytes: &[u8]) -> Approvals {
        let group = tombstone.order.group.clone();
        let approval = parse(bytes, &group);
        Approvals([(group, approval)].into())
    }
}

#[cfg(test)]
mod tests {
    use outstation_protocol::order::Intent;

    use super::*;
    use crate::account::testing::{group, ledger_of, order};

    fn tombstone() -> Accepted {
        let order = order("a", 4, Some(Digest::of(b"third")), Intent::Destroy);
        ledger_of(&[order])[&group("a")].clone()
    }

    fn lack(bytes: &str) -> String {
        let tombstone = tombstone();
        Approvals::of(&tombstone, bytes.as_bytes())
            .lack(&tombstone)
            .map_or("approved".to_owned(), |held| held.message)
    }

    #[test]
    fn it_approves_one_order_and_nothing_else() {
        let digest = tombstone().digest.to_string();
        let right = format!(r#"{{"group":"a","generation":4,"digest":"{digest}","who":"ann"}}"#);
        assert_eq!(lack(&right), "approved");
        let other = Digest::of(b"another order").to_string();
        for (bytes, words) in [
            (right.replace(":4,", ":3,"), "ann has approved generation 3, this is generation 4"),
            (right.replace(":4,", ":5,"), "ann has approved generation 5"),
            (right.replace(&digest, &other), "ann has approved another order of generation 4"),
            (right.replace("\"a\"", "\"b\""), "the approval is none: it names group b"),
            (right.replace("ann", " "), "who is not a name"),
            (right.replace("ann", &"a".repeat(201)), "who is not a name"),
            (right.replace(",\"who\":\"ann\"", ""), "missing field `who`"),
            (right.replace("\"who\"", "\"until\":1,\"who\""), "unknown field `until`"),
            (right.replace("sha256:", ""), "the approval is none: "),
            (right.replace('}', &" ".repeat(4096)), "more than 4096 bytes"),
            (format!("{right}{right}"), "trailing characters"),
            (String::new(), "EOF while parsing"),
        ] {
            let lack = lack(&bytes);
            assert!(lack.contains(words), "{bytes}: {lack}");
        }
    }

    #[test]
    fn the_hint_is_what_has_to_be_written() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = AccountStore::folder(dir.path());
        let approvals = dir.path().join("guardrails/approvals");
        std::fs::create_dir_all(&approvals).expect("created");
        let tombstone = tombstone();
        let read = || Approvals::read(&store, [&tombstone.order.group].into_iter());
        let held = read().lack(&tombstone).expect("nobody has approved it");
        assert!(
            held.message.ends_with("the group shall be gone: it waits for approval"),
            "{held:?}"
        );
        let (_, rest) = held.hint.split_once("guardrails/approvals/").expect("the file's name");
        let (name, rest) = rest.split_once(": ").expect("what is in it");
        let (approval, _) = rest.split_once(" and a name").expect("and who");
        let path = approvals.join(name);
        std::fs::write(&path, approval).expect("written");
        let broken = read();
        assert_eq!(broken.broken().count(), 1, "nobody's name is in it");
        assert!(broken.lack(&tombstone).is_some());
        std::fs::write(&path, approval.replace("\"\"", "\"ann@example\"")).expect("written");
        assert_eq!(read().lack(&tombstone), None);
        std::fs::remove_file(&path).expect("taken back");
        assert!(read().lack(&tombstone).is_some());
        std::fs::create_dir(&path).expect("something else");
        let held = read().lack(&tombstone).expect("no approval");
        assert!(held.message.contains("cannot read it"), "{held:?}");
    }
}
