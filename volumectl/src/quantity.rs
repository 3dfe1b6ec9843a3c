//! Kubernetes quantities as sizes in bytes (the "Quantity" of the Kubernetes API conventions).

const SUFFIXES: [(&str, u128); 12] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
];

/// Bytes of a quantity such as `10Gi`, `1.5T`, `500M`, `1e9` or `1073741824`. A part of a byte is rounded up, as
/// Kubernetes does.
pub fn parse(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a size; write it like 10Gi, 1.5T or 1073741824");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (numerator, denominator) = decimal(number).ok_or_else(wrong)?;
    let (times, divided) = match suffix {
        "" => (1, 1),
        "m" => (1, 1000),
        _ => match SUFFIXES.iter().find(|(name, _)| *name == suffix) {
            Some((_, factor)) => (*factor, 1),
            None => (exponent(suffix).ok_or_else(wrong)?, 1),
        },
    };
    let bytes = numerator.checked_mul(times).ok_or_else(wrong)?.div_ceil(denominator * divided);
    i64::try_from(bytes).map_err(|_| format!("{text:?} is more than 8 EiB, the largest size CSI can say"))
}

/// `12.5` as 125 / 10.
fn decimal(number: &str) -> Option<(u128, u128)> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 12 || number.len() > 32 {
        return None;
    }
    let denominator = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    Some((format!("{whole}{fraction}").parse().ok()?, denominator))
}

fn exponent(suffix: &str) -> Option<u128> {
    let power: u32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    10_u128.checked_pow(power).filter(|_| power <= 18)
}

/// A size as people read it: `1.5 GiB`.
pub fn human(bytes: i64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut size, mut unit) = (bytes, 0);
    while unit < UNITS.len() - 1 && size.abs() >= 1024 && size % 1024 == 0 {
        (size, unit) = (size / 1024, unit + 1);
    }
    if size.abs() < 10_240 {
        return format!("{size} {}", UNITS[unit]);
    }
    // Tenths of the next unit that keeps the number short, without leaving whole numbers.
    let (mut tenths, mut unit) = (i128::from(bytes) * 10, 0);
    while unit < UNITS.len() - 1 && tenths.abs() >= 10_240 {
        (tenths, unit) = (tenths / 1024, unit + 1);
    }
    format!("{}.{} {}", tenths / 10, (tenths % 10).abs(), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_people_write() {
        let cases = [
            ("10Gi", 10 << 30),
            ("1.5Gi", 3 << 29),
            ("500M", 500_000_000),
            ("1e3", 1000),
            ("0", 0),
            ("1k", 1000),
        ];
        cases.iter().for_each(|(text, bytes)| assert_eq!(parse(text), Ok(*bytes), "{text}"));
        assert_eq!(parse("1500m"), Ok(2), "a part of a byte is rounded up");
        assert_eq!(parse("0.1"), Ok(1));
    }

    #[test]
    fn what_is_refused() {
        for text in ["", "Gi", "10gb", "-1", "1.2.3", "1e99", "ten", "8Ei1", "99999Ei"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in
            [(0, "0 B"), (1 << 30, "1 GiB"), (3 << 29, "1536 MiB"), (123_456_789, "117.7 MiB")]
        {
            assert_eq!(human(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn plain_bytes_come_back(bytes in 0..=i64::MAX) {
            prop_assert_eq!(parse(&bytes.to_string()), Ok(bytes));
        }

        #[test]
        fn binary_suffixes_multiply(n in 0..8_i64, i in 0..6_usize) {
            let (suffix, factor) = SUFFIXES[i];
            let product = i128::from(n) * i128::try_from(factor).unwrap();
            prop_assert_eq!(parse(&format!("{n}{suffix}")).ok(), i64::try_from(product).ok());
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}
