//! Create, update, resize and delete a group.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use time::OffsetDateTime;

use super::capacity;
use super::group::{Group, Launches, Machine, Placement, TemplateRef, TerminationPolicy};
use super::requests::{CreateGroup, GroupSettings, SetDesired, TemplateSpec, UpdateGroup};
use super::suspended::Suspended;
use super::tags::apply_tags;
use super::{AwsError, Code, GROUPS_MAX, GroupName, Model, World, refresh};

impl Model {
    pub fn create_group(&mut self, call: CreateGroup, now: OffsetDateTime) -> Result<(), AwsError> {
        let CreateGroup { name, settings, tags, hooks } = call;
        if let Some(existing) = self.groups.get(&name) {
            let pending = if existing.deleting { " and is pending delete" } else { "" };
            return Err(AwsError::new(
                Code::AlreadyExists,
                format!(
                    "AutoScalingGroup by this name already exists - A group with the name {name} already exists{pending}"
                ),
            ));
        }
        let world = &mut self.world;
        let Some(template) = &settings.template else {
            return Err(AwsError::validation(
                "Valid requests must contain either LaunchTemplate, LaunchConfigurationName, InstanceId or MixedInstancesPolicy parameter.",
            ));
        };
        let template = world.template_ref(template)?;
        let min = settings.min.ok_or_else(|| missing("minSize"))?;
        let max = settings.max.ok_or_else(|| missing("maxSize"))?;
        let desired = settings.desired.unwrap_or(min);
        check_bounds(min, max, desired)?;
        let placements =
            world.placements(settings.zones.as_deref(), settings.subnets.as_deref())?;
        if placements.is_empty() {
            return Err(AwsError::validation(
                "At least one Availability Zone or VPC Subnet is required.",
            ));
        }
        let uuid = world.ids.uuid();
        let mut group = Group {
            arn: format!(
                "arn:aws:autoscaling:{}:{}:autoScalingGroup:{uuid}:autoScalingGroupName/{name}",
                world.config.region, world.config.account
            ),
            name: name.clone(),
            template,
            min,
            max,
            desired,
            placements,
            subnets: None,
            health_check_type: "EC2".to_owned(),
            health_check_grace: Duration::ZERO,
            default_cooldown: Duration::from_secs(300),
            default_instance_warmup_secs: None,
            termination_policies: vec![TerminationPolicy::Default],
            new_instances_protected: false,
            context: None,
            tags: BTreeMap::new(),
            hooks: BTreeMap::new(),
            policies: BTreeMap::new(),
            instances: BTreeMap::new(),
            created: now,
            deleting: false,
            activities: VecDeque::new(),
            suspended: Suspended::default(),
            refreshes: VecDeque::new(),
            warm_pool: None,
            launches: Launches::default(),
            last_scaled: None,
            scaling_cause: None,
        };
        apply_settings(&mut group, settings)?;
        apply_tags(&mut group, tags)?;
        for hook in hooks {
            super::hooks::put(&mut group, hook)?;
        }
        if self.groups.len() >= GROUPS_MAX {
            let message = format!(
                "AutoScalingGroup limit exceeded: this account may have {GROUPS_MAX} groups in this region."
            );
            return Err(AwsError::new(Code::LimitExceeded, message));
        }
        self.groups.insert(name, group);
        Ok(())
    }

    pub fn update_group(&mut self, call: UpdateGroup) -> Result<(), AwsError> {
        let (group, world) = self.living_group_mut(&call.name)?;
        let settings = call.settings;
        if settings.template.is_some() && refresh::pins_template(group) {
            return Err(AwsError::validation(
                "An active instance refresh with a desired configuration exists. All configuration options derived from the \
                 desired configuration are not available for update while the instance refresh is active.",
            ));
        }
        let min = settings.min.unwrap_or(group.min);
        let max = settings.max.unwrap_or(group.max);
        // API reference, UpdateAutoScalingGroup: without a new desired capacity, a bound that passes it moves it.
        let desired = settings.desired.unwrap_or_else(|| {
            if min <= max { group.desired.clamp(min, max) } else { group.desired }
        });
        check_bounds(min, max, desired)?;
        let template =
            settings.template.as_ref().map(|template| world.template_ref(template)).transpose()?;
        let placements = if settings.zones.is_some() || settings.subnets.is_some() {
            Some(world.placements(settings.zones.as_deref(), settings.subnets.as_deref())?)
        } else {
            None
        };
        let mut updated = group.clone();
        apply_settings(&mut updated, settings)?;
        (updated.min, updated.max, updated.desired) = (min, max, desired);
        updated.template = template.unwrap_or(updated.template);
        updated.placements = placements.unwrap_or(updated.placements);
        if updated.desired != group.desired {
            updated.scaling_cause = None;
        }
        *group = updated;
        Ok(())
    }

    pub fn set_desired(&mut self, call: SetDesired, now: OffsetDateTime) -> Result<(), AwsError> {
        let (group, _) = self.living_group_mut(&call.name)?;
        let SetDesired { desired, honor_cooldown, .. } = call;
        if desired > group.max {
            let message = format!(
                "New SetDesiredCapacity value {desired} is above max value {} for the AutoScalingGroup.",
                group.max
            );
            return Err(AwsError::validation(message));
        }
        if desired < group.min {
            let message = format!(
                "New SetDesiredCapacity value {desired} is below min value {} for the AutoScalingGroup.",
                group.min
            );
            return Err(AwsError::validation(message));
        }
        let cooling = group.last_scaled.is_some_and(|scaled| now < scaled + group.default_cooldown);
        if honor_cooldown && cooling {
            return Err(AwsError::new(
                Code::ScalingActivityInProgress,
                format!(
                    "Scaling activity is in progress: the cooldown period of AutoScalingGroup '{}' has not ended.",
                    call.name
                ),
            ));
        }
        if group.desired != desired {
            group.desired = desired;
            group.last_scaled = Some(now);
            group.scaling_cause = None;
        }
        Ok(())
    }

