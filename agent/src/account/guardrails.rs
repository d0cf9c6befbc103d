//! What the customer's people allow, read from `guardrails/guardrails.toml` of the account store.
//! A missing or broken file means: hold everything.

use std::fmt;

use outstation_protocol::GroupName;
use outstation_protocol::signing::Signers;
use serde::Deserialize;

use super::approvals::Approvals;
use crate::store::AccountStore;

pub const KEY: &str = "guardrails/guardrails.toml";
/// People write it by hand.
const BYTES_MAX: u64 = 256 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guardrails {
    /// AutoScaling groups are called `<prefix><group>`; nothing else is ever touched.
    pub name_prefix: NamePrefix,
    pub nodes_per_group_max: u32,
    pub nodes_total_max: u32,
    /// Who may sign orders. Nobody: none is accepted.
    #[serde(default)]
    pub signers: Option<Signers>,
    #[serde(default)]
    pub unsigned_orders: UnsignedOrders,
    #[serde(default)]
    pub destroy: DestroyPolicy,
    #[serde(default)]
    pub drift: DriftPolicy,
    /// Stops every mutation until it is taken out again.
    #[serde(default)]
    pub pause: bool,
    /// Its version is the image: a new one goes through every group as an instance refresh.
    pub launch_template: LaunchTemplate,
    /// So many of a group's nodes keep serving while others are replaced, as AWS rounds.
    #[serde(default = "ninety")]
    pub min_healthy_percent: u32,
    /// Nodes that do not work, of all groups together.
    #[serde(default = "six")]
    pub replacements_per_hour: u32,
    /// Orders accepted that change a group, of all groups together; without it as many as come.
    #[serde(default)]
    pub changes_per_hour: Option<u32>,
    /// For so long a node may be in trouble, silent or not heard at all before it is replaced.
    #[serde(default = "ten_minutes")]
    pub node_patience_secs: u64,
    /// Exactly one of the two says where instances are placed.
    #[serde(default)]
    pub subnets: Vec<String>,
    #[serde(default)]
    pub availability_zones: Vec<String>,
    /// Read beside this file, where `destroy` asks for them.
    #[serde(skip)]
    pub approvals: Approvals,
}

fn ninety() -> u32 {
    90
}

fn six() -> u32 {
    6
}

fn ten_minutes() -> u64 {
    600
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct NamePrefix(String);

impl TryFrom<String> for NamePrefix {
    type Error = String;
    fn try_from(raw: String) -> Result<Self, String> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if (1..=64).contains(&raw.len()) && raw.bytes().all(allowed) {
            Ok(NamePrefix(raw))
        } else {
            Err(format!("name_prefix {raw:?} is not 1-64 letters, digits, '-' and '_'"))
        }
    }
}

impl fmt::Display for NamePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A numeric version: with `$Latest` a new version would slip in unchecked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchTemplate {
    pub name: String,
    pub version: u64,
}

