//! Disks that are full, small or read-only. They need a file system of their own, which only root
//! can mount; where that is not permitted these tests say so and pass.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use evidenceos_daemon::{Config, Running};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::harness::{Client, block_on, config, judged, predictions, refused, terms};

/// A file system of some MiB; unmounted when it goes.
struct Small {
    kept: TempDir,
}

impl Small {
    fn mounted(mebibytes: u32) -> Option<Self> {
        let kept = tempfile::tempdir().expect("a directory");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"])
            .arg(kept.path())
            .output();
        match mount {
            Ok(done) if done.status.success() => Some(Self { kept }),
            Ok(done) => {
                eprintln!("skipped: {}", String::from_utf8_lossy(&done.stderr).trim());
                None
            }
            Err(error) => {
                eprintln!("skipped: mount: {error}");
                None
            }
        }
    }

    fn data(&self) -> PathBuf {
        self.kept.path().join("data")
    }

    /// Takes all that is left, but for some KiB.
    fn fill(&self, leave_kib: usize) {
        let path = self.kept.path().join("filler");
        let mut written = 0_usize;
        let mut file = fs::File::create(&path).expect("there is room for a name");
        while std::io::Write::write_all(&mut file, &[0; 4_096]).is_ok() {
            written += 4_096;
        }
        file.set_len(written.saturating_sub(leave_kib << 10) as u64)
            .expect("shorter");
    }

    fn free(&self) {
        fs::remove_file(self.kept.path().join("filler")).expect("filled before");
    }

    fn remount(&self, how: &str) -> bool {
        Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(self.kept.path())
            .status()
            .is_ok_and(|status| status.success())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.kept.path())
            .status();
    }
}

async fn start(data: &Path, min_free_bytes: u64) -> Running {
    let config = Config {
        min_free_bytes,
        ..config(data)
    };
    evidenceos_daemon::start(config).await.expect("starts")
}

async fn client(running: &Running) -> Client {
    Client::connect(&running.grpc_address().to_string(), None).await
}

/// Creates claims until one is refused; returns how many were acknowledged, and the refusal.
async fn until_refused(client: &mut Client, from: usize) -> (usize, Status) {
    for n in from.. {
        if let Err(status) = client.create(terms(&format!("claim {n}"), "h")).await {
            return (n, status);
        }
    }
    unreachable!("the disk is small")
}

async fn until_taken(client: &mut Client, name: &str) {
    let mut tries = 0;
    while let Err(status) = client.create(terms(name, "h")).await {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        tries += 1;
        assert!(tries < 500, "there is space again");
    }
}

#[test]
fn a_full_disk_refuses_new_work_and_is_left_without_a_restart() {
    let Some(disk) = Small::mounted(24) else {
        return;
    };
    block_on(async {
        // Without a low-water mark: the hard end.
        let running = start(&disk.data(), 0).await;
        let mut client = client(&running).await;
        client.put_default("h").await;
        let (claim, _) = client
            .run("before", "h", &judged(&predictions("h", 2)))
            .await;
        disk.fill(0);
        let (acknowledged, status) = until_refused(&mut client, 0).await;
        refused::<()>(
            Err(status),
            Code::ResourceExhausted,
            "DISK_FULL",
            "disk is full",
        );
        client.fetch(&claim).await.expect("reads go on");
        let large = vec![0_u8; 100_000];
        let refused_module = client.commit(&claim, &large).await;
        assert!(refused_module.is_err());
        disk.free();
        until_taken(&mut client, "after").await;
        let (_, result) = client
            .run("run after", "h", &judged(&predictions("h", 2)))
            .await;
        assert!(result.etl_index > 0);
        running.stop().await.expect("stops well");
        let again = start(&disk.data(), 0).await;
        let mut client = self::client(&again).await;
        for n in 0..acknowledged {
            // Creating it again finds it as it is.
            client
                .create(terms(&format!("claim {n}"), "h"))
                .await
                .expect("there");
        }
        again.stop().await.expect("stops");
    });
}

#[test]
fn below_the_low_water_mark_what_was_begun_ends_and_nothing_begins() {
    let Some(disk) = Small::mounted(32) else {
        return;
    };
    block_on(async {
        let running = start(&disk.data(), 8 << 20).await;
        let mut client = client(&running).await;
        client.put_default("h").await;
        let settled = client
            .sealed("settled", "h", &judged(&predictions("h", 2)))
            .await;
        client.execute(&settled).await.expect("settles");
        disk.fill(4 << 10);
        let status = client.create(terms("new", "h")).await;
        refused(status, Code::ResourceExhausted, "DISK_FULL", "disk is full");
        let put = client
            .put(crate::harness::header("g"), &crate::harness::labels("g"))
            .await;
        refused(put, Code::ResourceExhausted, "DISK_FULL", "disk is full");
        // What ends something or protects it goes on: results, and taking them back.
        client.execute(&settled).await.expect("the recorded result");
        let revoke = client.request(evidenceos_proto::RevokeClaimRequest {
            claim_id: settled.clone(),
            reason: "wrong".to_owned(),
        });
        client.inner.revoke_claim(revoke).await.expect("goes on");
        disk.free();
        until_taken(&mut client, "new").await;
        running.stop().await.expect("stops");
    });
}

#[test]
fn a_start_on_a_full_or_read_only_disk_says_so() {
    let Some(disk) = Small::mounted(24) else {
        return;
    };
    block_on(async {
        let running = start(&disk.data(), 0).await;
        client(&running).await.put_default("h").await;
        running.stop().await.expect("stops");
        disk.fill(0);
        if let Err(refused) = evidenceos_daemon::start(config(&disk.data())).await {
            assert!(refused.to_string().contains("full"), "{refused}");
        }
        disk.free();
        if !disk.remount("ro") {
            eprintln!("skipped: the disk cannot be remounted read-only");
            return;
        }
        let refused = evidenceos_daemon::start(config(&disk.data())).await;
        let refused = refused.err().expect("nothing can be written").to_string();
        assert!(refused.to_lowercase().contains("read-only"), "{refused}");
        assert!(disk.remount("rw"));
        let running = start(&disk.data(), 0).await;
        client(&running).await.holdout("h").await;
        running.stop().await.expect("stops");
    });
}
