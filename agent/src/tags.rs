//! What the tags of an AutoScaling group say, and so those of its instances.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use outstation_protocol::ids::Generation;
use outstation_protocol::v1::Artifacts;

pub fn tag<'a>(tags: &'a BTreeMap<String, String>, name: &str) -> Result<&'a str> {
    tags.get(&format!("outstation:{name}")).map(String::as_str).with_context(|| {
        format!(
            "there is no tag outstation:{name}; \
             the launch template must set InstanceMetadataTags to enabled"
        )
    })
}

/// What its nodes are born with.
pub fn artifacts(tags: &BTreeMap<String, String>) -> Result<Artifacts> {
    let generation = tag(tags, "generation")?.parse().context("the tag outstation:generation")?;
    // `workers=2,…`; no options, no tag.
    let options = tags.get("outstation:options").map(String::as_str).unwrap_or_default();
    let mut options: Vec<(String, String)> = options
        .split(',')
        .filter_map(|option| option.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    options.sort();
    Ok(Artifacts {
        generation: Generation(generation),
        environment: tag(tags, "environment")?.try_into()?,
        bundle: tag(tags, "bundle")?.try_into()?,
        options,
    })
}
