//! What AWS asks IAM about one call: the call itself on each of its resources, and what using a launch template entails for
//! the caller. Sources: the service authorization reference of EC2 Auto Scaling, EC2 and IAM; the AutoScaling user guide on
//! launch template permissions.

use std::collections::{BTreeMap, BTreeSet};

use super::{TemplateUse, Value};
use crate::model::group::{Group, LaunchTemplate};
use crate::model::{GroupName, Model, ModelConfig};
use crate::wire::query::Params;

/// One question to IAM.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    pub action: String,
    pub resource: String,
    pub context: BTreeMap<String, Value>,
    /// Asked because this launch template is used.
    pub template: Option<String>,
}

/// Where a launch template stands among the parameters.
const TEMPLATES: &[&str] = &[
    "LaunchTemplate",
    "MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification",
    "DesiredConfiguration.LaunchTemplate",
    "DesiredConfiguration.MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification",
];
const OVERRIDES: &[&str] = &[
    "MixedInstancesPolicy.LaunchTemplate.Overrides",
    "DesiredConfiguration.MixedInstancesPolicy.LaunchTemplate.Overrides",
];
/// The template's own security group: which one it is, the model does not know.
const SECURITY_GROUP: &str = "sg-0123456789abcdef0";

pub fn of(
    model: &Model,
    templates: &BTreeMap<String, TemplateUse>,
    action: &str,
    params: &Params,
) -> Vec<Check> {
    let account = Account(model.config());
    if action.starts_with("Describe") {
        // None of them knows resources or condition keys.
        return vec![account.autoscaling(action, account.arn("autoscaling", "*"), BTreeMap::new())];
    }
    let mut checks = Vec::new();
    for name in named_groups(model, action, params) {
        let group = name.as_deref().and_then(|name| find(model, name));
        let creates = action == "CreateAutoScalingGroup";
        let resource = match (group, &name) {
            (Some(group), _) if !creates => group.arn.clone(),
            (_, name) => account.group(name.as_deref().unwrap_or("*")),
        };
        let mut context = requested(action, params, name.as_deref());
        if let Some(group) = group.filter(|_| !creates) {
            for (key, tag) in &group.tags {
                for service in ["aws", "autoscaling"] {
                    let key = format!("{service}:ResourceTag/{key}");
                    context.insert(key, Value::Text(tag.value.clone()));
                }
            }
        }
        checks.push(account.autoscaling(action, resource, context));
        checks.extend(account.launches(params, templates, group));
    }
    checks
}

/// By name, by the names in tags, by an instance. A group that cannot be found is asked about all the same.
fn named_groups(model: &Model, action: &str, params: &Params) -> Vec<Option<String>> {
    if action == "CreateOrUpdateTags" || action == "DeleteTags" {
        let ids: BTreeSet<Option<String>> = members(params, "Tags")
            .iter()
            .map(|tag| params.string(&format!("{tag}.ResourceId")))
            .collect();
        return ids.into_iter().collect();
    }
    if let Some(name) = params.string("AutoScalingGroupName") {
        return vec![Some(name)];
    }
    let instance = params.string("InstanceId");
    let group = model
        .instances()
        .find(|found| instance.as_deref() == Some(found.id.as_str()))
        .map(|found| found.group.to_string());
    vec![group]
}

fn find<'a>(model: &'a Model, name: &str) -> Option<&'a Group> {
    let name = GroupName::try_from(name.to_owned()).ok()?;
    model.groups().find(|group| group.name == name)
}

/// A list that cannot be read has no members here; the call itself is refused for it.
fn members(params: &Params, list: &str) -> Vec<String> {
    params.members(list).unwrap_or_default()
}

/// Condition keys that come from the request itself.
fn requested(action: &str, params: &Params, group: Option<&str>) -> BTreeMap<String, Value> {
    let mut context = BTreeMap::new();
    let mut put = |key: &str, value| context.insert(key.to_owned(), value);
    for (key, parameter) in [("MinSize", "MinSize"), ("MaxSize", "MaxSize")] {
        if let Ok(Some(size)) = params.count(parameter) {
            put(&format!("autoscaling:{key}"), Value::Number(size));
        }
    }
    if let Some(name) = params.string("LaunchConfigurationName") {
        put("autoscaling:LaunchConfigurationName", Value::Text(name));
    }
    if let Some(subnets) = params.string("VPCZoneIdentifier") {
        put("autoscaling:VPCZoneIdentifiers", Value::Texts(split(&subnets)));
    }
    // Not for a refresh: its desired configuration has no such keys.
    let template = TEMPLATES[..2].iter().find(|prefix| params.has(prefix));
    if let Some(prefix) = template {
        let version = params.string(&format!("{prefix}.Version"));
        let numbered = version.is_some_and(|version| !version.starts_with('$'));
        put("autoscaling:LaunchTemplateVersionSpecified", Value::Bool(numbered));
    }
    if action == "DeleteAutoScalingGroup" {
        // A warm pool can be forced too, without a key for it.
        if let Ok(Some(force)) = params.boolean("ForceDelete") {
            put("autoscaling:ForceDelete", Value::Bool(force));
        }
    }
    let mut keys = Vec::new();
    for tag in members(params, "Tags") {
        let Some(key) = params.string(&format!("{tag}.Key")) else { continue };
        let of = params.string(&format!("{tag}.ResourceId"));
        if of.is_none() || of.as_deref() == group {
            let value = params.string(&format!("{tag}.Value")).unwrap_or_default();
            put(&format!("aws:RequestTag/{key}"), Value::Text(value));
        }
        keys.push(key);
    }
    if !keys.is_empty() {
        put("aws:TagKeys", Value::Texts(keys));
    }
    context
}

