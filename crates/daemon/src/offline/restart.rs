//! `log restart` and `log continue`: continue the log under another name, or state in the log that
//! nothing was signed elsewhere. Nothing is ever signed under the old name below a size that an
//! anchor knows.

use std::sync::Arc;

use evidenceos_driver::OwnWork;
use evidenceos_kernel::{
    bits::MicroBits,
    command::{ContinueLog, LogCommand, RestartLog},
    continuity::{HoldoutCharged, KnownTree},
    id::HoldoutId,
    record,
    state::Resident,
};
use evidenceos_notary::{
    anchors::{self, AnchorError, Anchors, Clearance, Tip},
    keys::{LogKeys, LogSigner},
};
use evidenceos_store::facts::Fact;
use tokio::runtime::Handle;

use super::{error::ChargeError, failed, opened::Opened, warn, with_runtime};
use crate::{
    assemble::{
        StartError,
        own::{self, Signing},
    },
    config::Config,
    terminal,
};

/// The result of a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restarted {
    /// The log's new name.
    pub origin: String,
    /// The log's size now, in entries.
    pub size: u64,
    /// Each holdout's name and charge, in the order of registration.
    pub charged: Vec<(String, HoldoutCharged)>,
    /// The number of runs that were under way and are aborted.
    pub aborted: usize,
    /// The log's verifier key from now on.
    pub vkey: String,
    /// Warnings about the next start.
    pub warnings: Vec<String>,
}

/// Continues the log under another name, in one commit. Every holdout is exhausted, unless its
/// charge is stated as `HOLDOUT=BITS`; runs under way are aborted.
///
/// # Errors
/// [`StartError::Refused`] if the name is not another; [`StartError::Charge`] if a holdout is not
/// known; [`StartError::NotEnacted`] if more is stated than its budget carries;
/// [`StartError::LogKeys`] if the log cannot be signed.
pub fn restart(
    config: &Config,
    origin: &str,
    because: &str,
    stated: &[String],
    runtime: &Handle,
) -> Result<Restarted, StartError> {
    let mut opened = Opened::open(config)?;
    let old_origin = opened.origin().to_owned();
    if origin == old_origin {
        return Err(StartError::refused(
            format!("the log is named {origin:?} already"),
            "the restarted log needs another name: give another --origin",
        ));
    }
    let charged = stated
        .iter()
        .map(|text| charge(opened.alone.resident(), text))
        .collect::<Result<_, _>>()?;
    let signer = signer_so_far(config, &opened, "restart the log", runtime)?.under(origin)?;
    let anchors = opened.anchors(config, runtime)?;
    let command = LogCommand::Restart(Box::new(RestartLog {
        origin: origin.to_owned(),
        old_origin: old_origin.clone(),
        old: opened.tree(),
        known: known_to(&anchors, &old_origin),
        because: because.to_owned(),
        charged,
    }));
    let mut former = opened.facts.former.clone();
    former.push(old_origin.clone());
    let work = OwnWork {
        facts: vec![Fact::Restored(None), Fact::Former(former)],
        ..OwnWork::command(command)
    };
    let signing = Signing {
        signer: &signer,
        runtime,
    };
    let what = "the log's new beginning";
    let (head, entries) = own::enact(&mut opened.alone, work, signing, what)?;
    let mut restarted = Restarted {
        origin: origin.to_owned(),
        size: head.size,
        charged: charged_in(&entries, opened.alone.resident()),
        aborted: aborted_in(&entries),
        vkey: signer.verifier().to_string(),
        warnings: Vec::new(),
    };
    anchors.make_written();
    match anchors.overwrite(&head, &old_origin) {
        Ok(()) => opened.remember(&anchors)?,
        Err(error) => restarted.warnings.push(format!(
            "the log is restarted, but an anchor does not know it yet ({error}); the next start writes it"
        )),
    }
    Ok(restarted)
}

/// The number of runs that a restart has aborted: each has a capsule among its entries.
fn aborted_in(entries: &[Vec<u8>]) -> usize {
    entries
        .iter()
        .filter(|entry| record::Capsule::parse(entry).is_ok())
        .count()
}

/// The largest tree of this name that an anchor knows.
fn known_to(anchors: &Anchors, origin: &str) -> Option<KnownTree> {
    let (_, known) = anchors.largest(origin)?;
    (known.origin() == origin).then(|| KnownTree {
        size: known.size(),
        root: known.root().0,
    })
}

/// The charges in these entries, with the holdouts' names.
fn charged_in(entries: &[Vec<u8>], resident: &Resident) -> Vec<(String, HoldoutCharged)> {
    let charged = entries
        .iter()
        .filter_map(|entry| HoldoutCharged::parse(entry).ok());
    let named = charged.map(|charged| {
        let holdout = resident.holdout(&charged.holdout);
        let name = holdout.map_or_else(String::new, |holdout| holdout.reference.clone());
        (name, charged)
    });
    named.collect()
}

/// The key that signed the log so far: another key takes over at a start, not in a command.
fn signer_so_far(
    config: &Config,
    opened: &Opened,
    what: &str,
    runtime: &Handle,
) -> Result<LogSigner, StartError> {
    let keys = LogKeys::find(&config.log_keys(), Some(&opened.head), runtime)?;
    if keys.predecessor.is_some() {
        return Err(StartError::refused(
            "the active key is not the key that signed so far",
            format!("{what} with the old key, and let the other key take over at the next start"),
        ));
    }
    Ok(keys.signer)
}

/// The result of `log continue`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continued {
    /// The log's name, which stays.
    pub origin: String,
    /// The log's size now, in entries.
    pub size: u64,
    /// Warnings about the next start.
    pub warnings: Vec<String>,
}

