//! Scaling policies: what AutoScaling takes and refuses, and what target tracking does with time.

mod common;

use common::{Account, DRAIN, element, elements};
use outstation_aws_sim::model::policies::{Metric, Reading};

const CPU: &str = "TargetTrackingConfiguration.PredefinedMetricSpecification.PredefinedMetricType=ASGAverageCPUUtilization \
    TargetTrackingConfiguration.TargetValue=60";
const QUEUE: &str = "TargetTrackingConfiguration.CustomizedMetricSpecification.Namespace=Queue \
    TargetTrackingConfiguration.CustomizedMetricSpecification.MetricName=Depth \
    TargetTrackingConfiguration.CustomizedMetricSpecification.Statistic=Average \
    TargetTrackingConfiguration.CustomizedMetricSpecification.Dimensions.member.1.Name=queue \
    TargetTrackingConfiguration.CustomizedMetricSpecification.Dimensions.member.1.Value=a \
    TargetTrackingConfiguration.TargetValue=12.5";

fn put(account: &mut Account, policy: &str, what: &str) -> Result<String, String> {
    let named =
        format!("AutoScalingGroupName=g PolicyName={policy} PolicyType=TargetTrackingScaling");
    account.call("PutScalingPolicy", &format!("{named} {what}"))
}

fn cpu() -> Metric {
    Metric {
        namespace: "AWS/EC2".to_owned(),
        name: "CPUUtilization".to_owned(),
        dimensions: [("AutoScalingGroupName".to_owned(), "g".to_owned())].into(),
    }
}

fn load(account: &mut Account, reading: Reading) {
    account.sim.model.set_metric(cpu(), Some(reading));
    account.settle();
}

fn desired(account: &Account) -> u32 {
    account.sim.model.groups().next().map_or(0, |group| group.desired)
}

#[test]
fn policies_are_put_described_and_deleted_by_group() {
    let mut account = Account::new();
    account.group(1, "");
    account.call("CreateAutoScalingGroup", &common::basic("h")).unwrap();
    let body = put(&mut account, "target", CPU).unwrap();
    let arn = element(&body, "PolicyARN");
    assert!(arn.ends_with(":autoScalingGroupName/g:policyName/target"), "{arn}");
    let alarms = elements(&body, "AlarmName");
    assert_eq!(alarms.len(), 2);
    assert!(alarms[0].starts_with("TargetTracking-g-AlarmHigh-"), "{alarms:?}");

    // The same name in another group is another policy; putting it again changes it.
    let other = CPU.replace("=60", "=70");
    account
        .call(
            "PutScalingPolicy",
            &format!(
                "AutoScalingGroupName=h PolicyName=target PolicyType=TargetTrackingScaling {other}"
            ),
        )
        .unwrap();
    let again = put(&mut account, "target", QUEUE).unwrap();
    assert_eq!(element(&again, "PolicyARN"), arn);
    let all = account.call("DescribePolicies", "").unwrap();
    assert_eq!(elements(&all, "AutoScalingGroupName"), ["g", "h"]);
    assert_eq!(elements(&all, "TargetValue"), ["12.5", "70.0"]);
    assert_eq!(element(&all, "MetricName"), "Depth");
    assert_eq!(elements(&all, "Enabled"), ["true", "true"]);

    for (form, groups) in [
        ("AutoScalingGroupName=h", vec!["h"]),
        ("PolicyNames.member.1=target", vec!["g", "h"]),
        (&format!("PolicyNames.member.1={arn}"), vec!["g"]),
        ("PolicyTypes.member.1=StepScaling", vec![]),
        ("AutoScalingGroupName=unknown", vec![]),
    ] {
        let found = account.call("DescribePolicies", form).unwrap();
        assert_eq!(elements(&found, "AutoScalingGroupName"), groups, "{form}");
    }
    let page = account.call("DescribePolicies", "MaxRecords=1").unwrap();
    let token = element(&page, "NextToken");
    let rest = account.call("DescribePolicies", &format!("NextToken={token}")).unwrap();
    assert_eq!(elements(&rest, "AutoScalingGroupName"), ["h"]);
    assert_eq!(element(&rest, "NextToken"), "");

    account.call("DeletePolicy", "AutoScalingGroupName=g PolicyName=target").unwrap();
    let left = account.call("DescribePolicies", "").unwrap();
    assert_eq!(elements(&left, "AutoScalingGroupName"), ["h"]);
}

