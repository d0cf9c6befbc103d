//! What the bundle offers, as the workers report it when they have loaded it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use outstation_api::transform::ListTargetsResponse;
use prost::Message;

#[derive(Debug, PartialEq)]
pub struct Targets {
    /// As the worker sent it.
    encoded: Bytes,
    /// Whether each can be evaluated.
    by_name: BTreeMap<Arc<str>, bool>,
}

impl Targets {
    pub fn decode(encoded: Bytes) -> Result<Targets, prost::DecodeError> {
        let list = ListTargetsResponse::decode(encoded.clone())?;
        let by_name = list
            .targets
            .into_iter()
            .map(|target| (target.name.into(), target.broken.is_empty()))
            .collect();
        Ok(Targets { encoded, by_name })
    }

    /// The `ListTargetsResponse`.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// The name, shared.
    pub fn find(&self, name: &str) -> Option<&Arc<str>> {
        self.by_name.get_key_value(name).map(|(name, _)| name)
    }

    /// Whether a target can be evaluated; `None` if there is no such.
    pub fn works(&self, name: &str) -> Option<bool> {
        self.by_name.get(name).copied()
    }

    pub fn count(&self) -> usize {
        self.by_name.len()
    }

    pub fn broken(&self) -> impl Iterator<Item = &str> {
        self.by_name.iter().filter(|(_, works)| !**works).map(|(name, _)| name.as_ref())
    }
}
