//! What is declared. Plain values, checked where they are made.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, Digest, EnvironmentName, Region};

/// An AWS account and region that one account agent governs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPlane {
    pub account: AccountId,
    pub region: Region,
}

impl fmt::Display for DataPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.account, self.region)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupKind {
    /// Runs the users' functions.
    Transform,
    /// Serves feature vectors, calling transform groups.
    Feature,
    /// Accepts pushed records, transforms them, writes them.
    Ingest,
}

impl fmt::Display for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GroupKind::Transform => "transform",
            GroupKind::Feature => "feature",
            GroupKind::Ingest => "ingest",
        })
    }
}

/// How many nodes a group has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Scaling {
    /// A fixed number of nodes.
    Provisioned { desired_nodes: u32 },
    /// As many nodes as keep a metric at its target: AWS decides, between the two bounds.
    Autoscaling { min_nodes: u32, max_nodes: u32, target: Target },
}

impl Scaling {
    /// The most nodes that this configuration may ever lead to.
    pub fn nodes_max(&self) -> u32 {
        match self {
            Scaling::Provisioned { desired_nodes } => *desired_nodes,
            Scaling::Autoscaling { max_nodes, .. } => *max_nodes,
        }
    }

    /// The fewest, which a new group starts with.
    pub fn nodes_min(&self) -> u32 {
        match self {
            Scaling::Provisioned { desired_nodes } => *desired_nodes,
            Scaling::Autoscaling { min_nodes, .. } => *min_nodes,
        }
    }

    pub fn target(&self) -> Option<&Target> {
        match self {
            Scaling::Provisioned { .. } => None,
            Scaling::Autoscaling { target, .. } => Some(target),
        }
    }
}

mod target;
pub use target::{Statistic, Target, TargetError, TargetValue};

/// An environment as an order refers to it: the name is for people, the digest decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentRef {
    pub name: EnvironmentName,
    pub digest: Digest,
}

/// The desired state of one server group, as declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    pub kind: GroupKind,
    pub scaling: Scaling,
    pub environment: EnvironmentRef,
    /// The users' functions, by content.
    pub bundle: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    #[serde(default)]
    pub prevent_destroy: bool,
    /// Settings of the kind's server, such as `workers`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// AWS allows 50 tags on a group; Outstation keeps ten of them for itself.
pub const USER_TAGS_MAX: usize = 40;
/// Tag keys under this prefix carry Outstation's own facts and are closed to orders.
pub const RESERVED_TAG_PREFIX: &str = "outstation:";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("{count} tags are more than {USER_TAGS_MAX}")]
    TooManyTags { count: usize },
    #[error(
        "tag key {key:?} is not valid: 1-128 letters, digits and '+-=.,_:@' \
         (instance metadata shows no others), and not starting with 'outstation:' or 'aws:'"
    )]
    TagKey { key: String },
    #[error("the value of tag {key:?} has {length} characters, more than 256")]
    TagValue { key: String, length: usize },
    #[error("the {field} has {length} characters, more than {max}")]
    TooLong { field: &'static str, length: usize, max: usize },
    #[error("min_nodes {min} is more than max_nodes {max}")]
    Bounds { min: u32, max: u32 },
    #[error("the scaling target is not valid")]
    Target(#[source] TargetError),
}

impl GroupSpec {
    /// Checks what the types alone do not say. Limits are those of AWS AutoScaling and of
    /// instance metadata (a tag key with a `/` or a space makes a launch fail).
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.tags.len() > USER_TAGS_MAX {
            return Err(SpecError::TooManyTags { count: self.tags.len() });
        }
        for (key, value) in &self.tags {
            let shape = (1..=128).contains(&key.len())
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-=.,_:@".contains(&b));
            if !shape || key.starts_with(RESERVED_TAG_PREFIX) || key.starts_with("aws:") {
                return Err(SpecError::TagKey { key: key.clone() });
            }
            let length = value.chars().count();
            if length > 256 {
                return Err(SpecError::TagValue { key: key.clone(), length });
            }
        }
        for (field, text, max) in
            [("owner", &self.owner, 256), ("description", &self.description, 1024)]
        {
            let length = text.as_ref().map_or(0, |text| text.chars().count());
            if length > max {
                return Err(SpecError::TooLong { field, length, max });
            }
        }
        if let Scaling::Autoscaling { min_nodes, max_nodes, target } = &self.scaling {
            let (min, max) = (*min_nodes, *max_nodes);
            if min > max {
                return Err(SpecError::Bounds { min, max });
            }
            target.validate(min).map_err(SpecError::Target)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> GroupSpec {
        GroupSpec {
            kind: GroupKind::Transform,
            scaling: Scaling::Provisioned { desired_nodes: 3 },
            environment: EnvironmentRef {
                name: EnvironmentName::try_from("flights").expect("a valid name"),
                digest: Digest::of(b"environment"),
            },
            bundle: Digest::of(b"bundle"),
            owner: Some("ops".into()),
            description: None,
            tags: BTreeMap::new(),
            prevent_destroy: false,
            options: BTreeMap::new(),
        }
    }

    #[test]
    fn tags_that_would_break_a_launch_are_refused() {
        for (key, ok) in [
            ("team", true),
            ("cost:centre", true),
            ("a/b", false),
            ("a b", false),
            ("", false),
            ("outstation:group", false),
            ("aws:x", false),
        ] {
            let mut spec = spec();
            spec.tags.insert(key.to_owned(), "value".to_owned());
            assert_eq!(spec.validate().is_ok(), ok, "{key:?}");
        }
        let mut spec = spec();
        spec.tags.insert("team".to_owned(), "v".repeat(257));
        assert!(matches!(spec.validate(), Err(SpecError::TagValue { length: 257, .. })));
    }

    #[test]
    fn an_unknown_field_is_an_error_not_a_silence() {
        let mut json = serde_json::to_value(spec()).expect("a spec serializes");
        json["desired"] = 9.into();
        assert!(serde_json::from_value::<GroupSpec>(json).is_err());
    }
}
