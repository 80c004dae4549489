//! Building images from files, without Dockerfiles, registries or daemons. In: files of this machine and bytes. Out: an
//! OCI layout as a tar archive, the same for the same input, which any runtime loads.

use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

enum Content {
    Bytes(Vec<u8>),
    Host(PathBuf),
    Folder,
    Link(PathBuf),
}

struct Entry {
    content: Content,
    mode: u32,
    owner: (u32, u32),
}

/// Collects files and settings, then writes the image with [`ImageBuilder::write`]. Paths that cannot be read are
/// reported there.
#[derive(Default)]
pub struct ImageBuilder {
    name: String,
    entries: BTreeMap<PathBuf, Entry>,
    env: Vec<String>,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    user: String,
    workdir: String,
    ports: Vec<String>,
    stop_signal: Option<String>,
    labels: BTreeMap<String, String>,
    failure: Option<io::Error>,
}

impl ImageBuilder {
    /// An empty image of this name (`shop-web:1`; a bare name gets `:latest` when it is loaded).
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Default::default() }
    }

    fn put(mut self, path: &Path, content: Content, mode: u32) -> Self {
        self.add(path, content, mode);
        self
    }

    fn add(&mut self, path: &Path, content: Content, mode: u32) {
        let relative: PathBuf = path
            .components()
            .filter_map(|c| match c {
                std::path::Component::Normal(name) => Some(name),
                _ => None,
            })
            .collect();
        if relative.as_os_str().is_empty() {
            return;
        }
        for parent in relative.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
            let folder = Entry { content: Content::Folder, mode: 0o755, owner: (0, 0) };
            self.entries.entry(parent.into()).or_insert(folder);
        }
        self.entries.insert(relative, Entry { content, mode, owner: (0, 0) });
    }

    fn note(&mut self, path: &Path, error: &io::Error) {
        if self.failure.is_none() {
            self.failure = Some(io::Error::new(error.kind(), format!("adding {}: {error}", path.display())));
        }
    }

    /// A file with this content.
    pub fn file(self, path_in_image: impl AsRef<Path>, bytes: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.put(path_in_image.as_ref(), Content::Bytes(bytes.into()), mode)
    }

    /// A file of this machine, with its mode; links are followed.
    pub fn host_file(mut self, host_path: impl AsRef<Path>, path_in_image: impl AsRef<Path>) -> Self {
        self.add_host(host_path.as_ref(), path_in_image.as_ref());
        self
    }

    fn add_host(&mut self, host: &Path, path: &Path) {
        match fs::metadata(host) {
            Ok(meta) => self.add(path, Content::Host(host.into()), meta.permissions().mode() & 0o7777),
            Err(error) => self.note(host, &error),
        }
    }

    /// An (empty) folder.
    pub fn dir(self, path_in_image: impl AsRef<Path>, mode: u32) -> Self {
        self.put(path_in_image.as_ref(), Content::Folder, mode)
    }

    /// A folder of this machine with everything below it; links stay links.
    pub fn dir_tree(mut self, host_path: impl AsRef<Path>, path_in_image: impl AsRef<Path>) -> Self {
        if let Err(error) = self.add_tree(host_path.as_ref(), path_in_image.as_ref()) {
            self.note(host_path.as_ref(), &error);
        }
        self
    }

    fn add_tree(&mut self, host: &Path, path: &Path) -> io::Result<()> {
        self.add(path, Content::Folder, fs::metadata(host)?.permissions().mode() & 0o7777);
        for entry in fs::read_dir(host)? {
            let entry = entry?;
            let (from, to, kind) = (entry.path(), path.join(entry.file_name()), entry.file_type()?);
            if kind.is_dir() {
                self.add_tree(&from, &to)?;
            } else if kind.is_symlink() {
                self.add(&to, Content::Link(fs::read_link(&from)?), 0o777);
            } else if kind.is_file() {
                self.add_host(&from, &to);
            }
        }
        Ok(())
    }

    /// A symbolic link.
    pub fn symlink(self, path_in_image: impl AsRef<Path>, target: impl Into<PathBuf>) -> Self {
        self.put(path_in_image.as_ref(), Content::Link(target.into()), 0o777)
    }

    /// Gives a path that was added before, and what is below it, to a user and group.
    pub fn owner(mut self, path_in_image: impl AsRef<Path>, uid: u32, gid: u32) -> Self {
        let path = path_in_image.as_ref();
        let path = path.strip_prefix("/").unwrap_or(path);
        for (_, entry) in self.entries.iter_mut().filter(|(p, _)| p.starts_with(path)) {
            entry.owner = (uid, gid);
        }
        self
    }

    /// A program of this machine at its own path, with the shared libraries that it loads at start (none when it is
    /// static). What it loads later (plug-ins, name services) has to be added by hand.
    pub fn binary_with_libraries(mut self, host_path: impl AsRef<Path>) -> Self {
        let host = host_path.as_ref();
        self.add_host(host, host);
        match libraries(host) {
            Ok(libraries) => {
                for library in libraries {
                    self.add_host(&library, &library);
                }
            }
            Err(error) => self.note(host, &error),
        }
        self
    }

    /// An environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push(format!("{key}={value}"));
        self
    }

    /// The program that is always run.
    pub fn entrypoint<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = arguments.into_iter().map(Into::into).collect();
        self
    }

    /// Its arguments, or the program when there is no entrypoint.
    pub fn cmd<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.cmd = arguments.into_iter().map(Into::into).collect();
        self
    }

    /// `user[:group]`, names or numbers.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = user.into();
        self
    }

    /// The working directory.
    pub fn workdir(mut self, path: impl Into<String>) -> Self {
        self.workdir = path.into();
        self
    }

    /// A TCP port that the image serves (for information).
    pub fn expose(mut self, port: u16) -> Self {
        self.ports.push(format!("{port}/tcp"));
        self
    }

    /// For example `SIGQUIT`.
    pub fn stop_signal(mut self, signal: impl Into<String>) -> Self {
        self.stop_signal = Some(signal.into());
        self
    }

    /// A label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Writes the archive. Errors name the first file that could not be read.
    pub fn write(mut self, path: impl AsRef<Path>) -> io::Result<()> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        let layer = self.layer()?;
        let diff_id = digest(&layer);
        let config = serde_json::to_vec(&self.config(&diff_id))?;
        let describe = |media_type: &str, bytes: &[u8]| serde_json::json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()});
        let manifest = serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("application/vnd.oci.image.config.v1+json", &config),
            "layers": [describe("application/vnd.oci.image.layer.v1.tar", &layer)],
        }))?;
        let mut entry = describe("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["annotations"] = serde_json::json!({
            "io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": self.name,
        });
        let index = serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry],
        }))?;
        let mut tar = tar::Builder::new(BufWriter::new(File::create(path)?));
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut tar, "index.json", &index)?;
        for blob in [&manifest, &config, &layer] {
            append(&mut tar, &format!("blobs/sha256/{}", digest(blob).trim_start_matches("sha256:")), blob)?;
        }
        tar.into_inner()?.flush()
    }

    fn config(&self, diff_id: &str) -> serde_json::Value {
        let mut env = self.env.clone();
        if !env.iter().any(|e| e.starts_with("PATH=")) {
            env.insert(0, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
        }
        let ports: BTreeMap<_, _> = self.ports.iter().map(|p| (p, serde_json::json!({}))).collect();
        let mut config = serde_json::json!({
            "Env": env, "Entrypoint": self.entrypoint, "Cmd": self.cmd, "User": self.user,
            "WorkingDir": self.workdir, "ExposedPorts": ports, "Labels": self.labels,
        });
        if let Some(signal) = &self.stop_signal {
            config["StopSignal"] = signal.as_str().into();
        }
        serde_json::json!({
            "architecture": crate::containerd::architecture(), "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        })
    }

    fn layer(&self) -> io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = header(entry.mode, 0);
            header.set_uid(entry.owner.0.into());
            header.set_gid(entry.owner.1.into());
            match &entry.content {
                Content::Folder => {
                    header.set_entry_type(tar::EntryType::Directory);
                    tar.append_data(&mut header, path, io::empty())?;
                }
                Content::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    tar.append_link(&mut header, path, target)?;
                }
                Content::Bytes(bytes) => {
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, path, bytes.as_slice())?;
                }
                Content::Host(host) => {
                    let named = |e: io::Error| io::Error::new(e.kind(), format!("adding {}: {e}", host.display()));
                    let bytes = fs::read(host).map_err(named)?;
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, path, bytes.as_slice())?;
                }
            }
        }
        tar.into_inner()
    }
}

