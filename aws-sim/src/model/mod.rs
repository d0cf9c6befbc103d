//! The simulated account as a pure model: typed calls go in, results or AWS errors come out, [`Model::tick`] lets time
//! pass and says what the driver must do. No sockets, no clock, no processes; the same seed repeats the same run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub mod activity;
mod capacity;
pub mod credentials;
pub mod describe;
pub mod error;
pub mod group;
mod groups;
mod hooks;
mod instances;
pub mod names;
pub mod policies;
pub mod random;
pub mod refresh;
pub mod requests;
pub mod suspended;
mod tags;
mod tick;
pub mod tracking;
pub mod warm_pool;

pub use error::{AwsError, Code};
pub use names::{AccessKeyId, GroupName, HookName, InstanceId, PolicyName};

use credentials::{InstanceRole, Principal, Principals, SessionCredentials};
use group::{Group, Instance, LaunchTemplate, TemplateRef};
use random::Ids;

/// Groups per account and region, hooks, policies and tags per group: the default quotas (AutoScaling user guide, quotas).
pub const GROUPS_MAX: usize = 500;
pub const HOOKS_MAX: usize = 50;
pub const POLICIES_MAX: usize = 50;
pub const TAGS_MAX: usize = 50;

/// What exists in the account before the first call.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    pub account: String,
    pub region: String,
    /// Availability zones of the region.
    pub zones: Vec<String>,
    /// Subnet id to zone.
    pub subnets: BTreeMap<String, String>,
    pub role: InstanceRole,
    /// First address of the /16 that instances get theirs from.
    pub net: Ipv4Addr,
    /// From the launch decision until the machine starts.
    pub boot_delay: Duration,
    pub templates: Vec<LaunchTemplate>,
    /// Of scaling policies.
    pub patience: tracking::Patience,
    /// Whether terminating hooks hold an instance whose machine is already dead.
    pub hooks_hold_dead_instances: bool,
    pub principals: Vec<(AccessKeyId, Principal)>,
    pub seed: u64,
}

/// What the driver must do. Each is said once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start a machine; answer with [`Model::instance_running`], or [`Model::instance_dead`] if it cannot.
    Launch { facts: InstanceFacts, user_data: String },
    /// What the instance's IMDS shows has changed.
    Update { facts: InstanceFacts },
    /// Shut the machine down; answer with [`Model::instance_dead`].
    Shutdown { instance: InstanceId },
}

/// What an instance's IMDS shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceFacts {
    pub instance_id: InstanceId,
    pub account: String,
    pub region: String,
    pub zone: String,
    pub address: Ipv4Addr,
    pub image_id: String,
    pub instance_type: String,
    #[serde(with = "unix_time")]
    pub launched: OffsetDateTime,
    pub role: String,
    pub credentials: SessionCredentials,
    pub tags: BTreeMap<String, String>,
    pub target_lifecycle_state: String,
}

/// The simulated account in one region. A clone is how it looks at this moment.
#[derive(Debug, Clone)]
pub struct Model {
    world: World,
    groups: BTreeMap<GroupName, Group>,
}

/// Everything beside the groups, so that a group can be changed while this is at hand.
#[derive(Debug, Clone)]
struct World {
    config: ModelConfig,
    ids: Ids,
    principals: Principals,
    effects: Vec<Effect>,
    addresses: BTreeSet<Ipv4Addr>,
    next_host: u32,
    metrics: policies::Metrics,
}

impl Model {
    pub fn new(config: ModelConfig) -> Self {
        let mut principals = Principals::default();
        for (key, principal) in &config.principals {
            principals.insert(key.clone(), principal.clone());
        }
        let ids = Ids::new(config.seed);
        let world = World {
            config,
            ids,
            principals,
            effects: Vec::new(),
            addresses: BTreeSet::new(),
            next_host: 0,
            metrics: policies::Metrics::new(),
        };
        Model { world, groups: BTreeMap::new() }
    }

    pub fn config(&self) -> &ModelConfig {
        &self.world.config
    }

    pub fn principal(&self, key: &AccessKeyId) -> Option<&Principal> {
        self.world.principals.get(key)
    }

    pub fn request_id(&mut self) -> String {
        self.world.ids.uuid()
    }

