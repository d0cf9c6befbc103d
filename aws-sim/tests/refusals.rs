//! What AutoScaling refuses, with its code and message. Each case runs against an account with group `g` (one instance, a
//! hook `drain`), and a refused call must change nothing.

mod common;

use common::{Account, DRAIN, TEMPLATE, basic};

fn check(cases: &[(&str, String, &str)]) {
    for (action, form, expected) in cases {
        let mut account = Account::new();
        account.group(1, DRAIN);
        let before = account.call("DescribeAutoScalingGroups", "").unwrap();
        let got = account.call(action, form).expect_err(&format!("{action} {form} was accepted"));
        assert!(got.starts_with(expected), "{action} {form}\n     got {got}\nexpected {expected}");
        let after = account.call("DescribeAutoScalingGroups", "").unwrap();
        assert_eq!(strip(&before), strip(&after), "{action} {form} changed something");
    }
}

/// Without the request id.
fn strip(body: &str) -> &str {
    body.split("<ResponseMetadata>").next().unwrap()
}

#[test]
fn groups() {
    let create = |form: &str| ("CreateAutoScalingGroup", form.to_owned());
    let update = |form: &str| ("UpdateAutoScalingGroup", format!("AutoScalingGroupName=g {form}"));
    let desired = |form: &str| ("SetDesiredCapacity", form.to_owned());
    let zone = "AvailabilityZones.member.1=eu-central-1a";
    let tag = "Tags.member.1.Key";
    let cases: Vec<((&str, String), &str)> = vec![
        (
            create(&basic("g")),
            "AlreadyExists: AutoScalingGroup by this name already exists - A group with the name g already exists",
        ),
        (
            create(""),
            "ValidationError: 1 validation error detected: Value 'null' at 'autoScalingGroupName'",
        ),
        (
            create(&basic("a:b")),
            "ValidationError: 1 validation error detected: Value 'a:b' at 'autoScalingGroupName'",
        ),
        (create(&basic(&"x".repeat(256))), "ValidationError: 1 validation error detected"),
        (
            create(&format!("AutoScalingGroupName=n MinSize=2 MaxSize=1 {zone} {TEMPLATE}")),
            "ValidationError: Max bound, 1, must be",
        ),
        (
            create(&format!(
                "AutoScalingGroupName=n MinSize=0 MaxSize=1 DesiredCapacity=2 {zone} {TEMPLATE}"
            )),
            "ValidationError: Desired capacity:2 must be between the specified min size:0 and max size:1",
        ),
        (
            create(&format!(
                "AutoScalingGroupName=n MinSize=1 MaxSize=1 DesiredCapacity=0 {zone} {TEMPLATE}"
            )),
            "ValidationError: Desired capacity:0 must be between",
        ),
        (
            create(&format!("AutoScalingGroupName=n MaxSize=1 {zone} {TEMPLATE}")),
            "ValidationError: 1 validation error detected: Value 'null' at 'minSize'",
        ),
        (
            create(&format!("AutoScalingGroupName=n MinSize=-1 MaxSize=1 {zone} {TEMPLATE}")),
            "ValidationError: 1 validation error detected: Value '-1' at 'minSize'",
        ),
        (
            create(&format!("AutoScalingGroupName=n MinSize=x MaxSize=1 {zone} {TEMPLATE}")),
            "ValidationError: Value (x) for parameter MinSize",
        ),
        (
            create(&format!("AutoScalingGroupName=n MinSize=0 MaxSize=1 {zone}")),
            "ValidationError: Valid requests must contain either LaunchTemplate",
        ),
        (
            create(&format!("AutoScalingGroupName=n MinSize=0 MaxSize=1 {TEMPLATE}")),
            "ValidationError: At least one Availability Zone or VPC Subnet is required.",
        ),
        (
            create(&format!("{} AvailabilityZones.member.2=us-east-1a", basic("n"))),
            "ValidationError: Invalid availability zone",
        ),
        (
            create(&format!(
                "AutoScalingGroupName=n MinSize=0 MaxSize=1 VPCZoneIdentifier=subnet-9 {TEMPLATE}"
            )),
            "ValidationError: The subnet ID 'subnet-9' does not exist",
        ),
        (
            create(&format!(
                "AutoScalingGroupName=n MinSize=0 MaxSize=1 {zone} VPCZoneIdentifier=subnet-2 {TEMPLATE}"
            )),
            "ValidationError: The availability zones of the specified subnets and the AutoScalingGroup do not match",
        ),
        (
            create(&format!(
                "AutoScalingGroupName=n MinSize=0 MaxSize=1 {zone} LaunchTemplate.LaunchTemplateName=other"
            )),
            "ValidationError: You must use a valid fully-formed launch template. The specified launch template, with template name other",
        ),
        (
            create(&format!(
                "AutoScalingGroupName=n MinSize=0 MaxSize=1 {zone} LaunchTemplate.LaunchTemplateName=outstation-node LaunchTemplate.Version=9"
            )),
            "ValidationError: You must use a valid fully-formed launch template. Could not find launch template version 9",
        ),
        (
            create(&format!("{} LaunchTemplate.LaunchTemplateId=lt-0123456789abcdef0", basic("n"))),
            "ValidationError: Valid requests must contain either launchTemplateId or LaunchTemplateName",
        ),
        (
            create(&format!("{} HealthCheckType=HTTP", basic("n"))),
            "ValidationError: Invalid HealthCheckType",
        ),
        (
            create(&format!("{} TerminationPolicies.member.1=Random", basic("n"))),
            "ValidationError: Invalid termination policy",
        ),
        (
            create(&format!("{} TerminationPolicies.member.1=AllocationStrategy", basic("n"))),
            "NotSimulated:",
        ),
        (
            create(&format!("{} MixedInstancesPolicy.LaunchTemplate.X=1", basic("n"))),
            "NotSimulated: The simulated AWS does not know parameter MixedInstancesPolicy.LaunchTemplate.X of CreateAutoScalingGroup.",
        ),
        (create(&format!("{} MaxInstanceLifetime=86400", basic("n"))), "NotSimulated:"),
        (
            create(&format!("{} {tag}=aws:x", basic("n"))),
            "ValidationError: Tag keys starting with 'aws:'",
        ),
        (
            create(&format!("{} {tag}={}", basic("n"), "k".repeat(129))),
            "ValidationError: 1 validation error detected",
        ),
        (
            create(&format!("{} {tag}=k Tags.member.1.Value={}", basic("n"), "v".repeat(257))),
            "ValidationError: 1 validation error detected",
        ),
        (
            create(&format!("{} {tag}=k Tags.member.2.Key=k", basic("n"))),
            "ValidationError: Duplicate tag key k",
        ),
        (create(&format!("{} {}", basic("n"), many_tags(51))), "LimitExceeded:"),
        (
            update("MinSize=11"),
            "ValidationError: Max bound, 10, must be greater than or equal to min bound, 11",
        ),
        (update("DesiredCapacity=11"), "ValidationError: Desired capacity:11 must be between"),
        (update("DefaultCooldown=1 MinSize=11"), "ValidationError: Max bound"),
        (
            ("UpdateAutoScalingGroup", "AutoScalingGroupName=none MinSize=0".to_owned()),
            "ValidationError: AutoScalingGroup name not found",
        ),
        (
            update("AvailabilityZones.member.1=eu-central-1z"),
            "ValidationError: Invalid availability zone",
        ),
        (
            desired("AutoScalingGroupName=g DesiredCapacity=11"),
            "ValidationError: New SetDesiredCapacity value 11 is above max value 10 for the AutoScalingGroup.",
        ),
        (
            desired("AutoScalingGroupName=g DesiredCapacity=-1"),
            "ValidationError: 1 validation error detected: Value '-1' at 'desiredCapacity'",
        ),
        (
            desired("AutoScalingGroupName=g"),
            "ValidationError: 1 validation error detected: Value 'null' at 'desiredCapacity'",
        ),
        (
            desired("AutoScalingGroupName=none DesiredCapacity=1"),
            "ValidationError: AutoScalingGroup name not found",
        ),
        (
            ("DeleteAutoScalingGroup", "AutoScalingGroupName=g".to_owned()),
            "ResourceInUse: You cannot delete an AutoScalingGroup while there are instances",
        ),
        (
            ("DeleteAutoScalingGroup", "AutoScalingGroupName=none".to_owned()),
            "ValidationError: AutoScalingGroup name not found",
        ),
        (
            ("DeletePlacementGroup", "AutoScalingGroupName=g".to_owned()),
            "InvalidAction: Could not find operation DeletePlacementGroup for version 2011-01-01",
        ),
    ];
    let cases: Vec<_> =
        cases.into_iter().map(|((action, form), expected)| (action, form, expected)).collect();
    check(&cases);
}

