//! The tests' images, built from what is on the machine: busybox, and curl with its libraries.

use anyhow::Result;
use causeway_runtime::oci_build::ImageBuilder;
use causeway_tests::Cluster;

/// busybox with a shell, an HTTP server and network tools.
pub const BUSYBOX: &str = "causeway.local/test/busybox:1";
/// busybox and curl.
pub const CURL: &str = "causeway.local/test/curl:1";

const APPLETS: &[&str] = &[
    "sh", "cat", "chmod", "cp", "date", "dd", "echo", "env", "false", "grep", "head", "hostname", "httpd", "id",
    "kill", "ls", "mkdir", "mount", "nc", "nslookup", "ps", "pwd", "rm", "sed", "seq", "sleep", "sort", "stty", "tail",
    "test", "touch", "tr", "true", "uname", "wc", "wget", "yes",
];

/// A builder with busybox and its applets.
pub fn busybox(name: &str) -> ImageBuilder {
    let image = ImageBuilder::new(name)
        .host_file("/bin/busybox", "/bin/busybox")
        .file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n", 0o644)
        .file("/etc/group", "root:x:0:\nnogroup:x:65534:\nstaff:x:50:\n", 0o644)
        .dir("/tmp", 0o1777);
    APPLETS.iter().fold(image, |image, applet| image.symlink(format!("/bin/{applet}"), "busybox")).cmd(["sh"])
}

/// Builds the images and loads them.
pub fn load(cluster: &Cluster) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (one, two) = (dir.path().join("busybox.tar"), dir.path().join("curl.tar"));
    busybox(BUSYBOX).write(&one)?;
    busybox(CURL).binary_with_libraries("/usr/bin/curl").write(&two)?;
    let said = cluster.command(&["image", "load", &one.to_string_lossy(), &two.to_string_lossy()]);
    said.ok()?;
    Ok(())
}
