//! A proxy in front of moto's S3 that does what a network does.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use outstation_agent::store::{Access, AccountStore, Location};
use outstation_integration::s3::{REGION, S3, forward};

/// The account store in `store`, below `prod/`.
pub trait Reach {
    fn store(&self) -> AccountStore;
    /// With a network in between.
    fn behind(&self, faults: impl IntoIterator<Item = Fault>) -> Proxy;
}

impl Reach for S3 {
    fn store(&self) -> AccountStore {
        open(&self.url(), "s3://store/prod")
    }

    fn behind(&self, faults: impl IntoIterator<Item = Fault>) -> Proxy {
        Proxy::start(self.address, faults.into_iter().collect())
    }
}

pub fn open(endpoint: &str, location: &str) -> AccountStore {
    let location: Location = location.parse().expect("a valid place");
    let keys = Credentials::new("AKIAEXAMPLE", "secret", None, None, "test");
    let access = Access {
        region: Some(REGION.to_owned()),
        endpoint: Some(endpoint.to_owned()),
        credentials: Some(SharedCredentialsProvider::new(keys)),
    };
    AccountStore::open(&location, access).expect("a client")
}

/// What happens to the next request.
#[derive(Debug, Clone)]
pub enum Fault {
    Passes,
    /// It is carried out, and nobody hears of it.
    ReplyLost,
    /// It never arrives, and these bytes of somebody else are there before the next.
    Overtaken(&'static str),
    /// It never arrives.
    RequestLost,
    /// Nobody says anything.
    Silence,
    /// S3 says so.
    Says {
        status: u16,
        code: &'static str,
    },
}

/// Faults are used up one by one; after the last, requests pass, or what `then_always` says.
pub struct Proxy {
    address: SocketAddr,
    faults: Arc<Mutex<Faults>>,
    seen: Arc<Mutex<Vec<String>>>,
}

struct Faults {
    next: VecDeque<Fault>,
    then: Fault,
    /// Of the next request of this method the reply is lost.
    lost: Option<&'static str>,
}

impl Proxy {
    fn start(to: SocketAddr, faults: VecDeque<Fault>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let faults = Faults { next: faults, then: Fault::Passes, lost: None };
        let faults = Arc::new(Mutex::new(faults));
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let (next, lines) = (faults.clone(), seen.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (next, lines) = (next.clone(), lines.clone());
                std::thread::spawn(move || serve(client, to, &next, &lines));
            }
        });
        Proxy { address, faults, seen }
    }

    pub fn then_always(&self, fault: Fault) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        (faults.next, faults.then) = (VecDeque::new(), fault);
    }

    pub fn lose_the_reply_of_the_next(&self, method: &'static str) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).lost = Some(method);
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn store(&self) -> AccountStore {
        open(&self.url(), "s3://store/prod")
    }

    /// The heads of all requests.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(mut client: TcpStream, to: SocketAddr, faults: &Mutex<Faults>, seen: &Mutex<Vec<String>>) {
    let Ok(Some((head, body))) = read_request(&mut client) else { return };
    let line = head.lines().next().unwrap_or_default().to_owned();
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(head.clone());
    let fault = {
        let mut faults = faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.lost.is_some_and(|method| line.starts_with(method)) {
            faults.lost = None;
            Fault::ReplyLost
        } else {
            faults.next.pop_front().unwrap_or_else(|| faults.then.clone())
        }
    };
    // One request a connection.
    let whole = |body: &[u8]| {
        let head = head.trim_end().replacen("\r\n", "\r\nconnection: close\r\n", 1);
        [head.as_bytes(), b"\r\n\r\n", body].concat()
    };
    match fault {
        Fault::Passes => {
            if let Ok(answer) = forward(to, &whole(&body)) {
                let _ = client.write_all(&answer);
            }
        }
        Fault::ReplyLost => drop(forward(to, &whole(&body))),
        Fault::Overtaken(others) => {
            assert_eq!(others.len(), body.len(), "the head says how long it is");
            drop(forward(to, &whole(others.as_bytes())));
        }
        Fault::RequestLost => {}
        Fault::Silence => {
            // Until the client gives up.
            let _ = client.read(&mut [0]);
        }
        Fault::Says { status, code } => {
            let body = format!("<Error><Code>{code}</Code></Error>");
            let answer = format!(
                "HTTP/1.1 {status} Said\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = client.write_all(answer.as_bytes());
        }
    }
}

fn read_request(client: &mut TcpStream) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut reader = BufReader::new(client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    Ok(Some((head, body)))
}
