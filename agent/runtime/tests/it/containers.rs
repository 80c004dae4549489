//! Life of containers: run, exit, limits, stop, restart of our side.

use crate::house::{BUSYBOX, House, config, eventually};
use causeway_runtime::{
    ContainerEvent, ContainerSpec, ContainerState, Containerd, ResourceLimits, Runtime, RuntimeError,
};
use futures::StreamExt;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_logs_and_exits() {
    let house = House::new().await;
    assert!(house.runtime.version().await.unwrap().starts_with("containerd://1."));
    let mut events = house.runtime.events().await.unwrap();
    let spec = house.spec("a", "echo out; echo err >&2; printf rest; exit 3");
    house.run(&spec).await;
    let event = tokio::time::timeout(Duration::from_secs(20), events.next()).await.unwrap();
    assert_eq!(event, Some(ContainerEvent::Exited { id: "a".into() }));
    // Once the exit is told, the log is complete.
    let text = house.text("a");
    assert!(
        text.contains("stdout F out\n") && text.contains("stderr F err\n") && text.contains("stdout F rest\n"),
        "{text}"
    );
    assert_eq!(house.exit("a").await, (3, false));
    let info = house.info("a").await;
    assert_eq!(info.labels, spec.labels);
    assert_eq!(info.image, BUSYBOX);

    // Everything is idempotent.
    house.runtime.create_container(&spec).await.unwrap();
    house.runtime.stop_container("a", None, Duration::from_secs(1)).await.unwrap();
    assert!(matches!(house.runtime.start_container("a").await, Err(RuntimeError::Start { .. })));
    for _ in 0..2 {
        house.runtime.remove_container("a").await.unwrap();
        house.runtime.stop_container("a", None, Duration::ZERO).await.unwrap();
    }
    assert!(house.runtime.containers().await.unwrap().is_empty());
    assert!(matches!(house.runtime.start_container("a").await, Err(RuntimeError::NotFound { .. })));
    assert!(house.log("a").exists());
    // The id is free again.
    house.run(&house.spec("a", "true")).await;
    assert_eq!(house.exit("a").await.0, 0);
}

/// A list of containers and tasks that was begun before a container was started says nothing about how it ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looking_while_containers_start_ends_none() {
    let house = std::sync::Arc::new(House::new().await);
    let stop = tokio_util::sync::CancellationToken::new();
    let looking = {
        let (house, stop) = (house.clone(), stop.clone());
        tokio::spawn(async move {
            let mut looks = 0;
            while !stop.is_cancelled() {
                house.runtime.containers().await.unwrap();
                looks += 1;
            }
            looks
        })
    };
    for number in 0..12 {
        let id = format!("l{number}");
        house.run(&house.spec(&id, "sleep 60")).await;
        let state = house.info(&id).await.state;
        assert!(matches!(state, ContainerState::Running { .. }), "{id}: {state:?}");
    }
    stop.cancel();
    assert!(looking.await.unwrap() > 20, "too few looks: the test says nothing");
    let all = house.runtime.containers().await.unwrap();
    assert!(all.iter().all(|c| matches!(c.state, ContainerState::Running { .. })), "{all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sees_the_world_that_the_specification_describes() {
    let house = House::new().await;
    let source = house.dir.path().join("volume");
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join("file"), "from the volume").unwrap();
    let script = "id; hostname; cat /data/file; echo; echo $X; pwd; echo no > /data/file || echo read-only volume; \
                  echo no > /new || echo read-only root; cat /proc/self/status; ls /proc/1/ns >/dev/null && echo done";
    let spec = ContainerSpec {
        user: "web".into(),
        extra_groups: vec![2000],
        env: vec!["PATH=/bin".into(), "X=a b".into()],
        working_dir: "/tmp".into(),
        read_only_rootfs: true,
        no_new_privileges: true,
        drop_capabilities: vec!["ALL".into()],
        mounts: vec![causeway_runtime::Mount {
            source,
            destination: "/data".into(),
            read_only: true,
            propagation: Default::default(),
        }],
        ..house.spec("w", script)
    };
    house.run(&spec).await;
    house.exit("w").await;
    let text = house.text("w");
    for words in [
        "uid=33(web) gid=34(web) groups=4(log),34(web),2000",
        "F box",
        "F from the volume",
        "F a b",
        "F /tmp",
        "read-only volume",
        "read-only root",
        "NoNewPrivs:\t1",
        "CapBnd:\t0000000000000000",
        "F done",
    ] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_privileged_container_and_one_with_a_network_of_its_own() {
    let house = House::new().await;
    let network = causeway_network_namespace(&house.name);
    let spec =
        ContainerSpec { network_namespace: Some(network.clone()), ..house.spec("n", "ls /sys/class/net; echo end") };
    house.run(&spec).await;
    let spec = ContainerSpec {
        privileged: true,
        network_namespace: Some(network.clone()),
        ..house.spec("p", "cat /proc/self/status; ls /dev; hostname other && hostname; echo end")
    };
    house.run(&spec).await;
    assert_eq!(house.exit("n").await.0, 0);
    assert_eq!(house.exit("p").await.0, 0);
    let _ = std::process::Command::new("ip")
        .args(["netns", "del", network.file_name().unwrap().to_str().unwrap()])
        .status();
    assert!(!house.text("n").contains("eth0"), "{}", house.text("n"));
    let text = house.text("p");
    assert!(text.contains("F other\n") && text.contains("F null\n"), "{text}");
}

