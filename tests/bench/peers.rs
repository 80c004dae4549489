//! The peers' configurations: as an ingress would have them (the same headers for the backend as ours sends, connections
//! to the backend kept), one worker on one core, no access log, listening on loopback only.

use crate::scenario::Ports;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the scripts unpacked the peers, and where configurations go.
pub struct Peers {
    root: PathBuf,
    wheels: PathBuf,
    /// Configurations, certificate (`crt`) and key (`key`), both together (`pair`).
    pub dir: PathBuf,
}

/// What proxies lead to.
#[derive(Debug, Clone, Copy)]
pub struct Backends {
    /// HTTP/1.1.
    pub http: u16,
    /// gRPC.
    pub grpc: u16,
}

/// nginx' way to tell the backend about the client.
const FORWARDED: &str = "proxy_set_header Host $http_host; proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host; proxy_set_header X-Forwarded-Port $server_port;";

impl Peers {
    /// Downloads and unpacks what is missing; nothing is installed and no service is started.
    pub fn prepare(out: &Path, dir: &Path) -> Result<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (script, words) in
            [("bench-net/debian_peers.sh", &["peers", "nginx", "haproxy"][..]), ("bench/wheels.sh", &[])]
        {
            let status = Command::new(here.join(script)).arg(out).args(words).status()?;
            if !status.success() {
                bail!("{script} ended with {status}");
            }
        }
        let made = rcgen::generate_simple_self_signed(vec!["bench.localhost".to_owned()])?;
        let (crt, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        std::fs::write(dir.join("pair"), format!("{crt}{key}"))?;
        std::fs::write(dir.join("crt"), crt)?;
        std::fs::write(dir.join("key"), key)?;
        Ok(Self { root: out.join("peers.root"), wheels: out.join("wheels"), dir: dir.to_owned() })
    }

