//! Directories in which others could put other files: no start over them.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use evidenceos_daemon::{
    Config,
    config::{AnchorPlace, Anchoring, check},
};

use crate::harness::{Directory, block_on, config};

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
}

async fn starts(config: &Config) -> Result<(), String> {
    match evidenceos_daemon::start(config.clone()).await {
        Ok(running) => {
            running.stop().await.expect("stops");
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Refuses with the command that mends it, which `config check` says as well; and then starts.
async fn refused_until_mended(config: &Config, open: &Path) {
    let closed = fs::metadata(open).expect("there").mode() & 0o7777;
    for bits in [0o777, 0o757, 0o2777] {
        mode(open, bits);
        let problem = starts(config).await.expect_err("others can write");
        let mend = format!("chmod o-w {}", open.display());
        assert!(problem.contains(&mend), "{bits:o}: {problem}");
        let checked = check(config);
        assert!(
            checked.problems.iter().any(|line| line.contains(&mend)),
            "{checked:?}"
        );
    }
    // A sticky directory lets nobody rename what is another's; a group of the daemon's own may write.
    for bits in [0o1777, 0o2775, closed] {
        mode(open, bits);
        assert_eq!(starts(config).await, Ok(()), "{bits:o}");
    }
}

#[test]
fn others_must_not_write_where_the_data_lies_or_above_it() {
    block_on(async {
        let directory = Directory::new();
        let config = config(directory.path());
        assert_eq!(starts(&config).await, Ok(()));
        refused_until_mended(&config, directory.path()).await;
        refused_until_mended(&config, directory.path().parent().expect("one")).await;
    });
}

#[test]
fn others_must_not_write_above_keys_and_anchors() {
    block_on(async {
        let directory = Directory::new();
        for name in ["above-keys", "anchor"] {
            fs::create_dir(directory.beside(name)).expect("made");
        }
        let config = Config {
            key_dir: Some(directory.beside("above-keys/keys")),
            anchors: Anchoring::At(vec![AnchorPlace::Directory(directory.beside("anchor"))]),
            ..config(directory.path())
        };
        assert_eq!(starts(&config).await, Ok(()));
        refused_until_mended(&config, &directory.beside("above-keys")).await;
        refused_until_mended(&config, &directory.beside("anchor")).await;
        // Keys behind a link: above where it leads counts too.
        fs::create_dir(directory.beside("real")).expect("made");
        let (keys, real) = (
            directory.beside("above-keys/keys"),
            directory.beside("real/keys"),
        );
        fs::rename(&keys, &real).expect("ours");
        std::os::unix::fs::symlink(&real, &keys).expect("made");
        refused_until_mended(&config, &directory.beside("real")).await;
        // Remembered in the database, and not named again.
        let later = Config {
            anchors: Anchoring::Default,
            ..config
        };
        mode(&directory.beside("anchor"), 0o777);
        let problem = starts(&later).await.expect_err("others can write");
        assert!(problem.contains("chmod o-w"), "{problem}");
    });
}

#[test]
fn a_link_to_a_data_directory_is_looked_at_on_both_sides() {
    block_on(async {
        let (directory, other) = (Directory::new(), Directory::new());
        let link = other.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).expect("made");
        let config = config(&link);
        assert_eq!(starts(&config).await, Ok(()));
        for open in [directory.path(), other.path()] {
            mode(open, 0o777);
            starts(&config).await.expect_err("others can write");
            mode(open, 0o700);
        }
        assert_eq!(starts(&config).await, Ok(()));
    });
}
