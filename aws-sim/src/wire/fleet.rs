//! AutoScaling's calls about a group's fleet: instance refresh, warm pool, suspended processes.

use time::OffsetDateTime;

use super::parse;
use super::query::Params;
use super::render::{self, launch_template, timestamp};
use super::xml::Xml;
use super::{Answer, parse::page};
use crate::model::group::Group;
use crate::model::refresh::{Preferences, Protected, Refresh, Standby};
use crate::model::requests::{PutWarmPool, StartRefresh};
use crate::model::warm_pool::{PoolState, WarmPool};
use crate::model::{AwsError, Model};

/// `None` for an action of another file.
pub fn call(
    model: &mut Model,
    action: &str,
    params: &Params,
    now: OffsetDateTime,
) -> Option<Result<Answer, AwsError>> {
    Some(match action {
        "StartInstanceRefresh" => start_refresh(model, action, params, now),
        "CancelInstanceRefresh" => cancel_refresh(model, action, params, now),
        "RollbackInstanceRefresh" => rollback_refresh(model, action, params, now),
        "DescribeInstanceRefreshes" => describe_refreshes(model, action, params),
        "PutWarmPool" => put_warm_pool(model, action, params),
        "DeleteWarmPool" => delete_warm_pool(model, action, params, now),
        "DescribeWarmPool" => describe_warm_pool(model, action, params),
        "SuspendProcesses" | "ResumeProcesses" => processes(model, action, params, now),
        _ => return None,
    })
}

fn start_refresh(
    model: &mut Model,
    action: &str,
    params: &Params,
    now: OffsetDateTime,
) -> Result<Answer, AwsError> {
    match params.string("Strategy").as_deref() {
        None | Some("Rolling") => {}
        Some(other) => {
            return Err(AwsError::not_simulated(format!(
                "The simulated AWS knows Strategy only as Rolling, not {other}."
            )));
        }
    }
    let call = StartRefresh {
        group: parse::group_name(params)?,
        desired: parse::template(params, "DesiredConfiguration.LaunchTemplate")?,
        preferences: preferences(params)?,
    };
    params.finish(action)?;
    let id = model.start_refresh(call, now)?;
    Ok(refresh_id(&id))
}

fn preferences(params: &Params) -> Result<Preferences, AwsError> {
    let name = |field: &str| format!("Preferences.{field}");
    let one_of = |field: &str, known: &str| {
        AwsError::constraint(
            &params.string(&name(field)).unwrap_or_default(),
            &format!("preferences.{field}"),
            &format!("Member must satisfy enum value set: [{known}]"),
        )
    };
    let protected = match params.string(&name("ScaleInProtectedInstances")).as_deref() {
        None => None,
        Some("Refresh") => Some(Protected::Refresh),
        Some("Ignore") => Some(Protected::Ignore),
        Some("Wait") => Some(Protected::Wait),
        Some(_) => return Err(one_of("ScaleInProtectedInstances", "Refresh, Ignore, Wait")),
    };
    let standby = match params.string(&name("StandbyInstances")).as_deref() {
        None => None,
        Some("Terminate") => Some(Standby::Terminate),
        Some("Ignore") => Some(Standby::Ignore),
        Some("Wait") => Some(Standby::Wait),
        Some(_) => return Err(one_of("StandbyInstances", "Terminate, Ignore, Wait")),
    };
    Ok(Preferences {
        min_healthy: params.count(&name("MinHealthyPercentage"))?,
        max_healthy: params.count(&name("MaxHealthyPercentage"))?,
        warmup_secs: params.count(&name("InstanceWarmup"))?,
        skip_matching: params.boolean(&name("SkipMatching"))?,
        auto_rollback: params.boolean(&name("AutoRollback"))?,
        protected,
        standby,
    })
}

fn cancel_refresh(
    model: &mut Model,
    action: &str,
    params: &Params,
    now: OffsetDateTime,
) -> Result<Answer, AwsError> {
    let name = parse::group_name(params)?;
    let wait = params.boolean("WaitForTransitioningInstances")?.unwrap_or(true);
    params.finish(action)?;
    let id = model.cancel_refresh(&name, wait, now)?;
    Ok(refresh_id(&id))
}

fn rollback_refresh(
    model: &mut Model,
    action: &str,
    params: &Params,
    now: OffsetDateTime,
) -> Result<Answer, AwsError> {
    let name = parse::group_name(params)?;
    params.finish(action)?;
    let id = model.rollback_refresh(&name, now)?;
    Ok(refresh_id(&id))
}

fn refresh_id(id: &str) -> Answer {
    let mut xml = Xml::fragment();
    xml.text("InstanceRefreshId", id);
    Some(xml)
}

fn describe_refreshes(model: &Model, action: &str, params: &Params) -> Result<Answer, AwsError> {
    let name = parse::group_name(params)?;
    let (ids, page) = (params.list("InstanceRefreshIds")?, page(params)?);
    params.finish(action)?;
    let (group, paged) = model.describe_refreshes(&name, &ids, &page)?;
    let mut xml = Xml::fragment();
    xml.list("InstanceRefreshes", paged.items, |xml, refresh| render_refresh(xml, group, refresh));
    xml.optional("NextToken", paged.next_token);
    Ok(Some(xml))
}

