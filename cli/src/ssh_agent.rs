//! Signing by a key that an ssh-agent holds: the two questions of its protocol that this takes
//! (draft-ietf-sshm-ssh-agent, sections 3.5 and 3.6), about ed25519 keys only.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};

use outstation_protocol::signing::PublicKey;

use crate::message::Hint as _;

/// An agent may ask its person, who has to find the token first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// OpenSSH's own bound.
const ANSWER_BYTES_MAX: u32 = 256 * 1024;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const ED25519: &[u8] = b"ssh-ed25519";

/// Where the environment says that an agent listens.
pub fn socket() -> Option<PathBuf> {
    std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Its ed25519 keys, each with its comment.
pub fn keys(socket: &Path) -> anyhow::Result<Vec<(PublicKey, String)>> {
    let answer = ask(socket, &[REQUEST_IDENTITIES], IDENTITIES_ANSWER)?;
    let mut rest = answer.as_slice();
    let count = number(&mut rest)?;
    let mut keys = Vec::new();
    // As many as it says, or as its answer holds.
    for _ in 0..count {
        let blob = string(&mut rest)?;
        let comment = string(&mut rest)?;
        if let Some(key) = read_key(blob) {
            keys.push((key, String::from_utf8_lossy(comment).into_owned()));
        }
    }
    Ok(keys)
}

pub fn sign(socket: &Path, key: &PublicKey, message: &[u8]) -> anyhow::Result<[u8; 64]> {
    let mut request = vec![SIGN_REQUEST];
    put(&mut request, &blob(key));
    put(&mut request, message);
    request.extend(0u32.to_be_bytes());
    let answer = ask(socket, &request, SIGN_RESPONSE)?;
    let signature = string(&mut answer.as_slice())?;
    let mut rest = signature;
    if string(&mut rest)? != ED25519 {
        bail!("the ssh-agent signs by another algorithm");
    }
    let signature: [u8; 64] =
        string(&mut rest)?.try_into().context("the ssh-agent's signature has another length")?;
    if !key.has_signed(message, &signature) {
        bail!("the ssh-agent's signature is not one of {key}");
    }
    Ok(signature)
}

fn ask(socket: &Path, request: &[u8], wanted: u8) -> anyhow::Result<Vec<u8>> {
    let exchange = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let mut framed = Vec::new();
        put(&mut framed, request);
        stream.write_all(&framed)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        if !(1..=ANSWER_BYTES_MAX).contains(&length) {
            return Err(std::io::Error::other(format!("it announces an answer of {length} bytes")));
        }
        let mut answer = vec![0; usize::try_from(length).expect("at most 256 KiB")];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    let mut answer = exchange()
        .with_context(|| format!("ask the ssh-agent at {}", socket.display()))
        .hint("is it running? `ssh-add -l` asks it too; SSH_AUTH_SOCK says where it listens")?;
    let kind = answer.remove(0);
    if kind == FAILURE {
        bail!("the ssh-agent refuses: it is locked, or was told no");
    }
    if kind != wanted {
        bail!("the ssh-agent answers with a message of kind {kind}, not {wanted}");
    }
    Ok(answer)
}

fn blob(key: &PublicKey) -> Vec<u8> {
    let mut blob = Vec::new();
    put(&mut blob, ED25519);
    put(&mut blob, key.as_bytes());
    blob
}

fn read_key(mut blob: &[u8]) -> Option<PublicKey> {
    if string(&mut blob).ok()? != ED25519 {
        return None;
    }
    PublicKey::from_bytes(string(&mut blob).ok()?.try_into().ok()?).ok()
}

fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("envelopes and keys are far smaller");
    to.extend(length.to_be_bytes());
    to.extend(bytes);
}

fn number(rest: &mut &[u8]) -> anyhow::Result<u32> {
    let (head, tail) = rest.split_first_chunk().context("the ssh-agent's answer is cut off")?;
    *rest = tail;
    Ok(u32::from_be_bytes(*head))
}

fn string<'a>(rest: &mut &'a [u8]) -> anyhow::Result<&'a [u8]> {
    let length = usize::try_from(number(rest)?).context("a length")?;
    let (head, tail) =
        rest.split_at_checked(length).context("the ssh-agent's answer is cut off")?;
    *rest = tail;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use outstation_protocol::signing::SigningKey;

    /// Listens once and answers with these bytes, whatever is asked.
    fn answering(answer: &'static [u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("agent");
        let listener = UnixListener::bind(&path).expect("free");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("asked");
            let mut length = [0; 4];
            stream.read_exact(&mut length).expect("a length");
            let mut request = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut request).expect("a request");
            stream.write_all(answer).expect("answered");
        });
        (dir, path)
    }

    #[test]
    fn an_agent_that_talks_nonsense_is_an_error() {
        let key = SigningKey::from_seed(&[1; 32]).public();
        for (answer, wanted) in [
            (&b""[..], "ask the ssh-agent"),
            (b"\0\0\0\0", "it announces an answer of 0 bytes"),
            (b"\xff\xff\xff\xff", "it announces an answer of 4294967295 bytes"),
            (b"\0\0\0\x01\x05", "the ssh-agent refuses"),
            (b"\0\0\0\x01\x0c", "a message of kind 12, not 14"),
            (b"\0\0\0\x01\x0e", "is cut off"),
            (b"\0\0\0\x05\x0e\0\0\xff\xff", "is cut off"),
            (b"\0\0\0\x0f\x0e\0\0\0\x0a\0\0\0\x06ssh-ab", "by another algorithm"),
            (b"\0\0\0\x18\x0e\0\0\0\x13\0\0\0\x0bssh-ed25519\0\0\0\0", "has another length"),
        ] {
            let (_dir, socket) = answering(answer);
            let error = format!("{:#}", sign(&socket, &key, b"message").expect_err(wanted));
            assert!(error.contains(wanted), "{answer:?}: {error}");
        }
        let (_dir, socket) = answering(b"\0\0\0\x05\x0c\xff\xff\xff\xff");
        let error = keys(&socket).expect_err("four billion keys").to_string();
        assert!(error.contains("is cut off"), "{error}");
    }

    #[test]
    fn a_key_is_found_in_its_blob_and_no_other_kind_is() {
        let key = SigningKey::from_seed(&[1; 32]).public();
        assert_eq!(read_key(&blob(&key)), Some(key));
        let mut rsa = Vec::new();
        put(&mut rsa, b"ssh-rsa");
        put(&mut rsa, key.as_bytes());
        assert_eq!(read_key(&rsa), None);
        assert_eq!(read_key(&blob(&key)[..40]), None);
    }
}
