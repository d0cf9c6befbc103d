//! The context: where the broker and the account's callers endpoint are, and how to trust them.
//! `outstation dev` writes one; every other verb reads one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use outstation_protocol::ids::{AccountId, Region, TenantId};
use outstation_protocol::model::DataPlane;
use outstation_protocol::signing::Signers;

use crate::message::{self, Failure};
use crate::signing::TrustedOrders;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    pub tenant: TenantId,
    pub account: AccountId,
    pub region: Region,
    /// An interpreter that has `outstation` and uv installed; runs the declarations.
    pub python: PathBuf,
    /// The account store, in which `artifacts/` is written.
    pub artifacts: PathBuf,
    /// The private key that orders are signed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "UnsignedOrders::is_refused")]
    pub unsigned_orders: UnsignedOrders,
    pub broker: Endpoint,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callers: Option<Endpoint>,
    /// Whose orders are believed when the broker shows them; without it one's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signers: Option<Signers>,
    /// `--key`: comes before everything else.
    #[serde(skip)]
    pub key: Option<PathBuf>,
    /// `--trust-order`: orders that a person vouches for.
    #[serde(skip)]
    pub trust_orders: TrustedOrders,
}

/// Whether orders are put that nobody has signed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnsignedOrders {
    #[default]
    Refuse,
    /// Where nothing is at stake; the account's guardrails have to say the same.
    Dev,
}

impl UnsignedOrders {
    fn is_refused(&self) -> bool {
        *self == UnsignedOrders::Refuse
    }
}

/// A gRPC endpoint behind TLS with its own root and a bearer token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    pub url: String,
    pub ca: PathBuf,
    pub server_name: String,
    pub token_file: PathBuf,
}

impl Context {
    pub fn data_plane(&self) -> DataPlane {
        DataPlane { account: self.account.clone(), region: self.region.clone() }
    }

    pub fn read(path: &Path) -> anyhow::Result<Context> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("read the context {}", path.display()))?;
        let context: Context = toml::from_str(&text).map_err(|error| {
            let what = message::of_toml(&text, &error);
            Failure::new(
                format!("the context {} is not valid: {what}", path.display()),
                "compare it with the one that `outstation dev` writes",
            )
        })?;
        if context.signers.is_some() && context.unsigned_orders == UnsignedOrders::Dev {
            return Err(Failure::new(
                format!("the context {} names signers and puts unsigned orders", path.display()),
                "take out unsigned_orders = \"dev\", or [signers]",
            )
            .into());
        }
        let endpoints = [("broker", Some(&context.broker)), ("callers", context.callers.as_ref())];
        for (section, endpoint) in endpoints {
            if let Some(Endpoint { url, .. }) = endpoint
                && !is_https_and_port(url)
            {
                return Err(Failure::new(
                    format!("url {url:?} of [{section}] in the context {} is not https://HOST:PORT", path.display()),
                    "correct it: without https neither the token nor the answers would be protected",
                )
                .into());
            }
        }
        Ok(context)
    }

    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = toml::to_string(self).context("write the context as TOML")?;
        write_atomically(path, text.as_bytes()).context("write the context")
    }
}

/// A root or a token that the context names, which `whose` has written.
fn read_named(path: &Path, whose: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let error = anyhow::Error::new(error).context(format!("read {}", path.display()));
        if !missing {
            return error;
        }
        let hint =
            format!("the context names it, and {whose} writes it: is `outstation dev` running?");
        Failure::new(message::chain(&error), hint).into()
    })
}

/// The root of an endpoint of the context.
pub fn read_root(path: &Path, section: &str, whose: &str) -> anyhow::Result<String> {
    let text = read_named(path, whose)?;
    if text.contains("-----BEGIN CERTIFICATE-----") {
        return Ok(text);
    }
    Err(Failure::new(
        format!("{} holds no certificate", path.display()),
        format!("`ca` of [{section}] in the context must be the root.pem of {whose}"),
    )
    .into())
}

/// The token of an endpoint of the context.
pub fn read_token(path: &Path, section: &str, whose: &str) -> anyhow::Result<String> {
    let token = read_named(path, whose)?.trim().to_owned();
    if !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(token);
    }
    Err(Failure::new(
        format!("{} holds no token", path.display()),
        format!("`token_file` of [{section}] in the context must be that of {whose}"),
    )
    .into())
}

fn is_https_and_port(url: &str) -> bool {
    url.parse::<tonic::transport::Uri>().is_ok_and(|uri| {
        uri.scheme_str() == Some("https") && uri.port_u16().is_some() && uri.path() == "/"
    })
}

