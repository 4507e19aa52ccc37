//! The server of the control socket.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net::UnixListener as StdListener},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use evidenceos_driver::mailbox::Mailbox;
use evidenceos_store::{backup, blobs::Blobs};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::wire::{self, News, Order, SOCKET};
use crate::{
    assemble::health::Health,
    offline::{self, error::BackupError},
};

/// The longest order, in bytes.
const MAX_ORDER: u64 = 64 << 10;
/// How long an order may take to arrive.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at a time.
const CONNECTIONS: usize = 8;
/// Lines that wait for a slow reader; further progress is left out.
const LINES: usize = 64;

/// Answers a client that asked for a reload.
pub type ReloadAsked = oneshot::Sender<Result<(), Vec<String>>>;

/// The listening socket of a data directory whose lock is held.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Puts the socket in place, and replaces one that a crash left.
    ///
    /// # Errors
    /// If the file system does not support sockets.
    pub fn bind(data_directory: &Path) -> io::Result<Self> {
        let path = data_directory.join(SOCKET);
        // The socket is made under a temporary name and renamed: a client finds the old one or a
        // finished one.
        let fresh = format!("{SOCKET}.{}", std::process::id());
        let (directory, short) = wire::short_path(data_directory, &fresh)?;
        match fs::remove_file(&short) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = StdListener::bind(&short)?;
        // It gets its name once no other user may write to it.
        fs::set_permissions(&short, fs::Permissions::from_mode(0o600))?;
        fs::rename(data_directory.join(&fresh), &path)?;
        drop(directory);
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: UnixListener::from_std(listener)?,
            path,
        })
    }

    /// Answers orders until the daemon stops.
    pub fn serve(
        self,
        data_directory: PathBuf,
        mailbox: Mailbox,
        blobs: Blobs,
        health: &Arc<Health>,
        reload: mpsc::Sender<ReloadAsked>,
        mut stopped: watch::Receiver<bool>,
    ) -> JoinHandle<()> {
        let served = Arc::new(Served {
            data_directory,
            mailbox,
            blobs,
            health: Arc::clone(health),
            reload,
            backing_up: AtomicBool::new(false),
            stopped: stopped.clone(),
        });
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    accepted = self.listener.accept() => match accepted {
                        Ok((stream, _)) => stream,
                        Err(error) => {
                            tracing::warn!(%error, "the control socket failed; until the next start backups need the daemon stopped, reloads need SIGHUP, and healthcheck fails");
                            break;
                        }
                    },
                    _ = stopped.wait_for(|stopped| *stopped) => break,
                };
                // A client beyond the limit is disconnected at once.
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                    continue;
                };
                let served = Arc::clone(&served);
                tokio::spawn(async move {
                    served.answer(stream).await;
                    drop(permit);
                });
            }
            // Best effort: the next start replaces it.
            let _ = fs::remove_file(&self.path);
        })
    }
}

struct Served {
    data_directory: PathBuf,
    mailbox: Mailbox,
    blobs: Blobs,
    health: Arc<Health>,
    reload: mpsc::Sender<ReloadAsked>,
    backing_up: AtomicBool,
    stopped: watch::Receiver<bool>,
}

impl Served {
    async fn answer(self: Arc<Self>, stream: UnixStream) {
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == rustix::process::geteuid().as_raw() || peer.uid() == 0 => {}
            peer => {
                tracing::warn!(?peer, "the control socket refused another user");
                return;
            }
        }
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        let mut reader = tokio::io::BufReader::new(read.take(MAX_ORDER));
        // A silent client must not keep one of the few places.
        let order = match tokio::time::timeout(ORDER_TIMEOUT, reader.read_line(&mut line)).await {
            Ok(Ok(_)) => serde_json::from_str::<Order>(&line)
                .map_err(|error| format!("not a command of this release: {error}")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no command came".to_owned()),
        };
        match order {
            Ok(Order::Backup { destination }) => self.back_up(destination, &mut write).await,
            Ok(Order::Health) => say(&News::Health(self.health.condition()), &mut write).await,
            Ok(Order::Reload) => say(&self.reload().await, &mut write).await,
            Err(wrong) => say(&News::Failed(wrong), &mut write).await,
        }
    }

    async fn reload(&self) -> News {
        let (asked, done) = oneshot::channel();
        let stops = || News::Failed("the daemon is stopping".to_owned());
        if self.reload.send(asked).await.is_err() {
            return stops();
        }
        match done.await {
            Ok(Ok(())) => News::Reloaded,
            Ok(Err(problems)) => News::Failed(problems.join("\n")),
            Err(_) => stops(),
        }
    }

    async fn back_up(
        self: Arc<Self>,
        destination: PathBuf,
        write: &mut (impl tokio::io::AsyncWrite + Unpin),
    ) {
        let (lines, mut news) = mpsc::channel(LINES);
        let served = Arc::clone(&self);
        let work = tokio::task::spawn_blocking(move || served.back_up_here(&destination, &lines));
        while let Some(line) = news.recv().await {
            if write.write_all(&wire::line(&line)).await.is_err() {
                // The sender sees that the client has gone, and breaks off.
                news.close();
                break;
            }
        }
        let last = match work.await {
            Ok(Ok(manifest)) => News::Done(Box::new(manifest)),
            Ok(Err(error)) => News::Failed(error.to_string()),
            Err(panic) => News::Failed(panic.to_string()),
        };
        if let News::Failed(error) = &last {
            tracing::error!(error, "a backup failed");
        }
        say(&last, write).await;
    }

    fn back_up_here(
        &self,
        destination: &Path,
        lines: &mpsc::Sender<News>,
    ) -> Result<backup::Manifest, BackupError> {
        if self.backing_up.swap(true, Ordering::AcqRel) {
            return Err(BackupError::Busy);
        }
        // Blobs that the copied rows name must stay until they are copied too.
        let kept = self.blobs.keep_all();
        let made = offline::backup::of_served(
            &self.mailbox,
            &self.data_directory,
            destination,
            &mut |progress| {
                if *self.stopped.borrow() {
                    return Err(BackupError::Stopping);
                }
                match lines.try_send(News::Progress(progress)) {
                    Err(mpsc::error::TrySendError::Closed(_)) => Err(BackupError::Abandoned),
                    Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
                }
            },
        );
        drop(kept);
        self.backing_up.store(false, Ordering::Release);
        made
    }
}

/// Sends the last line. A client that does not wait for it has gone.
async fn say(news: &News, write: &mut (impl tokio::io::AsyncWrite + Unpin)) {
    let _ = write.write_all(&wire::line(news)).await;
}