#[test]
fn what_is_no_policy_is_refused() {
    let mut account = Account::new();
    account.group(1, "");
    let both = format!("{CPU} {QUEUE}");
    let zero = CPU.replace("=60", "=0");
    let gpu = CPU.replace("CPUUtilization", "GPUUtilization");
    let p99 = QUEUE.replace("Statistic=Average", "Statistic=p99");
    for (what, wanted) in [
        ("", "ValidationError: TargetTrackingConfiguration is required"),
        (both.as_str(), "ValidationError: Exactly one of PredefinedMetricSpecification and"),
        (&zero, "ValidationError: TargetValue must be a positive number."),
        (&gpu, "ValidationError: 1 validation error detected: Value 'ASGAverageGPUUtilization'"),
        (&p99, "ValidationError: 1 validation error detected: Value 'p99'"),
        (
            "TargetTrackingConfiguration.PredefinedMetricSpecification.PredefinedMetricType=ALBRequestCountPerTarget",
            "NotSimulated: The simulated AWS has no load balancers.",
        ),
    ] {
        let error = put(&mut account, "target", what).unwrap_err();
        assert!(error.starts_with(wanted), "{what}: {error}");
    }
    for (action, form, wanted) in [
        (
            "PutScalingPolicy",
            "AutoScalingGroupName=g PolicyName=p PolicyType=StepScaling",
            "NotSimulated: The simulated AWS knows scaling policies only of type",
        ),
        (
            "PutScalingPolicy",
            &format!("AutoScalingGroupName=no PolicyName=p PolicyType=TargetTrackingScaling {CPU}"),
            "ValidationError: AutoScalingGroup name not found",
        ),
        (
            "DeletePolicy",
            "AutoScalingGroupName=g PolicyName=p",
            "ValidationError: No policy found with name: p",
        ),
        ("DeletePolicy", "PolicyName=p", "ValidationError: AutoScalingGroupName is required"),
    ] {
        let error = account.call(action, form).unwrap_err();
        assert!(error.starts_with(wanted), "{action} {form}: {error}");
    }
    for n in 0..50 {
        put(&mut account, &format!("p{n}"), CPU).unwrap();
    }
    let error = put(&mut account, "one-more", CPU).unwrap_err();
    assert!(error.starts_with("LimitExceeded: "), "{error}");
    put(&mut account, "p7", QUEUE).expect("one that is there may change");
}

#[test]
fn a_group_grows_soon_and_shrinks_late() {
    let mut account = Account::new();
    account.group(2, "MinSize=2 MaxSize=8");
    put(&mut account, "target", CPU).unwrap();
    account.pass(3600);
    assert_eq!(desired(&account), 2, "no data, no change");
    // 300 % of work in all is 150 % for each of two: five keep it at 60 %.
    load(&mut account, Reading::Total(300.0));
    account.pass(170);
    assert_eq!(desired(&account), 2);
    account.pass(20);
    assert_eq!((desired(&account), account.states().split(' ').count()), (5, 5));
    account.pass(3600);
    assert_eq!(desired(&account), 5, "at its target nothing moves");
    let activities = account.call("DescribeScalingActivities", "AutoScalingGroupName=g").unwrap();
    let causes = elements(&activities, "Cause");
    assert!(
        causes[0]
            .contains("triggered policy target changing the desired capacity from 2 to 5.  At "),
        "{causes:?}"
    );
    assert!(causes.last().unwrap().starts_with("At 2026"), "the first launches were no policy's");

    // Never beyond the most, however high it is.
    load(&mut account, Reading::Total(10_000.0));
    account.pass(181);
    assert_eq!(desired(&account), 8);
    // Slightly below is no reason to shrink; well below is, after a quarter of an hour.
    load(&mut account, Reading::Total(8.0 * 55.0));
    account.pass(7200);
    assert_eq!(desired(&account), 8);
    load(&mut account, Reading::Total(30.0));
    account.pass(890);
    assert_eq!(desired(&account), 8);
    account.pass(20);
    assert_eq!(desired(&account), 2, "never below the least");
    assert_eq!(account.states(), "InService InService");
}

