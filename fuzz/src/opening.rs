//! Openings: what makes a holdout's labels public.

use std::sync::LazyLock;

use evidenceos_kernel::record::Registered;
use evidenceos_verify::Opening;

/// Of the log in the seeds, the only holdout.
static REGISTERED: LazyLock<Registered> = LazyLock::new(|| {
    let log = include_bytes!("../seeds/log/opened.jsonl");
    let mut entries = log.split(|byte| *byte == b'\n');
    let registered = entries.find_map(|entry| Registered::parse(entry).ok());
    registered.expect("a registration")
});
/// Its opening.
static OPENING: LazyLock<Opening> = LazyLock::new(|| {
    let json = include_bytes!("../seeds/opening/opened.json");
    Opening::from_json(json).expect("an opening")
});

/// An opening that is read is the same when it is written and read again. None but the right one is what was committed
/// to.
pub fn check(json: &[u8]) {
    let Ok(opening) = Opening::from_json(json) else {
        return;
    };
    let again = Opening::from_json(opening.to_json().as_bytes());
    assert_eq!(again.as_ref(), Ok(&opening));
    let is_right = (&opening.holdout_id, &opening.secret, &opening.labels)
        == (&OPENING.holdout_id, &OPENING.secret, &OPENING.labels)
        && units(&opening) == units(&OPENING);
    assert_eq!(opening.check(&REGISTERED).is_ok(), is_right);

    // As if it named the right holdout under the right secret: the labels are looked at.
    let beside = Opening {
        holdout_id: OPENING.holdout_id,
        secret: OPENING.secret,
        ..opening
    };
    let is_right = beside.labels == OPENING.labels && units(&beside) == units(&OPENING);
    assert_eq!(beside.check(&REGISTERED).is_ok(), is_right);
}

/// Without units each item is its own.
fn units(opening: &Opening) -> Vec<u64> {
    match &opening.units {
        Some(units) => units.clone(),
        None => (0..opening.labels.len() as u64).collect(),
    }
}
