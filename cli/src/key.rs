//! Private keys: made, found, read. A key never leaves this process, and is looked for only after
//! everything that is not ours has ended.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use outstation_protocol::envelope::Envelope;
use outstation_protocol::signing::{KeyError, PublicKey, SignerName, SigningKey};
use rand::TryRngCore as _;

use crate::context::Context;
use crate::message::Failure;
use crate::ssh_agent;

/// The PEM text itself, for machines that have secrets in variables.
pub const VARIABLE: &str = "OUTSTATION_SIGNING_KEY";
/// A key's PEM has 119 bytes; comments around it are allowed.
const KEY_FILE_BYTES_MAX: u64 = 16 * 1024;

/// Where a key is if nothing else is said.
pub fn usual_place() -> Option<PathBuf> {
    std::env::var_os("HOME").map(|home| Path::new(&home).join(".config/outstation/signing-key.pem"))
}

/// A key to sign with: here, or with an ssh-agent that gives it to nobody.
pub enum Key {
    Held(SigningKey),
    Agent { socket: PathBuf, public: PublicKey },
}

impl Key {
    pub fn public(&self) -> PublicKey {
        match self {
            Key::Held(key) => key.public(),
            Key::Agent { public, .. } => *public,
        }
    }

    pub fn sign(&self, envelope: &mut Envelope) -> anyhow::Result<()> {
        match self {
            Key::Held(key) => envelope.sign(key),
            Key::Agent { socket, public } => {
                let message = envelope.pre_authentication_encoding();
                envelope.attach(public, ssh_agent::sign(socket, public, &message)?);
            }
        }
        Ok(())
    }
}

/// `--key`, the variable, the context, the usual place: the first that is there.
pub fn find(context: &Context) -> anyhow::Result<Option<Key>> {
    let named = |path: &Path| match path.to_str().and_then(agents_key) {
        Some(name) => from_agent(context, name).map(Some),
        None => read(path).map(|key| Some(Key::Held(key))),
    };
    if let Some(path) = &context.key {
        return named(path);
    }
    if let Some(found) = from_variable()? {
        return Ok(Some(Key::Held(found)));
    }
    if let Some(path) = &context.signing_key {
        return named(path);
    }
    Ok(from_usual_place()?.map(Key::Held))
}

/// `ssh-agent` is any of its keys, `ssh-agent:ops@example` that of this signer.
fn agents_key(named: &str) -> Option<Option<&str>> {
    let rest = named.strip_prefix("ssh-agent")?;
    if rest.is_empty() { Some(None) } else { rest.strip_prefix(':').map(Some) }
}

/// The key that the context's signers know, of those that the agent has.
fn from_agent(context: &Context, name: Option<&str>) -> anyhow::Result<Key> {
    let socket = ssh_agent::socket().ok_or_else(|| {
        let hint = "start one (`eval $(ssh-agent)`), add a key by `ssh-add`, or name a key's file";
        Failure::new("there is no ssh-agent: SSH_AUTH_SOCK is not set", hint)
    })?;
    let found = ssh_agent::keys(&socket)?;
    let fits = |public: &PublicKey| match &context.signers {
        Some(signers) => {
            let known = signers.name_of(public).map(ToString::to_string);
            known.is_some_and(|known| name.is_none_or(|name| name == known))
        }
        None => name.is_none(),
    };
    let fitting: Vec<PublicKey> = found.iter().map(|(public, _)| *public).filter(fits).collect();
    match fitting.as_slice() {
        [public] => Ok(Key::Agent { socket, public: *public }),
        [] => {
            let has: Vec<String> =
                found.iter().map(|(public, comment)| format!("{public} ({comment})")).collect();
            let has = if has.is_empty() { "none".to_owned() } else { has.join(", ") };
            Err(Failure::new(
                format!("the ssh-agent has no ed25519 key of a signer; it has {has}"),
                "name one of them in [signers] of the context and of the account's guardrails, or \
                 add one by `ssh-add`",
            )
            .into())
        }
        several => Err(Failure::new(
            format!("the ssh-agent has {} keys that would do", several.len()),
            "name the signer: ssh-agent:NAME, as in [signers] of the context",
        )
        .into()),
    }
}

/// What there is without any context.
pub fn of_person() -> anyhow::Result<Option<SigningKey>> {
    match from_variable()? {
        Some(key) => Ok(Some(key)),
        None => from_usual_place(),
    }
}

fn from_usual_place() -> anyhow::Result<Option<SigningKey>> {
    match usual_place() {
        Some(path) if path.exists() => read(&path).map(Some),
        Some(_) | None => Ok(None),
    }
}

fn from_variable() -> anyhow::Result<Option<SigningKey>> {
    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let parsed = text.to_str().ok_or(KeyError::NotPem).and_then(SigningKey::from_pem);
    parsed.map(Some).map_err(|error| unusable(VARIABLE, &error).into())
}

