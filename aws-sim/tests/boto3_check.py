"""Drives a running aws-sim with boto3; exits non-zero at the first disagreement."""

import json
import os
import time
import urllib.request

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.utils import InstanceMetadataFetcher, InstanceMetadataRegionFetcher

URL = os.environ["SIM_URL"]
OPTIONS = {
    "endpoint_url": URL,
    "region_name": "eu-central-1",
    "config": Config(retries={"max_attempts": 0}, proxies={}),
}
autoscaling = boto3.client("autoscaling", **OPTIONS)
sts = boto3.client("sts", **OPTIONS)


def refused(code, call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, error
        assert error.response["ResponseMetadata"]["RequestId"]
        return error.response["ResponseMetadata"]["HTTPStatusCode"]
    raise AssertionError(f"{call.__name__} {arguments} was accepted, not {code}")


def until(what, found):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        value = found()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited for: {what}")


def group(name="g"):
    found = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    return found[0] if found else None


def in_service(count):
    def found():
        instances = group()["Instances"]
        states = [instance["LifecycleState"] for instance in instances]
        return instances if states == ["InService"] * count else None

    return until(f"{count} in service", found)


# Who am I, and who may not ask.
identity = sts.get_caller_identity()
assert identity["Arn"] == "arn:aws:sts::123456789012:assumed-role/outstation-agent/dev", identity
assert identity["UserId"] == "AROAEXAMPLEAGENT:dev" and identity["Account"] == "123456789012", identity
wrong = boto3.client("sts", aws_access_key_id="ASIAEXAMPLEAGENT", aws_secret_access_key="no",
                     aws_session_token=os.environ["AWS_SESSION_TOKEN"], **OPTIONS)
assert refused("SignatureDoesNotMatch", wrong.get_caller_identity) == 403
nobody = boto3.client("sts", aws_access_key_id="AKIANOBODY", aws_secret_access_key="no", aws_session_token="", **OPTIONS)
assert refused("InvalidClientTokenId", nobody.get_caller_identity) == 403

# A group with everything that the project uses.
request = {
    "AutoScalingGroupName": "g",
    "MinSize": 2,
    "MaxSize": 5,
    "DesiredCapacity": 2,
    "AvailabilityZones": ["eu-central-1a", "eu-central-1b"],
    "LaunchTemplate": {"LaunchTemplateName": "outstation-node", "Version": "1"},
    "HealthCheckType": "EC2",
    "HealthCheckGracePeriod": 0,
    "NewInstancesProtectedFromScaleIn": False,
    "TerminationPolicies": ["OldestInstance"],
    "Tags": [
        {"Key": "outstation:group", "Value": "delay & <co>", "PropagateAtLaunch": True},
        {"Key": "owner", "Value": "", "PropagateAtLaunch": False},
    ],
    "LifecycleHookSpecificationList": [
        {"LifecycleHookName": "outstation-drain", "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
         "HeartbeatTimeout": 300, "DefaultResult": "CONTINUE"},
    ],
}
autoscaling.create_auto_scaling_group(**request)
assert refused("AlreadyExists", autoscaling.create_auto_scaling_group, **request) == 400
instances = in_service(2)
seen = group()
assert (seen["MinSize"], seen["MaxSize"], seen["DesiredCapacity"]) == (2, 5, 2)
assert seen["AvailabilityZones"] == ["eu-central-1a", "eu-central-1b"]
assert seen["LaunchTemplate"]["Version"] == "1" and seen["TerminationPolicies"] == ["OldestInstance"]
assert [(tag["Key"], tag["Value"], tag["PropagateAtLaunch"]) for tag in seen["Tags"]] == [
    ("outstation:group", "delay & <co>", True), ("owner", "", False)], seen["Tags"]
assert {instance["AvailabilityZone"] for instance in instances} == {"eu-central-1a", "eu-central-1b"}
hooks = autoscaling.describe_lifecycle_hooks(AutoScalingGroupName="g")["LifecycleHooks"]
assert [(hook["HeartbeatTimeout"], hook["GlobalTimeout"], hook["DefaultResult"]) for hook in hooks] == [(300, 30000, "CONTINUE")]

# Instance metadata through botocore's own fetcher.
line = json.load(urllib.request.urlopen(f"{URL}/_sim/instances"))[0]
os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = line["imds"]
fetcher = InstanceMetadataFetcher(base_url=line["imds"], timeout=5, num_attempts=1, config={})
node = fetcher.retrieve_iam_role_credentials()
assert node["role_name"] == "outstation-node", node
node_sts = boto3.client("sts", aws_access_key_id=node["access_key"], aws_secret_access_key=node["secret_key"],
                        aws_session_token=node["token"], **OPTIONS)
arn = node_sts.get_caller_identity()["Arn"]
assert arn == f"arn:aws:sts::123456789012:assumed-role/outstation-node/{line['instance_id']}", arn
region = InstanceMetadataRegionFetcher(base_url=line["imds"], timeout=5, num_attempts=1).retrieve_region()
assert region == "eu-central-1", region

# Pages, filters, tags.
for index in range(5):
    autoscaling.create_auto_scaling_group(
        AutoScalingGroupName=f"page-{index}", MinSize=0, MaxSize=0, AvailabilityZones=["eu-central-1a"],
        LaunchTemplate={"LaunchTemplateId": "lt-0123456789abcdef0", "Version": "1"},
        Tags=[{"Key": "page", "Value": str(index % 2), "PropagateAtLaunch": True}])
paginator = autoscaling.get_paginator("describe_auto_scaling_groups")
names = [found["AutoScalingGroupName"] for page in paginator.paginate(PaginationConfig={"PageSize": 2}) for found in page["AutoScalingGroups"]]
assert names == ["g"] + [f"page-{index}" for index in range(5)], names
filtered = autoscaling.describe_auto_scaling_groups(Filters=[{"Name": "tag:page", "Values": ["1"]}])["AutoScalingGroups"]
assert [found["AutoScalingGroupName"] for found in filtered] == ["page-1", "page-3"]
tag = {"ResourceId": "page-0", "ResourceType": "auto-scaling-group", "Key": "page", "Value": "9", "PropagateAtLaunch": True}
autoscaling.create_or_update_tags(Tags=[tag])
tags = autoscaling.describe_tags(Filters=[{"Name": "auto-scaling-group", "Values": ["page-0"]}])["Tags"]
assert tags == [tag], tags
autoscaling.delete_tags(Tags=[tag])
assert autoscaling.describe_tags(Filters=[{"Name": "auto-scaling-group", "Values": ["page-0"]}])["Tags"] == []
refused("InvalidNextToken", autoscaling.describe_auto_scaling_groups, NextToken="x")
refused("ValidationError", autoscaling.describe_auto_scaling_groups, MaxRecords=101)

# Scaling policies: of each group its own, as boto3 reads them.
QUEUE = {"CustomizedMetricSpecification": {"Namespace": "Queue", "MetricName": "Depth", "Statistic": "Average",
                                           "Dimensions": [{"Name": "queue", "Value": "a"}]}, "TargetValue": 12.5}
CPU = {"PredefinedMetricSpecification": {"PredefinedMetricType": "ASGAverageCPUUtilization"}, "TargetValue": 60.0}
for index, tracked in enumerate([CPU, QUEUE, CPU]):
    put = autoscaling.put_scaling_policy(AutoScalingGroupName=f"page-{index}", PolicyName="target",
                                         PolicyType="TargetTrackingScaling", TargetTrackingConfiguration=tracked)
    assert len(put["Alarms"]) == 2 and put["PolicyARN"].startswith("arn:aws:autoscaling:"), put
policies = [policy for page in autoscaling.get_paginator("describe_policies").paginate(PaginationConfig={"PageSize": 2})
            for policy in page["ScalingPolicies"]]
assert [policy["AutoScalingGroupName"] for policy in policies] == ["page-0", "page-1", "page-2"], policies
assert policies[1]["TargetTrackingConfiguration"] == {**QUEUE, "DisableScaleIn": False}, policies[1]
assert policies[0]["Enabled"] and policies[0]["TargetTrackingConfiguration"]["TargetValue"] == 60.0, policies[0]
autoscaling.delete_policy(AutoScalingGroupName="page-0", PolicyName="target")
refused("ValidationError", autoscaling.delete_policy, AutoScalingGroupName="page-0", PolicyName="target")
refused("ValidationError", autoscaling.put_scaling_policy, AutoScalingGroupName="page-0", PolicyName="target",
        PolicyType="TargetTrackingScaling")

# Scale out, in through the hook, protection, health, termination by hand.
autoscaling.set_desired_capacity(AutoScalingGroupName="g", DesiredCapacity=4)
instances = in_service(4)
refused("ValidationError", autoscaling.set_desired_capacity, AutoScalingGroupName="g", DesiredCapacity=6)
refused("ValidationError", autoscaling.update_auto_scaling_group, AutoScalingGroupName="g", MinSize=6)
keep = [instance["InstanceId"] for instance in instances[:2]]
autoscaling.set_instance_protection(AutoScalingGroupName="g", InstanceIds=keep, ProtectedFromScaleIn=True)
autoscaling.set_desired_capacity(AutoScalingGroupName="g", DesiredCapacity=2)
waiting = until("two wait", lambda: [found for found in group()["Instances"] if found["LifecycleState"] == "Terminating:Wait"])
assert len(waiting) == 2 and not {found["InstanceId"] for found in waiting} & set(keep)
for found in waiting:
    action = {"AutoScalingGroupName": "g", "LifecycleHookName": "outstation-drain", "InstanceId": found["InstanceId"]}
    autoscaling.record_lifecycle_action_heartbeat(**action)
    autoscaling.complete_lifecycle_action(LifecycleActionResult="CONTINUE", **action)
assert sorted(found["InstanceId"] for found in in_service(2)) == sorted(keep)
refused("ResourceInUse", autoscaling.delete_auto_scaling_group, AutoScalingGroupName="g")
refused("ValidationError", autoscaling.terminate_instance_in_auto_scaling_group,
        InstanceId=keep[0], ShouldDecrementDesiredCapacity=True)
autoscaling.delete_lifecycle_hook(AutoScalingGroupName="g", LifecycleHookName="outstation-drain")
autoscaling.set_instance_health(InstanceId=keep[0], HealthStatus="Unhealthy")
activity = autoscaling.terminate_instance_in_auto_scaling_group(InstanceId=keep[1], ShouldDecrementDesiredCapacity=False)["Activity"]
assert activity["Description"] == f"Terminating EC2 instance: {keep[1]}" and activity["StartTime"].tzinfo, activity


def replaced():
    ids = {found["InstanceId"] for found in group()["Instances"] if found["LifecycleState"] == "InService"}
    return len(ids) == 2 and not ids & set(keep)


until("both are replaced", replaced)
alive = autoscaling.describe_auto_scaling_instances()["AutoScalingInstances"]
assert len(alive) == 2 and all(found["AutoScalingGroupName"] == "g" for found in alive), alive
activities = [found for page in autoscaling.get_paginator("describe_scaling_activities").paginate(AutoScalingGroupName="g", PaginationConfig={"PageSize": 3})
              for found in page["Activities"]]
until("all activities end", lambda: all(
    found["StatusCode"] == "Successful"
    for found in autoscaling.describe_scaling_activities(AutoScalingGroupName="g")["Activities"]))
assert len(activities) == 10, [found["Description"] for found in activities]

# A new image is rolled through the group; a second refresh waits its turn, and one without a goal cannot be rolled back.
configuration = {"LaunchTemplate": {"LaunchTemplateName": "outstation-node", "Version": "2"}}
preferences = {"MinHealthyPercentage": 50, "MaxHealthyPercentage": 100, "SkipMatching": True, "AutoRollback": True,
               "ScaleInProtectedInstances": "Refresh", "StandbyInstances": "Ignore", "InstanceWarmup": 1}
refused("ActiveInstanceRefreshNotFound", autoscaling.cancel_instance_refresh, AutoScalingGroupName="g")
started = autoscaling.start_instance_refresh(AutoScalingGroupName="g", DesiredConfiguration=configuration, Preferences=preferences)
refused("InstanceRefreshInProgress", autoscaling.start_instance_refresh, AutoScalingGroupName="g")


def refresh():
    return autoscaling.describe_instance_refreshes(AutoScalingGroupName="g")["InstanceRefreshes"][0]


until("the refresh ends", lambda: refresh()["Status"] == "Successful")
ended = refresh()
assert ended["InstanceRefreshId"] == started["InstanceRefreshId"] and ended["EndTime"] >= ended["StartTime"], ended
assert (ended["PercentageComplete"], ended["InstancesToUpdate"]) == (100, 0), ended
assert ended["Preferences"] == preferences and ended["Strategy"] == "Rolling", ended
assert ended["DesiredConfiguration"]["LaunchTemplate"]["Version"] == "2", ended
assert group()["LaunchTemplate"]["Version"] == "2"
assert {each["LaunchTemplate"]["Version"] for each in in_service(2)} == {"2"}
autoscaling.start_instance_refresh(AutoScalingGroupName="g", Preferences={"InstanceWarmup": 3600})
refused("IrreversibleInstanceRefresh", autoscaling.rollback_instance_refresh, AutoScalingGroupName="g")
autoscaling.cancel_instance_refresh(AutoScalingGroupName="g", WaitForTransitioningInstances=False)
until("it is cancelled", lambda: refresh()["Status"] == "Cancelled")
in_service(2)

# What a person suspends rests; a warm pool waits stopped, and its machines start again in the group.
autoscaling.suspend_processes(AutoScalingGroupName="g", ScalingProcesses=["Launch"])
assert [each["ProcessName"] for each in group()["SuspendedProcesses"]] == ["Launch"]
autoscaling.resume_processes(AutoScalingGroupName="g")
autoscaling.put_warm_pool(AutoScalingGroupName="g", MaxGroupPreparedCapacity=3, PoolState="Stopped", InstanceReusePolicy={"ReuseOnScaleIn": True})


def pool():
    return autoscaling.describe_warm_pool(AutoScalingGroupName="g")


warmed = until("one is warm", lambda: [each for each in pool()["Instances"] if each["LifecycleState"] == "Warmed:Stopped"])
assert pool()["WarmPoolConfiguration"] == {
    "MaxGroupPreparedCapacity": 3, "MinSize": 0, "PoolState": "Stopped", "InstanceReusePolicy": {"ReuseOnScaleIn": True}}
until("its machine is off", lambda: len([line for line in json.load(urllib.request.urlopen(f"{URL}/_sim/instances")) if line["launcher_pid"]]) == 2)
autoscaling.set_desired_capacity(AutoScalingGroupName="g", DesiredCapacity=3)
assert warmed[0]["InstanceId"] in [each["InstanceId"] for each in in_service(3)]
autoscaling.set_desired_capacity(AutoScalingGroupName="g", DesiredCapacity=2)
until("one is back", lambda: pool()["Instances"] and pool()["Instances"][0]["LifecycleState"] == "Warmed:Stopped")
refused("ResourceInUse", autoscaling.delete_warm_pool, AutoScalingGroupName="g")
autoscaling.delete_warm_pool(AutoScalingGroupName="g", ForceDelete=True)
until("the pool is gone", lambda: "WarmPoolConfiguration" not in pool())

autoscaling.delete_auto_scaling_group(AutoScalingGroupName="g", ForceDelete=True)
until("the group is gone", lambda: group() is None)
refused("ValidationError", autoscaling.delete_auto_scaling_group, AutoScalingGroupName="g")
print("boto3 agrees")
