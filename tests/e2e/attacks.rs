//! What a caller with little or no right tries, played from outside: each thing that once went through, by name.

use crate::Test;
use anyhow::{Context, Result, ensure};
use causeway_tests::{Cluster, Output, eventually, run, run_with_input};
use serde_json::{Value, json};
use std::process::Command;
use tempfile::TempDir;

pub fn tests() -> Vec<(&'static str, Test)> {
    vec![
        ("attacks::a_token_gets_no_shell", a_token_gets_no_shell),
        ("attacks::a_token_may_what_its_roles_say", a_token_may_what_its_roles_say),
        ("attacks::nested_envelopes_stop_nobody", nested_envelopes_stop_nobody),
        ("attacks::nobody_gives_away_more_than_they_hold", nobody_gives_away_more_than_they_hold),
        ("attacks::a_put_that_creates_must_be_allowed_to", a_put_that_creates_must_be_allowed_to),
        ("attacks::strangers_make_no_series_of_metrics", strangers_make_no_series_of_metrics),
        ("attacks::patches_that_grow_are_refused", patches_that_grow_are_refused),
        ("attacks::impersonation_is_asked_for_in_full", impersonation_is_asked_for_in_full),
        ("attacks::approvals_go_through_their_door", approvals_go_through_their_door),
        ("attacks::pods_keep_to_their_namespaces_level", pods_keep_to_their_namespaces_level),
        ("attacks::namespaces_keep_to_their_quota", namespaces_keep_to_their_quota),
        ("attacks::owners_must_be_ones_own", owners_must_be_ones_own),
        ("attacks::a_webhook_that_is_away_closes_its_door", a_webhook_that_is_away_closes_its_door),
        ("attacks::answers_say_how_they_are_recorded", answers_say_how_they_are_recorded),
        ("attacks::the_disk_tells_nothing", the_disk_tells_nothing),
    ]
}

/// A service account, and how it speaks to the API.
struct Account {
    dir: TempDir,
    server: String,
    token: String,
}

impl Account {
    /// A new account without any right.
    fn new(c: &Cluster, ns: &str, name: &str) -> Result<Self> {
        c.kubectl(&format!("-n {ns} create serviceaccount {name}")).ok()?;
        let token = c.kubectl(&format!("-n {ns} create token {name}")).ok()?.trim().to_owned();
        let config: Value = serde_json::from_str(&c.kubectl("config view --raw -o json").ok()?)?;
        let cluster = &config["clusters"][0]["cluster"];
        let server = cluster["server"].as_str().context("no server in the kubeconfig")?.to_owned();
        let dir = tempfile::tempdir()?;
        let own = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": cluster }],
            "users": [{ "name": "u", "user": { "token": token } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u", "namespace": ns } }],
        });
        std::fs::write(dir.path().join("config"), own.to_string())?;
        Ok(Self { dir, server, token })
    }

    fn config(&self) -> std::path::PathBuf {
        self.dir.path().join("config")
    }

    fn kubectl(&self, c: &Cluster, args: &str) -> Result<Output> {
        self.kubectl_in(c, args, "")
    }

    fn kubectl_in(&self, c: &Cluster, args: &str, input: &str) -> Result<Output> {
        let mut command = c.kubectl_command();
        command.env("KUBECONFIG", self.config()).args(args.split_whitespace());
        run_with_input(&mut command, &yaml(input))
    }

    /// The code and the body of a raw request with the account's token.
    fn raw(&self, args: &[&str], path: &str) -> Result<(u16, String)> {
        raw(&self.server, Some(&self.token), args, path)
    }
}

/// `kubectl ARGS` of the administrator with a document.
fn yaml_in(c: &Cluster, args: &str, document: &str) -> Output {
    c.kubectl_in(args, &yaml(document))
}

/// A document as kubectl reads it: without the mark, what begins with a brace would have to be JSON.
fn yaml(document: &str) -> String {
    format!("---\n{document}\n")
}

