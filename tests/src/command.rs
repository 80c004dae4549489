//! Running the real tools, with words for what went wrong.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// No command of a test may take longer.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// What a command said.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// Exit code; -1 when killed.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Output {
    /// Standard output of a command that must succeed.
    pub fn ok(self) -> Result<String> {
        if self.code != 0 {
            bail!("`{}` ended with {}: {}{}", self.line, self.code, self.err, self.out);
        }
        Ok(self.out)
    }

    /// Everything said by a command that must fail.
    pub fn fails(self) -> Result<String> {
        if self.code == 0 {
            bail!("`{}` should have failed, but said: {}{}", self.line, self.out, self.err);
        }
        Ok(format!("{}{}", self.err, self.out))
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Result<Output> {
    run_with_input(command, "")
}

/// Runs a command to its end with text on its standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<Output> {
    let line = format!("{command:?}").replace('"', "");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running `{line}`"))?;
    let mut stdin = child.stdin.take();
    let input = input.to_owned();
    let feed = std::thread::spawn(move || {
        if let Some(mut stdin) = stdin.take() {
            // A command that does not read its input to the end is no fault.
            drop(stdin.write_all(input.as_bytes()));
        }
    });
    let out = collect(child.stdout.take());
    let err = collect(child.stderr.take());
    let code = wait(&mut child, &line)?;
    drop(feed.join());
    let text = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
    Ok(Output { line, code, out: text(out), err: text(err) })
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            drop(pipe.read_to_end(&mut bytes));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child, line: &str) -> Result<i32> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code().unwrap_or(-1));
        }
        if begin.elapsed() > COMMAND_LIMIT {
            child.kill()?;
            child.wait()?;
            bail!("`{line}` did not end within {} s", COMMAND_LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Tries until it works; the last error says what never happened.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let begin = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if begin.elapsed() > PATIENCE => return Err(error.context(format!("never happened: {what}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
