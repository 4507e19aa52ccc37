//! The control socket: what an operator on the same machine asks of a running daemon.
//!
//! `<data-dir>/control.sock`, mode 0600, answers only to its own user and root, which the kernel
//! tells. One JSON line comes in, JSON lines go out: progress, then how it ended. Nothing of it
//! is reachable over a network.
//!
//! | in | `{"command":"backup","destination":"/abs/path"}` |
//! |---|---|
//! | out, any number | `{"progress":{"stage":"database","done":256,"total":900}}` |
//! | out, last | `{"done":{…}}` or `{"failed":"…"}` |
//!
//! | in | `{"command":"health"}` |
//! |---|---|
//! | out | `{"health":"serving"}` |
//!
//! | in | `{"command":"reload"}` |
//! |---|---|
//! | out | `"reloaded"` or `{"failed":"…"}` |

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::PermissionsExt as _, net::UnixListener as StdListener, net::UnixStream as StdStream,
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use evidenceos_store::{StoreError, backup};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    grpc::Edge,
    http::{Condition, Health},
    upkeep,
};

/// The socket's name in the data directory.
pub const SOCKET: &str = "control.sock";
/// The longest order, in bytes.
const MAX_ORDER: u64 = 64 << 10;
/// How long an order may take to arrive.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a daemon may think about how it is.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections at a time.
const CONNECTIONS: usize = 8;
/// Lines that wait for a slow reader; progress beyond it is left out.
const LINES: usize = 64;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Back the data directory up.
    Backup {
        /// An absolute path; empty, or not there yet.
        destination: PathBuf,
    },
    /// Say whether calls are served.
    Health,
    /// Read certificates, roles, secrets, keys and policies again, as on SIGHUP.
    Reload,
}

/// Somebody who wants everything to be read again, and waits for what came of it.
pub type ReloadAsked = oneshot::Sender<Result<(), Vec<String>>>;

/// What is answered, a line each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// So far.
    Progress(backup::Progress),
    /// It is done.
    Done(Box<backup::Manifest>),
    /// It is not, and why.
    Failed(String),
    /// Whether calls are served.
    Health(Condition),
    /// Everything was read again.
    Reloaded,
}

