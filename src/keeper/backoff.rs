//! How long to wait before a worker that crashed is replaced. Pure.

use std::time::Duration;

/// A start that fails is tried again soon, once.
const SHORTEST: Duration = Duration::from_millis(100);
/// A crash loop costs next to nothing, and whoever mends its cause need not wait.
const LONGEST: Duration = Duration::from_secs(10);

/// Whom a worker has served waits for the next one, and is to wait for less than two seconds in all.
const LONGEST_OF_SERVED: Duration = Duration::from_millis(500);

/// The wait before the next worker when `crashes` came before this one without a healthy time between them. `served`:
/// the worker had been ready.
pub(super) fn delay(crashes: u32, served: bool) -> Duration {
    // 2^7 * 100 ms is above the longest.
    let growing = |crashes: u32| SHORTEST * (1 << crashes.min(7));
    match (served, crashes.checked_sub(1)) {
        (true, None) => Duration::ZERO,
        (true, Some(before)) => growing(before).min(LONGEST_OF_SERVED),
        (false, _) => growing(crashes).min(LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_worker_has_served_hardly_notices_its_first_crash() {
        let waits = [0, 1, 2, 3, 4, u32::MAX].map(|crashes| delay(crashes, true).as_millis());
        assert_eq!(waits, [0, 100, 200, 400, 500, 500]);
    }

    #[test]
    fn a_crash_loop_backs_off_from_a_tenth_of_a_second_to_ten_seconds() {
        let table = [
            (0, 100),
            (1, 200),
            (2, 400),
            (3, 800),
            (4, 1600),
            (5, 3200),
            (6, 6400),
            (7, 10_000),
            (8, 10_000),
            (u32::MAX, 10_000),
        ];
        for (crashes, millis) in table {
            let millis = Duration::from_millis(millis);
            assert_eq!(delay(crashes, false), millis, "{crashes}");
        }
    }
}
