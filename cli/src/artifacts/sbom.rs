//! What is in an environment, for those who have to know: a bill of materials in CycloneDX 1.5
//! (<https://cyclonedx.org/docs/1.5/json/>), made from the packages' own metadata.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

/// One installed package, as its metadata tells.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// As the package words it; `None` if it says nothing.
    pub licence: Option<String>,
}

/// Of all `*.dist-info` folders in `site`, by name.
pub fn packages(site: &Path) -> anyhow::Result<Vec<Package>> {
    let mut packages = Vec::new();
    for entry in fs::read_dir(site).with_context(|| format!("list {}", site.display()))? {
        let path = entry.with_context(|| format!("list {}", site.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "dist-info") {
            let metadata = path.join("METADATA");
            let bytes =
                fs::read(&metadata).with_context(|| format!("read {}", metadata.display()))?;
            packages.extend(parse(&String::from_utf8_lossy(&bytes)));
        }
    }
    packages.sort();
    Ok(packages)
}

/// Core metadata: headers, an empty line, prose.
fn parse(metadata: &str) -> Option<Package> {
    let headers = || metadata.lines().take_while(|line| !line.is_empty());
    let all = |wanted: &str| {
        let wanted = wanted.to_owned();
        headers().filter_map(move |line| {
            let (name, value) = line.split_once(':')?;
            (name == wanted).then(|| value.trim().to_owned())
        })
    };
    let one = |wanted: &str| all(wanted).find(|value| !value.is_empty() && value != "UNKNOWN");
    let classified = || {
        let last = |value: String| {
            let (_, licence) = value.strip_prefix("License ::")?.rsplit_once(":: ")?;
            Some(licence.to_owned())
        };
        all("Classifier").filter_map(last).collect::<Vec<_>>().join(" AND ")
    };
    let licence = one("License-Expression")
        // Some put the whole text there.
        .or_else(|| one("License").filter(|licence| licence.len() <= 100))
        .or_else(|| Some(classified()).filter(|licences| !licences.is_empty()));
    Some(Package { name: one("Name")?, version: one("Version")?, licence })
}

/// The same packages give the same bytes.
pub fn cyclonedx(packages: &[Package]) -> Vec<u8> {
    let components: Vec<Value> = packages.iter().map(component).collect();
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "components": components,
    });
    serde_json::to_vec_pretty(&bill).expect("plain values always serialize")
}

fn component(package: &Package) -> Value {
    let Package { name, version, licence } = package;
    // https://github.com/package-url/purl-spec: lower case, and `-` for `_`.
    let purl_name = name.to_lowercase().replace('_', "-");
    let purl = format!("pkg:pypi/{purl_name}@{}", version.replace('+', "%2B"));
    let mut component = json!({
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
    });
    if let Some(licence) = licence {
        component["licenses"] = json!([{ "license": { "name": licence } }]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_found_wherever_packages_put_them() {
        for (headers, wanted) in [
            ("License-Expression: MIT\nLicense: other", Some("MIT")),
            ("License: BSD-3-Clause", Some("BSD-3-Clause")),
            (
                "License: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License",
                Some("MIT License"),
            ),
            ("Classifier: Programming Language :: Python", None),
            ("", None),
        ] {
            let text =
                format!("Metadata-Version: 2.1\nName: a_B\nVersion: 1+x\n{headers}\n\nLicense: no");
            let package = parse(&text).expect("named");
            assert_eq!(package.licence.as_deref(), wanted, "{headers}");
            let component = component(&package);
            assert_eq!(component["purl"], "pkg:pypi/a-b@1%2Bx");
        }
        assert_eq!(parse("Name: a\n\nVersion: 1"), None);
    }
}
