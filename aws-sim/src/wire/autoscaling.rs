//! AutoScaling, API version 2011-01-01: each action from its parameters through the model to its answer.

use time::OffsetDateTime;

use super::query::Params;
use super::xml::Xml;
use super::{Answer, fleet, parse, policies, render, unknown_action};
use crate::model::requests::{
    CreateGroup, SetDesired, SetHealth, SetProtection, TerminateInstance, UpdateGroup,
};
use crate::model::{AwsError, HookName, InstanceId, Model};

const VERSION: &str = "2011-01-01";

/// Parameters are read whole before anything changes, so a refused call changes nothing.
pub fn call(
    model: &mut Model,
    action: &str,
    params: &Params,
    now: OffsetDateTime,
) -> Result<Answer, AwsError> {
    match action {
        "CreateAutoScalingGroup" => {
            let name = parse::group_name(params)?;
            let hooks = parse::hook_specifications(params, &name)?;
            let call = CreateGroup {
                settings: parse::settings(params)?,
                tags: parse::tags(params)?,
                hooks,
                name,
            };
            params.finish(action)?;
            model.create_group(call, now).map(|()| None)
        }
        "UpdateAutoScalingGroup" => {
            let call = UpdateGroup {
                name: parse::group_name(params)?,
                settings: parse::settings(params)?,
            };
            params.finish(action)?;
            model.update_group(call).map(|()| None)
        }
        "SetDesiredCapacity" => {
            let desired = params.count("DesiredCapacity")?;
            let call = SetDesired {
                name: parse::group_name(params)?,
                desired: desired.ok_or_else(|| {
                    AwsError::constraint("null", "desiredCapacity", "Member must not be null")
                })?,
                honor_cooldown: params.boolean("HonorCooldown")?.unwrap_or(false),
            };
            params.finish(action)?;
            model.set_desired(call, now).map(|()| None)
        }
        "DeleteAutoScalingGroup" => {
            let (name, force) =
                (parse::group_name(params)?, params.boolean("ForceDelete")?.unwrap_or(false));
            params.finish(action)?;
            model.delete_group(&name, force, now).map(|()| None)
        }
        "CreateOrUpdateTags" => {
            let tags = parse::tags(params)?;
            params.finish(action)?;
            model.put_tags(tags).map(|()| None)
        }
        "DeleteTags" => {
            let tags = parse::tags(params)?;
            params.finish(action)?;
            model.delete_tags(tags).map(|()| None)
        }
        "PutLifecycleHook" => {
            let name = parse::group_name(params)?;
            let call = parse::hook(params, "", &name)?;
            params.finish(action)?;
            model.put_hook(call).map(|()| empty())
        }
        "DeleteLifecycleHook" => {
            let name = parse::group_name(params)?;
            let hook = HookName::try_from(params.required("LifecycleHookName")?)?;
            params.finish(action)?;
            model.delete_hook(&name, &hook).map(|()| empty())
        }
        "CompleteLifecycleAction" => {
            let call = parse::action_ref(params)?;
            let result = parse::hook_result(&params.required("LifecycleActionResult")?)?;
            params.finish(action)?;
            model.complete_action(&call, result).map(|()| empty())
        }
        "RecordLifecycleActionHeartbeat" => {
            let call = parse::action_ref(params)?;
            params.finish(action)?;
            model.record_heartbeat(&call, now).map(|()| empty())
        }
        "TerminateInstanceInAutoScalingGroup" => {
            let decrement = params.boolean("ShouldDecrementDesiredCapacity")?;
            let call = TerminateInstance {
                instance: InstanceId::try_from(params.required("InstanceId")?)?,
                decrement: decrement.ok_or_else(|| {
                    AwsError::constraint(
                        "null",
                        "shouldDecrementDesiredCapacity",
                        "Member must not be null",
                    )
                })?,
            };
            params.finish(action)?;
            let activity = model.terminate_instance(&call, now)?;
            let mut xml = Xml::fragment();
            xml.element("Activity", |xml| render::activity(xml, &activity));
            Ok(Some(xml))
        }
        "SetInstanceHealth" => {
            let call = SetHealth {
                instance: InstanceId::try_from(params.required("InstanceId")?)?,
                healthy: match params.required("HealthStatus")?.as_str() {
                    "Healthy" => true,
                    "Unhealthy" => false,
                    _ => {
                        return Err(AwsError::validation(
                            "Valid instance health states are: [Healthy, Unhealthy].",
                        ));
                    }
                },
                respect_grace: params.boolean("ShouldRespectGracePeriod")?.unwrap_or(true),
            };
            params.finish(action)?;
            model.set_health(&call, now).map(|()| None)
        }
        "SetInstanceProtection" => {
            let protected = params.boolean("ProtectedFromScaleIn")?;
            let call = SetProtection {
                group: parse::group_name(params)?,
                instances: parse::instance_ids(params)?,
                protected: protected.ok_or_else(|| {
                    AwsError::constraint("null", "protectedFromScaleIn", "Member must not be null")
                })?,
            };
            params.finish(action)?;
            model.set_protection(&call).map(|()| empty())
        }
        "PutScalingPolicy" => policies::put(model, params),
        "DeletePolicy" => policies::delete(model, params),
        _ => match fleet::call(model, action, params, now) {
            Some(answer) => answer,
            None => read(model, action, params),
        },
    }
}

