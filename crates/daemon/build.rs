//! Tells the program which commit it is built from.

use std::{env, fs, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-env-changed=EVIDENCEOS_BUILD_COMMIT");
    let given = env::var("EVIDENCEOS_BUILD_COMMIT")
        .ok()
        .filter(|commit| is_commit(commit));
    let mut version = env!("CARGO_PKG_VERSION").to_owned();
    if let Some(commit) = given.or_else(of_the_checkout) {
        println!("cargo::rustc-env=EVIDENCEOS_BUILD_COMMIT={commit}");
        version.push_str(&format!(" ({})", &commit[..commit.len().min(12)]));
    }
    println!("cargo::rustc-env=EVIDENCEOS_VERSION={version}");
}

/// The commit of the checkout. For what is shipped alone: a debug build would be made anew with every commit.
fn of_the_checkout() -> Option<String> {
    // Without this line cargo would look at every file of the package.
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("PROFILE").ok()? != "release" {
        return None;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .current_dir(&root)
            .args(arguments)
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    // The file that moves with each commit, wherever a worktree has it.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]) {
            println!("cargo::rerun-if-changed={}", root.join(path).display());
        }
    }
    git(&["rev-parse", "HEAD"])
        .or_else(|| of_files(&root.join(".git")))
        .filter(|commit| is_commit(commit))
}

/// The commit by git's files alone: the image is built from HEAD and the references, without the history.
fn of_files(git: &Path) -> Option<String> {
    let read = |path: &str| fs::read_to_string(git.join(path)).ok();
    let head = read("HEAD")?;
    let Some(name) = head.trim().strip_prefix("ref: ") else {
        return Some(head.trim().to_owned());
    };
    if let Some(commit) = read(name) {
        return Some(commit.trim().to_owned());
    }
    let packed = read("packed-refs")?;
    let line = packed
        .lines()
        .find(|line| line.ends_with(&format!(" {name}")))?;
    line.split(' ').next().map(str::to_owned)
}

fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
