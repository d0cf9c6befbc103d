//! Instance refresh: what is replaced, how many at a time, how it ends. Every test has its own clock; an hour passes in no time.

mod common;

use common::{Account, DRAIN, WARM, element, elements};

const VERSION_2: &str = "DesiredConfiguration.LaunchTemplate.LaunchTemplateName=outstation-node \
    DesiredConfiguration.LaunchTemplate.Version=2";

fn start(account: &mut Account, more: &str) -> String {
    let body = account.call("StartInstanceRefresh", &format!("AutoScalingGroupName=g {more}"));
    element(&body.unwrap(), "InstanceRefreshId")
}

/// `InProgress 33% 2`: the newest refresh's status, percentage, instances to update.
fn newest(account: &mut Account) -> String {
    let body = account.call("DescribeInstanceRefreshes", "AutoScalingGroupName=g").unwrap();
    format!(
        "{} {}% {}",
        element(&body, "Status"),
        element(&body, "PercentageComplete"),
        element(&body, "InstancesToUpdate")
    )
}

fn detail(account: &mut Account, name: &str) -> String {
    element(&account.call("DescribeInstanceRefreshes", "AutoScalingGroupName=g").unwrap(), name)
}

/// `1 1 2`: template versions of what counts, in the order of launch.
fn versions(account: &Account) -> String {
    let counting = account.instances().into_iter().filter(|instance| instance.lifecycle.counts());
    counting.map(|instance| instance.template.version.to_string()).collect::<Vec<_>>().join(" ")
}

fn in_service(account: &Account) -> usize {
    account.states().split(' ').filter(|state| *state == "InService").count()
}

fn group_version(account: &mut Account) -> String {
    let body = account.call("DescribeAutoScalingGroups", "").unwrap();
    element(&body, "Version")
}

#[test]
fn instances_are_replaced_one_after_another_and_the_group_gets_its_template() {
    let mut account = Account::new();
    account.group(3, DRAIN);
    start(&mut account, &format!("{VERSION_2} Preferences.InstanceWarmup=60"));
    assert_eq!(newest(&mut account), "InProgress 0% 2");
    assert_eq!(account.states(), "Terminating:Wait InService InService InService");
    assert_eq!(versions(&account), "1 1 2", "the next one starts at once");
    account.pass(59);
    assert_eq!(versions(&account), "1 1 2", "it is still warming up");
    assert!(detail(&mut account, "StatusReason").ends_with("is warming up."));
    account.pass(1);
    assert_eq!(versions(&account), "1 2 2");
    assert_eq!(newest(&mut account), "InProgress 33% 1");
    assert_eq!(group_version(&mut account), "1", "not before it has succeeded");
    account.pass(60);
    account.pass(60);
    assert_eq!(newest(&mut account), "Successful 100% 0");
    assert_eq!((versions(&account).as_str(), group_version(&mut account).as_str()), ("2 2 2", "2"));
    assert_eq!(account.states(), "InService InService InService");
}

#[test]
fn the_healthy_share_bounds_how_many_go_at_a_time() {
    // (preferences, in service at the least, instances at the most) of ten
    for (preferences, least, most) in [
        ("", 9, 10),
        ("Preferences.MinHealthyPercentage=50", 5, 10),
        ("Preferences.MinHealthyPercentage=0", 0, 10),
        ("Preferences.MinHealthyPercentage=100", 9, 10),
        ("Preferences.MinHealthyPercentage=100 Preferences.MaxHealthyPercentage=120", 10, 12),
        ("Preferences.MinHealthyPercentage=100 Preferences.MaxHealthyPercentage=100", 10, 11),
    ] {
        let mut account = Account::new();
        account.group(10, WARM);
        let warm = |account: &mut Account| {
            let waiting: Vec<String> = account
                .instances()
                .iter()
                .filter(|instance| instance.lifecycle.as_str() == "Pending:Wait")
                .map(|instance| instance.id.to_string())
                .collect();
            for id in waiting {
                let form = format!(
                    "AutoScalingGroupName=g LifecycleHookName=warm InstanceId={id} LifecycleActionResult=CONTINUE"
                );
                account.call("CompleteLifecycleAction", &form).unwrap();
            }
        };
        warm(&mut account);
        assert_eq!(in_service(&account), 10);
        start(&mut account, &format!("{VERSION_2} {preferences}"));
        let (mut fewest, mut largest) = (10, 10);
        for _ in 0..30 {
            fewest = fewest.min(in_service(&account));
            largest = largest.max(account.instances().len());
            warm(&mut account);
            account.pass(1);
        }
        assert_eq!(newest(&mut account), "Successful 100% 0", "{preferences}");
        assert_eq!(versions(&account), ["2"; 10].join(" "));
        assert_eq!((fewest, largest), (least, most), "{preferences}");
    }
}

