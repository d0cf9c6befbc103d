//! The two policies, `scale-only` and `manage`: from the table of calls and one account's names to statements.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::calls::{Grant, granted};
use super::parameters::{Manage, Profile, Scope};
use crate::account::plan::{TAG_GROUP, TAG_TENANT};

/// What AWS takes for one managed policy, white space not counted (IAM user guide, quotas).
pub const POLICY_CHARS_MAX: usize = 6144;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Policy {
    version: &'static str,
    pub statement: Vec<Statement>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Statement {
    pub sid: &'static str,
    pub effect: Effect,
    #[serde(serialize_with = "alone_or_list")]
    pub action: Vec<String>,
    #[serde(serialize_with = "alone_or_list")]
    pub resource: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub condition: BTreeMap<&'static str, BTreeMap<String, Values>>,
    /// For people; AWS has no place for it.
    #[serde(skip)]
    pub why: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Effect {
    Allow,
    Deny,
}

/// Any of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Values(#[serde(serialize_with = "alone_or_list")] pub Vec<String>);

/// AWS reads both alike; the shorter one leaves more room.
fn alone_or_list<S: Serializer>(values: &Vec<String>, serializer: S) -> Result<S::Ok, S::Error> {
    match values.as_slice() {
        [one] => serializer.serialize_str(one),
        many => many.serialize(serializer),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the policy has {chars} characters, and AWS takes {POLICY_CHARS_MAX}")]
pub struct TooLong {
    pub chars: usize,
}

impl Policy {
    pub(super) fn of(statement: Vec<Statement>) -> Result<Policy, TooLong> {
        let policy = Policy { version: "2012-10-17", statement };
        match policy.chars() {
            chars if chars > POLICY_CHARS_MAX => Err(TooLong { chars }),
            _ => Ok(policy),
        }
    }

    /// As it is shown and shipped.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("strings and lists only");
        text.push('\n');
        text
    }

    pub fn chars(&self) -> usize {
        serde_json::to_string(self).expect("strings and lists only").chars().count()
    }
}

pub fn policy(scope: &Scope, profile: &Profile) -> Result<Policy, TooLong> {
    Policy::of(match profile {
        Profile::ScaleOnly => scale_only(scope),
        Profile::Manage(manage) => manages(scope, manage),
    })
}

fn scale_only(scope: &Scope) -> Vec<Statement> {
    vec![
        look(true),
        allow(
            Grant::Steer,
            true,
            vec![scope.groups()],
            "Only groups of this name and with the tenant's tag: both are the customer's to give. How \
             many nodes a group may have at most is in the group itself, and this profile cannot change it.",
        )
        .when("StringEquals", "aws:ResourceTag/outstation:tenant", [scope.tenant.as_str()]),
        deny(
            "NeverItself",
            &["autoscaling:*"],
            vec![scope.group(&scope.agent_group.to_string())],
            "The agent's own group is out of its reach, whatever tags it has and whatever else is attached \
             to the role.",
        ),
    ]
}

fn manages(scope: &Scope, manage: &Manage) -> Vec<Statement> {
    let groups = || vec![scope.groups()];
    let subnets: Vec<String> = manage.subnets.iter().map(ToString::to_string).collect();
    let templates: Vec<String> =
        manage.launch_templates.iter().map(|id| scope.ec2("launch-template", id)).collect();
    let profile = scope.iam("instance-profile", &manage.instance_profile);
    let nodes_max = manage.nodes_per_group_max.to_string();
    let mut launch_from = templates.clone();
    launch_from.extend(manage.images.iter().map(|id| scope.image(id)));
    launch_from.extend(manage.subnets.iter().map(|id| scope.ec2("subnet", id)));
    launch_from.push(scope.ec2("network-interface", "*"));
    launch_from.push(scope.ec2("volume", "*"));
    vec![
        look(false),
        allow(
            Grant::Create,
            false,
            groups(),
            "Only under our prefix, born with the tenant's tag, no larger than the guardrails' ceiling, in \
             the subnets that were named and in no default one.",
        )
        .when("StringEquals", "aws:RequestTag/outstation:tenant", [scope.tenant.as_str()])
        .when("NumericLessThanEquals", "autoscaling:MaxSize", [nodes_max.clone()])
        .when("ForAllValues:StringEquals", "autoscaling:VPCZoneIdentifiers", subnets.clone())
        // Of no values at all, all are among the subnets.
        .when("Null", "autoscaling:VPCZoneIdentifiers", ["false"]),
        allow(
            Grant::Change,
            false,
            groups(),
            "Only groups with the tenant's tag. What an update does not name stays as it is, so the \
             ceiling and the subnets bind only where they are named.",
        )
        .when("StringEquals", "aws:ResourceTag/outstation:tenant", [scope.tenant.as_str()])
        .when("NumericLessThanEqualsIfExists", "autoscaling:MaxSize", [nodes_max])
        .when("ForAllValues:StringEquals", "autoscaling:VPCZoneIdentifiers", subnets),
        allow(
            Grant::Steer,
            false,
            groups(),
            "Only groups with the tenant's tag. AWS has no key for the numbers in these calls: a refresh is \
             refresh are bounded by the guardrails alone.",
        )
        .when("StringEquals", "aws:ResourceTag/outstation:tenant", [scope.tenant.as_str()]),
        allow(
            Grant::Tag,
            false,
            groups(),
            "Only groups that are ours already: tagging cannot make a group ours.",
        )
        .when("StringEquals", "aws:ResourceTag/outstation:tenant", [scope.tenant.as_str()]),
        allow(
            Grant::LaunchInstance,
            false,
            vec![scope.ec2("instance", "*")],
            "From the named launch templates only, of the named types, with the nodes' instance profile. \
             The type is bound here and not by autoscaling:InstanceTypes, which an absent key passes.",
        )
        .when("ArnEquals", "ec2:LaunchTemplate", templates)
        .when("ArnEquals", "ec2:InstanceProfile", [profile])
        .when(
            "StringEquals",
            "ec2:InstanceType",
            manage.instance_types.iter().map(ToString::to_string),
        ),
        allow(
            Grant::LaunchFrom,
            false,
            launch_from,
            "The templates, images and subnets by id. Interfaces and volumes are made with the instance and \
             have no id before. That the template is used at all is asked of the instance.",
        ),
        allow(
            Grant::LaunchBehind,
            false,
            vec![scope.ec2("security-group", "*")],
            "Security groups as the template names them; nobody can name another one beside it.",
        )
        .when("Bool", "ec2:IsLaunchTemplateResource", ["true"]),
        allow(
            Grant::TagLaunched,
            false,
            vec![scope.ec2("instance", "*"), scope.ec2("volume", "*")],
            "At launch only: what runs already cannot be tagged.",
        )
        .when("StringEquals", "ec2:CreateAction", ["RunInstances"]),
        allow(
            Grant::PassNodeRole,
            false,
            vec![scope.iam("role", &manage.node_role)],
            "The nodes' role, to EC2, and no other role to nobody else.",
        )
        .when("StringEquals", "iam:PassedToService", [scope.partition.ec2()]),
        deny(
            "NeverItself",
            &["autoscaling:*", "ec2:*", "iam:*"],
            vec![
                scope.group(&scope.agent_group.to_string()),
                scope.ec2("launch-template", &manage.agent_launch_template),
                scope.iam("role", &manage.agent_role),
            ],
            "The agent's own group, launch template and role are out of its reach, whatever tags they have \
             and whatever else is attached to the role.",
        ),
        deny(
            "NeverUnnumbered",
            &["autoscaling:CreateAutoScalingGroup", "autoscaling:UpdateAutoScalingGroup"],
            vec!["*".to_owned()],
            "$Latest and $Default would let whoever writes the template change what runs without AWS asking \
             again.",
        )
        .when("Bool", "autoscaling:LaunchTemplateVersionSpecified", ["false"]),
        deny(
            "NeverWithoutTemplate",
            &["autoscaling:CreateAutoScalingGroup"],
            vec!["*".to_owned()],
            "Without a launch template there is no version to look at: a launch configuration, or a copy of \
             an instance.",
        )
        .when("Null", "autoscaling:LaunchTemplateVersionSpecified", ["true"]),
        deny(
            "NeverByConfiguration",
            &["autoscaling:UpdateAutoScalingGroup"],
            vec!["*".to_owned()],
            "A launch configuration that lies about has its own role and user data, and using it is not \
             checked again.",
        )
        .when("Null", "autoscaling:LaunchConfigurationName", ["false"]),
        deny(
            "NeverForce",
            &["autoscaling:DeleteAutoScalingGroup"],
            vec!["*".to_owned()],
            "ForceDelete cuts drains off: a group goes when it is empty.",
        )
        .when("Bool", "autoscaling:ForceDelete", ["true"]),
        deny(
            "NeverReowned",
            &["autoscaling:CreateOrUpdateTags", "autoscaling:DeleteTags"],
            vec!["*".to_owned()],
            "Whose a group is, is said when it is created, and never again. In any spelling: condition \
             keys, aws:ResourceTag among them, do not tell upper from lower case.",
        )
        .when("ForAnyValue:StringEqualsIgnoreCase", "aws:TagKeys", [TAG_TENANT, TAG_GROUP]),
    ]
}

fn look(scale_only: bool) -> Statement {
    let all = vec!["*".to_owned()];
    allow(
        Grant::Look,
        scale_only,
        all,
        "AWS cannot narrow these by resource or condition, so the agent sees every group of the account. It \
         reports only those that bear its prefix and its tenant's tag.",
    )
}

fn allow(grant: Grant, scale_only: bool, resource: Vec<String>, why: &'static str) -> Statement {
    let action = granted(grant, scale_only).map(|call| call.action.to_owned()).collect();
    Statement {
        sid: grant.sid(),
        effect: Effect::Allow,
        action,
        resource,
        condition: BTreeMap::new(),
        why,
    }
}

fn deny(
    sid: &'static str,
    actions: &[&str],
    resource: Vec<String>,
    why: &'static str,
) -> Statement {
    let action = actions.iter().map(|action| (*action).to_owned()).collect();
    Statement { sid, effect: Effect::Deny, action, resource, condition: BTreeMap::new(), why }
}

impl Statement {
    pub(super) fn when(
        mut self,
        operator: &'static str,
        key: &str,
        values: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let values = Values(values.into_iter().map(Into::into).collect());
        self.condition.entry(operator).or_default().insert(key.to_owned(), values);
        self
    }
}

impl Scope {
    fn arn(&self, service: &str, region: &str, account: &str, resource: &str) -> String {
        format!("arn:{}:{service}:{region}:{account}:{resource}", self.partition.as_str())
    }

    /// By name: the id between the colons is made by AWS, and is `*` while the group is created.
    fn group(&self, name: &str) -> String {
        let resource = format!("autoScalingGroup:*:autoScalingGroupName/{name}");
        self.arn("autoscaling", self.region.as_str(), self.account.as_str(), &resource)
    }

    fn groups(&self) -> String {
        self.group(&format!("{}*", self.prefix))
    }

    fn ec2(&self, kind: &str, id: impl std::fmt::Display) -> String {
        self.arn("ec2", self.region.as_str(), self.account.as_str(), &format!("{kind}/{id}"))
    }

    /// An image belongs to its region alone, whoever made it.
    fn image(&self, id: impl std::fmt::Display) -> String {
        self.arn("ec2", self.region.as_str(), "", &format!("image/{id}"))
    }

    fn iam(&self, kind: &str, name: impl std::fmt::Display) -> String {
        self.arn("iam", "", self.account.as_str(), &format!("{kind}/{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::parameters::example;
    use super::*;

    fn both() -> [Policy; 2] {
        let (scope, manage) = example();
        [
            policy(&scope, &Profile::ScaleOnly).expect("short"),
            policy(&scope, &Profile::Manage(Box::new(manage))).expect("short"),
        ]
    }

    #[test]
    fn no_mutating_action_is_allowed_on_everything() {
        for statement in both().iter().flat_map(|policy| &policy.statement) {
            let mutates = statement.action.iter().any(|action| !action.contains(":Describe"));
            let is_broad = statement.resource.iter().any(|resource| resource == "*");
            assert!(statement.effect == Effect::Deny || !(mutates && is_broad), "{statement:?}");
            assert!(!statement.why.is_empty(), "{statement:?}");
            let wild = statement.action.iter().any(|action| action.contains('*'));
            assert!(statement.effect == Effect::Deny || !wild, "{statement:?}");
        }
    }

    #[test]
    fn scale_only_changes_two_things() {
        let [scale_only, _] = both();
        let mutating: Vec<&str> = scale_only
            .statement
            .iter()
            .filter(|statement| statement.effect == Effect::Allow)
            .flat_map(|statement| &statement.action)
            .map(String::as_str)
            .filter(|action| !action.contains(":Describe"))
            .collect();
        let wanted = ["autoscaling:SetDesiredCapacity", "autoscaling:CompleteLifecycleAction"];
        assert_eq!(mutating, wanted);
    }

    #[test]
    fn too_much_for_one_policy_is_said() {
        let (scope, mut manage) = example();
        manage.subnets = vec![manage.subnets[0].clone(); 60];
        let error = policy(&scope, &Profile::Manage(Box::new(manage))).expect_err("too long");
        assert!(error.chars > POLICY_CHARS_MAX, "{error}");
    }
}
