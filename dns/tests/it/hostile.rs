//! Packets that no honest resolver sends: the server must neither fall nor answer more than an error.

use super::support::{dig, start};
use std::time::Duration;
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
