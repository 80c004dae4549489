//! Exec and attach: input, output, terminals, sizes, exit codes.

use crate::house::{House, eventually};
use causeway_runtime::{ContainerSpec, ExecSpec, Runtime, TerminalSize};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn command(script: &str) -> ExecSpec {
    ExecSpec {
        command: ["/bin/sh", "-c", script].map(String::from).to_vec(),
        stdout: true,
        stderr: true,
        ..Default::default()
    }
}

async fn house() -> House {
    let house = House::new().await;
    house.run(&house.spec("c", "while true; do sleep 1; done")).await;
    house
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_output_and_code() {
    let house = house().await;
    let wish = ExecSpec { stdin: true, ..command("cat; echo oops >&2; exit 5") };
    let mut session = house.runtime.exec("c", &wish).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    // More than any pipe holds, so that both directions must move.
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let sent = data.clone();
    let writing = tokio::spawn(async move {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    let (mut out, mut err) = (Vec::new(), String::new());
    session.stdout.take().unwrap().read_to_end(&mut out).await.unwrap();
    session.stderr.take().unwrap().read_to_string(&mut err).await.unwrap();
    writing.await.unwrap();
    assert!(out == data, "{} bytes came back of {}", out.len(), data.len());
    assert_eq!(err, "oops\n");
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), session.exit).await.unwrap(), Ok(5));
    eventually("its pipes are gone", async || {
        let left = std::fs::read_dir(house.dir.path().join("runtime/exec")).unwrap().count();
        (left == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_has_a_size_and_changes_it() {
    let house = house().await;
    let wish = ExecSpec { stdin: true, tty: true, ..command("while true; do stty size; sleep 0.1; done") };
    let mut session = house.runtime.exec("c", &wish).await.unwrap();
    assert!(session.stderr.is_none());
    session.resize.send(TerminalSize { width: 101, height: 37 }).await.unwrap();
    let mut stdout = session.stdout.take().unwrap();
    let (mut seen, mut buffer) = (String::new(), [0_u8; 1024]);
    while !seen.contains("37 101") {
        let n = tokio::time::timeout(Duration::from_secs(20), stdout.read(&mut buffer)).await.unwrap().unwrap();
        assert!(n > 0, "ended with {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    // Ctrl-C through the terminal ends it.
    session.stdin.as_mut().unwrap().write_all(&[3]).await.unwrap();
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).await.unwrap();
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), session.exit).await.unwrap(), Ok(130));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_commands_and_their_time_out() {
    let house = house().await;
    let run = async |script: &str, limit: u64| {
        let command = ["/bin/sh", "-c", script].map(String::from);
        house.runtime.exec_sync("c", &command, Duration::from_millis(limit)).await
    };
    let output = run("echo fine; exit 2", 20_000).await.unwrap();
    assert_eq!((output.code, output.output.as_str()), (Some(2), "fine\n"));
    let output = run("head -c 200000 /dev/zero", 20_000).await.unwrap();
    assert_eq!((output.code, output.output.len()), (Some(0), 64 << 10));
    let begun = Instant::now();
    let output = run("echo begun; exec sleep 60", 1_500).await.unwrap();
    assert_eq!(output.code, None);
    assert!(begun.elapsed() < Duration::from_secs(30));
    eventually("the late one is killed", async || {
        let list = run("for p in /proc/[0-9]*; do cat $p/cmdline; echo; done", 20_000).await.unwrap().output;
        (!list.replace('\0', " ").contains("sleep 60")).then_some(())
    })
    .await;
    let error = house.runtime.exec_sync("c", &["/none".into()], Duration::from_secs(20)).await.unwrap_err();
    assert!(error.to_string().contains("/none"), "{error}");
    assert!(house.runtime.exec_sync("gone", &["/bin/true".into()], Duration::from_secs(5)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_a_session_kills_its_process() {
    let house = house().await;
    let session = house.runtime.exec("c", &command("exec sleep 61")).await.unwrap();
    drop(session);
    eventually("it is killed", async || {
        let command = ["/bin/sh", "-c", "for p in /proc/[0-9]*; do cat $p/cmdline; echo; done"].map(String::from);
        let list = house.runtime.exec_sync("c", &command, Duration::from_secs(10)).await.unwrap().output;
        (!list.replace('\0', " ").contains("sleep 61")).then_some(())
    })
    .await;
}

/// As `echo hello | kubectl run -i … cat` needs it: the end of the client's input is that of the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_for_one_client_ends_with_it() {
    let house = House::new().await;
    let wish = ExecSpec { stdin: true, stdout: true, stderr: true, ..Default::default() };
    for (id, shut) in [("shut", true), ("dropped", false)] {
        house.run(&ContainerSpec { stdin: true, stdin_once: true, ..house.spec(id, "cat; exit 4") }).await;
        let mut session = house.runtime.attach(id, &wish).await.unwrap();
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(b"hello\n").await.unwrap();
        if shut {
            stdin.shutdown().await.unwrap();
            let mut seen = String::new();
            let mut stdout = session.stdout.take().unwrap();
            let read = stdout.read_to_string(&mut seen);
            tokio::time::timeout(Duration::from_secs(20), read).await.unwrap().unwrap();
            drop(session.stderr.take());
            assert_eq!(seen, "hello\n");
            assert_eq!(tokio::time::timeout(Duration::from_secs(20), session.exit).await.unwrap(), Ok(4));
        } else {
            drop((stdin, session));
        }
        assert_eq!(house.exit(id).await.0, 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_speaks_with_the_first_process() {
    let house = House::new().await;
    let script = "while read line; do echo got $line; [ $line = end ] && exit 6; done";
    house.run(&ContainerSpec { stdin: true, ..house.spec("c", script) }).await;
    let wish = ExecSpec { stdin: true, stdout: true, stderr: true, ..Default::default() };
    for word in ["first", "end"] {
        let mut session = house.runtime.attach("c", &wish).await.unwrap();
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(format!("{word}\n").as_bytes()).await.unwrap();
        let mut stdout = session.stdout.take().unwrap();
        let mut seen = String::new();
        while !seen.contains(&format!("got {word}\n")) {
            let mut buffer = [0_u8; 256];
            let n = tokio::time::timeout(Duration::from_secs(20), stdout.read(&mut buffer)).await.unwrap().unwrap();
            assert!(n > 0, "ended with {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        // Leaving does not end the container's input: the next one attaches and goes on.
        if word == "end" {
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).await.unwrap();
            drop(session.stderr.take());
            assert_eq!(tokio::time::timeout(Duration::from_secs(20), session.exit).await.unwrap(), Ok(6));
        }
    }
    assert!(house.text("c").contains("got first"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_containers_terminal_goes_to_its_log() {
    let house = House::new().await;
    let spec = ContainerSpec { tty: true, stdin: true, ..house.spec("t", "echo $TERM; echo err >&2; sleep 0.2") };
    house.run(&spec).await;
    assert_eq!(house.exit("t").await.0, 0);
    let text = house.text("t");
    assert!(text.contains("stdout F xterm\n") && text.contains("stdout F err\n"), "{text:?}");
}
