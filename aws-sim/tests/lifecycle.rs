//! Instances through their lives: launch, hooks, scale-in, replacement, deletion. Every test has its own clock.

mod common;

use common::{Account, DRAIN, WARM, basic, config, element, elements};
use outstation_aws_sim::model::Effect;

fn complete(hook: &str, id: &str, result: &str) -> String {
    format!(
        "AutoScalingGroupName=g LifecycleHookName={hook} InstanceId={id} LifecycleActionResult={result}"
    )
}

fn desired(count: u32) -> String {
    format!("AutoScalingGroupName=g DesiredCapacity={count}")
}

#[test]
fn launches_to_the_desired_capacity_and_back() {
    let mut account = Account::new();
    account.group(3, "");
    assert_eq!(account.states(), "InService InService InService");
    account.call("SetDesiredCapacity", &desired(5)).unwrap();
    assert_eq!(account.states(), "InService InService InService InService InService");
    account.call("SetDesiredCapacity", &desired(2)).unwrap();
    assert_eq!(account.states(), "InService InService");
    account.call("SetDesiredCapacity", &desired(0)).unwrap();
    account.call("DeleteAutoScalingGroup", "AutoScalingGroupName=g").unwrap();
    assert_eq!(
        elements(&account.call("DescribeAutoScalingGroups", "").unwrap(), "AutoScalingGroupName")
            .len(),
        0
    );
}

#[test]
fn a_machine_boots_first() {
    let mut config = config();
    config.boot_delay = std::time::Duration::from_secs(5);
    let mut account = Account::with(config);
    account.obey = false;
    account.group(1, "");
    assert_eq!((account.states().as_str(), account.effects.len()), ("Pending", 0));
    account.pass(5);
    assert!(matches!(account.effects.as_slice(), [Effect::Launch { .. }]), "{:?}", account.effects);
    assert_eq!(account.states(), "Pending");
    let id = account.id(0).try_into().unwrap();
    account.sim.model.instance_running(&id);
    account.settle();
    assert_eq!(account.states(), "InService");
}

#[test]
fn a_machine_that_never_comes_up_is_given_up_and_the_next_waits() {
    let mut account = Account::new();
    account.obey = false;
    account.group(1, "");
    let first = account.id(0);
    account.pass(59);
    assert_eq!(account.states(), "Pending");
    account.pass(1);
    assert_eq!(account.states(), "Terminating");
    assert_eq!(
        account.effects.last(),
        Some(&Effect::Shutdown { instance: first.clone().try_into().unwrap() })
    );
    account.kill(&first);
    account.obey = true;
    account.pass(1);
    assert_eq!(account.states(), "InService");
    assert_ne!(account.id(0), first);
}

#[test]
fn launches_that_fail_slow_down() {
    let mut account = Account::new();
    account.obey = false;
    account.group(1, "");
    let mut launched = Vec::new();
    for second in 0..40_i64 {
        while let Some(id) = account.instances().first().map(|instance| instance.id.to_string()) {
            launched.push(second);
            account.kill(&id);
        }
        account.pass(1);
    }
    assert_eq!(launched, [0, 1, 3, 7, 15, 31]);
}

#[test]
fn a_terminating_hook_holds_until_it_is_completed() {
    let mut account = Account::new();
    account.group(2, DRAIN);
    let leaving = account.id(0);
    account.call("SetDesiredCapacity", &desired(1)).unwrap();
    assert_eq!(account.states(), "Terminating:Wait InService");
    let told: Vec<&str> = account
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Update { facts } => Some(facts.target_lifecycle_state.as_str()),
            Effect::Launch { .. } | Effect::Shutdown { .. } => None,
        })
        .collect();
    assert_eq!(told, ["Terminated"]);
    let refused = account.call("DeleteAutoScalingGroup", "AutoScalingGroupName=g").unwrap_err();
    assert!(refused.starts_with("ResourceInUse"), "{refused}");
    account.obey = false;
    account.call("CompleteLifecycleAction", &complete("drain", &leaving, "CONTINUE")).unwrap();
    assert_eq!(account.states(), "Terminating:Proceed InService");
    assert_eq!(
        account.effects.last(),
        Some(&Effect::Shutdown { instance: leaving.clone().try_into().unwrap() })
    );
    let again = account
        .call("CompleteLifecycleAction", &complete("drain", &leaving, "CONTINUE"))
        .unwrap_err();
    assert_eq!(
        again,
        format!("ValidationError: No active Lifecycle Action found with instance ID {leaving}")
    );
    account.kill(&leaving);
    assert_eq!(account.states(), "InService");
}

