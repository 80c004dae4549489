//! SCTP through service addresses, with packets made by hand: the kernel here follows and translates SCTP, but has no
//! sockets of it. What is tried is that the first packet arrives where it should, and that the answer finds back.

use crate::support::{FAMILIES, Pod, at, each_mode, node_one, service, vip};
use causeway_network::NetNs;
use causeway_services::family::Family;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{ErrorKind, Read},
    net::SocketAddr,
    time::Duration,
};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

fn raw(netns: &NetNs, family: Family) -> Socket {
    let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = netns.run(|| Socket::new(domain, Type::RAW, Some(Protocol::from(132)))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket
}

/// A packet with one chunk of INIT or INIT ACK: ports, tag, no checksum; tag, window, streams, first number.
fn packet(from: u16, to: u16, kind: u8) -> Vec<u8> {
    let tag: u32 = if kind == INIT { 0 } else { 7 };
    let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend([kind, 0, 0, 20]);
    bytes.extend(7_u32.to_be_bytes());
    bytes.extend(65_536_u32.to_be_bytes());
    bytes.extend([0, 1, 0, 1]);
    bytes.extend(1_u32.to_be_bytes());
    bytes
}

/// The ports of the next packet of a kind: source, destination.
fn receive(socket: &Socket, family: Family, kind: u8) -> Option<(u16, u16)> {
    let mut buffer = [0; 200];
    for _ in 0..10 {
        let length = match (&*socket).read(&mut buffer) {
            Ok(length) => length,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
            Err(e) => panic!("{e}"),
        };
        let packet = &buffer[if family == Family::V4 { 20 } else { 0 }..length];
        if packet[12] == kind {
            return Some((u16::from_be_bytes([packet[0], packet[1]]), u16::from_be_bytes([packet[2], packet[3]])));
        }
    }
    None
}

/// Sends an INIT from `client`, lets `server` answer, and says whether the answer came from `front`.
fn answered(client: &Pod, server: &Pod, family: Family, front: SocketAddr, port: u16) -> bool {
    let (out, pod) = (raw(&client.netns, family), raw(&server.netns, family));
    // Only what comes from the front's address is taken.
    out.connect(&SocketAddr::new(front.ip(), 0).into()).unwrap();
    out.send(&packet(port, front.port(), INIT)).unwrap();
    let Some((from, to)) = receive(&pod, family, INIT) else { return false };
    assert_eq!(to, 8080, "the port is translated");
    let back = SocketAddr::new(client.of(family), 0);
    pod.send_to(&packet(8080, from, INIT_ACK), &back.into()).unwrap();
    receive(&out, family, INIT_ACK) == Some((front.port(), port))
}

#[tokio::test(flavor = "multi_thread")]
async fn sctp_finds_its_endpoint_and_back() {
    each_mode(async |mut lab| {
        let (client, a, b) = (lab.pod("one", "client").await, lab.pod("one", "a").await, lab.pod("one", "b").await);
        // No checksums are made here, so none can be checked.
        lab.run("sysctl -qw net.netfilter.nf_conntrack_checksum=0");
        let ports = json!({"ports": [{"name": "s", "port": 80, "protocol": "SCTP", "nodePort": 30080}]});
        let s = service("s", ports);
        lab.set(&s, &[&a]);
        for family in FAMILIES {
            for front in [at(vip(family), 80), at(node_one(family), 30080)] {
                assert!(answered(&client, &a, family, front, 1000), "{front}");
            }
        }
        // The association goes with its endpoint, and the next packet begins another.
        assert_eq!(lab.set(&s, &[&b]).flows, 4);
        for family in FAMILIES {
            assert!(answered(&client, &b, family, at(vip(family), 80), 1000));
            assert!(!answered(&client, &a, family, at(vip(family), 80), 1001));
        }
        assert!(lab.remove(&s).flows >= 2, "a deleted Service takes its associations along");
        for family in FAMILIES {
            assert!(!answered(&client, &b, family, at(vip(family), 80), 1002));
        }
    })
    .await;
}
