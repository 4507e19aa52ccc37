//! The limits: the speed of this machine's disk, processor and guest engine alone.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use evidenceos_sandbox::{AskError, Limits, Mode, Oracle, PackOptions, Sandbox, pack};
use evidenceos_tlog::SignerKey;

use crate::{
    error::{BenchError, failed},
    stats::Samples,
};

/// The time for measuring the disk.
const DISK: Duration = Duration::from_secs(1);

/// The figures of the machine alone.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// An append of 4 KiB and its fdatasync, in microseconds: median, 95th, 99th percentile.
    pub fdatasync_us: [f64; 3],
    /// Ed25519 signatures a second on one core.
    pub signatures_per_s: f64,
}

impl Machine {
    /// Measures disk and processor.
    pub fn measure(scratch: &Path) -> Result<Self, BenchError> {
        Ok(Self {
            fdatasync_us: fdatasync(scratch)?.percentiles(),
            signatures_per_s: signatures_per_s()?,
        })
    }
}

/// The median of an append of 4 KiB with its fdatasync, in microseconds.
pub fn fdatasync_p50_us(scratch: &Path) -> Result<f64, BenchError> {
    Ok(fdatasync(scratch)?.p50())
}

fn fdatasync(scratch: &Path) -> Result<Samples, BenchError> {
    let path = scratch.join("fdatasync");
    let mut file: File = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(BenchError::file(path.clone()))?;
    let (block, started, mut samples) = ([7u8; 4_096], Instant::now(), Samples::default());
    while started.elapsed() < DISK {
        let before = Instant::now();
        file.write_all(&block)
            .and_then(|()| file.sync_data())
            .map_err(BenchError::file(path.clone()))?;
        samples.add(before.elapsed());
    }
    std::fs::remove_file(&path).map_err(BenchError::file(path.clone()))?;
    Ok(samples)
}

fn signatures_per_s() -> Result<f64, BenchError> {
    let key = SignerKey::from_seed("bench", [7; 32]).map_err(|error| failed(&error))?;
    let (started, mut count) = (Instant::now(), 0u32);
    while started.elapsed() < Duration::from_millis(300) {
        // The compiler would drop a signature that no code uses.
        std::hint::black_box(key.sign_bytes(&count.to_be_bytes()));
        count += 1;
    }
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
}

struct Silent;

impl Oracle for Silent {
    fn ask(&mut self, _: &[u8]) -> Result<u32, AskError> {
        // A module that is only judged asks nothing.
        Err(AskError::AllowanceExhausted)
    }
}

/// A run of a cached, trivial module on 1,000 items, in microseconds.
pub fn sandbox() -> Result<[f64; 3], BenchError> {
    let bench = |error: &dyn std::error::Error| failed(&error);
    let sandbox = Sandbox::new(Default::default()).map_err(|error| bench(&error))?;
    let module =
        pack(&PackOptions::new(&[1; 1_000], Mode::Judge)).map_err(|error| bench(&error))?;
    let prepared = sandbox.prepare(&module).map_err(|error| bench(&error))?;
    let limits = Limits {
        fuel: 100_000_000,
        memory_bytes: 64 << 20,
        oracle_calls: 64,
        items: 1_000,
        epoch_size: 0,
    };
    let mut samples = Samples::default();
    for _ in 0..5_000 {
        let before = Instant::now();
        sandbox
            .run(&prepared, &limits, false, &mut Silent)
            .map_err(|error| bench(&error))?;
        samples.add(before.elapsed());
    }
    Ok(samples.percentiles())
}
