//! What the declarations say, as `python -m outstation.declare` prints it.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use outstation_protocol::ids::{Digest, EnvironmentName, GroupName};
use outstation_protocol::model::{EnvironmentRef, GroupKind, GroupSpec, Scaling};

use crate::message::{Failure, Hint as _};

/// The manifest version that this CLI reads.
const MANIFEST_VERSION: u32 = 1;

/// The environment of a group that names none: nothing but `outstation` itself.
pub const DEFAULT_ENVIRONMENT: &str = "default";

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Manifest {
    pub manifest: u32,
    /// Version of the Python package.
    pub outstation: String,
    /// `major.minor` of the interpreter.
    pub python: String,
    #[serde(default)]
    pub environments: Vec<EnvironmentDecl>,
    #[serde(default)]
    pub groups: Vec<GroupDecl>,
    #[serde(default)]
    pub feature_views: Vec<FeatureView>,
    #[serde(default)]
    pub feature_services: Vec<FeatureService>,
}

/// Strict: what is not understood here would silently be missing from an order.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentDecl {
    pub name: EnvironmentName,
    /// A requirements file, relative to the declarations' folder.
    #[serde(default)]
    pub requirements: Option<String>,
    #[serde(default)]
    pub description: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GroupDecl {
    pub name: GroupName,
    pub kind: GroupKind,
    #[serde(default)]
    pub environment: Option<EnvironmentName>,
    pub scaling: Scaling,
    #[serde(default)]
    pub owner: Option<String>,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    #[serde(default)]
    pub prevent_destroy: bool,
    #[serde(default)]
    pub options: BTreeMap<String, Value>,
}

