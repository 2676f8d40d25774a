//! Numbers as people write them: sizes, durations, switches, octal modes.
//!
//! Each parser answers `None` for what it does not accept; the caller knows the key and says what is.

use std::time::Duration;

/// Bytes: a plain number, or one with a unit (`8MiB`, `20G`; `K`, `M`, `G` count in thousands, `Ki`, `Mi`,
/// `Gi` in 1024s).
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    // The units' parser saturates; a size that does not fit is a mistake, not the largest size there is.
    let size: bytesize::ByteSize = text.parse().ok()?;
    (size.as_u64() < u64::MAX).then(|| size.as_u64())
}

/// The size of a cache on the disk, or 0: a smaller one would hold hardly more than what is read at the moment.
pub fn parse_cache_disk(text: &str) -> Option<u64> {
    const MIN: u64 = 64 << 20;
    parse_size(text).filter(|bytes| *bytes == 0 || *bytes >= MIN)
}

/// A size as [`parse_size`] reads it back, in the largest unit that loses nothing.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (bytesize::TIB, "TiB"),
        (bytesize::GIB, "GiB"),
        (bytesize::MIB, "MiB"),
        (bytesize::KIB, "KiB"),
    ];
    match UNITS
        .iter()
        .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit))
    {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// A time span: plain seconds, or numbers with units (`500ms`, `1m 30s`). At most ten years.
pub fn parse_duration(text: &str) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    let text = text.trim();
    let duration = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text).ok()?,
    };
    (duration <= LONGEST).then_some(duration)
}

/// A time span as [`parse_duration`] reads it back.
pub fn format_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// A switch. Nothing at all means on: that is how Docker sends `volume-opt=ro`.
pub fn parse_switch(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "" | "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Permission bits in octal, with or without a leading `0` or `0o`.
pub fn parse_mode(text: &str) -> Option<u32> {
    let digits = text.trim();
    let digits = digits.strip_prefix("0o").unwrap_or(digits);
    if digits.is_empty() || digits.len() > 4 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    u32::from_str_radix(digits, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
}

/// Somebody's text as a message may show it: quoted, on one line, and not for pages.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 80;
    if text.chars().count() <= LONGEST {
        return format!("{text:?}");
    }
    let start: String = text.chars().take(LONGEST).collect();
    format!("{start:?}… ({} bytes)", text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_bytes_or_numbers_with_a_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("8388608", 8 << 20),
            ("8MiB", 8 << 20),
            ("8 mib", 8 << 20),
            ("20G", 20_000_000_000),
            ("1.5KiB", 1536),
            ("16GiB", 16 << 30),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "big",
            "-1",
            "1 parsec",
            "99999999999999999999",
            "99999EiB",
            "MiB",
            "1e3",
        ] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_seconds_or_numbers_with_a_unit() {
        for (text, millis) in [
            ("0", 0),
            ("60", 60_000),
            ("500ms", 500),
            ("1m 30s", 90_000),
            ("1m30s", 90_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "-1",
            "soon",
            "1 parsec",
            "200years",
            "18446744073709551615",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn a_switch_without_a_value_is_on() {
        for text in ["", "true", "Yes", "on", "1"] {
            assert_eq!(parse_switch(text), Some(true), "{text}");
        }
        for text in ["false", "NO", "off", "0"] {
            assert_eq!(parse_switch(text), Some(false), "{text}");
        }
        assert_eq!(parse_switch("maybe"), None);
    }

    #[test]
    fn modes_are_octal_permission_bits() {
        for (text, mode) in [("644", 0o644), ("0755", 0o755), ("0o700", 0o700), ("0", 0)] {
            assert_eq!(parse_mode(text), Some(mode), "{text}");
        }
        for text in [
            "", "888", "rwx", "4755", "01777", "-644", "+644", "00000644",
        ] {
            assert_eq!(parse_mode(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_size_reads_back_as_itself(bytes in 0..u64::MAX) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
        }

        #[test]
        fn a_printed_duration_reads_back_as_itself(millis in 0..u64::from(u32::MAX)) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in any::<String>()) {
            let _ = (parse_size(&text), parse_duration(&text), parse_switch(&text), parse_mode(&text));
            let _ = shown(&text);
        }
    }
}
