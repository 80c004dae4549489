//! From a [`ContainerSpec`] to the OCI runtime specification. Pure: what the machine can do is passed in as [`Machine`].
//! There is no seccomp profile, as in Kubernetes without `seccompProfile` (Unconfined).

use super::users::Identity;
use crate::types::{ContainerSpec, Mount, MountPropagation};
use oci_spec::runtime::{
    Capabilities, Capability, LinuxDevice, Process, Spec, get_default_maskedpaths, get_default_readonly_paths,
};
use serde_json::{Value, json};
use std::path::PathBuf;

/// In the order of their numbers in the kernel.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container gets unless told otherwise, as with containerd's CRI.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// What the machine offers.
pub(crate) struct Machine {
    pub cgroup_v2: bool,
    /// Bits of the capabilities that we may give away.
    pub capabilities: u64,
    /// For privileged containers.
    pub devices: Vec<LinuxDevice>,
    /// The network of containers without one of their own.
    pub node_network: Option<PathBuf>,
}

/// Builds the specification; `Err` holds what is wrong with the wish.
pub(crate) fn build(spec: &ContainerSpec, who: &Identity, machine: &Machine) -> Result<Spec, String> {
    if spec.args.is_empty() {
        return Err("no command specified".into());
    }
    let value = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": spec.read_only_rootfs},
        "hostname": spec.hostname,
        "process": process(spec, who, machine)?,
        "mounts": mounts(spec),
        "linux": linux(spec, machine),
    });
    serde_json::from_value(value).map_err(|error| format!("the OCI specification does not hold together: {error}"))
}

/// The process of an exec: the container's own with another command.
pub(crate) fn exec_process(container: &Process, command: &[String], tty: bool) -> Process {
    let mut process = container.clone();
    process.set_args(Some(command.to_vec()));
    process.set_terminal(Some(tty));
    let mut env = process.env().clone().unwrap_or_default();
    if tty && !env.iter().any(|e| e.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    process.set_env(Some(env));
    process
}

fn process(spec: &ContainerSpec, who: &Identity, machine: &Machine) -> Result<Value, String> {
    let mut env = spec.env.clone();
    let has = |env: &[String], key: &str| env.iter().any(|e| e.starts_with(key));
    if !has(&env, "PATH=") {
        env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    }
    if spec.tty && !has(&env, "TERM=") {
        env.push("TERM=xterm".into());
    }
    if !has(&env, "HOSTNAME=") && !spec.hostname.is_empty() {
        env.push(format!("HOSTNAME={}", spec.hostname));
    }
    let mut groups = vec![who.gid];
    groups.extend(who.groups.iter().chain(&spec.extra_groups));
    groups.sort_unstable();
    groups.dedup();
    let capabilities = capabilities(spec, machine.capabilities)?;
    let cwd = if spec.working_dir.is_empty() { "/" } else { &spec.working_dir };
    Ok(json!({
        "terminal": spec.tty,
        "user": {"uid": who.uid, "gid": who.gid, "additionalGids": groups},
        "args": spec.args,
        "env": env,
        "cwd": cwd,
        "noNewPrivileges": spec.no_new_privileges && !spec.privileged,
        // Nothing inheritable or ambient: CVE-2022-24769.
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
    }))
}

/// Default, plus added, minus dropped; never what we do not have, as the kernel would refuse the whole set.
fn capabilities(spec: &ContainerSpec, available: u64) -> Result<Capabilities, String> {
    let bare = |name: &str| {
        let name = name.to_uppercase();
        name.strip_prefix("CAP_").unwrap_or(&name).to_string()
    };
    let added: Vec<String> = spec.add_capabilities.iter().map(|c| bare(c)).collect();
    let dropped: Vec<String> = spec.drop_capabilities.iter().map(|c| bare(c)).collect();
    if let Some(unknown) = added.iter().chain(&dropped).find(|c| *c != "ALL" && !CAPABILITIES.contains(&c.as_str())) {
        return Err(format!("unknown capability {unknown:?}"));
    }
    let all = spec.privileged || added.iter().any(|c| c == "ALL");
    let none = !spec.privileged && dropped.iter().any(|c| c == "ALL");
    let wanted = |name: &str| {
        let asked = added.iter().any(|c| c == name);
        let base = all || (!none && DEFAULT.contains(&name));
        asked || (base && (spec.privileged || !dropped.iter().any(|c| c == name)))
    };
    let chosen = CAPABILITIES.iter().enumerate().filter(|(bit, name)| available >> bit & 1 == 1 && wanted(name));
    chosen
        .map(|(_, name)| {
            serde_json::from_value::<Capability>(json!(format!("CAP_{name}"))).map_err(|error| error.to_string())
        })
        .collect()
}

fn mounts(spec: &ContainerSpec) -> Vec<Value> {
    let sys = if spec.privileged { "rw" } else { "ro" };
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let mut defaults = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", sys]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", sys]),
    ];
    defaults.retain(|m| !spec.mounts.iter().any(|own| own.destination.to_str() == m["destination"].as_str()));
    // Parents before what is mounted into them; otherwise the order of the pod.
    let mut own: Vec<&Mount> = spec.mounts.iter().collect();
    own.sort_by_key(|m| m.destination.components().count());
    defaults.extend(own.into_iter().map(bind));
    defaults
}

