//! Bounds on text that others send, and on files: in goes anything, out comes at most so many bytes.

use std::borrow::Cow;
use std::io::Read;

/// Stands at the end of what was cut, as upstream marks a user agent.
pub const CUT: &str = "...TRUNCATED";

/// The first `max` bytes (fewer where a character would be split) and [`CUT`], or the text as it is.
pub fn cut(text: &str, max: usize) -> Cow<'_, str> {
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}{CUT}", &text[..end]))
}

/// The content of a file that has at most `max` bytes. Of a larger one, one byte more than that is read, so that the
/// caller sees it.
pub fn read_bounded(path: &std::path::Path, max: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_between_characters() {
        let cases =
            [("abc", 3, "abc"), ("abcd", 3, "abc...TRUNCATED"), ("aé", 2, "a...TRUNCATED"), ("", 0, ""), ("é", 2, "é")];
        for (text, max, expected) in cases {
            assert_eq!(cut(text, max), expected, "{text} {max}");
        }
    }
}
