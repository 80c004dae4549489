//! Network namespaces with a name: made, opened, entered and removed as `ip netns` does, so that people can look in.
//!
//! In: a name. Out: a [`NetNs`], in which a function can run ([`NetNs::run`]), a whole tokio runtime can live
//! ([`NetNs::runtime`]), and sockets can be made for use elsewhere. Entering is always done on a thread of its own:
//! no thread of the caller ever changes its namespace.

use crate::{NetworkError, Result};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};
use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsRawFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::net::{TcpSocket, TcpStream};

/// Where named namespaces live, as `ip netns` has it.
pub const NETNS_DIR: &str = "/run/netns";

/// A named network namespace, held open: it lives at least as long as this value.
#[derive(Debug, Clone)]
pub struct NetNs {
    name: String,
    path: PathBuf,
    file: Arc<File>,
}

/// Makes the folder as `ip netns add` wants it: a mount of its own, shared with other mount namespaces. If `ip` had to do
/// that later, it would mount the folder with everything in it a second time, and names of ours could not be removed.
fn share_folder() -> io::Result<()> {
    std::fs::create_dir_all(NETNS_DIR)?;
    // `ip` takes the same lock.
    let lock = Flock::lock(File::open(NETNS_DIR)?, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    let share = || mount(None::<&str>, NETNS_DIR, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Err(nix::errno::Errno::EINVAL) => {
            let itself = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(NETNS_DIR), NETNS_DIR, None::<&str>, itself, None::<&str>)?;
            share()?;
        }
        done => done?,
    }
    drop(lock);
    Ok(())
}

impl NetNs {
    /// Makes a namespace under a name that is not taken, with the loopback interface still down.
    pub fn create(name: &str) -> Result<Self> {
        Self::create_with(name, || Ok(()))
    }

