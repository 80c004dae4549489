//! From a container of a pod, its image and its environment to the runtime's [`ContainerSpec`]. Pure.

use crate::env::expand;
use crate::{names, resources};
use causeway_runtime::{ContainerSpec, ImageInfo, Mount};
use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SecurityContext};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What the pod side contributes.
#[derive(Debug, Clone)]
pub struct Place {
    /// All mounts, in order.
    pub mounts: Vec<Mount>,
    /// Where the pod's network is.
    pub network_namespace: Option<PathBuf>,
    /// Host name inside.
    pub hostname: String,
    /// The pod's cgroup.
    pub pod_cgroup: String,
    /// The container's log file.
    pub log_path: PathBuf,
}

/// Puts it together; the error's text is that of `CreateContainerConfigError`.
pub fn spec(
    pod: &Pod,
    c: &Container,
    attempt: u32,
    image: &ImageInfo,
    image_name: &str,
    vars: &BTreeMap<String, String>,
    place: Place,
) -> Result<ContainerSpec, String> {
    let uid = pod.metadata.uid.as_deref().unwrap_or("");
    let id = names::container_id(uid, &c.name, attempt);
    let pod_security = pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let security = c.security_context.clone().unwrap_or_default();
    let user = user(&pod_security, &security, image);
    refuse_root(pod, c, &pod_security, &security, &user)?;
    let args = args(c, image, vars);
    if args.is_empty() {
        return Err("no command specified: neither the image nor the container names one".to_owned());
    }
    let capabilities = security.capabilities.clone().unwrap_or_default();
    let plain = |list: Option<Vec<String>>| -> Vec<String> {
        list.into_iter().flatten().map(|c| c.trim_start_matches("CAP_").to_owned()).collect()
    };
    let groups = pod_security.supplemental_groups.iter().flatten().chain(&pod_security.fs_group);
    let privileged = security.privileged == Some(true);
    let host_network = pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true));
    let mut sysctls: BTreeMap<String, String> =
        pod_security.sysctls.iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect();
    if !host_network {
        // A pod may listen on any port of its own address without being root, as with other runtimes.
        sysctls.entry("net.ipv4.ip_unprivileged_port_start".to_owned()).or_insert_with(|| "0".to_owned());
    }
    let image_id = image.repo_digests.first().unwrap_or(&image.id);
    Ok(ContainerSpec {
        labels: names::labels(pod, c, attempt, image_id),
        image: image_name.to_owned(),
        args,
        env: environment(image, vars),
        working_dir: c.working_dir.clone().filter(|d| !d.is_empty()).unwrap_or_else(|| image.working_dir.clone()),
        user,
        extra_groups: groups.filter_map(|g| u32::try_from(*g).ok()).collect(),
        mounts: place.mounts,
        network_namespace: place.network_namespace,
        hostname: place.hostname,
        cgroup_path: format!("{}/{id}", place.pod_cgroup),
        resources: resources::cgroup_limits(c),
        privileged,
        read_only_rootfs: security.read_only_root_filesystem == Some(true),
        add_capabilities: plain(capabilities.add),
        drop_capabilities: plain(capabilities.drop),
        no_new_privileges: security.allow_privilege_escalation == Some(false) && !privileged,
        sysctls,
        tty: c.tty == Some(true),
        stdin: c.stdin == Some(true),
        stdin_once: c.stdin == Some(true) && c.stdin_once == Some(true),
        log_path: place.log_path,
        stop_signal: c.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()).or_else(|| image.stop_signal.clone()),
        id,
    })
}

/// `command` replaces the image's entrypoint and its arguments; `args` alone replaces only the arguments.
fn args(c: &Container, image: &ImageInfo, vars: &BTreeMap<String, String>) -> Vec<String> {
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|t| expand(t, |n| vars.get(n).cloned())).collect()
    };
    let (command, args) = (expanded(&c.command), expanded(&c.args));
    match (command.is_empty(), args.is_empty()) {
        (true, true) => image.entrypoint.iter().chain(&image.cmd).cloned().collect(),
        (true, false) => image.entrypoint.iter().cloned().chain(args).collect(),
        (false, _) => command.into_iter().chain(args).collect(),
    }
}

