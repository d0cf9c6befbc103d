//! The talk with one worker over its socket: frames of calls out, answers and log lines in, both at once,
//! so that a worker that logs while it is sent 64 MiB does not wait for us to finish.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::admission::{NotRunning, RequestId, WorkerId};
use crate::frame::{self, Answer, FrameError, FromWorker};
use crate::logs;
use crate::pool::{Given, Pool, WorkerHandle};
use crate::targets::Targets;

/// What one read takes: the answers of a frame, and then some.
const READ_BYTES: usize = 64 << 10;
/// Payloads up to this are copied behind their heads, to be one piece with them.
const COPY_BYTES_MAX: usize = 16 << 10;

/// Why the talk with a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("it closed its socket")]
    Closed,
    #[error("its socket failed: {0}")]
    Socket(#[from] io::Error),
    #[error("it broke the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("it broke the protocol: {0}")]
    NotRunning(#[from] NotRunning),
    #[error("it broke the protocol: its list of targets cannot be decoded: {0}")]
    Targets(#[from] prost::DecodeError),
    #[error("it broke the protocol: {0}")]
    Order(&'static str),
    /// Not a fault: it was to get nothing more, and has nothing left.
    #[error("it was relieved")]
    Relieved,
}

pub struct Talk {
    worker: WorkerId,
    socket: UnixStream,
    incoming: BytesMut,
    outgoing: VecDeque<Bytes>,
}

impl Talk {
    pub fn new(worker: WorkerId, socket: UnixStream) -> Talk {
        let incoming = BytesMut::with_capacity(READ_BYTES);
        Talk { worker, socket, incoming, outgoing: VecDeque::new() }
    }

    /// Reads until the bundle is loaded.
    pub async fn ready(&mut self, pool: &Pool) -> Result<Targets, Broken> {
        loop {
            while let Some(said) = frame::decode(&mut self.incoming)? {
                match said {
                    FromWorker::Ready(targets) => return Ok(Targets::decode(targets)?),
                    FromWorker::Log(request, line) => {
                        logs::forward(pool, self.worker, request, line)
                    }
                    FromWorker::Answer(..) => return Err(Broken::Order("an answer before READY")),
                }
            }
            self.socket.readable().await?;
            self.read()?;
        }
    }

    /// Gives the worker what there is to run, and takes its answers, until something breaks.
    pub async fn serve(&mut self, pool: &Pool, handle: &WorkerHandle) -> Broken {
        loop {
            if let Err(broken) = self.step(pool, handle).await {
                return broken;
            }
        }
    }

    async fn step(&mut self, pool: &Pool, handle: &WorkerHandle) -> Result<(), Broken> {
        let interest = match self.outgoing.is_empty() {
            true => Interest::READABLE,
            false => Interest::READABLE | Interest::WRITABLE,
        };
        tokio::select! {
            biased;
            ready = self.socket.ready(interest) => {
                if ready?.is_readable() {
                    self.read()?;
                    self.hear(pool, handle)?;
                }
            }
            () = handle.wake.notified() => {
                let given = pool.take(self.worker).ok_or(Broken::Relieved)?;
                self.put(given);
            }
        }
        Ok(self.write()?)
    }

    /// What it said before its end, which the socket still holds.
    pub async fn hear_out(&mut self, pool: &Pool, handle: &WorkerHandle) -> Broken {
        loop {
            let heard = async {
                self.hear(pool, handle)?;
                self.socket.readable().await?;
                self.read()
            };
            if let Err(broken) = heard.await {
                return broken;
            }
        }
    }

    /// Acts on all that has arrived. The worker is given its next frame before callers get their answers.
    fn hear(&mut self, pool: &Pool, handle: &WorkerHandle) -> Result<(), Broken> {
        let mut answers: Vec<(RequestId, Answer)> = Vec::new();
        let broken = loop {
            match frame::decode(&mut self.incoming) {
                Ok(Some(FromWorker::Answer(request, answer))) => answers.push((request, answer)),
                Ok(Some(FromWorker::Log(request, line))) => {
                    logs::forward(pool, self.worker, request, line);
                }
                Ok(Some(FromWorker::Ready(_))) => {
                    break Some(Broken::Order("READY a second time"));
                }
                Ok(None) => break None,
                Err(error) => break Some(error.into()),
            }
        };
        if !answers.is_empty() {
            handle.answered.fetch_add(answers.len() as u64, Ordering::Relaxed);
            let (given, told) = pool.worker_answered(self.worker, answers)?;
            self.put(given);
            let written = self.write();
            drop(told);
            written?;
        }
        broken.map_or(Ok(()), Err)
    }

    fn put(&mut self, given: Vec<Given>) {
        let mut heads = BytesMut::new();
        for Given { request, head, payload } in given {
            frame::put_call(&mut heads, request, &head, payload.len());
            if payload.len() <= COPY_BYTES_MAX {
                heads.extend_from_slice(&payload);
            } else {
                self.outgoing.push_back(heads.split().freeze());
                self.outgoing.push_back(payload);
            }
        }
        if !heads.is_empty() {
            self.outgoing.push_back(heads.freeze());
        }
    }

    /// As much as the socket takes now.
    fn write(&mut self) -> io::Result<()> {
        while let Some(front) = self.outgoing.front_mut() {
            match self.socket.try_write(front) {
                Ok(written) if written == front.len() => drop(self.outgoing.pop_front()),
                Ok(written) => front.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), Broken> {
        self.incoming.reserve(READ_BYTES);
        match self.socket.try_read_buf(&mut self.incoming) {
            Ok(0) => Err(Broken::Closed),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