#[test]
fn a_hook_times_out_into_its_default_and_heartbeats_put_that_off() {
    let mut account = Account::new();
    account.group(1, DRAIN);
    let id = account.id(0);
    account.call("SetDesiredCapacity", &desired(0)).unwrap();
    account.pass(59);
    assert_eq!(account.states(), "Terminating:Wait");
    let heartbeat = format!("AutoScalingGroupName=g LifecycleHookName=drain InstanceId={id}");
    account.call("RecordLifecycleActionHeartbeat", &heartbeat).unwrap();
    account.pass(59);
    assert_eq!(account.states(), "Terminating:Wait");
    // 100 heartbeats of 60 s are the end of it, however many are sent.
    for _ in 0..119 {
        account.call("RecordLifecycleActionHeartbeat", &heartbeat).unwrap();
        account.pass(49);
    }
    assert_eq!(account.states(), "Terminating:Wait");
    account.call("RecordLifecycleActionHeartbeat", &heartbeat).unwrap();
    account.pass(51);
    assert_eq!(account.states(), "");
}

#[test]
fn a_launching_hook_continues_or_abandons() {
    let mut account = Account::new();
    account.group(2, WARM);
    assert_eq!(account.states(), "Pending:Wait Pending:Wait");
    let (first, second) = (account.id(0), account.id(1));
    account.call("CompleteLifecycleAction", &complete("warm", &first, "CONTINUE")).unwrap();
    assert_eq!(account.states(), "InService Pending:Wait");
    account.call("CompleteLifecycleAction", &complete("warm", &second, "ABANDON")).unwrap();
    assert_eq!(account.states(), "InService Pending:Wait");
    assert_ne!(account.id(1), second, "replaced");
    // The default result of a hook is ABANDON.
    let third = account.id(1);
    account.pass(60);
    assert!(!account.instances().iter().any(|instance| instance.id.as_str() == third));
}

#[test]
fn abandon_on_termination_ends_the_other_hooks() {
    let mut account = Account::new();
    account.group(1, DRAIN);
    let second = "AutoScalingGroupName=g LifecycleHookName=logs LifecycleTransition=autoscaling:EC2_INSTANCE_TERMINATING";
    account.call("PutLifecycleHook", second).unwrap();
    let id = account.id(0);
    account.call("SetDesiredCapacity", &desired(0)).unwrap();
    account.call("CompleteLifecycleAction", &complete("drain", &id, "CONTINUE")).unwrap();
    assert_eq!(account.states(), "Terminating:Wait");
    account.call("CompleteLifecycleAction", &complete("logs", &id, "ABANDON")).unwrap();
    assert_eq!(account.states(), "");
}

#[test]
fn a_deleted_hook_holds_nobody() {
    let mut account = Account::new();
    account.group(1, DRAIN);
    account.call("SetDesiredCapacity", &desired(0)).unwrap();
    account.call("DeleteLifecycleHook", "AutoScalingGroupName=g LifecycleHookName=drain").unwrap();
    assert_eq!(account.states(), "");
}

#[test]
fn the_dead_are_replaced_at_once() {
    let mut account = Account::new();
    account.group(2, DRAIN);
    let dead = account.id(0);
    account.kill(&dead);
    assert_eq!(account.states(), "InService InService");
    assert!(!account.instances().iter().any(|instance| instance.id.as_str() == dead));
    let activities = account.call("DescribeScalingActivities", "AutoScalingGroupName=g").unwrap();
    let causes = elements(&activities, "Cause").join("\n");
    assert!(
        causes.contains("EC2 health check indicating it has been terminated or stopped"),
        "{causes}"
    );
}

#[test]
fn if_told_so_hooks_hold_the_dead() {
    let mut config = config();
    config.hooks_hold_dead_instances = true;
    let mut account = Account::with(config);
    account.group(1, DRAIN);
    let dead = account.id(0);
    account.pass(1);
    account.kill(&dead);
    assert_eq!(account.states(), "Terminating:Wait InService");
    account.pass(60);
    assert_eq!(account.states(), "InService");
}

#[test]
fn the_unhealthy_are_replaced_after_their_grace() {
    let mut account = Account::new();
    account.group(1, "HealthCheckGracePeriod=60");
    let id = account.id(0);
    let health = |more: &str| format!("InstanceId={id} HealthStatus=Unhealthy {more}");
    account.call("SetInstanceHealth", &health("")).unwrap();
    assert_eq!(account.id(0), id, "within its grace");
    account.pass(60);
    account.call("SetInstanceHealth", &health("")).unwrap();
    assert_ne!(account.id(0), id);
    let next = account.id(0);
    account
        .call(
            "SetInstanceHealth",
            &format!("InstanceId={next} HealthStatus=Unhealthy ShouldRespectGracePeriod=false"),
        )
        .unwrap();
    assert_ne!(account.id(0), next);
}

