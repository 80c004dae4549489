//! An upstream whose every answer is the test's choice, and which counts what it is asked.

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// What it does with a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Manner {
    /// An address, which may be kept for so many seconds.
    Address(Ipv4Addr, u32),
    /// The same after a while.
    Late(Ipv4Addr, Duration),
    /// No such name, for so many seconds.
    NoName(u32),
    /// A failure of its own.
    Fails,
    /// Nothing.
    Silent,
}

pub struct Fake {
    pub addr: SocketAddr,
    pub manner: Arc<Mutex<Manner>>,
    /// Questions for addresses, so no probes.
    pub asked: Arc<Mutex<Vec<Message>>>,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub async fn start(manner: Manner) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), manner).await
    }

    pub async fn at(addr: SocketAddr, manner: Manner) -> Self {
        let socket = Arc::new(UdpSocket::bind(addr).await.unwrap());
        let (addr, manner, asked) = (socket.local_addr().unwrap(), Arc::new(Mutex::new(manner)), Arc::default());
        let task = tokio::spawn(serve(socket, manner.clone(), Arc::clone(&asked)));
        Self { addr, manner, asked, task }
    }

    pub fn count(&self) -> usize {
        self.asked.lock().len()
    }

    pub fn be(&self, manner: Manner) {
        *self.manner.lock() = manner;
    }
}

async fn serve(socket: Arc<UdpSocket>, manner: Arc<Mutex<Manner>>, asked: Arc<Mutex<Vec<Message>>>) {
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let question = Message::from_vec(&buffer[..length]).unwrap();
        let query = question.queries[0].clone();
        if query.query_type() != RecordType::NS {
            asked.lock().push(question.clone());
        }
        let mut answer = Message::new(question.metadata.id, MessageType::Response, question.metadata.op_code);
        answer.add_query(query.clone());
        let address = |ip, ttl| Record::from_rdata(query.name().clone(), ttl, RData::A(A(ip)));
        let mut wait = Duration::ZERO;
        match manner.lock().clone() {
            Manner::Silent => continue,
            Manner::Address(ip, ttl) => drop(answer.add_answer(address(ip, ttl))),
            Manner::Late(ip, by) => {
                answer.add_answer(address(ip, 60));
                wait = by;
            }
            Manner::NoName(ttl) => {
                let zone = Name::from_str("example.org.").unwrap();
                let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, ttl);
                answer.metadata.response_code = ResponseCode::NXDomain;
                answer.add_authority(Record::from_rdata(zone, ttl, RData::SOA(soa)));
            }
            Manner::Fails => answer.metadata.response_code = ResponseCode::ServFail,
        }
        let socket = socket.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        });
    }
}
