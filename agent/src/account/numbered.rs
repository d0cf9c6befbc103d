//! What is counted over all agents of an account: numbered objects below a prefix of the account store, each written once. Of two
//! agents only one gets a number, and a replaced agent goes on counting.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::{AccountStore, OBJECT_BYTES_MAX};

/// The next number, and what the last `count` say, oldest first.
pub fn newest<T: DeserializeOwned>(
    store: &AccountStore,
    prefix: &str,
    count: u32,
) -> io::Result<(u64, Vec<T>)> {
    let names = store.names(prefix, None)?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    let next = numbers.last().map_or(0, |last| last + 1);
    let skip = numbers.len().saturating_sub(count as usize);
    let read = |number: &u64| {
        let found = store.get(&key(prefix, *number), OBJECT_BYTES_MAX)?;
        let found = found.ok_or(io::ErrorKind::NotFound)?;
        serde_json::from_slice(&found.bytes).map_err(io::Error::other)
    };
    Ok((next, numbers[skip..].iter().map(read).collect::<io::Result<_>>()?))
}

/// Fails if another agent has taken this number.
pub fn note<T: Serialize>(
    store: &AccountStore,
    prefix: &str,
    number: u64,
    what: &T,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(what).expect("plain values always serialize");
    Ok(store.create(&key(prefix, number), &bytes).map(drop)?)
}

fn key(prefix: &str, number: u64) -> String {
    format!("{prefix}/{number:08}")
}
