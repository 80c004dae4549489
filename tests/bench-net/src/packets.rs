//! What connections see: how long they take, and when they begin to go elsewhere.

use crate::lab::Lab;
use anyhow::{Context, Result, bail};
use nix::libc::linger;
use nix::sys::socket::sockopt::{Linger, ReceiveTimeout, SendTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket};
use nix::sys::time::TimeVal;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

/// Longer than a connection takes with any rules that are of use.
const PATIENCE: TimeVal = TimeVal::new(1, 0);
/// While there are no rules yet, a packet may simply get lost.
const IMPATIENCE: TimeVal = TimeVal::new(0, 50_000);

/// A connection, and how long it took. It is reset when dropped, so that the kernel keeps nothing of it.
pub fn connection(to: SocketAddrV4, patience: TimeVal) -> nix::Result<(TcpStream, Duration)> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, Linger, &linger { l_onoff: 1, l_linger: 0 })?;
    setsockopt(&socket, SendTimeout, &patience)?;
    setsockopt(&socket, ReceiveTimeout, &patience)?;
    let begin = Instant::now();
    connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrIn::from(to))?;
    Ok((socket.into(), begin.elapsed()))
}

/// Which pod answers; for the port that says so.
fn who(to: SocketAddrV4) -> std::io::Result<Ipv4Addr> {
    let (mut stream, _) = connection(to, IMPATIENCE)?;
    let mut octets = [0; 4];
    stream.read_exact(&mut octets)?;
    Ok(octets.into())
}

/// Waits, from the client, until connections to an address arrive at a pod; when that was. None when it takes too long.
pub fn until(lab: &Lab, to: SocketAddrV4, pod: Ipv4Addr, patience: Duration) -> Result<Option<Instant>> {
    let begin = Instant::now();
    Ok(lab.client.run(|| {
        while begin.elapsed() < patience {
            if who(to).is_ok_and(|found| found == pod) {
                return Some(Instant::now());
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        None
    })?)
}

/// Connect latencies in microseconds: to service addresses, and to pods directly, in turn.
#[derive(Default)]
pub struct Latencies {
    /// Through the rules that are measured.
    pub service: Vec<f64>,
    /// To pods by their own address: over the same links and chains, untranslated.
    pub direct: Vec<f64>,
}

/// Connects so many times from the client to pairs of a service's address and a pod's, but not for longer than given.
pub fn latencies(
    lab: &Lab,
    times: u32,
    most: Duration,
    pair: impl Fn(u32) -> (SocketAddrV4, SocketAddrV4) + Send + Sync,
) -> Result<Latencies> {
    let measured = lab.client.run(|| -> nix::Result<Latencies> {
        let begin = Instant::now();
        let mut all = Latencies::default();
        for number in 0..times {
            let (service, pod) = pair(number);
            all.service.push(connection(service, PATIENCE)?.1.as_secs_f64() * 1e6);
            all.direct.push(connection(pod, PATIENCE)?.1.as_secs_f64() * 1e6);
            if begin.elapsed() > most {
                break;
            }
        }
        Ok(all)
    })?;
    let measured = measured.context("connecting through the rules")?;
    if measured.service.len() < 100 {
        bail!("only {} connections in {most:?}", measured.service.len());
    }
    Ok(measured)
}
