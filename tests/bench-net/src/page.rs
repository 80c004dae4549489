//! Pages in the sources that programs fill in: what is between two marks is theirs, the text around is people's. And how
//! figures look there, in tables.

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;

/// What the results of a part were taken on, as [`crate::machine::noting`] has noted it: a line.
pub fn taken(part: &Value) -> String {
    let m = &part["machine"];
    let text = |name: &str| m[name].as_str().unwrap_or("?").to_owned();
    format!(
        "{} cores of {}, {} MiB, {}, kernel {}; {} build of {}, {}; load average {} before and {} after, {} s in all.\n",
        m["cores"],
        text("processor"),
        m["memoryMiB"],
        text("system"),
        text("kernel"),
        text("build"),
        text("commit"),
        text("date"),
        part["loadBefore"].as_str().unwrap_or("?"),
        part["loadAfter"].as_str().unwrap_or("?"),
        part["tookSeconds"]
    )
}

/// Replaces what is between `<!-- MARK -->` and `<!-- end of LAST-WORD-OF-MARK -->` of a file, where it has them.
///
/// # Errors
/// When the file cannot be read or written.
pub fn replace(file: &Path, mark: &str, text: &str) -> Result<()> {
    let page = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let name = mark.rsplit(' ').next().unwrap_or(mark);
    let (begin, end) = (format!("<!-- {mark} -->"), format!("<!-- end of {name} -->"));
    let cut = page.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let Some((before, after)) = cut else {
        println!("{} has no place for the figures of {name} ({begin}); left alone", file.display());
        return Ok(());
    };
    std::fs::write(file, format!("{before}{begin}\n{text}{end}{after}"))?;
    println!("wrote {}", file.display());
    Ok(())
}

/// As many digits as mean something.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => group(value),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}"),
        v if v >= 0.01 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// A whole number with its thousands apart.
pub fn group(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_written() {
        let file = std::env::temp_dir().join(format!("page-{}", std::process::id()));
        std::fs::write(&file, "a\n<!-- bench x -->\nold\n<!-- end of x -->\nb\n").unwrap();
        replace(&file, "bench x", "new\n").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "a\n<!-- bench x -->\nnew\n<!-- end of x -->\nb\n");
        std::fs::remove_file(&file).unwrap();
        assert_eq!((short(1234.5), short(12.34), short(0.0123)), ("1,234".into(), "12.3".into(), "0.012".into()));
    }
}
