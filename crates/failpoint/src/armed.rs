//! Failpoints in a program that was built for crash tests.

use std::{
    env,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    process,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::Point;

/// The effect of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Kill,
    Full,
    Broken,
}

#[derive(Debug)]
struct Arming {
    point: Point,
    nth: u64,
    what: What,
    seen: AtomicU64,
}

#[derive(Debug)]
struct Armed {
    armings: Vec<Arming>,
    hits: Option<File>,
    reached: Vec<AtomicBool>,
}

pub(crate) fn reach(point: Point) -> io::Result<()> {
    static ARMED: OnceLock<Armed> = OnceLock::new();
    ARMED.get_or_init(from_environment).reach(point)
}

fn from_environment() -> Armed {
    let asked = env::var("EVIDENCEOS_FAILPOINT").unwrap_or_default();
    let armings = parse(&asked).unwrap_or_else(|problem| {
        // A test with a misspelt point must not pass.
        eprintln!("EVIDENCEOS_FAILPOINT={asked}: {problem}");
        process::exit(64);
    });
    let hits = env::var_os("EVIDENCEOS_FAILPOINT_HITS").map(|path| {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap_or_else(|error| {
                eprintln!("EVIDENCEOS_FAILPOINT_HITS={}: {error}", path.display());
                process::exit(64);
            })
    });
    Armed {
        armings,
        hits,
        reached: Point::ALL.iter().map(|_| AtomicBool::new(false)).collect(),
    }
}

fn parse(asked: &str) -> Result<Vec<Arming>, String> {
    asked
        .split(',')
        .filter(|part| !part.is_empty())
        .map(arming)
        .collect()
}

fn arming(part: &str) -> Result<Arming, String> {
    let fields: Vec<&str> = part.split(':').collect();
    let [name, nth, what] = fields[..] else {
        return Err(format!("{part:?} is not name:nth:kill|enospc|eio"));
    };
    let point = Point::named(name).ok_or_else(|| format!("no point is called {name:?}"))?;
    let nth = nth
        .parse()
        .ok()
        .filter(|nth| *nth > 0)
        .ok_or_else(|| format!("{nth:?} is not a number from 1"))?;
    let what = match what {
        "kill" => What::Kill,
        "enospc" if point.kind().can_fail() => What::Full,
        "eio" if point.kind().can_fail() => What::Broken,
        _ => return Err(format!("{name} cannot {what:?}")),
    };
    Ok(Arming {
        point,
        nth,
        what,
        seen: AtomicU64::new(0),
    })
}

impl Armed {
    fn reach(&self, point: Point) -> io::Result<()> {
        if !self.reached[point as usize].swap(true, Ordering::Relaxed) {
            self.note("reached", point);
        }
        let mut fires = None;
        for arming in self.armings.iter().filter(|arming| arming.point == point) {
            // Count every arming, also beside one that fires, so that several in a row fire in a
            // row.
            if arming.seen.fetch_add(1, Ordering::Relaxed) + 1 == arming.nth {
                fires = Some(arming.what);
            }
        }
        let Some(what) = fires else {
            return Ok(());
        };
        self.note("fired", point);
        match what {
            What::Kill => kill(),
            What::Full => Err(io::ErrorKind::StorageFull.into()),
            What::Broken => Err(rustix::io::Errno::IO.into()),
        }
    }

    /// One write, so that lines of several threads do not mix.
    fn note(&self, what: &str, point: Point) {
        if let Some(mut hits) = self.hits.as_ref() {
            hits.write_all(format!("{what} {}\n", point.name()).as_bytes())
                .unwrap_or_else(|error| {
                    eprintln!("EVIDENCEOS_FAILPOINT_HITS: {error}");
                    process::exit(64);
                });
        }
    }
}

fn kill() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // The signal ends every thread; until it does, this one must not go on.
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_checked() {
        for good in [
            "",
            "store.begin:1:kill",
            "store.rows.half:3:eio,store.rows.half:5:enospc",
            "store.commit.fsync:2:eio",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "store.begin",
            "store.begin:0:kill",
            "store.begin:x:kill",
            "store.begin:1:eio",
            "store.begin:1:sleep",
            "no.such.point:1:kill",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_write_fails_once_at_its_turn() {
        let armed = Armed {
            armings: parse("store.rows.half:2:enospc").expect("well formed"),
            hits: None,
            reached: Point::ALL.iter().map(|_| AtomicBool::new(false)).collect(),
        };
        let at = |armed: &Armed| armed.reach(Point::StoreRowsHalf).map_err(|e| e.kind());
        assert_eq!(at(&armed), Ok(()));
        let other = armed.reach(Point::StoreCommitBefore);
        assert_eq!(other.map_err(|e| e.kind()), Ok(()));
        assert_eq!(at(&armed), Err(io::ErrorKind::StorageFull));
        assert_eq!(at(&armed), Ok(()));
    }
}
