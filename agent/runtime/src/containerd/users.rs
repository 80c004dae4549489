//! Users and groups as the container's own files tell them. In: the snapshot's mounts, read layer by layer without
//! mounting anything. Out: numbers for the process.

use containerd_client::types::Mount;
use std::{
    fs,
    io::Read,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Component, Path, PathBuf},
};

const MAX_FILE: u64 = 4 << 20;

/// The layers of a root file system, uppermost first.
pub(crate) struct Layers(Vec<PathBuf>);

/// Who a process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl Layers {
    pub(crate) fn of(mounts: &[Mount]) -> Self {
        let mut layers = Vec::new();
        for mount in mounts {
            if mount.r#type != "overlay" {
                layers.push(PathBuf::from(&mount.source));
            }
            let option = |key: &str| mount.options.iter().find_map(|o| o.strip_prefix(key));
            layers.extend(option("upperdir=").map(PathBuf::from));
            layers.extend(option("lowerdir=").into_iter().flat_map(|l| l.split(':')).map(PathBuf::from));
        }
        Self(layers)
    }

    /// A small text file as the container would see it.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        let file = self.find(Path::new(path), 8)?;
        let mut text = String::new();
        fs::File::open(file).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Resolves links within the layers only: a link in an image must not show the node's files.
    fn find(&self, path: &Path, links_left: u32) -> Option<PathBuf> {
        let mut done = PathBuf::new();
        let parts: Vec<&std::ffi::OsStr> = path
            .components()
            .filter_map(|c| match c {
                Component::Normal(name) => Some(name),
                _ => None,
            })
            .collect();
        for (n, part) in parts.iter().enumerate() {
            let next = done.join(part);
            let (layer, meta) = self.0.iter().find_map(|layer| {
                let meta = fs::symlink_metadata(layer.join(&next)).ok()?;
                is_plain(layer, &next).then_some((layer, meta))
            })?;
            if meta.file_type().is_char_device() && meta.rdev() == 0 {
                return None;
            }
            if meta.file_type().is_symlink() {
                let target = fs::read_link(layer.join(&next)).ok()?;
                let rest: PathBuf = parts[n + 1..].iter().collect();
                let target =
                    clean(&if target.is_absolute() { target } else { Path::new("/").join(&done).join(target) });
                return self.find(&target.join(rest), links_left.checked_sub(1)?);
            }
            if n + 1 == parts.len() {
                return meta.is_file().then(|| layer.join(&next));
            }
            done = next;
        }
        None
    }
}

/// Whether no folder on the way is a link in this very layer.
fn is_plain(layer: &Path, path: &Path) -> bool {
    let mut parents = path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty());
    parents.all(|p| fs::symlink_metadata(layer.join(p)).is_ok_and(|m| m.is_dir()))
}

fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::Normal(name) => out.push(name),
            _ => {}
        }
    }
    out
}

/// Resolves `user[:group]` with the texts of `/etc/passwd` and `/etc/group`.
pub(crate) fn resolve(user: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, group_name) = user.split_once(':').map_or((user, None), |(u, g)| (u, Some(g)));
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() >= 4 && (fields[0] == user || number.is_some_and(|n| fields[2].parse() == Ok(n))));
    let mut who = match (&entry, number) {
        (Some(fields), _) => Identity {
            uid: number.or(fields[2].parse().ok()).ok_or_else(|| format!("the uid of user {user} is not a number"))?,
            gid: fields[3].parse().unwrap_or(0),
            groups: Vec::new(),
        },
        (None, Some(uid)) => Identity { uid, ..Default::default() },
        (None, None) => return Err(format!("unable to find user {user}: no matching entries in passwd file")),
    };
    let groups: Vec<Vec<&str>> =
        group.lines().map(|line| line.split(':').collect()).filter(|f: &Vec<_>| f.len() >= 3).collect();
    match group_name {
        Some(name) if !name.is_empty() => {
            let named = groups.iter().find(|f| f[0] == name).and_then(|f| f[2].parse().ok());
            who.gid = named
                .or(name.parse().ok())
                .ok_or_else(|| format!("unable to find group {name}: no matching entries in group file"))?;
        }
        // As with docker, memberships count only when no group was asked for.
        _ => {
            let name = entry.as_ref().map_or("", |fields| fields[0]);
            let member =
                |f: &&Vec<&str>| !name.is_empty() && f.get(3).is_some_and(|m| m.trim().split(',').any(|m| m == name));
            who.groups = groups.iter().filter(member).filter_map(|f| f[2].parse().ok()).collect();
        }
    }
    Ok(who)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlog:x:4:web,adm\nadm:x:5:\n";

    fn who(uid: u32, gid: u32, groups: &[u32]) -> Identity {
        Identity { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn names_numbers_and_groups() {
        assert_eq!(resolve("", PASSWD, GROUP), Ok(who(0, 0, &[])));
        assert_eq!(resolve("web", PASSWD, GROUP), Ok(who(33, 34, &[4])));
        assert_eq!(resolve("33", PASSWD, GROUP), Ok(who(33, 34, &[4])));
        assert_eq!(resolve("web:adm", PASSWD, GROUP), Ok(who(33, 5, &[])));
        assert_eq!(resolve("1000:2000", PASSWD, GROUP), Ok(who(1000, 2000, &[])));
        assert_eq!(resolve("1000", "", ""), Ok(who(1000, 0, &[])));
        assert!(resolve("nobody", PASSWD, GROUP).is_err_and(|e| e.contains("no matching entries")));
        assert!(resolve("web:none", PASSWD, GROUP).is_err());
    }

    #[test]
    fn a_link_in_an_image_does_not_reach_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, lower) = (dir.path().join("u"), dir.path().join("l"));
        fs::create_dir_all(upper.join("etc")).unwrap();
        fs::create_dir_all(lower.join("etc")).unwrap();
        fs::write(lower.join("etc/real"), "lower").unwrap();
        std::os::unix::fs::symlink("/etc/real", upper.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", upper.join("etc/group")).unwrap();
        std::os::unix::fs::symlink("/etc", upper.join("host")).unwrap();
        let layers = Layers(vec![upper, lower]);
        assert_eq!(layers.read("/etc/passwd").as_deref(), Some("lower"));
        assert_eq!(layers.read("/etc/group"), None);
        assert_eq!(layers.read("/host/real").as_deref(), Some("lower"));
        assert_eq!(layers.read("/host/hostname"), None);
    }
}
