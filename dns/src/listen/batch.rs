//! Packets by the dozen: one system call reads up to [`SIZE`] of them, another sends their answers. In: a socket. Out:
//! packets with a place for the answer of each.

use crate::wire::MAX_QUESTION;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Packets read by one call.
const SIZE: usize = 32;

/// Packets in, answers out.
pub(super) struct Batch {
    buffers: Box<[[u8; MAX_QUESTION]]>,
    /// Length and sender of those read.
    read: Vec<(usize, SocketAddr)>,
    /// The next to be answered.
    at: usize,
    answers: Vec<Vec<u8>>,
}

impl Default for Batch {
    fn default() -> Self {
        let buffers = vec![[0; MAX_QUESTION]; SIZE].into_boxed_slice();
        Self { buffers, read: Vec::with_capacity(SIZE), at: 0, answers: vec![Vec::new(); SIZE] }
    }
}

impl Batch {
    /// Waits for packets and reads as many as are there.
    pub async fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
        socket.async_io(Interest::READABLE, || self.read_now(socket)).await
    }

    fn read_now(&mut self, socket: &UdpSocket) -> io::Result<()> {
        self.at = 0;
        self.read.clear();
        self.answers.iter_mut().for_each(Vec::clear);
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(SIZE, None);
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = self.buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        let received = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None);
        for message in received? {
            // A sender that cannot be told is answered nothing.
            let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
            self.read.push((message.bytes, message.address.and_then(socket_addr).unwrap_or(nobody)));
        }
        Ok(())
    }

    /// The next packet, who sent it, and the place for its answer.
    pub fn next(&mut self) -> Option<(&[u8], SocketAddr, &mut Vec<u8>)> {
        let (length, from) = *self.read.get(self.at)?;
        let (packet, answer) = (self.buffers.get(self.at)?, self.answers.get_mut(self.at)?);
        self.at += 1;
        Some((&packet[..length.min(MAX_QUESTION)], from, answer))
    }

    /// Sends the answers that are there.
    pub async fn send(&mut self, socket: &UdpSocket) {
        let mut begin = 0;
        while begin < self.read.len() {
            // One client that cannot be reached must not cost the others their answers.
            match socket.async_io(Interest::WRITABLE, || self.send_now(socket, begin)).await {
                Ok(next) => begin = next,
                Err(error) => {
                    tracing::debug!(%error, "answers not sent");
                    begin = self.nth_answer(begin, 1);
                }
            }
        }
    }

    /// Sends from the packet `begin` on; the first that is left.
    fn send_now(&self, socket: &UdpSocket, begin: usize) -> io::Result<usize> {
        let left = || self.answers.iter().zip(&self.read).skip(begin).filter(|(answer, _)| !answer.is_empty());
        let slices: Vec<[IoSlice<'_>; 1]> = left().map(|(answer, _)| [IoSlice::new(answer)]).collect();
        if slices.is_empty() {
            return Ok(self.read.len());
        }
        let to: Vec<Option<SockaddrStorage>> = left().map(|(_, (_, to))| Some((*to).into())).collect();
        let mut headers = MultiHeaders::preallocate(slices.len(), None);
        let flags = MsgFlags::MSG_DONTWAIT;
        let sent = sendmmsg(socket.as_raw_fd(), &mut headers, slices.iter(), &to, [], flags)
            .map_err(|e: Errno| io::Error::from(e))?;
        Ok(self.nth_answer(begin, sent.count()))
    }

    /// The packet behind the `n`th answer from `begin` on.
    fn nth_answer(&self, begin: usize, n: usize) -> usize {
        let answers = self.answers.iter().enumerate().take(self.read.len()).skip(begin);
        let mut with = answers.filter(|(_, answer)| !answer.is_empty()).map(|(at, _)| at + 1);
        n.checked_sub(1).map_or(begin, |n| with.nth(n).unwrap_or(self.read.len()))
    }
}

fn socket_addr(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::from((a.ip(), a.port()))))
}
