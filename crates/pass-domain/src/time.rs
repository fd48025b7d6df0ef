//! Times. Instants are [`jiff::Timestamp`]s limited to what protobuf can say: years 0001 to 9999.

use jiff::Timestamp;

/// First second that can be recorded: 0001-01-01T00:00:00Z.
pub const SECONDS_MIN: i64 = -62_135_596_800;
/// Last second that can be recorded: 9999-12-30T22:00:00Z, the end of what both sides' libraries can hold.
pub const SECONDS_MAX: i64 = 253_402_207_200;

/// Vendor times before this are suspect: no wallet pass is older. 2000-01-01T00:00:00Z.
const SUSPECT_BEFORE_SECONDS: i64 = 946_684_800;
/// Vendor times this far after the receive time are suspect, in seconds.
const SUSPECT_AHEAD_SECONDS: i64 = 86_400;

/// Makes an instant from unix seconds and nanoseconds, or `None` outside years 0001 to 9999 or with
/// nanoseconds outside 0 to 999,999,999.
#[must_use]
pub fn from_parts(seconds: i64, nanos: i32) -> Option<Timestamp> {
    if !(SECONDS_MIN..SECONDS_MAX).contains(&seconds) || !(0..1_000_000_000).contains(&nanos) {
        return None;
    }
    let whole = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Timestamp::from_nanosecond(whole).ok()
}

/// Reads an RFC 3339 instant with offset, or `None` if it is anything else or out of range.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    if text.len() > 64 || text.contains('[') {
        return None;
    }
    let time: Timestamp = text.parse().ok()?;
    let (seconds, nanos) = to_parts(time);
    from_parts(seconds, nanos)
}

/// Splits an instant into floored unix seconds and non-negative nanoseconds.
#[must_use]
pub fn to_parts(time: Timestamp) -> (i64, i32) {
    let whole = time.as_nanosecond();
    let seconds = whole.div_euclid(1_000_000_000);
    let nanos = whole.rem_euclid(1_000_000_000);
    (
        i64::try_from(seconds).expect("a timestamp's seconds fit in 64 bits"),
        i32::try_from(nanos).expect("a remainder below 10^9 fits in 32 bits"),
    )
}

/// The instant in whole microseconds since 1970, rounded down: the form that databases index.
#[must_use]
pub fn to_micros(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond().div_euclid(1_000))
        .expect("microseconds of years 1 to 9999 fit in 64 bits")
}

/// The instant from whole microseconds since 1970, or `None` out of range.
#[must_use]
pub fn from_micros(micros: i64) -> Option<Timestamp> {
    let time = Timestamp::from_microsecond(micros).ok()?;
    let (seconds, nanos) = to_parts(time);
    from_parts(seconds, nanos)
}

/// True when a vendor's time cannot be right: before 2000, or more than a day after we received it.
/// Such a fact is flagged, never refused.
#[must_use]
pub fn is_suspect(occur_time: Timestamp, receive_time: Timestamp) -> bool {
    let (occur, _) = to_parts(occur_time);
    let (receive, _) = to_parts(receive_time);
    occur < SUSPECT_BEFORE_SECONDS || occur > receive.saturating_add(SUSPECT_AHEAD_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_round_trip_and_floor_below_1970() {
        for (seconds, nanos) in [
            (0, 0),
            (-1, 999_999_999),
            (SECONDS_MIN, 0),
            (SECONDS_MAX - 1, 999_999_999),
            (1_608_644_518, 743_534_000),
        ] {
            let time = from_parts(seconds, nanos).expect("in range");
            assert_eq!(to_parts(time), (seconds, nanos));
        }
    }

    #[test]
    fn times_outside_protobufs_years_are_refused() {
        assert_eq!(from_parts(SECONDS_MIN - 1, 0), None);
        assert_eq!(from_parts(SECONDS_MAX, 0), None);
        assert_eq!(from_parts(0, -1), None);
        assert_eq!(from_parts(0, 1_000_000_000), None);
        assert_eq!(from_parts(i64::MAX, 0), None);
        assert_eq!(parse_rfc3339("294277-01-01T00:00:00Z"), None);
    }

    #[test]
    fn only_instants_with_an_offset_are_read() {
        assert!(parse_rfc3339("2016-08-10T11:30:06Z").is_some());
        assert!(parse_rfc3339("2016-08-10T11:30:06.123456789+02:00").is_some());
        assert_eq!(parse_rfc3339("2016-08-10T11:30:06"), None);
        assert_eq!(parse_rfc3339("2016-08-10T11:30:06Z[Europe/Lisbon]"), None);
        assert_eq!(parse_rfc3339(""), None);
    }

    #[test]
    fn suspect_times_are_before_2000_or_over_a_day_ahead() {
        let receive = from_parts(1_700_000_000, 0).expect("in range");
        assert!(is_suspect(from_parts(0, 0).expect("in range"), receive));
        assert!(is_suspect(
            from_parts(1_700_000_000 + 86_401, 0).expect("in range"),
            receive
        ));
        assert!(!is_suspect(
            from_parts(1_700_000_000 + 86_400, 0).expect("in range"),
            receive
        ));
        assert!(!is_suspect(receive, receive));
    }
}