/// The code and the body of a raw request.
fn raw(server: &str, token: Option<&str>, args: &[&str], path: &str) -> Result<(u16, String)> {
    let mut command = Command::new("curl");
    command.args(["-sk", "--max-time", "20", "-w", "\n%{http_code}"]);
    if let Some(token) = token {
        command.args(["-H", &format!("Authorization: Bearer {token}")]);
    }
    let output = run(command.args(args).arg(format!("{server}{path}")))?;
    let (body, code) = output.out.trim_end().rsplit_once('\n').unwrap_or(("", output.out.trim()));
    Ok((code.parse().with_context(|| format!("no code: {} {}", output.out, output.err))?, body.to_owned()))
}

const WEBSOCKET: [&str; 10] = [
    "-H",
    "Connection: Upgrade",
    "-H",
    "Upgrade: websocket",
    "-H",
    "Sec-WebSocket-Version: 13",
    "-H",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "-H",
    "Sec-WebSocket-Protocol: v5.channel.k8s.io",
];

/// S1: a WebSocket begins with a GET, which is no reading all the same.
fn a_token_gets_no_shell(c: &Cluster, ns: &str) -> Result<()> {
    let robot = Account::new(c, ns, "robot")?;
    c.kubectl(&format!("create clusterrolebinding {ns}-view --clusterrole=view --serviceaccount={ns}:robot")).ok()?;
    yaml_in(
        c,
        &format!("-n {ns} create -f -"),
        "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: x}]}}",
    )
    .ok()?;
    for subresource in ["exec", "attach", "portforward", "proxy"] {
        let path = format!("/api/v1/namespaces/{ns}/pods/p/{subresource}?command=id&stdout=true&ports=80");
        for args in [&["--http1.1"][..], &[&["--http1.1"][..], &WEBSOCKET].concat(), &["-X", "POST"]] {
            let (code, body) = robot.raw(args, &path)?;
            ensure!(code == 403, "{subresource} {args:?}: {code} {body}");
        }
    }
    c.kubectl(&format!("delete clusterrolebinding {ns}-view")).ok().map(drop)
}

fn a_token_may_what_its_roles_say(c: &Cluster, ns: &str) -> Result<()> {
    let roles = c.kubectl("get clusterroles -o name").ok()?;
    for role in ["cluster-admin", "admin", "edit", "view", "system:node", "system:kube-scheduler", "system:discovery"] {
        ensure!(roles.lines().any(|l| l.ends_with(&format!("/{role}"))), "no role {role}");
    }
    let edit = c.get("clusterrole edit")?;
    ensure!(edit["rules"].as_array().is_some_and(|r| r.len() > 5), "the role edit is not aggregated: {edit}");
    let robot = Account::new(c, ns, "robot")?;
    for denied in ["get pods", "get secrets -A", "get nodes", "get configmaps -n kube-system"] {
        let said = robot.kubectl(c, denied)?.fails()?;
        ensure!(said.contains(&format!("User \"system:serviceaccount:{ns}:robot\" cannot list")), "{denied}: {said}");
    }
    c.kubectl(&format!("-n {ns} create rolebinding r --clusterrole=edit --serviceaccount={ns}:robot")).ok()?;
    robot.kubectl(c, "create configmap mine --from-literal=a=b")?.ok()?;
    robot.kubectl(c, "get secrets")?.ok()?;
    ensure!(robot.kubectl(c, "get configmaps -n kube-system")?.fails()?.contains("forbidden"));
    ensure!(robot.kubectl(c, "create role x --verb=get --resource=pods")?.fails()?.contains("forbidden"));
    let list = robot.kubectl(c, "auth can-i --list")?.ok()?;
    ensure!(list.contains("deployments.apps") && list.contains("selfsubjectreviews"), "{list}");
    ensure!(robot.kubectl(c, "auth can-i delete pods")?.ok()?.starts_with("yes"));
    ensure!(robot.kubectl(c, "auth can-i delete nodes")?.fails().is_ok());
    // What was added to a default role stays, what was taken away comes back when somebody reconciles.
    let role = format!(
        "{{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {{name: m, namespace: {ns}}}, rules: [{{apiGroups: [''], resources: [pods], verbs: [get]}}]}}"
    );
    let said = yaml_in(c, "auth reconcile -f -", &role).ok()?;
    ensure!(said.contains("reconciled"), "{said}");
    c.kubectl(&format!("-n {ns} delete rolebinding r")).ok()?;
    ensure!(robot.kubectl(c, "get configmaps")?.fails()?.contains("forbidden"), "a binding that is gone gives nothing");
    Ok(())
}

