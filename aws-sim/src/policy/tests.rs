//! The evaluator where the project's policies lean on it; what iam-rs cannot do must not be leaned on.

use super::*;

fn judge(condition: &str, context: &[(&str, Value)]) -> bool {
    let document = format!(
        r#"{{"Version": "2012-10-17", "Statement": [{{"Sid": "S", "Effect": "Allow",
            "Action": ["autoscaling:Set*"], "Resource":
            "arn:aws:autoscaling:eu-central-1:123456789012:autoScalingGroup:*:autoScalingGroupName/outstation-*",
            "Condition": {condition}}}]}}"#
    );
    let policies = Policies::parse([document.as_str()]).expect("a policy");
    let context = context.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let check = Check {
        action: "autoscaling:SetDesiredCapacity".to_owned(),
        resource: "arn:aws:autoscaling:eu-central-1:123456789012:autoScalingGroup:\
                   11111111-2222-3333-4444-555555555555:autoScalingGroupName/outstation-a"
            .to_owned(),
        context,
        template: None,
    };
    policies.judge(&check).allowed
}

fn texts(values: &[&str]) -> Value {
    Value::Texts(values.iter().map(|value| (*value).to_owned()).collect())
}

#[test]
fn conditions_mean_what_they_mean_at_aws() {
    let text = |value: &str| Value::Text(value.to_owned());
    for (condition, context, wanted) in [
        (r#"{"StringEquals": {"k": "a"}}"#, vec![("k", text("a"))], true),
        (r#"{"StringEquals": {"k": "a"}}"#, vec![("k", text("A"))], false),
        (r#"{"StringEquals": {"k": "a"}}"#, vec![], false),
        (r#"{"StringEquals": {"k": ["a", "b"]}}"#, vec![("k", text("b"))], true),
        // Names of keys do not tell upper from lower case.
        (
            r#"{"StringEquals": {"aws:ResourceTag/k": "a"}}"#,
            vec![("aws:ResourceTag/K", text("a"))],
            true,
        ),
        (r#"{"NumericLessThanEquals": {"k": "40"}}"#, vec![("k", Value::Number(40))], true),
        (r#"{"NumericLessThanEquals": {"k": "40"}}"#, vec![("k", Value::Number(41))], false),
        (r#"{"NumericLessThanEquals": {"k": "40"}}"#, vec![("k", Value::Number(100))], false),
        (r#"{"NumericLessThanEquals": {"k": "40"}}"#, vec![], false),
        (r#"{"NumericLessThanEqualsIfExists": {"k": "40"}}"#, vec![], true),
        (
            r#"{"NumericLessThanEqualsIfExists": {"k": "40"}}"#,
            vec![("k", Value::Number(41))],
            false,
        ),
        (r#"{"Bool": {"k": "true"}}"#, vec![("k", Value::Bool(true))], true),
        (r#"{"Bool": {"k": "true"}}"#, vec![("k", Value::Bool(false))], false),
        (r#"{"Bool": {"k": "false"}}"#, vec![], false),
        (r#"{"Null": {"k": "false"}}"#, vec![], false),
        (r#"{"Null": {"k": "false"}}"#, vec![("k", text("a"))], true),
        (r#"{"Null": {"k": "true"}}"#, vec![], true),
        // The trap: of nothing, everything is true.
        (r#"{"ForAllValues:StringEquals": {"k": "a"}}"#, vec![], true),
        (
            r#"{"ForAllValues:StringEquals": {"k": ["a", "b"]}}"#,
            vec![("k", texts(&["a", "b"]))],
            true,
        ),
        (
            r#"{"ForAllValues:StringEquals": {"k": ["a", "b"]}}"#,
            vec![("k", texts(&["a", "c"]))],
            false,
        ),
        (
            r#"{"ForAnyValue:StringEqualsIgnoreCase": {"k": "a"}}"#,
            vec![("k", texts(&["c", "A"]))],
            true,
        ),
        (
            r#"{"ForAnyValue:StringEqualsIgnoreCase": {"k": "a"}}"#,
            vec![("k", texts(&["c"]))],
            false,
        ),
        (r#"{"ForAnyValue:StringEqualsIgnoreCase": {"k": "a"}}"#, vec![], false),
        (
            r#"{"ArnEquals": {"k": "arn:aws:ec2:r:1:launch-template/lt-1"}}"#,
            vec![("k", text("arn:aws:ec2:r:1:launch-template/lt-1"))],
            true,
        ),
        (
            r#"{"ArnEquals": {"k": "arn:aws:ec2:r:1:launch-template/lt-1"}}"#,
            vec![("k", text("arn:aws:ec2:r:1:launch-template/lt-2"))],
            false,
        ),
        // All operators and all keys of a statement count.
        (r#"{"StringEquals": {"k": "a"}, "Bool": {"b": "true"}}"#, vec![("k", text("a"))], false),
        (r#"{"StringEquals": {"k": "a", "l": "b"}}"#, vec![("k", text("a"))], false),
    ] {
        assert_eq!(judge(condition, &context), wanted, "{condition} of {context:?}");
    }
}

#[test]
fn what_is_no_policy_is_refused() {
    for (text, words) in [
        ("{}", "missing field"),
        (r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow"}]}"#, ""),
        (
            r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:Get*",
                "Resource": "*", "Condition": {"StringAlmostEquals": {"k": "a"}}}]}"#,
            "",
        ),
    ] {
        let error = Policies::parse([text]).expect_err(text).to_string();
        assert!(error.contains(words), "{error}");
    }
}
