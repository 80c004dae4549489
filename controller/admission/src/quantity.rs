//! Resource quantities (`apimachinery/pkg/api/resource`): `500m`, `64Mi`, `1e3`, exact to a billionth.
//!
//! In: their text. Out: numbers that are compared, added, subtracted, multiplied, and written in the canonical form.

use serde_json::Value;
use std::cmp::Ordering;
use std::fmt;

/// Longest text that is read.
const LONGEST: usize = 64;
/// Digits after the point that are read.
const MOST_DECIMALS: usize = 18;
const NANOS: i128 = 1_000_000_000;
/// Larger amounts are read as this one, as upstream does.
const MOST: i128 = (i64::MAX as i128) * NANOS;

const DECIMAL: [(&str, i64); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// How a quantity was written, and so how it is written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// `1500m`, `2k`
    Decimal,
    /// `64Mi`
    Binary,
    /// `1e3`
    Exponent,
}

/// An amount in billionths of its unit. Equality and order are those of the amounts, however written.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nanos: 0, format: Format::Decimal };

    /// A count.
    pub fn count(number: usize) -> Self {
        let nanos = i128::try_from(number).unwrap_or(MOST).saturating_mul(NANOS);
        Self { nanos: nanos.min(MOST), format: Format::Decimal }
    }

    /// Reads a quantity; `None` when it is malformed or absurdly long. Parts of a billionth round up, in magnitude.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > LONGEST {
            return None;
        }
        let split = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let negative = number.starts_with('-');
        let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
        let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
        let numeric = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() && decimals.is_empty() || !numeric(whole) || !numeric(decimals) {
            return None;
        }
        let (whole, decimals) = (whole.trim_start_matches('0'), decimals.trim_end_matches('0'));
        if decimals.len() > MOST_DECIMALS {
            return None;
        }
        let binary = BINARY.iter().skip(1).position(|s| *s == suffix);
        let (magnitude, format) = match binary {
            Some(power) => binary_nanos(whole, decimals, power + 1)?,
            None => {
                let (exponent, format) = decimal_exponent(suffix)?;
                (decimal_nanos(whole, decimals, exponent)?, format)
            }
        };
        Some(Self { nanos: if negative { -magnitude } else { magnitude }, format })
    }

    /// Reads the value of a quantity field: a string, or a number as clients may write it.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => None,
        }
    }

    /// Thousandths, rounded up in magnitude.
    pub fn milli(self) -> i128 {
        round_away(self.nanos, NANOS / 1000)
    }

    /// Up to whole units, in magnitude.
    pub fn whole(self) -> Self {
        Self { nanos: round_away(self.nanos, NANOS).saturating_mul(NANOS), ..self }
    }

    /// The sum; written as the first, or as the second when the first is nothing.
    pub fn plus(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }

    /// The difference; written as [`Quantity::plus`] says.
    pub fn minus(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_sub(other.nanos), format }
    }

    /// So many times the amount.
    pub fn times(self, factor: i64) -> Self {
        Self { nanos: self.nanos.saturating_mul(i128::from(factor)), ..self }
    }

    /// Nothing.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Less than nothing.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The canonical form: the largest suffix that needs no point.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0");
        }
        let units = self.nanos / NANOS;
        if self.format == Format::Binary && self.nanos % NANOS == 0 && !(-1023..=1023).contains(&units) {
            let (mut mantissa, mut power) = (units, 0);
            while mantissa % 1024 == 0 && power + 1 < BINARY.len() {
                (mantissa, power) = (mantissa / 1024, power + 1);
            }
            return write!(f, "{mantissa}{}", BINARY[power]);
        }
        let (mut mantissa, mut index) = (self.nanos, 0);
        while mantissa % 1000 == 0 && index + 1 < DECIMAL.len() {
            (mantissa, index) = (mantissa / 1000, index + 1);
        }
        let (suffix, exponent) = DECIMAL[index];
        match (self.format, exponent) {
            (Format::Exponent, 1..) | (Format::Exponent, ..=-1) => write!(f, "{mantissa}e{exponent}"),
            _ => write!(f, "{mantissa}{suffix}"),
        }
    }
}

fn round_away(nanos: i128, unit: i128) -> i128 {
    let whole = nanos / unit;
    if nanos % unit == 0 { whole } else { whole + nanos.signum() }
}

fn decimal_exponent(suffix: &str) -> Option<(i64, Format)> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some((*exponent, Format::Decimal));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    Some((i64::from(exponent), Format::Exponent))
}

/// `whole.decimals` times a power of ten, in billionths.
fn decimal_nanos(whole: &str, decimals: &str, exponent: i64) -> Option<i128> {
    let digits = format!("{whole}{decimals}");
    let digits = digits.trim_start_matches('0');
    let length = i64::try_from(digits.len()).ok()?;
    // The point moves so many places to the right.
    let shift = exponent + 9 - i64::try_from(decimals.len()).ok()?;
    if length == 0 {
        return Some(0);
    }
    if length + shift > 28 {
        return Some(MOST);
    }
    if length + shift <= 0 {
        return Some(1);
    }
    let kept = usize::try_from(length + shift.min(0)).ok()?;
    let (kept, rest) = digits.split_at(kept);
    let power = u32::try_from(shift.max(0)).ok()?;
    let nanos = kept.parse::<i128>().ok()?.checked_mul(10_i128.checked_pow(power)?)?;
    Some((nanos + i128::from(rest.bytes().any(|b| b != b'0'))).min(MOST))
}

/// `whole.decimals` times a power of 1024, in billionths. What is less than one is written decimally.
fn binary_nanos(whole: &str, decimals: &str, power: usize) -> Option<(i128, Format)> {
    if whole.len() > 19 {
        return Some((MOST, Format::Binary));
    }
    let factor = 1_i128 << (10 * power);
    let whole: i128 = format!("0{whole}").parse().ok()?;
    let decimals: i128 = format!("{decimals:0<18}").parse().ok()?;
    let whole = whole.checked_mul(factor)?;
    if whole > i128::from(i64::MAX) {
        return Some((MOST, Format::Binary));
    }
    let nanos = (whole * NANOS + round_away(decimals * factor, NANOS)).min(MOST);
    Some((nanos, if nanos > 0 && nanos < NANOS { Format::Decimal } else { Format::Binary }))
}

#[cfg(test)]
mod tests;
