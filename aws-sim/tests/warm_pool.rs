//! Warm pools, and processes that a person has suspended.

mod common;

use common::{Account, DRAIN, WARM, element, elements};

fn pool(account: &mut Account, more: &str) {
    account.call("PutWarmPool", &format!("AutoScalingGroupName=g {more}")).unwrap();
}

fn desired(account: &mut Account, count: u32) {
    account
        .call("SetDesiredCapacity", &format!("AutoScalingGroupName=g DesiredCapacity={count}"))
        .unwrap();
}

fn complete(account: &mut Account, hook: &str, id: &str) {
    let form = format!(
        "AutoScalingGroupName=g LifecycleHookName={hook} InstanceId={id} LifecycleActionResult=CONTINUE"
    );
    account.call("CompleteLifecycleAction", &form).unwrap();
}

fn pool_states(account: &mut Account) -> String {
    let body = account.call("DescribeWarmPool", "AutoScalingGroupName=g").unwrap();
    elements(&body, "LifecycleState").join(" ")
}

#[test]
fn the_pool_waits_stopped_and_moves_to_the_group() {
    let mut account = Account::new();
    account.group(1, WARM);
    let first = account.id(0);
    complete(&mut account, "warm", &first);
    pool(&mut account, "MaxGroupPreparedCapacity=3");
    assert_eq!(pool_states(&mut account), "Warmed:Pending:Wait Warmed:Pending:Wait");
    let warming: Vec<String> = [1, 2].map(|at| account.id(at)).to_vec();
    for id in &warming {
        complete(&mut account, "warm", id);
    }
    assert_eq!(pool_states(&mut account), "Warmed:Stopped Warmed:Stopped");
    let groups = account.call("DescribeAutoScalingGroups", "").unwrap();
    assert_eq!(elements(&groups, "LifecycleState"), ["InService"], "not the group's own");
    assert_eq!(element(&groups, "WarmPoolSize"), "2");
    assert_eq!(element(&groups, "MaxGroupPreparedCapacity"), "3");
    let all = account.call("DescribeAutoScalingInstances", "").unwrap();
    assert_eq!(elements(&all, "LifecycleState").len(), 3);

    desired(&mut account, 2);
    assert_eq!(
        account.states(),
        "InService Pending:Wait Warmed:Stopped",
        "its launch hook runs again"
    );
    let address = account.instances()[1].address;
    complete(&mut account, "warm", &warming[0]);
    assert_eq!(account.states(), "InService InService Warmed:Stopped");
    assert_eq!(account.instances()[1].address, address);
    let activities = account.call("DescribeScalingActivities", "AutoScalingGroupName=g").unwrap();
    assert_eq!(
        elements(&activities, "Description")[0],
        format!("Launching a new EC2 instance from warm pool: {}", warming[0])
    );
    // More than the pool has: the rest is launched.
    desired(&mut account, 4);
    assert_eq!(account.states(), "InService InService Pending:Wait Pending:Wait");
}

#[test]
fn a_scale_in_returns_instances_to_the_pool_if_it_says_so() {
    // (policy, where the leaving instance waits for its hook, whether it is still there afterwards)
    for (reuse, waits, stays) in [
        ("", "Terminating:Wait", false),
        ("InstanceReusePolicy.ReuseOnScaleIn=true", "Warmed:Pending:Wait", true),
    ] {
        let mut account = Account::new();
        account.group(2, DRAIN);
        pool(&mut account, &format!("MaxGroupPreparedCapacity=3 PoolState=Running {reuse}"));
        assert_eq!(account.states(), "InService InService Warmed:Running");
        desired(&mut account, 1);
        let leaving: Vec<String> = account
            .instances()
            .iter()
            .filter(|held| held.lifecycle.as_str() == waits)
            .map(|held| held.id.to_string())
            .collect();
        assert_eq!(leaving.len(), 1, "{reuse}: {}", account.states());
        complete(&mut account, "drain", &leaving[0]);
        let held = |id: &String| account.instances().iter().any(|held| held.id.as_str() == id);
        assert_eq!(held(&leaving[0]), stays, "{reuse}");
        assert_eq!(account.states().matches("Warmed:Running").count(), 2);
    }
    let mut account = Account::new();
    account.group(1, "");
    pool(&mut account, "MaxGroupPreparedCapacity=2 InstanceReusePolicy.ReuseOnScaleIn=true");
    desired(&mut account, 2);
    let before: Vec<String> = (0..2).map(|at| account.id(at)).collect();
    desired(&mut account, 1);
    assert_eq!(account.states().matches("Warmed:Stopped").count(), 1);
    assert_eq!((0..2).map(|at| account.id(at)).collect::<Vec<_>>(), before, "nobody was ended");
    let told: Vec<String> = account
        .effects
        .iter()
        .filter_map(|effect| match effect {
            outstation_aws_sim::model::Effect::Update { facts } => {
                Some(facts.target_lifecycle_state.clone())
            }
            _ => None,
        })
        .collect();
    assert_eq!(told, ["Warmed:Stopped"], "IMDS says where it is going");
}

