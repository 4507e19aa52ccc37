//! Small files that users hand over: tokens, keys, receipts.
//!
//! Owns the byte order mark: editors put it before a text, and no format here allows it.

use std::path::Path;

use crate::error::CliError;

/// A file's bytes.
///
/// # Errors
/// [`CliError::File`] with the path.
pub fn bytes(path: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(path).map_err(CliError::file(path))
}

/// A file's bytes without a byte order mark.
///
/// # Errors
/// [`CliError::File`] with the path.
pub fn unmarked(path: &Path) -> Result<Vec<u8>, CliError> {
    bytes(path).map(|bytes| evidenceos_files::without_mark(&bytes).to_vec())
}

/// A file's text without a byte order mark.
///
/// # Errors
/// [`CliError::File`] with the path; UTF-16, which Windows calls "Unicode", is named.
pub fn text(path: &Path) -> Result<String, CliError> {
    let text = unmarked(path)?;
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = text[..] {
        return Err(CliError::Usage(format!(
            "{}: this is UTF-16; save it as UTF-8",
            path.display()
        )));
    }
    String::from_utf8(text)
        .map_err(|_| CliError::Usage(format!("{}: this is not UTF-8 text", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("f");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("writable");
            text(&path).map_err(|error| error.to_string())
        };
        assert_eq!(read(b"\xef\xbb\xbfa\n"), Ok("a\n".to_owned()));
        assert_eq!(read(b"a"), Ok("a".to_owned()));
        assert!(
            read(b"\xff\xfea\0")
                .expect_err("refused")
                .contains("UTF-16")
        );
        assert!(
            read(b"\xfe\xff\0a")
                .expect_err("refused")
                .contains("UTF-16")
        );
        assert!(read(b"\xe9").expect_err("refused").contains("UTF-8"));
    }
}
