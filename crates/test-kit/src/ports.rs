//! Ports for servers that must come back at the same address after a restart.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::bail;

/// Below the range from which the system takes the ports of outgoing connections.
const FIRST: u16 = 18_000;
const COUNT: u16 = 14_000;

/// A loopback TCP port that nobody else leases while this value lives, though nothing listens on it yet.
///
/// A port from `bind(0)` can be taken by anyone between two starts of the server it is meant for. A lease
/// holds the UDP port of the same number instead, which the system frees with the process whatever happens,
/// and stays out of the range of outgoing connections.
#[derive(Debug)]
pub struct PortLease {
    port: u16,
    _held: UdpSocket,
}

impl PortLease {
    /// Leases a port.
    ///
    /// # Errors
    /// If all 14,000 ports of the range are taken.
    pub fn take() -> anyhow::Result<Self> {
        let start = std::process::id().wrapping_mul(97);
        for step in 0..u32::from(COUNT) {
            let offset = (start.wrapping_add(step)) % u32::from(COUNT);
            let port = FIRST + u16::try_from(offset).expect("offset is below COUNT, a u16");
            let Ok(held) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) else {
                continue;
            };
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(Self { port, _held: held });
            }
        }
        bail!("no free port between {FIRST} and {}", FIRST + COUNT)
    }

    /// The address that is leased.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_leases_never_name_the_same_port() {
        let leases: Vec<_> = (0..20).map(|_| PortLease::take().unwrap()).collect();
        let mut ports: Vec<_> = leases.iter().map(|lease| lease.address().port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }

    #[test]
    fn a_leased_port_can_be_listened_on() {
        let lease = PortLease::take().unwrap();
        let listener = TcpListener::bind(lease.address()).unwrap();
        assert_eq!(listener.local_addr().unwrap(), lease.address());
    }
}
