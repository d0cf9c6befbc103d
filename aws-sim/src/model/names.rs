//! Identifiers of the simulated AWS, each its own type.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::AwsError;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// Name of an AutoScaling group: ASCII 33-126 without a colon, 1-255 characters (API reference, CreateAutoScalingGroup).
    GroupName
);
name!(
    /// Name of a lifecycle hook: letters, digits and `-_/`, 1-255 characters.
    HookName
);
name!(
    /// Name of a scaling policy: 1-255 characters.
    PolicyName
);
name!(
    /// `i-` and 17 hex digits where this simulation made it; any short string where a caller sent it.
    InstanceId
);
name!(
    /// The key id half of a credential: `AKIA…` (long-term) or `ASIA…` (session).
    AccessKeyId
);

fn length(raw: &str, parameter: &str, max: usize) -> Result<(), AwsError> {
    if raw.is_empty() {
        return Err(AwsError::constraint(
            raw,
            parameter,
            "Member must have length greater than or equal to 1",
        ));
    }
    if raw.chars().count() > max {
        return Err(AwsError::constraint(
            raw,
            parameter,
            &format!("Member must have length less than or equal to {max}"),
        ));
    }
    Ok(())
}

impl TryFrom<String> for GroupName {
    type Error = AwsError;
    fn try_from(raw: String) -> Result<Self, AwsError> {
        length(&raw, "autoScalingGroupName", 255)?;
        if !raw.bytes().all(|byte| (33..=126).contains(&byte) && byte != b':') {
            return Err(AwsError::constraint(
                &raw,
                "autoScalingGroupName",
                "Member must contain only ASCII characters 33-126 and no colon",
            ));
        }
        Ok(GroupName(raw))
    }
}

impl TryFrom<String> for HookName {
    type Error = AwsError;
    fn try_from(raw: String) -> Result<Self, AwsError> {
        length(&raw, "lifecycleHookName", 255)?;
        if !raw.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_/".contains(&byte)) {
            return Err(AwsError::constraint(
                &raw,
                "lifecycleHookName",
                r"Member must satisfy regular expression pattern: [A-Za-z0-9\-_\/]+",
            ));
        }
        Ok(HookName(raw))
    }
}

impl TryFrom<String> for PolicyName {
    type Error = AwsError;
    fn try_from(raw: String) -> Result<Self, AwsError> {
        length(&raw, "policyName", 255)?;
        Ok(PolicyName(raw))
    }
}

impl TryFrom<String> for InstanceId {
    type Error = AwsError;
    fn try_from(raw: String) -> Result<Self, AwsError> {
        length(&raw, "instanceId", 19)?;
        Ok(InstanceId(raw))
    }
}

impl From<String> for AccessKeyId {
    fn from(raw: String) -> Self {
        AccessKeyId(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_names_follow_the_api_reference() {
        for (raw, valid) in [
            ("outstation-a", true),
            ("a/b_c.d#1", true),
            ("", false),
            ("a:b", false),
            ("a b", false),
            ("ü", false),
            (&"x".repeat(255), true),
            (&"x".repeat(256), false),
        ] {
            assert_eq!(GroupName::try_from(raw.to_owned()).is_ok(), valid, "{raw:?}");
        }
    }
}
