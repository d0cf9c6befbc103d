//! What the bundle offers, as the workers report it when they have loaded it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use outstation_api::transform::ListTargetsResponse;
use prost::Message;

use crate::admission::{Limits, TargetId};

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
    pub limits: Limits,
}

/// Whatever is asked for and is not there: one queue for all of it.
pub const UNKNOWN: TargetId = TargetId(0);

/// As the bundle declares them.
fn limits(target: &outstation_api::transform::Target) -> Limits {
    let bound = |count: u32| if count == 0 { usize::MAX } else { count as usize };
    let weight = match target.priority {
        ..0 => 1,
        0 => 4,
        1.. => 16,
    };
    let (running_max, waiting_max) = (bound(target.concurrency), bound(target.waiting));
    Limits { weight, running_max, waiting_max }
}

impl Targets {
    pub fn decode(encoded: Bytes) -> Result<Targets, prost::DecodeError> {
        let list = ListTargetsResponse::decode(encoded.clone())?;
        let named: BTreeMap<String, _> =
            list.targets.into_iter().map(|target| (target.name.clone(), target)).collect();
        let by_name = named
            .into_values()
            .zip(1..)
            .map(|(target, id)| {
                let (works, limits) = (target.broken.is_empty(), limits(&target));
                (target.name.into(), Target { id: TargetId(id), works, limits })
            })
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