    /// With `force` the group stays, deleting, until its instances are gone; their lifecycle actions are discarded.
    pub fn delete_group(
        &mut self,
        name: &GroupName,
        force: bool,
        now: OffsetDateTime,
    ) -> Result<(), AwsError> {
        let (group, world) = self.living_group_mut(name)?;
        if group.instances.is_empty() {
            self.groups.remove(name);
            return Ok(());
        }
        if !force {
            return Err(AwsError::new(
                Code::ResourceInUse,
                "You cannot delete an AutoScalingGroup while there are instances or pending Spot instance request(s) still in the group.",
            ));
        }
        group.deleting = true;
        (group.min, group.max, group.desired) = (0, 0, 0);
        capacity::discard_hooks(group, world, now);
        Ok(())
    }
}

impl World {
    /// Checks that the template exists and completes the reference with id and name.
    pub(super) fn template_ref(&self, spec: &TemplateSpec) -> Result<TemplateRef, AwsError> {
        if spec.id.is_some() == spec.name.is_some() {
            return Err(AwsError::validation(
                "Valid requests must contain either launchTemplateId or LaunchTemplateName",
            ));
        }
        let wanted = TemplateRef {
            id: spec.id.clone().unwrap_or_default(),
            name: spec.name.clone().unwrap_or_default(),
            version: spec.version.clone().unwrap_or_else(|| "$Default".to_owned()),
        };
        let found = self.resolve(&wanted)?;
        Ok(TemplateRef { id: found.id, name: found.name, version: wanted.version })
    }

    fn placements(
        &self,
        zones: Option<&[String]>,
        subnets: Option<&str>,
    ) -> Result<Vec<Placement>, AwsError> {
        let mut placements = Vec::new();
        for id in subnets
            .into_iter()
            .flat_map(|list| list.split(','))
            .map(str::trim)
            .filter(|id| !id.is_empty())
        {
            let Some(zone) = self.config.subnets.get(id) else {
                return Err(AwsError::validation(format!("The subnet ID '{id}' does not exist")));
            };
            placements.push(Placement { zone: zone.clone(), subnet: Some(id.to_owned()) });
        }
        for zone in zones.unwrap_or_default() {
            if !self.config.zones.contains(zone) {
                return Err(AwsError::validation(format!("Invalid availability zone [{zone}]")));
            }
            match placements.iter().any(|placement| &placement.zone == zone) {
                true => {}
                false if subnets.is_some() => {
                    return Err(AwsError::validation(
                        "The availability zones of the specified subnets and the AutoScalingGroup do not match",
                    ));
                }
                false => placements.push(Placement { zone: zone.clone(), subnet: None }),
            }
        }
        placements.sort();
        placements.dedup();
        Ok(placements)
    }
}

/// Everything that needs neither bounds, template nor placement checks.
fn apply_settings(group: &mut Group, settings: GroupSettings) -> Result<(), AwsError> {
    if let Some(kind) = settings.health_check_type {
        let parts: Vec<&str> = kind.split(',').collect();
        if !parts.iter().all(|part| ["EC2", "ELB", "EBS", "VPC_LATTICE"].contains(part)) {
            return Err(AwsError::validation(format!("Invalid HealthCheckType {kind}")));
        }
        group.health_check_type = kind;
    }
    group.health_check_grace = settings.health_check_grace.unwrap_or(group.health_check_grace);
    group.default_cooldown = settings.default_cooldown.unwrap_or(group.default_cooldown);
    // -1 removes it (API reference).
    if let Some(secs) = settings.default_instance_warmup {
        group.default_instance_warmup_secs = u32::try_from(secs).ok();
    }
    group.termination_policies =
        settings.termination_policies.unwrap_or_else(|| group.termination_policies.clone());
    group.new_instances_protected =
        settings.new_instances_protected.unwrap_or(group.new_instances_protected);
    group.context = settings.context.or(group.context.take());
    group.subnets = settings.subnets.or(group.subnets.take());
    Ok(())
}

fn check_bounds(min: u32, max: u32, desired: u32) -> Result<(), AwsError> {
    if min > max {
        return Err(AwsError::validation(format!(
            "Max bound, {max}, must be greater than or equal to min bound, {min}"
        )));
    }
    if desired < min || desired > max {
        return Err(AwsError::validation(format!(
            "Desired capacity:{desired} must be between the specified min size:{min} and max size:{max}"
        )));
    }
    Ok(())
}

fn missing(parameter: &str) -> AwsError {
    AwsError::constraint("null", parameter, "Member must not be null")
}

impl Machine {
    /// Nothing of it runs or will.
    pub fn is_ended(self) -> bool {
        match self {
            Machine::Ended => true,
            Machine::Booting { .. }
            | Machine::Starting { .. }
            | Machine::Running
            | Machine::Stopping
            | Machine::Halting
            | Machine::Halted => false,
        }
    }
}