#[test]
fn a_pool_has_its_size() {
    // (settings, size) of a group with one instance and at most ten
    for (settings, size) in [
        ("", 9),
        ("MinSize=2 MaxGroupPreparedCapacity=2", 2),
        ("MaxGroupPreparedCapacity=1", 0),
        ("MaxGroupPreparedCapacity=1 MinSize=1", 1),
    ] {
        let mut account = Account::new();
        account.group(1, "");
        pool(&mut account, settings);
        assert_eq!(account.states().matches("Warmed:Stopped").count(), size, "{settings}");
    }
    let mut account = Account::new();
    account.group(1, "");
    pool(&mut account, "MaxGroupPreparedCapacity=4");
    pool(&mut account, "MaxGroupPreparedCapacity=2");
    assert_eq!(pool_states(&mut account), "Warmed:Stopped", "it shrinks");
    pool(&mut account, "MaxGroupPreparedCapacity=-1");
    assert_eq!(account.states().matches("Warmed:Stopped").count(), 9);
}

#[test]
fn a_refresh_replaces_the_pool_too() {
    let mut account = Account::new();
    account.group(1, "");
    pool(&mut account, "MaxGroupPreparedCapacity=3");
    account
        .call("StartInstanceRefresh", "AutoScalingGroupName=g DesiredConfiguration.LaunchTemplate.LaunchTemplateName=outstation-node DesiredConfiguration.LaunchTemplate.Version=2")
        .unwrap();
    account.pass(1);
    account.pass(1);
    assert!(account.instances().iter().all(|held| held.template.version == 2));
    assert_eq!(account.states(), "InService Warmed:Stopped Warmed:Stopped");
    let body = account.call("DescribeInstanceRefreshes", "AutoScalingGroupName=g").unwrap();
    assert_eq!(element(&body, "Status"), "Successful");
}

#[test]
fn a_pool_is_deleted_when_it_is_empty_or_by_force() {
    let mut account = Account::new();
    account.group(1, WARM);
    let refused = account.call("DeleteWarmPool", "AutoScalingGroupName=g").unwrap_err();
    assert!(refused.starts_with("ValidationError: No warm pool found"), "{refused}");
    let body = account.call("DescribeWarmPool", "AutoScalingGroupName=g").unwrap();
    assert!(!body.contains("WarmPoolConfiguration"));
    pool(&mut account, "MaxGroupPreparedCapacity=3");
    let refused = account.call("DeleteWarmPool", "AutoScalingGroupName=g").unwrap_err();
    assert!(refused.starts_with("ResourceInUse: "), "{refused}");
    account.obey = false;
    account.call("DeleteWarmPool", "AutoScalingGroupName=g ForceDelete=true").unwrap();
    let body = account.call("DescribeWarmPool", "AutoScalingGroupName=g").unwrap();
    assert_eq!(element(&body, "Status"), "PendingDelete");
    assert_eq!(pool_states(&mut account), "Warmed:Terminating Warmed:Terminating");
    for id in [1, 2].map(|at| account.id(at)) {
        account.kill(&id);
    }
    assert_eq!(account.states(), "Pending:Wait");
    assert!(
        !account.call("DescribeWarmPool", "AutoScalingGroupName=g").unwrap().contains("PoolState")
    );
    for (form, expected) in [
        ("PoolState=Asleep", "ValidationError: 1 validation error detected: Value 'Asleep'"),
        ("MaxGroupPreparedCapacity=-2", "ValidationError: 1 validation error detected: Value '-2'"),
        (
            "MaxGroupPreparedCapacity=1 MinSize=2",
            "ValidationError: MaxGroupPreparedCapacity must be",
        ),
    ] {
        let got =
            account.call("PutWarmPool", &format!("AutoScalingGroupName=g {form}")).unwrap_err();
        assert!(got.starts_with(expected), "{form}: {got}");
    }
}

