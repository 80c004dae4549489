//! The peers' configurations: as an ingress would have them (the same headers for the backend as ours sends, connections
//! to the backend kept), one process on one core, no access log.

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where `debian_peers.sh` unpacked the packages.
pub struct Peers {
    root: PathBuf,
}

impl Peers {
    /// Downloads and unpacks what is missing; nothing is installed and no service is started.
    pub fn prepare(out: &Path) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench-net/debian_peers.sh");
        let status = Command::new(&script).arg(out).args(["peers", "nginx", "haproxy"]).status()?;
        if !status.success() {
            bail!("{} ended with {status}", script.display());
        }
        Ok(Self { root: out.join("peers.root") })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.root.join(program));
        let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|d| self.root.join(d));
        command.env("LD_LIBRARY_PATH", libraries.map(|d| d.to_string_lossy().into_owned()).join(":"));
        command
    }

    /// What they call themselves.
    pub fn versions(&self) -> Result<(String, String)> {
        let nginx = self.command("usr/sbin/nginx").arg("-v").output()?;
        let haproxy = self.command("usr/sbin/haproxy").arg("-v").output()?;
        let nginx = String::from_utf8_lossy(&nginx.stderr).trim().trim_start_matches("nginx version: ").to_owned();
        let haproxy = String::from_utf8_lossy(&haproxy.stdout);
        let haproxy = haproxy.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
        Ok((nginx, haproxy))
    }

    fn nginx(&self, dir: &Path, name: &str, http: &str) -> Result<Command> {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let at = dir.display();
        let config = format!(
            "daemon off; master_process off; worker_processes 1; pid {at}/pid; error_log stderr error;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 75s; tcp_nodelay on;
  client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at}; uwsgi_temp_path {at}; scgi_temp_path {at};
{http} }}\n"
        );
        std::fs::write(dir.join("nginx.conf"), config)?;
        let mut command = self.command("usr/sbin/nginx");
        command.args(["-e", "stderr", "-p"]).arg(&dir).arg("-c").arg(dir.join("nginx.conf"));
        Ok(command)
    }

    /// The backend of all of them: nginx that answers 1 KiB from memory.
    pub fn backend(&self, dir: &Path, port: u16) -> Result<Command> {
        let body = "x".repeat(1024);
        self.nginx(
            dir,
            "backend",
            &format!("  server {{ listen 127.0.0.1:{port} backlog=1024; location / {{ return 200 '{body}'; }} }}"),
        )
    }

    /// nginx as a proxy.
    pub fn nginx_proxy(&self, dir: &Path, port: u16, backend: u16) -> Result<Command> {
        let http = format!(
            "  upstream b {{ server 127.0.0.1:{backend}; keepalive 128; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port} default_server backlog=1024; return 404; }}
  server {{ listen 127.0.0.1:{port}; server_name bench.localhost;
    location / {{ proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection '';
      proxy_set_header Host $http_host; proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host; proxy_set_header X-Forwarded-Port $server_port; }} }}"
        );
        self.nginx(dir, "nginx", &http)
    }

    /// HAProxy.
    pub fn haproxy(&self, dir: &Path, port: u16, backend: u16) -> Result<Command> {
        let path = dir.join("haproxy.cfg");
        let config = format!(
            "global
  nbthread 1
  maxconn 2000
defaults
  mode http
  timeout connect 2s
  timeout client 75s
  timeout server 60s
  option http-keep-alive
frontend f
  bind 127.0.0.1:{port} backlog 1024
  acl known hdr(host) -i bench.localhost
  http-request set-header X-Real-IP %[src]
  http-request set-header X-Forwarded-For %[src]
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header X-Forwarded-Port %[dst_port]
  use_backend b if known
backend b
  http-reuse always
  server one 127.0.0.1:{backend} pool-max-conn 128
"
        );
        std::fs::write(&path, config)?;
        let mut command = self.command("usr/sbin/haproxy");
        command.args(["-db", "-q", "-f"]).arg(&path);
        Ok(command)
    }
}
