"""The same scripted calls to moto (`moto`, in this process) or to a running aws-sim (`sim`): prints what each answered, one
JSON line a step. Only what moto is known to have right: it has no lifecycle states, no refresh, no validation of bounds."""

import json
import os
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

TARGET = sys.argv[1]
TEMPLATE = "outstation-node"
OPTIONS = {"region_name": "eu-central-1", "config": Config(retries={"max_attempts": 0}, proxies={})}
if TARGET == "moto":
    from moto import mock_aws

    mock_aws().start()
    boto3.client("ec2", **OPTIONS).create_launch_template(
        LaunchTemplateName=TEMPLATE, LaunchTemplateData={"ImageId": "ami-0123456789abcdef0", "InstanceType": "c7i.large"})
else:
    OPTIONS["endpoint_url"] = os.environ["SIM_URL"]
autoscaling = boto3.client("autoscaling", **OPTIONS)


def group_line(found):
    instances = found["Instances"]
    return {
        "name": found["AutoScalingGroupName"],
        "sizes": [found["MinSize"], found["MaxSize"], found["DesiredCapacity"]],
        "zones": sorted(found["AvailabilityZones"]),
        "template": [found["LaunchTemplate"]["LaunchTemplateName"], found["LaunchTemplate"]["Version"]],
        "protects": found["NewInstancesProtectedFromScaleIn"],
        "cooldown": found["DefaultCooldown"],
        "health_check": found["HealthCheckType"],
        "policies": found["TerminationPolicies"],
        "tags": sorted([tag["Key"], tag["Value"], tag["PropagateAtLaunch"], tag["ResourceId"], tag["ResourceType"]] for tag in found["Tags"]),
        "instances": sorted(
            [each["LifecycleState"], each["HealthStatus"].lower(), each["ProtectedFromScaleIn"], each["LaunchTemplate"]["Version"]]
            for each in instances),
    }


def groups(**arguments):
    return autoscaling.describe_auto_scaling_groups(**arguments)["AutoScalingGroups"]


def show(**arguments):
    return [group_line(found) for found in groups(**arguments)]


def step(name, call):
    """What it returned, or the code of its refusal."""
    try:
        answer = call()
    except ClientError as error:
        answer = {"refused": error.response["Error"]["Code"], "status": error.response["ResponseMetadata"]["HTTPStatusCode"]}
    if isinstance(answer, dict) and "ResponseMetadata" in answer:
        answer = "ok"
    print(json.dumps({"step": name, "answer": answer}, sort_keys=True))
    return answer


def settled(name):
    """Until AWS has launched or ended what the desired count asks for."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = groups(AutoScalingGroupNames=[name])[0]
        if [each["LifecycleState"] for each in found["Instances"]] == ["InService"] * found["DesiredCapacity"]:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{name} does not settle: {found}")


def create(name, **more):
    arguments = {
        "AutoScalingGroupName": name, "MinSize": 0, "MaxSize": 5, "DesiredCapacity": 2,
        "AvailabilityZones": ["eu-central-1a", "eu-central-1b"],
        "LaunchTemplate": {"LaunchTemplateName": TEMPLATE, "Version": "1"},
        "Tags": [{"Key": "owner", "Value": name, "PropagateAtLaunch": True}, {"Key": "side", "Value": "", "PropagateAtLaunch": False}],
        **more,
    }
    return autoscaling.create_auto_scaling_group(**arguments)


def tag(key, value, group="a"):
    return {"ResourceId": group, "ResourceType": "auto-scaling-group", "Key": key, "Value": value, "PropagateAtLaunch": True}


def terminate(found, decrement):
    instance = next(each["InstanceId"] for each in found["Instances"] if each["ProtectedFromScaleIn"])
    answer = autoscaling.terminate_instance_in_auto_scaling_group(InstanceId=instance, ShouldDecrementDesiredCapacity=decrement)
    after = settled("a")
    gone = instance not in [each["InstanceId"] for each in after["Instances"]]
    return {"gone": gone, "group": answer["Activity"]["AutoScalingGroupName"], "left": group_line(after)}


step("create a", lambda: create("a"))
settled("a")
step("it is there", show)
step("create b, protected", lambda: create("b", DesiredCapacity=0, MaxSize=1, NewInstancesProtectedFromScaleIn=True))
step("both are there", show)
step("one by its name", lambda: show(AutoScalingGroupNames=["b"]))
step("an unknown name is left out", lambda: show(AutoScalingGroupNames=["none", "b"]))
step("by a tag", lambda: [found["AutoScalingGroupName"] for found in groups(Filters=[{"Name": "tag:owner", "Values": ["a"]}])])
step("by two tags", lambda: [found["AutoScalingGroupName"] for found in groups(
    Filters=[{"Name": "tag-key", "Values": ["side"]}, {"Name": "tag:owner", "Values": ["b", "c"]}])])

step("more nodes", lambda: autoscaling.set_desired_capacity(AutoScalingGroupName="a", DesiredCapacity=4))
settled("a")
step("four", lambda: show(AutoScalingGroupNames=["a"]))
step("fewer nodes", lambda: autoscaling.set_desired_capacity(AutoScalingGroupName="a", DesiredCapacity=1))
settled("a")
step("one", lambda: show(AutoScalingGroupNames=["a"]))
step("new bounds", lambda: autoscaling.update_auto_scaling_group(AutoScalingGroupName="a", MinSize=2, MaxSize=3, DesiredCapacity=3))
settled("a")
step("bounds are shown", lambda: show(AutoScalingGroupNames=["a"]))

protect = {"AutoScalingGroupName": "a", "ProtectedFromScaleIn": True}
step("protect", lambda: autoscaling.set_instance_protection(
    InstanceIds=[each["InstanceId"] for each in groups(AutoScalingGroupNames=["a"])[0]["Instances"]], **protect))
step("protection is shown", lambda: show(AutoScalingGroupNames=["a"]))
step("terminated, replaced", lambda: terminate(groups(AutoScalingGroupNames=["a"])[0], False))
step("terminated, not replaced", lambda: terminate(groups(AutoScalingGroupNames=["a"])[0], True))

step("tag", lambda: autoscaling.create_or_update_tags(Tags=[tag("team", "x"), tag("owner", "y")]))
step("tags", lambda: sorted(json.dumps(each, sort_keys=True) for each in autoscaling.describe_tags(
    Filters=[{"Name": "auto-scaling-group", "Values": ["a"]}])["Tags"]))
step("untag", lambda: autoscaling.delete_tags(Tags=[tag("team", "x")]))
step("tags are shown", lambda: show(AutoScalingGroupNames=["a"])[0]["tags"])

for index in range(5):
    create(f"page-{index}", DesiredCapacity=0, Tags=[])
pages = autoscaling.get_paginator("describe_auto_scaling_groups").paginate(PaginationConfig={"PageSize": 2})
step("pages", lambda: sorted(found["AutoScalingGroupName"] for page in pages for found in page["AutoScalingGroups"]))
step("delete", lambda: autoscaling.delete_auto_scaling_group(AutoScalingGroupName="b", ForceDelete=True))
step("it is gone", lambda: show(AutoScalingGroupNames=["b"]))
