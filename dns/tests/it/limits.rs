//! What one client can take from the others: nothing.

use super::support::{dig, start};
use causeway_dns::listen::MAX_TCP_PER_CLIENT;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use std::collections::HashSet;
use std::str::FromStr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

const PATIENCE: Duration = Duration::from_secs(10);

fn question(id: u16) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = id;
    message.add_query(Query::query(Name::from_str("web.shop.svc.cluster.local.").unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

async fn ask(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let question = question(7);
    stream.write_u16(question.len().try_into().unwrap()).await?;
    stream.write_all(&question).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await.map(|_| answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_for_each_client() {
    let dns = start(vec![]).await;
    let mut held = Vec::new();
    for _ in 0..MAX_TCP_PER_CLIENT {
        let mut stream = TcpStream::connect(dns.addr).await.unwrap();
        // Answered, so the server has it.
        tokio::time::timeout(PATIENCE, ask(&mut stream)).await.unwrap().unwrap();
        held.push(stream);
    }
    let mut beyond = TcpStream::connect(dns.addr).await.unwrap();
    let refused = tokio::time::timeout(PATIENCE, ask(&mut beyond)).await.unwrap();
    assert!(refused.is_err(), "one connection too many was served");
    // Another client is served, and so is this one by packets.
    let other = TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = other.connect(dns.addr).await.unwrap();
    tokio::time::timeout(PATIENCE, ask(&mut other)).await.unwrap().unwrap();
    assert!(dig(&dns, "web.shop.svc.cluster.local A").await.contains("10.96.0.7"));
    // A closed connection makes room.
    held.truncate(1);
    let begin = std::time::Instant::now();
    loop {
        let mut again = TcpStream::connect(dns.addr).await.unwrap();
        if tokio::time::timeout(PATIENCE, ask(&mut again)).await.unwrap().is_ok() {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "no room was made");
    }
}

/// On one thread all questions are read before the first is answered.
#[tokio::test]
async fn a_burst_of_packets_loses_no_answer() {
    const BURST: u16 = 150;
    let dns = start(vec![]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(dns.addr).await.unwrap();
    for id in 0..BURST {
        socket.send(&question(id)).await.unwrap();
    }
    let mut answered = HashSet::new();
    let mut buffer = [0; 512];
    while answered.len() < usize::from(BURST) {
        let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer))
            .await
            .unwrap_or_else(|_| panic!("{} of {BURST} questions were answered", answered.len()))
            .unwrap();
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(answer.answers.len(), 1);
        answered.insert(answer.metadata.id);
    }
}