/// The image's variables, overridden by the container's, and `HOSTNAME`-like ones left to the runtime.
fn environment(image: &ImageInfo, vars: &BTreeMap<String, String>) -> Vec<String> {
    let name = |e: &str| e.split_once('=').map_or(e, |(n, _)| n).to_owned();
    let kept = image.env.iter().filter(|e| !vars.contains_key(&name(e))).cloned();
    let mut all: Vec<String> = kept.chain(vars.iter().map(|(k, v)| format!("{k}={v}"))).collect();
    if !all.iter().any(|e| e.starts_with("PATH=")) {
        all.insert(0, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    }
    all
}

fn user(pod: &PodSecurityContext, own: &SecurityContext, image: &ImageInfo) -> String {
    let uid = own.run_as_user.or(pod.run_as_user);
    let gid = own.run_as_group.or(pod.run_as_group);
    match (uid, gid) {
        (Some(uid), Some(gid)) => format!("{uid}:{gid}"),
        (Some(uid), None) => uid.to_string(),
        (None, Some(gid)) => {
            let name = image.user.split(':').next().filter(|u| !u.is_empty()).unwrap_or("0");
            format!("{name}:{gid}")
        }
        (None, None) => image.user.clone(),
    }
}

fn refuse_root(
    pod: &Pod,
    c: &Container,
    pod_security: &PodSecurityContext,
    own: &SecurityContext,
    user: &str,
) -> Result<(), String> {
    if own.run_as_non_root.or(pod_security.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let who = user.split(':').next().unwrap_or("");
    let where_ = format!("(pod: \"{}\", container: {})", names::format_pod(pod), c.name);
    match who.parse::<u64>() {
        Ok(0) if own.run_as_user.or(pod_security.run_as_user).is_some() => {
            Err(format!("container's runAsUser breaks non-root policy {where_}"))
        }
        Ok(0) => Err(format!("container has runAsNonRoot and image will run as root {where_}")),
        Ok(_) => Ok(()),
        Err(_) if who.is_empty() || who == "root" => {
            Err(format!("container has runAsNonRoot and image will run as root {where_}"))
        }
        Err(_) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({who}), cannot verify user is non-root {where_}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn build(container: serde_json::Value, image: &ImageInfo) -> Result<ContainerSpec, String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [container]}}))
        .unwrap();
        let place = Place {
            mounts: Vec::new(),
            network_namespace: None,
            hostname: "p".to_owned(),
            pod_cgroup: "/cw/podu".to_owned(),
            log_path: "/l".into(),
        };
        let vars = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        spec(&pod, &pod.spec.as_ref().unwrap().containers[0].clone(), 0, image, "img", &vars, place)
    }

    fn image() -> ImageInfo {
        ImageInfo {
            entrypoint: vec!["/e".to_owned()],
            cmd: vec!["c".to_owned()],
            env: vec!["A=0".to_owned(), "B=2".to_owned()],
            ..ImageInfo::default()
        }
    }

    #[test]
    fn command_and_environment_are_merged_with_the_image() {
        let s = build(json!({"name": "c"}), &image()).unwrap();
        assert_eq!(s.args, ["/e", "c"]);
        assert!(s.env.contains(&"A=1".to_owned()) && s.env.contains(&"B=2".to_owned()) && s.env.len() == 3);
        assert_eq!(build(json!({"name": "c", "args": ["$(A)"]}), &image()).unwrap().args, ["/e", "1"]);
        assert_eq!(build(json!({"name": "c", "command": ["/x"]}), &image()).unwrap().args, ["/x"]);
        assert!(build(json!({"name": "c"}), &ImageInfo::default()).is_err());
        let once = build(json!({"name": "c", "stdin": true, "stdinOnce": true}), &image()).unwrap();
        assert!(
            once.stdin && once.stdin_once && !build(json!({"name": "c", "stdin": true}), &image()).unwrap().stdin_once
        );
    }

    #[test]
    fn non_root_is_held() {
        let wants = |extra: serde_json::Value| {
            let mut sc = json!({"runAsNonRoot": true});
            sc.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            build(json!({"name": "c", "securityContext": sc}), &image())
        };
        assert!(wants(json!({})).unwrap_err().contains("image will run as root"));
        assert!(wants(json!({"runAsUser": 0})).unwrap_err().contains("breaks non-root policy"));
        assert_eq!(wants(json!({"runAsUser": 7, "runAsGroup": 8})).unwrap().user, "7:8");
    }
}