/// A varint.
fn varint(mut n: usize, out: &mut Vec<u8>) {
    while n > 0x7f {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    varint(bytes.len(), &mut out);
    out.extend_from_slice(bytes);
    out
}

/// S2: 53 KB of envelopes in each other took the whole process.
fn nested_envelopes_stop_nobody(c: &Cluster, ns: &str) -> Result<()> {
    let robot = Account::new(c, ns, "robot")?;
    let meta = field(1, &[field(1, b"authorization.k8s.io/v1"), field(2, b"SelfSubjectAccessReview")].concat());
    let mut raw = b"{}".to_vec();
    while raw.len() < 53_000 {
        // ObjectMeta.managedFields[].fieldsV1.Raw
        let entry = field(17, &field(7, &field(1, &raw)));
        let object = field(1, &entry);
        raw = [b"k8s\0".to_vec(), meta.clone(), field(2, &object)].concat();
    }
    let file = robot.dir.path().join("body");
    std::fs::write(&file, &raw)?;
    let body = format!("@{}", file.display());
    let args =
        ["-X", "POST", "-H", "Content-Type: application/vnd.kubernetes.protobuf", "--data-binary", body.as_str()];
    let (code, said) = robot.raw(&args, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")?;
    ensure!(code == 400, "{code} {said}");
    c.kubectl("get --raw /readyz").ok().map(drop)
}

fn nobody_gives_away_more_than_they_hold(c: &Cluster, ns: &str) -> Result<()> {
    let robot = Account::new(c, ns, "robot")?;
    let rules = format!(
        "{{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {{name: writer, namespace: {ns}}}, rules: [\
         {{apiGroups: [rbac.authorization.k8s.io], resources: [roles, rolebindings], verbs: [get, create, patch, update]}}, \
         {{apiGroups: [''], resources: [pods], verbs: [get]}}]}}"
    );
    yaml_in(c, "create -f -", &rules).ok()?;
    c.kubectl(&format!("-n {ns} create rolebinding w --role=writer --serviceaccount={ns}:robot")).ok()?;
    robot.kubectl(c, "create role small --verb=get --resource=pods")?.ok()?;
    let said = robot.kubectl(c, "create role big --verb=get --resource=secrets")?.fails()?;
    ensure!(said.contains("is attempting to grant RBAC permissions not currently held"), "{said}");
    let said =
        robot.kubectl(c, &format!("create rolebinding big --clusterrole=cluster-admin --serviceaccount={ns}:robot"))?;
    ensure!(said.fails()?.contains("not currently held"));
    let patch = r#"[{"op":"add","path":"/rules/-","value":{"apiGroups":[""],"resources":["secrets"],"verbs":["*"]}}]"#;
    let mut command = c.kubectl_command();
    command.env("KUBECONFIG", robot.config()).args(["patch", "role", "writer", "--type=json", "-p", patch]);
    ensure!(run(&mut command)?.fails()?.contains("not currently held"));
    // With the verb it may.
    c.kubectl(&format!("create clusterrole {ns}-bind --verb=bind --resource=clusterroles --resource-name=view"))
        .ok()?;
    c.kubectl(&format!("-n {ns} create rolebinding b --clusterrole={ns}-bind --serviceaccount={ns}:robot")).ok()?;
    robot.kubectl(c, &format!("create rolebinding v --clusterrole=view --serviceaccount={ns}:robot"))?.ok()?;
    c.kubectl(&format!("delete clusterrole {ns}-bind")).ok().map(drop)
}

/// S9: who may change a lease may not thereby make one.
fn a_put_that_creates_must_be_allowed_to(c: &Cluster, ns: &str) -> Result<()> {
    let robot = Account::new(c, ns, "robot")?;
    c.kubectl(&format!(
        "-n {ns} create role u --verb=get,update,patch --resource=leases.coordination.k8s.io,configmaps"
    ))
    .ok()?;
    c.kubectl(&format!("-n {ns} create rolebinding u --role=u --serviceaccount={ns}:robot")).ok()?;
    let lease =
        json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "l" } }).to_string();
    let args = ["-X", "PUT", "-H", "Content-Type: application/json", "-d", &lease];
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{ns}/leases/l");
    let (code, body) = robot.raw(&args, &path)?;
    ensure!(code == 403 && body.contains("cannot create resource"), "{code} {body}");
    let map = "{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {a: b}}";
    let said = robot.kubectl_in(c, "apply --server-side -f -", map)?.fails()?;
    ensure!(said.contains("cannot create resource \"configmaps\""), "{said}");
    yaml_in(c, &format!("-n {ns} create -f -"), map).ok()?;
    robot.kubectl_in(c, "apply --server-side --force-conflicts -f -", map)?.ok().map(drop)
}

