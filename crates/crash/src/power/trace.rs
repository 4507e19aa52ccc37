//! A daemon's file operations, as the recorder wrote them down.

use std::{fs, path::Path};

use crate::{Failed, fail};

const MAGIC: u32 = 0x5254_5645;
const HEADER: usize = 40;

/// One file operation. Paths are relative to the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// A file was created.
    Create {
        /// The file's number, until another file gets it.
        inode: u64,
        path: String,
    },
    /// A file got another length.
    Truncate {
        inode: u64,
        /// The new length in bytes.
        length: usize,
    },
    /// Bytes were written into a file.
    Write {
        inode: u64,
        /// In bytes from the beginning of the file.
        offset: usize,
        data: Vec<u8>,
    },
    /// A file's content is durable.
    Sync { inode: u64 },
    /// A directory's names are durable.
    SyncDirectory { path: String },
    /// Everything that was done before is durable.
    SyncAll,
    /// A name was changed to another.
    Rename { from: String, to: String },
    /// A name was removed.
    Remove { path: String },
    /// A directory was created.
    MakeDirectory { path: String },
}

/// An operation, and the length of the trace after it.
#[derive(Debug, Clone)]
pub struct Record {
    /// The position after it.
    pub end: u64,
    pub deed: Deed,
}

/// Reads a trace.
///
/// # Errors
/// [`Failed`] if it is cut or damaged, or has a call that the recorder cannot describe.
pub fn read(path: &Path) -> Result<Vec<Record>, Failed> {
    let bytes = fs::read(path).map_err(fail)?;
    let mut records = Vec::new();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let (deed, left) = record(rest).ok_or_else(|| {
            fail(format!(
                "the trace is damaged {} bytes before its end",
                rest.len()
            ))
        })?;
        rest = left;
        records.push(Record {
            end: (bytes.len() - rest.len()) as u64,
            deed: deed?,
        });
    }
    Ok(records)
}

fn record(bytes: &[u8]) -> Option<(Result<Deed, Failed>, &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    // The recorder ran on this machine and wrote in its byte order.
    let word = |at: usize| Some(u32::from_ne_bytes(header.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(header.get(at..at + 8)?.try_into().ok()?));
    if word(0)? != MAGIC {
        return None;
    }
    let (kind, inode, offset) = (word(4)?, long(8)?, long(16)? as usize);
    let (path, rest) = rest.split_at_checked(word(24)? as usize)?;
    let (second, rest) = rest.split_at_checked(word(28)? as usize)?;
    let (data, rest) = rest.split_at_checked(long(32)? as usize)?;
    let path = String::from_utf8(path.to_vec()).ok()?;
    let to = String::from_utf8(second.to_vec()).ok()?;
    let deed = match char::from_u32(kind)? {
        'C' => Deed::Create { inode, path },
        'T' => Deed::Truncate {
            inode,
            length: offset,
        },
        'W' => Deed::Write {
            inode,
            offset,
            data: data.to_vec(),
        },
        'S' => Deed::Sync { inode },
        'D' => Deed::SyncDirectory { path },
        'A' => Deed::SyncAll,
        'R' => Deed::Rename { from: path, to },
        'U' | 'X' => Deed::Remove { path },
        'M' => Deed::MakeDirectory { path },
        _ => {
            return Some((
                Err(fail(format!("the recorder cannot describe {path}"))),
                rest,
            ));
        }
    };
    Some((Ok(deed), rest))
}