fn causeway_network_namespace(name: &str) -> std::path::PathBuf {
    let made = std::process::Command::new("ip").args(["netns", "add", name]).status().unwrap();
    assert!(made.success());
    std::path::Path::new("/run/netns").join(name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_limit_kills_and_says_so() {
    let house = House::new().await;
    let limits =
        ResourceLimits { memory_bytes: Some(32 << 20), cpu_shares: Some(256), cpu_quota: Some(50_000), pids: Some(50) };
    let script = "x=a; while true; do x=$x$x; done";
    house.run(&ContainerSpec { resources: limits.clone(), ..house.spec("m", script) }).await;
    assert_eq!(house.exit("m").await, (137, true));
    house
        .run(&ContainerSpec {
            resources: limits,
            ..house.spec("s", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 100")
        })
        .await;
    eventually("it uses CPU and memory", async || {
        let stats = house.runtime.stats("s").await.unwrap();
        (stats.cpu_nanos > 0 && stats.memory_working_set > 0).then_some(())
    })
    .await;
    assert!(matches!(house.runtime.stats("none").await, Err(RuntimeError::NotFound { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_asks_first_and_kills_after_the_grace() {
    let house = House::new().await;
    let polite = "trap 'echo bye; exit 7' TERM; echo ready; while true; do sleep 0.1; done";
    house.run(&house.spec("polite", polite)).await;
    house.says("polite", "ready").await;
    house.runtime.stop_container("polite", None, Duration::from_secs(30)).await.unwrap();
    assert_eq!(house.exit("polite").await.0, 7);
    assert!(house.text("polite").contains("bye"));

    let quit = ContainerSpec {
        stop_signal: Some("SIGQUIT".into()),
        ..house.spec("quit", "trap 'exit 8' QUIT; echo ready; while true; do sleep 0.1; done")
    };
    house.run(&quit).await;
    house.says("quit", "ready").await;
    house.runtime.stop_container("quit", None, Duration::from_secs(30)).await.unwrap();
    assert_eq!(house.exit("quit").await.0, 8);

    house.run(&house.spec("deaf", "trap '' TERM; echo ready; while true; do sleep 0.1; done")).await;
    house.says("deaf", "ready").await;
    let begun = Instant::now();
    house.runtime.stop_container("deaf", None, Duration::from_millis(500)).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(500));
    assert_eq!(house.exit("deaf").await, (137, false));

    let wrong = ContainerSpec { stop_signal: Some("SIGNOPE".into()), ..house.spec("wrong", "true") };
    let error = house.runtime.create_container(&wrong).await.unwrap_err();
    assert!(error.to_string().contains("SIGNOPE"), "{error}");
}

/// Our side goes away: the containers run on, logs go on where they were, ends in between are known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_restart_changes_nothing_for_the_containers() {
    let mut house = House::new().await;
    house.run(&house.spec("long", "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.02; done")).await;
    let shared = house.dir.path().join("shared");
    std::fs::create_dir_all(&shared).unwrap();
    let mount = causeway_runtime::Mount {
        source: shared.clone(),
        destination: "/shared".into(),
        read_only: false,
        propagation: Default::default(),
    };
    let script = "echo hi; while [ ! -e /shared/go ]; do sleep 0.05; done; echo > /shared/gone; exit 9";
    house.run(&ContainerSpec { mounts: vec![mount], ..house.spec("short", script) }).await;
    house.says("short", "hi").await;
    house.says("long", "line 20\n").await;
    let before = house.info("long").await.state;
    let config = config(house.daemon.as_ref().unwrap(), house.dir.path());
    // Dropping the last clone stops the pumps as the end of the process would.
    let placeholder = Containerd::connect(causeway_runtime::ContainerdConfig {
        namespace: "other".into(),
        state_dir: house.dir.path().join("other"),
        ..config.clone()
    })
    .await
    .unwrap();
    drop(std::mem::replace(&mut house.runtime, placeholder));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stopped_at = house.text("long").lines().count();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(house.text("long").lines().count(), stopped_at, "nobody reads while we are away");
    std::fs::write(shared.join("go"), "").unwrap();
    eventually("it has ended", async || shared.join("gone").exists().then_some(())).await;
    house.runtime = Containerd::connect(config).await.unwrap();
    assert_eq!(house.exit("short").await, (9, false));
    assert_eq!(house.info("long").await.state, before);
    eventually("the log goes on", async || (house.text("long").lines().count() > stopped_at + 50).then_some(())).await;
    let text = house.text("long");
    // Nothing is missing, nothing is doubled; the cut may have split one line into parts.
    let joined = text.replace("stdout F ", "").replace("stdout P ", "");
    for n in 0..stopped_at + 20 {
        assert_eq!(joined.matches(&format!("line {n}\n")).count(), 1, "line {n} in\n{text}");
    }
    house.runtime.stop_container("long", None, Duration::ZERO).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_get_clear_words() {
    let house = House::new().await;
    let missing = ContainerSpec { args: vec!["/no/such/program".into()], ..house.spec("x", "") };
    house.runtime.create_container(&missing).await.unwrap();
    let error = house.runtime.start_container("x").await.unwrap_err();
    assert!(matches!(error, RuntimeError::Start { .. }), "{error:?}");
    assert!(error.to_string().contains("/no/such/program") && error.to_string().contains("no such file"), "{error}");
    assert_eq!(house.info("x").await.state, ContainerState::Created);
    house.runtime.remove_container("x").await.unwrap();

    let image = ContainerSpec { image: "nothing:1".into(), ..house.spec("y", "true") };
    let error = house.runtime.create_container(&image).await.unwrap_err();
    assert!(matches!(error, RuntimeError::ImageMissing { .. }), "{error:?}");
    let user = ContainerSpec { user: "nobody-knows".into(), ..house.spec("z", "true") };
    let error = house.runtime.create_container(&user).await.unwrap_err();
    assert!(error.to_string().contains("no matching entries in passwd"), "{error}");
    let id = ContainerSpec { id: "../up".into(), ..house.spec("z", "true") };
    assert!(matches!(house.runtime.create_container(&id).await, Err(RuntimeError::Create { .. })));
    assert!(house.runtime.containers().await.unwrap().is_empty());
}

/// containerd is killed: the containers run on, and events come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerds_death_is_survived() {
    let house = House::new().await;
    house.run(&house.spec("a", "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 4")).await;
    let mut events = house.runtime.events().await.unwrap();
    let before = house.info("a").await.state;
    let pid = std::fs::read_to_string(format!("/run/causeway/{}/containerd/containerd.pid", house.name)).unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("it is back with the container", async || {
        let all = house.runtime.containers().await.ok()?;
        all.into_iter().find(|c| c.id == "a" && c.state == before)
    })
    .await;
    let command = ["/bin/sh", "-c", "echo > /tmp/go"].map(String::from);
    let done = house.runtime.exec_sync("a", &command, Duration::from_secs(10)).await.unwrap();
    assert_eq!(done.code, Some(0), "{done:?}");
    let event = tokio::time::timeout(Duration::from_secs(20), events.next()).await.unwrap();
    assert_eq!(event, Some(ContainerEvent::Exited { id: "a".into() }));
    assert_eq!(house.exit("a").await.0, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_what_ran_has_ended_and_does_not_run_again() {
    let mut house = House::new().await;
    house.run(&house.spec("ran", "echo up; sleep 600")).await;
    house.says("ran", "up").await;
    let daemon = house.daemon.as_ref().unwrap();
    let config = config(daemon, house.dir.path());
    daemon.power_off("causeway-n1", &format!("/causeway-{}", house.name)).await;
    // What lives in memory is gone with it.
    std::fs::remove_dir_all(&config.state_dir).unwrap();
    house.runtime = Containerd::connect(config).await.unwrap();
    let state = house.info("ran").await.state;
    assert!(matches!(state, ContainerState::Exited { started_at: Some(_), .. }), "{state:?}");
    let said = house.runtime.start_container("ran").await.unwrap_err().to_string();
    assert!(said.contains("has exited already"), "{said}");
    house.runtime.remove_container("ran").await.unwrap();
    let records = std::fs::read_dir(house.dir.path().join("records")).unwrap().count();
    assert_eq!(records, 0, "its record goes with it");
}

/// Somebody else may be about to make a group in a parent that is empty for a moment: whoever removes a group leaves
/// its parents alone.
#[test]
fn a_removed_groups_parent_stays() {
    let name = format!("causeway-it{:x}", std::process::id());
    let controllers = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path());
    let roots: Vec<_> = match causeway_runtime::cgroup::is_v2() {
        true => vec!["/sys/fs/cgroup".into()],
        false => controllers.filter(|p| p.is_dir() && !p.is_symlink()).collect(),
    };
    for root in &roots {
        std::fs::create_dir_all(root.join(&name).join("node/pod/container")).unwrap();
    }
    let path = |below: &str| format!("/{name}/{below}");
    causeway_runtime::cgroup::remove_empty(&path("node/pod/container"));
    assert!(roots.iter().all(|r| r.join(&name).join("node/pod").exists()), "the pod's other containers need it");
    assert!(roots.iter().all(|r| !r.join(&name).join("node/pod/container").exists()));
    assert!(causeway_runtime::cgroup::kill_and_remove(&path("node/pod")));
    assert!(roots.iter().all(|r| r.join(&name).join("node").exists()), "the node's other pods need it");
    assert!(causeway_runtime::cgroup::kill_and_remove(&name));
    assert!(roots.iter().all(|r| !r.join(&name).exists()));
}
