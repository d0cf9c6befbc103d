//! The account agent is held to the IAM policy that it would have at AWS.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use outstation_agent::account::guardrails::NamePrefix;
use outstation_agent::iam::parameters::{Manage, Partition, Profile, Scope};
use outstation_agent::iam::policy::policy;
use outstation_aws_sim::policy::Policies;
use outstation_aws_sim::wire::Sim;
use outstation_aws_sim::wire::query::Params;
use outstation_protocol::{AccountId, Region, TenantId};

use crate::world::{ACCOUNT, REGION, TENANT};

pub const SUBNETS: [&str; 2] = ["subnet-0000000000000000a", "subnet-0000000000000000b"];
/// What the guardrails of a run say at most.
const NODES_PER_GROUP_MAX: u32 = 6;

static MANAGE: LazyLock<Policies> = LazyLock::new(|| {
    let manage = Manage {
        nodes_per_group_max: NODES_PER_GROUP_MAX,
        launch_templates: vec!["lt-0123456789abcdef0".parse().expect("valid")],
        subnets: SUBNETS.map(|id| id.parse().expect("valid")).into(),
        images: vec!["ami-0123456789abcdef0".parse().expect("valid")],
        instance_types: vec!["c7i.large".parse().expect("valid")],
        instance_profile: "outstation-node".parse().expect("valid"),
        node_role: "outstation-node".parse().expect("valid"),
        agent_role: "outstation-agent".parse().expect("valid"),
        agent_launch_template: "lt-0fedcba9876543210".parse().expect("valid"),
    };
    made(&Profile::Manage(Box::new(manage)))
});

static SCALE_ONLY: LazyLock<Policies> = LazyLock::new(|| made(&Profile::ScaleOnly));

fn made(profile: &Profile) -> Policies {
    let scope = Scope {
        partition: Partition::Aws,
        region: Region::try_from(REGION).expect("valid"),
        account: AccountId::try_from(ACCOUNT).expect("valid"),
        prefix: NamePrefix::try_from(crate::oracle::PREFIX.to_owned()).expect("valid"),
        tenant: TenantId::try_from(TENANT).expect("valid"),
        agent_group: "outstation-agent".parse().expect("valid"),
    };
    let policy = policy(&scope, profile).expect("short enough");
    Policies::parse([policy.to_json().as_str()]).expect("a policy")
}

pub fn subnets() -> BTreeMap<String, String> {
    let zones = [format!("{REGION}a"), format!("{REGION}b")];
    SUBNETS.map(str::to_owned).into_iter().zip(zones).collect()
}

pub fn held(mut sim: Sim, scale_only: bool) -> Sim {
    let agent = format!("arn:aws:sts::{ACCOUNT}:assumed-role/outstation-agent/sim");
    let policies = if scale_only { &SCALE_ONLY } else { &MANAGE };
    sim.guard.bind(&agent, (**policies).clone());
    sim
}

/// The policy is never too narrow: what it refuses is a call on a group or an instance that went meanwhile.
pub fn check(sim: &Sim, call: &Params, response: &http::Response<Bytes>) {
    if !String::from_utf8_lossy(response.body()).contains("<Code>AccessDenied</Code>") {
        return;
    }
    let is_there = match call.get("AutoScalingGroupName").or(call.get("Tags.member.1.ResourceId")) {
        Some(group) => sim.model.groups().any(|there| there.name.as_str() == group),
        None => {
            let instance = call.get("InstanceId");
            sim.model.instances().any(|there| Some(there.id.as_str()) == instance)
        }
    };
    assert!(!is_there, "the policy is too narrow for {call:?}");
}
