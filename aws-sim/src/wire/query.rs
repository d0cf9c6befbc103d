//! The Query protocol's parameters: `Tags.member.1.Key=…`, percent-encoded, and their typed reading.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::AwsError;

/// Longest list a call may carry. Real limits are lower (50 tags); this bounds work, not meaning.
const MEMBERS_MAX: usize = 1000;

/// The parameters of one call. Remembers which were read: what is left over is not simulated, and refused.
#[derive(Debug, Clone)]
pub struct Params {
    values: BTreeMap<String, String>,
    read: RefCell<BTreeSet<String>>,
}

impl Params {
    /// `application/x-www-form-urlencoded` bytes; the last of equal names wins.
    pub fn parse(form: &str) -> Self {
        let values = pairs(form).map(|(name, value)| (decode(name), decode(value))).collect();
        Params { values, read: RefCell::default() }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.read.borrow_mut().insert(name.to_owned());
        self.values.get(name).map(String::as_str)
    }

    /// Empty counts as absent: the SDKs of some languages send `Name=` for an unset field.
    pub fn string(&self, name: &str) -> Option<String> {
        self.get(name).filter(|value| !value.is_empty()).map(str::to_owned)
    }

    pub fn required(&self, name: &str) -> Result<String, AwsError> {
        self.string(name).ok_or_else(|| {
            AwsError::constraint("null", &lower_first(name), "Member must not be null")
        })
    }

    pub fn count(&self, name: &str) -> Result<Option<u32>, AwsError> {
        let Some(number) = self.integer(name)? else {
            return Ok(None);
        };
        u32::try_from(number).map(Some).map_err(|_| {
            AwsError::constraint(
                &number.to_string(),
                &lower_first(name),
                if number < 0 {
                    "Member must have value greater than or equal to 0"
                } else {
                    "Member must have value less than or equal to 4294967295"
                },
            )
        })
    }

    pub fn integer(&self, name: &str) -> Result<Option<i64>, AwsError> {
        let malformed = |raw: &str| {
            AwsError::validation(format!("Value ({raw}) for parameter {name} is not an integer"))
        };
        self.string(name).map(|raw| raw.parse().map_err(|_| malformed(&raw))).transpose()
    }

    pub fn number(&self, name: &str) -> Result<Option<f64>, AwsError> {
        let malformed = |raw: &str| {
            AwsError::validation(format!("Value ({raw}) for parameter {name} is not a number"))
        };
        self.string(name).map(|raw| raw.parse().map_err(|_| malformed(&raw))).transpose()
    }

    pub fn seconds(&self, name: &str) -> Result<Option<Duration>, AwsError> {
        Ok(self.count(name)?.map(|secs| Duration::from_secs(u64::from(secs))))
    }

    pub fn boolean(&self, name: &str) -> Result<Option<bool>, AwsError> {
        match self.string(name).as_deref() {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(AwsError::validation(format!(
                "Value ({other}) for parameter {name} is not true or false"
            ))),
        }
    }

    /// The prefixes `name.member.1`, `name.member.2`, … that are present, without gaps.
    pub fn members(&self, name: &str) -> Result<Vec<String>, AwsError> {
        let mut members = Vec::new();
        for index in 1.. {
            let prefix = format!("{name}.member.{index}");
            let present = self.values.contains_key(&prefix)
                || self
                    .values
                    .range(format!("{prefix}.")..)
                    .next()
                    .is_some_and(|(key, _)| key.starts_with(&format!("{prefix}.")));
            if !present {
                break;
            }
            if index > MEMBERS_MAX {
                return Err(AwsError::validation(format!(
                    "{name} has more than {MEMBERS_MAX} members"
                )));
            }
            members.push(prefix);
        }
        // An empty list travels as `Name=`.
        let _ = self.get(name);
        Ok(members)
    }

    pub fn list(&self, name: &str) -> Result<Vec<String>, AwsError> {
        Ok(self
            .members(name)?
            .iter()
            .map(|member| self.get(member).unwrap_or_default().to_owned())
            .collect())
    }

    /// Whether any parameter begins so.
    pub fn has(&self, name: &str) -> bool {
        self.values.keys().any(|key| {
            key == name || key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
        })
    }

    /// Refuses what nobody read: better a loud error than a call half obeyed.
    pub fn finish(&self, action: &str) -> Result<(), AwsError> {
        let read = self.read.borrow();
        match self.values.keys().find(|name| !read.contains(*name)) {
            None => Ok(()),
            Some(name) => Err(AwsError::not_simulated(format!(
                "The simulated AWS does not know parameter {name} of {action}."
            ))),
        }
    }
}

fn lower_first(name: &str) -> String {
    let mut characters = name.chars();
    characters
        .next()
        .map(|first| first.to_ascii_lowercase())
        .into_iter()
        .chain(characters)
        .collect()
}

/// The raw `name=value` pairs of a form or a query string.
pub fn pairs(form: &str) -> impl Iterator<Item = (&str, &str)> {
    form.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Decodes `%XX` and `+`; what is malformed stays as it is.
pub fn decode(raw: &str) -> String {
    let bytes = raw.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let escaped = (bytes[index] == b'%').then(|| bytes.get(index + 1..index + 3)).flatten();
        match escaped.and_then(|digits| hex::decode(digits).ok()) {
            Some(byte) => {
                out.extend(byte);
                index += 3;
            }
            None => {
                out.push(if bytes[index] == b'+' { b' ' } else { bytes[index] });
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Encodes all but RFC 3986's unreserved characters, as SigV4 wants it.
pub fn encode(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for byte in raw.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_structures() {
        let params = Params::parse(
            "A.member.1=x&A.member.2=y+z&B.member.1.Key=k%3A1&B.member.1.Value=&C=&D=7",
        );
        assert_eq!(params.list("A").unwrap(), ["x", "y z"]);
        assert_eq!(params.members("B").unwrap(), ["B.member.1"]);
        assert_eq!(params.get("B.member.1.Key"), Some("k:1"));
        assert_eq!(params.string("B.member.1.Value"), None);
        assert!(params.list("C").unwrap().is_empty());
        assert_eq!(
            params.finish("X").unwrap_err().message,
            "The simulated AWS does not know parameter D of X."
        );
        assert_eq!(params.count("D").unwrap(), Some(7));
        params.finish("X").unwrap();
    }

    #[test]
    fn malformed_escapes_stay() {
        for (raw, decoded) in
            [("%", "%"), ("%4", "%4"), ("%zz", "%zz"), ("a%20b", "a b"), ("%C3%BC", "ü")]
        {
            assert_eq!(decode(raw), decoded);
        }
        assert_eq!(encode("a b/ü~"), "a%20b%2F%C3%BC~");
    }
}
