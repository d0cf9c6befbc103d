//! HTTP/1.1 with as many connections as requests in flight, for peers that do not speak gRPC.

use std::cell::RefCell;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Heads of honest answers have some hundred bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// A `POST` of JSON as bytes.
pub fn post(path: &str, json: &str) -> Bytes {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{json}",
        json.len()
    )
    .into()
}

/// Connections that nobody uses at the moment.
pub struct Pool {
    address: SocketAddr,
    idle: RefCell<Vec<TcpStream>>,
}

impl Pool {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, idle: RefCell::default() }
    }

    /// The status and the body.
    pub async fn exchange(&self, request: &Bytes) -> Result<(u16, Vec<u8>)> {
        let idle = self.idle.borrow_mut().pop();
        let mut stream = match idle {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.address).await.context("connect")?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        stream.write_all(request).await?;
        let answer = read_answer(&mut stream).await?;
        self.idle.borrow_mut().push(stream);
        Ok(answer)
    }
}

async fn read_answer(stream: &mut TcpStream) -> Result<(u16, Vec<u8>)> {
    let mut read = Vec::with_capacity(4096);
    let end = loop {
        if stream.read_buf(&mut read).await? == 0 || read.len() > HEAD_BYTES_MAX {
            bail!("no answer");
        }
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = std::str::from_utf8(&read[..end]).context("a head in ASCII")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let (Some(status), Some(length)) = (status, length) else { bail!("no status or no length") };
    let mut body = read.split_off(end);
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            bail!("the answer ends early");
        }
    }
    Ok((status, body))
}
