//! The order: what an envelope's payload says. Made by the CLI, judged by the account agent;
//! the broker reads it only to file it under its group and generation.

use serde::{Deserialize, Serialize};

use crate::envelope::{Envelope, ORDER_PAYLOAD_TYPE};
use crate::ids::{Digest, Generation, GroupName, TenantId};
use crate::model::{DataPlane, GroupSpec, SpecError};

/// The newest desired state of one group, or its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    pub tenant: TenantId,
    pub data_plane: DataPlane,
    pub group: GroupName,
    pub generation: Generation,
    /// Digest of the envelope that this one follows; `None` for a group's first order.
    pub parent: Option<Digest>,
    /// Limits the first acceptance; never expires what was accepted.
    pub accept_before_unix_secs: u64,
    pub intent: Intent,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "an order is moved a few times, and nearly all are Apply"
)]
pub enum Intent {
    /// The group shall be as declared here.
    Apply(GroupSpec),
    /// A tombstone: the group shall be gone. Absence from a set never means this.
    Destroy,
}

#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("payload type {found:?} is not {ORDER_PAYLOAD_TYPE:?}")]
    PayloadType { found: String },
    #[error("the payload is not an order that this version understands")]
    Json(#[source] serde_json::Error),
    #[error("generation 0 does not exist; the first is 1")]
    GenerationZero,
    #[error("generation {generation} needs the digest of its parent, and generation 1 has none")]
    Parent { generation: Generation },
    #[error("the order's group is not valid")]
    Spec(#[source] SpecError),
}

impl Order {
    pub fn into_envelope(self) -> Envelope {
        let payload = serde_json::to_vec(&self).expect("an order always serializes");
        Envelope::unsigned(payload)
    }

    /// Reads an order out of an envelope. Says nothing about signatures.
    pub fn from_envelope(envelope: &Envelope) -> Result<Order, OrderError> {
        if envelope.payload_type != ORDER_PAYLOAD_TYPE {
            return Err(OrderError::PayloadType { found: envelope.payload_type.clone() });
        }
        let order: Order = serde_json::from_slice(&envelope.payload).map_err(OrderError::Json)?;
        if order.generation.0 == 0 {
            return Err(OrderError::GenerationZero);
        }
        if (order.generation == Generation::FIRST) != order.parent.is_none() {
            return Err(OrderError::Parent { generation: order.generation });
        }
        if let Intent::Apply(spec) = &order.intent {
            spec.validate().map_err(OrderError::Spec)?;
        }
        Ok(order)
    }

    pub fn is_tombstone(&self) -> bool {
        match self.intent {
            Intent::Apply(_) => false,
            Intent::Destroy => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{AccountId, Region};

    fn tombstone(generation: u64, parent: Option<Digest>) -> Order {
        Order {
            tenant: TenantId::try_from("dev").expect("valid"),
            data_plane: DataPlane {
                account: AccountId::try_from("123456789012").expect("valid"),
                region: Region::try_from("eu-central-1").expect("valid"),
            },
            group: GroupName::try_from("delay").expect("valid"),
            generation: Generation(generation),
            parent,
            accept_before_unix_secs: 0,
            intent: Intent::Destroy,
        }
    }

    #[test]
    fn an_order_names_its_parent() {
        let digest = Digest::of(b"parent");
        for (generation, parent, ok) in [
            (0, None, false),
            (1, None, true),
            (1, Some(digest), false),
            (2, None, false),
            (2, Some(digest), true),
        ] {
            let envelope = tombstone(generation, parent).into_envelope();
            assert_eq!(Order::from_envelope(&envelope).is_ok(), ok, "{generation} {parent:?}");
        }
    }

    #[test]
    fn the_payload_is_json_that_a_person_can_read() {
        let payload = tombstone(1, None).into_envelope().payload;
        assert_eq!(
            String::from_utf8(payload).expect("JSON is UTF-8"),
            r#"{"tenant":"dev","data_plane":{"account":"123456789012","region":"eu-central-1"},"group":"delay","generation":1,"parent":null,"accept_before_unix_secs":0,"intent":"destroy"}"#
        );
    }

    #[test]
    fn another_payload_type_is_not_an_order() {
        let mut envelope = tombstone(1, None).into_envelope();
        envelope.payload_type = "text/plain".into();
        assert!(matches!(Order::from_envelope(&envelope), Err(OrderError::PayloadType { .. })));
    }
}
