//! A directory of a test's own, and commands in it.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_evidenceos");
/// The key of the mock KMS.
pub const MOCK_KEY: &str = "0707070707070707070707070707070707070707070707070707070707070707";

/// A directory, and commands that run in it with nothing in their environment.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BIN);
        command.args(args).env_clear().current_dir(self.0.path());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the command runs")
    }

    /// What a success prints.
    pub fn text(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.text(&[args, &["--json"]].concat());
        serde_json::from_str(&text).expect("JSON")
    }

    /// A failure: its exit code, and a part of its sentence.
    pub fn fails(&self, args: &[&str], code: i32, part: &str) {
        let output = self.run(args);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(part), "{args:?}: {error}");
    }

    pub fn mode(&self, name: &str) -> u32 {
        let metadata = fs::metadata(self.path(name)).expect(name);
        metadata.mode() & 0o7777
    }

    pub fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).expect(name);
    }

    /// The only file of a directory that ends so.
    pub fn only(&self, directory: &str, suffix: &str) -> PathBuf {
        let listing = fs::read_dir(self.path(directory)).expect(directory);
        let paths = listing.map(|entry| entry.expect("an entry").path());
        let mut found = paths.filter(|path| path.to_string_lossy().ends_with(suffix));
        let only = found.next().expect("one file");
        assert!(found.next().is_none(), "one file");
        only
    }

    /// Every file under a directory, with its content.
    pub fn files(&self, directory: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut open = vec![self.path(directory)];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).expect("a listing") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    files.insert(path.clone(), fs::read(&path).expect("a file"));
                }
            }
        }
        files
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn text_of<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().expect(name)
}