/// S4: names that lead nowhere are counted together, and 405 is for those who may.
fn strangers_make_no_series_of_metrics(c: &Cluster, ns: &str) -> Result<()> {
    let robot = Account::new(c, ns, "robot")?;
    let series = || -> Result<usize> {
        let metrics = c.kubectl("get --raw /metrics").ok()?;
        Ok(metrics.lines().filter(|l| l.starts_with("apiserver_request_total")).count())
    };
    series()?;
    let paths: Vec<String> =
        (0..60).map(|n| format!("{}/apis/made-{n}.up/v{n}/things{n}/a/b{n}", robot.server)).collect();
    for method in ["GET", "PUT", "BREW"] {
        let mut command = Command::new("curl");
        command.args(["-sk", "-X", method, "-w", "%{stderr}%{http_code}\n"]);
        let codes = run(command.args(&paths))?.err;
        ensure!(codes.lines().all(|code| code == "403"), "{method}: {codes}");
    }
    let found = c.kubectl("get --raw /metrics").ok()?;
    ensure!(!found.contains("made-1.up"), "a stranger's words are labels");
    let (before, after) = (series()?, series()?);
    ensure!(after <= before + 1, "{before} series became {after}");
    let (code, body) = raw(&robot.server, None, &["-X", "PUT"], "/api/v1/pods")?;
    ensure!(code == 403, "405 is for those who may: {code} {body}");
    Ok(())
}

/// S6, S10: a patch whose copies double an object each time.
fn patches_that_grow_are_refused(c: &Cluster, ns: &str) -> Result<()> {
    c.kubectl(&format!("-n {ns} create configmap m --from-literal=a={}", "x".repeat(1000))).ok()?;
    let mut patch = vec![json!({ "op": "add", "path": "/metadata/annotations", "value": { "a0": "x".repeat(1000) } })];
    for n in 0..40 {
        let (from, path) = ("/metadata".to_owned(), format!("/data/{n}"));
        patch.push(json!({ "op": "copy", "from": from, "path": path }));
    }
    let patch = Value::from(patch).to_string();
    let said = c.kubectl_args(&["-n", ns, "patch", "configmap", "m", "--type=json", "-p", &patch], "").fails()?;
    ensure!(!said.contains("connection") && !said.contains("EOF"), "{said}");
    let big = json!({ "data": { "b": "y".repeat(3_200_000) } }).to_string();
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), big)?;
    let patch = format!("--patch-file={}", file.path().display());
    c.kubectl_args(&["-n", ns, "patch", "configmap", "m", "--type=merge", &patch], "").fails()?;
    c.kubectl("get --raw /readyz").ok().map(drop)
}

