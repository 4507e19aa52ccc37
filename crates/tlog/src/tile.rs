//! Names and bytes of hash tiles and entry bundles.
//!
//! Owns the list of tiles of a tree of some size, their paths, and (in `codec`) their encodings. Does not own the
//! meaning of the hashes (`tree`), the place of the files, or whether an older partial tile is still kept. Invariant:
//! a path that parses formats back to itself.
//!
//! Spec: C2SP tlog-tiles. A tile of level L and index N holds the hashes of up to 256 complete subtrees of 256^L
//! entries each, from subtree 256·N on; a bundle holds the entries below the level-0 tile of the same index.

mod codec;

use std::fmt;
use std::str::FromStr;

use crate::text;

pub use codec::{decode_entries, decode_hashes, encode_entries, encode_hashes};

/// Hashes in a full tile, and entries in a full bundle.
pub const TILE_WIDTH: u16 = 256;

/// Tree levels that one tile spans: 2^8 = 256.
pub const TILE_HEIGHT: u32 = 8;

/// The highest tile level: a hash of level 8 would stand for 2^64 entries.
pub const MAX_LEVEL: u8 = 7;

/// The longest entry in bytes: its length is encoded in 16 bits.
pub const MAX_ENTRY_BYTES: usize = u16::MAX as usize;

/// The reason why a name or an encoding is not one of a tile or a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TileError {
    /// The level is above [`MAX_LEVEL`].
    #[error("tile level {level} is above {MAX_LEVEL}")]
    Level {
        /// The requested level.
        level: u8,
    },
    /// The width, in hashes or entries, is not in 1..=256.
    #[error("width {width} is not in 1..={TILE_WIDTH}")]
    Width { width: usize },
    /// The text is not the canonical path of a tile or bundle.
    #[error("not a canonical tile path: {path:?}")]
    Path { path: String },
    /// The encoded tile's length is not a multiple of 32 bytes.
    #[error("a tile of {bytes} bytes is not a whole number of hashes")]
    Ragged {
        /// The length found, in bytes.
        bytes: usize,
    },
    /// An entry does not fit its 16-bit length.
    #[error("an entry of {bytes} bytes is longer than {MAX_ENTRY_BYTES}")]
    EntryTooLong {
        /// The entry's length in bytes.
        bytes: usize,
    },
    /// The bundle ends inside an entry.
    #[error("the bundle ends inside entry {entry}")]
    Truncated {
        /// Position of that entry in the bundle, from 0.
        entry: usize,
    },
}

/// The name of one hash tile, full or partial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileId {
    level: u8,
    index: u64,
    width: u16,
}

impl TileId {
    /// Names the tile of `level` (0..=7) and `index` that holds `width` (1..=256) hashes.
    ///
    /// # Errors
    /// [`TileError::Level`] or [`TileError::Width`] if that is out of range.
    pub fn new(level: u8, index: u64, width: u16) -> Result<Self, TileError> {
        if level > MAX_LEVEL {
            return Err(TileError::Level { level });
        }
        check_width(usize::from(width))?;
        Ok(Self {
            level,
            index,
            width,
        })
    }

    /// The tile's name for callers inside the crate whose arithmetic already keeps the ranges.
    pub(crate) fn within_range(level: u8, index: u64, width: u16) -> Self {
        debug_assert!(level <= MAX_LEVEL && (1..=TILE_WIDTH).contains(&width));
        Self {
            level,
            index,
            width,
        }
    }

    /// Level, 0..=7; level 0 holds leaf hashes.
    pub fn level(self) -> u8 {
        self.level
    }

    /// Position among the tiles of the level, from 0.
    pub fn index(self) -> u64 {
        self.index
    }

    /// Hashes in the tile, 1..=256.
    pub fn width(self) -> u16 {
        self.width
    }

    /// Whether the tile has all its 256 hashes and will never change.
    pub fn is_full(self) -> bool {
        self.width == TILE_WIDTH
    }

    /// The bundle with the entries of this tile, if the tile is of level 0.
    pub fn bundle(self) -> Option<BundleId> {
        (self.level == 0).then_some(BundleId {
            index: self.index,
            width: self.width,
        })
    }
}

/// The tile's path, `tile/<L>/<N>[.p/<W>]`.
impl fmt::Display for TileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tile/{}/", self.level)?;
        fmt_position(f, self.index, self.width)
    }
}