#[test]
fn skip_matching_replaces_only_what_differs() {
    let mut account = Account::new();
    account.group(2, "");
    let skip = "Preferences.SkipMatching=true";
    start(&mut account, skip);
    assert_eq!(newest(&mut account), "Successful 100% 0");
    start(&mut account, &format!("{VERSION_2} {skip}"));
    account.pass(1);
    account.pass(1);
    assert_eq!(versions(&account), "2 2");
    let ids: Vec<String> = (0..2).map(|at| account.id(at)).collect();
    start(&mut account, &format!("{VERSION_2} {skip}"));
    account.pass(1);
    assert_eq!(newest(&mut account), "Successful 100% 0");
    assert_eq!(ids, (0..2).map(|at| account.id(at)).collect::<Vec<_>>(), "nothing was replaced");
    start(&mut account, "");
    account.pass(1);
    account.pass(1);
    assert!(ids.iter().all(|id| !(0..2).any(|at| account.id(at) == *id)), "without it, all are");
}

#[test]
fn one_at_a_time_and_its_template_is_its_own() {
    let mut account = Account::new();
    account.group(2, "");
    let first = start(&mut account, &format!("{VERSION_2} Preferences.InstanceWarmup=60"));
    let refused = account.call("StartInstanceRefresh", "AutoScalingGroupName=g").unwrap_err();
    assert!(refused.starts_with("InstanceRefreshInProgress: "), "{refused}");
    let refused = account.call("PutWarmPool", "AutoScalingGroupName=g").unwrap_err();
    assert!(refused.starts_with("InstanceRefreshInProgress: "), "{refused}");
    let template = "LaunchTemplate.LaunchTemplateName=outstation-node LaunchTemplate.Version=1";
    let update = format!("AutoScalingGroupName=g {template}");
    let refused = account.call("UpdateAutoScalingGroup", &update).unwrap_err();
    assert!(
        refused.starts_with("ValidationError: An active instance refresh with a desired"),
        "{refused}"
    );
    // What the group launches meanwhile is of the new version.
    account.call("SetDesiredCapacity", "AutoScalingGroupName=g DesiredCapacity=3").unwrap();
    assert_eq!(versions(&account), "1 2 2");
    for _ in 0..4 {
        account.pass(60);
    }
    let second = start(&mut account, "");
    let page = "AutoScalingGroupName=g MaxRecords=1";
    let body = account.call("DescribeInstanceRefreshes", page).unwrap();
    assert_eq!(element(&body, "InstanceRefreshId"), second);
    let page = format!("{page} NextToken={}", element(&body, "NextToken"));
    let body = account.call("DescribeInstanceRefreshes", &page).unwrap();
    assert_eq!(
        (element(&body, "InstanceRefreshId"), element(&body, "NextToken")),
        (first.clone(), String::new())
    );
    let by_id = format!("AutoScalingGroupName=g InstanceRefreshIds.member.1={first}");
    let body = account.call("DescribeInstanceRefreshes", &by_id).unwrap();
    assert_eq!(elements(&body, "Status"), ["Successful"]);
}

