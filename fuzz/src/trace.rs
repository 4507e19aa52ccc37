//! Traces of runs.

use std::sync::LazyLock;

use evidenceos_kernel::{
    id::Digest,
    record::{Capsule, Registered},
    trace::{Record, TraceWriter, parse},
};
use evidenceos_verify::Opening;

struct World {
    registered: Registered,
    opening: Opening,
    capsule: Capsule,
}

/// The log in the seeds: its holdout, and the run that asked and was certified.
static WORLD: LazyLock<World> = LazyLock::new(|| {
    let log = include_bytes!("../seeds/log/opened.jsonl");
    let entries: Vec<&[u8]> = log.split(|byte| *byte == b'\n').collect();
    let opening = include_bytes!("../seeds/opening/opened.json");
    let right = Digest::of(RIGHT);
    let mut capsules = entries
        .iter()
        .filter_map(|entry| Capsule::parse(entry).ok());
    let mut registered = entries
        .iter()
        .filter_map(|entry| Registered::parse(entry).ok());
    World {
        registered: registered.next().expect("a registration"),
        opening: Opening::from_json(opening).expect("an opening"),
        capsule: capsules
            .find(|capsule| capsule.trace_hash == right)
            .expect("the run of the trace"),
    }
});
const RIGHT: &[u8] = include_bytes!("../seeds/trace/asked.trace");

/// A trace that parses has no more items than bits, and the writer makes the same bytes of it. The log's own trace holds;
/// any other holds at most if the capsule names it.
pub fn check(bytes: &[u8]) {
    if let Ok((items, records)) = parse(bytes) {
        assert!(records.len() <= bytes.len());
        for record in &records {
            if let Record::Asked { vector, .. } | Record::Judged(vector) = record {
                assert_eq!(vector.len() as u64, items);
                assert!(vector.len() <= 8 * bytes.len());
            }
        }
        if let Some(again) = written(items, &records) {
            assert_eq!(again, bytes);
        }
    }
    let world = &*WORLD;
    let opened = world.opening.check(&world.registered);
    let opened = opened.expect("the labels that were committed to");
    let own = opened.check_trace(&world.capsule, false, bytes);
    assert_eq!(own.is_ok(), bytes == RIGHT, "{own:?}");
    // An operator can name any trace: what follows from it is computed, and no number of it overflows.
    let named = Capsule {
        trace_hash: Digest::of(bytes),
        ..world.capsule.clone()
    };
    let _ = opened.check_trace(&named, false, bytes);
}

/// The bytes that the writer makes, if it can: it begins with a run and writes free questions once, at the end.
fn written(items: u64, records: &[Record]) -> Option<Vec<u8>> {
    let (Record::Run(run), rest) = records.split_first()? else {
        return None;
    };
    let (Record::End(end), rest) = rest.split_last()? else {
        return None;
    };
    let (judged, rest) = match rest.split_last() {
        Some((Record::Judged(vector), rest)) => (Some(&vector[..]), rest),
        _ => (None, rest),
    };
    let (free, asked) = match rest.split_last() {
        Some((Record::Free(count), rest)) => (*count, rest),
        _ => (0, rest),
    };
    let was_written = matches!(rest.last(), Some(Record::Free(0)));
    if free > 1_000 || was_written {
        return None;
    }
    let mut writer = TraceWriter::new(items, run);
    for record in asked {
        match record {
            Record::Asked {
                n_symbols,
                symbol,
                vector,
            } => writer.asked(vector, *n_symbols, *symbol),
            Record::Replayed(first) => writer.replayed(*first),
            _ => return None,
        }
    }
    (0..free).for_each(|_| writer.free());
    Some(writer.finish(judged, end))
}
