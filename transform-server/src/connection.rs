//! One caller's connection: HTTP/2 from its first byte to its last.

use std::pin::pin;
use std::time::Duration;

use h2::server::Builder;
use h2::{Ping, PingPong};
use outstation_api::incoming::{Heard, SILENCE_MAX};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::admission::CallerId;
use crate::service::Front;

/// A caller that wants more on one connection waits at its own end: overload is held back there, where it costs this
/// server nothing. Eight such callers fill the queue; `transform-client` counts on it (`in_flight_max`).
const STREAMS_MAX: u32 = 128;
/// Enough for a request at the default frame size to arrive without waiting for a window update.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// A caller that has vanished without a word is noticed after two of these.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// From the first byte to the end of the settings.
const HANDSHAKE_MAX: Duration = Duration::from_secs(90);

/// Returns when the connection has ended; after `close`, when what was taken from it is answered.
pub async fn serve<S>(stream: S, front: Front, caller: CallerId, close: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX);
    let handshake = builder.handshake(Heard::new(stream, SILENCE_MAX));
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE_MAX, handshake) => shaken,
        () = close.cancelled() => return,
    };
    let Ok(Ok(mut connection)) = shaken else {
        return debug!("a connection that does not speak HTTP/2");
    };
    let pings = connection.ping_pong().expect("asked for once");
    let mut dead = pin!(keepalive(pings));
    let mut closing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = connection.accept() => accepted,
            () = close.cancelled(), if !closing => {
                closing = true;
                connection.graceful_shutdown();
                continue;
            }
            () = &mut dead => return debug!("a caller does not answer pings"),
        };
        match accepted {
            Some(Ok((request, respond))) => front.handle(request, respond, caller).await,
            Some(Err(error)) => return debug!(%error, "connection ended"),
            None => return,
        }
    }
}

/// Ends when the other side has not answered a ping in time.
async fn keepalive(mut pings: PingPong) {
    loop {
        sleep(KEEPALIVE).await;
        if !matches!(timeout(KEEPALIVE, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}
