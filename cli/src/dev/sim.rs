//! One GET to the simulated AWS's own paths: HTTP/1.1, one answer, connection closed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(5);
/// A hundred instances at 500 bytes each, with room.
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;

pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        // HTTP/1.0: the answer is never in chunks and ends with the connection.
        let request =
            format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(TIMEOUT, exchange)
        .await
        .context("the simulated AWS did not answer within 5 s")?
        .context("ask the simulated AWS")?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("half an answer")?;
    let status = String::from_utf8_lossy(&answer[..end]);
    let status = status.split(' ').nth(1).unwrap_or("none");
    anyhow::ensure!(status == "200", "the simulated AWS answers {path} with status {status}");
    Ok(answer[end + 4..].to_vec())
}
