//! The reading calls: filters, and pages that continue after the last key of the page before.

use std::cmp::Reverse;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::activity::Activity;
use super::group::{Group, Hook, Instance, Tag};
use super::requests::{Filter, Page};
use super::{AwsError, Code, GroupName, HookName, InstanceId, Model, group_not_found};

/// One page, and the token of the next if there is one.
#[derive(Debug)]
pub struct Paged<T> {
    pub items: Vec<T>,
    pub next_token: Option<String>,
}

impl Model {
    /// Unknown names are left out, as at AWS.
    pub fn describe_groups(
        &self,
        names: &[String],
        filters: &[Filter],
        page: &Page,
    ) -> Result<Paged<&Group>, AwsError> {
        for filter in filters {
            let known = filter.name.starts_with("tag:")
                || ["tag-key", "tag-value"].contains(&filter.name.as_str());
            if !known {
                return Err(AwsError::validation(format!(
                    "Filter type {} is not correct.",
                    filter.name
                )));
            }
        }
        let groups = self
            .groups
            .values()
            .filter(|group| {
                names.is_empty() || names.iter().any(|name| name == group.name.as_str())
            })
            .filter(|group| filters.iter().all(|filter| group_matches(group, filter)));
        paged(groups.map(|group| (group.name.to_string(), group)), page, 50)
    }

    pub fn describe_instances(
        &self,
        ids: &[InstanceId],
        page: &Page,
    ) -> Result<Paged<&Instance>, AwsError> {
        let mut instances: Vec<&Instance> = self
            .instances()
            .filter(|instance| ids.is_empty() || ids.contains(&instance.id))
            .collect();
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        paged(instances.into_iter().map(|instance| (instance.id.to_string(), instance)), page, 50)
    }

    pub fn describe_tags(
        &self,
        filters: &[Filter],
        page: &Page,
    ) -> Result<Paged<(&GroupName, &String, &Tag)>, AwsError> {
        const KNOWN: [&str; 4] = ["auto-scaling-group", "key", "value", "propagate-at-launch"];
        if let Some(filter) = filters.iter().find(|filter| !KNOWN.contains(&filter.name.as_str())) {
            return Err(AwsError::validation(format!(
                "Filter type {} is not correct.",
                filter.name
            )));
        }
        let tags = self.groups.values().flat_map(Group::tag_list).filter(|(group, key, tag)| {
            filters.iter().all(|filter| {
                let value = match filter.name.as_str() {
                    "auto-scaling-group" => group.as_str(),
                    "key" => key.as_str(),
                    "value" => tag.value.as_str(),
                    _ => {
                        if tag.propagate {
                            "true"
                        } else {
                            "false"
                        }
                    }
                };
                filter.values.iter().any(|wanted| wanted == value)
            })
        });
        // NUL sorts before all that names hold, so this string orders as the pair (group, key) does.
        paged(tags.map(|item| (format!("{}\0{}", item.0, item.1), item)), page, 50)
    }

    pub fn describe_hooks(
        &self,
        group: &GroupName,
        names: &[String],
    ) -> Result<Vec<(&HookName, &Hook)>, AwsError> {
        let group = self.groups.get(group).ok_or_else(|| group_not_found(group))?;
        let wanted = |name: &HookName| {
            names.is_empty() || names.iter().any(|wanted| wanted == name.as_str())
        };
        Ok(group.hooks.iter().filter(|(name, _)| wanted(name)).collect())
    }

    /// Newest first. Activities of deleted groups are not kept.
    pub fn describe_activities(
        &self,
        group: Option<&GroupName>,
        ids: &[String],
        page: &Page,
    ) -> Result<Paged<&Activity>, AwsError> {
        if let Some(name) = group
            && !self.groups.contains_key(name)
        {
            return Err(group_not_found(name));
        }
        let mut activities: Vec<&Activity> = self
            .groups
            .values()
            .filter(|held| group.is_none_or(|name| *name == held.name))
            .flat_map(|held| held.activities.iter())
            .filter(|activity| ids.is_empty() || ids.contains(&activity.id.0))
            .collect();
        activities.sort_by_key(|activity| Reverse(activity.started));
        // Pages continue after an activity's id: new ones come in front and shift nothing.
        let skip = match &page.next_token {
            None => 0,
            Some(token) => {
                let last = read_token(token)?;
                let position = activities.iter().position(|activity| activity.id.0 == last);
                position.ok_or_else(|| invalid_token(token))? + 1
            }
        };
        let limit = page_size(page, 100)?;
        let rest = activities.split_off(skip.min(activities.len()));
        let next_token = (rest.len() > limit).then(|| write_token(&rest[limit - 1].id.0));
        Ok(Paged { items: rest.into_iter().take(limit).collect(), next_token })
    }
}

fn group_matches(group: &Group, filter: &Filter) -> bool {
    let wanted = |value: &str| filter.values.iter().any(|wanted| wanted == value);
    match filter.name.strip_prefix("tag:") {
        Some(key) => group.tags.get(key).is_some_and(|tag| wanted(&tag.value)),
        None if filter.name == "tag-key" => group.tags.keys().any(|key| wanted(key)),
        None => group.tags.values().any(|tag| wanted(&tag.value)),
    }
}

/// Cuts a page out of items that come in the order of their keys.
pub(super) fn paged<T>(
    items: impl Iterator<Item = (String, T)>,
    page: &Page,
    default: usize,
) -> Result<Paged<T>, AwsError> {
    let limit = page_size(page, default)?;
    let after = page.next_token.as_deref().map(read_token).transpose()?;
    let mut items = items.skip_while(|(key, _)| after.as_ref().is_some_and(|after| key <= after));
    let mut taken = Vec::new();
    let mut last = String::new();
    for (key, item) in items.by_ref().take(limit) {
        taken.push(item);
        last = key;
    }
    let next_token = items.next().map(|_| write_token(&last));
    Ok(Paged { items: taken, next_token })
}

pub(super) fn page_size(page: &Page, default: usize) -> Result<usize, AwsError> {
    match page.records_max {
        None => Ok(default),
        Some(0) => Err(AwsError::constraint(
            "0",
            "maxRecords",
            "Member must have value greater than or equal to 1",
        )),
        Some(wanted) if wanted > 100 => Err(AwsError::constraint(
            &wanted.to_string(),
            "maxRecords",
            "Member must have value less than or equal to 100",
        )),
        Some(wanted) => Ok(wanted as usize),
    }
}

pub(super) fn write_token(last: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("after:{last}"))
}

pub(super) fn read_token(token: &str) -> Result<String, AwsError> {
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid_token(token))?;
    let text = String::from_utf8(bytes).map_err(|_| invalid_token(token))?;
    text.strip_prefix("after:").map(str::to_owned).ok_or_else(|| invalid_token(token))
}

pub(super) fn invalid_token(token: &str) -> AwsError {
    let shown: String = token.chars().take(80).collect();
    AwsError::new(Code::InvalidNextToken, format!("The token '{shown}' is invalid."))
}
