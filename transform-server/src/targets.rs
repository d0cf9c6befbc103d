//! What the bundle offers, as the workers report it when they have loaded it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use outstation_api::transform::ListTargetsResponse;
use prost::Message;

use crate::admission::TargetId;

#[derive(Debug, PartialEq)]
pub struct Targets {
    /// As the worker sent it.
    encoded: Bytes,
    by_name: BTreeMap<Arc<str>, Target>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// In order of name, from 1: a bundle does not change while its server runs. 0 is what it does
    /// not have.
    pub id: TargetId,
    /// It can be evaluated.
    pub works: bool,
}

/// Whatever is asked for and is not there: one queue for all of it.
pub const UNKNOWN: TargetId = TargetId(0);

impl Targets {
    pub fn decode(encoded: Bytes) -> Result<Targets, prost::DecodeError> {
        let list = ListTargetsResponse::decode(encoded.clone())?;
        let works: BTreeMap<Arc<str>, bool> = list
            .targets
            .into_iter()
            .map(|target| (target.name.into(), target.broken.is_empty()))
            .collect();
        let by_name = works
            .into_iter()
            .zip(1..)
            .map(|((name, works), id)| (name, Target { id: TargetId(id), works }))
            .collect();
        Ok(Targets { encoded, by_name })
    }

    /// The `ListTargetsResponse`.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// Whether a target can be evaluated; `None` if there is no such.
    pub fn works(&self, name: &str) -> Option<bool> {
        self.by_name.get(name).map(|target| target.works)
    }

    /// The targets, with their names, shared.
    pub fn names(&self) -> impl Iterator<Item = (&Arc<str>, Target)> {
        self.by_name.iter().map(|(name, target)| (name, *target))
    }

    pub fn count(&self) -> usize {
        self.by_name.len()
    }

    pub fn broken(&self) -> impl Iterator<Item = &str> {
        self.by_name.iter().filter(|(_, target)| !target.works).map(|(name, _)| name.as_ref())
    }
}
