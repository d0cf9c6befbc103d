//! The context: entries that are missing, wrong, or another's.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use outstation_integration::bad::{Said, run_to_end};
use outstation_integration::{binaries, python};
use outstation_protocol::signing::SigningKey;

use crate::Act::{Cli, Context, Do};
use crate::{Doing, Ground, Table};

const GET: &[&str] = &["get"];
const CALL: &[&str] = &["call", "speed", "--row", r#"{"distance": 1400, "air_time": 227}"#];
const PLAN: &[&str] = &["plan", "."];

#[rustfmt::skip]
pub const TABLE: Table = &[
    ("a context that there is not", Cli(&["--context", "nowhere.toml", "get"]), "exit 1",
        "there is no context at nowhere.toml", "--context"),
    ("a context that is another file", Cli(&["--context", "features.py", "get"]), "exit 1",
        "the context features.py is not valid: line 1 (", "`outstation dev` writes"),
    ("no broker", Context("broker", "", GET), "exit 1",
        "missing field `broker`", "compare it"),
    ("an entry too many", Context("colour", "\"red\"", GET), "exit 1",
        "line 3 (colour = \"red\"): unknown field `colour`", "compare it"),
    ("an account of 3 digits", Context("account", "\"123\"", GET), "exit 1",
        "exactly 12 digits", "compare it"),
    ("another account", Context("account", "\"999999999999\"", GET), "exit 1",
        "FAILED_PRECONDITION*does not serve data plane 999999999999", "account and region in the context"),
    ("a URL without https", Context("broker.url", "\"http://127.0.0.1:20002\"", GET), "exit 1",
        "url \"http://127.0.0.1:20002\" of [broker]*is not https://HOST:PORT", "correct it"),
    ("a URL without a port", Context("broker.url", "\"https://127.0.0.1\"", GET), "exit 1",
        "of [broker]*is not https://HOST:PORT", "correct it"),
    ("a URL that is a path", Context("callers.url", "\"/tmp/socket\"", CALL), "exit 1",
        "of [callers]*is not https://HOST:PORT", "correct it"),
    ("a port where nobody listens", Context("broker.url", "\"https://127.0.0.1:1\"", GET), "exit 1",
        "reach the broker at https://127.0.0.1:1*refused", "is the broker running?*correct [broker]"),
    ("a machine that there is not", Context("broker.url", "\"https://nowhere.invalid:20002\"", GET), "exit 1",
        "reach the broker at https://nowhere.invalid:20002", "no such machine*[broker]"),
    ("the port of the simulated AWS", Context("broker.url", "\"https://AWS\"", GET), "exit 1",
        "reach the broker at", "something else listens there"),
    ("the callers' port for the broker's", Context("broker.url", "\"https://CALLERS\"", GET), "exit 1",
        "invalid peer certificate: UnknownIssuer", "`ca` of [broker]*not its root"),
    ("the root of the other party", Context("broker.ca", "\"CALLERS_ROOT\"", GET), "exit 1",
        "invalid peer certificate: UnknownIssuer", "`ca` of [broker]*not its root"),
    ("a root that is a text", Context("broker.ca", "\"FEATURES\"", GET), "exit 1",
        "features.py holds no certificate", "`ca` of [broker]"),
    ("a root that there is not", Context("broker.ca", "\"/nowhere/root.pem\"", GET), "exit 1",
        "read /nowhere/root.pem*No such file", "the context names it"),
    ("another server name", Context("broker.server_name", "\"other.outstation\"", GET), "exit 1",
        "certificate not valid for name \"other.outstation\"", "`server_name` of [broker]"),
    ("a token that there is not", Context("broker.token_file", "\"/nowhere/token\"", GET), "exit 1",
        "read /nowhere/token*No such file", "the context names it"),
    ("a token that is a program", Context("broker.token_file", "\"FEATURES\"", GET), "exit 1",
        "features.py holds no token", "`token_file` of [broker]"),
    ("the token of the other party", Context("broker.token_file", "\"CALLERS_TOKEN\"", GET), "exit 1",
        "UNAUTHENTICATED", "not this broker's"),
    ("an empty token", Context("broker.token_file", "\"/dev/null\"", GET), "exit 1",
        "/dev/null holds no token", "`token_file` of [broker]"),
    ("no callers", Context("callers", "", CALL), "exit 1",
        "names no [callers]", "account's own agent"),
    ("the broker's token for calls", Context("callers.token_file", "\"BROKER_TOKEN\"", CALL), "exit 1",
        "UNAUTHENTICATED", "token_file of [callers]"),
    ("the broker's root for calls", Context("callers.ca", "\"BROKER_ROOT\"", CALL), "exit 1",
        "delay_tsg: UNAVAILABLE*UnknownIssuer", "`ca` of [callers]*not its root"),
    ("nobody where calls go", Context("callers.url", "\"https://127.0.0.1:1\"", CALL), "exit 1",
        "delay_tsg: UNAVAILABLE", "is the account agent running?*correct [callers]"),
    ("no interpreter", Context("python", "\"/nowhere/python\"", PLAN), "exit 1",
        "start /nowhere/python*No such file", "`python` in the context"),
    ("an interpreter that is a folder", Context("python", "\"/usr\"", PLAN), "exit 1",
        "start /usr*Permission denied", "`python` in the context"),
    ("an interpreter that is another program", Context("python", "\"/bin/true\"", PLAN), "exit 1",
        "/bin/true is no Python interpreter*said nothing", "`python` in the context"),
    ("an interpreter of ten years ago", Context("python", "\"OLD_PYTHON\"", PLAN), "exit 1",
        "is Python 2.7, older than 3.9", "`python` in the context"),
    ("an interpreter without the package", Context("python", "\"BARE_PYTHON\"", PLAN), "exit 1",
        "cannot import the package `outstation`*No module named", "pip install outstation"),
    ("a store that is a file", Context("artifacts", "\"FEATURES\"", &["apply", "changed"]), "exit 1",
        "write the bundle to the account store*features.py*Not a directory", "a file stands where"),
    ("a key that there is not", Context("signing_key", "\"/nowhere/key.pem\"", PLAN), "exit 1",
        "there is no key /nowhere/key.pem", "outstation key create /nowhere/key.pem"),
    ("a key that is a program", Context("signing_key", "\"FEATURES\"", PLAN), "exit 1",
        "features.py can be read by others (mode 6", "chmod 600"),
    ("a key that others can read", Context("signing_key", "\"OPEN_KEY\"", PLAN), "exit 1",
        "open.pem can be read by others (mode 644)", "chmod 600*make a new one"),
    ("a key that is a folder", Context("signing_key", "\"/tmp\"", PLAN), "exit 1",
        "/tmp is no file that could hold a key", "the file of a private key"),
    ("a key that is a text", Context("signing_key", "\"TEXT_KEY\"", PLAN), "exit 1",
        "text.pem cannot be used: it is no private key in PKCS#8 PEM", "openssl genpkey -algorithm ed25519"),
    ("a key of OpenSSH", Context("signing_key", "\"OPENSSH_KEY\"", PLAN), "exit 1",
        "openssh.pem cannot be used: it is an OpenSSH private key", "outstation key create"),
    ("a key that no signer has", Context("signing_key", "\"OTHER_KEY\"", PLAN), "exit 1",
        "the key ed25519:* is not in [signers] of the context", "--key FILE"),
    ("signers of whom one is not", Context("signers.keys",
        "[{ name = \"ann\", key = \"ed25519:6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=\" }]", PLAN), "exit 1",
        "the key ed25519:* is not in [signers] of the context", "--key FILE"),
    ("a signer's key that is none", Context("signers.keys", "[{ name = \"ann\", key = \"ed25519:AAAA\" }]", GET), "exit 1",
        "\"ed25519:AAAA\" is no public key", "compare it"),
    ("a signer's key of small order", Context("signers.keys",
        "[{ name = \"ann\", key = \"ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\" }]", GET), "exit 1",
        "is of small order", "compare it"),
    ("a threshold above the signers", Context("signers.threshold", "2", GET), "exit 1",
        "threshold 2 of 1 signers cannot be: 1 to 1", "compare it"),
    ("signers, and unsigned orders besides", Context("unsigned_orders", "\"dev\"", GET), "exit 1",
        "names signers and puts unsigned orders", "take out unsigned_orders"),
    ("a token that others may not read", Do(read_by_nobody), "exit 1",
        "read the context*Permission denied", "user that owns it"),
];

/// Runs `outstation` with the good context in another way; capitals stand for this system's files.
pub fn outstation_with(
    ground: &Ground,
    entry: &str,
    value: &str,
    arguments: &[&str],
) -> Result<Said> {
    let folder = ground.folder("context")?;
    let layout = ground.world.system.layout();
    let mut context: toml::Table = std::fs::read_to_string(ground.context())?.parse()?;
    let url = |table: &toml::Table, section: &str| -> Option<String> {
        let url = table.get(section)?.get("url")?.as_str()?;
        url.strip_prefix("https://").map(str::to_owned)
    };
    let old_python = folder.join("old-python");
    let script =
        "#!/bin/sh\nprintf '{\"version\": [2, 7], \"lacks\": \"ImportError: metadata\"}'\n";
    write_program(&old_python, script)?;
    let bare = folder.join("bare-python");
    write_program(&bare, &format!("#!/bin/sh\nexec {} -I -S \"$@\"\n", python().display()))?;
    let path = |path: &Path| path.display().to_string();
    let mut value = value.to_owned();
    for (capitals, meant) in [
        ("OPEN_KEY", path(&key_file(&folder, "open.pem", Some(8), 0o644)?)),
        ("OTHER_KEY", path(&key_file(&folder, "other.pem", Some(8), 0o600)?)),
        ("TEXT_KEY", path(&key_file(&folder, "text.pem", None, 0o600)?)),
        ("OPENSSH_KEY", path(&openssh_key(&folder)?)),
        ("AWS", ground.world.system.aws_endpoint().replace("http://", "")),
        ("CALLERS_ROOT", path(&layout.callers_root())),
        ("CALLERS_TOKEN", path(&layout.callers_token())),
        ("CALLERS", url(&context, "callers").context("the good context has callers")?),
        ("BROKER_ROOT", path(&layout.broker_root())),
        ("BROKER_TOKEN", path(&layout.broker_token())),
        ("FEATURES", path(&ground.world.declarations().join("features.py"))),
        ("OLD_PYTHON", path(&old_python)),
        ("BARE_PYTHON", path(&bare)),
    ] {
        value = value.replace(capitals, &meant);
    }
    let (table, key) = match entry.split_once('.') {
        Some((section, key)) => {
            let table = context.get_mut(section).and_then(toml::Value::as_table_mut);
            (table.context("the good context has it")?, key)
        }
        None => (&mut context, entry),
    };
    if value.is_empty() {
        table.remove(key).context("the good context has it")?;
    } else {
        let parsed: toml::Table = format!("value = {value}").parse()?;
        table.insert(key.to_owned(), parsed["value"].clone());
    }
    let changed = folder.join("context.toml");
    std::fs::write(&changed, context.to_string())?;
    let declared = ground.declarations("desired_nodes=2", "desired_nodes=1")?;
    let arguments: Vec<String> =
        arguments.iter().map(|a| a.replace("changed", &declared.display().to_string())).collect();
    let mut all = vec!["--context".to_owned(), path(&changed)];
    all.extend(arguments);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    Ok(ground.world.outstation_in(ground.world.declarations(), &all)?.into())
}

/// A private key from a seed, or a file that only claims to be one.
fn key_file(folder: &Path, name: &str, seed: Option<u8>, mode: u32) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let text = match seed {
        Some(seed) => SigningKey::from_seed(&[seed; 32]).to_pem().as_ref().to_owned(),
        None => "my secret key\n".to_owned(),
    };
    let path = folder.join(name);
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    Ok(path)
}

fn openssh_key(folder: &Path) -> Result<PathBuf> {
    let path = key_file(folder, "openssh.pem", None, 0o600)?;
    std::fs::write(&path, "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n")?;
    Ok(path)
}

fn read_by_nobody(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        let folder = ground.declarations("", crate::DECLARATIONS)?;
        outstation_as_nobody(&ground, &folder)
    })
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

/// `outstation plan` by a user who owns nothing here.
pub fn outstation_as_nobody(ground: &Ground, folder: &Path) -> Result<Said> {
    run_to_end(
        Command::new(binaries().join("outstation"))
            .arg("--context")
            .arg(ground.context())
            .arg("plan")
            .arg(folder)
            .uid(65534)
            .gid(65534),
    )
}
