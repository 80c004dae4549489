//! What a process and the programs it starts hand to the kernel's packet filter: counted from outside, by strace, so that
//! it is the same measure for everybody. Netlink messages by their length, legacy iptables by the size of the table that
//! it replaces.

use anyhow::{Context, Result, bail};
use causeway_bench_net::process::inside;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A trace under way.
pub struct Trace {
    strace: Child,
    file: PathBuf,
}

impl Trace {
    /// Begins, and returns when nothing will be missed.
    pub fn attach(netns: &str, pid: u32, file: &Path) -> Result<Self> {
        // Only inside its namespace can strace tell what its sockets are.
        let mut strace = inside(netns, &Command::new("strace"))
            .args(["-f", "-yy", "-s", "0", "-e", "trace=sendto,sendmsg,setsockopt", "-p", &pid.to_string(), "-o"])
            .arg(file)
            .stderr(Stdio::piped())
            .spawn()
            .context("starting strace")?;
        let said = strace.stderr.take().context("strace's stderr")?;
        let mut lines = BufReader::new(said).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        // What else it says must go somewhere, or it waits.
        std::thread::spawn(move || lines.for_each(drop));
        let this = Self { strace, file: file.to_owned() };
        if !first.contains("attached") {
            bail!("strace said: {first}");
        }
        // It attaches to one thread after another.
        std::thread::sleep(std::time::Duration::from_millis(100));
        Ok(this)
    }

    /// Ends it; what was counted.
    pub fn bytes(mut self) -> Result<u64> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.strace.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        self.strace.wait()?;
        Ok(count(&std::fs::read_to_string(&self.file)?))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        drop(self.strace.kill());
        drop(self.strace.wait());
    }
}

/// Adds up what counts. A call that another thread's interrupts is on two lines.
fn count(text: &str) -> u64 {
    let mut sum = 0;
    let mut begun: HashMap<&str, String> = HashMap::new();
    for line in text.lines() {
        let Some((pid, rest)) = line.split_once(char::is_whitespace) else { continue };
        let rest = rest.trim_start();
        if let Some(start) = rest.strip_suffix("<unfinished ...>") {
            begun.insert(pid, start.to_owned());
        } else if let Some((_, end)) = rest.strip_prefix("<... ").and_then(|r| r.split_once(" resumed>")) {
            let start = begun.remove(pid).unwrap_or_default();
            sum += call(&format!("{start}{end}"));
        } else {
            sum += call(rest);
        }
    }
    sum
}

fn call(text: &str) -> u64 {
    let Some((arguments, result)) = text.rsplit_once(" = ") else { return 0 };
    let Ok(result) = result.trim().parse::<u64>() else { return 0 };
    if arguments.starts_with("send") && arguments.contains("<NETLINK:[NETFILTER") {
        return result;
    }
    if arguments.starts_with("setsockopt") && arguments.contains("_SO_SET_REPLACE") {
        let length = arguments.trim_end().trim_end_matches(')').rsplit(", ").next();
        return length.and_then(|l| l.parse().ok()).unwrap_or_default();
    }
    0
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn what_is_handed_to_the_packet_filter() {
        let text = "\
12 sendto(9<NETLINK:[NETFILTER:12]>, [{nlmsg_len=20}], 132, 0, {sa_family=AF_NETLINK}, 12) = 132
12 sendto(8<TCP:[127.0.0.1:1->127.0.0.1:2]>, \"\"..., 999, MSG_NOSIGNAL, NULL, 0) = 999
13 sendmsg(4<NETLINK:[NETFILTER:-7]>, {msg_name={sa_family=AF_NETLINK} <unfinished ...>
12 sendto(9<NETLINK:[ROUTE:12]>, [], 40, 0, NULL, 0) = 40
13 <... sendmsg resumed>, msg_iovlen=1}, 0) = 50
14 setsockopt(4<RAW:[255]>, SOL_IP, IPT_SO_SET_REPLACE, \"\"..., 7000) = 0
14 setsockopt(4<RAW:[255]>, SOL_IP, IPT_SO_SET_REPLACE, \"\"..., 7000) = -1 EAGAIN (x)
";
        assert_eq!(count(text), 132 + 50 + 7000);
    }
}