#[test]
fn a_high_value_that_stays_adds_nodes_again_and_again() {
    let mut account = Account::new();
    account.group(2, "MinSize=1 MaxSize=10");
    put(&mut account, "target", CPU).unwrap();
    load(&mut account, Reading::Value(90.0));
    let mut seen = vec![];
    for _ in 0..4 {
        account.pass(181);
        seen.push(desired(&account));
    }
    assert_eq!(seen, [3, 5, 8, 10]);
    account.sim.model.set_metric(cpu(), None);
    account.pass(7200);
    assert_eq!(desired(&account), 10, "without data nothing shrinks");
}

#[test]
fn all_policies_must_agree_to_shrink_and_any_may_grow() {
    let mut account = Account::new();
    account.group(4, "MinSize=1 MaxSize=10");
    put(&mut account, "cpu", CPU).unwrap();
    put(&mut account, "queue", QUEUE).unwrap();
    load(&mut account, Reading::Value(10.0));
    account.pass(3600);
    assert_eq!(desired(&account), 4, "nothing is known of the queue");
    let queue = Metric {
        namespace: "Queue".to_owned(),
        name: "Depth".to_owned(),
        dimensions: [("queue".to_owned(), "a".to_owned())].into(),
    };
    account.sim.model.set_metric(queue.clone(), Some(Reading::Total(75.0)));
    account.settle();
    account.pass(181);
    assert_eq!(desired(&account), 6);
    account.sim.model.set_metric(queue, Some(Reading::Total(25.0)));
    account.settle();
    account.pass(1000);
    assert_eq!(desired(&account), 2, "the larger of two wishes to shrink");

    // One that never scales in, or is disabled, does not.
    put(&mut account, "queue", &format!("{QUEUE} TargetTrackingConfiguration.DisableScaleIn=true"))
        .unwrap();
    account.pass(3600);
    assert_eq!(desired(&account), 2);
    put(&mut account, "queue", &format!("{QUEUE} Enabled=false")).unwrap();
    account.pass(1000);
    assert_eq!(desired(&account), 1);
}

#[test]
fn a_scale_in_drains_through_the_hook() {
    let mut account = Account::new();
    account.group(3, &format!("MinSize=1 MaxSize=10 {DRAIN}"));
    put(&mut account, "target", CPU).unwrap();
    load(&mut account, Reading::Total(10.0));
    account.pass(901);
    let states = account.states();
    let mut states: Vec<&str> = states.split(' ').collect();
    states.sort_unstable();
    assert_eq!(states, ["InService", "Terminating:Wait", "Terminating:Wait"]);
    let activities = account.call("DescribeScalingActivities", "AutoScalingGroupName=g").unwrap();
    let cause = &elements(&activities, "Cause")[0];
    assert!(cause.contains("AlarmLow"), "{cause}");
    // What somebody asks for by hand is no policy's doing any more.
    account.call("SetDesiredCapacity", "AutoScalingGroupName=g DesiredCapacity=2").unwrap();
    let activities = account.call("DescribeScalingActivities", "AutoScalingGroupName=g").unwrap();
    assert!(!elements(&activities, "Cause")[0].contains("policy"));
}