/// The actions that change nothing.
fn read(model: &Model, action: &str, params: &Params) -> Result<Answer, AwsError> {
    let mut xml = Xml::fragment();
    let next_token = match action {
        "DescribeAutoScalingGroups" => {
            let (names, filters) = (params.list("AutoScalingGroupNames")?, parse::filters(params)?);
            let with_instances = params.boolean("IncludeInstances")?.unwrap_or(true);
            let page = parse::page(params)?;
            params.finish(action)?;
            let paged = model.describe_groups(&names, &filters, &page)?;
            xml.list("AutoScalingGroups", paged.items, |xml, group| {
                render::group(xml, group, with_instances)
            });
            paged.next_token
        }
        "DescribeAutoScalingInstances" => {
            let (ids, page) = (parse::instance_ids(params)?, parse::page(params)?);
            params.finish(action)?;
            let paged = model.describe_instances(&ids, &page)?;
            xml.list("AutoScalingInstances", paged.items, |xml, instance| {
                xml.text("AutoScalingGroupName", &instance.group);
                render::instance(xml, instance);
            });
            paged.next_token
        }
        "DescribeTags" => {
            let (filters, page) = (parse::filters(params)?, parse::page(params)?);
            params.finish(action)?;
            let paged = model.describe_tags(&filters, &page)?;
            xml.list("Tags", paged.items, render::tag);
            paged.next_token
        }
        "DescribeLifecycleHooks" => {
            let (group, names) = (parse::group_name(params)?, params.list("LifecycleHookNames")?);
            params.finish(action)?;
            let hooks = model.describe_hooks(&group, &names)?;
            xml.list("LifecycleHooks", hooks, |xml, hook| render::hook(xml, &group, hook));
            None
        }
        "DescribePolicies" => policies::describe(model, params, &mut xml)?,
        "DescribeScalingActivities" => {
            let group = if params.has("AutoScalingGroupName") {
                Some(parse::group_name(params)?)
            } else {
                None
            };
            let (ids, page) = (params.list("ActivityIds")?, parse::page(params)?);
            if params.boolean("IncludeDeletedGroups")? == Some(true) {
                return Err(AwsError::not_simulated(
                    "The simulated AWS forgets the activities of deleted groups.",
                ));
            }
            params.finish(action)?;
            let paged = model.describe_activities(group.as_ref(), &ids, &page)?;
            xml.list("Activities", paged.items, render::activity);
            paged.next_token
        }
        other => return Err(unknown_action(other, VERSION)),
    };
    xml.optional("NextToken", next_token);
    Ok(Some(xml))
}

/// Actions with an output shape that has no members answer an empty result element.
fn empty() -> Answer {
    Some(Xml::fragment())
}
