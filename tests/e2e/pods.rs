//! What a pod is given and what becomes of it: real containers by real containerd.

use crate::Test;
use crate::images::{BUSYBOX, CURL};
use anyhow::{Result, ensure};
use causeway_tests::{Cluster, eventually};

pub fn tests() -> Vec<(&'static str, Test)> {
    vec![
        ("pods::environment_and_volumes", environment_and_volumes),
        ("pods::containers_share_the_network", containers_share_the_network),
        ("pods::init_containers_come_first", init_containers_come_first),
        ("pods::a_token_opens_the_api", a_token_opens_the_api),
        ("pods::exits_and_crash_loops", exits_and_crash_loops),
        ("pods::memory_limits_kill", memory_limits_kill),
        ("pods::missing_images_are_told", missing_images_are_told),
        ("pods::probes_decide", probes_decide),
        ("pods::termination_is_graceful", termination_is_graceful),
        ("pods::config_changes_arrive", config_changes_arrive),
        ("pods::users_and_directories", users_and_directories),
    ]
}

/// A pod manifest; `spec` is YAML at the level of the pod's spec.
pub fn pod(ns: &str, name: &str, spec: &str) -> String {
    let spec = spec.trim_matches('\n').lines().map(|l| format!("  {l}\n")).collect::<String>();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {ns}, labels: {{app: {name}}}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}"
    )
}

/// Waits for a pod to succeed and returns its log.
fn finished(c: &Cluster, ns: &str, name: &str) -> Result<String> {
    c.kubectl(&format!("-n {ns} wait pod/{name} --for=jsonpath={{.status.phase}}=Succeeded --timeout=60s")).ok()?;
    c.kubectl(&format!("-n {ns} logs {name}")).ok()
}

