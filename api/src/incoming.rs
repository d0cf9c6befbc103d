//! Connections that a gRPC server takes: bounded in number, and cut when nothing comes from them.
//!
//! A peer that connects and says nothing more, before TLS or after it, costs a place for a while and
//! not for ever. Every server here pings its connections more often than [`SILENCE_MAX`], and what
//! speaks HTTP/2 answers: only who is gone, or never began, is silent.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Three pings of the slowest server. A connection ends between one and two of these after the last
/// byte: the clock is not read for every byte.
pub const SILENCE_MAX: Duration = Duration::from_secs(90);

/// Out of descriptors, most likely: until others have let go of some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// A stream that fails when nothing was read for too long.
pub struct Heard<S> {
    stream: S,
    heard: bool,
    silence_max: Duration,
    silence: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl<S> Heard<S> {
    /// Must be called inside a tokio runtime.
    pub fn new(stream: S, silence_max: Duration) -> Heard<S> {
        let silence = Box::pin(tokio::time::sleep(silence_max));
        Heard { stream, heard: false, silence_max, silence, _place: None }
    }

    /// Asked once in each stretch of [`Heard::silence_max`]: nothing has come since the last time.
    fn is_dead(&mut self) -> bool {
        !std::mem::take(&mut self.heard)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buffer) {
            self.heard |= buffer.filled().len() > before;
            return Poll::Ready(read);
        }
        loop {
            ready!(self.silence.as_mut().poll(cx));
            if self.is_dead() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let next = self.silence.deadline() + self.silence_max;
            self.silence.as_mut().reset(next);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Heard<TcpStream> {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

/// What a listener takes, for tonic's `serve_with_incoming`. Who comes when all places are taken is
/// turned away at once, and can try again.
pub struct Incoming {
    listener: TcpListener,
    places: Arc<Semaphore>,
    connections_max: usize,
    full: bool,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    pub fn new(listener: TcpListener, connections_max: usize) -> Incoming {
        let places = Arc::new(Semaphore::new(connections_max));
        Incoming { listener, places, connections_max, full: false, pause: None }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Heard<TcpStream>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let stream = match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                    continue;
                }
            };
            match self.places.clone().try_acquire_owned() {
                Ok(place) => {
                    self.full = false;
                    // Messages are small: waiting to fill a segment would only delay them.
                    let _ = stream.set_nodelay(true);
                    let heard = Heard { _place: Some(place), ..Heard::new(stream, SILENCE_MAX) };
                    return Poll::Ready(Some(Ok(heard)));
                }
                Err(_) => {
                    // Once, however many come.
                    if !std::mem::replace(&mut self.full, true) {
                        let connections_max = self.connections_max;
                        tracing::warn!(
                            connections_max,
                            "every place is taken: others are turned away"
                        );
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn silence_ends_a_connection() {
        let (_near, far) = tokio::io::duplex(64);
        let mut far = Heard::new(far, Duration::from_millis(20));
        let error = far.read_exact(&mut [0; 1]).await.expect_err("nothing comes");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_word_keeps_it_for_one_more_stretch() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut far = Heard::new(far, SILENCE_MAX);
        for _ in 0..3 {
            near.write_all(b"x").await.expect("the other end listens");
            far.read_exact(&mut [0; 1]).await.expect("it is there");
            assert!(!far.is_dead());
        }
        assert!(far.is_dead(), "nothing since");
    }

    #[tokio::test]
    async fn there_are_so_many_places_and_a_freed_one_is_taken_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let mut incoming = Incoming::new(listener, 2);
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.expect("connects"));
        }
        let first = incoming.next().await.expect("a stream").expect("the first");
        let _second = incoming.next().await.expect("a stream").expect("the second");
        // The third is turned away while the fourth is awaited.
        let fourth = tokio::spawn(async move { incoming.next().await });
        let mut third = clients.pop().expect("three");
        assert_eq!(third.read(&mut [0; 1]).await.expect("closed, not reset"), 0);
        drop(first);
        let _client = TcpStream::connect(address).await.expect("connects");
        assert!(fourth.await.expect("no panic").expect("a stream").is_ok());
    }
}
