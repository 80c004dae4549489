//! Backups in a bucket, of a real server of S3 that checks signatures (the Versity gateway, built from its Go modules).
//!
//! The client takes its settings from the environment, so each test with a bucket is a process of its own: an ignored test
//! here, started by the one that has made the server.

use causeway_backup::{BackupError, Destination, Name};
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BUCKET: &str = "backups";
const USER: &str = "tester";
const SECRET: &str = "not-much-of-a-secret";

/// The server; ended when dropped.
struct Server {
    dir: tempfile::TempDir,
    port: u16,
    running: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.running.kill());
        drop(self.running.wait());
    }
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("versitygw");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut go = Command::new("go");
        go.args(["build", "-o"]).arg(&program).arg("github.com/versity/versitygw/cmd/versitygw");
        go.env("PATH", format!("{path}:/usr/local/go/bin")).env("CGO_ENABLED", "0");
        go.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/s3"));
        let built = go.output().expect("building the server needs Go (https://go.dev/dl)");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        for folder in [&format!("data/{BUCKET}"), "meta"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut server = Command::new(&program);
        server.args([
            "--port",
            &format!("127.0.0.1:{port}"),
            "--access",
            USER,
            "--secret",
            SECRET,
            "posix",
            "--sidecar",
        ]);
        server.arg(dir.path().join("meta")).arg(dir.path().join("data"));
        server.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let this = Self { port, running: server.spawn().unwrap(), dir };
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let said = || fs::read_to_string(this.dir.path().join("log")).unwrap_or_default();
            assert!(begin.elapsed() < Duration::from_secs(30), "the server does not listen: {}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
        this
    }

    /// Runs an ignored test of this file with the variables that lead to the server.
    fn run(&self, test: &str, secret: &str, allow_http: &str) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--ignored", "--nocapture"]);
        command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port)).env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", USER).env("AWS_SECRET_ACCESS_KEY", secret).env("AWS_ALLOW_HTTP", allow_http);
        let output = command.output().unwrap();
        let said = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}

#[test]
fn a_bucket_keeps_backups() {
    let server = Server::start();
    server.run("s3::with_a_bucket", SECRET, "true");
    server.run("s3::with_a_wrong_secret", "guessed", "true");
    server.run("s3::with_plain_http_that_nobody_asked_for", SECRET, "false");
}

fn tokio() -> tokio::runtime::Runtime {
    drop(rustls::crypto::ring::default_provider().install_default());
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn name(second: u32, cluster: &str) -> Name {
    Name::parse(&format!("{cluster}-20261130T2045{second:02}Z-r{second}.causeway-backup")).unwrap()
}

#[test]
#[ignore = "started by a_bucket_keeps_backups"]
fn with_a_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let place = Destination::parse(&format!("s3://{BUCKET}/some/where")).unwrap();
    let deeper = Destination::parse(&format!("s3://{BUCKET}/some/where/else")).unwrap();
    // Empty, in one part, in three.
    let sizes = [0, 1000, 40_000_000];
    tokio().block_on(async {
        assert_eq!(place.list().await.unwrap(), []);
        for (at, size) in sizes.into_iter().enumerate() {
            let staged = place.stage("prod", dir.path()).unwrap();
            staged.file().write_all(&vec![u8::try_from(at).unwrap(); size]).unwrap();
            let name = name(u32::try_from(at).unwrap(), "prod");
            let address = place.put(staged, &name).await.unwrap();
            assert_eq!(address, format!("s3://{BUCKET}/some/where/{name}"));
            let (found, text) = Destination::parse_backup(&address).unwrap();
            let mut back =
                File::options().read(true).write(true).create(true).truncate(true).open(dir.path().join("back"));
            let back = back.as_mut().unwrap();
            found.fetch(&text, back).await.unwrap();
            let mut bytes = Vec::new();
            back.rewind().unwrap();
            back.read_to_end(&mut bytes).unwrap();
            assert!(bytes.len() == size && bytes.iter().all(|b| usize::from(*b) == at));
        }
        let staged = deeper.stage("prod", dir.path()).unwrap();
        deeper.put(staged, &name(9, "prod")).await.unwrap();
        let mut listed = place.list().await.unwrap();
        listed.sort();
        assert_eq!(listed, [name(0, "prod"), name(1, "prod"), name(2, "prod")], "and none of a place below");
        place.delete(&name(1, "prod")).await.unwrap();
        assert_eq!(place.list().await.unwrap().len(), 2);
        let mut nowhere = tempfile::tempfile().unwrap();
        assert!(place.fetch(&name(1, "prod").to_string(), &mut nowhere).await.is_err());
    });
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["back"], "nothing that was staged is left");
}

#[test]
#[ignore = "started by a_bucket_keeps_backups"]
fn with_a_wrong_secret() {
    let place = Destination::parse(&format!("s3://{BUCKET}/x")).unwrap();
    let error = tokio().block_on(place.list()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, BackupError::Remote { .. }) && text.contains("SignatureDoesNotMatch"), "{text}");
    assert!(!text.contains("guessed"), "{text}");
}

#[test]
#[ignore = "started by a_bucket_keeps_backups"]
fn with_plain_http_that_nobody_asked_for() {
    let place = Destination::parse(&format!("s3://{BUCKET}/x")).unwrap();
    assert!(matches!(tokio().block_on(place.list()), Err(BackupError::Remote { .. })));
}
