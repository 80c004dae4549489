//! Progress on the terminal: a spinner with the current step for people, plain lines for logs.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shows which step is under way and how long each took.
pub struct Progress {
    bar: Option<ProgressBar>,
    begin: Instant,
    step: Option<(String, Instant)>,
}

impl Progress {
    /// Starts showing on standard error.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, begin: Instant::now(), step: None }
    }

    /// The next step begins; the one before has ended. The same step again changes nothing.
    pub fn step(&mut self, text: &str) {
        if self.step.as_ref().is_some_and(|(t, _)| t == text) {
            return;
        }
        self.close();
        match &self.bar {
            Some(bar) => bar.set_message(format!("{text} …")),
            None => eprintln!("  {text} …"),
        }
        self.step = Some((text.to_owned(), Instant::now()));
    }

    /// All done.
    pub fn done(mut self, text: &str) {
        self.close();
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        eprintln!("{text} in {:.1} s", self.begin.elapsed().as_secs_f64());
    }

    fn close(&mut self) {
        if let (Some(bar), Some((text, since))) = (&self.bar, self.step.take()) {
            bar.println(format!("✓ {text} ({:.1} s)", since.elapsed().as_secs_f64()));
        }
    }
}