/// What to do when an endpoint of the context was not reached, from what the connection said.
pub fn reach_hint(section: &str, said: &str) -> String {
    let said = said.to_lowercase();
    let any = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if any(&["notvalidyet", "not valid yet", "expired"]) {
        "the certificates' dates and this machine's clock disagree: check the clock (`date`)".into()
    } else if any(&["unknownissuer", "badsignature", "invalid signature"]) {
        format!(
            "`ca` of [{section}] in the context is not its root: it was set up anew, or the url is \
             another's; take the context that its `outstation dev` wrote"
        )
    } else if any(&["notvalidforname", "not valid for name"]) {
        format!("correct `server_name` of [{section}] in the context")
    } else if any(&["invalidcontenttype", "corrupt message"]) {
        format!("something else listens there: correct `url` of [{section}] in the context")
    } else if any(&["unexpected eof", "handshake eof"]) {
        format!(
            "something else listens there, or passes it on to nobody: is it running? Else correct \
             `url` of [{section}] in the context"
        )
    } else if any(&["lookup", "dns"]) {
        format!("there is no such machine: correct `url` of [{section}] in the context")
    } else {
        // Callers' endpoints come from the account agent.
        let whose = if section == "callers" { "account agent" } else { section };
        format!(
            "is the {whose} running? `outstation dev` starts one; else correct [{section}] in the \
             context"
        )
    }
}

/// Where the context may be found, in order of preference.
#[derive(Debug, Clone)]
pub struct Search {
    /// `--context` or `OUTSTATION_CONTEXT`: no other place is looked at.
    pub explicit: Option<PathBuf>,
    pub cwd: PathBuf,
    pub home: Option<PathBuf>,
}

impl Search {
    pub fn from_process(explicit: Option<PathBuf>) -> anyhow::Result<Search> {
        let cwd = std::env::current_dir().context("find the current directory")?;
        Ok(Search { explicit, cwd, home: std::env::var_os("HOME").map(PathBuf::from) })
    }

    fn candidates(&self) -> Vec<PathBuf> {
        if let Some(path) = &self.explicit {
            return vec![path.clone()];
        }
        self.cwd
            .ancestors()
            .map(|dir| dir.join(".outstation/context.toml"))
            .chain(self.home.iter().map(|home| home.join(".config/outstation/context.toml")))
            .collect()
    }

    pub fn find(&self) -> anyhow::Result<PathBuf> {
        let mut candidates = self.candidates();
        match candidates.iter().position(|path| path.is_file()) {
            Some(index) => Ok(candidates.swap_remove(index)),
            None => Err(Failure::new(
                match &self.explicit {
                    Some(path) => format!("there is no context at {}", path.display()),
                    None => format!(
                        "no context found: no .outstation/context.toml in {} or above",
                        self.cwd.display()
                    ),
                },
                "start `outstation dev`, which writes one, or name one with --context",
            )
            .into()),
        }
    }

    pub fn load(&self) -> anyhow::Result<Context> {
        Context::read(&self.find()?)
    }
}

/// Readers see the old file or the new one, never half of one.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    let mut file = tempfile::NamedTempFile::new_in(parent)
        .with_context(|| format!("create a file in {}", parent.display()))?;
    std::io::Write::write_all(&mut file, bytes)
        .with_context(|| format!("write {}", path.display()))?;
    file.persist(path).with_context(|| format!("rename to {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use outstation_protocol::signing::SigningKey;

    fn context() -> Context {
        let endpoint = |port| Endpoint {
            url: format!("https://127.0.0.1:{port}"),
            ca: "/state/root.pem".into(),
            server_name: "broker.outstation".into(),
            token_file: "/state/token".into(),
        };
        Context {
            tenant: TenantId::try_from("dev").expect("valid"),
            account: AccountId::try_from("123456789012").expect("valid"),
            region: Region::try_from("eu-central-1").expect("valid"),
            python: "/venv/bin/python".into(),
            artifacts: "/store".into(),
            broker: endpoint(1),
            callers: Some(endpoint(2)),
            signing_key: Some("/keys/ops.pem".into()),
            unsigned_orders: UnsignedOrders::Refuse,
            signers: Some(Signers::only(
                "ops@example".to_owned().try_into().expect("valid"),
                SigningKey::from_seed(&[1; 32]).public(),
            )),
            key: None,
            trust_orders: TrustedOrders::new(),
        }
    }

    #[test]
    fn the_nearest_context_is_found_and_an_explicit_one_is_the_only_one() {
        let root = tempfile::tempdir().expect("a directory");
        let deep = root.path().join("a/b");
        fs::create_dir_all(&deep).expect("directories");
        let search = |explicit: Option<PathBuf>| Search {
            explicit,
            cwd: deep.clone(),
            home: Some(root.path().join("home")),
        };
        assert!(search(None).find().is_err());

        let home = root.path().join("home/.config/outstation/context.toml");
        context().write(&home).expect("written");
        assert_eq!(search(None).find().expect("found"), home);

        let near = root.path().join("a/.outstation/context.toml");
        context().write(&near).expect("written");
        assert_eq!(search(None).find().expect("found"), near);
        assert_eq!(search(None).load().expect("read"), context());

        let missing = root.path().join("missing.toml");
        let error = search(Some(missing)).find().expect_err("explicit and missing");
        assert!(error.to_string().starts_with("there is no context at"), "{error}");
    }
}