/// States in the log that it was signed nowhere else since its newest entry.
///
/// # Errors
/// [`StartError::Anchors`] if an anchor knows more; [`StartError::Refused`] if no statement is
/// needed; [`StartError::LogKeys`] if the log cannot be signed.
pub fn carry_on(config: &Config, because: &str, runtime: &Handle) -> Result<Continued, StartError> {
    let mut opened = Opened::open(config)?;
    // The remembered anchors are asked too, not only those that will be written: any anchor that
    // answers counts.
    let state = Arc::new(anchors::State::default());
    let remembered = Anchors::new(&config.anchoring(), &opened.facts, runtime, state)?;
    if may_be_newest(opened.compare(&remembered)?)? == Clearance::Free {
        return Err(StartError::refused(
            "nothing needs to be stated: the directory was not restored, and its anchors do not disagree",
            "start the daemon",
        ));
    }
    let anchors = opened.anchors(config, runtime)?;
    // The anchors to write may be others, and one of them may know more.
    may_be_newest(opened.compare(&anchors)?)?;
    let signer = signer_so_far(config, &opened, "state it", runtime)?;
    let command = LogCommand::Continue(Box::new(ContinueLog {
        origin: opened.origin().to_owned(),
        tree: opened.tree(),
        because: because.to_owned(),
    }));
    let work = OwnWork {
        facts: vec![Fact::Restored(None)],
        ..OwnWork::command(command)
    };
    let signing = Signing {
        signer: &signer,
        runtime,
    };
    let (head, _) = own::enact(&mut opened.alone, work, signing, "the statement")?;
    let mut continued = Continued {
        origin: opened.origin().to_owned(),
        size: head.size,
        warnings: Vec::new(),
    };
    anchors.make_written();
    if anchors.remember(&Tip::from(&head))? {
        opened.remember(&anchors)?;
    } else {
        continued.warnings.push(
            "no anchor could be written; the next start is read-only until one can be".to_owned(),
        );
    }
    Ok(continued)
}

/// Refuses the statement if an anchor contradicts it.
fn may_be_newest(verdict: Clearance) -> Result<Clearance, AnchorError> {
    match verdict {
        Clearance::Past(what) => Err(AnchorError::Contradicted(what)),
        Clearance::Free | Clearance::Held(_) => Ok(verdict),
    }
}

/// Reads `HOLDOUT=BITS`, with a holdout's name or id.
fn charge(resident: &Resident, text: &str) -> Result<(HoldoutId, MicroBits), ChargeError> {
    let (name, bits) = text
        .rsplit_once('=')
        .ok_or_else(|| ChargeError::Form(text.to_owned()))?;
    let holdout = resident
        .holdouts()
        .find(|holdout| holdout.reference == name || holdout.id.to_hex() == name)
        .ok_or_else(|| ChargeError::Holdout {
            text: text.to_owned(),
            name: name.to_owned(),
        })?;
    let bits = micros(bits).ok_or_else(|| ChargeError::Bits(text.to_owned()))?;
    Ok((holdout.id, bits))
}

/// An exact decimal, in millionths.
fn micros(text: &str) -> Option<MicroBits> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || part.len() > 6 || !digits(whole) || !digits(part) {
        return None;
    }
    let part: u64 = format!("{part:0<6}").parse().ok()?;
    let whole: u64 = whole.parse().ok()?;
    whole
        .checked_mul(1_000_000)?
        .checked_add(part)
        .map(MicroBits)
}

/// Runs `evidenceos-daemon log restart` and prints the charges.
#[must_use]
pub fn run_restart(
    config: &Config,
    origin: &str,
    because: &str,
    charged: &[String],
) -> std::process::ExitCode {
    match with_runtime(|runtime| restart(config, origin, because, charged, runtime)) {
        Ok(restarted) => {
            terminal::say(&format!(
                "the log is {} from here on, with {} entries; {} runs under way were aborted and charged their worst case. Give verifiers its key: {}",
                restarted.origin, restarted.size, restarted.aborted, restarted.vkey
            ));
            for (name, charged) in &restarted.charged {
                terminal::say(&format!("  holdout {name}: {}", charge_text(charged)));
            }
            terminal::say(
                "Each holdout without a stated charge takes no more claims: register fresh items. The published copy under the old name stays as it is.",
            );
            warn(&restarted.warnings);
            std::process::ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn charge_text(charged: &HoldoutCharged) -> String {
    let HoldoutCharged {
        answers, sealed, ..
    } = charged;
    if charged.stated {
        format!("charged {answers} for its answer part and {sealed} for its sealed part, as stated")
    } else {
        format!(
            "exhausted: charged the {answers} that its answer part and the {sealed} that its sealed part had left"
        )
    }
}

/// Runs `evidenceos-daemon log continue` and prints its warnings.
#[must_use]
pub fn run_continue(config: &Config, because: &str) -> std::process::ExitCode {
    match with_runtime(|runtime| carry_on(config, because, runtime)) {
        Ok(continued) => {
            terminal::say(&format!(
                "the log {} states that nothing was signed elsewhere since its {} entries, and has {} now; start the daemon",
                continued.origin,
                continued.size - 1,
                continued.size
            ));
            warn(&continued.warnings);
            std::process::ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_exact_decimals() {
        for (text, micros_of) in [
            ("0", Some(0)),
            ("12.5", Some(12_500_000)),
            ("0.000001", Some(1)),
            ("1.", Some(1_000_000)),
            (".5", None),
            ("1.0000001", None),
            ("-1", None),
            ("1e3", None),
            ("", None),
        ] {
            assert_eq!(micros(text).map(|bits| bits.0), micros_of, "{text}");
        }
    }
}
