//! What is allowed and what is not, by hand. The mutants of `mutants.rs` are caught by these.

use std::collections::BTreeMap;

use outstation_aws_sim::model::Model;
use outstation_aws_sim::policy::checks::{self, Check};
use outstation_aws_sim::policy::{Policies, TemplateUse, Value};
use outstation_aws_sim::wire::query::Params;

use crate::account::{
    AGENT_TEMPLATE, NODE_TEMPLATE, STRANGE_SUBNET, STRANGE_TEMPLATE, SUBNETS, manage, model,
    scale_only, templates,
};
use Ask::{Call, Create, Direct};
use Held::{Manage, ManageBesideAll, ScaleOnly, ScaleOnlyBesideAll};
use Wanted::{Allowed, Denied};

pub struct Case {
    pub name: &'static str,
    pub held: Held,
    pub ask: Ask,
    pub wanted: Wanted,
}

/// Which policies the agent's role has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    ScaleOnly,
    Manage,
    /// Somebody has attached administrator rights as well: what is denied stays denied.
    ScaleOnlyBesideAll,
    ManageBesideAll,
}

pub enum Ask {
    /// An AutoScaling call: its action, then its parameters.
    Call(&'static str),
    /// The creation that is in order, with parameters changed; an empty value leaves one out.
    Create(&'static [(&'static str, &'static str)]),
    /// A call of another service, or one question of AWS about it: action, resource, context.
    Direct(&'static str, &'static str, &'static [(&'static str, &'static str)]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Allowed,
    Denied,
}

pub const ADMINISTRATOR: &str = r#"{"Version": "2012-10-17", "Statement": [
    {"Sid": "Everything", "Effect": "Allow", "Action": "*", "Resource": "*"}]}"#;

const CREATE: &[(&str, &str)] = &[
    ("AutoScalingGroupName", "outstation-new"),
    ("MinSize", "1"),
    ("MaxSize", "40"),
    ("LaunchTemplate.LaunchTemplateId", NODE_TEMPLATE),
    ("LaunchTemplate.Version", "1"),
    ("VPCZoneIdentifier", SUBNETS),
    ("Tags.member.1.Key", "outstation:tenant"),
    ("Tags.member.1.Value", "example"),
    ("Tags.member.2.Key", "outstation:group"),
    ("Tags.member.2.Value", "new"),
];

const fn case(name: &'static str, held: Held, ask: Ask, wanted: Wanted) -> Case {
    Case { name, held, ask, wanted }
}

const INSTANCE: &str = "arn:aws:ec2:eu-central-1:123456789012:instance/*";
const LT: &str = "arn:aws:ec2:eu-central-1:123456789012:launch-template/lt-0123456789abcdef0";
const PROFILE: &str = "arn:aws:iam::123456789012:instance-profile/outstation-node";
const NODE_ROLE: &str = "arn:aws:iam::123456789012:role/outstation-node";
const AGENT_ROLE: &str = "arn:aws:iam::123456789012:role/outstation-agent";
const OWN_TEMPLATE: &str =
    "arn:aws:ec2:eu-central-1:123456789012:launch-template/lt-0fedcba9876543210";

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    // Looking.
    case("sees groups", ScaleOnly, Call("DescribeAutoScalingGroups"), Allowed),
    case("sees instances", ScaleOnly, Call("DescribeAutoScalingInstances"), Allowed),
    case("scale-only sees policies", ScaleOnly, Call("DescribePolicies"), Allowed),
    case("scale-only sees no hooks", ScaleOnly, Call("DescribeLifecycleHooks AutoScalingGroupName=outstation-mine"), Denied),
    case("manage sees groups", Manage, Call("DescribeAutoScalingGroups"), Allowed),
    case("manage sees instances", Manage, Call("DescribeAutoScalingInstances"), Allowed),
    case("manage sees policies", Manage, Call("DescribePolicies AutoScalingGroupName=outstation-mine"), Allowed),
    case("manage sees hooks", Manage, Call("DescribeLifecycleHooks AutoScalingGroupName=outstation-mine"), Allowed),
    case("manage sees refreshes", Manage, Call("DescribeInstanceRefreshes AutoScalingGroupName=outstation-mine"), Allowed),
    case("sees no launch configurations", Manage, Call("DescribeLaunchConfigurations"), Denied),
    case("sees no instances of EC2", Manage, Direct("ec2:DescribeInstances", "arn:aws:ec2:eu-central-1:123456789012:*", &[]), Denied),