/// S14: uid, groups and extra are asked for as well, and service accounts in their namespace.
fn impersonation_is_asked_for_in_full(c: &Cluster, ns: &str) -> Result<()> {
    let robot = Account::new(c, ns, "robot")?;
    c.kubectl(&format!("create clusterrole {ns}-jane --verb=impersonate --resource=users --resource-name=jane"))
        .ok()?;
    c.kubectl(&format!("create clusterrolebinding {ns}-jane --clusterrole={ns}-jane --serviceaccount={ns}:robot"))
        .ok()?;
    let who = robot.kubectl(c, "auth whoami --as=jane -o json")?.ok()?;
    ensure!(who.contains("\"jane\""), "{who}");
    for (flags, word) in [
        ("--as=jane --as-group=system:masters", "groups"),
        ("--as=jane --as-uid=1", "uids"),
        ("--as=joe", "users"),
        ("--as=system:serviceaccount:kube-system:default", "serviceaccounts"),
    ] {
        let said = robot.kubectl(c, &format!("get pods {flags}"))?.fails()?;
        ensure!(said.contains("cannot impersonate") && said.contains(word), "{flags}: {said}");
    }
    let extra = ["-H", "Impersonate-User: jane", "-H", "Impersonate-Extra-Scopes: all"];
    let (code, body) = robot.raw(&extra, "/api")?;
    ensure!(code == 403 && body.contains("userextras"), "{code} {body}");
    c.kubectl(&format!("delete clusterrolebinding,clusterrole {ns}-jane")).ok().map(drop)
}

/// S9: a certificate request is approved by those who may approve for its signer, through `approval` alone.
fn approvals_go_through_their_door(c: &Cluster, ns: &str) -> Result<()> {
    let robot = Account::new(c, ns, "robot")?;
    let dir = robot.dir.path();
    let key = dir.join("key");
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=jane/O=devs", "-keyout"]).arg(&key);
    let pem = run(&mut openssl)?.ok()?;
    let request = base64(&pem);
    let object = format!(
        "{{apiVersion: certificates.k8s.io/v1, kind: CertificateSigningRequest, metadata: {{name: {ns}}}, spec: {{signerName: \
         kubernetes.io/kube-apiserver-client, usages: [client auth], request: {request}}}}}"
    );
    yaml_in(c, "create -f -", &object).ok()?;
    c.kubectl(&format!(
        "create clusterrole {ns} --verb=get,update,patch --resource=certificatesigningrequests/status,certificatesigningrequests/approval,certificatesigningrequests"
    ))
    .ok()?;
    c.kubectl(&format!("create clusterrolebinding {ns} --clusterrole={ns} --serviceaccount={ns}:robot")).ok()?;
    let said = robot.kubectl(c, &format!("certificate approve {ns}"))?.fails()?;
    ensure!(said.contains("user not permitted to approve requests with signerName"), "{said}");
    let patch = r#"{"status":{"conditions":[{"type":"Approved","status":"True","reason":"x","message":"x"}]}}"#;
    let args = ["-X", "PATCH", "-H", "Content-Type: application/merge-patch+json", "-d", patch];
    let path = format!("/apis/certificates.k8s.io/v1/certificatesigningrequests/{ns}/status");
    let (code, body) = robot.raw(&args, &path)?;
    ensure!(code == 403 || code == 422, "{code} {body}");
    let now = c.get(&format!("csr {ns}"))?;
    ensure!(now["status"].get("conditions").is_none(), "{now}");
    c.kubectl(&format!("delete csr,clusterrole,clusterrolebinding {ns}")).ok().map(drop)
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// C13: Pod Security Standards.
fn pods_keep_to_their_namespaces_level(c: &Cluster, ns: &str) -> Result<()> {
    let pod = |spec: &str| format!("{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, spec: {spec}}}");
    let privileged = pod("{containers: [{name: a, image: x, securityContext: {privileged: true}}], hostNetwork: true}");
    c.kubectl(&format!(
        "label namespace {ns} pod-security.kubernetes.io/enforce=baseline pod-security.kubernetes.io/warn=restricted"
    ))
    .ok()?;
    let said = yaml_in(c, &format!("-n {ns} create -f -"), &privileged).fails()?;
    ensure!(said.contains("violates PodSecurity \"baseline:latest\"") && said.contains("privileged"), "{said}");
    let plain = yaml_in(c, &format!("-n {ns} create -f -"), &pod("{containers: [{name: a, image: x}]}"));
    let warned = plain.err.clone();
    plain.ok()?;
    ensure!(warned.contains("Warning: would violate PodSecurity \"restricted:latest\""), "{warned}");
    let wrong = c.kubectl(&format!("label namespace {ns} pod-security.kubernetes.io/enforce=everything --overwrite"));
    ensure!(wrong.fails()?.contains("must be one of"));
    let stricter =
        c.kubectl(&format!("label namespace {ns} pod-security.kubernetes.io/enforce=restricted --overwrite"));
    let warned = stricter.err.clone();
    stricter.ok()?;
    ensure!(warned.contains("existing pods in namespace"), "{warned}");
    Ok(())
}

/// C13: ResourceQuota and LimitRange.
fn namespaces_keep_to_their_quota(c: &Cluster, ns: &str) -> Result<()> {
    c.kubectl(&format!("-n {ns} create quota q --hard=pods=1,limits.memory=100Mi,configmaps=3")).ok()?;
    eventually("the quota is counted", || {
        let quota = c.get(&format!("-n {ns} quota q"))?;
        ensure!(quota["status"]["used"]["pods"] == "0" && quota["status"]["used"]["configmaps"] == "1", "{quota}");
        Ok(())
    })?;
    let pod = |name: &str, memory: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{schedulerName: nobody, containers: [{{name: a, \
             image: x, resources: {{limits: {{{memory}}}}}}}]}}}}"
        )
    };
    let create = |pod: &str| yaml_in(c, &format!("-n {ns} create -f -"), pod);
    ensure!(create(&pod("a", "")).fails()?.contains("failed quota: q: must specify limits.memory for: a"));
    ensure!(create(&pod("a", "memory: 200Mi")).fails()?.contains("exceeded quota: q, requested: limits.memory=200Mi"));
    let range = "{apiVersion: v1, kind: LimitRange, metadata: {name: r}, spec: {limits: [{type: Container, default: \
                 {memory: 64Mi}, max: {memory: 80Mi}}]}}";
    create(range).ok()?;
    ensure!(create(&pod("a", "memory: 90Mi")).fails()?.contains("maximum memory usage per Container is 80Mi"));
    create(&pod("a", "")).ok()?;
    let made = c.get(&format!("-n {ns} pod a"))?;
    ensure!(made["spec"]["containers"][0]["resources"]["limits"]["memory"] == "64Mi", "{made}");
    ensure!(create(&pod("b", "memory: 1Mi")).fails()?.contains("exceeded quota: q, requested: pods=1, used: pods=1"));
    c.kubectl(&format!("-n {ns} delete pod a --force --grace-period=0")).ok()?;
    eventually("what is gone is not counted", || create(&pod("b", "memory: 1Mi")).ok()).map(drop)
}

