//! Values for the unit tests.

use outstation_protocol::order::{Intent, Order};
use outstation_protocol::{
    AccountId, AgentId, DataPlane, Envelope, Generation, GroupName, Region, TenantId,
};

pub fn data_plane(account: &str) -> DataPlane {
    DataPlane {
        account: AccountId::try_from(account).expect("an account"),
        region: Region::try_from("eu-central-1").expect("a region"),
    }
}

pub fn agent_id(id: &str) -> AgentId {
    AgentId::try_from(id).expect("an agent id")
}

/// The shortest order there is.
pub fn tombstone(group: &str, generation: u64, parent: Option<&Envelope>) -> Envelope {
    let order = Order {
        tenant: TenantId::try_from("dev").expect("a tenant"),
        data_plane: data_plane("123456789012"),
        group: GroupName::try_from(group).expect("a group name"),
        generation: Generation(generation),
        parent: parent.map(Envelope::digest),
        accept_before_unix_secs: 2_000_000_000,
        intent: Intent::Destroy,
    };
    order.into_envelope()
}

pub fn order(envelope: &Envelope) -> Order {
    Order::from_envelope(envelope).expect("an order")
}