    // scale-only: a number within the customer's bounds, and the end of a drain.
    case("scale-only scales ours", ScaleOnly, Call("SetDesiredCapacity AutoScalingGroupName=outstation-mine DesiredCapacity=5"), Allowed),
    case("scale-only ends a drain", ScaleOnly, Call("CompleteLifecycleAction AutoScalingGroupName=outstation-mine LifecycleHookName=outstation-drain LifecycleActionResult=CONTINUE"), Allowed),
    case("scale-only scales no untagged group", ScaleOnly, Call("SetDesiredCapacity AutoScalingGroupName=outstation-untagged DesiredCapacity=5"), Denied),
    case("scale-only scales no other tenant's", ScaleOnly, Call("SetDesiredCapacity AutoScalingGroupName=outstation-others DesiredCapacity=5"), Denied),
    case("scale-only scales nothing beyond its prefix", ScaleOnly, Call("SetDesiredCapacity AutoScalingGroupName=shop-web DesiredCapacity=0"), Denied),
    case("scale-only scales nothing that is not there", ScaleOnly, Call("SetDesiredCapacity AutoScalingGroupName=outstation-absent DesiredCapacity=5"), Denied),
    case("scale-only leaves itself alone", ScaleOnly, Call("SetDesiredCapacity AutoScalingGroupName=outstation-agent DesiredCapacity=0"), Denied),
    case("scale-only leaves itself alone, whatever is attached", ScaleOnlyBesideAll, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-agent MaxSize=0"), Denied),
    case("administrator rights are administrator rights", ScaleOnlyBesideAll, Call("SetDesiredCapacity AutoScalingGroupName=shop-web DesiredCapacity=0"), Allowed),
    case("scale-only raises no maximum", ScaleOnly, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-mine MaxSize=11"), Denied),
    case("scale-only changes no template", ScaleOnly, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-mine LaunchTemplate.LaunchTemplateId=lt-0123456789abcdef0 LaunchTemplate.Version=2"), Denied),
    case("scale-only creates nothing", ScaleOnly, Create(&[]), Denied),
    case("scale-only deletes nothing", ScaleOnly, Call("DeleteAutoScalingGroup AutoScalingGroupName=outstation-mine"), Denied),
    case("scale-only tags nothing", ScaleOnly, Call("CreateOrUpdateTags Tags.member.1.ResourceId=outstation-mine Tags.member.1.Key=outstation:generation Tags.member.1.Value=3"), Denied),
    case("scale-only starts no refresh", ScaleOnly, Call("StartInstanceRefresh AutoScalingGroupName=outstation-mine"), Denied),
    case("scale-only puts no policy", ScaleOnly, Call("PutScalingPolicy AutoScalingGroupName=outstation-mine PolicyName=p"), Denied),
    case("scale-only protects nothing", ScaleOnly, Call("SetInstanceProtection AutoScalingGroupName=outstation-mine ProtectedFromScaleIn=true"), Denied),
    case("scale-only launches nothing", ScaleOnly, Direct("ec2:RunInstances", INSTANCE, &[("ec2:LaunchTemplate", LT), ("ec2:InstanceProfile", PROFILE), ("ec2:InstanceType", "c7i.large")]), Denied),
    case("scale-only passes no role", ScaleOnly, Direct("iam:PassRole", NODE_ROLE, &[("iam:PassedToService", "ec2.amazonaws.com")]), Denied),

    // Creation.
    case("creates what is in order", Manage, Create(&[]), Allowed),
    case("creates with the other type", Manage, Create(&[("LaunchTemplate.Version", "2")]), Allowed),
    case("creates in one of the subnets", Manage, Create(&[("VPCZoneIdentifier", "subnet-0123456789abcdef1")]), Allowed),
    case("creates in the first of the subnets", Manage, Create(&[("VPCZoneIdentifier", "subnet-0123456789abcdef0")]), Allowed),
    case("creates no group of more than the ceiling", Manage, Create(&[("MaxSize", "41")]), Denied),
    case("creates no group without a maximum", Manage, Create(&[("MaxSize", "")]), Denied),
    case("creates nothing beyond its prefix", Manage, Create(&[("AutoScalingGroupName", "shop-new")]), Denied),
    case("creates nothing untagged", Manage, Create(&[("Tags.member.1.Key", "team")]), Denied),
    case("creates nothing for another tenant", Manage, Create(&[("Tags.member.1.Value", "somebody-else")]), Denied),
    case("creates nothing in a strange subnet", Manage, Create(&[("VPCZoneIdentifier", STRANGE_SUBNET)]), Denied),
    case("creates nothing in a strange subnet beside ours", Manage, Create(&[("VPCZoneIdentifier", "subnet-0123456789abcdef0,subnet-00000000000000bad")]), Denied),
    case("creates nothing in default subnets", Manage, Create(&[("VPCZoneIdentifier", ""), ("AvailabilityZones.member.1", "eu-central-1a")]), Denied),
    case("no default subnets, whatever the launch may use", Manage, Direct("autoscaling:CreateAutoScalingGroup", "arn:aws:autoscaling:eu-central-1:123456789012:autoScalingGroup:*:autoScalingGroupName/outstation-new", &[("aws:RequestTag/outstation:tenant", "example"), ("autoscaling:MaxSize", "1"), ("autoscaling:LaunchTemplateVersionSpecified", "true")]), Denied),
    case("no strange subnet, whatever the launch may use", Manage, Direct("autoscaling:CreateAutoScalingGroup", "arn:aws:autoscaling:eu-central-1:123456789012:autoScalingGroup:*:autoScalingGroupName/outstation-new", &[("aws:RequestTag/outstation:tenant", "example"), ("autoscaling:MaxSize", "1"), ("autoscaling:LaunchTemplateVersionSpecified", "true"), ("autoscaling:VPCZoneIdentifiers", "subnet-00000000000000bad")]), Denied),
    case("creates nothing from the newest version", Manage, Create(&[("LaunchTemplate.Version", "$Latest")]), Denied),
    case("creates nothing from the default version", Manage, Create(&[("LaunchTemplate.Version", "$Default")]), Denied),
    case("creates nothing from no version", Manage, Create(&[("LaunchTemplate.Version", "")]), Denied),
    case("creates nothing from an unnumbered mixed policy", Manage, Create(&[("LaunchTemplate.LaunchTemplateId", ""), ("LaunchTemplate.Version", ""), ("MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.LaunchTemplateId", NODE_TEMPLATE)]), Denied),
    case("creates from a numbered mixed policy", Manage, Create(&[("LaunchTemplate.LaunchTemplateId", ""), ("LaunchTemplate.Version", ""), ("MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.LaunchTemplateId", NODE_TEMPLATE), ("MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.Version", "1"), ("MixedInstancesPolicy.LaunchTemplate.Overrides.member.1.InstanceType", "c7i.xlarge")]), Allowed),
    case("mixes no other types in", Manage, Create(&[("LaunchTemplate.LaunchTemplateId", ""), ("LaunchTemplate.Version", ""), ("MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.LaunchTemplateId", NODE_TEMPLATE), ("MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.Version", "1"), ("MixedInstancesPolicy.LaunchTemplate.Overrides.member.1.InstanceType", "p5.48xlarge")]), Denied),
    case("creates nothing from a launch configuration", Manage, Create(&[("LaunchTemplate.LaunchTemplateId", ""), ("LaunchTemplate.Version", ""), ("LaunchConfigurationName", "admin")]), Denied),
    case("creates no copy of an instance", Manage, Create(&[("LaunchTemplate.LaunchTemplateId", ""), ("LaunchTemplate.Version", ""), ("InstanceId", "i-0123456789abcdef0")]), Denied),
    case("creates nothing from a strange template", Manage, Create(&[("LaunchTemplate.LaunchTemplateId", STRANGE_TEMPLATE)]), Denied),
    case("creates nothing from the agent's template", Manage, Create(&[("LaunchTemplate.LaunchTemplateId", AGENT_TEMPLATE)]), Denied),
    case("creates nothing from another image", Manage, Create(&[("LaunchTemplate.Version", "3")]), Denied),
    case("creates nothing of another type", Manage, Create(&[("LaunchTemplate.Version", "4")]), Denied),
    case("creates no second agent", Manage, Create(&[("AutoScalingGroupName", "outstation-agent")]), Denied),
    case("no unnumbered creation, whatever is attached", ManageBesideAll, Create(&[("LaunchTemplate.Version", "$Latest")]), Denied),
    case("no launch configuration, whatever is attached", ManageBesideAll, Create(&[("LaunchTemplate.LaunchTemplateId", ""), ("LaunchTemplate.Version", ""), ("LaunchConfigurationName", "admin")]), Denied),
    case("no second agent, whatever is attached", ManageBesideAll, Create(&[("AutoScalingGroupName", "outstation-agent")]), Denied),
    case("others are created by whom it is given", ManageBesideAll, Create(&[("AutoScalingGroupName", "shop-new"), ("MaxSize", "500")]), Allowed),

    // Changes.
    case("changes bounds", Manage, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-mine MinSize=40 MaxSize=40 DesiredCapacity=40"), Allowed),
    case("changes to a numbered version", Manage, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-mine LaunchTemplate.LaunchTemplateName=outstation-node LaunchTemplate.Version=2"), Allowed),
    case("changes subnets among ours", Manage, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-mine VPCZoneIdentifier=subnet-0123456789abcdef1"), Allowed),
    case("changes to the first of our subnets", Manage, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-mine VPCZoneIdentifier=subnet-0123456789abcdef0"), Allowed),
    case("changes to no more than the ceiling", Manage, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-mine MaxSize=41"), Denied),
    case("changes to no strange subnet", Manage, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-mine VPCZoneIdentifier=subnet-00000000000000bad"), Denied),
    case("no change to a strange subnet, whatever the launch may use", Manage, Direct("autoscaling:UpdateAutoScalingGroup", "arn:aws:autoscaling:eu-central-1:123456789012:autoScalingGroup:1:autoScalingGroupName/outstation-mine", &[("aws:ResourceTag/outstation:tenant", "example"), ("autoscaling:VPCZoneIdentifiers", "subnet-00000000000000bad")]), Denied),
    case("changes to no newest version", Manage, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-mine LaunchTemplate.LaunchTemplateId=lt-0123456789abcdef0 LaunchTemplate.Version=$Latest"), Denied),
    case("changes to no strange template", Manage, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-mine LaunchTemplate.LaunchTemplateName=stranger LaunchTemplate.Version=1"), Denied),
    case("changes to no other type", Manage, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-mine LaunchTemplate.LaunchTemplateId=lt-0123456789abcdef0 LaunchTemplate.Version=4"), Denied),
    case("changes to no launch configuration", Manage, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-mine LaunchConfigurationName=admin"), Denied),
    case("changes no untagged group", Manage, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-untagged MaxSize=1"), Denied),
    case("changes no other tenant's group", Manage, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-others MaxSize=1"), Denied),
    case("changes nothing beyond its prefix", Manage, Call("UpdateAutoScalingGroup AutoScalingGroupName=shop-web MaxSize=1"), Denied),
    case("does not change itself", Manage, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-agent MaxSize=1"), Denied),
    case("no unnumbered change, whatever is attached", ManageBesideAll, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-mine LaunchTemplate.LaunchTemplateId=lt-0123456789abcdef0 LaunchTemplate.Version=$Default"), Denied),
    case("no change to a launch configuration, whatever is attached", ManageBesideAll, Call("UpdateAutoScalingGroup AutoScalingGroupName=outstation-mine LaunchConfigurationName=admin"), Denied),

    // What is done to a group that is ours.
    case("sets no count beside the bounds", Manage, Call("SetDesiredCapacity AutoScalingGroupName=outstation-mine DesiredCapacity=5"), Denied),
    case("ends a drain", Manage, Call("CompleteLifecycleAction AutoScalingGroupName=outstation-mine LifecycleHookName=outstation-drain LifecycleActionResult=CONTINUE"), Allowed),
    case("deletes ours", Manage, Call("DeleteAutoScalingGroup AutoScalingGroupName=outstation-mine"), Allowed),
    case("deletes ours without force, said aloud", Manage, Call("DeleteAutoScalingGroup AutoScalingGroupName=outstation-mine ForceDelete=false"), Allowed),
    case("puts the hook back", Manage, Call("PutLifecycleHook AutoScalingGroupName=outstation-mine LifecycleHookName=outstation-drain"), Allowed),
    case("puts a policy", Manage, Call("PutScalingPolicy AutoScalingGroupName=outstation-mine PolicyName=outstation"), Allowed),
    case("takes a policy away", Manage, Call("DeletePolicy AutoScalingGroupName=outstation-mine PolicyName=outstation"), Allowed),
    case("starts a refresh", Manage, Call("StartInstanceRefresh AutoScalingGroupName=outstation-mine DesiredConfiguration.LaunchTemplate.LaunchTemplateName=outstation-node DesiredConfiguration.LaunchTemplate.Version=2"), Allowed),
    case("stops a refresh", Manage, Call("CancelInstanceRefresh AutoScalingGroupName=outstation-mine"), Allowed),
    case("has a broken node replaced", Manage, Call("SetInstanceHealth InstanceId=@mine HealthStatus=Unhealthy"), Allowed),
    case("deletes by no force", Manage, Call("DeleteAutoScalingGroup AutoScalingGroupName=outstation-mine ForceDelete=true"), Denied),
    case("deletes by no force, whatever is attached", ManageBesideAll, Call("DeleteAutoScalingGroup AutoScalingGroupName=outstation-mine ForceDelete=true"), Denied),
    case("ends no drain of an untagged group", Manage, Call("CompleteLifecycleAction AutoScalingGroupName=outstation-untagged LifecycleHookName=outstation-drain LifecycleActionResult=CONTINUE"), Denied),
    case("ends no drain of another tenant's group", Manage, Call("CompleteLifecycleAction AutoScalingGroupName=outstation-others LifecycleHookName=outstation-drain LifecycleActionResult=CONTINUE"), Denied),
    case("ends no drain beyond its prefix", Manage, Call("CompleteLifecycleAction AutoScalingGroupName=shop-web LifecycleHookName=outstation-drain LifecycleActionResult=CONTINUE"), Denied),
    case("deletes nothing of another account", Manage, Direct("autoscaling:DeleteAutoScalingGroup", "arn:aws:autoscaling:eu-central-1:210987654321:autoScalingGroup:1:autoScalingGroupName/outstation-mine", &[("aws:ResourceTag/outstation:tenant", "example")]), Denied),
    case("deletes nothing of another region", Manage, Direct("autoscaling:DeleteAutoScalingGroup", "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:1:autoScalingGroupName/outstation-mine", &[("aws:ResourceTag/outstation:tenant", "example")]), Denied),
    case("does not scale itself", Manage, Call("SetDesiredCapacity AutoScalingGroupName=outstation-agent DesiredCapacity=0"), Denied),
    case("does not delete itself", Manage, Call("DeleteAutoScalingGroup AutoScalingGroupName=outstation-agent"), Denied),
    case("deletes no other tenant's group", Manage, Call("DeleteAutoScalingGroup AutoScalingGroupName=outstation-others"), Denied),
    case("replaces no node of a strange group", Manage, Call("SetInstanceHealth InstanceId=@untagged HealthStatus=Unhealthy"), Denied),
    case("replaces no node that nobody knows", Manage, Call("SetInstanceHealth InstanceId=i-00000000000000bad HealthStatus=Unhealthy"), Denied),
    case("refreshes to no other type", Manage, Call("StartInstanceRefresh AutoScalingGroupName=outstation-mine DesiredConfiguration.LaunchTemplate.LaunchTemplateName=outstation-node DesiredConfiguration.LaunchTemplate.Version=4"), Denied),
    case("refreshes to no strange template", Manage, Call("StartInstanceRefresh AutoScalingGroupName=outstation-mine DesiredConfiguration.LaunchTemplate.LaunchTemplateName=stranger DesiredConfiguration.LaunchTemplate.Version=1"), Denied),

    // What it never needs.
    case("terminates no instance", Manage, Call("TerminateInstanceInAutoScalingGroup InstanceId=@mine ShouldDecrementDesiredCapacity=true"), Denied),
    case("rolls no refresh back: AWS does so by itself", Manage, Call("RollbackInstanceRefresh AutoScalingGroupName=outstation-mine"), Denied),
    case("protects no instance", Manage, Call("SetInstanceProtection AutoScalingGroupName=outstation-mine ProtectedFromScaleIn=true"), Denied),
    case("schedules nothing: a maximum by the back door", Manage, Call("PutScheduledUpdateGroupAction AutoScalingGroupName=outstation-mine ScheduledActionName=night MaxSize=500"), Denied),
    case("attaches no instance", Manage, Call("AttachInstances AutoScalingGroupName=outstation-mine InstanceIds.member.1=i-00000000000000bad"), Denied),
    case("detaches no instance", Manage, Call("DetachInstances AutoScalingGroupName=outstation-mine ShouldDecrementDesiredCapacity=true"), Denied),
    case("suspends nothing", Manage, Call("SuspendProcesses AutoScalingGroupName=outstation-mine"), Denied),
    case("removes no hook", Manage, Call("DeleteLifecycleHook AutoScalingGroupName=outstation-mine LifecycleHookName=outstation-drain"), Denied),
    case("sends no notifications", Manage, Call("PutNotificationConfiguration AutoScalingGroupName=outstation-mine TopicARN=arn:aws:sns:eu-central-1:210987654321:t"), Denied),
    case("makes no launch configuration", Manage, Direct("autoscaling:CreateLaunchConfiguration", "arn:aws:autoscaling:eu-central-1:123456789012:launchConfiguration:*:launchConfigurationName/outstation-new", &[]), Denied),
    case("writes no launch template", Manage, Direct("ec2:CreateLaunchTemplateVersion", LT, &[]), Denied),
    case("terminates nothing by EC2", Manage, Direct("ec2:TerminateInstances", "arn:aws:ec2:eu-central-1:123456789012:instance/i-0123456789abcdef0", &[]), Denied),
    case("attaches no policy", Manage, Direct("iam:AttachRolePolicy", NODE_ROLE, &[]), Denied),
    case("assumes no role", Manage, Direct("sts:AssumeRole", "arn:aws:iam::123456789012:role/admin", &[]), Denied),

    // Tags.
    case("tags ours", Manage, Call("CreateOrUpdateTags Tags.member.1.ResourceId=outstation-mine Tags.member.1.Key=outstation:generation Tags.member.1.Value=3"), Allowed),
    case("tags no untagged group: nothing becomes ours", Manage, Call("CreateOrUpdateTags Tags.member.1.ResourceId=outstation-untagged Tags.member.1.Key=team Tags.member.1.Value=a"), Denied),
    case("gives itself no group", Manage, Call("CreateOrUpdateTags Tags.member.1.ResourceId=outstation-untagged Tags.member.1.Key=outstation:tenant Tags.member.1.Value=example"), Denied),
    case("gives no group away", Manage, Call("CreateOrUpdateTags Tags.member.1.ResourceId=outstation-mine Tags.member.1.Key=outstation:tenant Tags.member.1.Value=somebody-else"), Denied),
    case("renames no group", Manage, Call("CreateOrUpdateTags Tags.member.1.ResourceId=outstation-mine Tags.member.1.Key=outstation:group Tags.member.1.Value=other"), Denied),
    case("no other spelling of the tenant", Manage, Call("CreateOrUpdateTags Tags.member.1.ResourceId=outstation-mine Tags.member.1.Key=Outstation:Tenant Tags.member.1.Value=x"), Denied),
    case("no tenant hidden among others", Manage, Call("CreateOrUpdateTags Tags.member.1.ResourceId=outstation-mine Tags.member.1.Key=team Tags.member.1.Value=a Tags.member.2.ResourceId=outstation-mine Tags.member.2.Key=outstation:tenant Tags.member.2.Value=x"), Denied),
    case("tags no strange group beside ours", Manage, Call("CreateOrUpdateTags Tags.member.1.ResourceId=outstation-mine Tags.member.1.Key=team Tags.member.1.Value=a Tags.member.2.ResourceId=outstation-others Tags.member.2.Key=team Tags.member.2.Value=a"), Denied),
    case("tags nothing beyond its prefix", Manage, Call("CreateOrUpdateTags Tags.member.1.ResourceId=shop-web Tags.member.1.Key=team Tags.member.1.Value=a"), Denied),
    case("removes no tag", Manage, Call("DeleteTags Tags.member.1.ResourceId=outstation-mine Tags.member.1.Key=team"), Denied),
    case("the tenant's tag stays, whatever is attached", ManageBesideAll, Call("DeleteTags Tags.member.1.ResourceId=outstation-mine Tags.member.1.Key=outstation:tenant"), Denied),
    case("the group's tag stays, whatever is attached", ManageBesideAll, Call("CreateOrUpdateTags Tags.member.1.ResourceId=outstation-others Tags.member.1.Key=outstation:group Tags.member.1.Value=x"), Denied),
    case("other tags go, where that is given", ManageBesideAll, Call("DeleteTags Tags.member.1.ResourceId=outstation-mine Tags.member.1.Key=team"), Allowed),

    // EC2 and IAM, as somebody on the agent's host would ask them.
    case("launches as the template says", Manage, Direct("ec2:RunInstances", INSTANCE, &[("ec2:LaunchTemplate", LT), ("ec2:InstanceProfile", PROFILE), ("ec2:InstanceType", "c7i.large")]), Allowed),
    case("launches nothing without a template", Manage, Direct("ec2:RunInstances", INSTANCE, &[("ec2:InstanceProfile", PROFILE), ("ec2:InstanceType", "c7i.large")]), Denied),
    case("launches from no strange template", Manage, Direct("ec2:RunInstances", INSTANCE, &[("ec2:LaunchTemplate", "arn:aws:ec2:eu-central-1:123456789012:launch-template/lt-00000000000000bad"), ("ec2:InstanceProfile", PROFILE), ("ec2:InstanceType", "c7i.large")]), Denied),
    case("launches with no other profile", Manage, Direct("ec2:RunInstances", INSTANCE, &[("ec2:LaunchTemplate", LT), ("ec2:InstanceProfile", "arn:aws:iam::123456789012:instance-profile/admin"), ("ec2:InstanceType", "c7i.large")]), Denied),
    case("launches with no profile at all neither", Manage, Direct("ec2:RunInstances", INSTANCE, &[("ec2:LaunchTemplate", LT), ("ec2:InstanceType", "c7i.large")]), Denied),
    case("launches no other type", Manage, Direct("ec2:RunInstances", INSTANCE, &[("ec2:LaunchTemplate", LT), ("ec2:InstanceProfile", PROFILE), ("ec2:InstanceType", "p5.48xlarge")]), Denied),
    case("launches in no other region", Manage, Direct("ec2:RunInstances", "arn:aws:ec2:us-east-1:123456789012:instance/*", &[("ec2:LaunchTemplate", LT), ("ec2:InstanceProfile", PROFILE), ("ec2:InstanceType", "c7i.large")]), Denied),
    case("uses no other image", Manage, Direct("ec2:RunInstances", "arn:aws:ec2:eu-central-1::image/ami-00000000000000bad", &[("ec2:LaunchTemplate", LT)]), Denied),
    case("uses no other subnet", Manage, Direct("ec2:RunInstances", "arn:aws:ec2:eu-central-1:123456789012:subnet/subnet-00000000000000bad", &[("ec2:LaunchTemplate", LT)]), Denied),
    case("uses no other template", Manage, Direct("ec2:RunInstances", "arn:aws:ec2:eu-central-1:123456789012:launch-template/lt-00000000000000bad", &[]), Denied),
    case("uses no key pair", Manage, Direct("ec2:RunInstances", "arn:aws:ec2:eu-central-1:123456789012:key-pair/mine", &[("ec2:LaunchTemplate", LT)]), Denied),
    case("names no security group beside the template", Manage, Direct("ec2:RunInstances", "arn:aws:ec2:eu-central-1:123456789012:security-group/sg-00000000000000bad", &[("ec2:LaunchTemplate", LT), ("ec2:IsLaunchTemplateResource", "false")]), Denied),
    case("names no security group without a template", Manage, Direct("ec2:RunInstances", "arn:aws:ec2:eu-central-1:123456789012:security-group/sg-00000000000000bad", &[]), Denied),
    case("launches into no network of others", Manage, Direct("ec2:RunInstances", "arn:aws:ec2:eu-central-1:210987654321:security-group/sg-00000000000000bad", &[("ec2:LaunchTemplate", LT), ("ec2:IsLaunchTemplateResource", "true")]), Denied),
    case("tags what it launches", Manage, Direct("ec2:CreateTags", INSTANCE, &[("ec2:CreateAction", "RunInstances")]), Allowed),
    case("tags the volumes of it", Manage, Direct("ec2:CreateTags", "arn:aws:ec2:eu-central-1:123456789012:volume/*", &[("ec2:CreateAction", "RunInstances")]), Allowed),
    case("tags no volume that is made alone", Manage, Direct("ec2:CreateTags", "arn:aws:ec2:eu-central-1:123456789012:volume/*", &[("ec2:CreateAction", "CreateVolume")]), Denied),
    case("tags nothing that runs", Manage, Direct("ec2:CreateTags", "arn:aws:ec2:eu-central-1:123456789012:instance/i-0123456789abcdef0", &[]), Denied),
    case("tags no new template", Manage, Direct("ec2:CreateTags", "arn:aws:ec2:eu-central-1:123456789012:launch-template/*", &[("ec2:CreateAction", "CreateLaunchTemplate")]), Denied),
    case("tags no subnet", Manage, Direct("ec2:CreateTags", "arn:aws:ec2:eu-central-1:123456789012:subnet/subnet-0123456789abcdef0", &[("ec2:CreateAction", "RunInstances")]), Denied),
    case("passes the nodes' role to EC2", Manage, Direct("iam:PassRole", NODE_ROLE, &[("iam:PassedToService", "ec2.amazonaws.com")]), Allowed),
    case("passes it to nobody else", Manage, Direct("iam:PassRole", NODE_ROLE, &[("iam:PassedToService", "lambda.amazonaws.com")]), Denied),
    case("passes no other role", Manage, Direct("iam:PassRole", "arn:aws:iam::123456789012:role/admin", &[("iam:PassedToService", "ec2.amazonaws.com")]), Denied),
    case("passes no role of its own", Manage, Direct("iam:PassRole", AGENT_ROLE, &[("iam:PassedToService", "ec2.amazonaws.com")]), Denied),
    case("its own role is closed, whatever is attached", ManageBesideAll, Direct("iam:AttachRolePolicy", AGENT_ROLE, &[]), Denied),
    case("its own template is closed, whatever is attached", ManageBesideAll, Direct("ec2:CreateLaunchTemplateVersion", OWN_TEMPLATE, &[]), Denied),
    case("its own group is closed, whatever is attached", ManageBesideAll, Call("SetDesiredCapacity AutoScalingGroupName=outstation-agent DesiredCapacity=0"), Denied),
    case("what else is attached works", ManageBesideAll, Direct("iam:AttachRolePolicy", NODE_ROLE, &[]), Allowed),
    case("what else is attached works in EC2", ManageBesideAll, Direct("ec2:CreateLaunchTemplateVersion", LT, &[]), Allowed),
];

/// The cases with what AWS would ask IAM for each.
pub struct Bench(Vec<(&'static Case, Vec<Check>)>);

impl Bench {
    pub fn new() -> Bench {
        let (model, templates) = (model(), templates());
        Bench(CASES.iter().map(|case| (case, asked(&case.ask, &model, &templates))).collect())
    }

    /// The names of the cases that do not end as they must under these policies.
    pub fn failures(&self, scale_only: &str, manage: &str) -> Vec<&'static str> {
        let parse = |documents: &[&str]| Policies::parse(documents.iter().copied()).expect("valid");
        let (narrow, wide) = (parse(&[scale_only]), parse(&[manage]));
        let narrow_beside_all = parse(&[scale_only, ADMINISTRATOR]);
        let wide_beside_all = parse(&[manage, ADMINISTRATOR]);
        let fails = |(case, checks): &&(&'static Case, Vec<Check>)| {
            let policies = match case.held {
                ScaleOnly => &narrow,
                Manage => &wide,
                ScaleOnlyBesideAll => &narrow_beside_all,
                ManageBesideAll => &wide_beside_all,
            };
            let allowed = checks.iter().all(|check| policies.judge(check).allowed);
            allowed != (case.wanted == Allowed)
        };
        self.0.iter().filter(fails).map(|(case, _)| case.name).collect()
    }
}

fn asked(ask: &Ask, model: &Model, templates: &BTreeMap<String, TemplateUse>) -> Vec<Check> {
    let of = |action: &str, parameters: &[(String, String)]| {
        let form: Vec<String> = parameters
            .iter()
            .map(|(name, value)| format!("{name}={}", value.replace('$', "%24")))
            .collect();
        checks::of(model, templates, action, &Params::parse(&form.join("&")))
    };
    match ask {
        Call(text) => {
            let mut words = text.split(' ');
            let action = words.next().expect("an action");
            let parameters: Vec<(String, String)> = words
                .map(|word| word.split_once('=').expect("name=value"))
                .map(|(name, value)| (name.to_owned(), instance_of(model, value)))
                .collect();
            of(action, &parameters)
        }
        Create(changes) => {
            let mut parameters: BTreeMap<&str, &str> = CREATE.iter().copied().collect();
            parameters.extend(changes.iter().copied());
            let owned: Vec<(String, String)> = parameters
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            of("CreateAutoScalingGroup", &owned)
        }
        Direct(action, resource, context) => {
            let value = |key: &str, text: &str| match text {
                "true" | "false" => Value::Bool(text == "true"),
                _ if key == "autoscaling:VPCZoneIdentifiers" => Value::Texts(vec![text.to_owned()]),
                _ => Value::Text(text.to_owned()),
            };
            let context =
                context.iter().map(|(key, text)| ((*key).to_owned(), value(key, text))).collect();
            let (action, resource) = ((*action).to_owned(), (*resource).to_owned());
            vec![Check { action, resource, context, template: None }]
        }
    }
}

/// `@mine` is an instance of `outstation-mine`.
fn instance_of(model: &Model, value: &str) -> String {
    let Some(group) = value.strip_prefix('@') else { return value.to_owned() };
    let group = format!("outstation-{group}");
    let found = model.instances().find(|instance| instance.group.as_str() == group);
    found.expect("each group has one").id.to_string()
}

#[test]
fn every_case_ends_as_it_must() {
    let failures = Bench::new().failures(&scale_only().to_json(), &manage().to_json());
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(CASES.len() >= 80);
    let names: std::collections::BTreeSet<&str> = CASES.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), CASES.len(), "each has a name of its own");
}