fn environment_and_volumes(c: &Cluster, ns: &str) -> Result<()> {
    c.kubectl(&format!("-n {ns} create configmap conf --from-literal=color=red --from-literal=file.txt=content"))
        .ok()?;
    c.kubectl(&format!("-n {ns} create secret generic safe --from-literal=password=geheim")).ok()?;
    c.apply(&pod(
        ns,
        "env",
        &format!(
            r#"
restartPolicy: Never
containers:
- name: main
  image: {BUSYBOX}
  imagePullPolicy: Never
  command: [sh, -c]
  args: ['echo "$(GREETING) $COLOR $PASSWORD $POD $IP $CPU $MISSING"; cat /conf/file.txt; echo; cat /safe/password; echo; cat /info/labels; echo; ls -ld /scratch | cut -c1 2>/dev/null || test -d /scratch; echo x > /scratch/x && cat /scratch/x /host/x; touch /conf/no 2>/dev/null || echo readonly']
  resources: {{limits: {{cpu: 250m, memory: 32Mi}}}}
  env:
  - {{name: WHO, value: world}}
  - {{name: GREETING, value: 'hello $(WHO)'}}
  - {{name: COLOR, valueFrom: {{configMapKeyRef: {{name: conf, key: color}}}}}}
  - {{name: PASSWORD, valueFrom: {{secretKeyRef: {{name: safe, key: password}}}}}}
  - {{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
  - {{name: IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}
  - {{name: CPU, valueFrom: {{resourceFieldRef: {{resource: limits.cpu, divisor: 1m}}}}}}
  - {{name: MISSING, valueFrom: {{configMapKeyRef: {{name: conf, key: none, optional: true}}}}}}
  volumeMounts:
  - {{name: conf, mountPath: /conf}}
  - {{name: safe, mountPath: /safe, readOnly: true}}
  - {{name: info, mountPath: /info}}
  - {{name: scratch, mountPath: /scratch}}
  - {{name: host, mountPath: /host}}
volumes:
- {{name: conf, configMap: {{name: conf}}}}
- {{name: safe, secret: {{secretName: safe}}}}
- {{name: info, downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}}}
- {{name: scratch, emptyDir: {{}}}}
- {{name: host, hostPath: {{path: /tmp/causeway-e2e-host-{ns}, type: DirectoryOrCreate}}}}
"#
        ),
    ))?;
    std::fs::create_dir_all(format!("/tmp/causeway-e2e-host-{ns}"))?;
    std::fs::write(format!("/tmp/causeway-e2e-host-{ns}/x"), "from the host\n")?;
    let log = finished(c, ns, "env");
    std::fs::remove_dir_all(format!("/tmp/causeway-e2e-host-{ns}"))?;
    let log = log?;
    ensure!(log.contains("hello world red geheim env 10.244."), "{log}");
    for part in [" 250 ", "content", "geheim\n", "app=\"env\"", "x\nfrom the host", "readonly"] {
        ensure!(log.contains(part), "no {part:?} in {log}");
    }
    Ok(())
}

fn containers_share_the_network(c: &Cluster, ns: &str) -> Result<()> {
    c.apply(&pod(
        ns,
        "two",
        &format!(
            r#"
containers:
- {{name: server, image: {BUSYBOX}, imagePullPolicy: Never, command: [sh, -c, 'echo shared > /tmp/index.html; exec httpd -f -p 8080 -h /tmp']}}
- {{name: client, image: {BUSYBOX}, imagePullPolicy: Never, command: [sh, -c, 'until wget -qO- http://127.0.0.1:8080/; do sleep 0.1; done; sleep 600']}}
"#
        ),
    ))?;
    c.kubectl(&format!("-n {ns} wait pod/two --for=condition=Ready --timeout=60s")).ok()?;
    eventually("the client reads from the server", || {
        ensure!(c.kubectl(&format!("-n {ns} logs two -c client")).ok()?.contains("shared"));
        Ok(())
    })?;
    let table = c.kubectl(&format!("-n {ns} get pod two --no-headers")).ok()?;
    ensure!(table.contains("2/2"), "{table}");
    let which = c.kubectl(&format!("-n {ns} logs two -c none")).fails()?;
    ensure!(which.contains("none"), "{which}");
    Ok(())
}

fn init_containers_come_first(c: &Cluster, ns: &str) -> Result<()> {
    c.apply(&pod(
        ns,
        "init",
        &format!(
            r#"
restartPolicy: Never
initContainers:
- {{name: one, image: {BUSYBOX}, imagePullPolicy: Never, command: [sh, -c, 'sleep 0.5; echo one >> /w/order'], volumeMounts: [{{name: w, mountPath: /w}}]}}
- name: side
  image: {BUSYBOX}
  imagePullPolicy: Never
  restartPolicy: Always
  command: [sh, -c, 'echo side >> /w/order; exec sleep 600']
  volumeMounts: [{{name: w, mountPath: /w}}]
  startupProbe: {{exec: {{command: [grep, -q, side, /w/order]}}, periodSeconds: 1}}
- {{name: two, image: {BUSYBOX}, imagePullPolicy: Never, command: [sh, -c, 'echo two >> /w/order'], volumeMounts: [{{name: w, mountPath: /w}}]}}
containers:
- {{name: main, image: {BUSYBOX}, imagePullPolicy: Never, command: [cat, /w/order], volumeMounts: [{{name: w, mountPath: /w}}]}}
volumes: [{{name: w, emptyDir: {{}}}}]
"#
        ),
    ))?;
    c.kubectl(&format!("-n {ns} wait pod/init --for=jsonpath={{.status.phase}}=Succeeded --timeout=60s")).ok()?;
    let log = c.kubectl(&format!("-n {ns} logs init -c main")).ok()?;
    ensure!(log == "one\nside\ntwo\n", "{log}");
    Ok(())
}

fn a_token_opens_the_api(c: &Cluster, ns: &str) -> Result<()> {
    c.apply(&pod(
        ns,
        "client",
        &format!(
            r#"
restartPolicy: Never
containers:
- name: main
  image: {CURL}
  imagePullPolicy: Never
  command: [sh, -c]
  args: ['cd /var/run/secrets/kubernetes.io/serviceaccount; cat namespace; echo; curl -sS --cacert ca.crt -H "Authorization: Bearer $(cat token)" -H "Content-Type: application/json" -d "{{\"kind\":\"SelfSubjectReview\",\"apiVersion\":\"authentication.k8s.io/v1\"}}" https://kubernetes.default.svc/apis/authentication.k8s.io/v1/selfsubjectreviews; curl -sS -o /dev/null -w "%{{http_code}}" --cacert ca.crt https://kubernetes.default.svc/api/v1/secrets']
"#
        ),
    ))?;
    let log = finished(c, ns, "client")?;
    ensure!(log.starts_with(ns), "{log}");
    ensure!(log.contains(&format!("system:serviceaccount:{ns}:default")), "{log}");
    ensure!(
        log.trim_end().ends_with("403") || log.trim_end().ends_with("401"),
        "secrets are open to anonymous callers: {log}"
    );
    Ok(())
}

fn exits_and_crash_loops(c: &Cluster, ns: &str) -> Result<()> {
    for (name, policy, script) in
        [("fails", "Never", "exit 3"), ("loops", "Always", "echo again; exit 1"), ("ends", "OnFailure", "true")]
    {
        c.apply(&pod(
            ns,
            name,
            &format!(
                "restartPolicy: {policy}\ncontainers:\n- {{name: main, image: {BUSYBOX}, imagePullPolicy: Never, command: [sh, -c, '{script}']}}"
            ),
        ))?;
    }
    eventually("each shows its fate", || {
        let table = c.kubectl(&format!("-n {ns} get pods")).ok()?;
        let row = |name: &str| table.lines().find(|l| l.starts_with(name)).unwrap_or("").to_owned();
        ensure!(row("fails").contains("Error"), "{table}");
        ensure!(row("loops").contains("CrashLoopBackOff"), "{table}");
        ensure!(row("ends").contains("Completed"), "{table}");
        Ok(())
    })?;
    let fails = c.get(&format!("pod fails -n {ns}"))?;
    ensure!(fails["status"]["phase"] == "Failed");
    ensure!(fails["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 3);
    let loops = c.get(&format!("pod loops -n {ns}"))?;
    ensure!(loops["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(1));
    let previous = c.kubectl(&format!("-n {ns} logs loops --previous")).ok()?;
    ensure!(previous.contains("again"), "{previous}");
    eventually("the back-off is told", || {
        let events = c.kubectl(&format!("-n {ns} describe pod loops")).ok()?;
        ensure!(events.contains("Back-off restarting failed container"), "{events}");
        Ok(())
    })
}

fn memory_limits_kill(c: &Cluster, ns: &str) -> Result<()> {
    c.apply(&pod(
        ns,
        "hungry",
        &format!(
            "restartPolicy: Never\ncontainers:\n- {{name: main, image: {BUSYBOX}, imagePullPolicy: Never, command: [sh, -c, 'tail -c 200m /dev/zero'], resources: {{limits: {{memory: 16Mi}}}}}}"
        ),
    ))?;
    eventually("the kernel kills it, and it is told", || {
        let status =
            c.get(&format!("pod hungry -n {ns}"))?["status"]["containerStatuses"][0]["state"]["terminated"].clone();
        ensure!(status["reason"] == "OOMKilled" && status["exitCode"] == 137, "{status}");
        Ok(())
    })
}

fn missing_images_are_told(c: &Cluster, ns: &str) -> Result<()> {
    c.apply(&pod(ns, "far", "containers: [{name: main, image: '127.0.0.1:1/none:1'}]"))?;
    c.apply(&pod(ns, "bad", "containers: [{name: main, image: 'Not A Name'}]")).err();
    eventually("the pod waits with the reason", || {
        let table = c.kubectl(&format!("-n {ns} get pod far --no-headers")).ok()?;
        ensure!(table.contains("ImagePullBackOff"), "{table}");
        Ok(())
    })?;
    let described = c.kubectl(&format!("-n {ns} describe pod far")).ok()?;
    for part in ["Failed to pull image \"127.0.0.1:1/none:1\"", "ErrImagePull", "Back-off pulling image"] {
        ensure!(described.contains(part), "no {part:?} in {described}");
    }
    let program = pod(
        ns,
        "program",
        &format!(
            "containers: [{{name: main, image: '{BUSYBOX}', imagePullPolicy: Never, command: [/no/such/program]}}]"
        ),
    );
    c.apply(&program)?;
    eventually("a program that is not there is told", || {
        let state = c.get(&format!("pod program -n {ns}"))?["status"]["containerStatuses"][0].clone();
        let text = state.to_string();
        ensure!(text.contains("no such file"), "{text}");
        Ok(())
    })
}

fn probes_decide(c: &Cluster, ns: &str) -> Result<()> {
    c.apply(&pod(
        ns,
        "probed",
        &format!(
            r#"
containers:
- name: main
  image: {BUSYBOX}
  imagePullPolicy: Never
  command: [sh, -c, 'touch /tmp/alive; exec httpd -f -p 8080 -h /tmp']
  startupProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
  readinessProbe: {{httpGet: {{path: /ready, port: 8080}}, periodSeconds: 1, failureThreshold: 1}}
  livenessProbe: {{exec: {{command: [cat, /tmp/alive]}}, periodSeconds: 1, failureThreshold: 2}}
"#
        ),
    ))?;
    let exec = |script: &str| c.kubectl_args(&["-n", ns, "exec", "probed", "--", "sh", "-c", script], "");
    let ready = |want: &str| {
        eventually(&format!("Ready is {want}"), || {
            let path = "get pod probed -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
            let now = c.kubectl(&format!("-n {ns} {path}")).ok()?;
            ensure!(now == want, "{now}");
            Ok(())
        })
    };
    ready("False")?;
    eventually("the container runs", || exec("touch /tmp/ready").ok())?;
    ready("True")?;
    exec("rm /tmp/ready").ok()?;
    ready("False")?;
    exec("rm /tmp/alive").ok()?;
    eventually("the liveness probe restarts it", || {
        let count = c
            .kubectl(&format!("-n {ns} get pod probed -o jsonpath={{.status.containerStatuses[0].restartCount}}"))
            .ok()?;
        ensure!(count != "0" && !count.is_empty(), "{count}");
        Ok(())
    })?;
    let described = c.kubectl(&format!("-n {ns} describe pod probed")).ok()?;
    ensure!(described.contains("Liveness probe failed") && described.contains("failed liveness probe"), "{described}");
    Ok(())
}

fn termination_is_graceful(c: &Cluster, ns: &str) -> Result<()> {
    let polite = pod(
        ns,
        "polite",
        &format!(
            r#"
containers:
- name: main
  image: {BUSYBOX}
  imagePullPolicy: Never
  command: [sh, -c, 'trap "echo got TERM; sleep 1; echo bye; exit 0" TERM; while true; do sleep 0.1; done']
  lifecycle: {{preStop: {{exec: {{command: [sh, -c, 'echo hook > /proc/1/fd/1']}}}}}}
"#
        ),
    );
    c.apply(&polite.replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 20"))?;
    c.kubectl(&format!("-n {ns} wait pod/polite --for=condition=Ready --timeout=60s")).ok()?;
    let mut follow = c.kubectl_command();
    follow.args(["-n", ns, "logs", "-f", "polite"]);
    let following = std::thread::spawn(move || causeway_tests::run(&mut follow));
    std::thread::sleep(std::time::Duration::from_secs(1));
    c.kubectl(&format!("-n {ns} delete pod polite")).ok()?;
    let log = following.join().map_err(|_| anyhow::anyhow!("following panicked"))??.out;
    ensure!(log == "hook\ngot TERM\nbye\n", "{log:?}");
    c.kubectl(&format!("-n {ns} get pod polite")).fails()?;
    Ok(())
}

fn config_changes_arrive(c: &Cluster, ns: &str) -> Result<()> {
    c.kubectl(&format!("-n {ns} create configmap live --from-literal=key=before")).ok()?;
    c.apply(&pod(
        ns,
        "reader",
        &format!(
            r#"
containers:
- {{name: main, image: {BUSYBOX}, imagePullPolicy: Never, command: [sleep, '600'], volumeMounts: [{{name: v, mountPath: /v}}]}}
- {{name: late, image: {BUSYBOX}, imagePullPolicy: Never, command: [sleep, '600'], env: [{{name: X, valueFrom: {{configMapKeyRef: {{name: later, key: x}}}}}}]}}
volumes: [{{name: v, configMap: {{name: live}}}}]
"#
        ),
    ))?;
    eventually("the missing ConfigMap is told", || {
        let text = c.get(&format!("pod reader -n {ns}"))?["status"].to_string();
        ensure!(text.contains("CreateContainerConfigError") && text.contains("later"), "{text}");
        Ok(())
    })?;
    c.kubectl(&format!("-n {ns} create configmap later --from-literal=x=1")).ok()?;
    c.kubectl(&format!("-n {ns} wait pod/reader --for=condition=Ready --timeout=60s")).ok()?;
    c.kubectl_args(&["-n", ns, "patch", "configmap", "live", "-p", r#"{"data":{"key":"after"}}"#], "").ok()?;
    eventually("the file changes", || {
        let now = c.kubectl(&format!("-n {ns} exec reader -c main -- cat /v/key")).ok()?;
        ensure!(now == "after", "{now}");
        Ok(())
    })
}

fn users_and_directories(c: &Cluster, ns: &str) -> Result<()> {
    c.apply(&pod(
        ns,
        "user",
        &format!(
            r#"
restartPolicy: Never
hostname: given
securityContext: {{runAsUser: 1000, runAsGroup: 50, fsGroup: 2000}}
containers:
- name: main
  image: {BUSYBOX}
  imagePullPolicy: Never
  workingDir: /work
  command: [sh, -c, 'id -u; id -g; id -G; pwd; hostname; touch /work/mine && echo wrote; touch /root-file 2>/dev/null || echo denied']
  volumeMounts: [{{name: w, mountPath: /work}}]
volumes: [{{name: w, emptyDir: {{}}}}]
"#
        ),
    ))?;
    let log = finished(c, ns, "user")?;
    ensure!(log.starts_with("1000\n50\n") && log.contains("2000"), "{log}");
    ensure!(log.ends_with("/work\ngiven\nwrote\ndenied\n"), "{log}");
    Ok(())
}
