//! Single values of the dialects. Anything that is not plainly one is nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::FileKind;

const TYPE: u32 = 0o170_000;

/// The last second of the year 9999. Beyond it are milliseconds and other misunderstandings.
pub(super) const LAST_SECOND: u64 = 253_402_300_799;

/// A mode: the kind of file, if it says one, and the permissions.
///
/// s3fs and geesefs write all of `st_mode` in decimal, rclone all of it in octal, others permissions
/// only, in octal. The type bits tell them apart: a number that has none which makes sense in one
/// base is taken in the other.
pub(super) fn mode(text: &str) -> Option<(Option<FileKind>, Option<u32>)> {
    let whole = |mode: u32| {
        let kind = FileKind::ALL
            .into_iter()
            .find(|kind| kind.type_bits() == mode & TYPE)?;
        (mode <= (TYPE | 0o7777)).then_some((Some(kind), Some(mode & 0o7777)))
    };
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let decimal = text.parse::<u32>().ok();
    let octal = u32::from_str_radix(text, 8).ok();
    // A leading zero is how octal is written.
    let decimal = decimal.filter(|_| !text.starts_with('0'));
    let permissions = |mode: u32| (mode <= 0o7777).then_some((None, Some(mode)));
    decimal
        .and_then(whole)
        .or_else(|| octal.and_then(whole))
        .or_else(|| octal.and_then(permissions))
        .or_else(|| decimal.and_then(permissions))
}

/// A user or group.
pub(super) fn id(text: &str) -> Option<u32> {
    // What is left as -1 by chown(2) is nobody's number.
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// A device number, in hexadecimal.
pub(super) fn device(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, 16).ok()
}

/// A point in time: seconds since 1970 with or without a fraction, or RFC 3339.
pub(super) fn time(text: &str) -> Option<SystemTime> {
    seconds(text).or_else(|| rfc3339(text))
}

fn seconds(text: &str) -> Option<SystemTime> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole = whole
        .parse()
        .ok()
        .filter(|seconds| *seconds <= LAST_SECOND)?;
    // What is finer than a nanosecond is cut off.
    let nanos = format!("{:0<9}", &fraction[..fraction.len().min(9)])
        .parse()
        .ok()?;
    let since = Duration::new(whole, nanos);
    match negative {
        false => UNIX_EPOCH.checked_add(since),
        true => UNIX_EPOCH.checked_sub(since),
    }
}

fn rfc3339(text: &str) -> Option<SystemTime> {
    if !text.is_ascii() {
        return None;
    }
    // Only times in UTC can be parsed: another zone's offset is taken off afterwards.
    let (local, ahead, offset) = match text.len().checked_sub(6).map(|at| text.split_at(at)) {
        Some((local, zone)) if zone.starts_with(['+', '-']) && local.contains('T') => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let minutes = hours.parse::<u64>().ok()? * 60 + minutes.parse::<u64>().ok()?;
            (
                format!("{local}Z"),
                zone.starts_with('+'),
                Duration::from_secs(minutes * 60),
            )
        }
        _ => (text.to_owned(), true, Duration::ZERO),
    };
    let time = humantime::parse_rfc3339(&local).ok()?;
    if ahead {
        time.checked_sub(offset)
    } else {
        time.checked_add(offset)
    }
}

/// Seconds since 1970, with nine digits behind the point where there is a fraction.
pub(super) fn spell_time(time: SystemTime) -> String {
    let (sign, since) = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => ("", since),
        Err(before) => ("-", before.duration()),
    };
    match (since.as_secs(), since.subsec_nanos()) {
        (seconds, 0) => format!("{sign}{seconds}"),
        (seconds, nanos) => format!("{sign}{seconds}.{nanos:09}"),
    }
}
