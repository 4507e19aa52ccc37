//! The process, under the names that every Prometheus client library uses for it.
//!
//! Values are read from `/proc/self`; those that cannot be read are left out.

use std::{
    fmt, fs,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Unit};

use crate::write::{counter, gauge};

/// Shows the process's metrics.
#[derive(Debug)]
pub(crate) struct ProcessCollector {
    /// The time at which it was made, in seconds of Unix time.
    started: f64,
}

impl ProcessCollector {
    /// A reader, made while the process starts.
    pub(crate) fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            // A clock before 1970 is shown as 1970.
            started: since.map_or(0.0, |since| since.as_secs_f64()),
        }
    }
}

/// The value of a line of `/proc/self/status` in KiB, converted to bytes.
fn bytes_of(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1_024)
}

/// CPU time in user and kernel mode, in the kernel's ticks: fields 14 and 15 of `/proc/self/stat`.
/// The second field, a name in brackets, may contain any character.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        if let Some(ticks) = cpu_ticks(&read("/proc/self/stat")) {
            let seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
            let help = "CPU time in user and kernel mode";
            counter(
                &mut encoder,
                "process_cpu",
                help,
                Some(&Unit::Seconds),
                seconds,
            )?;
        }
        let status = read("/proc/self/status");
        for (field, name, help) in [
            (
                "VmRSS:",
                "process_resident_memory",
                "Memory that is resident",
            ),
            (
                "VmSize:",
                "process_virtual_memory",
                "Address space that is taken",
            ),
        ] {
            if let Some(bytes) = bytes_of(&status, field) {
                gauge(&mut encoder, name, help, Some(&Unit::Bytes), bytes)?;
            }
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // The descriptor that reads the directory is open as well.
            let open = open.count().saturating_sub(1) as u64;
            let help = "File descriptors that are open";
            gauge(&mut encoder, "process_open_fds", help, None, open)?;
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        if let Some(limit) = limit.current {
            let help = "File descriptors that may be open";
            gauge(&mut encoder, "process_max_fds", help, None, limit)?;
        }
        let help = "When the daemon started, in Unix time";
        gauge(
            &mut encoder,
            "process_start_time",
            help,
            Some(&Unit::Seconds),
            self.started,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_strange_name_is_read() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 10 0 0 0 250 50 0 0 20 0 1 0 99 1 2";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7 (a"), None);
    }

    #[test]
    fn sizes_are_in_bytes() {
        let status = "Name:\ta\nVmSize:\t  12 kB\nVmRSS:\t   3 kB\n";
        assert_eq!(bytes_of(status, "VmRSS:"), Some(3_072));
        assert_eq!(bytes_of(status, "VmHWM:"), None);
    }
}