impl FromStr for TileId {
    type Err = TileError;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        let wrong = || TileError::Path {
            path: path.to_owned(),
        };
        let (level, position) = path
            .strip_prefix("tile/")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(wrong)?;
        let level = text::decimal(level)
            .and_then(|level| u8::try_from(level).ok())
            .ok_or_else(wrong)?;
        let (index, width) = parse_position(position).ok_or_else(wrong)?;
        Self::new(level, index, width)
    }
}

/// The name of one bundle of entries, full or partial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleId {
    index: u64,
    width: u16,
}

impl BundleId {
    /// Names the bundle of `index` that holds `width` (1..=256) entries.
    ///
    /// # Errors
    /// [`TileError::Width`] if the width is out of range.
    pub fn new(index: u64, width: u16) -> Result<Self, TileError> {
        check_width(usize::from(width))?;
        Ok(Self { index, width })
    }

    /// Position among the bundles, from 0: the first entry is `256 * index`.
    pub fn index(self) -> u64 {
        self.index
    }

    /// Entries in the bundle, 1..=256.
    pub fn width(self) -> u16 {
        self.width
    }
}

/// The bundle's path, `tile/entries/<N>[.p/<W>]`.
impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tile/entries/")?;
        fmt_position(f, self.index, self.width)
    }
}

impl FromStr for BundleId {
    type Err = TileError;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        let position = path.strip_prefix("tile/entries/").and_then(parse_position);
        let (index, width) = position.ok_or_else(|| TileError::Path {
            path: path.to_owned(),
        })?;
        Self::new(index, width)
    }
}

fn check_width(width: usize) -> Result<(), TileError> {
    if (1..=usize::from(TILE_WIDTH)).contains(&width) {
        Ok(())
    } else {
        Err(TileError::Width { width })
    }
}

/// Writes `N` in groups of three digits, all but the last marked with `x`: 1234067 is `x001/x234/067`.
fn fmt_position(f: &mut fmt::Formatter<'_>, index: u64, width: u16) -> fmt::Result {
    let mut groups = vec![index % 1000];
    let mut rest = index / 1000;
    while rest > 0 {
        groups.push(rest % 1000);
        rest /= 1000;
    }
    for group in groups.iter().skip(1).rev() {
        write!(f, "x{group:03}/")?;
    }
    write!(f, "{:03}", groups[0])?;
    if width == TILE_WIDTH {
        Ok(())
    } else {
        write!(f, ".p/{width}")
    }
}

/// Reads `N[.p/W]`; a full tile has no `.p` part, and the first group is not all zeros if others
/// follow.
fn parse_position(position: &str) -> Option<(u64, u16)> {
    let (index, width) = match position.split_once(".p/") {
        Some((index, width)) => (
            index,
            // tlog-tiles names a full tile without `.p`, so 256 would be a second name for it.
            u16::try_from(text::decimal(width)?)
                .ok()
                .filter(|w| *w < TILE_WIDTH)?,
        ),
        None => (position, TILE_WIDTH),
    };
    let (upper, last) = index
        .rsplit_once('/')
        .map_or((None, index), |(upper, last)| (Some(upper), last));
    let mut value = 0u64;
    for group in upper.into_iter().flat_map(|upper| upper.split('/')) {
        value = push_group(value, group.strip_prefix('x')?)?;
        // Zero after a group means that the leading group was 000, which has a shorter spelling.
        if value == 0 {
            return None;
        }
    }
    Some((push_group(value, last)?, width))
}

fn push_group(value: u64, digits: &str) -> Option<u64> {
    // `parse` would accept `+12` as a group of three digits.
    let three_digits = digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let group: u64 = if three_digits {
        digits.parse().ok()?
    } else {
        return None;
    };
    value.checked_mul(1000)?.checked_add(group)
}

/// Complete subtrees of 256^`level` entries in a tree of `size` entries: the hashes that exist at that tile level.
pub(crate) fn hashes_at(level: u8, size: u64) -> u64 {
    size.checked_shr(u32::from(level) * TILE_HEIGHT)
        .unwrap_or(0)
}

/// The partial tiles at the right edge of a tree of `size` entries, from level 0 upwards.
///
/// A level whose hashes fill whole tiles has no partial tile and is left out.
pub fn tiles_for_size(size: u64) -> Vec<TileId> {
    let width = u64::from(TILE_WIDTH);
    (0..=MAX_LEVEL)
        .map(|level| (level, hashes_at(level, size)))
        .filter(|(_, hashes)| hashes % width != 0)
        .map(|(level, hashes)| TileId::within_range(level, hashes / width, (hashes % width) as u16))
        .collect()
}

