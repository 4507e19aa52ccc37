//! Backups, restores and recoveries that are interrupted by a crash.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Failed, check, check::must, client::Client, fail, recorder::Arming, world::World};

/// Steps before the backup from which a log is recovered, and after it.
const STEPS: u64 = 60;

/// A backup dies; its leftover is not a backup, and another one is made and restored.
pub async fn backup(world: &mut World, arming: Arming) -> Result<(), Failed> {
    let broken = world.beside(&format!("broken-{}", arming.point.name()));
    must(
        !world
            .command(&["backup", text(&broken)?], &[arming])
            .await?
            .0,
        || format!("at {arming} the backup went on"),
    )?;
    must(!broken.join("backup.json").exists(), || {
        "half a backup says that it is one".to_owned()
    })?;
    let whole = whole_backup(world, &arming).await?;
    bring_back(world, &whole).await?;
    world.died_at(arming)
}

/// A restore dies; a second restore refuses its leftover, because the directory is not empty.
pub async fn restore(world: &mut World, arming: Arming) -> Result<(), Failed> {
    let whole = whole_backup(world, &arming).await?;
    let aside = world.beside("aside");
    fs::rename(world.directory(), &aside).map_err(fail)?;
    let (fine, _) = world
        .command(&["restore", text(&whole)?], &[arming])
        .await?;
    must(!fine, || format!("at {arming} the restore went on"))?;
    let (fine, said) = world.command(&["restore", text(&whole)?], &[]).await?;
    must(!fine && said.contains("empty"), || {
        format!("a second restore over half of one says {said}")
    })?;
    fs::remove_dir_all(world.directory()).map_err(fail)?;
    fs::rename(&aside, world.directory()).map_err(fail)?;
    bring_back(world, &whole).await?;
    world.died_at(arming)
}

/// The directory is restored from an older state, and the end of its log from a mirror. The claims
/// are lost with their rows; the log and its charges are not.
pub async fn recover(world: &mut World, arming: Arming) -> Result<(), Failed> {
    world.begin().await?;
    world.load(STEPS).await?;
    let older = whole_backup(world, &arming).await?;
    world.load(STEPS).await?;
    let mirror = world.beside("mirror");
    copy(&world.directory().join("log"), &mirror)?;
    let published = fs::read_to_string(mirror.join("checkpoint")).map_err(fail)?;
    restored(world, &older).await?;
    // The daemon's anchor knows more: it serves reads, and nothing else.
    let daemon = world.launcher().serve().await?;
    must(daemon.is_held(), || {
        "a rolled back directory is served as if it were the newest".to_owned()
    })?;
    daemon.stop().await?;
    let arguments = ["log", "recover", "--from", text(&mirror)?];
    // The second recovery starts from the first one's leftover, and dies too.
    for _ in 0..2 {
        let (fine, _) = world.command(&arguments, &[arming]).await?;
        must(!fine, || format!("at {arming} the recovery went on"))?;
    }
    let (fine, said) = world.command(&arguments, &[]).await?;
    must(fine, || format!("the recovery says {said}"))?;
    let daemon = world.launcher().serve().await?;
    let client = Client::connect(daemon.address()).await?;
    let mut client = client.ok_or_else(|| fail("nobody listens"))?;
    let now = check::stated(&client.checkpoint().await?)?;
    let before = check::stated(&published)?;
    must(
        (now.size(), now.root()) == (before.size(), before.root()),
        || {
            format!(
                "the log of {} entries came back with {}",
                before.size(),
                now.size()
            )
        },
    )?;
    daemon.stop().await?;
    world.died_at(arming)
}

async fn whole_backup(world: &mut World, arming: &Arming) -> Result<PathBuf, Failed> {
    let whole = world.beside(&format!("backup-{}", arming.point.name()));
    let (fine, said) = world.command(&["backup", text(&whole)?], &[]).await?;
    must(fine, || format!("the backup says {said}"))?;
    Ok(whole)
}

/// Puts a backup in the directory's place, as an operator does, and checks everything.
async fn bring_back(world: &mut World, backup: &Path) -> Result<(), Failed> {
    restored(world, backup).await?;
    world.settle().await
}

async fn restored(world: &mut World, backup: &Path) -> Result<(), Failed> {
    let aside = world.beside("aside");
    fs::rename(world.directory(), &aside).map_err(fail)?;
    let (fine, said) = world.command(&["restore", text(backup)?], &[]).await?;
    must(fine, || format!("the restore says {said}"))?;
    // Keys and secrets are backed up separately.
    for name in ["keys", "secrets"] {
        copy(&aside.join(name), &world.directory().join(name))?;
    }
    fs::remove_dir_all(&aside).map_err(fail)
}

fn copy(from: &Path, to: &Path) -> Result<(), Failed> {
    fs::create_dir_all(to).map_err(fail)?;
    fs::set_permissions(to, fs::metadata(from).map_err(fail)?.permissions()).map_err(fail)?;
    for entry in fs::read_dir(from).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path
            .file_name()
            .ok_or_else(|| fail("a file without a name"))?;
        if path.is_dir() {
            copy(&path, &to.join(name))?;
        } else {
            fs::copy(&path, to.join(name)).map_err(fail)?;
        }
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str, Failed> {
    path.to_str().ok_or_else(|| fail("a path that is no text"))
}
