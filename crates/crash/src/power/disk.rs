//! A disk that keeps synced data, and of the rest whatever chance leaves.
//!
//! Stricter than any file system that we know: a sync of a file makes its content durable but not its name; a sync of
//! a directory makes its names durable but not the files that they lead to. Data that was not synced is kept or lost,
//! each write and each name by itself, and only some sectors of a write may be kept.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, DirBuilder, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use super::trace::Deed;
use crate::{Failed, dice::Dice, fail};

/// The unit that a disk writes whole or not at all.
const SECTOR: usize = 512;
const ROOT: usize = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    File(usize),
    Directory(usize),
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

#[derive(Debug, Default)]
struct File {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

/// A change of names in one directory: both halves of a rename, or neither.
#[derive(Debug, Clone)]
struct Renaming {
    gone: Option<String>,
    new: Option<(String, Node)>,
}

#[derive(Debug, Default)]
struct Directory {
    durable: BTreeMap<String, Node>,
    pending: Vec<Renaming>,
}

/// The share of unsynced changes that chance keeps.
#[derive(Debug, Clone, Copy)]
pub enum Luck {
    /// No unsynced change is kept.
    None,
    /// Every change is kept: the process died, the power did not.
    All,
    /// Each change is kept with a chance in eighths; of the kept ones, a share in eighths is torn.
    Some {
        /// In eighths; the chance that a change is kept.
        there: u64,
        /// In eighths; the chance that a kept change is torn.
        torn: u64,
    },
}

impl Luck {
    /// One of the kinds of luck.
    pub fn draw(dice: &mut Dice) -> Self {
        match dice.below(8) {
            0 => Self::None,
            1 => Self::All,
            kind => Self::Some {
                there: [1, 4, 4, 4, 7, 7][kind as usize - 2],
                torn: dice.below(5),
            },
        }
    }

    fn is_there(self, dice: &mut Dice) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some { there, .. } => dice.below(8) < there,
        }
    }

    fn is_torn(self, dice: &mut Dice) -> bool {
        match self {
            Self::None | Self::All => false,
            Self::Some { torn, .. } => dice.below(8) < torn,
        }
    }
}

/// The disk of one data directory.
#[derive(Debug)]
pub struct Disk {
    files: Vec<File>,
    directories: Vec<Directory>,
    by_inode: HashMap<u64, usize>,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            directories: vec![Directory::default()],
            by_inode: HashMap::new(),
        }
    }
}

impl Disk {
    /// Applies a recorded operation.
    ///
    /// # Errors
    /// [`Failed`] if it is impossible on this disk: the recorder has missed something.
    pub fn apply(&mut self, deed: &Deed) -> Result<(), Failed> {
        match deed {
            Deed::Create { inode, path } => {
                let file = self.files.len();
                self.files.push(File::default());
                // The number of a removed file may be reused for another one.
                self.by_inode.insert(*inode, file);
                self.name(path, Node::File(file))
            }
            Deed::MakeDirectory { path } => {
                let directory = self.directories.len();
                self.directories.push(Directory::default());
                self.name(path, Node::Directory(directory))
            }
            Deed::Write {
                inode,
                offset,
                data,
            } => {
                let change = Change::Write(*offset, data.clone());
                self.file(*inode)?.pending.push(change);
                Ok(())
            }
            Deed::Truncate { inode, length } => {
                self.file(*inode)?.pending.push(Change::Truncate(*length));
                Ok(())
            }
            Deed::Sync { inode } => {
                self.file(*inode)?.sync();
                Ok(())
            }
            Deed::SyncDirectory { path } => {
                let directory = self.directory(path)?;
                self.directories[directory].sync();
                Ok(())
            }
            Deed::SyncAll => {
                self.files.iter_mut().for_each(File::sync);
                self.directories.iter_mut().for_each(Directory::sync);
                Ok(())
            }
            Deed::Rename { from, to } => self.rename(from, to),
            Deed::Remove { path } => {
                let (parent, name) = self.place(path)?;
                self.directories[parent].pending.push(Renaming {
                    gone: Some(name),
                    new: None,
                });
                Ok(())
            }
        }
    }

    fn file(&mut self, inode: u64) -> Result<&mut File, Failed> {
        let file = self.by_inode.get(&inode);
        let file = file.ok_or_else(|| fail("a file that was never made"))?;
        Ok(&mut self.files[*file])
    }

