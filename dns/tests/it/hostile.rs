//! Packets that no honest resolver sends: the server must neither fall nor answer more than an error.

use super::support::{dig, start};
use causeway_dns::kept::{Kept, Plain};
use causeway_dns::server::{Handler, Origin, Transport};
use hickory_proto::op::Message;
use proptest::prelude::*;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};

/// Named, so that whoever adds one says why.
const PACKETS: &[(&str, &[u8])] = &[
    ("empty", b""),
    ("one byte", b"\x00"),
    ("header cut", b"\x12\x34\x01\x00\x00\x01\x00\x00"),
    ("no question", b"\x12\x34\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
    ("65535 questions announced", b"\x12\x34\x01\x00\xff\xff\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01"),
    ("name points to itself", b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"),
    ("name points ahead", b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\xff\x00\x01\x00\x01"),
    ("label longer than the packet", b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x3fabc"),
    ("65535 records announced", b"\x12\x34\x01\x00\x00\x01\xff\xff\xff\xff\xff\xff\x01a\x00\x00\x01\x00\x01"),
    ("OPT record cut", b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01a\x00\x00\x01\x00\x01\x00\x00\x29\x10"),
    ("OPT longer than the packet", b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01a\x00\x00\x01\x00\x01\x00\x00\x29\x10\x00\x00\x00\x00\x00\xff\xff"),
    ("a response", b"\x12\x34\x81\x80\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01"),
    ("an update", b"\x12\x34\x28\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x06\x00\x01"),
    ("a notify", b"\x12\x34\x20\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x06\x00\x01"),
];

#[tokio::test(flavor = "multi_thread")]
async fn malformed_packets_do_no_harm() {
    let dns = start(vec![]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(dns.addr).await.unwrap();
    for (name, packet) in PACKETS {
        socket.send(packet).await.unwrap();
        let mut answer = [0u8; 1500];
        if let Ok(Ok(n)) = tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut answer)).await {
            assert!(n <= packet.len().max(12) + 64, "{name}: {n} bytes for {}", packet.len());
            assert_ne!(answer[3] & 0x0f, 0, "{name}: no error code in the answer");
        }
    }
    // The same by TCP, with a length that lies.
    for (_, packet) in PACKETS {
        let mut stream = TcpStream::connect(dns.addr).await.unwrap();
        stream.write_all(&[0xff, 0xff]).await.unwrap();
        stream.write_all(packet).await.unwrap();
    }
    assert!(dig(&dns, "web.shop.svc.cluster.local A").await.contains("10.96.0.7"));
}

/// Every answer is one: of the question, of bounded size, and readable by others.
async fn check(handler: &Handler, kept: &mut Kept, packet: &[u8]) {
    let origin = |transport| Origin { transport, client: [127, 0, 0, 1].into(), at: Instant::now() };
    for (transport, most) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
        let Some(answered) = handler.answer(packet, origin(transport)).await else {
            assert!(packet.len() < 12 || packet[2] & 0x80 != 0, "no answer to a question: {packet:?}");
            continue;
        };
        let bytes = answered.bytes;
        assert!(bytes.len() >= 12 && bytes.len() <= most, "{} bytes for {packet:?}", bytes.len());
        assert!(bytes[..2] == packet[..2] && bytes[2] & 0x80 != 0, "{bytes:?} for {packet:?}");
        let read = Message::from_vec(&bytes).unwrap_or_else(|e| panic!("{e}: {bytes:?} for {packet:?}"));
        // Nobody is given more for a packet that cannot be read than it has sent, and a little.
        if Message::from_vec(packet).is_err() {
            assert!(u16::from(read.metadata.response_code) != 0 && bytes.len() <= 12 + 11, "{bytes:?} for {packet:?}");
        }
        if let (Transport::Udp, Some(plain), Some((stamp, label))) = (transport, Plain::read(packet), answered.keep) {
            kept.keep(&plain, &bytes, stamp, label);
        }
    }
    let (plain, mut out) = (Plain::read(packet), Vec::new());
    if let Some(plain) = plain
        && handler.again(kept, &plain, packet, origin(Transport::Udp), &mut out)
    {
        let read = Message::from_vec(&out).unwrap_or_else(|e| panic!("{e}: {out:?} for {packet:?}"));
        let asked = Message::from_vec(packet).expect("what is read as plain is readable");
        assert_eq!((read.queries, read.metadata.id), (asked.queries, asked.metadata.id));
    }
}

/// Names and numbers that the zone knows, so that mutations get further than the first check.
fn seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/packet");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "the corpus is gone");
    files.iter().map(|f| std::fs::read(f).unwrap()).collect()
}

/// The packets of the corpus, and thousands like them.
#[test]
fn whatever_comes_is_answered_within_bounds() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dns = runtime.block_on(start(vec![]));
    let (seeds, mut kept) = (seeds(), Kept::default());
    for packet in &seeds {
        runtime.block_on(check(&dns.handler, &mut kept, packet));
    }
    let (seeds, kept) = (&seeds, std::cell::RefCell::new(kept));
    let mutated = (
        0..seeds.len(),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        any::<prop::sample::Index>(),
        0..3u8,
    )
        .prop_map(move |(seed, changes, cut, how)| {
            let mut packet = seeds[seed].clone();
            for (at, byte) in changes {
                let at = at.index(packet.len().max(1));
                if let Some(place) = packet.get_mut(at) {
                    *place = byte;
                }
            }
            match how {
                0 => packet.truncate(cut.index(packet.len() + 1)),
                1 => packet.extend_from_within(cut.index(packet.len().max(1)).min(packet.len())..),
                _ => {}
            }
            packet
        });
    let random = prop::collection::vec(any::<u8>(), 0..600);
    let config = ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(packet in prop_oneof![3 => mutated, 1 => random])| {
        runtime.block_on(check(&dns.handler, &mut kept.borrow_mut(), &packet));
    });
    assert_eq!(dns.counted("coredns_panics_total", ""), 0.0);
}