fn many_tags(count: usize) -> String {
    (1..=count).map(|index| format!("Tags.member.{index}.Key=k{index} ")).collect()
}

#[test]
fn hooks_tags_instances_and_pages() {
    let hook = |form: &str| {
        ("PutLifecycleHook", format!("AutoScalingGroupName=g LifecycleHookName=h {form}"))
    };
    let complete = |form: &str| {
        (
            "CompleteLifecycleAction",
            format!("AutoScalingGroupName=g LifecycleActionResult=CONTINUE {form}"),
        )
    };
    let transition = "LifecycleTransition=autoscaling:EC2_INSTANCE_LAUNCHING";
    let ghost = "InstanceId=i-00000000000000000";
    let no_instance = "ValidationError: Instance Id not found - No managed instance found for instance ID: i-00000000000000000";
    let cases: Vec<((&str, String), &str)> = vec![
        (hook(""), "ValidationError: Lifecycle transition is required"),
        (hook("LifecycleTransition=launching"), "ValidationError: Invalid lifecycle transition"),
        (hook(&format!("{transition} HeartbeatTimeout=29")), "ValidationError: Heartbeat timeout of 29 seconds"),
        (hook(&format!("{transition} HeartbeatTimeout=7201")), "ValidationError: Heartbeat timeout of 7201 seconds"),
        (hook(&format!("{transition} DefaultResult=STOP")), "ValidationError: Invalid lifecycle action result STOP"),
        (hook(&format!("{transition} RoleARN=arn:aws:iam::1:role/x")), "NotSimulated:"),
        (("DeleteLifecycleHook", "AutoScalingGroupName=g LifecycleHookName=none".to_owned()), "ValidationError: No Lifecycle Hook found with name: none"),
        (complete(&format!("LifecycleHookName=none {ghost}")), "ValidationError: No Lifecycle Hook found with name: none"),
        (complete(&format!("LifecycleHookName=drain {ghost}")), "ValidationError: No active Lifecycle Action found with instance ID i-00000000000000000"),
        (complete("LifecycleHookName=drain LifecycleActionToken=00000000-0000-4000-8000-000000000000"), "ValidationError: No active Lifecycle Action found with token 00000000"),
        (complete("LifecycleHookName=drain"), "ValidationError: Either LifecycleActionToken or InstanceId must be specified"),
        (("TerminateInstanceInAutoScalingGroup", format!("{ghost} ShouldDecrementDesiredCapacity=false")), no_instance),
        (("TerminateInstanceInAutoScalingGroup", ghost.to_owned()), "ValidationError: 1 validation error detected: Value 'null' at 'shouldDecrementDesiredCapacity'"),
        (("SetInstanceHealth", format!("{ghost} HealthStatus=Unhealthy")), no_instance),
        (("SetInstanceHealth", format!("{ghost} HealthStatus=Sick")), "ValidationError: Valid instance health states are: [Healthy, Unhealthy]."),
        (
            ("SetInstanceProtection", "AutoScalingGroupName=g InstanceIds.member.1=i-0 ProtectedFromScaleIn=true".to_owned()),
            "ValidationError: The instance i-0 is not part of Auto Scaling group g.",
        ),
        (
            ("CreateOrUpdateTags", "Tags.member.1.ResourceId=none Tags.member.1.ResourceType=auto-scaling-group Tags.member.1.Key=k".to_owned()),
            "ValidationError: AutoScalingGroup name not found",
        ),
        (("CreateOrUpdateTags", "Tags.member.1.ResourceId=g Tags.member.1.ResourceType=instance Tags.member.1.Key=k".to_owned()), "ValidationError: Invalid resource type"),
        (("CreateOrUpdateTags", (1..=51).map(|at| format!("Tags.member.{at}.ResourceId=g Tags.member.{at}.Key=k{at} ")).collect()), "LimitExceeded:"),
        (("DescribeAutoScalingGroups", "MaxRecords=101".to_owned()), "ValidationError: 1 validation error detected: Value '101' at 'maxRecords'"),
        (("DescribeAutoScalingGroups", "MaxRecords=0".to_owned()), "ValidationError: 1 validation error detected: Value '0' at 'maxRecords'"),
        (("DescribeAutoScalingGroups", "NextToken=nonsense".to_owned()), "InvalidNextToken: The token 'nonsense' is invalid."),
        (("DescribeScalingActivities", "NextToken=nonsense".to_owned()), "InvalidNextToken"),
        (("DescribeAutoScalingGroups", "Filters.member.1.Name=name Filters.member.1.Values.member.1=g".to_owned()), "ValidationError: Filter type name is not correct."),
        (("DescribeLifecycleHooks", "AutoScalingGroupName=none".to_owned()), "ValidationError: AutoScalingGroup name not found"),
        (("DescribeScalingActivities", "AutoScalingGroupName=none".to_owned()), "ValidationError: AutoScalingGroup name not found"),
    ];
    let cases: Vec<_> =
        cases.into_iter().map(|((action, form), expected)| (action, form, expected)).collect();
    check(&cases);
}