/// The listening socket of a data directory whose lock is held.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Puts the socket in place. One that a crash left is replaced.
    ///
    /// # Errors
    /// Where the file system takes no sockets.
    pub fn bind(data_directory: &Path) -> io::Result<Self> {
        let path = data_directory.join(SOCKET);
        let fresh = format!("{SOCKET}.{}", std::process::id());
        let (directory, short) = short_path(data_directory, &fresh)?;
        match fs::remove_file(&short) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = StdListener::bind(&short)?;
        // It gets its name once nobody else may write to it.
        fs::set_permissions(&short, fs::Permissions::from_mode(0o600))?;
        fs::rename(data_directory.join(&fresh), &path)?;
        drop(directory);
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: UnixListener::from_std(listener)?,
            path,
        })
    }

    /// Answers until told to stop.
    pub fn serve(
        self,
        data_directory: PathBuf,
        edge: &Arc<Edge>,
        health: &Arc<Health>,
        reload: mpsc::Sender<ReloadAsked>,
        mut stopped: watch::Receiver<bool>,
    ) -> JoinHandle<()> {
        let served = Arc::new(Served {
            data_directory,
            edge: Arc::clone(edge),
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
                            tracing::warn!(%error, "the control socket failed; until the next start no backup while serving, no reload but SIGHUP, and healthcheck fails");
                            break;
                        }
                    },
                    _ = stopped.wait_for(|stopped| *stopped) => break,
                };
                // Whoever finds no room is sent away and sees it at once.
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
    edge: Arc<Edge>,
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
                tracing::warn!(?peer, "another user at the control socket was sent away");
                return;
            }
        }
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        let mut reader = tokio::io::BufReader::new(read.take(MAX_ORDER));
        let order = match tokio::time::timeout(ORDER_TIMEOUT, reader.read_line(&mut line)).await {
            Ok(Ok(_)) => serde_json::from_str::<Order>(&line)
                .map_err(|error| format!("no order of this release: {error}")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no order came".to_owned()),
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
        let stops = || News::Failed("the daemon stops".to_owned());
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
            if write.write_all(&rendered(&line)).await.is_err() {
                // The sender sees that nobody listens, and breaks off.
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
    ) -> Result<backup::Manifest, StoreError> {
        if self.backing_up.swap(true, Ordering::AcqRel) {
            return Err(StoreError::Unusable(
                "another backup is being made; wait until it is done".to_owned(),
            ));
        }
        // What the copy's rows name must be there until it was copied too.
        let kept = self.edge.readers.blobs().keep_all();
        let made = upkeep::backup::of_served(
            &self.edge.mailbox,
            &self.data_directory,
            destination,
            &mut |progress| {
                if *self.stopped.borrow() {
                    return Err(StoreError::Unusable(
                        "the daemon stops; the backup is not complete".to_owned(),
                    ));
                }
                match lines.try_send(News::Progress(progress)) {
                    Err(mpsc::error::TrySendError::Closed(_)) => Err(StoreError::Unusable(
                        "whoever asked for the backup has gone; it is not complete".to_owned(),
                    )),
                    Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
                }
            },
        );
        drop(kept);
        self.backing_up.store(false, Ordering::Release);
        made
    }
}

/// The last line. Who does not wait for it has gone.
async fn say(news: &News, write: &mut (impl tokio::io::AsyncWrite + Unpin)) {
    let _ = write.write_all(&rendered(news)).await;
}

fn rendered(news: &News) -> Vec<u8> {
    let mut line = serde_json::to_vec(news)
        .unwrap_or_else(|error| unreachable!("news are plain data: {error}"));
    line.push(b'\n');
    line
}

/// A path to a name in a directory that fits into a socket address, however long the directory's
/// own is. It holds as long as the descriptor.
fn short_path(directory: &Path, name: &str) -> io::Result<(OwnedFd, PathBuf)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(directory, flags, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", fd.as_raw_fd()));
    Ok((fd, path))
}

/// Asks the daemon that serves a data directory for a backup, and follows it to its end. Blocks.
///
/// # Errors
/// Where nobody answers, or the daemon says that it failed.
pub fn back_up(
    data_directory: &Path,
    destination: PathBuf,
    follow: &mut dyn FnMut(&backup::Progress),
) -> Result<backup::Manifest, StoreError> {
    for news in order(data_directory, &Order::Backup { destination }, None)? {
        match news? {
            News::Progress(progress) => follow(&progress),
            News::Done(manifest) => return Ok(*manifest),
            News::Failed(why) => return Err(StoreError::Unusable(why)),
            News::Health(_) | News::Reloaded => break,
        }
    }
    Err(StoreError::Unusable(
        "the daemon ended before it was done, or had no room for another order; what was begun is not complete".to_owned(),
    ))
}

/// Asks the daemon that serves a data directory how it is. Blocks, for two seconds at most.
///
/// # Errors
/// Where nobody answers.
pub fn condition(data_directory: &Path) -> Result<Condition, StoreError> {
    let mut news = order(data_directory, &Order::Health, Some(HEALTH_TIMEOUT))?;
    match news.next().transpose()? {
        Some(News::Health(condition)) => Ok(condition),
        Some(News::Failed(why)) => Err(StoreError::Unusable(why)),
        _ => Err(StoreError::Unusable(
            "the daemon had no room for another order".to_owned(),
        )),
    }
}

/// Has the daemon that serves a data directory read its files again. Blocks.
///
/// # Errors
/// Where nobody answers; or a line for each file that could not be taken over.
pub fn reload(data_directory: &Path) -> Result<(), StoreError> {
    let mut news = order(data_directory, &Order::Reload, None)?;
    match news.next().transpose()? {
        Some(News::Reloaded) => Ok(()),
        Some(News::Failed(why)) => Err(StoreError::Unusable(why)),
        _ => Err(StoreError::Unusable(
            "the daemon ended, or had no room for another order".to_owned(),
        )),
    }
}

/// Gives an order, and reads what is answered line by line.
fn order(
    data_directory: &Path,
    order: &Order,
    patience: Option<Duration>,
) -> Result<impl Iterator<Item = Result<News, StoreError>> + use<>, StoreError> {
    let path = data_directory.join(SOCKET);
    let failed = |operation| StoreError::io(operation, path.clone());
    let connected = short_path(data_directory, SOCKET)
        .and_then(|(_directory, short)| StdStream::connect(short));
    let mut stream = connected.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            StoreError::Unusable(format!(
                "nobody answers at {}; is {} the directory of a daemon that runs?",
                path.display(),
                data_directory.display()
            ))
        }
        _ => failed("connect to the daemon at")(error),
    })?;
    stream
        .set_read_timeout(patience)
        .map_err(failed("read from"))?;
    let mut line = serde_json::to_vec(order)
        .unwrap_or_else(|error| unreachable!("an order is plain data: {error}"));
    line.push(b'\n');
    stream.write_all(&line).map_err(failed("write to"))?;
    let lines = BufReader::new(stream).lines();
    Ok(lines.map(move |line| {
        let line = line.map_err(StoreError::io("read from", path.clone()))?;
        serde_json::from_str(&line).map_err(|error| {
            StoreError::Unusable(format!(
                "the daemon answered {line:?}, which this release does not understand ({error}); use the daemon's own release"
            ))
        })
    }))
}