fn bind(mount: &Mount) -> Value {
    let propagation = match mount.propagation {
        MountPropagation::None => "rprivate",
        MountPropagation::HostToContainer => "rslave",
        MountPropagation::Bidirectional => "rshared",
    };
    let access = if mount.read_only { "ro" } else { "rw" };
    json!({
        "destination": mount.destination, "type": "bind", "source": mount.source,
        "options": ["rbind", propagation, access],
    })
}

fn linux(spec: &ContainerSpec, machine: &Machine) -> Value {
    let mut namespaces =
        vec![json!({"type": "pid"}), json!({"type": "ipc"}), json!({"type": "uts"}), json!({"type": "mount"})];
    if let Some(path) = spec.network_namespace.as_ref().or(machine.node_network.as_ref()) {
        namespaces.push(json!({"type": "network", "path": path}));
    }
    if machine.cgroup_v2 {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let limits = &spec.resources;
    let devices = if spec.privileged {
        json!([{"allow": true, "access": "rwm"}])
    } else {
        json!([{"allow": false, "access": "rwm"}])
    };
    let mut resources = json!({"devices": devices});
    if let Some(limit) = limits.memory_bytes {
        resources["memory"] = json!({"limit": limit});
    }
    let mut cpu = serde_json::Map::new();
    if let Some(shares) = limits.cpu_shares {
        cpu.insert("shares".into(), json!(shares));
    }
    if let Some(quota) = limits.cpu_quota {
        cpu.insert("quota".into(), json!(quota));
        cpu.insert("period".into(), json!(100_000));
    }
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if let Some(limit) = limits.pids {
        resources["pids"] = json!({"limit": limit});
    }
    let propagation = spec.mounts.iter().map(|m| m.propagation).fold("", |so_far, p| match p {
        MountPropagation::Bidirectional => "rshared",
        MountPropagation::HostToContainer if so_far.is_empty() => "rslave",
        _ => so_far,
    });
    let mut linux = json!({"namespaces": namespaces, "resources": resources, "sysctl": spec.sysctls});
    if !spec.cgroup_path.is_empty() {
        linux["cgroupsPath"] = json!(spec.cgroup_path);
    }
    if !propagation.is_empty() {
        linux["rootfsPropagation"] = json!(propagation);
    }
    if spec.privileged {
        linux["devices"] = json!(machine.devices);
    } else {
        linux["maskedPaths"] = json!(get_default_maskedpaths());
        linux["readonlyPaths"] = json!(get_default_readonly_paths());
    }
    linux
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine { cgroup_v2: false, capabilities: u64::MAX, devices: Vec::new(), node_network: None }
    }

    fn wish() -> ContainerSpec {
        ContainerSpec { id: "c".into(), args: vec!["/bin/true".into()], ..Default::default() }
    }

    fn names(spec: &ContainerSpec, available: u64) -> Vec<String> {
        let mut names: Vec<String> = capabilities(spec, available).unwrap().iter().map(|c| c.to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn every_capability_name_is_known_to_the_specification() {
        let all = ContainerSpec { privileged: true, ..wish() };
        assert_eq!(names(&all, u64::MAX).len(), 41);
        assert_eq!(names(&all, 0).len(), 0);
        assert_eq!(names(&wish(), u64::MAX).len(), DEFAULT.len());
    }

    #[test]
    fn drop_all_and_add_one() {
        let one = ContainerSpec {
            drop_capabilities: vec!["ALL".into()],
            add_capabilities: vec!["CAP_NET_BIND_SERVICE".into()],
            ..wish()
        };
        assert_eq!(names(&one, u64::MAX).len(), 1);
        let wrong = ContainerSpec { add_capabilities: vec!["FLY".into()], ..wish() };
        assert!(capabilities(&wrong, u64::MAX).is_err());
    }

    #[test]
    fn a_volume_takes_the_place_of_a_default_mount_and_parents_come_first() {
        let mount = |d: &str| Mount {
            source: "/x".into(),
            destination: d.into(),
            read_only: true,
            propagation: MountPropagation::None,
        };
        let spec = ContainerSpec { mounts: vec![mount("/a/b"), mount("/dev/shm"), mount("/a")], ..wish() };
        let built = build(&spec, &Identity::default(), &machine()).unwrap();
        let places: Vec<_> =
            built.mounts().clone().unwrap().iter().map(|m| m.destination().display().to_string()).collect();
        assert_eq!(places.iter().filter(|p| *p == "/dev/shm").count(), 1);
        let at = |p: &str| places.iter().position(|x| x == p).unwrap();
        assert!(at("/a") < at("/a/b"));
    }

    #[test]
    fn without_a_network_of_its_own_it_gets_the_nodes() {
        let machine = Machine { node_network: Some("/run/netns/node".into()), ..machine() };
        let built = build(&wish(), &Identity::default(), &machine).unwrap();
        let text = serde_json::to_string(&built).unwrap();
        assert!(text.contains("/run/netns/node"));
        assert!(!text.contains("oomScoreAdj"));
    }

    #[test]
    fn no_command_is_an_error() {
        let empty = ContainerSpec { args: Vec::new(), ..wish() };
        assert!(build(&empty, &Identity::default(), &machine()).is_err());
    }
}
