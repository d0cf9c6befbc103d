//! A slot: the ports and loopback network of one `outstation dev`, claimed against all others.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

use crate::message::Failure;

/// 127.64.0.0 to 127.126.0.0, and with each a hundred ports from 20000 on.
const SLOTS: u16 = 63;

/// Held for as long as the system lives. The claim is a socket in the abstract namespace: as the
/// ports, it belongs to the network namespace, and the kernel frees it however the process ends.
pub struct Slot {
    number: u16,
    _claim: UnixListener,
}

impl Slot {
    pub fn claim() -> anyhow::Result<Slot> {
        for number in 0..SLOTS {
            let name = format!("outstation-dev-slot-{number}");
            let Ok(address) = UnixAddr::from_abstract_name(name) else {
                continue;
            };
            let Ok(claim) = UnixListener::bind_addr(&address) else {
                continue;
            };
            let slot = Slot { number, _claim: claim };
            if slot.ports_are_free() {
                return Ok(slot);
            }
        }
        Err(Failure::new(
            format!("none of {SLOTS} port ranges from 20000 on is free"),
            "end other `outstation dev` systems, or what listens on those ports",
        )
        .into())
    }

    fn ports_are_free(&self) -> bool {
        let all =
            [self.aws_sim(), self.broker_link(), self.broker_admin(), self.nodes(), self.callers()];
        all.iter().all(|address| {
            // A process that has just ended may still hold its port for an instant; another
            // slot is as good.
            TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
        })
    }

    fn address(&self, offset: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 20_000 + self.number * 100 + offset))
    }

    pub fn aws_sim(&self) -> SocketAddr {
        self.address(0)
    }

    pub fn broker_link(&self) -> SocketAddr {
        self.address(1)
    }

    pub fn broker_admin(&self) -> SocketAddr {
        self.address(2)
    }

    pub fn nodes(&self) -> SocketAddr {
        self.address(3)
    }

    pub fn callers(&self) -> SocketAddr {
        self.address(4)
    }

    pub fn instance_net(&self) -> Ipv4Addr {
        let second = u8::try_from(64 + self.number).expect("at most 126");
        Ipv4Addr::new(127, second, 0, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_slots_share_nothing_and_a_freed_one_is_taken_again() {
        let (one, two) = (Slot::claim().expect("free"), Slot::claim().expect("free"));
        assert_ne!(one.number, two.number);
        assert_ne!(one.instance_net(), two.instance_net());
        assert_ne!(one.callers(), two.aws_sim());
        let _taken = TcpListener::bind(two.broker_admin()).expect("free until now");
        assert!(!two.ports_are_free());
        assert!(one.ports_are_free());
    }
}
