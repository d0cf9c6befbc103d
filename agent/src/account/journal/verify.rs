//! Whether the journal is as it was written: chains on this disk and in the account store, held against the
//! anchors there. Pure but for [`read`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use super::record::{Anchor, Event, Head, Record, whole_lines};
use super::store::{Store, names};

/// All that is kept of one chain.
#[derive(Debug, Default)]
pub struct Kept {
    pub chain: String,
    /// By name; those of the account store count where both have one.
    pub segments: BTreeMap<String, Vec<u8>>,
    /// Segments that are in both places and differ.
    pub differ: BTreeSet<String>,
    /// This disk has it.
    pub is_here: bool,
    pub anchors: BTreeMap<u64, Anchor>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verified {
    pub chain: String,
    pub records: u64,
    pub anchors: usize,
    /// Anchored records that are neither here nor in the account store: another host has them, if this disk
    /// never had the chain.
    pub elsewhere: usize,
    pub faults: Vec<String>,
    /// The chain that it says it follows.
    pub follows: Option<Anchor>,
}

/// Reads all chains. `disk` is none for an auditor who has the account store only.
pub fn read(disk: Option<&Path>, store: &Store) -> io::Result<Vec<Kept>> {
    let here = disk.map_or(Ok(Vec::new()), names)?;
    let mut chains: BTreeSet<String> = store.chains()?.into_iter().collect();
    chains.extend(here.iter().cloned());
    let mut all = Vec::new();
    for chain in chains {
        let mut kept = Kept { anchors: store.anchors_after(&chain, 0)?, ..Kept::default() };
        for name in store.segment_names(&chain)? {
            kept.segments.insert(name.clone(), store.segment(&chain, &name)?);
        }
        if let Some(disk) = disk.filter(|_| here.contains(&chain)) {
            kept.is_here = true;
            for name in names(&disk.join(&chain))? {
                let bytes = fs::read(disk.join(&chain).join(&name))?;
                match kept.segments.get(&name) {
                    Some(archived) if *archived != bytes => drop(kept.differ.insert(name)),
                    Some(_) => {}
                    None => drop(kept.segments.insert(name, bytes)),
                }
            }
        }
        kept.chain = chain;
        all.push(kept);
    }
    Ok(all)
}

pub fn verify(kept: &Kept) -> Verified {
    let mut verified = Verified {
        chain: kept.chain.clone(),
        anchors: kept.anchors.len(),
        faults: kept
            .differ
            .iter()
            .map(|name| format!("{name} on this disk is not the one in the account store"))
            .collect(),
        ..Verified::default()
    };
    let mut seen = BTreeMap::new();
    let walked = walk(kept, |record, head| {
        if let (1, Event::Began { follows, .. }) = (record.seq, &record.event) {
            verified.follows.clone_from(follows);
        }
        seen.insert(head.seq, head.digest);
    });
    verified.records = seen.len() as u64;
    verified.faults.extend(walked.err());
    for (seq, anchor) in &kept.anchors {
        match seen.get(seq) {
            Some(found) if *found == Some(anchor.digest) => {}
            Some(_) => verified.faults.push(format!("record {seq} is not the anchored one")),
            None if kept.is_here => {
                verified.faults.push(format!("record {seq} is anchored and missing"));
            }
            None => verified.elsewhere += 1,
        }
    }
    verified
}

/// Each record of a chain in order, up to the first that does not follow.
pub fn walk(kept: &Kept, mut each: impl FnMut(&Record, Head)) -> Result<(), String> {
    let mut head = Head::default();
    for (name, bytes) in &kept.segments {
        let (lines, whole) = whole_lines(bytes);
        for line in lines {
            let (record, next) = head.follow(line).map_err(|error| format!("{name}: {error}"))?;
            each(&record, next);
            head = next;
        }
        let is_last = kept.segments.keys().next_back() == Some(name);
        if whole < bytes.len() && !is_last {
            return Err(format!("{name}: its last line is cut off"));
        }
    }
    // The agent died while its disk took nothing, and has not come back to this chain.
    for (seq, anchor) in kept.anchors.range(head.seq + 1..).filter(|_| kept.is_here) {
        for line in &anchor.lines {
            let followed = head.follow(line.as_bytes());
            let (record, next) = followed.map_err(|error| format!("anchor {seq}: {error}"))?;
            each(&record, next);
            head = next;
        }
    }
    Ok(())
}

/// Chains that name a predecessor which does not end as they say, or of which nothing is left.
pub fn verify_succession(all: &[Verified], kept: &[Kept]) -> Vec<String> {
    let mut faults = Vec::new();
    for chain in all {
        let Some(Anchor { chain: before, seq, digest, .. }) = &chain.follows else { continue };
        let anchors = kept.iter().find(|kept| kept.chain == *before).map(|kept| &kept.anchors);
        match anchors.and_then(|anchors| anchors.get(seq)) {
            Some(found) if found.digest == *digest => {}
            Some(_) => faults.push(format!(
                "chain {} follows record {seq} of {before}, which is another one by now",
                chain.chain
            )),
            None => faults.push(format!(
                "chain {} follows record {seq} of {before}, whose anchor is gone",
                chain.chain
            )),
        }
    }
    faults
}
