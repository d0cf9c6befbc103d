//! `outstation environment`: what is in the account store's `artifacts/environments/`, and who uses it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use outstation_protocol::environment::Manifest;
use outstation_protocol::ids::{Digest, GroupName};
use outstation_protocol::order::Intent;
use serde_json::{Value as Json, json};

use crate::admin::Admin;
use crate::args::{EnvironmentCreate, EnvironmentDelete, EnvironmentDescribe, EnvironmentVerb};
use crate::artifacts::{Repo, build_file};
use crate::context::Context;
use crate::message::{Failure, print};
use crate::show::table;
use crate::view::GroupView;

pub async fn run(context: &Context, verb: EnvironmentVerb) -> anyhow::Result<ExitCode> {
    match verb {
        EnvironmentVerb::Create(verb) => create(context, verb).await?,
        EnvironmentVerb::List(verb) => {
            let users = Users::ask(context).await?;
            let stored = all(&context.artifacts)?;
            if verb.json {
                let list: Vec<Json> = stored.iter().map(|stored| stored.json(&users)).collect();
                print(format_args!("{:#}\n", Json::from(list)));
            } else {
                print(format_args!("{}", rows(&stored, &users)));
            }
        }
        EnvironmentVerb::Describe(EnvironmentDescribe { digest, json }) => {
            let users = Users::ask(context).await?;
            let stored = find(&context.artifacts, &digest)?;
            if json {
                print(format_args!("{:#}\n", stored.json(&users)));
            } else {
                print(format_args!("{}", stored.text(&users)));
            }
        }
        EnvironmentVerb::Delete(EnvironmentDelete { digest }) => {
            let users = Users::ask(context).await?;
            let stored = find(&context.artifacts, &digest)?;
            stored.delete(&users)?;
            print(format_args!("{}: removed from the account store\n", stored.digest));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(context: &Context, verb: EnvironmentCreate) -> anyhow::Result<()> {
    let built = match &verb.requirements {
        Some(file) => vec![build_file(&context.python, file).await?],
        None => Repo::load(&context.python, &verb.dir).await?.environments.into_values().collect(),
    };
    if built.is_empty() {
        return Err(Failure::new(
            format!("no group in {} uses an environment", verb.dir.display()),
            "declare one, or name a file with --requirements",
        )
        .into());
    }
    for environment in built {
        let store = context.artifacts.clone();
        let digest = environment.digest;
        let written = tokio::task::spawn_blocking(move || environment.write(&store))
            .await
            .context("write the environment")??;
        let what = if written { "written" } else { "is there" };
        print(format_args!("{digest}: {what}\n"));
    }
    Ok(())
}

/// One that is in the account store.
struct Stored {
    digest: Digest,
    manifest: Manifest,
    path: PathBuf,
}

impl Stored {
    fn open(path: PathBuf) -> anyhow::Result<Stored> {
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let manifest = Manifest::from_bytes(&bytes)
            .with_context(|| format!("read the manifest {}", path.display()))?;
        Ok(Stored { digest: Digest::of(&bytes), manifest, path })
    }

    fn delete(&self, users: &Users) -> anyhow::Result<()> {
        let groups = users.of(&self.digest);
        if let Some(first) = groups.first() {
            return Err(Failure::new(
                format!("environment {} is used by {}", self.digest.short(), groups.join(", ")),
                format!("give {first} another environment first, or destroy it"),
            )
            .into());
        }
        // The manifest first: without it nothing of the rest is used.
        for extension in ["json", "pack", "cdx.json"] {
            let path = self.path.with_extension(extension);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// `(name, version, licence)` of its bill of materials, which is for people: nothing is decided by it.
    fn packages(&self) -> Vec<[String; 3]> {
        let bytes = fs::read(self.path.with_extension("cdx.json")).unwrap_or_default();
        let bill: Json = serde_json::from_slice(&bytes).unwrap_or_default();
        let components = bill["components"].as_array().cloned().unwrap_or_default();
        let text = |value: &Json| value.as_str().unwrap_or("-").to_owned();
        let package = |component: Json| {
            let licence = &component["licenses"][0]["license"]["name"];
            [text(&component["name"]), text(&component["version"]), text(licence)]
        };
        components.into_iter().map(package).collect()
    }

    fn json(&self, users: &Users) -> Json {
        let Manifest { python, machine, outstation, .. } = &self.manifest;
        let package = |[name, version, licence]: [String; 3]| json!({ "name": name, "version": version, "licence": licence });
        json!({
            "digest": self.digest,
            "python": python,
            "machine": machine,
            "outstation": outstation,
            "files": self.manifest.files.len(),
            "bytes": self.manifest.bytes(),
            "groups": users.of(&self.digest),
            "packages": self.packages().into_iter().map(package).collect::<Vec<_>>(),
        })
    }

    fn text(&self, users: &Users) -> String {
        let Manifest { python, machine, outstation, files, .. } = &self.manifest;
        let used = users.of(&self.digest).join(", ");
        let used = if used.is_empty() { "nobody".to_owned() } else { used };
        let packages: Vec<Vec<String>> = self.packages().into_iter().map(Vec::from).collect();
        format!(
            "{}\n  python      {python}, {machine}, outstation {outstation}\n  size        {}, {} files\n  \
             used by     {used}\n\n{}",
            self.digest,
            size(self.manifest.bytes()),
            files.len(),
            table::render(&["PACKAGE", "VERSION", "LICENCE"], &packages)
        )
    }
}

fn rows(stored: &[Stored], users: &Users) -> String {
    let row = |stored: &Stored| {
        let Manifest { python, machine, files, .. } = &stored.manifest;
        let used = users.of(&stored.digest).join(", ");
        vec![
            stored.digest.short(),
            format!("{python} {machine}"),
            stored.packages().len().to_string(),
            files.len().to_string(),
            size(stored.manifest.bytes()),
            if used.is_empty() { "-".to_owned() } else { used },
        ]
    };
    let rows: Vec<Vec<String>> = stored.iter().map(row).collect();
    table::render(&["ENVIRONMENT", "PYTHON", "PACKAGES", "FILES", "SIZE", "USED BY"], &rows)
}

fn size(bytes: u64) -> String {
    let megabytes = bytes as f64 / 1e6;
    if megabytes < 10.0 { format!("{megabytes:.1} MB") } else { format!("{megabytes:.0} MB") }
}

fn all(store: &Path) -> anyhow::Result<Vec<Stored>> {
    let folder = store.join("artifacts/environments");
    let mut stored = Vec::new();
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(stored),
        entries => entries.with_context(|| format!("list {}", folder.display()))?,
    };
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        if digest_of(&path).is_some() {
            stored.push(Stored::open(path)?);
        }
    }
    stored.sort_by_key(|stored| stored.digest.hex());
    Ok(stored)
}

/// The manifests are named `<64 digits>.json`, and nothing else is.
fn digest_of(path: &Path) -> Option<Digest> {
    let hex = path.file_name()?.to_str()?.strip_suffix(".json")?;
    Digest::try_from(format!("sha256:{hex}").as_str()).ok()
}

/// By its digest, or by enough of it.
fn find(store: &Path, wanted: &str) -> anyhow::Result<Stored> {
    const LEAST: usize = 6;
    let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted).trim_end_matches('…');
    if hex.len() < LEAST || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Failure::new(
            format!("{wanted:?} is no digest, nor the first {LEAST} digits of one"),
            "`outstation environment list` shows them",
        )
        .into());
    }
    let mut found: Vec<Stored> = all(store)?;
    found.retain(|stored| stored.digest.hex().starts_with(&hex.to_ascii_lowercase()));
    match (found.pop(), found.len()) {
        (Some(one), 0) => Ok(one),
        (None, _) => Err(Failure::new(
            format!("the account store has no environment {wanted}"),
            "`outstation environment list` shows what it has",
        )
        .into()),
        (Some(_), more) => Err(Failure::new(
            format!("{wanted} is the beginning of {} environments", more + 1),
            "write more of its digits",
        )
        .into()),
    }
}

/// Groups by the environment that their newest order, or the one that their account acts on, names.
struct Users(BTreeMap<Digest, Vec<GroupName>>);

impl Users {
    async fn ask(context: &Context) -> anyhow::Result<Users> {
        Ok(Users::of_groups(&Admin::connect(context).await?.groups().await?))
    }

    fn of_groups(groups: &[GroupView]) -> Users {
        let mut users: BTreeMap<Digest, Vec<GroupName>> = BTreeMap::new();
        for group in groups {
            let accepted = group.accepted_order.as_ref().map(|accepted| &accepted.intent);
            for intent in [Some(&group.intent), accepted].into_iter().flatten() {
                let Intent::Apply(spec) = intent else { continue };
                let groups = users.entry(spec.environment.digest).or_default();
                if !groups.contains(&group.name) {
                    groups.push(group.name.clone());
                }
            }
        }
        Users(users)
    }

    fn of(&self, digest: &Digest) -> Vec<String> {
        let groups = self.0.get(digest).into_iter().flatten();
        groups.map(ToString::to_string).collect()
    }
}