fn render_refresh(xml: &mut Xml, group: &Group, refresh: &Refresh) {
    xml.text("InstanceRefreshId", &refresh.id);
    xml.text("AutoScalingGroupName", &group.name);
    xml.text("Status", refresh.status.as_str());
    xml.optional("StatusReason", refresh.reason.as_ref());
    xml.text("StartTime", timestamp(refresh.started));
    xml.optional("EndTime", refresh.ended.map(timestamp));
    xml.text("PercentageComplete", refresh.percent);
    xml.text("InstancesToUpdate", refresh.to_update);
    xml.element("Preferences", |xml| {
        let preferences = &refresh.preferences;
        xml.text("MinHealthyPercentage", preferences.min_healthy.unwrap_or(90));
        xml.optional("InstanceWarmup", preferences.warmup_secs);
        xml.text("SkipMatching", preferences.skip_matching.unwrap_or(false));
        xml.text("AutoRollback", preferences.auto_rollback.unwrap_or(false));
        xml.text(
            "ScaleInProtectedInstances",
            preferences.protected.unwrap_or(Protected::Wait).as_str(),
        );
        xml.text("StandbyInstances", preferences.standby.unwrap_or(Standby::Wait).as_str());
        xml.optional("MaxHealthyPercentage", preferences.max_healthy);
    });
    if let Some(desired) = &refresh.desired {
        xml.element("DesiredConfiguration", |xml| {
            launch_template(xml, &desired.id, &desired.name, &desired.version);
        });
    }
    if let Some(rollback) = &refresh.rollback {
        xml.element("RollbackDetails", |xml| {
            xml.text("RollbackReason", &rollback.reason);
            xml.text("RollbackStartTime", timestamp(rollback.started));
            xml.text("PercentageCompleteOnRollback", rollback.percent);
            xml.text("InstancesToUpdateOnRollback", rollback.to_update);
        });
    }
    xml.text("Strategy", "Rolling");
}

fn put_warm_pool(model: &mut Model, action: &str, params: &Params) -> Result<Answer, AwsError> {
    let state = match params.string("PoolState").as_deref() {
        None => None,
        Some("Stopped") => Some(PoolState::Stopped),
        Some("Running") => Some(PoolState::Running),
        Some("Hibernated") => Some(PoolState::Hibernated),
        Some(other) => {
            return Err(AwsError::constraint(
                other,
                "poolState",
                "Member must satisfy enum value set: [Stopped, Running, Hibernated]",
            ));
        }
    };
    let call = PutWarmPool {
        group: parse::group_name(params)?,
        min_size: params.count("MinSize")?,
        prepared_max: params.integer("MaxGroupPreparedCapacity")?,
        state,
        reuse_on_scale_in: params.boolean("InstanceReusePolicy.ReuseOnScaleIn")?,
    };
    params.finish(action)?;
    model.put_warm_pool(call).map(|()| Some(Xml::fragment()))
}

fn delete_warm_pool(
    model: &mut Model,
    action: &str,
    params: &Params,
    now: OffsetDateTime,
) -> Result<Answer, AwsError> {
    let name = parse::group_name(params)?;
    let force = params.boolean("ForceDelete")?.unwrap_or(false);
    params.finish(action)?;
    model.delete_warm_pool(&name, force, now).map(|()| Some(Xml::fragment()))
}

fn describe_warm_pool(model: &Model, action: &str, params: &Params) -> Result<Answer, AwsError> {
    let (name, page) = (parse::group_name(params)?, page(params)?);
    params.finish(action)?;
    let (pool, paged) = model.describe_warm_pool(&name, &page)?;
    let mut xml = Xml::fragment();
    if let Some(pool) = pool {
        warm_pool(&mut xml, pool);
    }
    xml.list("Instances", paged.items, render::instance);
    xml.optional("NextToken", paged.next_token);
    Ok(Some(xml))
}

/// As DescribeWarmPool and DescribeAutoScalingGroups show it.
pub fn warm_pool(xml: &mut Xml, pool: &WarmPool) {
    xml.element("WarmPoolConfiguration", |xml| {
        xml.optional("MaxGroupPreparedCapacity", pool.prepared_max);
        xml.text("MinSize", pool.min_size);
        xml.text("PoolState", pool.state.as_str());
        xml.optional("Status", pool.deleting.then_some("PendingDelete"));
        if let Some(reuse) = pool.reuse_on_scale_in {
            xml.element("InstanceReusePolicy", |xml| xml.text("ReuseOnScaleIn", reuse));
        }
    });
}

fn processes(
    model: &mut Model,
    action: &str,
    params: &Params,
    now: OffsetDateTime,
) -> Result<Answer, AwsError> {
    let (name, processes) = (parse::group_name(params)?, params.list("ScalingProcesses")?);
    params.finish(action)?;
    let done = if action == "SuspendProcesses" {
        model.suspend_processes(&name, &processes, now)
    } else {
        model.resume_processes(&name, &processes)
    };
    done.map(|()| None)
}