/// Who makes an object go with another must be allowed to delete it, who holds an owner back to change it.
fn owners_must_be_ones_own(c: &Cluster, ns: &str) -> Result<()> {
    let robot = Account::new(c, ns, "robot")?;
    c.kubectl(&format!("-n {ns} create role u --verb=get,create,update,patch --resource=configmaps")).ok()?;
    c.kubectl(&format!("-n {ns} create rolebinding u --role=u --serviceaccount={ns}:robot")).ok()?;
    c.kubectl(&format!("-n {ns} create secret generic owner")).ok()?;
    let uid = c.get(&format!("-n {ns} secret owner"))?["metadata"]["uid"].as_str().unwrap_or("").to_owned();
    let owned = |block: bool| {
        json!({ "metadata": { "ownerReferences": [{ "apiVersion": "v1", "kind": "Secret", "name": "owner", "uid": uid,
            "blockOwnerDeletion": block }] } })
        .to_string()
    };
    c.kubectl(&format!("-n {ns} create configmap m")).ok()?;
    let path = format!("/api/v1/namespaces/{ns}/configmaps/m");
    for (block, word) in [(false, "cannot set an ownerRef on a resource you can't delete"), (true, "can't delete")] {
        let patch = owned(block);
        let args = ["-X", "PATCH", "-H", "Content-Type: application/merge-patch+json", "-d", &patch];
        let (code, body) = robot.raw(&args, &path)?;
        ensure!(code == 403 && body.contains(word), "{code} {body}");
    }
    Ok(())
}

