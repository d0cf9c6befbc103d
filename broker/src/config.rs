//! The configuration file, checked whole before anything is opened.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use outstation_protocol::{DataPlane, TenantId};
use outstation_sts::StsEndpoint;
use serde::Deserialize;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Directory of the database, the CA and its keys.
    pub state: PathBuf,
    pub tenant: TenantId,
    pub link: LinkConfig,
    pub admin: AdminConfig,
    /// The data planes whose agents enroll with a join token. Those that enroll with an IAM role
    /// are registered while the broker runs: `outstation dataplane add`.
    #[serde(default)]
    pub data_planes: Vec<DataPlane>,
    #[serde(default)]
    pub sts: StsConfig,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkConfig {
    /// QUIC: enrollment and control sessions.
    pub listen: SocketAddr,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StsConfig {
    /// Instead of each region's own: that of a simulated AWS, `http://host:port`.
    pub endpoint: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// gRPC over TLS; loopback only.
    pub listen: SocketAddr,
    /// Holds the bearer token; made with a fresh one if absent.
    pub token_file: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} is not valid: {what}")]
    Parse { path: PathBuf, what: String },
    #[error("the admin API would listen on {listen}, which others can reach")]
    AdminNotLoopback { listen: SocketAddr },
    #[error("data plane {data_plane} is named twice")]
    DataPlaneTwice { data_plane: DataPlane },
    #[error("[sts] endpoint cannot be used")]
    Sts(#[source] outstation_sts::EndpointError),
}

impl ConfigError {
    pub fn hint(&self) -> String {
        match self {
            ConfigError::Read { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => "name an existing file with --config".into(),
                std::io::ErrorKind::PermissionDenied => {
                    "let the broker's user read it (chown, chmod)".into()
                }
                _ => "--config names a text file in TOML".into(),
            },
            ConfigError::Parse { .. } => {
                "correct the line named above; unknown keys are errors".into()
            }
            ConfigError::AdminNotLoopback { .. } => {
                "set [admin] listen to a loopback address such as 127.0.0.1:20201".into()
            }
            ConfigError::DataPlaneTwice { .. } => "remove one of the two [[data_planes]]".into(),
            ConfigError::Sts(_) => {
                "name it as http://host:port; leave it away where AWS's own STS answers".into()
            }
        }
    }
}

impl StsConfig {
    pub fn endpoint(&self) -> Result<Option<StsEndpoint>, ConfigError> {
        let url = self.endpoint.as_deref();
        url.map(StsEndpoint::configured).transpose().map_err(ConfigError::Sts)
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Config = toml::from_str(&text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            what: in_one_line(&text, &error),
        })?;
        config.check()?;
        Ok(config)
    }

    /// What the types alone do not say.
    pub fn check(&self) -> Result<(), ConfigError> {
        // One bearer token is enough between processes of one machine, and not enough on a
        // network: an open port never.
        if !self.admin.listen.ip().is_loopback() {
            return Err(ConfigError::AdminNotLoopback { listen: self.admin.listen });
        }
        self.sts.endpoint()?;
        let mut seen = BTreeSet::new();
        match self.data_planes.iter().find(|data_plane| !seen.insert(*data_plane)) {
            Some(twice) => Err(ConfigError::DataPlaneTwice { data_plane: twice.clone() }),
            None => Ok(()),
        }
    }
}

/// `line 5 (listen = "nonsense"): invalid socket address`, rather than a drawing of several lines.
fn in_one_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', " ");
    let Some(span) = error.span() else { return message };
    if message.starts_with("missing field") && span.start == 0 {
        return message;
    }
    let number = text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1);
    let line: String =
        text.lines().nth(number - 1).unwrap_or_default().trim().chars().take(80).collect();
    format!("line {number} ({line}): {message}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        state = "/var/lib/outstation-broker"
        tenant = "dev"
        [link]
        listen = "127.0.0.1:20200"
        [admin]
        listen = "127.0.0.1:20201"
        token_file = "/var/lib/outstation-broker/admin.token"
        [[data_planes]]
        account = "123456789012"
        region = "eu-central-1"
    "#;

    fn load(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("broker.toml");
        std::fs::write(&path, text).expect("write the configuration");
        Config::load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_file_loads() {
        let config = load(GOOD).expect("a good file");
        assert_eq!(config.tenant.as_str(), "dev");
        assert_eq!(config.data_planes.len(), 1);
        assert_eq!(config.sts.endpoint().expect("AWS's own"), None);
    }

    #[test]
    fn a_bad_file_says_what_is_wrong() {
        let with = |from: &str, to: &str| GOOD.replace(from, to);
        for (text, wanted) in [
            (with("tenant = \"dev\"", "tenant = \"Dev\""), "lower-case"),
            (with("tenant", "tennant"), "tennant"),
            (with("127.0.0.1:20201", "0.0.0.0:20201"), "others can reach"),
            (with("123456789012", "1234"), "exactly 12 digits"),
            (with("[[data_planes]]", "[data_planes]"), "not valid"),
            (format!("{GOOD}\n[sts]\nendpoint = \"https://sts.evil.example\""), "[sts] endpoint"),
            (
                format!(
                    "{GOOD}\n[[data_planes]]\naccount = \"123456789012\"\nregion = \"eu-central-1\""
                ),
                "twice",
            ),
        ] {
            let error = load(&text).expect_err(&text);
            assert!(error.contains(wanted), "{error:?} should say {wanted:?}");
        }
        assert!(matches!(
            Config::load(Path::new("/nonexistent/broker.toml")),
            Err(ConfigError::Read { .. })
        ));
    }
}
