//! Quantities, read and written as Go does.

use super::*;
use serde_json::json;

fn q(text: &str) -> Quantity {
    Quantity::parse(text).unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn canonical_forms() {
    for (text, want) in [
        ("0", "0"),
        ("0Ki", "0"),
        ("-0", "0"),
        ("1000m", "1"),
        ("1500m", "1500m"),
        ("0.5", "500m"),
        (".5", "500m"),
        ("5.", "5"),
        ("+1", "1"),
        ("-1500m", "-1500m"),
        ("1e3", "1e3"),
        ("1E3", "1e3"),
        ("12e2", "1200"),
        ("1e-3", "1e-3"),
        ("1E", "1E"),
        ("1000", "1k"),
        ("100000", "100k"),
        ("1500000", "1500k"),
        ("1.5Gi", "1536Mi"),
        ("1024Ki", "1Mi"),
        ("1023", "1023"),
        ("0.5Ki", "512"),
        ("1.5Ki", "1536"),
        ("0.1Mi", "104857600m"),
        ("0.0001Ki", "102400u"),
        ("2048Mi", "2Gi"),
        ("100n", "100n"),
        ("0.1n", "1n"),
        ("0.0000000001", "1n"),
        ("1.0000000001", "1000000001n"),
        ("9223372036854775807", "9223372036854775807"),
        ("9223372036854775808", "9223372036854775807"),
        ("1e40", "9223372036854775807"),
        ("999Ei", "9223372036854775807"),
        ("00001.100", "1100m"),
    ] {
        assert_eq!(q(text).to_string(), want, "{text}");
        assert_eq!(q(&q(text).to_string()), q(text), "{text} is read back");
    }
}

#[test]
fn malformed() {
    let long = "1".repeat(65);
    for text in ["", ".", "-", "m", "1.2.3", "1x", "--1", "1-", "1 Gi", "Gi", "1e", "1e99999999999", "1KI", "١", &long]
    {
        assert!(Quantity::parse(text).is_none(), "{text:?}");
    }
    assert!(Quantity::parse("0.0000000000000000001").is_none(), "too many decimals");
    assert_eq!(Quantity::of(&json!(2)), Some(q("2")));
    assert_eq!(Quantity::of(&json!(0.5)), Some(q("500m")));
    assert_eq!(Quantity::of(&json!(null)), None);
}

#[test]
fn arithmetic() {
    for (sum, want) in [
        (q("1").plus(q("500m")), "1500m"),
        (q("1Gi").plus(q("512Mi")), "1536Mi"),
        (q("0").plus(q("1Gi")), "1Gi"),
        (q("1Gi").plus(q("1")), "1073741825"),
        (q("1Gi").plus(q("1m")), "1073741824001m"),
        (q("1").minus(q("250m")), "750m"),
        (q("1").minus(q("2")), "-1"),
        (q("0").minus(q("2Ki")), "-2Ki"),
        (q("1.5").times(3), "4500m"),
        (q("8E").plus(q("8E")), "16E"),
        (q("1.2").whole(), "2"),
        (q("1Gi").whole(), "1Gi"),
        (Quantity::count(7), "7"),
    ] {
        assert_eq!(sum.to_string(), want);
    }
    assert!(q("1Gi") > q("1G") && q("1000m") == q("1") && q("-1") < Quantity::ZERO);
    assert_eq!((q("1n").milli(), q("-1n").milli(), q("2").milli()), (1, -1, 2000));
    assert!(q("8E").times(i64::MAX) >= q("8E"), "saturates");
}