#[test]
fn terminating_by_hand_replaces_unless_decremented() {
    let mut account = Account::new();
    account.group(2, "");
    let id = account.id(0);
    let body = account
        .call(
            "TerminateInstanceInAutoScalingGroup",
            &format!("InstanceId={id} ShouldDecrementDesiredCapacity=false"),
        )
        .unwrap();
    assert_eq!(element(&body, "Description"), format!("Terminating EC2 instance: {id}"));
    assert_eq!(account.instances().len(), 2);
    let id = account.id(0);
    account
        .call(
            "TerminateInstanceInAutoScalingGroup",
            &format!("InstanceId={id} ShouldDecrementDesiredCapacity=true"),
        )
        .unwrap();
    assert_eq!(account.instances().len(), 1);
    let body = account.call("DescribeAutoScalingGroups", "").unwrap();
    assert_eq!(element(&body, "DesiredCapacity"), "1");
}

#[test]
fn scale_in_chooses_by_zone_then_policy_and_spares_the_protected() {
    // (termination policy, protected, who is left of 0..5, launched one second apart, zones a b a b a)
    let cases: [(&str, &[usize], &[usize]); 4] = [
        ("Default", &[], &[3, 4]),
        ("OldestInstance", &[], &[3, 4]),
        ("NewestInstance", &[], &[0, 1]),
        ("OldestInstance", &[0, 1], &[0, 1]),
    ];
    for (policy, protected, left) in cases {
        let mut account = Account::new();
        account.group(
            0,
            &format!(
                "AvailabilityZones.member.2=eu-central-1b TerminationPolicies.member.1={policy}"
            ),
        );
        for count in 1..=5 {
            account.call("SetDesiredCapacity", &desired(count)).unwrap();
            account.pass(1);
        }
        let ids: Vec<String> = (0..5).map(|index| account.id(index)).collect();
        for index in protected {
            let form = format!(
                "AutoScalingGroupName=g InstanceIds.member.1={} ProtectedFromScaleIn=true",
                ids[*index]
            );
            account.call("SetInstanceProtection", &form).unwrap();
        }
        account.call("SetDesiredCapacity", &desired(2)).unwrap();
        let got: Vec<usize> = account
            .instances()
            .iter()
            .map(|instance| ids.iter().position(|id| id == instance.id.as_str()).unwrap())
            .collect();
        assert_eq!(got, left, "{policy} {protected:?}");
    }
}

#[test]
fn all_protected_means_no_scale_in() {
    let mut account = Account::new();
    account.group(2, "NewInstancesProtectedFromScaleIn=true");
    account.call("SetDesiredCapacity", &desired(0)).unwrap();
    assert_eq!(account.states(), "InService InService");
}

#[test]
fn bounds_move_the_desired_capacity() {
    let mut account = Account::new();
    account.group(3, "");
    for (form, expected) in [
        ("MinSize=5", 5),
        ("MinSize=0 MaxSize=2", 2),
        ("MaxSize=10", 2),
        ("MaxSize=4 DesiredCapacity=4", 4),
    ] {
        account.call("UpdateAutoScalingGroup", &format!("AutoScalingGroupName=g {form}")).unwrap();
        assert_eq!(account.instances().len(), expected, "{form}");
    }
}

#[test]
fn a_new_template_version_reaches_only_new_instances() {
    let mut account = Account::new();
    account.group(1, "");
    let template = "LaunchTemplate.LaunchTemplateName=outstation-node LaunchTemplate.Version=2";
    account
        .call(
            "UpdateAutoScalingGroup",
            &format!("AutoScalingGroupName=g DesiredCapacity=2 {template}"),
        )
        .unwrap();
    let versions = |account: &Account| {
        account.instances().iter().map(|instance| instance.template.version).collect::<Vec<_>>()
    };
    assert_eq!(versions(&account), [1, 2]);
    account.call("SetDesiredCapacity", &desired(1)).unwrap();
    assert_eq!(versions(&account), [2], "the oldest template goes first");
}

#[test]
fn force_delete_discards_hooks_and_ends_with_the_group() {
    let mut account = Account::new();
    account.group(2, DRAIN);
    account.call("SetDesiredCapacity", &desired(1)).unwrap();
    account.obey = false;
    account.call("DeleteAutoScalingGroup", "AutoScalingGroupName=g ForceDelete=true").unwrap();
    let body = account.call("DescribeAutoScalingGroups", "").unwrap();
    assert_eq!(element(&body, "Status"), "Delete in progress");
    let refused = account.call("SetDesiredCapacity", &desired(1)).unwrap_err();
    assert!(refused.starts_with("ScalingActivityInProgress"), "{refused}");
    let refused = account.call("CreateAutoScalingGroup", &basic("g")).unwrap_err();
    assert!(refused.starts_with("AlreadyExists"), "{refused}");
    let ids: Vec<String> =
        account.instances().iter().map(|instance| instance.id.to_string()).collect();
    assert_eq!(ids.len(), 2);
    for id in ids {
        account.kill(&id);
    }
    account.call("CreateAutoScalingGroup", &basic("g")).unwrap();
}