fn suspend(account: &mut Account, processes: &[&str]) {
    let mut form = "AutoScalingGroupName=g".to_owned();
    for (at, process) in processes.iter().enumerate() {
        form.push_str(&format!(" ScalingProcesses.member.{}={process}", at + 1));
    }
    account.call("SuspendProcesses", &form).unwrap();
}

fn resume_all(account: &mut Account) {
    account.call("ResumeProcesses", "AutoScalingGroupName=g").unwrap();
}

#[test]
fn suspended_processes_do_nothing_until_they_are_resumed() {
    let mut account = Account::new();
    account.group(2, "HealthCheckGracePeriod=0");
    suspend(&mut account, &["Launch"]);
    desired(&mut account, 3);
    assert_eq!(account.states(), "InService InService");
    resume_all(&mut account);
    assert_eq!(account.states(), "InService InService InService");

    suspend(&mut account, &["Terminate"]);
    desired(&mut account, 1);
    assert_eq!(account.states(), "InService InService InService");
    resume_all(&mut account);
    assert_eq!(account.states(), "InService");

    for process in ["ReplaceUnhealthy", "Terminate"] {
        let id = account.id(0);
        suspend(&mut account, &[process]);
        account
            .call("SetInstanceHealth", &format!("InstanceId={id} HealthStatus=Unhealthy"))
            .unwrap();
        account.pass(60);
        assert_eq!(account.id(0), id, "{process}");
        resume_all(&mut account);
        assert_ne!(account.id(0), id, "{process}");
    }

    // Its machine's death goes unnoticed; what a person says counts (user guide, HealthCheck).
    let id = account.id(0);
    suspend(&mut account, &["HealthCheck"]);
    account.kill(&id);
    assert_eq!((account.id(0), account.states().as_str()), (id.clone(), "InService"));
    account.call("SetInstanceHealth", &format!("InstanceId={id} HealthStatus=Unhealthy")).unwrap();
    assert_ne!(account.id(0), id);
}

#[test]
fn suspensions_are_shown_with_their_reason() {
    let mut account = Account::new();
    account.group(1, "");
    suspend(&mut account, &["ScheduledActions", "AZRebalance", "AlarmNotification"]);
    account.pass(60);
    suspend(&mut account, &[]);
    let body = account.call("DescribeAutoScalingGroups", "").unwrap();
    let shown: Vec<(String, String)> = elements(&body, "ProcessName")
        .into_iter()
        .zip(elements(&body, "SuspensionReason"))
        .collect();
    assert_eq!(shown.len(), 9);
    let reason = |wanted: &str| {
        let found = shown.iter().find(|(name, _)| name == wanted);
        found.map(|(_, reason)| reason.as_str()).unwrap().to_owned()
    };
    assert_eq!(reason("AZRebalance"), "User suspended at 2026-11-22T12:00:00Z");
    assert_eq!(reason("Launch"), "User suspended at 2026-11-22T12:01:00Z");
    account
        .call("ResumeProcesses", "AutoScalingGroupName=g ScalingProcesses.member.1=Launch")
        .unwrap();
    let body = account.call("DescribeAutoScalingGroups", "").unwrap();
    assert_eq!(elements(&body, "ProcessName").len(), 8);
    let refused = account
        .call("SuspendProcesses", "AutoScalingGroupName=g ScalingProcesses.member.1=Sleep")
        .unwrap_err();
    assert!(refused.starts_with("ValidationError: Sleep is not a valid process"), "{refused}");
}