fn split(list: &str) -> Vec<String> {
    list.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

struct Account<'a>(&'a ModelConfig);

impl Account<'_> {
    fn arn(&self, service: &str, resource: &str) -> String {
        format!("arn:aws:{service}:{}:{}:{resource}", self.0.region, self.0.account)
    }

    /// As long as it has no id.
    fn group(&self, name: &str) -> String {
        self.arn("autoscaling", &format!("autoScalingGroup:*:autoScalingGroupName/{name}"))
    }

    fn iam(&self, resource: &str) -> String {
        format!("arn:aws:iam::{}:{resource}", self.0.account)
    }

    fn autoscaling(
        &self,
        action: &str,
        resource: String,
        context: BTreeMap<String, Value>,
    ) -> Check {
        Check { action: format!("autoscaling:{action}"), resource, context, template: None }
    }

    /// What a launch template entails, where the call names one or moves its group to other subnets.
    fn launches(
        &self,
        params: &Params,
        templates: &BTreeMap<String, TemplateUse>,
        group: Option<&Group>,
    ) -> Vec<Check> {
        let named = TEMPLATES.iter().find(|prefix| params.has(prefix)).and_then(|prefix| {
            let get = |field: &str| params.string(&format!("{prefix}.{field}"));
            self.template(
                get("LaunchTemplateId").as_deref(),
                get("LaunchTemplateName").as_deref(),
                &get("Version").unwrap_or_else(|| "$Default".to_owned()),
            )
        });
        let given = params.string("VPCZoneIdentifier").map(|list| split(&list));
        let template = named.or_else(|| {
            let template = &group.filter(|_| given.is_some())?.template;
            self.template(Some(&template.id), None, &template.version)
        });
        let Some(template) = template else { return Vec::new() };
        let subnets = given.unwrap_or_else(|| {
            let of_group = group.and_then(|group| group.subnets.as_deref()).map(split);
            // The default subnets of the zones.
            of_group.unwrap_or_else(|| vec!["subnet-00000000".to_owned()])
        });
        let mut types: Vec<String> = OVERRIDES
            .iter()
            .flat_map(|list| members(params, list))
            .filter_map(|member| params.string(&format!("{member}.InstanceType")))
            .collect();
        if types.is_empty() {
            types.push(template.instance_type.clone());
        }
        let used = templates.get(&template.id).cloned().unwrap_or_default();
        self.launch(template, &used, &subnets, &types)
    }

    fn launch(
        &self,
        template: &LaunchTemplate,
        used: &TemplateUse,
        subnets: &[String],
        types: &[String],
    ) -> Vec<Check> {
        let own = || (self.0.role.name.clone(), self.0.role.name.clone());
        let (profile, role) = used.profile.clone().unwrap_or_else(own);
        let template_arn = self.arn("ec2", &format!("launch-template/{}", template.id));
        let run = |resource: String, of_template: bool| {
            let context = [
                ("ec2:LaunchTemplate".to_owned(), Value::Text(template_arn.clone())),
                ("ec2:IsLaunchTemplateResource".to_owned(), Value::Bool(of_template)),
            ];
            Check {
                action: "ec2:RunInstances".to_owned(),
                resource,
                context: context.into(),
                template: Some(template.name.clone()),
            }
        };
        let mut checks = Vec::new();
        for kind in types {
            let mut instance = run(self.arn("ec2", "instance/*"), true);
            instance.context.insert("ec2:InstanceType".to_owned(), Value::Text(kind.clone()));
            let profile = self.iam(&format!("instance-profile/{profile}"));
            instance.context.insert("ec2:InstanceProfile".to_owned(), Value::Text(profile));
            checks.push(instance);
        }
        let image = format!("arn:aws:ec2:{}::image/{}", self.0.region, template.image_id);
        checks.push(run(image, true));
        checks.push(run(template_arn.clone(), true));
        checks.push(run(self.arn("ec2", &format!("security-group/{SECURITY_GROUP}")), true));
        checks.push(run(self.arn("ec2", "volume/*"), true));
        // Where the group is placed comes from the group. Whether AWS counts that as the template's is not documented.
        checks.push(run(self.arn("ec2", "network-interface/*"), false));
        checks
            .extend(subnets.iter().map(|id| run(self.arn("ec2", &format!("subnet/{id}")), false)));
        let entailed = |action: &str, resource: String, key: &str, value: &str| Check {
            action: action.to_owned(),
            resource,
            context: [(key.to_owned(), Value::Text(value.to_owned()))].into(),
            template: Some(template.name.clone()),
        };
        if used.tags {
            for kind in ["instance/*", "volume/*"] {
                let resource = self.arn("ec2", kind);
                checks.push(entailed(
                    "ec2:CreateTags",
                    resource,
                    "ec2:CreateAction",
                    "RunInstances",
                ));
            }
        }
        let role = self.iam(&format!("role/{role}"));
        checks.push(entailed("iam:PassRole", role, "iam:PassedToService", "ec2.amazonaws.com"));
        checks
    }

    /// One that does not exist is refused later, and not for want of a permission.
    fn template(
        &self,
        id: Option<&str>,
        name: Option<&str>,
        version: &str,
    ) -> Option<&LaunchTemplate> {
        let found = self.0.templates.iter().filter(|template| {
            Some(template.id.as_str()) == id || Some(template.name.as_str()) == name
        });
        match version {
            "$Latest" => found.max_by_key(|template| template.version),
            "$Default" => found.min_by_key(|template| template.version),
            number => found.into_iter().find(|template| template.version.to_string() == number),
        }
    }
}
