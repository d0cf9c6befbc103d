//! The environment in which users' Python and package builds run: nothing that is a key, an
//! agent socket or a cloud credential is passed on.

use std::ffi::OsString;
use std::path::Path;

/// Kept from our own environment for children that only compute.
const PLAIN: &[&str] = &["PATH", "LANG", "LC_ALL", "TZ"];
/// Kept as well for children that download packages: how to reach the index.
const NETWORK: &[&str] = &[
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "UV_CACHE_DIR",
    "UV_DEFAULT_INDEX",
    "UV_FIND_LINKS",
    "UV_INDEX_URL",
    "UV_NATIVE_TLS",
    "UV_OFFLINE",
    "UV_SYSTEM_CERTS",
];

/// For the declarations: their home is `home`, an empty folder, so that no credential file of
/// the person who applies is where cloud libraries look for one.
pub fn for_declarations(home: &Path) -> Vec<(OsString, OsString)> {
    let mut env = keep(PLAIN);
    env.push(("HOME".into(), home.into()));
    env.push(("AWS_EC2_METADATA_DISABLED".into(), "true".into()));
    env.push(("PYTHONDONTWRITEBYTECODE".into(), "1".into()));
    env
}

/// For uv: its cache lives in the real home.
pub fn for_packages() -> Vec<(OsString, OsString)> {
    let mut env = keep(PLAIN);
    env.extend(keep(NETWORK));
    env.extend(keep(&["HOME", "XDG_CACHE_HOME"]));
    env.push(("AWS_EC2_METADATA_DISABLED".into(), "true".into()));
    env
}

/// For our own services in `outstation dev`.
pub fn for_services() -> Vec<(OsString, OsString)> {
    let mut env = keep(PLAIN);
    env.extend(keep(&["HOME", "RUST_LOG", "RUST_BACKTRACE"]));
    env.push(("AWS_EC2_METADATA_DISABLED".into(), "true".into()));
    env
}

fn keep(names: &[&str]) -> Vec<(OsString, OsString)> {
    names
        .iter()
        .filter_map(|name| std::env::var_os(name).map(|value| (OsString::from(name), value)))
        .collect()
}
