//! Tags of groups.

use super::group::{Group, Tag};
use super::requests::TagSpec;
use super::{AwsError, Code, GroupName, Model, TAGS_MAX};

impl Model {
    /// All or nothing, as the API reference has it for one group; several groups in one call are applied in order.
    pub fn put_tags(&mut self, tags: Vec<TagSpec>) -> Result<(), AwsError> {
        for (name, tags) in by_group(tags)? {
            let (group, _) = self.group_mut(&name).map_err(|_| no_such_resource(&name))?;
            let mut updated = group.clone();
            apply_tags(&mut updated, tags)?;
            *group = updated;
        }
        Ok(())
    }

    /// Deleting a tag that is not there succeeds.
    pub fn delete_tags(&mut self, tags: Vec<TagSpec>) -> Result<(), AwsError> {
        for (name, tags) in by_group(tags)? {
            let (group, _) = self.group_mut(&name).map_err(|_| no_such_resource(&name))?;
            for tag in tags {
                let matches = group.tags.get(&tag.key).is_some_and(|held| {
                    tag.value.as_ref().is_none_or(|value| *value == held.value)
                });
                if matches {
                    group.tags.remove(&tag.key);
                }
            }
        }
        Ok(())
    }
}

pub(super) fn apply_tags(group: &mut Group, tags: Vec<TagSpec>) -> Result<(), AwsError> {
    let mut seen = std::collections::BTreeSet::new();
    for tag in tags {
        check_resource(&tag, &group.name)?;
        check_tag(&tag)?;
        if !seen.insert(tag.key.clone()) {
            return Err(AwsError::validation(format!(
                "Duplicate tag key {} in the request",
                tag.key
            )));
        }
        group.tags.insert(
            tag.key,
            Tag { value: tag.value.unwrap_or_default(), propagate: tag.propagate },
        );
    }
    if group.tags.len() > TAGS_MAX {
        return Err(AwsError::new(
            Code::LimitExceeded,
            format!("AutoScalingGroup '{}' may have {TAGS_MAX} tags.", group.name),
        ));
    }
    Ok(())
}

/// Why instances with this tag cannot start, if so: IMDS shows tags as paths (EC2 user guide, tags in instance metadata).
pub(super) fn launch_obstacle(key: &str) -> Option<String> {
    let fits = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_+=,.@:".contains(&byte));
    let reserved = [".", "..", "_index"].contains(&key);
    (!fits || reserved).then(|| {
        format!(
            "'{key}' is not a valid tag key. Tag keys must match pattern ([0-9a-zA-Z\\-_+=,.@:]{{1,255}}), and must not be a \
             reserved name ('.', '..', '_index'). Launching EC2 instance failed."
        )
    })
}

fn by_group(tags: Vec<TagSpec>) -> Result<Vec<(GroupName, Vec<TagSpec>)>, AwsError> {
    let mut groups: Vec<(GroupName, Vec<TagSpec>)> = Vec::new();
    for tag in tags {
        let Some(id) = tag.group.clone() else {
            return Err(AwsError::validation(
                "Resource id of a tag must be the name of an AutoScalingGroup",
            ));
        };
        let name = GroupName::try_from(id)?;
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, list)) => list.push(tag),
            None => groups.push((name, vec![tag])),
        }
    }
    Ok(groups)
}

fn check_resource(tag: &TagSpec, group: &GroupName) -> Result<(), AwsError> {
    if tag.resource_type.as_deref().is_some_and(|kind| kind != "auto-scaling-group") {
        return Err(AwsError::validation(
            "Invalid resource type: only auto-scaling-group can be tagged",
        ));
    }
    if tag.group.as_deref().is_some_and(|id| id != group.as_str()) {
        return Err(AwsError::validation(format!(
            "Resource id of tag {} is not the group {group}",
            tag.key
        )));
    }
    Ok(())
}

fn check_tag(tag: &TagSpec) -> Result<(), AwsError> {
    let key_len = tag.key.chars().count();
    if key_len == 0 || key_len > 128 {
        return Err(AwsError::constraint(
            &tag.key,
            "tags.key",
            "Member must have length between 1 and 128",
        ));
    }
    if tag.value.as_ref().is_some_and(|value| value.chars().count() > 256) {
        return Err(AwsError::constraint(
            &tag.key,
            "tags.value",
            "Member must have length less than or equal to 256",
        ));
    }
    if tag.key.to_ascii_lowercase().starts_with("aws:") {
        return Err(AwsError::validation(
            "Tag keys starting with 'aws:' are reserved for internal use",
        ));
    }
    Ok(())
}

fn no_such_resource(name: &GroupName) -> AwsError {
    AwsError::validation(format!("AutoScalingGroup name not found - no such group: {name}"))
}
