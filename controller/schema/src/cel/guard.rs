//! What keeps an expression from taking the process: bounds on its text before it is parsed, a stack that is big enough
//! for what they let through, and the budget that its evaluation draws on.
//!
//! In: the text of an expression. Out: whether it may be parsed; a thread to run on; units to spend.

use super::CelError;
use std::time::{Duration, Instant};

/// Brackets inside each other in an expression.
pub(super) const MAX_NESTING: usize = 32;
/// Operators that hang on each other, all brackets around counted. (The depth at which Kubernetes' parser stops.)
pub(super) const MAX_DEPTH: usize = 250;
/// Bytes of one expression; more is a program, not a rule.
pub const MAX_EXPRESSION: usize = 16 << 10;
/// Bytes of the stack that compiling and evaluating need. Without optimisation, parsing takes up to a hundred kilobytes
/// for a bracket, and evaluation ten for a step.
pub const STACK: usize = 32 * 1024 * 1024;
/// Steps of evaluation inside each other, variables that use variables counted.
const MAX_STEPS_DEEP: usize = 1000;

/// Units for one expression; as many as the API server's limit for one call.
pub const EXPRESSION_COST: u64 = 1_000_000;
/// Units for all expressions that one object has to pass in one policy or definition, as upstream.
pub const TOTAL_COST: u64 = 10_000_000;
/// How long the expressions over one object may take together, should the units not say it all.
pub const TOTAL_TIME: Duration = Duration::from_secs(5);

/// What the evaluation of expressions may still cost. A step costs one unit (a literal none); strings and lists that a
/// step reads or makes cost one more for every eight bytes or items.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    expression: u64,
    deadline: Instant,
    steps: u64,
    depth: usize,
}

impl Budget {
    /// A budget of so many units for all expressions and so much time, from now on.
    pub fn new(total: u64, time: Duration) -> Self {
        Self { total, expression: EXPRESSION_COST, deadline: Instant::now() + time, steps: 0, depth: 0 }
    }

    /// Another expression begins: it has the units of one expression.
    pub(super) fn begin(&mut self) {
        if self.depth == 0 {
            self.expression = EXPRESSION_COST;
        }
    }

    /// Takes units.
    ///
    /// # Errors
    ///
    /// [`CelError::Exceeded`] when there are none left, or the time is over.
    pub fn charge(&mut self, units: u64) -> Result<(), CelError> {
        let (Some(expression), Some(total)) = (self.expression.checked_sub(units), self.total.checked_sub(units))
        else {
            let limit = if units > self.total { self.spend() } else { "actual call cost limit exceeded" };
            self.expression = 0;
            return Err(CelError::Exceeded(format!("operation cancelled: {limit}")));
        };
        (self.expression, self.total) = (expression, total);
        // Asking for the time costs as much as a few steps.
        let before = self.steps >> 6;
        self.steps += 1 + units;
        if self.steps >> 6 != before && Instant::now() > self.deadline {
            self.spend();
            return Err(CelError::Exceeded("operation interrupted: evaluation took too long".to_owned()));
        }
        Ok(())
    }

    fn spend(&mut self) -> &'static str {
        self.total = 0;
        "validation failed due to running out of cost budget, no further validation rules will be run"
    }

    /// Nothing more can be evaluated.
    pub fn is_spent(&self) -> bool {
        self.total == 0
    }

    /// One step deeper; the caller comes back up.
    pub(super) fn enter(&mut self) -> Result<(), CelError> {
        self.charge(1)?;
        if self.depth >= MAX_STEPS_DEEP {
            return Err(CelError::Exceeded("operation cancelled: expressions are nested too deeply".to_owned()));
        }
        self.depth += 1;
        Ok(())
    }

    pub(super) fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }
}

impl Default for Budget {
    /// That of one object in one policy or definition.
    fn default() -> Self {
        Self::new(TOTAL_COST, TOTAL_TIME)
    }
}

/// Runs it on a thread of its own: the stacks of workers are too small for what the parser and the evaluation of an
/// expression may take. The caller waits.
///
/// # Errors
///
/// When there is no thread to be had, or the work panicked.
pub fn on_a_big_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cel".to_owned()).stack_size(STACK);
        let thread = thread.spawn_scoped(scope, work).map_err(|e| format!("no thread for rules: {e}"))?;
        thread.join().map_err(|_| "a rule panicked".to_owned())
    })
}

/// Too many brackets inside each other, or too many operators that hang on each other from left to right. (What `&&`
/// and `||` combine is balanced; conditions are counted by the parser.)
pub(super) fn is_complex(rule: &str) -> bool {
    // For every open bracket, how long the chain is that it is in.
    let (mut outer, mut chain, mut depth) = (Vec::new(), 0usize, 0usize);
    let code = without_strings(rule);
    for piece in code.split_inclusive(|c: char| !c.is_alphanumeric() && c != '_') {
        let word = piece.trim_end_matches(|c: char| !c.is_alphanumeric() && c != '_');
        chain += usize::from(word == "in");
        match piece.chars().next_back() {
            Some('(' | '[' | '{') => {
                outer.push(chain + 1);
                depth += chain + 1;
                chain = 0;
            }
            Some(')' | ']' | '}') => {
                chain = outer.pop().unwrap_or_default();
                depth = depth.saturating_sub(chain);
            }
            Some('&' | '|' | ',' | '?' | ':') => chain = 0,
            Some('.' | '+' | '-' | '*' | '/' | '%' | '<' | '>' | '=' | '!') => chain += 1,
            _ => {}
        }
        if outer.len() > MAX_NESTING || depth + chain > MAX_DEPTH {
            return true;
        }
    }
    false
}

/// The text of a rule with nothing between its quotes, and without comments.
fn without_strings(rule: &str) -> String {
    let (mut code, mut rest) = (String::with_capacity(rule.len()), rule);
    while let Some(at) = rest.find(['\'', '"', '/']) {
        let (before, from) = rest.split_at(at);
        code.push_str(before);
        let quote = &from[..1];
        if quote == "/" {
            let end = if from.starts_with("//") { from.find('\n').unwrap_or(from.len()) } else { 1 };
            code.push('/');
            rest = &from[end..];
            continue;
        }
        let prefix = code.chars().rev().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        let raw = matches!(prefix.to_ascii_lowercase().as_str(), "r" | "rb" | "br");
        let triple = quote.repeat(3);
        let quote = if from.starts_with(&triple) { &triple } else { quote };
        rest = after_string(&from[quote.len()..], quote, raw);
        code.push('"');
    }
    code + rest
}

/// What comes after a string whose opening quote is gone.
fn after_string<'a>(text: &'a str, quote: &str, raw: bool) -> &'a str {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if !escaped && text[at..].starts_with(quote) {
            return &text[at + quote.len()..];
        }
        escaped = c == '\\' && !escaped && !raw;
    }
    ""
}
