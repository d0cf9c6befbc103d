//! moto's S3 in a process of its own, with one bucket: `store`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value as Json;

use crate::venv::python_with_moto;
use crate::{binaries, workspace};

pub const REGION: &str = "eu-central-1";

const SOMEBODY: &str = "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/eu-central-1/s3/aws4_request, \
    SignedHeaders=host, Signature=0";

pub struct S3 {
    process: Child,
    pub address: SocketAddr,
}

impl S3 {
    pub fn start() -> Result<S3> {
        let mut process = Command::new(python_with_moto()?)
            .arg(workspace().join("integration/tests/account_store/moto_s3.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().context("piped")?).read_line(&mut line)?;
        let told: Json = serde_json::from_str(&line).context("start moto")?;
        let port = u16::try_from(told["port"].as_u64().context("a port")?)?;
        let s3 = S3 { process, address: SocketAddr::from(([127, 0, 0, 1], port)) };
        let body = format!(
            "<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint>\
             </CreateBucketConfiguration>"
        );
        s3.ask("PUT", "/store", body.as_bytes())?.context("a bucket is made")?;
        Ok(s3)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// As a person with a console would.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        self.ask("PUT", &format!("/store/{key}"), bytes)?.context("it is written").map(drop)
    }

    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.ask("GET", &format!("/store/{key}"), b"")
    }

    /// None if it is not there. moto checks no signature, and wants one.
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<Option<Vec<u8>>> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: {SOMEBODY}\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n",
            self.address,
            body.len()
        );
        let answer = forward(self.address, &[head.as_bytes(), body].concat())?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("a head")?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        match head.split(' ').nth(1) {
            Some("200") => Ok(Some(answer[end + 4..].to_vec())),
            Some("404") => Ok(None),
            _ => bail!("{method} {path}: {head}"),
        }
    }

    /// The environment of a program that uses this S3.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL_S3", self.url()),
            ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
            ("AWS_REGION", REGION.to_owned()),
        ]
    }

    /// The agent's own program, with this S3 as its environment says.
    pub fn agent<const N: usize>(&self, arguments: [&str; N]) -> Result<Output> {
        let program = binaries().join("outstation-agent");
        ensure!(program.is_file(), "build the binaries first: cargo build --workspace --bins");
        let output = Command::new(program)
            .args(arguments)
            .envs(self.variables())
            .stdin(Stdio::null())
            .output()?;
        Ok(output)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One request and its whole answer; `connection: close` is the caller's to say.
pub fn forward(to: SocketAddr, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut server = TcpStream::connect(to)?;
    server.set_read_timeout(Some(Duration::from_secs(30)))?;
    server.write_all(request)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    Ok(answer)
}