/// What `ldd` says that a program loads.
fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    let answer = Command::new("ldd").arg(program).env("LC_ALL", "C").output()?;
    let text = String::from_utf8_lossy(&answer.stdout).into_owned() + &String::from_utf8_lossy(&answer.stderr);
    if !answer.status.success() {
        let fixed = text.contains("not a dynamic executable") || text.contains("statically linked");
        return if fixed { Ok(Vec::new()) } else { Err(io::Error::other(text.trim().to_string())) };
    }
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        return Err(io::Error::new(io::ErrorKind::NotFound, missing.trim().to_string()));
    }
    Ok(parse_ldd(&text))
}

fn parse_ldd(text: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let line = line.split_once("=>").map_or(line, |(_, right)| right);
        line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from)
    };
    text.lines().filter_map(path).collect()
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, bytes: &[u8]) -> io::Result<()> {
    tar.append_data(&mut header(0o644, bytes.len() as u64), path, bytes)
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|b| format!("{b:02x}")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_output_is_understood() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let found = parse_ldd(text);
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from));
    }

    #[test]
    fn the_same_input_gives_the_same_archive() {
        let dir = tempfile::tempdir().unwrap();
        let build = |name: &str| {
            let path = dir.path().join(name);
            let image = ImageBuilder::new("x:1").file("/a/b", "text", 0o644).symlink("/c", "a/b").owner("/a", 5, 6);
            image.cmd(["/a/b"]).env("K", "v").expose(80).write(&path).unwrap();
            fs::read(path).unwrap()
        };
        assert_eq!(build("one"), build("two"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = ImageBuilder::new("x").host_file("/no/such", "/x").write("/dev/null").unwrap_err();
        assert!(error.to_string().contains("/no/such"));
    }
}