    fn directory(&self, path: &str) -> Result<usize, Failed> {
        let mut directory = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            match self.directories[directory].now().get(name) {
                Some(Node::Directory(below)) => directory = *below,
                _ => return Err(fail(format!("{path} was never made"))),
            }
        }
        Ok(directory)
    }

    fn place(&self, path: &str) -> Result<(usize, String), Failed> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.directory(parent)?, name.to_owned()))
    }

    fn name(&mut self, path: &str, node: Node) -> Result<(), Failed> {
        let (parent, name) = self.place(path)?;
        self.directories[parent].pending.push(Renaming {
            gone: None,
            new: Some((name, node)),
        });
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), Failed> {
        let ((parent, from), (into, to)) = (self.place(from)?, self.place(to)?);
        if parent != into {
            return Err(fail("a rename into another directory"));
        }
        // The process sees every name, durable or not.
        let node = self.directories[parent].now().get(&from).copied();
        let node = node.ok_or_else(|| fail(format!("{from} was never made")))?;
        self.directories[parent].pending.push(Renaming {
            gone: Some(from),
            new: Some((to, node)),
        });
        Ok(())
    }

    /// Writes the files that chance leaves into a directory, which is created.
    ///
    /// # Errors
    /// [`Failed`] if the directory cannot be written.
    pub fn leave(&self, into: &Path, luck: Luck, dice: &mut Dice) -> Result<(), Failed> {
        self.leave_directory(ROOT, into, luck, dice)
    }

    fn leave_directory(
        &self,
        directory: usize,
        into: &Path,
        luck: Luck,
        dice: &mut Dice,
    ) -> Result<(), Failed> {
        DirBuilder::new().mode(0o700).create(into).map_err(fail)?;
        for (name, node) in self.directories[directory].left(luck, dice) {
            let path = into.join(name);
            match node {
                Node::Directory(below) => self.leave_directory(below, &path, luck, dice)?,
                Node::File(file) => {
                    let mut options = OpenOptions::new();
                    options.write(true).create_new(true).mode(0o600);
                    let content = self.files[file].left(luck, dice);
                    let written = options
                        .open(&path)
                        .and_then(|mut file| file.write_all(&content));
                    written.map_err(fail)?;
                }
            }
        }
        Ok(())
    }
}

impl File {
    fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            change.apply(&mut self.durable, |_| true);
        }
    }

    fn left(&self, luck: Luck, dice: &mut Dice) -> Vec<u8> {
        let mut content = self.durable.clone();
        for change in &self.pending {
            if luck.is_there(dice) {
                if luck.is_torn(dice) {
                    change.apply(&mut content, |_| dice.one_in(2));
                } else {
                    change.apply(&mut content, |_| true);
                }
            }
        }
        content
    }
}

impl Change {
    /// Applies the change, sector by sector as far as they are kept.
    fn apply(&self, content: &mut Vec<u8>, mut is_there: impl FnMut(usize) -> bool) {
        match self {
            Self::Truncate(length) => content.resize(*length, 0),
            Self::Write(offset, data) => {
                let end = offset + data.len();
                let mut at = *offset;
                while at < end {
                    let until = end.min((at / SECTOR + 1) * SECTOR);
                    if is_there(at / SECTOR) {
                        if content.len() < until {
                            content.resize(until, 0);
                        }
                        content[at..until].copy_from_slice(&data[at - offset..until - offset]);
                    }
                    at = until;
                }
            }
        }
    }
}

impl Directory {
    fn now(&self) -> BTreeMap<String, Node> {
        let mut names = self.durable.clone();
        self.pending
            .iter()
            .for_each(|change| change.apply(&mut names));
        names
    }

    fn sync(&mut self) {
        self.durable = self.now();
        self.pending.clear();
    }

    fn left(&self, luck: Luck, dice: &mut Dice) -> BTreeMap<String, Node> {
        let mut names = self.durable.clone();
        for change in &self.pending {
            if luck.is_there(dice) {
                change.apply(&mut names);
            }
        }
        names
    }
}

impl Renaming {
    fn apply(&self, names: &mut BTreeMap<String, Node>) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        if let Some((name, node)) = &self.new {
            names.insert(name.clone(), *node);
        }
    }
}