/// The tiles, full and partial, that a tree of `new_size` entries has and one of `old_size` has not, by level and
/// index: an integrator writes them after growing from one size to the other. Empty if the tree did not grow.
pub fn tiles_between(old_size: u64, new_size: u64) -> impl Iterator<Item = TileId> {
    let width = u64::from(TILE_WIDTH);
    (0..=MAX_LEVEL).flat_map(move |level| {
        let (old, new) = (hashes_at(level, old_size), hashes_at(level, new_size));
        let indices = if new > old {
            old / width..new.div_ceil(width)
        } else {
            0..0
        };
        // Widths are at most 256 and fit.
        indices.map(move |index| {
            TileId::within_range(level, index, width.min(new - index * width) as u16)
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn paths(tiles: impl IntoIterator<Item = TileId>) -> Vec<String> {
        tiles.into_iter().map(|tile| tile.to_string()).collect()
    }

    #[test]
    fn paths_are_those_of_c2sp_and_parse_back() {
        for (level, index, width, path) in [
            (0, 0, 256, "tile/0/000"),
            (0, 0, 1, "tile/0/000.p/1"),
            (1, 999, 255, "tile/1/999.p/255"),
            (2, 1000, 256, "tile/2/x001/000"),
            (0, 1_234_067, 256, "tile/0/x001/x234/067"),
            (0, 1_234_067, 112, "tile/0/x001/x234/067.p/112"),
            (7, 1_000_000, 256, "tile/7/x001/x000/000"),
        ] {
            let id = TileId::new(level, index, width).expect("in range");
            assert_eq!(id.to_string(), path);
            assert_eq!(path.parse(), Ok(id));
            if let Some(bundle) = id.bundle() {
                let entries = path.replace("tile/0/", "tile/entries/");
                assert_eq!(
                    (bundle.to_string(), entries.parse()),
                    (entries.clone(), Ok(bundle))
                );
            }
        }
    }

    #[test]
    fn second_spelling_of_a_path_is_refused() {
        for path in [
            "",
            "tile",
            "tile/0",
            "tile/0/",
            "tile/00/000",
            "tile/8/000",
            "tile/-1/000",
            "tile/0/0",
            "tile/0/0000",
            "tile/0/x000/001",
            "tile/0/001/067",
            "tile/0/x001",
            "tile/0/000.p/0",
            "tile/0/000.p/01",
            "tile/0/000.p/256",
            "tile/0/000.p/65537",
            "tile/0/000.p/",
            "tile/0/000.p",
            "tile/0/000/",
            "/tile/0/000",
            "tile/0/../000",
            "tile/0/x999/x999/x999/x999/x999/x999/999",
            "tile/entries/000",
        ] {
            assert!(path.parse::<TileId>().is_err(), "{path}");
        }
        assert!("tile/0/000".parse::<BundleId>().is_err());
    }

    #[test]
    fn tile_sets_are_those_of_c2sp() {
        assert_eq!(paths(tiles_for_size(0)), [""; 0]);
        assert_eq!(
            paths(tiles_between(0, 256)),
            ["tile/0/000", "tile/1/000.p/1"]
        );
        assert_eq!(
            paths(tiles_for_size(70_000)),
            ["tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"]
        );
        let all: Vec<TileId> = tiles_between(0, 70_000).collect();
        let full_at = |level| {
            all.iter()
                .filter(|tile| tile.level() == level && tile.is_full())
                .count()
        };
        assert_eq!((full_at(0), full_at(1), all.len()), (273, 1, 277));
        assert_eq!(
            tiles_between(70_000, 70_000).count() + tiles_between(9, 8).count(),
            0
        );
        assert_eq!(tiles_for_size(u64::MAX).len(), 8);
    }

    proptest! {
        #[test]
        fn path_round_trips(level in 0..=MAX_LEVEL, index: u64, width in 1..=TILE_WIDTH) {
            let id = TileId::new(level, index, width).expect("in range");
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn path_that_parses_formats_back(path in "tile/[0-9]{1,2}/(x?[0-9]{2,3}/){0,2}[0-9]{3}(\\.p/[0-9]{1,3})?") {
            if let Ok(id) = path.parse::<TileId>() {
                prop_assert_eq!(id.to_string(), path);
            }
        }
    }
}
