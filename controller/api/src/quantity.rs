//! Resource quantities (`apimachinery/pkg/api/resource`): `500m`, `64Mi`, `1e3`, as exact integers.

/// A quantity in thousandths of its unit, rounded up (Kubernetes rounds up beyond nano). `None` when malformed.
pub fn milli(text: &str) -> Option<i128> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (negative, digits) = match number.as_bytes().first()? {
        b'-' => (true, &number[1..]),
        b'+' => (false, &number[1..]),
        _ => (false, number),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 || whole.len() > 20 {
        return None;
    }
    let all = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if !all(whole) || !all(fraction) {
        return None;
    }
    let mantissa: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let scale = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let (numerator, denominator): (i128, i128) = match suffix {
        "" => (1000, 1),
        "n" => (1, 1_000_000),
        "u" => (1, 1000),
        "m" => (1, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (10i128.pow(15), 1),
        "P" => (10i128.pow(18), 1),
        "E" => (10i128.pow(21), 1),
        "Ki" => (1000 << 10, 1),
        "Mi" => (1000 << 20, 1),
        "Gi" => (1000 << 30, 1),
        "Ti" => (1000 << 40, 1),
        "Pi" => (1000 << 50, 1),
        "Ei" => (1000 << 60, 1),
        _ => exponent(suffix)?,
    };
    let top = mantissa.checked_mul(numerator)?;
    let bottom = scale.checked_mul(denominator)?;
    let value = top / bottom + i128::from(top % bottom != 0);
    Some(if negative { -value } else { value })
}

/// A quantity in whole units, rounded up: bytes of memory, counts.
pub fn units(text: &str) -> Option<i128> {
    let m = milli(text)?;
    Some(if m >= 0 { (m + 999) / 1000 } else { m / 1000 })
}

fn exponent(suffix: &str) -> Option<(i128, i128)> {
    let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let ten = |p: i32| 10i128.checked_pow(u32::try_from(p).ok()?);
    if power >= 0 { Some((1000i128.checked_mul(ten(power)?)?, 1)) } else { Some((1000, ten(-power)?)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_reads() {
        for (text, want) in [
            ("1", 1000),
            ("500m", 500),
            ("0.5", 500),
            (".5", 500),
            ("1.5Gi", 1_610_612_736_000),
            ("64Mi", 67_108_864_000),
            ("1e3", 1_000_000),
            ("1E", 10i128.pow(21)),
            ("1E3", 1_000_000),
            ("100n", 1),
            ("-1", -1000),
            ("2k", 2_000_000),
        ] {
            assert_eq!(milli(text), Some(want), "{text}");
        }
        for text in ["", "m", "1.2.3", "1x", "--1", "1 Gi", "Gi"] {
            assert_eq!(milli(text), None, "{text:?}");
        }
        assert_eq!(units("1500m"), Some(2));
    }
}
