//! Signal names as images and pods write them. In: `SIGTERM`, `term`, `15`, `SIGRTMIN+3`. Out: numbers.

use nix::sys::signal::Signal;
use std::str::FromStr;

/// The first real-time signal that programs may use (the C library keeps two for itself).
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

pub(crate) fn number(name: &str) -> Option<u32> {
    let name = name.trim().to_uppercase();
    if let Ok(number) = name.parse::<u32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return offset_of(offset, '+').map(|n| RTMIN + n).filter(|n| *n <= RTMAX);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return offset_of(offset, '-').and_then(|n| RTMAX.checked_sub(n)).filter(|n| *n >= RTMIN);
    }
    Signal::from_str(&format!("SIG{name}")).ok().and_then(|signal| u32::try_from(signal as i32).ok())
}

fn offset_of(text: &str, sign: char) -> Option<u32> {
    if text.is_empty() { Some(0) } else { text.strip_prefix(sign)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn names_numbers_and_real_time() {
        assert_eq!(number("SIGTERM"), Some(15));
        assert_eq!(number("quit"), Some(3));
        assert_eq!(number("9"), Some(9));
        assert_eq!(number("SIGRTMIN+3"), Some(37));
        assert_eq!(number("RTMAX-1"), Some(63));
        assert_eq!(number("SIGNOPE"), None);
        assert_eq!(number("0"), None);
    }
}
