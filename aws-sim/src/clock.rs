//! The only place that reads the clock; everything that decides takes the time as an argument.

use time::OffsetDateTime;

pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}