/// Checks that two directories are equal, except for files that each start rebuilds.
///
/// # Errors
/// [`Failed`] with the first difference.
pub fn must_be_equal(one: &Path, other: &Path) -> Result<(), Failed> {
    let list = |path: &Path| -> Result<BTreeMap<String, bool>, Failed> {
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(path).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with("-shm") && !name.starts_with("control.sock") {
                names.insert(name, entry.file_type().map_err(fail)?.is_dir());
            }
        }
        Ok(names)
    };
    let (names, others) = (list(one)?, list(other)?);
    if names != others {
        return Err(fail(format!(
            "{} has {names:?}, {} has {others:?}",
            one.display(),
            other.display()
        )));
    }
    for (name, is_directory) in names {
        let (one, other) = (one.join(&name), other.join(&name));
        if is_directory {
            must_be_equal(&one, &other)?;
        } else if fs::read(&one).map_err(fail)? != fs::read(&other).map_err(fail)? {
            return Err(fail(format!(
                "{} and {} differ",
                one.display(),
                other.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(deeds: &[Deed]) -> Disk {
        let mut disk = Disk::default();
        for deed in deeds {
            disk.apply(deed).expect("it can be done");
        }
        disk
    }

    fn create(inode: u64, path: &str) -> Deed {
        let path = path.to_owned();
        Deed::Create { inode, path }
    }

    fn write(inode: u64, offset: usize, data: &[u8]) -> Deed {
        let data = data.to_vec();
        Deed::Write {
            inode,
            offset,
            data,
        }
    }

    /// The names and contents that a share of luck leaves.
    fn left(disk: &Disk, luck: Luck, seed: u64) -> BTreeMap<String, Vec<u8>> {
        let home = tempfile::tempdir().expect("a directory");
        let image = home.path().join("image");
        disk.leave(&image, luck, &mut Dice::new(seed))
            .expect("writable");
        let names = fs::read_dir(&image).expect("there");
        names
            .map(|entry| {
                let entry = entry.expect("readable");
                let name = entry.file_name().to_string_lossy().into_owned();
                (name, fs::read(entry.path()).expect("a file"))
            })
            .collect()
    }

    #[test]
    fn without_luck_only_what_was_synced_is_there() {
        let root = || Deed::SyncDirectory {
            path: String::new(),
        };
        let mut deeds = vec![create(1, "a"), write(1, 0, b"old"), Deed::Sync { inode: 1 }];
        assert!(
            left(&disk(&deeds), Luck::None, 0).is_empty(),
            "its name was not synced"
        );
        deeds.push(root());
        deeds.push(write(1, 0, b"new"));
        assert_eq!(left(&disk(&deeds), Luck::None, 0)["a"], b"old");
        assert_eq!(left(&disk(&deeds), Luck::All, 0)["a"], b"new");
        deeds.extend([
            create(2, "t"),
            write(2, 0, b"whole"),
            Deed::Sync { inode: 2 },
        ]);
        let (from, to) = ("t".to_owned(), "a".to_owned());
        deeds.push(Deed::Rename { from, to });
        assert_eq!(left(&disk(&deeds), Luck::None, 0)["a"], b"old");
        deeds.push(root());
        let after = left(&disk(&deeds), Luck::None, 0);
        assert_eq!(
            (after["a"].as_slice(), after.len()),
            (b"whole".as_slice(), 1)
        );
    }

    #[test]
    fn torn_writes_are_torn_at_sectors() {
        let mut deeds = vec![create(1, "a"), write(1, 0, &[1; 4 * SECTOR])];
        deeds.extend([Deed::Sync { inode: 1 }, Deed::SyncAll]);
        deeds.push(write(1, SECTOR / 2, &[2; 3 * SECTOR]));
        let torn = Luck::Some { there: 8, torn: 8 };
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let content = &left(&disk(&deeds), torn, seed)["a"];
            let pieces = [
                0..SECTOR / 2,
                SECTOR / 2..SECTOR,
                SECTOR..2 * SECTOR,
                2 * SECTOR..3 * SECTOR,
            ];
            for piece in &pieces {
                assert!(
                    content[piece.clone()]
                        .windows(2)
                        .all(|pair| pair[0] == pair[1])
                );
            }
            assert_eq!(content[0], 1);
            seen.insert(pieces.map(|piece| content[piece.start]));
        }
        assert_eq!(seen.len(), 8, "each of three sectors, there or not");
    }

    #[test]
    fn a_number_that_is_used_again_is_another_file() {
        let remove = Deed::Remove {
            path: "a".to_owned(),
        };
        let deeds = [
            create(1, "a"),
            write(1, 0, b"first"),
            Deed::SyncAll,
            remove,
            create(1, "b"),
            write(1, 0, b"second"),
        ];
        assert_eq!(left(&disk(&deeds), Luck::None, 0)["a"], b"first");
        assert_eq!(left(&disk(&deeds), Luck::All, 0)["b"], b"second");
    }
}