#[test]
fn a_cancelled_refresh_stops_where_it_is() {
    let mut account = Account::new();
    account.group(3, WARM);
    account.pass(60);
    assert_eq!(account.states(), "Pending:Wait Pending:Wait Pending:Wait", "abandoned, replaced");
    account.call("DeleteLifecycleHook", "AutoScalingGroupName=g LifecycleHookName=warm").unwrap();
    account.pass(1);
    assert_eq!(in_service(&account), 3);
    let hook = "AutoScalingGroupName=g LifecycleHookName=warm LifecycleTransition=autoscaling:EC2_INSTANCE_LAUNCHING HeartbeatTimeout=300 DefaultResult=CONTINUE";
    account.call("PutLifecycleHook", hook).unwrap();
    let id = start(&mut account, VERSION_2);
    assert_eq!(account.states(), "InService InService Pending:Wait");
    let body = account.call("CancelInstanceRefresh", "AutoScalingGroupName=g").unwrap();
    assert_eq!(element(&body, "InstanceRefreshId"), id);
    assert_eq!(newest(&mut account), "Cancelling 0% 2", "it waits for what is starting");
    let refused = account.call("CancelInstanceRefresh", "AutoScalingGroupName=g").unwrap_err();
    assert!(refused.starts_with("ActiveInstanceRefreshNotFound: "), "{refused}");
    account.pass(300);
    assert_eq!(newest(&mut account), "Cancelled 0% 2");
    assert_eq!((versions(&account).as_str(), group_version(&mut account).as_str()), ("1 1 2", "1"));
    start(&mut account, VERSION_2);
    let at_once = "AutoScalingGroupName=g WaitForTransitioningInstances=false";
    account.call("CancelInstanceRefresh", at_once).unwrap();
    assert_eq!(newest(&mut account), "Cancelled 0% 2");
}

#[test]
fn a_rollback_replaces_what_was_replaced() {
    let mut account = Account::new();
    account.group(4, "");
    start(&mut account, &format!("{VERSION_2} Preferences.InstanceWarmup=60"));
    account.pass(60);
    account.pass(60);
    assert_eq!(
        (versions(&account).as_str(), newest(&mut account).as_str()),
        ("1 2 2 2", "InProgress 50% 1")
    );
    account.call("RollbackInstanceRefresh", "AutoScalingGroupName=g").unwrap();
    assert_eq!(detail(&mut account, "Status"), "RollbackInProgress");
    let refused = account.call("RollbackInstanceRefresh", "AutoScalingGroupName=g").unwrap_err();
    assert!(refused.starts_with("ActiveInstanceRefreshNotFound: "), "{refused}");
    for _ in 0..5 {
        account.pass(60);
    }
    assert_eq!(versions(&account), "1 1 1 1");
    assert_eq!(newest(&mut account), "RollbackSuccessful 0% 1");
    assert_eq!(detail(&mut account, "RollbackReason"), "Rollback requested by user");
    assert_eq!(detail(&mut account, "PercentageCompleteOnRollback"), "50");
    assert_eq!(group_version(&mut account), "1");
}

#[test]
fn a_template_whose_instances_never_come_up_fails_after_an_hour_or_is_rolled_back() {
    for (preferences, ends, left) in [
        ("", "Failed 0% 1", "1"),
        ("Preferences.AutoRollback=true", "RollbackSuccessful 0% 1", "1 1"),
    ] {
        let mut account = Account::new();
        account.group(2, "");
        start(&mut account, &format!("{VERSION_2} {preferences}"));
        account.pass(1);
        assert_eq!(newest(&mut account), "Successful 100% 0", "a good one comes up");

        let mut account = Account::new();
        account.group(2, "");
        account.obey_launches_of = Some(1);
        start(&mut account, &format!("{VERSION_2} {preferences}"));
        for _ in 0..60 {
            account.pass(60);
            assert!(in_service(&account) >= 1, "the other one stays");
        }
        account.pass(60);
        account.pass(60);
        assert_eq!(newest(&mut account), ends, "{preferences}");
        let serving: Vec<String> = account
            .instances()
            .iter()
            .filter(|instance| instance.lifecycle.as_str() == "InService")
            .map(|instance| instance.template.version.to_string())
            .collect();
        assert_eq!(serving.join(" "), if preferences.is_empty() { "1 1" } else { left });
    }
}

#[test]
fn protected_instances_are_waited_for_ignored_or_replaced() {
    for (preference, statuses, left) in [
        ("", ["InProgress 50% 1", "Failed 50% 1"], "1 2"),
        ("Preferences.ScaleInProtectedInstances=Ignore", ["Successful 100% 0"; 2], "1 2"),
        ("Preferences.ScaleInProtectedInstances=Refresh", ["Successful 100% 0"; 2], "2 2"),
    ] {
        let mut account = Account::new();
        account.group(2, "");
        let protect = format!(
            "AutoScalingGroupName=g InstanceIds.member.1={} ProtectedFromScaleIn=true",
            account.id(0)
        );
        account.call("SetInstanceProtection", &protect).unwrap();
        start(&mut account, &format!("{VERSION_2} {preference}"));
        account.pass(1);
        account.pass(1);
        assert_eq!(newest(&mut account), statuses[0], "{preference}");
        account.pass(3600);
        assert_eq!(
            (newest(&mut account).as_str(), versions(&account).as_str()),
            (statuses[1], left)
        );
    }
}

