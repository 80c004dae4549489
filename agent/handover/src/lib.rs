//! Listening sockets that outlive the program. In: the sockets of a running program, by name. Out: the same sockets, open
//! all the while, in the program that takes its place (the same process, another image), so that a client who connects
//! during an upgrade waits a moment and is not refused.
//!
//! Sockets travel as systemd's socket activation has them (`sd_listen_fds(3)`: `LISTEN_FDS`, `LISTEN_PID`); their names
//! stand beside it.

use command_fds::{CommandFdExt, FdMapping};
use listenfd::ListenFd;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// How many times sockets have been handed on, and their names in the order of the descriptors.
const NAMES: &str = "CAUSEWAY_SOCKETS";
/// Where descriptors start in the next program; those below are not disturbed while it is put in place.
const FIRST: RawFd = 512;

/// What names of TCP sockets end in, and those of UDP.
const TCP: &str = "/tcp";
const UDP: &str = "/udp";

/// The sockets of this program that the next one is to have, by name and kind.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Until somebody wants them.
    inherited: Mutex<HashMap<String, OwnedFd>>,
    kept: Mutex<BTreeMap<String, OwnedFd>>,
    generation: u32,
}

impl Sockets {
    /// Takes over what the program before this one has left; nothing where there was none. To be called once, at the
    /// start.
    pub fn of_environment() -> Self {
        let mut given = ListenFd::from_env();
        let Ok(words) = std::env::var(NAMES) else { return Self::default() };
        let mut words = words.split('\n');
        let generation = words.next().and_then(|n| n.parse().ok());
        let Some(generation) = generation.filter(|_| given.len() > 0) else { return Self::default() };
        let mut inherited = HashMap::new();
        for (index, name) in words.enumerate() {
            let socket = if name.ends_with(TCP) {
                given.take_tcp_listener(index).map(|s| s.map(OwnedFd::from))
            } else {
                given.take_udp_socket(index).map(|s| s.map(OwnedFd::from))
            };
            match socket {
                Ok(Some(socket)) => drop(inherited.insert(name.to_owned(), socket)),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, name, "an inherited socket cannot be used"),
            }
        }
        Self { inherited: Mutex::new(inherited), kept: Mutex::default(), generation }
    }

    /// How many programs in this process have handed on their sockets before this one.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The TCP socket of this name that was inherited, or else a new one; it will be handed on. Errors are those of
    /// `bind`, and of a lack of descriptors.
    pub fn tcp<E: From<io::Error>>(
        &self,
        name: &str,
        bind: impl FnOnce() -> Result<TcpListener, E>,
    ) -> Result<TcpListener, E> {
        self.socket(format!("{name}{TCP}"), bind)
    }

    /// The same for UDP.
    pub fn udp<E: From<io::Error>>(
        &self,
        name: &str,
        bind: impl FnOnce() -> Result<UdpSocket, E>,
    ) -> Result<UdpSocket, E> {
        self.socket(format!("{name}{UDP}"), bind)
    }

    fn socket<S: AsFd + From<OwnedFd>, E: From<io::Error>>(
        &self,
        name: String,
        bind: impl FnOnce() -> Result<S, E>,
    ) -> Result<S, E> {
        let inherited = self.inherited.lock().remove(&name);
        let socket = match inherited {
            Some(socket) => S::from(socket),
            None => bind()?,
        };
        let copy = socket.as_fd().try_clone_to_owned()?;
        self.kept.lock().insert(name, copy);
        Ok(socket)
    }

    /// Sockets whose names begin so are not handed on; they close when nobody else has them.
    pub fn forget(&self, prefix: &str) {
        self.kept.lock().retain(|name, _| !name.starts_with(prefix));
        self.inherited.lock().retain(|name, _| !name.starts_with(prefix));
    }

    /// What was inherited and nobody has wanted is closed: whoever knocks there should be told that nobody is in. To be
    /// called, with the names of sockets that one asks for, when one has asked for all.
    pub fn close_unclaimed(&self, own: impl Fn(&str) -> bool) {
        self.inherited.lock().retain(|name, _| {
            if own(name) {
                tracing::info!(name, "an inherited socket is not used any more");
            }
            !own(name)
        });
    }

    /// Puts a program in the place of this one, in the same process, with all sockets. Returns only when that fails, and
    /// then without the sockets. Threads that still run end with it, in the middle of what they do.
    pub fn replace(&self, program: &Path, arguments: impl IntoIterator<Item = OsString>) -> io::Error {
        let kept = std::mem::take(&mut *self.kept.lock());
        let mut names = (self.generation + 1).to_string();
        let mut mappings = Vec::new();
        for (child, (name, fd)) in (FIRST..).zip(kept) {
            names.push('\n');
            names.push_str(&name);
            mappings.push(FdMapping { parent_fd: fd, child_fd: child });
        }
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("LISTEN_FDS", mappings.len().to_string())
            .env("LISTEN_FDS_FIRST_FD", FIRST.to_string())
            .env("LISTEN_PID", std::process::id().to_string())
            .env(NAMES, names);
        match command.fd_mappings(mappings) {
            Ok(command) => command.exec(),
            Err(collision) => io::Error::other(collision),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    /// The second half of the test below, run as a program of its own.
    #[test]
    fn heir() {
        let Ok(role) = std::env::var("CAUSEWAY_TEST_ROLE") else { return };
        let sockets = Sockets::of_environment();
        let bind = || TcpListener::bind("127.0.0.1:0");
        let tcp = sockets.tcp("door", bind).unwrap();
        let udp = sockets.udp("door", || UdpSocket::bind("127.0.0.1:0")).unwrap();
        if sockets.generation() < 2 {
            if role == "first" && sockets.generation() == 0 {
                println!("at {} {}", tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
            }
            // Nobody accepts for a while.
            std::thread::sleep(std::time::Duration::from_millis(100));
            let error = sockets.replace(&std::env::current_exe().unwrap(), std::env::args_os().skip(1));
            panic!("{error}");
        }
        let mut packet = [0; 9];
        let (n, from) = udp.recv_from(&mut packet).unwrap();
        udp.send_to(&packet[..n], from).unwrap();
        let (mut stream, _) = tcp.accept().unwrap();
        stream.write_all(b"the third").unwrap();
        std::process::exit(0);
    }

    #[test]
    fn who_connects_meanwhile_is_served_by_the_next_program() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["tests::heir", "--exact", "--nocapture"])
            .env("CAUSEWAY_TEST_ROLE", "first")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut said = String::new();
        let ports: Vec<u16> = loop {
            let mut byte = [0];
            assert_eq!(out.read(&mut byte).unwrap(), 1, "{said}");
            said.push(char::from(byte[0]));
            if let Some((_, line)) = said.strip_suffix('\n').and_then(|s| s.rsplit_once("at ")) {
                break line.split(' ').map(|p| p.parse().unwrap()).collect();
            }
        };
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.send_to(b"a packet.", ("127.0.0.1", ports[1])).unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", ports[0])).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "the third");
        let mut echo = [0; 9];
        udp.recv(&mut echo).unwrap();
        assert_eq!(&echo, b"a packet.");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn without_a_program_before_sockets_are_new() {
        let sockets = Sockets::default();
        let first = sockets.tcp("a", || TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = first.local_addr().unwrap();
        drop(first);
        assert!(TcpStream::connect(address).is_ok(), "it is kept open for the next one");
        sockets.forget("a");
        // A child that another test is just making has a copy until it is another program.
        let closed = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            TcpStream::connect(address).is_err()
        });
        assert!(closed);
        assert_eq!(sockets.generation(), 0);
    }

    #[test]
    fn sockets_of_others_wait_for_them() {
        let sockets = Sockets::default();
        for name in ["mine", "theirs"] {
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            sockets.inherited.lock().insert(format!("{name}{TCP}"), socket.into());
        }
        sockets.close_unclaimed(|name| name.starts_with("mine"));
        let fresh = || Err::<TcpListener, _>(io::Error::other("it is gone"));
        assert!(sockets.tcp("mine", fresh).is_err());
        assert!(sockets.tcp("theirs", fresh).is_ok());
    }
}
