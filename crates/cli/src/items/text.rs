//! Bytes as text: UTF-8 is read, other formats are named in an error.

use std::{borrow::Cow, io::Read as _};

use flate2::read::MultiGzDecoder;

use crate::error::CliError;

/// The text of a file without its byte order mark, with LF at the end of every line.
///
/// # Errors
/// [`CliError::Usage`] says what the file is instead, and how to convert it to text.
pub fn decoded(bytes: &[u8], name: &str) -> Result<String, CliError> {
    if let Some((what, remedy)) = other_format(bytes) {
        return Err(CliError::Usage(format!("{name} is {what}; {remedy}")));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(line_feeds(text).into_owned()),
        Err(error) => Err(not_utf8(bytes, error.valid_up_to(), name)),
    }
}

/// The content of a file that gzip compressed, at most `most` bytes of it; any other file as it is.
///
/// # Errors
/// [`CliError::Usage`] if it ends early, is damaged or is longer: a few bytes can unpack to any number.
pub fn unpacked(bytes: Vec<u8>, most: u64, name: &str) -> Result<Vec<u8>, CliError> {
    if !bytes.starts_with(b"\x1f\x8b") {
        return Ok(bytes);
    }
    let mut unpacked = Vec::new();
    MultiGzDecoder::new(bytes.as_slice())
        .take(most + 1)
        .read_to_end(&mut unpacked)
        .map_err(|error| {
            CliError::Usage(format!("{name} is compressed by gzip and damaged: {error}"))
        })?;
    if unpacked.len() as u64 > most {
        return Err(CliError::Usage(format!(
            "{name} unpacks to more than {most} bytes"
        )));
    }
    Ok(unpacked)
}

/// Formats that their first bytes reveal: what they are, and what to do.
fn other_format(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    const EXPORT: &str = "export it as CSV (UTF-8)";
    const CONVERT: &str =
        "save it as CSV (UTF-8), or convert it: iconv -f UTF-16 -t UTF-8 IN > OUT";
    let known: [(&[u8], _, _); 7] = [
        (
            b"PK\x03\x04",
            "a workbook (xlsx, ods) or another zip archive",
            EXPORT,
        ),
        (b"\xd0\xcf\x11\xe0", "an old Excel workbook (xls)", EXPORT),
        (b"PAR1", "a Parquet file", EXPORT),
        (b"ARROW1", "an Arrow file", EXPORT),
        (
            b"\x28\xb5\x2f\xfd",
            "compressed by zstd",
            "unpack it first: zstd -dk FILE",
        ),
        (b"\xff\xfe", "UTF-16 text", CONVERT),
        (b"\xfe\xff", "UTF-16 text", CONVERT),
    ];
    let found = known.iter().find(|(magic, ..)| bytes.starts_with(magic));
    if let Some((_, what, remedy)) = found {
        return Some((what, remedy));
    }
    // Text has no NUL; UTF-16 without its mark has one in every other byte.
    let start = &bytes[..bytes.len().min(64)];
    match start.iter().filter(|byte| **byte == 0).count() {
        0 => None,
        some if 3 * some >= start.len() => Some(("UTF-16 text", CONVERT)),
        _ => Some(("no text: it has a NUL byte", EXPORT)),
    }
}

fn not_utf8(bytes: &[u8], valid: usize, name: &str) -> CliError {
    let before = line_feeds(std::str::from_utf8(&bytes[..valid]).unwrap_or_default());
    let line = 1 + before.matches('\n').count();
    CliError::Usage(format!(
        "{name} line {line}: byte 0x{:02x} is not UTF-8; the file is probably Windows-1252, which Excel's plain \"CSV\" \
         is: save it as \"CSV UTF-8\", or convert it: iconv -f WINDOWS-1252 -t UTF-8 IN > OUT",
        bytes[valid]
    ))
}

/// CRLF and a lone CR end a line too.
fn line_feeds(text: &str) -> Cow<'_, str> {
    if text.contains('\r') {
        text.replace("\r\n", "\n").replace('\r', "\n").into()
    } else {
        text.into()
    }
}