#[test]
fn tags_reach_instances_at_launch_only() {
    let mut account = Account::new();
    account.group(1, "Tags.member.1.Key=outstation:group Tags.member.1.Value=delay Tags.member.1.PropagateAtLaunch=true Tags.member.2.Key=cost Tags.member.2.Value=x");
    let shown = |account: &Account, index: usize| {
        let tags = &account.instances()[index].tags;
        tags.iter()
            .filter(|(key, _)| !key.starts_with("aws:"))
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(shown(&account, 0), "outstation:group=delay");
    let tag = "Tags.member.1.ResourceId=g Tags.member.1.ResourceType=auto-scaling-group Tags.member.1.Key=outstation:group";
    account
        .call(
            "CreateOrUpdateTags",
            &format!("{tag} Tags.member.1.Value=other Tags.member.1.PropagateAtLaunch=true"),
        )
        .unwrap();
    account.pass(1);
    account.call("SetDesiredCapacity", &desired(2)).unwrap();
    assert_eq!(
        (shown(&account, 0).as_str(), shown(&account, 1).as_str()),
        ("outstation:group=delay", "outstation:group=other")
    );
    // A given value must match; an absent tag is no error.
    account.call("DeleteTags", &format!("{tag} Tags.member.1.Value=no")).unwrap();
    assert_eq!(elements(&account.call("DescribeTags", "").unwrap(), "Key").len(), 2);
    account.call("DeleteTags", tag).unwrap();
    account.call("DeleteTags", tag).unwrap();
    assert_eq!(elements(&account.call("DescribeTags", "").unwrap(), "Key"), ["cost"]);
}

#[test]
fn a_tag_that_imds_cannot_show_makes_the_launch_fail() {
    let mut account = Account::new();
    account.group(
        1,
        "Tags.member.1.Key=team/owner Tags.member.1.Value=x Tags.member.1.PropagateAtLaunch=true",
    );
    assert_eq!(account.states(), "");
    let body = account.call("DescribeScalingActivities", "AutoScalingGroupName=g").unwrap();
    assert_eq!(element(&body, "StatusCode"), "Failed");
    assert!(
        element(&body, "StatusMessage").contains("'team/owner' is not a valid tag key"),
        "{body}"
    );
    account.call("DeleteTags", "Tags.member.1.ResourceId=g Tags.member.1.Key=team/owner").unwrap();
    account.pass(1);
    assert_eq!(account.states(), "InService");
}

#[test]
fn activities_tell_the_story_newest_first() {
    let mut account = Account::new();
    account.group(1, DRAIN);
    account.pass(1);
    account.call("SetDesiredCapacity", &desired(0)).unwrap();
    let body = account.call("DescribeScalingActivities", "AutoScalingGroupName=g").unwrap();
    assert_eq!(elements(&body, "StatusCode"), ["MidLifecycleAction", "Successful"]);
    account.pass(60);
    let body = account.call("DescribeScalingActivities", "AutoScalingGroupName=g").unwrap();
    assert_eq!(elements(&body, "StatusCode"), ["Successful", "Successful"]);
    let first =
        account.call("DescribeScalingActivities", "AutoScalingGroupName=g MaxRecords=1").unwrap();
    let rest = account
        .call(
            "DescribeScalingActivities",
            &format!("AutoScalingGroupName=g NextToken={}", element(&first, "NextToken")),
        )
        .unwrap();
    assert!(element(&rest, "Description").starts_with("Launching a new EC2 instance"));
    assert_eq!(element(&rest, "NextToken"), "");
}

#[test]
fn addresses_are_unique_and_reused_last() {
    let mut account = Account::new();
    account.group(10, "");
    let first: Vec<String> =
        account.instances().iter().map(|instance| instance.address.to_string()).collect();
    assert_eq!((first[0].as_str(), first[9].as_str()), ("127.83.0.1", "127.83.0.10"));
    let id = account.id(0);
    account.kill(&id);
    assert!(
        account.instances().iter().any(|instance| instance.address.to_string() == "127.83.0.11")
    );
}

#[test]
fn the_same_seed_repeats_the_same_run() {
    let run = || {
        let mut account = Account::new();
        account.group(3, DRAIN);
        let id = account.id(1);
        account.kill(&id);
        account.call("SetDesiredCapacity", &desired(1)).unwrap();
        account.pass(60);
        account.effects
    };
    assert_eq!(run(), run());
}