/// Lenient: these never enter an order, and newer packages say more about them.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct FeatureView {
    pub name: String,
    #[serde(default)]
    pub sources: Vec<Source>,
    #[serde(default)]
    pub features: Vec<FieldDecl>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Source {
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub schema: Vec<FieldDecl>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct FieldDecl {
    pub name: String,
    /// Such as `Int64`; composite types are objects.
    #[serde(rename = "type", alias = "dtype")]
    pub type_: Value,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct FeatureService {
    pub name: String,
    /// Names of feature views.
    #[serde(default)]
    pub features: Vec<String>,
    #[serde(default)]
    pub transform_server_group: Option<GroupName>,
}

impl Manifest {
    pub fn from_json(json: &[u8]) -> anyhow::Result<Manifest> {
        let hint = "the package `outstation` and this command should be of the same release";
        let value: Value = serde_json::from_slice(json)
            .context("the declarations did not print a manifest")
            .hint("declarations should print nothing on standard output")?;
        match value.get("manifest").and_then(Value::as_u64) {
            Some(version) if version == u64::from(MANIFEST_VERSION) => {}
            found => {
                let found = found.map_or("no version".into(), |version| version.to_string());
                let what = format!("the manifest has version {found}, not {MANIFEST_VERSION}");
                return Err(Failure::new(what, hint).into());
            }
        }
        let manifest: Manifest =
            serde_json::from_value(value).context("the manifest is not valid").hint(hint)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Names are unique and every name that is referred to exists.
    fn check(&self) -> anyhow::Result<()> {
        let fix = "correct the declarations and run this again";
        let mut environments = BTreeMap::new();
        for environment in &self.environments {
            if environments.insert(&environment.name, ()).is_some() {
                let what = format!("environment {} is declared twice", environment.name);
                return Err(Failure::new(what, fix).into());
            }
        }
        let mut groups = BTreeMap::new();
        for group in &self.groups {
            if groups.insert(&group.name, ()).is_some() {
                let what = format!("server group {} is declared twice", group.name);
                return Err(Failure::new(what, fix).into());
            }
            if let Some(name) = &group.environment
                && !environments.contains_key(name)
            {
                let what =
                    format!("server group {} names no declared environment: {name}", group.name);
                return Err(
                    Failure::new(what, format!("add Environment(name=\"{name}\", …)")).into()
                );
            }
        }
        Ok(())
    }

    pub fn requirements(&self, environment: &EnvironmentName) -> Option<&str> {
        self.environments
            .iter()
            .find(|declared| declared.name == *environment)
            .and_then(|declared| declared.requirements.as_deref())
    }

    /// How many nodes the group is declared with at least; none if it is not declared.
    pub fn nodes_of(&self, group: &GroupName) -> u32 {
        let declared = self.groups.iter().find(|declared| declared.name == *group);
        declared.map_or(0, |declared| declared.scaling.nodes_min())
    }

    /// Fields of a target (a view, or a service and all its views) by name; `None` if there is
    /// no such target.
    pub fn input_schema(&self, target: &str) -> Option<BTreeMap<&str, &Value>> {
        let mut schema = BTreeMap::new();
        for view in self.views_of(target)? {
            for field in view.sources.iter().flat_map(|source| &source.schema) {
                schema.insert(field.name.as_str(), &field.type_);
            }
        }
        Some(schema)
    }

    fn views_of(&self, target: &str) -> Option<Vec<&FeatureView>> {
        let view = |name: &str| self.feature_views.iter().find(|view| view.name == name);
        match self.service(target) {
            Some(service) => Some(service.features.iter().filter_map(|name| view(name)).collect()),
            None => view(target).map(|view| vec![view]),
        }
    }

    fn service(&self, name: &str) -> Option<&FeatureService> {
        self.feature_services.iter().find(|service| service.name == name)
    }

    /// The group that serves a target: the service's own, or that of any service with the view;
    /// with a single transform group there is no question.
    pub fn group_of(&self, target: &str) -> Option<&GroupName> {
        let by_view = || {
            self.feature_services
                .iter()
                .find(|service| service.features.iter().any(|v| v == target))
        };
        let service = self.service(target).or_else(by_view);
        let mut transform = self.groups.iter().filter(|group| group.kind == GroupKind::Transform);
        service.and_then(|service| service.transform_server_group.as_ref()).or_else(|| {
            match (transform.next(), transform.next()) {
                (Some(only), None) => Some(&only.name),
                (None, _) | (Some(_), Some(_)) => None,
            }
        })
    }
}

impl GroupDecl {
    pub fn environment_name(&self) -> EnvironmentName {
        self.environment.clone().unwrap_or_else(|| {
            EnvironmentName::try_from(DEFAULT_ENVIRONMENT).expect("a constant, valid name")
        })
    }

    pub fn spec(&self, environment: Digest, bundle: Digest) -> anyhow::Result<GroupSpec> {
        let mut options = BTreeMap::new();
        for (key, value) in &self.options {
            options.insert(key.clone(), option_text(&self.name, key, value)?);
        }
        let spec = GroupSpec {
            kind: self.kind,
            scaling: self.scaling.clone(),
            environment: EnvironmentRef { name: self.environment_name(), digest: environment },
            bundle,
            owner: self.owner.clone(),
            description: self.description.clone(),
            tags: self.tags.clone(),
            prevent_destroy: self.prevent_destroy,
            options,
        };
        spec.validate()
            .with_context(|| format!("server group {}", self.name))
            .hint("correct the declarations and run this again")?;
        Ok(spec)
    }
}

fn option_text(group: &GroupName, key: &str, value: &Value) -> anyhow::Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => Err(Failure::new(
            format!("option {key} of server group {group} is neither text, number nor bool"),
            "write it as text",
        )
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn manifest() -> Value {
        json!({"manifest": 1, "outstation": "0.1.0", "python": "3.11",
            "environments": [{"name": "flights", "requirements": "requirements.txt"}],
            "groups": [{"name": "delay_tsg", "kind": "transform", "environment": "flights",
                "scaling": {"type": "provisioned", "desired_nodes": 3}, "owner": "ops",
                "description": null, "tags": {}, "prevent_destroy": false, "options": {"workers": 2}}],
            "feature_views": [{"name": "speed", "mode": "python",
                "sources": [{"name": "departure", "schema": [{"name": "distance", "type": "Float64"}]}],
                "features": [{"name": "speed_mph", "type": "Float64"}]}],
            "feature_services": [{"name": "delay", "features": ["speed"],
                "transform_server_group": "delay_tsg"}]})
    }

    fn read(value: &Value) -> anyhow::Result<Manifest> {
        Manifest::from_json(value.to_string().as_bytes())
    }

    #[test]
    fn a_manifest_becomes_specs_and_schemas() {
        let manifest = read(&manifest()).expect("valid");
        let spec = manifest.groups[0].spec(Digest::of(b"e"), Digest::of(b"b")).expect("valid");
        assert_eq!(spec.options["workers"], "2");
        assert_eq!(spec.scaling.nodes_max(), 3);
        for target in ["delay", "speed"] {
            let schema = manifest.input_schema(target).expect("known");
            assert_eq!(schema["distance"], "Float64");
            assert_eq!(manifest.group_of(target).expect("known").as_str(), "delay_tsg");
        }
        assert!(manifest.input_schema("nothing").is_none());
    }

    #[test]
    fn bounds_and_a_target_become_an_autoscaled_spec() {
        let mut declared = manifest();
        let mut spec_of = |min: u32| {
            declared["groups"][0]["scaling"] = json!({"type": "autoscaling", "min_nodes": min,
                "max_nodes": 10, "target": {"type": "cpu", "percent": 60}});
            let manifest = read(&declared).expect("read");
            manifest.groups[0].spec(Digest::of(b"e"), Digest::of(b"b"))
        };
        let spec = spec_of(2).expect("valid");
        let Scaling::Autoscaling { min_nodes: 2, max_nodes: 10, target } = spec.scaling else {
            panic!("{:?}", spec.scaling)
        };
        assert_eq!(target.to_string(), "CPU 60 %");
        let error = format!("{:#}", spec_of(11).expect_err("crossed"));
        assert!(error.contains("min_nodes 11 is more than max_nodes 10"), "{error}");
        let error = format!("{:#}", spec_of(0).expect_err("no CPU"));
        assert!(error.contains("min_nodes must be at least 1"), "{error}");
    }

    #[test]
    fn what_would_be_lost_or_dangles_is_refused() {
        let changed = |pointer: &str, value: Value| {
            let mut manifest = manifest();
            match pointer.rsplit_once('/') {
                Some((parent, key)) => {
                    manifest.pointer_mut(parent).expect("there")[key] = value;
                }
                None => unreachable!("pointers start with a slash"),
            }
            read(&manifest).expect_err("refused").to_string()
        };
        for (pointer, value, wanted) in [
            ("/manifest", json!(2), "version 2, not 1"),
            ("/groups/0/warm_pool", json!(3), "unknown field `warm_pool`"),
            ("/groups/0/environment", json!("other"), "names no declared environment: other"),
            ("/groups/0/name", json!("1st"), "is not valid"),
            ("/groups/0/scaling", json!({"type": "magic"}), "unknown variant `magic`"),
            (
                "/groups/0/scaling",
                json!({"type": "autoscaling", "min_nodes": 1, "max_nodes": 2,
                    "target": {"type": "cpu", "percent": 0}}),
                "0 is not a number from",
            ),
        ] {
            let error = changed(pointer, value);
            assert!(error.contains(wanted), "{pointer}: {error}");
        }
    }
}