    /// As [`NetNs::create`], and runs `init` inside before anybody can see the namespace. Saves a thread.
    pub(crate) fn create_with(name: &str, init: impl FnOnce() -> io::Result<()> + Send) -> Result<Self> {
        let path = checked_path(name)?;
        let doing = || format!("creating the network namespace {name}");
        share_folder().map_err(|e| kernel(doing(), e))?;
        File::create_new(&path).map_err(|e| kernel(doing(), e))?;
        let made = on_new_thread(|| -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            init()?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        })
        .and_then(|r| r);
        if let Err(e) = made {
            // Nobody else can have used the name: the file was ours alone.
            let _ = std::fs::remove_file(&path);
            return Err(kernel(doing(), e));
        }
        Self::open(&path)
    }

    /// Opens a namespace by its name or by a path such as `/proc/1/ns/net`.
    pub fn open(name_or_path: impl AsRef<Path>) -> Result<Self> {
        let given = name_or_path.as_ref();
        let path = if given.is_absolute() { given.to_owned() } else { Path::new(NETNS_DIR).join(given) };
        let doing = || format!("opening the network namespace {}", path.display());
        let file = File::open(&path).map_err(|e| kernel(doing(), e))?;
        let kind = fstatfs(&file).map_err(|e| kernel(doing(), e))?.filesystem_type();
        // A plain file is what a crash between its creation and the mount leaves, or a reboot.
        if kind != NSFS_MAGIC {
            return Err(kernel(doing(), "it is a plain file, not a namespace; delete it and try again"));
        }
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { name, path, file: Arc::new(file) })
    }

    /// The caller's own namespace.
    pub fn current() -> Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Whether a namespace of that name is there and whole.
    pub fn exists(name: &str) -> bool {
        Self::open(name).is_ok()
    }

    /// The names in [`NETNS_DIR`], also of half-made ones.
    pub fn list() -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(NETNS_DIR) else { return Vec::new() };
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Takes the name away; the kernel frees the namespace when its last process and handle are gone. Succeeds when
    /// there is nothing, and removes what a crash left half-made.
    pub fn delete(name: &str) -> Result<()> {
        let path = checked_path(name)?;
        let doing = || format!("deleting the network namespace {name}");
        // More than one mount can be stacked on a name after a race with another program.
        while umount2(&path, MntFlags::MNT_DETACH).is_ok() {}
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(kernel(doing(), e)),
            _ => Ok(()),
        }
    }

    /// The name under [`NETNS_DIR`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `f` inside the namespace on a thread of its own and waits for it. A panic of `f` is passed on.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_new_thread(|| {
            self.enter()?;
            Ok(f())
        })
        .and_then(|r| r)
    }

    /// A tokio runtime whose every thread, also those for blocking work, lives in the namespace.
    pub fn runtime(&self, name: &str, worker_threads: usize) -> io::Result<NetNsRuntime> {
        // The threads that tokio starts later inherit the namespace of whichever thread caused them, which may be one
        // outside: so each enters by itself. That entering works at all is tried here first.
        self.run(|| ())?;
        let inside = self.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(worker_threads.max(1))
            .thread_name(name)
            .enable_all()
            .on_thread_start(move || {
                if let Err(error) = inside.enter() {
                    // Going on would send a node's packets through the host's namespace.
                    tracing::error!(netns = inside.name, %error, "a runtime thread cannot enter its network namespace");
                    std::process::abort();
                }
            })
            .build()?;
        Ok(NetNsRuntime { runtime: Some(runtime), netns: self.clone() })
    }

    /// A listening socket inside the namespace, for use anywhere.
    pub fn bind_tcp(&self, addr: SocketAddr) -> io::Result<TcpListener> {
        self.run(|| TcpListener::bind(addr))?
    }

    /// A UDP socket inside the namespace, for use anywhere.
    pub fn bind_udp(&self, addr: SocketAddr) -> io::Result<UdpSocket> {
        self.run(|| UdpSocket::bind(addr))?
    }

    /// Connects from inside the namespace; the stream belongs to the caller's runtime.
    pub async fn connect_tcp(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        // A socket stays in the namespace it was made in, whoever connects it.
        let socket = self.run(|| if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() })??;
        socket.connect(addr).await
    }

    fn enter(&self) -> io::Result<()> {
        Ok(setns(&*self.file, CloneFlags::CLONE_NEWNET)?)
    }
}

/// Runs `f` inside the namespace: [`NetNs::run`] as a function.
pub fn run_in<T: Send>(netns: &NetNs, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    netns.run(f)
}

/// A tokio runtime that lives in a namespace. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct NetNsRuntime {
    runtime: Option<tokio::runtime::Runtime>,
    netns: NetNs,
}

impl NetNsRuntime {
    /// The namespace the threads live in.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// For spawning tasks.
    pub fn handle(&self) -> tokio::runtime::Handle {
        match &self.runtime {
            Some(runtime) => runtime.handle().clone(),
            None => unreachable!("the runtime is taken only by drop and shutdown"),
        }
    }

    /// Runs a future to its end inside. Must not be called from a task.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.handle().block_on(future)
    }

    /// Stops: tasks are dropped at their next await, blocking work gets `grace` to end. Blocks; not for tasks.
    pub fn shutdown(mut self, grace: Duration) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(grace);
        }
    }
}

impl Drop for NetNsRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) fn kernel(doing: impl Into<String>, detail: impl std::fmt::Display) -> NetworkError {
    NetworkError::Kernel { doing: doing.into(), detail: detail.to_string() }
}

/// Writes a sysctl below `/proc/sys` in the calling thread's namespace.
pub(crate) fn write_sysctl(key: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/{key}");
    // Most are right already; a read is cheaper, and works where /proc/sys is read-only.
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("setting {path} to {value}: {e}")))
}

fn checked_path(name: &str) -> Result<PathBuf> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(kernel(format!("naming a network namespace {name:?}"), "a name is one non-empty path element"));
    }
    Ok(Path::new(NETNS_DIR).join(name))
}

fn on_new_thread<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, f)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