    fn debian(&self, program: &str) -> Command {
        let mut command = Command::new(self.root.join(program));
        let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|d| self.root.join(d));
        command.env("LD_LIBRARY_PATH", libraries.map(|d| d.to_string_lossy().into_owned()).join(":"));
        command
    }

    /// What they call themselves, by name.
    pub fn versions(&self) -> Vec<(&'static str, String)> {
        let said = |mut command: Command, words: usize| {
            let line = crate::machine::said(&mut command);
            line.split_whitespace().take(words).collect::<Vec<_>>().join(" ")
        };
        let asked = |mut command: Command, flag: &str| {
            command.arg(flag);
            command
        };
        let nginx = said(asked(self.debian("usr/sbin/nginx"), "-v"), 3);
        let envoy = Command::new(self.wheels.join("envoy/_bin/envoy")).arg("--version").output();
        let envoy = envoy.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        let envoy = envoy.split_once("version: ").and_then(|(_, l)| l.split('/').nth(1).map(str::to_owned));
        vec![
            ("nginx", nginx.trim_start_matches("nginx version: ").to_owned()),
            ("haproxy", said(asked(self.debian("usr/sbin/haproxy"), "-v"), 3)),
            ("envoy", envoy.unwrap_or_default()),
            ("caddy", said(asked(Command::new(self.wheels.join("bin/caddy")), "version"), 1)),
        ]
    }

    fn nginx(&self, name: &str, http: &str) -> Result<Command> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let at = dir.display();
        let config = format!(
            "daemon off; master_process off; worker_processes 1; pid {at}/pid; error_log stderr error;
events {{ worker_connections 30000; }}
http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 75s; tcp_nodelay on; sendfile on;
  client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at}; uwsgi_temp_path {at}; scgi_temp_path {at};
{http} }}\n"
        );
        std::fs::write(dir.join("nginx.conf"), config)?;
        let mut command = self.debian("usr/sbin/nginx");
        command.args(["-e", "stderr", "-p"]).arg(&dir).arg("-c").arg(dir.join("nginx.conf"));
        Ok(command)
    }

    /// The backend of all of them: nginx that answers 1 KiB from memory, and 100 KiB from a file.
    pub fn backend(&self, port: u16) -> Result<Command> {
        let body = "x".repeat(1024);
        std::fs::write(self.dir.join("large"), "x".repeat(100 * 1024))?;
        self.nginx(
            "backend",
            &format!(
                "  open_file_cache max=8;
  server {{ listen 127.0.0.1:{port} backlog=1024; root {};
    location / {{ return 200 '{body}'; }} location = /large {{ }} }}",
                self.dir.display()
            ),
        )
    }

    /// nginx as a proxy.
    pub fn nginx_proxy(&self, ports: Ports, to: Backends) -> Result<Command> {
        let at = self.dir.display();
        let http = format!(
            "  upstream b {{ server 127.0.0.1:{}; keepalive 128; keepalive_requests 1000000000; }}
  upstream g {{ server 127.0.0.1:{}; keepalive 128; keepalive_requests 1000000000; }}
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  server {{ listen 127.0.0.1:{} default_server backlog=1024; return 404; }}
  server {{ listen 127.0.0.1:{}; listen 127.0.0.1:{} ssl http2 backlog=1024; server_name bench.localhost;
    ssl_certificate {at}/crt; ssl_certificate_key {at}/key; proxy_read_timeout 600s;
    location / {{ proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection $connection_upgrade;
      proxy_set_header Upgrade $http_upgrade; {FORWARDED} }} }}
  server {{ listen 127.0.0.1:{} http2 backlog=1024; server_name bench.localhost;
    location / {{ grpc_pass grpc://g; {} }} }}",
            to.http,
            to.grpc,
            ports.http,
            ports.http,
            ports.https,
            ports.grpc,
            FORWARDED.replace("proxy_set", "grpc_set")
        );
        self.nginx("nginx", &http)
    }

    /// HAProxy.
    pub fn haproxy(&self, ports: Ports, to: Backends) -> Result<Command> {
        let path = self.dir.join("haproxy.cfg");
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
  bind 127.0.0.1:{} backlog 1024
  bind 127.0.0.1:{} backlog 1024 ssl crt {} alpn h2,http/1.1
  acl known hdr(host) -i bench.localhost
  http-request set-header X-Real-IP %[src]
  http-request set-header X-Forwarded-For %[src]
  http-request set-header X-Forwarded-Proto http if !{{ ssl_fc }}
  http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header X-Forwarded-Port %[dst_port]
  use_backend b if known
frontend fg
  bind 127.0.0.1:{} backlog 1024 proto h2
  acl known hdr(host) -i bench.localhost
  http-request set-header X-Real-IP %[src]
  http-request set-header X-Forwarded-For %[src]
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header X-Forwarded-Port %[dst_port]
  use_backend g if known
backend b
  http-reuse always
  server one 127.0.0.1:{} pool-max-conn 128
backend g
  http-reuse always
  server one 127.0.0.1:{} proto h2 pool-max-conn 128
",
            ports.http,
            ports.https,
            self.dir.join("pair").display(),
            ports.grpc,
            to.http,
            to.grpc
        );
        std::fs::write(&path, config)?;
        let mut command = self.debian("usr/sbin/haproxy");
        command.args(["-db", "-q", "-f"]).arg(&path);
        Ok(command)
    }

    /// Envoy.
    pub fn envoy(&self, ports: Ports, to: Backends) -> Result<Command> {
        let at = |port: u16| serde_json::json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
        let typed = |name: &str, mut value: serde_json::Value| {
            value["@type"] = format!("type.googleapis.com/envoy.{name}").into();
            value
        };
        let manager = |cluster: &str| {
            let router = typed("extensions.filters.http.router.v3.Router", serde_json::json!({}));
            typed(
                "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                serde_json::json!({
                    "stat_prefix": "b", "use_remote_address": true, "generate_request_id": false,
                    "route_config": {"virtual_hosts": [{"name": "v", "domains": ["bench.localhost"], "routes": [
                        {"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}]},
                    "http_filters": [{"name": "router", "typed_config": router}]}),
            )
        };
        let listener = |name: &str, port: u16, cluster: &str, tls: Option<serde_json::Value>| {
            let mut chain = serde_json::json!({"filters": [{"name": "hcm", "typed_config": manager(cluster)}]});
            if let Some(tls) = tls {
                chain["transport_socket"] = serde_json::json!({"name": "tls", "typed_config": tls});
            }
            serde_json::json!({"name": name, "address": at(port), "filter_chains": [chain]})
        };
        let file = |name: &str| serde_json::json!({"filename": self.dir.join(name)});
        let tls = typed(
            "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            serde_json::json!({"common_tls_context": {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [
                {"certificate_chain": file("crt"), "private_key": file("key")}]}}),
        );
        let cluster = |name: &str, port: u16| {
            serde_json::json!({"name": name, "type": "STATIC", "load_assignment": {"cluster_name": name, "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": at(port)}}]}]},
                "circuit_breakers": {"thresholds": [{"max_requests": 100_000, "max_pending_requests": 100_000}]}})
        };
        let mut grpc = cluster("g", to.grpc);
        let options = serde_json::json!({"explicit_http_config": {"http2_protocol_options": {}}});
        grpc["typed_extension_protocol_options"] = serde_json::json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions":
                typed("extensions.upstreams.http.v3.HttpProtocolOptions", options)});
        let config = serde_json::json!({"static_resources": {
            "listeners": [listener("http", ports.http, "b", None), listener("https", ports.https, "b", Some(tls)),
                listener("grpc", ports.grpc, "g", None)],
            "clusters": [cluster("b", to.http), grpc]}});
        let path = self.dir.join("envoy.json");
        std::fs::write(&path, serde_json::to_vec(&config)?)?;
        let mut command = Command::new(self.wheels.join("envoy/_bin/envoy"));
        command.args(["--concurrency", "1", "-l", "error", "--disable-hot-restart", "-c"]).arg(&path);
        Ok(command)
    }

    /// Caddy.
    pub fn caddy(&self, ports: Ports, to: Backends) -> Result<Command> {
        let path = self.dir.join("Caddyfile");
        let at = self.dir.display();
        let config = format!(
            "{{
  admin off
  auto_https off
  persist_config off
  default_sni bench.localhost
  fallback_sni bench.localhost
  log {{
    output discard
  }}
  servers {{
    protocols h1 h2 h2c
  }}
}}
http://bench.localhost:{} {{
  bind 127.0.0.1
  reverse_proxy 127.0.0.1:{}
}}
https://bench.localhost:{} {{
  bind 127.0.0.1
  tls {at}/crt {at}/key
  reverse_proxy 127.0.0.1:{}
}}
http://bench.localhost:{} {{
  bind 127.0.0.1
  reverse_proxy h2c://127.0.0.1:{}
}}
",
            ports.http, to.http, ports.https, to.http, ports.grpc, to.grpc
        );
        std::fs::write(&path, config)?;
        let mut command = Command::new(self.wheels.join("bin/caddy"));
        command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&path);
        command.env("GOMAXPROCS", "1").env("HOME", &self.dir).env("XDG_DATA_HOME", &self.dir);
        Ok(command)
    }
}
