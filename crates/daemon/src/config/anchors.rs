//! The settings of anchors: places outside of the data directory that remember the newest head of
//! the log.

use std::path::Path;

use evidenceos_notary::anchors::{AnchorPlace, Anchoring, NoAnchorPlace};

use super::Settings;

/// The value of `--anchor` that turns anchors off.
const NONE: &str = "none";

/// The anchors that the settings name.
pub(super) fn places(
    settings: &Settings,
    data_dir: &Path,
    problems: &mut Vec<String>,
) -> Anchoring {
    let given: Vec<&String> = settings.anchors.iter().flatten().collect();
    if given.is_empty() {
        return Anchoring::Default;
    }
    if given.iter().any(|text| text.trim() == NONE) {
        if given.len() > 1 {
            problems
                .push("--anchor none contradicts another --anchor; give one of the two".to_owned());
        }
        return Anchoring::Off;
    }
    Anchoring::At(
        given
            .into_iter()
            .filter_map(|text| {
                AnchorPlace::parse(text, data_dir)
                    .map_err(|wrong| match wrong {
                        NoAnchorPlace::Empty => problems.push(format!("--anchor: {wrong}")),
                        _ => problems.push(format!("--anchor {wrong}")),
                    })
                    .ok()
            })
            .collect(),
    )
}
