//! Tiles and bundles of entries: their names, and their bytes.

use evidenceos_tlog::{
    BundleId, Hash, TileId,
    tile::{TILE_WIDTH, decode_entries, decode_hashes, encode_entries, encode_hashes},
};

/// What decodes encodes back to the same bytes, and holds 1 to 256 hashes or entries.
pub fn check(bytes: &[u8]) {
    let widths = 1..=usize::from(TILE_WIDTH);
    if let Ok(hashes) = decode_hashes(bytes) {
        assert!(widths.contains(&hashes.len()));
        assert_eq!(encode_hashes(&hashes), bytes);
    }
    if let Ok(entries) = decode_entries(bytes) {
        assert!(widths.contains(&entries.len()));
        assert_eq!(encode_entries(&entries).as_deref(), Ok(bytes));
    }
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    if let Ok(tile) = text.parse::<TileId>() {
        assert_eq!(tile.to_string(), text);
        assert_eq!(
            TileId::new(tile.level(), tile.index(), tile.width()),
            Ok(tile)
        );
    }
    if let Ok(bundle) = text.parse::<BundleId>() {
        assert_eq!(bundle.to_string(), text);
        assert_eq!(BundleId::new(bundle.index(), bundle.width()), Ok(bundle));
    }
    if let Ok(hash) = Hash::from_hex(text) {
        assert_eq!(hash.to_hex(), text);
    }
    if let Ok(hash) = Hash::from_base64(text) {
        assert_eq!(hash.to_base64(), text);
    }
}