/// Admission that cannot be asked is a no.
fn a_webhook_that_is_away_closes_its_door(c: &Cluster, ns: &str) -> Result<()> {
    let hook = format!(
        "{{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {{name: {ns}}}, webhooks: \
         [{{name: away.example.com, sideEffects: None, admissionReviewVersions: [v1], timeoutSeconds: 2, namespaceSelector: \
         {{matchLabels: {{kubernetes.io/metadata.name: {ns}}}}}, clientConfig: {{service: {{name: none, namespace: {ns}, path: \
         /}}, caBundle: ''}}, rules: [{{apiGroups: [''], apiVersions: [v1], resources: [configmaps], operations: \
         [CREATE]}}]}}]}}"
    );
    yaml_in(c, "create -f -", &hook).ok()?;
    eventually("the webhook is in force", || {
        let said = c.kubectl(&format!("-n {ns} create configmap m --dry-run=server")).fails()?;
        ensure!(said.contains("failed calling webhook \"away.example.com\""), "{said}");
        Ok(())
    })?;
    c.kubectl(&format!("delete validatingwebhookconfiguration {ns}")).ok()?;
    let policy = format!(
        "{{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicy, metadata: {{name: {ns}}}, spec: \
         {{matchConstraints: {{resourceRules: [{{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: \
         [configmaps]}}]}}, validations: [{{expression: 'object.metadata.name.startsWith(\"good\")', message: names begin \
         with good}}]}}}}\n---\n{{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicyBinding, metadata: \
         {{name: {ns}}}, spec: {{policyName: {ns}, validationActions: [Deny], matchResources: {{namespaceSelector: {{matchLabels: \
         {{kubernetes.io/metadata.name: {ns}}}}}}}}}}}"
    );
    yaml_in(c, "create -f -", &policy).ok()?;
    eventually("the policy is in force", || {
        let said = c.kubectl(&format!("-n {ns} create configmap bad --dry-run=server")).fails()?;
        ensure!(said.contains("names begin with good"), "{said}");
        Ok(())
    })?;
    c.kubectl(&format!("-n {ns} create configmap good")).ok()?;
    c.kubectl(&format!("delete validatingadmissionpolicy,validatingadmissionpolicybinding {ns}")).ok().map(drop)
}

/// Each answer says under which id it is recorded, and how it was classified.
fn answers_say_how_they_are_recorded(c: &Cluster, ns: &str) -> Result<()> {
    let robot = Account::new(c, ns, "robot")?;
    let (code, said) = robot.raw(&["-i", "-H", "Audit-ID: 0123-own"], "/version")?;
    let said = said.to_ascii_lowercase();
    ensure!(code == 200 && said.contains("audit-id: 0123-own"), "{said}");
    ensure!(said.contains("x-kubernetes-pf-flowschema-uid"), "{said}");
    Ok(())
}

/// S7: Secrets are no one's to read on the disk, and not in clear for who may read it.
fn the_disk_tells_nothing(c: &Cluster, ns: &str) -> Result<()> {
    let secret = format!("{ns}-is-secret-to-the-disk");
    c.kubectl(&format!("-n {ns} create secret generic s --from-literal=k={secret}")).ok()?;
    c.kubectl(&format!("-n {ns} create configmap m --from-literal=k={ns}-is-plain")).ok()?;
    let search = |words: &str| {
        let mut command = Command::new("grep");
        run(command.args(["-rlaF", words]).arg(c.dir.join("store")))
    };
    eventually("what is no secret is found", || search(&format!("{ns}-is-plain"))?.ok())?;
    for words in [secret.clone(), base64(&secret)] {
        let found = search(&words)?;
        ensure!(found.code == 1, "in clear in {}", found.out);
    }
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "ls"]).arg(c.dir.join("store"));
    ensure!(run(&mut nobody)?.fails()?.contains("ermission denied"), "anybody reads the store");
    Ok(())
}
