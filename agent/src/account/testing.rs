//! Values that the tests of this folder share.

use std::collections::BTreeMap;

use outstation_protocol::model::{EnvironmentRef, GroupKind, GroupSpec, Scaling};
use outstation_protocol::order::{Intent, Order};
use outstation_protocol::{
    AccountId, DataPlane, Digest, EnvironmentName, Generation, GroupName, InstanceId, Region,
    TenantId,
};

use super::judge::Identity;
use super::ledger::Accepted;
use super::plan::{ObservedGroup, ObservedInstance};

pub fn group(name: &str) -> GroupName {
    GroupName::try_from(name).expect("a valid name")
}

pub fn identity() -> Identity {
    Identity {
        tenant: TenantId::try_from("dev").expect("valid"),
        data_plane: DataPlane {
            account: AccountId::try_from("123456789012").expect("valid"),
            region: Region::try_from("eu-central-1").expect("valid"),
        },
    }
}

pub fn spec(desired_nodes: u32) -> GroupSpec {
    GroupSpec {
        kind: GroupKind::Transform,
        scaling: Scaling::Provisioned { desired_nodes },
        environment: EnvironmentRef {
            name: EnvironmentName::try_from("env").expect("valid"),
            digest: Digest::of(b"environment"),
        },
        bundle: Digest::of(b"bundle"),
        owner: None,
        description: None,
        tags: BTreeMap::new(),
        prevent_destroy: false,
        options: BTreeMap::new(),
    }
}

pub fn order(name: &str, generation: u64, parent: Option<Digest>, intent: Intent) -> Order {
    let Identity { tenant, data_plane } = identity();
    Order {
        tenant,
        data_plane,
        group: group(name),
        generation: Generation(generation),
        parent,
        accept_before_unix_secs: u64::MAX,
        intent,
    }
}

pub fn accepted(order: &Order) -> Accepted {
    Accepted { digest: order.clone().into_envelope().digest(), order: order.clone() }
}

pub fn ledger_of(orders: &[Order]) -> BTreeMap<GroupName, Accepted> {
    orders.iter().map(|order| (order.group.clone(), accepted(order))).collect()
}

pub fn instance(n: u32) -> InstanceId {
    InstanceId::try_from(format!("i-{n:08x}")).expect("valid")
}

/// So many nodes, all in service.
pub fn observed(nodes: u32) -> ObservedGroup {
    let in_service = || ObservedInstance { lifecycle: "InService".to_owned(), healthy: true };
    ObservedGroup {
        min: nodes,
        max: nodes,
        desired: nodes,
        instances: (0..nodes).map(|n| (instance(n), in_service())).collect(),
        ..ObservedGroup::default()
    }
}

pub fn temporary_folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}
