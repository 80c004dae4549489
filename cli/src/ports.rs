//! Listening sockets towards the user, bound before anything is started. In: a port on 127.0.0.1. Out: the socket, or
//! an error that names who has the port.

use anyhow::{Result, anyhow};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Binds a port on 127.0.0.1; `flag` is the option that would change it.
pub fn bind(port: u16, purpose: &str, flag: &str) -> Result<TcpListener> {
    bind_at(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), purpose, flag)
}

/// Binds any address.
pub fn bind_at(address: SocketAddr, purpose: &str, flag: &str) -> Result<TcpListener> {
    let port = address.port();
    let listener = TcpListener::bind(address).map_err(|error| {
        if error.kind() == std::io::ErrorKind::AddrInUse {
            let who = holder(port).unwrap_or_else(|| "another process".to_owned());
            anyhow!("port {port} for {purpose} is in use by {who}; stop it, or choose another port with {flag}")
        } else {
            anyhow!("cannot listen on {address} for {purpose}: {error}")
        }
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Who listens on a TCP port of this machine: `nginx (process 4711)`.
fn holder(port: u16) -> Option<String> {
    let mut entries = procfs::net::tcp().unwrap_or_default();
    entries.extend(procfs::net::tcp6().unwrap_or_default());
    let listens =
        |e: &&procfs::net::TcpNetEntry| e.local_address.port() == port && e.state == procfs::net::TcpState::Listen;
    let inode = entries.iter().find(listens)?.inode;
    procfs::process::all_processes().ok()?.flatten().find_map(|process| {
        let mut open = process.fd().ok()?.flatten();
        open.any(|fd| matches!(fd.target, procfs::process::FDTarget::Socket(i) if i == inode))
            .then(|| process.stat().ok())
            .flatten()
            .map(|stat| format!("{} (process {})", stat.comm, stat.pid))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_port_holder_and_way_out() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind(port, "the ingress", "--http-port").unwrap_err().to_string();
        for part in [port.to_string(), std::process::id().to_string(), "--http-port".to_owned()] {
            assert!(error.contains(&part), "{error} lacks {part}");
        }
    }
}
