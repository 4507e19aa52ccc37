//! A heap that gives memory back after a burst.
//!
//! glibc keeps what was freed below something that is still in use, and after the first large buffer takes
//! the next ones from there too. A daemon that once read five hundred modules would keep their memory for
//! good. Other C libraries than glibc are left as they are.

use std::{io, thread, time::Duration};

/// How often freed memory is given back.
const EVERY: Duration = Duration::from_secs(20);

/// From now on large buffers go back to the system when they are freed, and everything else that was freed
/// within some 20 s. For programs that serve; call it before they begin to.
///
/// # Errors
/// If there is no thread for it.
pub fn give_back() -> io::Result<()> {
    glibc::give_large_buffers_back();
    thread::Builder::new()
        .name("heap".to_owned())
        .spawn(|| {
            loop {
                thread::sleep(EVERY);
                glibc::give_freed_back();
            }
        })
        .map(drop)
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    /// Buffers from this length on are mappings of their own: 128 KiB, where glibc begins. It raises this by
    /// itself to the largest buffer that was freed, unless it is set.
    const LARGE: libc::c_int = 128 << 10;

    pub(super) fn give_large_buffers_back() {
        // SAFETY: it changes a number of the allocator's, which glibc guards.
        #[allow(unsafe_code)]
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        }
    }

    pub(super) fn give_freed_back() {
        // SAFETY: it takes the allocator's own locks, and touches nothing that is in use.
        #[allow(unsafe_code)]
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod glibc {
    pub(super) fn give_large_buffers_back() {}

    pub(super) fn give_freed_back() {}
}

#[cfg(test)]
mod tests {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn what_was_freed_leaves_the_process() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").expect("proc is mounted");
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kb = line.and_then(|line| line.trim().strip_suffix(" kB"));
            kb.expect("a size").trim().parse::<u64>().expect("a number") << 10
        };
        super::glibc::give_large_buffers_back();
        // Small ones, of which the last holds the others' memory; and large ones.
        let small: Vec<Vec<u8>> = (0..64 << 10).map(|_| vec![1; 1 << 10]).collect();
        let large: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 1 << 20]).collect();
        let last = small.last().cloned();
        let full = resident();
        drop((small, large));
        super::glibc::give_freed_back();
        let after = resident();
        assert!(full - after > 120 << 20, "{full} bytes, then {after}");
        drop(last);
    }
}
