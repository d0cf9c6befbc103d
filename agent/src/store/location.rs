//! Where an account store is, as a configuration says it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Location {
    Folder(PathBuf),
    S3 {
        bucket: String,
        /// Empty, or ends with a slash.
        prefix: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no account store: {why}; give a folder, or s3://bucket/prefix")]
pub struct LocationError {
    given: String,
    why: &'static str,
}

/// S3's own rules are 3 to 63; keys have 1,024 bytes, of which ours need some 150.
const PREFIX_CHARS_MAX: usize = 512;

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(raw: &str) -> Result<Location, LocationError> {
        let refused = |why| LocationError { given: raw.to_owned(), why };
        let Some((scheme, rest)) = raw.split_once("://") else {
            if raw.is_empty() {
                return Err(refused("it is empty"));
            }
            return Ok(Location::Folder(PathBuf::from(raw)));
        };
        if scheme != "s3" {
            return Err(refused("of such a place nothing is known"));
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let in_bucket =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(in_bucket) {
            return Err(refused("a bucket's name has 3-63 of a-z, 0-9, '-' and '.'"));
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_plain = |part: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            !part.is_empty() && part != "." && part != ".." && part.bytes().all(allowed)
        };
        if prefix.len() > PREFIX_CHARS_MAX
            || !(prefix.is_empty() || prefix.split('/').all(is_plain))
        {
            return Err(refused(
                "a prefix has parts of letters, digits, '-', '_' and '.' with one slash between them, at most 512 characters",
            ));
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Location::S3 { bucket: bucket.to_owned(), prefix })
    }
}

impl TryFrom<String> for Location {
    type Error = LocationError;

    fn try_from(raw: String) -> Result<Location, LocationError> {
        raw.parse()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Folder(root) => write!(f, "{}", root.display()),
            Location::S3 { bucket, prefix } => {
                write!(f, "s3://{bucket}/{}", prefix.trim_end_matches('/'))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_a_folder_or_a_bucket_and_nothing_else() {
        for (raw, wanted) in [
            ("/var/store", Ok("/var/store")),
            ("store", Ok("store")),
            ("s3://acme-store", Ok("s3://acme-store/")),
            ("s3://acme-store/", Ok("s3://acme-store/")),
            ("s3://acme.store/prod/eu-1/", Ok("s3://acme.store/prod/eu-1")),
            ("", Err("it is empty")),
            ("https://acme-store.s3.amazonaws.com/", Err("nothing is known")),
            ("gs://acme-store/prod", Err("nothing is known")),
            ("s3://", Err("3-63")),
            ("s3://Acme/prod", Err("3-63")),
            ("s3://acme-store//prod", Err("one slash")),
            ("s3://acme-store/prod//", Err("one slash")),
            ("s3://acme-store/../other", Err("one slash")),
            ("s3://acme-store/a b", Err("one slash")),
            ("s3://acme-store/*", Err("one slash")),
        ] {
            match (raw.parse::<Location>(), wanted) {
                (Ok(location), Ok(wanted)) => assert_eq!(location.to_string(), wanted, "{raw}"),
                (Err(error), Err(words)) => {
                    let told = error.to_string();
                    assert!(told.contains(words) && told.contains("s3://bucket/prefix"), "{told}");
                }
                (found, wanted) => panic!("{raw}: {found:?}, not {wanted:?}"),
            }
        }
    }
}