/// Whether an order without a signature may be accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnsignedOrders {
    #[default]
    Refuse,
    /// Only where nothing is at stake.
    Dev,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DestroyPolicy {
    #[default]
    Never,
    /// Each end waits until the account's people approve that very order.
    Approve,
    Allow,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftPolicy {
    #[default]
    Repair,
    Report,
}

/// Why there are no guardrails at present, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoGuardrails(pub String);

impl fmt::Display for NoGuardrails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Guardrails {
    pub fn read(store: &AccountStore) -> Result<Guardrails, NoGuardrails> {
        let name = store.name(KEY);
        let unread = |why: String| NoGuardrails(format!("cannot read {name}: {why}"));
        let found = store.get(KEY, BYTES_MAX);
        let found = found.map_err(|e| unread(format!("{:#}", anyhow::Error::from(e))))?;
        let found = found.ok_or_else(|| unread("it is not there".to_owned()))?;
        let text = String::from_utf8(found.bytes).map_err(|e| unread(e.to_string()))?;
        Guardrails::parse(&text).map_err(|NoGuardrails(why)| NoGuardrails(format!("{name}: {why}")))
    }

    pub fn parse(text: &str) -> Result<Guardrails, NoGuardrails> {
        let guardrails: Guardrails =
            toml::from_str(text).map_err(|error| NoGuardrails(in_one_line(text, &error)))?;
        if guardrails.subnets.is_empty() == guardrails.availability_zones.is_empty() {
            let why = "give either subnets or availability_zones";
            return Err(NoGuardrails(why.to_owned()));
        }
        if guardrails.min_healthy_percent > 100 {
            return Err(NoGuardrails("min_healthy_percent is more than 100".to_owned()));
        }
        if guardrails.changes_per_hour == Some(0) {
            let why = "changes_per_hour is 0: pause = true stops everything";
            return Err(NoGuardrails(why.to_owned()));
        }
        if guardrails.signers.is_some() && guardrails.unsigned_orders == UnsignedOrders::Dev {
            let why = "they name signers and let unsigned orders pass: take out \
                unsigned_orders = \"dev\", or [signers]";
            return Err(NoGuardrails(why.to_owned()));
        }
        Ok(guardrails)
    }

    /// Whose orders count, in one line for people.
    pub fn orders(&self) -> String {
        match (&self.signers, self.unsigned_orders) {
            (None, UnsignedOrders::Dev) => "UNSIGNED orders are accepted".to_owned(),
            (None, UnsignedOrders::Refuse) => "no order is accepted: no [signers]".to_owned(),
            (Some(signers), _) => {
                let names: Vec<String> =
                    signers.signers().map(|signer| signer.name.to_string()).collect();
                format!("orders signed by {} of: {}", signers.threshold(), names.join(", "))
            }
        }
    }

    /// The AutoScaling group's name.
    pub fn asg_name(&self, group: &GroupName) -> String {
        format!("{}{group}", self.name_prefix.0)
    }
}

/// `line 5 (destroy = "deny"): unknown variant …`: the reason goes into tables and messages.
pub(super) fn in_one_line(text: &str, error: &toml::de::Error) -> String {
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
pub(crate) fn sample() -> Guardrails {
    Guardrails::parse(SAMPLE).expect("the sample is valid")
}

#[cfg(test)]
pub(crate) const SAMPLE: &str = r#"
name_prefix = "outstation-"
nodes_per_group_max = 40
nodes_total_max = 60
unsigned_orders = "dev"
destroy = "allow"
availability_zones = ["eu-central-1a"]
[launch_template]
name = "outstation-node"
version = 1
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use outstation_protocol::signing::SigningKey;

    #[test]
    fn what_is_not_said_is_the_stricter_choice() {
        let text = SAMPLE.replace("unsigned_orders = \"dev\"\n", "");
        let text = text.replace("destroy = \"allow\"\n", "");
        let guardrails = Guardrails::parse(&text).expect("both are optional");
        assert_eq!(guardrails.unsigned_orders, UnsignedOrders::Refuse);
        assert_eq!(guardrails.destroy, DestroyPolicy::Never);
        assert_eq!(guardrails.orders(), "no order is accepted: no [signers]");
    }

    #[test]
    fn it_is_told_whose_orders_count() {
        let key = |seed| SigningKey::from_seed(&[seed; 32]).public();
        let signed = SAMPLE.replace("unsigned_orders = \"dev\"\n", "");
        let signed = format!(
            "{signed}[signers]\nthreshold = 2\nkeys = [\n\
             {{ name = \"ann\", key = \"{}\" }},\n{{ name = \"bob\", key = \"{}\" }},\n]\n",
            key(1),
            key(2)
        );
        for (text, wanted) in [
            (SAMPLE.to_owned(), "UNSIGNED orders are accepted"),
            (signed, "orders signed by 2 of: "),
        ] {
            let told = Guardrails::parse(&text).expect("valid").orders();
            assert!(told.starts_with(wanted), "{told}");
        }
    }

    #[test]
    fn a_broken_file_is_no_guardrails() {
        let with_signers = |key: &str, threshold: u32| {
            format!(
                "{SAMPLE}[signers]\nthreshold = {threshold}\n\
                 keys = [{{ name = \"ann\", key = \"{key}\" }}]\n"
            )
        };
        let key = SigningKey::from_seed(&[1; 32]).public().to_string();
        let weak = format!("ed25519:{}=", "A".repeat(43));
        for (broken, words) in [
            (SAMPLE.replace("version = 1", "version = \"$Latest\""), "version"),
            (SAMPLE.replace("nodes_total_max = 60", "nodes_totalmax = 60"), "nodes_totalmax"),
            (SAMPLE.replace("outstation-\"", "out:station\""), "name_prefix"),
            (SAMPLE.replace("[\"eu-central-1a\"]", "[]"), "either subnets or"),
            (
                SAMPLE.replace("destroy", "min_healthy_percent = 101\ndestroy"),
                "min_healthy_percent",
            ),
            (SAMPLE.replace("destroy", "changes_per_hour = 0\ndestroy"), "pause = true"),
            ("not toml".to_owned(), "expected"),
            (format!("{SAMPLE}[signers]\nkeys = []\n"), "signers without any key"),
            (format!("{SAMPLE}[signers]\nkeys = [{{ name = \"a\" }}]\n"), "missing field `key`"),
            (with_signers("ed25519:AAAA", 1), "is no public key"),
            (with_signers(&weak, 1), "small order"),
            (with_signers(&key, 2), "threshold 2 of 1 signers cannot be"),
            (with_signers(&key, 1), "let unsigned orders pass"),
        ] {
            let NoGuardrails(why) = Guardrails::parse(&broken).expect_err(words);
            assert!(why.contains(words), "{words:?} not in {why:?}");
        }
    }

    #[test]
    fn a_missing_file_names_its_path() {
        let store = AccountStore::folder(std::path::Path::new("/nowhere"));
        let NoGuardrails(why) = Guardrails::read(&store).expect_err("absent");
        let wanted = "cannot read /nowhere/guardrails/guardrails.toml: it is not there";
        assert_eq!(why, wanted);
    }
}