    /// Every group that exists, in the order of names.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// Every instance that exists, in the order of groups and ids.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.groups.values().flat_map(|group| group.instances.values())
    }

    pub fn instance(&self, id: &InstanceId) -> Option<&Instance> {
        self.groups.values().find_map(|group| group.instances.get(id))
    }

    /// The group, for a call that changes it.
    fn group_mut(&mut self, name: &GroupName) -> Result<(&mut Group, &mut World), AwsError> {
        match self.groups.get_mut(name) {
            Some(group) => Ok((group, &mut self.world)),
            None => Err(group_not_found(name)),
        }
    }

    /// The same, but not while it is being deleted.
    fn living_group_mut(&mut self, name: &GroupName) -> Result<(&mut Group, &mut World), AwsError> {
        let (group, world) = self.group_mut(name)?;
        if group.deleting {
            let message = format!("AutoScalingGroup '{name}' is pending delete");
            return Err(AwsError::new(Code::ScalingActivityInProgress, message));
        }
        Ok((group, world))
    }

    /// The group that has this instance.
    fn group_of_mut(&mut self, id: &InstanceId) -> Result<(&mut Group, &mut World), AwsError> {
        match self.groups.values_mut().find(|group| group.instances.contains_key(id)) {
            Some(group) => Ok((group, &mut self.world)),
            None => Err(AwsError::validation(format!(
                "Instance Id not found - No managed instance found for instance ID: {id}"
            ))),
        }
    }
}

impl World {
    /// The template version that a reference means now.
    fn resolve(&self, wanted: &TemplateRef) -> Result<LaunchTemplate, AwsError> {
        let invalid = |what: String| {
            AwsError::validation(format!(
                "You must use a valid fully-formed launch template. {what}"
            ))
        };
        let versions: Vec<&LaunchTemplate> = self
            .config
            .templates
            .iter()
            .filter(|template| template.id == wanted.id || template.name == wanted.name)
            .collect();
        if versions.is_empty() {
            return Err(invalid(if wanted.id.is_empty() {
                format!(
                    "The specified launch template, with template name {}, does not exist.",
                    wanted.name
                )
            } else {
                format!(
                    "The specified launch template, with template ID {}, does not exist.",
                    wanted.id
                )
            }));
        }
        let found = match wanted.version.as_str() {
            "$Latest" => versions.iter().max_by_key(|template| template.version),
            "$Default" => versions.iter().min_by_key(|template| template.version),
            number => versions.iter().find(|template| template.version.to_string() == number),
        };
        match found {
            Some(template) => Ok((*template).clone()),
            None => {
                Err(invalid(format!("Could not find launch template version {}.", wanted.version)))
            }
        }
    }

    /// An address of the net that no instance has; the longest unused comes first.
    fn take_address(&mut self) -> Option<Ipv4Addr> {
        let net = u32::from(self.config.net) & 0xffff_0000;
        for _ in 0..=u16::MAX {
            self.next_host = self.next_host % 0xfffe + 1;
            let address = Ipv4Addr::from(net | self.next_host);
            let last = address.octets()[3];
            if last != 0 && last != 255 && self.addresses.insert(address) {
                return Some(address);
            }
        }
        None
    }

    fn facts(&self, instance: &Instance) -> InstanceFacts {
        InstanceFacts {
            instance_id: instance.id.clone(),
            account: self.config.account.clone(),
            region: self.config.region.clone(),
            zone: instance.placement.zone.clone(),
            address: instance.address,
            image_id: instance.template.image_id.clone(),
            instance_type: instance.template.instance_type.clone(),
            launched: instance.launched,
            role: self.config.role.name.clone(),
            credentials: instance.credentials.clone(),
            tags: instance.tags.clone(),
            target_lifecycle_state: instance.lifecycle.target(instance.pool).to_owned(),
        }
    }
}

fn group_not_found(name: &GroupName) -> AwsError {
    AwsError::validation(format!(
        "AutoScalingGroup name not found - AutoScalingGroup '{name}' not found"
    ))
}

/// Times cross to the launcher as whole Unix seconds.
mod unix_time {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use time::OffsetDateTime;

    pub fn serialize<S: Serializer>(at: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(at.unix_timestamp())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<OffsetDateTime, D::Error> {
        OffsetDateTime::from_unix_timestamp(i64::deserialize(deserializer)?)
            .map_err(D::Error::custom)
    }
}