#[test]
fn decrement_below_the_minimum() {
    let mut account = Account::new();
    account.group(1, "");
    account.call("UpdateAutoScalingGroup", "AutoScalingGroupName=g MinSize=1").unwrap();
    let form = format!("InstanceId={} ShouldDecrementDesiredCapacity=true", account.id(0));
    let got = account.call("TerminateInstanceInAutoScalingGroup", &form).unwrap_err();
    assert!(
        got.starts_with("ValidationError: Currently, desiredSize equals minSize (1)."),
        "{got}"
    );
    assert_eq!(account.states(), "InService");
}

#[test]
fn quotas() {
    let mut account = Account::new();
    for index in 0..500 {
        account.call("CreateAutoScalingGroup", &basic(&format!("g{index}"))).unwrap();
    }
    assert!(
        account
            .call("CreateAutoScalingGroup", &basic("one-more"))
            .unwrap_err()
            .starts_with("LimitExceeded:")
    );
    let put = |index: usize| {
        format!(
            "AutoScalingGroupName=g0 LifecycleHookName=h{index} LifecycleTransition=autoscaling:EC2_INSTANCE_LAUNCHING"
        )
    };
    for index in 0..50 {
        account.call("PutLifecycleHook", &put(index)).unwrap();
    }
    account.call("PutLifecycleHook", &put(7)).unwrap();
    assert!(account.call("PutLifecycleHook", &put(50)).unwrap_err().starts_with("LimitExceeded:"));
}

#[test]
fn cooldown_is_honoured_when_asked() {
    let mut account = Account::new();
    account.group(1, "DefaultCooldown=60");
    let set = |desired: u32| {
        format!("AutoScalingGroupName=g DesiredCapacity={desired} HonorCooldown=true")
    };
    account.call("SetDesiredCapacity", &set(2)).unwrap();
    assert!(
        account
            .call("SetDesiredCapacity", &set(3))
            .unwrap_err()
            .starts_with("ScalingActivityInProgress:")
    );
    account.call("SetDesiredCapacity", "AutoScalingGroupName=g DesiredCapacity=3").unwrap();
    account.pass(60);
    account.call("SetDesiredCapacity", &set(4)).unwrap();
    assert_eq!(account.instances().len(), 4);
}
