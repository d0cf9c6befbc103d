//! The account in which cases are judged: ours, strangers' and the agent's own, side by side.

use std::collections::BTreeMap;

use outstation_agent::iam::parameters::{Profile, example};
use outstation_agent::iam::policy::{Policy, policy};
use outstation_aws_sim::config::Config;
use outstation_aws_sim::model::names::GroupName;
use outstation_aws_sim::model::requests::{CreateGroup, GroupSettings, TagSpec, TemplateSpec};
use outstation_aws_sim::model::{Model, ModelConfig};
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
    let template = |id: &str, name: &str, version: u32, image: &str, kind: &str| {
        format!(
            "[[launch_templates]]\nid = \"{id}\"\nname = \"{name}\"\nversion = {version}\n\
             image_id = \"{image}\"\ninstance_type = \"{kind}\"\nuser_data = \"user-data.sh\"\n"
        )
    };
    let image = "ami-0123456789abcdef0";
    let templates = [
        template(NODE_TEMPLATE, "outstation-node", 1, image, "c7i.large"),
        template(NODE_TEMPLATE, "outstation-node", 2, image, "c7i.xlarge"),
        // Two versions that somebody added since.
        template(NODE_TEMPLATE, "outstation-node", 3, "ami-00000000000000bad", "c7i.large"),
        template(NODE_TEMPLATE, "outstation-node", 4, image, "p5.48xlarge"),
        template(STRANGE_TEMPLATE, "stranger", 1, image, "c7i.large"),
        template(AGENT_TEMPLATE, "outstation-agent", 1, image, "c7i.large"),
    ];
    let text = format!(
        r#"
listen = "127.0.0.1:1"
account = "{ACCOUNT}"
region = "{REGION}"
instance_net = "127.83.0.0"
instance_role = "outstation-node"
instance_role_id = "AROAIAMTESTNODE00000"
dir = "."
[[subnets]]
id = "subnet-0123456789abcdef0"
availability_zone = "{REGION}a"
[[subnets]]
id = "subnet-0123456789abcdef1"
availability_zone = "{REGION}b"
[[subnets]]
id = "{STRANGE_SUBNET}"
availability_zone = "{REGION}a"
[[principals]]
access_key_id = "{AGENT_KEY}"
secret_access_key = "{AGENT_SECRET}"
session_token = "session"
arn = "{AGENT_ARN}"
user_id = "AROAIAMTESTAGENT0000:i-0123456789abcdef0"
{}"#,
        templates.concat()
    );
    toml::from_str::<Config>(&text).expect("a configuration").model(7)
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
