//! The account in which cases are judged: ours, strangers' and the agent's own, side by side.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use outstation_agent::iam::parameters::{Profile, example};
use outstation_agent::iam::policy::{Policy, policy};
use outstation_aws_sim::model::credentials::{InstanceRole, Principal};
use outstation_aws_sim::model::group::LaunchTemplate;
use outstation_aws_sim::model::names::GroupName;
use outstation_aws_sim::model::requests::{CreateGroup, GroupSettings, TagSpec, TemplateSpec};
use outstation_aws_sim::model::{AccessKeyId, Model, ModelConfig};
use outstation_aws_sim::policy::TemplateUse;
use time::OffsetDateTime;

pub const ACCOUNT: &str = "123456789012";
pub const REGION: &str = "eu-central-1";
pub const AGENT_ARN: &str =
    "arn:aws:sts::123456789012:assumed-role/outstation-agent/i-0123456789abcdef0";
pub const AGENT_KEY: &str = "ASIAIAMTESTAGENT0000";
pub const AGENT_SECRET: &str = "a-secret-of-this-test-alone";

pub const NODE_TEMPLATE: &str = "lt-0123456789abcdef0";
/// Exists in the account and is in no policy.
pub const STRANGE_TEMPLATE: &str = "lt-00000000000000bad";
pub const AGENT_TEMPLATE: &str = "lt-0fedcba9876543210";
pub const SUBNETS: &str = "subnet-0123456789abcdef0,subnet-0123456789abcdef1";
pub const STRANGE_SUBNET: &str = "subnet-00000000000000bad";

pub fn scale_only() -> Policy {
    policy(&example().0, &Profile::ScaleOnly).expect("short enough")
}

pub fn manage() -> Policy {
    let (scope, manage) = example();
    policy(&scope, &Profile::Manage(Box::new(manage))).expect("short enough")
}

pub fn config() -> ModelConfig {
    let template =
        |id: &str, name: &str, version: u32, image_id: &str, kind: &str| LaunchTemplate {
            id: id.to_owned(),
            name: name.to_owned(),
            version,
            image_id: image_id.to_owned(),
            instance_type: kind.to_owned(),
            user_data: "user-data.sh".to_owned(),
        };
    let image = "ami-0123456789abcdef0";
    let zone = |letter: &str| format!("{REGION}{letter}");
    let principal = Principal {
        secret_access_key: AGENT_SECRET.to_owned(),
        session_token: Some("session".to_owned()),
        arn: AGENT_ARN.to_owned(),
        user_id: "AROAIAMTESTAGENT0000:i-0123456789abcdef0".to_owned(),
        expires: None,
    };
    ModelConfig {
        account: ACCOUNT.to_owned(),
        region: REGION.to_owned(),
        zones: vec![zone("a"), zone("b")],
        subnets: [
            ("subnet-0123456789abcdef0".to_owned(), zone("a")),
            ("subnet-0123456789abcdef1".to_owned(), zone("b")),
            (STRANGE_SUBNET.to_owned(), zone("a")),
        ]
        .into(),
        role: InstanceRole {
            account: ACCOUNT.to_owned(),
            name: "outstation-node".to_owned(),
            id: "AROAIAMTESTNODE00000".to_owned(),
        },
        net: Ipv4Addr::new(10, 83, 0, 0),
        boot_delay: Duration::ZERO,
        templates: vec![
            template(NODE_TEMPLATE, "outstation-node", 1, image, "c7i.large"),
            template(NODE_TEMPLATE, "outstation-node", 2, image, "c7i.xlarge"),
            // Two versions that somebody added since.
            template(NODE_TEMPLATE, "outstation-node", 3, "ami-00000000000000bad", "c7i.large"),
            template(NODE_TEMPLATE, "outstation-node", 4, image, "p5.48xlarge"),
            template(STRANGE_TEMPLATE, "stranger", 1, image, "c7i.large"),
            template(AGENT_TEMPLATE, "outstation-agent", 1, image, "c7i.large"),
        ],
        hooks_hold_dead_instances: false,
        principals: vec![(AccessKeyId::from(AGENT_KEY.to_owned()), principal)],
        seed: 7,
    }
}

/// What the launch templates entail beyond image and type.
pub fn templates() -> BTreeMap<String, TemplateUse> {
    let tags = TemplateUse { profile: None, tags: true };
    [(NODE_TEMPLATE.to_owned(), tags)].into()
}

/// With groups of every kind: `outstation-mine` is the only one that is ours to change.
pub fn model() -> Model {
    let mut model = Model::new(config());
    for (name, tags) in [
        ("outstation-mine", &[("outstation:tenant", "example"), ("outstation:group", "mine")][..]),
        // The prefix alone makes nothing ours, nor does the tag.
        ("outstation-untagged", &[]),
        ("outstation-others", &[("outstation:tenant", "somebody-else")]),
        ("shop-web", &[("outstation:tenant", "example")]),
        // Somebody has tagged the agent's own group.
        ("outstation-agent", &[("outstation:tenant", "example")]),
    ] {
        let group = GroupName::try_from(name.to_owned()).expect("a valid name");
        let tag = |(key, value): &(&str, &str)| TagSpec {
            group: Some(name.to_owned()),
            resource_type: Some("auto-scaling-group".to_owned()),
            key: (*key).to_owned(),
            value: Some((*value).to_owned()),
            propagate: true,
        };
        let settings = GroupSettings {
            template: Some(TemplateSpec {
                id: Some(NODE_TEMPLATE.to_owned()),
                name: None,
                version: Some("1".to_owned()),
            }),
            min: Some(1),
            max: Some(10),
            subnets: Some(SUBNETS.to_owned()),
            ..GroupSettings::default()
        };
        let tags = tags.iter().map(tag).collect();
        let call = CreateGroup { name: group, settings, tags, hooks: Vec::new() };
        model.create_group(call, OffsetDateTime::UNIX_EPOCH).expect("it can be created");
    }
    model.tick(OffsetDateTime::UNIX_EPOCH);
    model
}
