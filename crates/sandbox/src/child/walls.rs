//! The walls around a child: limits of memory, time and files, and the kernel's walls.
//!
//! Owns the lists. The memory limit counts memory that is written to (`RLIMIT_DATA`), since an engine reserves four
//! gigabytes of addresses for each memory. The list of system calls keeps a child from creating processes, since the
//! limit on their number (`RLIMIT_NPROC`) counts all processes of a user, also in other containers.

use std::collections::BTreeMap;
use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
    Scope,
};
use rustix::process::{Resource, Rlimit, Signal};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::wire::Walls;

/// The resources that a child may use in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Memory that it can write to, in bytes.
    pub(crate) memory_bytes: u64,
    /// Processor time, in seconds.
    pub(crate) cpu_s: u64,
    /// Its niceness, from −20 to 19.
    pub(crate) niceness: i32,
}

/// Files that a child can have open: its standard ones, the socket, and those needed to raise the walls.
const FILES: u64 = 16;

/// The time from the signal that warns of the end to the one that enforces it, in seconds.
const GRACE_S: u64 = 2;

impl Bounds {
    /// Reads the arguments that [`Self::to_arguments`] wrote.
    pub(super) fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut next = || arguments.next();
        Some(Self {
            memory_bytes: next()?.parse().ok()?,
            cpu_s: next()?.parse().ok()?,
            niceness: next()?.parse().ok()?,
        })
    }

    pub(crate) fn to_arguments(self) -> [String; 3] {
        [
            self.memory_bytes.to_string(),
            self.cpu_s.to_string(),
            self.niceness.to_string(),
        ]
    }

    /// Limits this process, and ties its life to its parent's.
    pub(super) fn take_effect(self) -> io::Result<()> {
        // The thread that started this process lives as long as the sandbox. If it is already gone, the socket is
        // closed, and the first read ends this process.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // Without the permission the process keeps its priority.
        let _ = rustix::process::setpriority_process(None, self.niceness);
        let limits = [
            (Resource::Data, self.memory_bytes, self.memory_bytes),
            (Resource::Cpu, self.cpu_s, self.cpu_s + GRACE_S),
            (Resource::Nofile, FILES, FILES),
            (Resource::Fsize, 0, 0),
            (Resource::Core, 0, 0),
        ];
        for (resource, soft, hard) in limits {
            // The daemon itself may run under a lower limit, which cannot be raised.
            let most = rustix::process::getrlimit(resource).maximum;
            let at_most = |wanted: u64| Some(most.map_or(wanted, |most| most.min(wanted)));
            rustix::process::setrlimit(
                resource,
                Rlimit {
                    current: at_most(soft),
                    maximum: at_most(hard),
                },
            )?;
        }
        Ok(())
    }
}

/// Closes every file but the standard ones: the daemon may have inherited others from its starter, and a guest must
/// not have them.
pub(super) fn close_inherited_files() {
    const FIRST: u32 = 3;
    // SAFETY: the process has just begun, on one thread, and has opened nothing itself; no value in it owns one of these
    // descriptors.
    #[allow(unsafe_code)]
    unsafe {
        if libc::syscall(libc::SYS_close_range, FIRST, u32::MAX, 0) != 0 {
            // A kernel before 5.9.
            for file in FIRST..1_024 {
                libc::close(file.cast_signed());
            }
        }
    }
}

/// Raises the walls that this kernel has.
pub(super) fn raise() -> Walls {
    // Landlock first: the filter forbids its system calls.
    let landlock = without_files().unwrap_or(false);
    Walls {
        landlock,
        seccomp: computing_only().is_ok(),
    }
}

/// Takes every file and connection away. `false`: the kernel has no Landlock.
fn without_files() -> Result<bool, landlock::RulesetError> {
    let abi = ABI::V6;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// The system calls for computing, memory, the socket and a clean end.
const CALLS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_close,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Refuses every system call but [`CALLS`], and signals to other processes.
fn computing_only() -> Result<(), Box<dyn std::error::Error>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let itself = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        std::process::id().into(),
    )?;
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![itself])?]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{self, ErrorKind},
        net::{TcpListener, TcpStream},
        process::Command,
        thread,
    };

    use super::*;

    /// Walls apply to one thread, so each test has a thread that ends with them.
    fn behind<T: Send + 'static>(inside: impl FnOnce() -> T + Send + 'static) -> T {
        thread::spawn(inside).join().expect("no panic")
    }

    fn denied<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    }

    /// The version of Landlock that the running kernel has, if it has it.
    fn landlock_version() -> Option<i64> {
        const ASK: u32 = 1;
        // SAFETY: with this flag the call takes no memory of ours, and returns a number.
        #[allow(unsafe_code)]
        let version =
            unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0usize, 0usize, ASK) };
        (version > 0).then_some(version)
    }

    #[test]
    fn where_the_kernel_has_landlock_no_file_and_no_connection_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let to = listener.local_addr().expect("an address");
        let (holds, file, directory, connection) = behind(move || {
            let holds = without_files().expect("it is asked as it is documented");
            (
                holds,
                denied(File::open("/proc/self/status")),
                denied(std::fs::read_dir("/")),
                denied(TcpStream::connect(to)),
            )
        });
        let version = landlock_version();
        assert_eq!(holds, version.is_some());
        assert_eq!((file, directory), (holds, holds));
        // Landlock restricts connections since its fourth version.
        assert_eq!(connection, version.is_some_and(|version| version >= 4));
    }

    #[test]
    fn the_filter_lets_no_file_connection_process_or_signal_through() {
        let parent = rustix::process::getpid();
        behind(move || {
            computing_only().expect("it is in every kernel that anything is shipped for");
            assert!(denied(File::open("/proc/self/status")));
            assert!(denied(TcpListener::bind("127.0.0.1:0")));
            assert!(denied(Command::new("/bin/true").status()));
            assert!(denied(
                rustix::process::kill_process(parent, Signal::CHILD).map_err(io::Error::from)
            ));
            // The system calls that computing needs still work.
            assert_eq!(
                vec![1_u8; 1 << 20]
                    .iter()
                    .map(|n| u64::from(*n))
                    .sum::<u64>(),
                1 << 20
            );
        });
    }
}
