//! Every identifier has its own type, checked once at the edge: `GroupName::try_from(raw)?`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A raw string that is not a valid identifier of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is not valid: {rule}")]
pub struct IdError {
    pub kind: &'static str,
    /// The offending value, cut to 80 characters.
    pub value: String,
    /// What a valid value looks like, in words.
    pub rule: &'static str,
}

impl IdError {
    fn new(kind: &'static str, value: &str, rule: &'static str) -> Self {
        IdError { kind, value: value.chars().take(80).collect(), rule }
    }
}

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(raw: String) -> Result<Self, IdError> {
                let check: fn(&str) -> bool = $check;
                if check(&raw) { Ok($name(raw)) } else { Err(IdError::new($kind, &raw, $rule)) }
            }
        }

        impl TryFrom<&str> for $name {
            type Error = IdError;
            fn try_from(raw: &str) -> Result<Self, IdError> {
                Self::try_from(raw.to_owned())
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(raw: &str) -> Result<Self, IdError> {
                Self::try_from(raw)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

/// A name of letters, digits, `_` and `-`, that starts with a letter; at most `max` bytes.
fn is_name(raw: &str, max: usize) -> bool {
    raw.len() <= max
        && raw.starts_with(|c: char| c.is_ascii_alphabetic())
        && raw.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn is_lower_label(raw: &str, max: usize) -> bool {
    !raw.is_empty()
        && raw.len() <= max
        && raw.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !raw.starts_with('-')
        && !raw.ends_with('-')
}

string_id!(
    /// The organisation that owns data planes at a broker.
    TenantId, "tenant", "1-63 lower-case letters, digits and '-'", |raw| is_lower_label(raw, 63)
);
string_id!(
    /// An AWS account id.
    AccountId, "account", "exactly 12 digits",
    |raw| raw.len() == 12 && raw.bytes().all(|b| b.is_ascii_digit())
);
string_id!(
    /// An AWS region code, such as `eu-central-1`.
    Region, "region", "an AWS region code such as eu-central-1",
    |raw| is_lower_label(raw, 32) && raw.contains('-')
);
string_id!(
    /// What people call a data plane: an account and a region that are registered at a broker.
    DataPlaneName, "data plane name", "1-63 lower-case letters, digits and '-'",
    |raw| is_lower_label(raw, 63)
);
string_id!(
    /// An IAM role's name, without its path, which STS does not tell.
    RoleName, "role name", "1-64 letters, digits and _+=,.@- (leave a path away)",
    |raw| (1..=64).contains(&raw.len())
        && raw.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b))
);
string_id!(
    /// An IAM role's unique id, which a role made again under the same name does not have.
    RoleId, "role id", "AROA and 12 or more upper-case letters and digits (`aws iam get-role`: RoleId)",
    |raw| (16..=128).contains(&raw.len())
        && raw.starts_with("AROA")
        && raw.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
);
string_id!(
    /// A server group. Unique within a data plane; part of the AutoScaling group's name.
    GroupName, "server group name",
    "1-63 letters, digits, '_' and '-', starting with a letter", |raw| is_name(raw, 63)
);
string_id!(
    /// An environment: a pinned set of Python dependencies.
    EnvironmentName, "environment name",
    "1-63 letters, digits, '_' and '-', starting with a letter", |raw| is_name(raw, 63)
);
string_id!(
    /// One account agent, named by the broker at enrollment.
    AgentId, "agent id", "1-63 lower-case letters, digits and '-'", |raw| is_lower_label(raw, 63)
);
string_id!(
    /// An EC2 instance id: `i-` and 8 or 17 hexadecimal digits.
    InstanceId, "instance id", "'i-' followed by 8 or 17 lower-case hexadecimal digits",
    |raw| raw.strip_prefix("i-").is_some_and(|hex| {
        (hex.len() == 8 || hex.len() == 17)
            && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
);

/// A group's version of desired state. Starts at 1 and only rises; a tombstone has one too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    pub const FIRST: Generation = Generation(1);

    pub fn next(self) -> Generation {
        Generation(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A SHA-256 digest, written `sha256:<64 hexadecimal digits>`; 32 bytes on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits without the `sha256:` prefix, as used in file names.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first twelve hexadecimal digits, for people.
    pub fn short(&self) -> String {
        format!("sha256:{}…", hex::encode(&self.0[..6]))
    }
}

impl TryFrom<&str> for Digest {
    type Error = IdError;
    fn try_from(raw: &str) -> Result<Self, IdError> {
        let bad = || IdError::new("digest", raw, "'sha256:' and 64 lower-case hexadecimal digits");
        let digits = raw.strip_prefix("sha256:").ok_or_else(bad)?;
        if digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad());
        }
        let mut bytes = [0u8; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| bad())?;
        Ok(Digest(bytes))
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(raw: &str) -> Result<Self, IdError> {
        Digest::try_from(raw)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            Digest::try_from(text.as_str()).map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Digest)
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_at_the_edge() {
        for (raw, valid) in [
            ("delay_tsg", true),
            ("a", true),
            ("A-1", true),
            ("", false),
            ("1st", false),
            ("with space", false),
            ("colon:name", false),
            ("ünicode", false),
            (&"x".repeat(63), true),
            (&"x".repeat(64), false),
        ] {
            assert_eq!(GroupName::try_from(raw).is_ok(), valid, "{raw:?}");
        }
    }

    #[test]
    fn aws_ids_have_their_shapes() {
        for (valid, ok) in [
            (AccountId::try_from("123456789012").is_ok(), true),
            (AccountId::try_from("12345678901").is_ok(), false),
            (AccountId::try_from("12345678901x").is_ok(), false),
            (Region::try_from("eu-central-1").is_ok(), true),
            (Region::try_from("eu central").is_ok(), false),
            (InstanceId::try_from("i-0123456789abcdef0").is_ok(), true),
            (InstanceId::try_from("i-0123ABCD").is_ok(), false),
            (InstanceId::try_from("i-").is_ok(), false),
        ] {
            assert_eq!(valid, ok);
        }
    }

    #[test]
    fn a_digest_survives_its_text() {
        let digest = Digest::of(b"outstation");
        assert_eq!(Digest::try_from(digest.to_string().as_str()), Ok(digest));
        assert!(Digest::try_from("sha256:12").is_err());
        assert!(Digest::try_from(digest.to_string().to_uppercase().as_str()).is_err());
    }

    #[test]
    fn an_error_says_what_would_be_right() {
        let error = GroupName::try_from("1st").expect_err("starts with a digit");
        assert_eq!(
            error.to_string(),
            "server group name \"1st\" is not valid: \
             1-63 letters, digits, '_' and '-', starting with a letter"
        );
    }
}
