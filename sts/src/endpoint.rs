//! Which STS is asked: the region's own, from a list, or the one that the verifier's configuration
//! names. Never a client's word.

use outstation_protocol::evidence::answer::partition_of;
use outstation_protocol::ids::Region;

/// Where STS is known to answer. A proof's region selects nothing outside this list.
const REGIONS: [&str; 34] = [
    "af-south-1",
    "ap-east-1",
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-northeast-3",
    "ap-south-1",
    "ap-south-2",
    "ap-southeast-1",
    "ap-southeast-2",
    "ap-southeast-3",
    "ap-southeast-4",
    "ap-southeast-5",
    "ap-southeast-7",
    "ca-central-1",
    "ca-west-1",
    "cn-north-1",
    "cn-northwest-1",
    "eu-central-1",
    "eu-central-2",
    "eu-north-1",
    "eu-south-1",
    "eu-south-2",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "il-central-1",
    "me-central-1",
    "me-south-1",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-gov-west-1",
    "us-west-1",
    "us-west-2",
];

/// The STS that is asked; both ends derive the signed `host` from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StsEndpoint {
    scheme: &'static str,
    host: String,
}

#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("{0} is not a region whose STS is known")]
    UnknownRegion(Region),
    #[error("{0:?} is not an STS endpoint of the form http://host:port")]
    NotAnUrl(String),
}

impl StsEndpoint {
    pub fn of_region(region: &Region) -> Result<StsEndpoint, EndpointError> {
        if !REGIONS.contains(&region.as_str()) {
            return Err(EndpointError::UnknownRegion(region.clone()));
        }
        let suffix = if partition_of(region) == "aws-cn" { ".cn" } else { "" };
        Ok(StsEndpoint { scheme: "https", host: format!("sts.{region}.amazonaws.com{suffix}") })
    }

    /// The simulated AWS's, where the configuration names it; plain HTTP, hence never AWS's own.
    pub fn configured(url: &str) -> Result<StsEndpoint, EndpointError> {
        let bad = || EndpointError::NotAnUrl(url.to_owned());
        let uri: http::Uri = url.parse().map_err(|_| bad())?;
        let authority = uri.authority().ok_or_else(bad)?.as_str();
        let plain = uri.scheme_str() == Some("http")
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
            && !authority.contains('@');
        if !plain {
            return Err(bad());
        }
        Ok(StsEndpoint { scheme: "http", host: authority.to_owned() })
    }

    /// The configured one if there is one, the region's otherwise.
    pub fn choose(region: &Region, url: Option<&str>) -> Result<StsEndpoint, EndpointError> {
        url.map_or_else(|| StsEndpoint::of_region(region), StsEndpoint::configured)
    }

    /// Where the rebuilt request goes; nothing of it is a client's.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.host)
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.scheme == "https"
    }

    /// What the `host` header says.
    pub fn host(&self) -> &str {
        &self.host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_come_from_the_list_or_the_configuration() {
        let region = |raw: &str| Region::try_from(raw).expect("valid");
        for (raw, host) in [
            ("eu-central-1", Some("sts.eu-central-1.amazonaws.com")),
            ("cn-north-1", Some("sts.cn-north-1.amazonaws.com.cn")),
            ("evil-example-1", None),
        ] {
            let endpoint = StsEndpoint::of_region(&region(raw)).ok();
            assert_eq!(endpoint.as_ref().map(StsEndpoint::host), host, "{raw}");
        }
        for (url, host) in [
            ("http://127.0.0.1:20100", Some("127.0.0.1:20100")),
            ("http://127.0.0.1:20100/", Some("127.0.0.1:20100")),
            ("https://evil.example", None),
            ("http://user@evil.example", None),
            ("http://evil.example/path", None),
            ("http://evil.example/?query", None),
            ("127.0.0.1:20100", None),
        ] {
            let endpoint = StsEndpoint::configured(url).ok();
            assert_eq!(endpoint.as_ref().map(StsEndpoint::host), host, "{url}");
        }
    }
}