#[test]
fn a_suspended_process_holds_a_refresh() {
    for process in ["InstanceRefresh", "Terminate"] {
        let mut account = Account::new();
        account.group(2, "");
        let named = format!("AutoScalingGroupName=g ScalingProcesses.member.1={process}");
        account.call("SuspendProcesses", &named).unwrap();
        start(&mut account, VERSION_2);
        account.pass(60);
        assert_eq!(versions(&account), "1 1", "{process}");
        account.call("ResumeProcesses", &named).unwrap();
        account.pass(1);
        account.pass(1);
        assert_eq!(newest(&mut account), "Successful 100% 0", "{process}");
    }
}

#[test]
fn refusals() {
    let start = |form: &str| ("StartInstanceRefresh", format!("AutoScalingGroupName=g {form}"));
    for ((action, form), expected) in [
        (
            ("StartInstanceRefresh", "AutoScalingGroupName=none".to_owned()),
            "ValidationError: AutoScalingGroup name not found",
        ),
        (
            start("Preferences.MinHealthyPercentage=101"),
            "ValidationError: 1 validation error detected: Value '101' at 'preferences.minHealthyPercentage'",
        ),
        (
            start("Preferences.MaxHealthyPercentage=110"),
            "ValidationError: MinHealthyPercentage must be specified",
        ),
        (
            start("Preferences.MinHealthyPercentage=50 Preferences.MaxHealthyPercentage=99"),
            "ValidationError: 1 validation error detected: Value '99'",
        ),
        (
            start("Preferences.MinHealthyPercentage=50 Preferences.MaxHealthyPercentage=151"),
            "ValidationError: The difference between",
        ),
        (
            start("Preferences.AutoRollback=true"),
            "ValidationError: The request isn't valid. The AutoRollback parameter cannot be set to true",
        ),
        (
            start(
                "Preferences.AutoRollback=true DesiredConfiguration.LaunchTemplate.LaunchTemplateName=outstation-node DesiredConfiguration.LaunchTemplate.Version=$Latest",
            ),
            "ValidationError: The AutoRollback parameter",
        ),
        (
            start(
                "DesiredConfiguration.LaunchTemplate.LaunchTemplateName=outstation-node DesiredConfiguration.LaunchTemplate.Version=9",
            ),
            "ValidationError: You must use a valid fully-formed launch template.",
        ),
        (
            start("Preferences.ScaleInProtectedInstances=Kill"),
            "ValidationError: 1 validation error detected: Value 'Kill'",
        ),
        (start("Preferences.BakeTime=60"), "NotSimulated: "),
        (start("Strategy=ReplaceRootVolume"), "NotSimulated: "),
        (
            ("CancelInstanceRefresh", "AutoScalingGroupName=g".to_owned()),
            "ActiveInstanceRefreshNotFound: No in progress or pending Instance Refresh found for Auto Scaling group g",
        ),
        (
            ("RollbackInstanceRefresh", "AutoScalingGroupName=g".to_owned()),
            "ActiveInstanceRefreshNotFound: ",
        ),
        (
            ("DescribeInstanceRefreshes", "AutoScalingGroupName=none".to_owned()),
            "ValidationError: AutoScalingGroup name not found",
        ),
        (
            ("DescribeInstanceRefreshes", "AutoScalingGroupName=g NextToken=x".to_owned()),
            "InvalidNextToken: ",
        ),
    ] {
        let mut account = Account::new();
        account.group(1, "");
        let got = account.call(action, &form).unwrap_err();
        assert!(got.starts_with(expected), "{action} {form}\n     got {got}\nexpected {expected}");
    }
    let mut account = Account::new();
    account.group(2, "");
    let id = account
        .call("StartInstanceRefresh", "AutoScalingGroupName=g Preferences.InstanceWarmup=60");
    id.unwrap();
    let refused = account.call("RollbackInstanceRefresh", "AutoScalingGroupName=g").unwrap_err();
    assert!(refused.starts_with("IrreversibleInstanceRefresh: "), "{refused}");
}