pub fn read(path: &Path) -> anyhow::Result<SigningKey> {
    let shown = path.display();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let what = format!("there is no key {shown}");
            let hint = format!("`outstation key create {shown}` makes one; else correct the name");
            return Err(Failure::new(what, hint).into());
        }
        Err(error) => return Err(error).with_context(|| format!("read the key {shown}")),
    };
    // Of the open file: the name may mean another one by now.
    let meta = file.metadata().with_context(|| format!("look at the key {shown}"))?;
    if !meta.is_file() {
        let what = format!("{shown} is no file that could hold a key");
        return Err(Failure::new(what, "name the file of a private key").into());
    }
    let mode = meta.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Failure::new(
            format!("the key {shown} can be read by others (mode {mode:03o})"),
            format!(
                "chmod 600 {shown}; if others may have read it, make a new one by `outstation key \
                 create` and take this one out of the guardrails"
            ),
        )
        .into());
    }
    let mut text = String::new();
    let read = file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text);
    match read {
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            return Err(unusable(&shown.to_string(), &KeyError::NotPem).into());
        }
        other => other.with_context(|| format!("read the key {shown}"))?,
    };
    SigningKey::from_pem(&text).map_err(|error| unusable(&shown.to_string(), &error).into())
}

fn unusable(place: &str, error: &KeyError) -> Failure {
    let hint = match error {
        KeyError::Encrypted => "`openssl pkey -in FILE -out OTHER` takes the passphrase off",
        KeyError::OtherAlgorithm
        | KeyError::OpenSsh
        | KeyError::NotPem
        | KeyError::Text(_)
        | KeyError::Point(_)
        | KeyError::Weak(_) => {
            "`outstation key create` makes one, and so does `openssl genpkey -algorithm ed25519`"
        }
    };
    Failure::new(format!("the key in {place} cannot be used: {error}"), hint)
}

/// Makes a key in a file of its own; what is there stays there.
pub fn create(path: &Path) -> anyhow::Result<SigningKey> {
    let shown = path.display();
    let mut seed = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut seed).context("ask the system for randomness")?;
    let key = SigningKey::from_seed(&seed);
    seed.fill(0);
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Failure::new(
                format!("{shown} is there already, and is not overwritten"),
                "`outstation key show` shows it; for another one name another file",
            )
            .into());
        }
        Err(error) => return Err(error).with_context(|| format!("create the key {shown}")),
    };
    let written = file.write_all(key.to_pem().as_ref().as_bytes()).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half a key is none.
        let _ = fs::remove_file(path);
        return Err(error).with_context(|| format!("write the key {shown}"));
    }
    Ok(key)
}

/// Who has to know it, and how they write it down.
pub fn introduction(public: &PublicKey, name: &SignerName) -> String {
    format!(
        "public key   {public}\n\
         key id       {id}\n\
         \n\
         Whoever may write guardrails/ in the account store adds it to guardrails.toml:\n\
         \n\
         [signers]\n\
         threshold = 1\n\
         keys = [\n\
         \x20 {{ name = \"{name}\", key = \"{public}\" }},\n\
         ]\n\
         \n\
         The same lines in the context say whose orders this command believes; without them it \
         believes its own.\n",
        id = public.id(),
    )
}

/// Who this machine says it is.
pub fn default_name() -> SignerName {
    let user = std::env::var("USER").unwrap_or_default();
    let plain: String = user.chars().filter(char::is_ascii_alphanumeric).take(60).collect();
    let name = if plain.is_empty() { "signer".to_owned() } else { plain };
    SignerName::try_from(name).expect("letters and digits only, and few")
}

/// Other processes of the same user cannot read this one's memory or environment any more, and
/// it leaves no core file. (Root can.)
pub fn shield_memory() {
    #[cfg(target_os = "linux")]
    // What the system does not grant is as it was before.
    let _ = nix::sys::prctl::set_dumpable(false);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_read_back_and_only_by_its_owner() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("new/key.pem");
        let key = create(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        assert_eq!(read(&path).expect("read").public(), key.public());
        let before = fs::read(&path).expect("there");
        let error = create(&path).expect_err("it is there");
        assert!(error.to_string().ends_with("is there already, and is not overwritten"), "{error}");
        assert_eq!(fs::read(&path).expect("there"), before);
        assert_ne!(create(&dir.path().join("other.pem")).expect("made").public(), key.public());
    }

    #[test]
    fn what_is_no_good_key_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("key.pem");
        let pem = SigningKey::from_seed(&[1; 32]).to_pem().as_ref().to_owned();
        for (bytes, mode, wanted) in [
            (pem.as_bytes(), 0o600, None),
            (pem.as_bytes(), 0o400, None),
            (pem.as_bytes(), 0o640, Some("can be read by others (mode 640)")),
            (pem.as_bytes(), 0o604, Some("can be read by others (mode 604)")),
            (b"", 0o600, Some("no private key in PKCS#8 PEM")),
            (&[0xff, 0xfe], 0o600, Some("no private key in PKCS#8 PEM")),
            (&pem.as_bytes()[..70], 0o600, Some("no private key in PKCS#8 PEM")),
            (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", 0o600, Some("it is an OpenSSH private key")),
        ] {
            fs::write(&path, bytes).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            match (read(&path), wanted) {
                (Ok(_), None) => {}
                (Err(error), Some(wanted)) => {
                    assert!(error.to_string().contains(wanted), "{error}");
                }
                (Ok(_), Some(wanted)) => panic!("read in spite of: {wanted}"),
                (Err(error), None) => panic!("{error}"),
            }
            fs::remove_file(&path).expect("removed");
        }
        let missing = read(&path).expect_err("missing").to_string();
        assert!(missing.starts_with("there is no key "), "{missing}");
        let folder = read(dir.path()).expect_err("a folder").to_string();
        assert!(folder.ends_with("is no file that could hold a key"), "{folder}");
    }

    #[test]
    fn a_name_can_always_be_made() {
        assert!(!default_name().to_string().is_empty());
    }
}
