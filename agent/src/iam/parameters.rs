//! What the policies are made for: names and ids of one account, none of which can hold a wildcard or a policy variable.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use outstation_protocol::{AccountId, Region, TenantId};

use crate::account::guardrails::NamePrefix;

/// Where the policy holds, and for whose groups.
#[derive(Debug, Clone)]
pub struct Scope {
    pub partition: Partition,
    pub region: Region,
    pub account: AccountId,
    pub prefix: NamePrefix,
    pub tenant: TenantId,
    /// The AutoScaling group that the agent itself runs in.
    pub agent_group: Name,
}

#[derive(Debug, Clone)]
pub enum Profile {
    /// The customer made the groups; the agent sets how many nodes they have.
    ScaleOnly,
    /// The agent makes, changes and deletes groups.
    Manage(Box<Manage>),
}

/// The ceilings of a `manage` policy: what the guardrails say too.
#[derive(Debug, Clone)]
pub struct Manage {
    pub nodes_per_group_max: u32,
    pub launch_templates: Vec<LaunchTemplateId>,
    pub subnets: Vec<SubnetId>,
    pub images: Vec<ImageId>,
    pub instance_types: Vec<InstanceType>,
    pub instance_profile: Name,
    pub node_role: Name,
    /// The agent's own.
    pub agent_role: Name,
    pub agent_launch_template: LaunchTemplateId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Partition {
    Aws,
    AwsCn,
    AwsUsGov,
}

impl Partition {
    pub fn of(region: &Region) -> Partition {
        match region.as_str() {
            region if region.starts_with("cn-") => Partition::AwsCn,
            region if region.starts_with("us-gov-") => Partition::AwsUsGov,
            _ => Partition::Aws,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Partition::Aws => "aws",
            Partition::AwsCn => "aws-cn",
            Partition::AwsUsGov => "aws-us-gov",
        }
    }

    /// EC2 as `iam:PassedToService` knows it.
    pub fn ec2(self) -> &'static str {
        match self {
            Partition::Aws | Partition::AwsUsGov => "ec2.amazonaws.com",
            Partition::AwsCn => "ec2.amazonaws.com.cn",
        }
    }
}

macro_rules! checked {
    ($(#[$doc:meta])* $name:ident, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(String);

        impl FromStr for $name {
            type Err = String;
            fn from_str(raw: &str) -> Result<Self, String> {
                let check: fn(&str) -> bool = $check;
                if check(raw) { Ok($name(raw.to_owned())) } else { Err(format!("not {}", $rule)) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked!(
    /// Of a role, an instance profile or an AutoScaling group.
    Name, "1-64 letters, digits and any of _+=,.@-",
    |raw| (1..=64).contains(&raw.len())
        && raw.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b))
);
checked!(InstanceType, "an instance type such as c7i.large", |raw| raw.len() <= 32
    && raw.split_once('.').is_some_and(|(family, size)| !family.is_empty() && !size.is_empty())
    && raw.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-".contains(&b)));
checked!(LaunchTemplateId, "an id such as lt-0123456789abcdef0", |raw| is_id(raw, "lt-"));
checked!(SubnetId, "an id such as subnet-0123456789abcdef0", |raw| is_id(raw, "subnet-"));
checked!(ImageId, "an id such as ami-0123456789abcdef0", |raw| is_id(raw, "ami-"));

/// `prefix` and 8 or 17 hexadecimal digits.
fn is_id(raw: &str, prefix: &str) -> bool {
    raw.strip_prefix(prefix).is_some_and(|hex| {
        (hex.len() == 8 || hex.len() == 17)
            && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// The account of the shipped examples and of the tests.
#[doc(hidden)]
pub fn example() -> (Scope, Manage) {
    let scope = Scope {
        partition: Partition::Aws,
        region: Region::try_from("eu-central-1").expect("valid"),
        account: AccountId::try_from("123456789012").expect("valid"),
        prefix: NamePrefix::try_from("outstation-".to_owned()).expect("valid"),
        tenant: TenantId::try_from("example").expect("valid"),
        agent_group: "outstation-agent".parse().expect("valid"),
    };
    let manage = Manage {
        nodes_per_group_max: 40,
        launch_templates: vec!["lt-0123456789abcdef0".parse().expect("valid")],
        subnets: ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"]
            .map(|id| id.parse().expect("valid"))
            .into(),
        images: vec!["ami-0123456789abcdef0".parse().expect("valid")],
        instance_types: ["c7i.large", "c7i.xlarge"].map(|kind| kind.parse().expect("valid")).into(),
        instance_profile: "outstation-node".parse().expect("valid"),
        node_role: "outstation-node".parse().expect("valid"),
        agent_role: "outstation-agent".parse().expect("valid"),
        agent_launch_template: "lt-0fedcba9876543210".parse().expect("valid"),
    };
    (scope, manage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_policy_reads_as_more_gets_in() {
        for raw in ["*", "a*", "?", "${aws:username}", "a/b", "a:b", "", "a b", "a\"b"] {
            assert!(raw.parse::<Name>().is_err(), "{raw:?}");
            assert!(raw.parse::<InstanceType>().is_err(), "{raw:?}");
            assert!(format!("lt-{raw}").parse::<LaunchTemplateId>().is_err(), "{raw:?}");
            assert!(format!("subnet-{raw}").parse::<SubnetId>().is_err(), "{raw:?}");
            assert!(format!("ami-{raw}").parse::<ImageId>().is_err(), "{raw:?}");
            assert!(TenantId::try_from(raw).is_err(), "{raw:?}");
            assert!(NamePrefix::try_from(raw.to_owned()).is_err(), "{raw:?}");
        }
        for raw in ["c7i", ".large", "c7i.", "C7i.large", "c7i.*"] {
            assert!(raw.parse::<InstanceType>().is_err(), "{raw:?}");
        }
        assert!("m7i.metal-24xl".parse::<InstanceType>().is_ok());
        assert!("AwsRole_1+=,.@-".parse::<Name>().is_ok());
    }

    #[test]
    fn the_partition_follows_from_the_region() {
        for (region, partition) in [
            ("eu-central-1", "aws"),
            ("cn-north-1", "aws-cn"),
            ("us-gov-west-1", "aws-us-gov"),
            ("us-east-1", "aws"),
        ] {
            let region = Region::try_from(region).expect("valid");
            assert_eq!(Partition::of(&region).as_str(), partition);
        }
    }
}
