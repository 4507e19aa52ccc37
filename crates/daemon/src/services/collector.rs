//! Metrics of holdouts, credit, queues and the build, read at each scrape.
//!
//! Rows are read beside the writer. Rows that cannot be read are left out and logged; no scrape
//! fails for them.

use std::{
    fmt,
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use evidenceos_kernel::{account::Totals, bits::MicroBits, holdout::Holdout};
use evidenceos_store::StoreError;
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::DescriptorEncoder,
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use super::{Accounts, Server, Services, ShownRows};
use evidenceos_telemetry::write::{counter, family, gauge};

/// The most holdouts shown individually, the newest: this bounds the series of a server.
const HOLDOUTS: usize = 1_000;

/// How long a scrape waits for an anchor to cover what it has read, and how often it checks.
const COVERED_WITHIN: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(1);

/// Shows the services' metrics while the services exist.
pub struct ServicesCollector {
    services: Weak<Services>,
    /// The meters that were shown last: they are shown again while no anchor covers newer ones.
    shown: Mutex<Option<Arc<Meters>>>,
}

/// Values that follow from settlements.
struct Meters {
    holdouts: Vec<Holdout>,
    totals: Totals,
}

impl ServicesCollector {
    /// A collector over these services, which it does not keep alive.
    #[must_use]
    pub fn new(services: &Arc<Services>) -> Self {
        Self {
            services: Arc::downgrade(services),
            shown: Mutex::default(),
        }
    }

    /// The newest meters that an anchor covers.
    fn meters(&self, rows: &ShownRows, holdouts: &[Arc<Holdout>]) -> Option<Arc<Meters>> {
        let mut shown = self.shown.lock();
        match read_meters(rows, holdouts) {
            Ok(meters) => {
                // The rows may follow from every entry up to here, so this comes after the read.
                let entries = rows.anchored.seen();
                let until = Instant::now() + COVERED_WITHIN;
                while !rows.anchored.covers(entries) && Instant::now() < until {
                    std::thread::sleep(LOOK);
                }
                if rows.anchored.covers(entries) {
                    *shown = Some(Arc::new(meters));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "holdouts and accounts cannot be read for metrics")
            }
        }
        shown.clone()
    }
}

fn read_meters(rows: &ShownRows, holdouts: &[Arc<Holdout>]) -> Result<Meters, StoreError> {
    let shown = holdouts.iter().rev().take(HOLDOUTS);
    let read: Vec<Option<Holdout>> = shown
        .map(|holdout| rows.readers.holdout(holdout.seq))
        .collect::<Result<_, _>>()?;
    Ok(Meters {
        holdouts: read.into_iter().flatten().collect(),
        totals: rows.readers.accounts_and_totals(0, 0)?.1,
    })
}

impl fmt::Debug for ServicesCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServicesCollector")
    }
}

impl Collector for ServicesCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(services) = self.services.upgrade() else {
            return Ok(());
        };
        build(&services.server, &mut encoder)?;
        queues(&services.accounts, &mut encoder)?;
        let all = services.holdouts.all();
        let help = "Holdouts that were registered; the newest 1000 are shown one by one";
        gauge(&mut encoder, "holdouts", help, None, all.len() as u64)?;
        match self.meters(&services.accounts.rows, &all) {
            Some(meters) => {
                holdouts(&meters.holdouts, &mut encoder)?;
                credit(&meters.totals, &mut encoder)
            }
            None => Ok(()),
        }
    }
}

fn build(server: &Server, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let labels = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("engine", server.engine()),
    ];
    let help = "Always 1; the labels describe the release that runs";
    let info = [(labels, ConstGauge::new(1u64))];
    family(encoder, ("build_info", help, None), info)
}

fn queues(accounts: &Accounts, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Calls that wait before the writer";
    let waiting = accounts.writer.mailbox().waiting() as u64;
    gauge(encoder, "writer_calls_waiting", help, None, waiting)?;
    let acknowledged = accounts.done.accounts_seq.load(Ordering::Relaxed);
    let behind = acknowledged.saturating_sub(*accounts.in_file.borrow());
    let help = "Commits since the last one that accounts.json shows, up to the last that changed an account; 0 if it shows all";
    gauge(encoder, "accounts_file_behind_commits", help, None, behind)
}

type Of<T> = fn(&Holdout) -> T;

/// A holdout's label in metrics: the first 8 hex digits of its id. Its name may describe the
/// labels, and the metrics port has no authentication.
fn label(holdout: &Holdout) -> String {
    let mut id = holdout.id.to_hex();
    id.truncate(8);
    id
}

/// Leakage is in bits of information. The names of the metrics leave the unit out, since the linter
/// of the text format takes any bits for eighths of bytes.
fn holdouts(holdouts: &[Holdout], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let charged = "Leakage that was charged, in bits of information, of the answer part and of the sealed part";
    let charged = ("holdout_leakage_charged", charged, None);
    let of_parts = by_part(holdouts, |holdout| {
        [holdout.answers.charged, holdout.sealed.charged]
    });
    let counters = of_parts.map(|(labels, bits)| (labels, ConstCounter::new(bits)));
    family(encoder, charged, counters)?;
    let left: [(&str, &str, Of<[MicroBits; 2]>); 2] = [
        (
            "holdout_leakage_left",
            "Leakage that the budget has left after charges and the reservations of runs under way, in bits of information",
            |holdout| {
                let [answers, sealed] = budgets(holdout);
                [holdout.answers.free(answers), holdout.sealed.free(sealed)]
            },
        ),
        (
            "holdout_leakage_budget",
            "Leakage that the holdout's budget allows in all, in bits of information",
            budgets,
        ),
    ];
    for (name, help, read) in left {
        let of_parts = by_part(holdouts, read);
        let gauges = of_parts.map(|(labels, bits)| (labels, ConstGauge::new(bits)));
        family(encoder, (name, help, None), gauges)?;
    }
    let counts: [(&str, &str, Of<u64>); 2] = [
        (
            "holdout_claims_settled",
            "Claims that were judged on the holdout",
            |holdout| holdout.settled,
        ),
        (
            "holdout_claims_certified",
            "Claims that were certified on the holdout",
            |holdout| holdout.certified,
        ),
    ];
    for (name, help, read) in counts {
        let counters = holdouts.iter().map(|holdout| {
            let labels = [("holdout", label(holdout))];
            (labels, ConstCounter::new(read(holdout)))
        });
        family(encoder, (name, help, None), counters)?;
    }
    Ok(())
}

/// Budgets of the answer part and of the sealed part.
fn budgets(holdout: &Holdout) -> [MicroBits; 2] {
    let answers = holdout.description.policy.answer_budget;
    [answers, holdout.sealed_budget()]
}

/// Bits of each holdout's answer part and of its sealed part, with their labels.
fn by_part(
    holdouts: &[Holdout],
    read: Of<[MicroBits; 2]>,
) -> impl Iterator<Item = ([(&'static str, String); 2], f64)> {
    holdouts.iter().flat_map(move |holdout| {
        let parts = ["answers", "sealed"].into_iter().zip(read(holdout));
        parts.map(|(part, amount)| {
            let labels = [("holdout", label(holdout)), ("part", part.to_owned())];
            (labels, bits(amount))
        })
    })
}

fn bits(amount: MicroBits) -> f64 {
    amount.0 as f64 / 1e6
}

fn credit(totals: &Totals, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Credit accounts";
    gauge(encoder, "credit_accounts", help, None, totals.accounts)?;
    for (name, help, value) in [
        (
            "credit_opened",
            "Credits that accounts were opened with",
            totals.initial,
        ),
        (
            "credit_minted",
            "Credits that the daily minting added",
            totals.minted,
        ),
        (
            "credit_granted",
            "Credits that operators granted, and that imports added",
            totals.granted,
        ),
        (
            "credit_withdrawn",
            "Credits that lowered limits and imports took",
            totals.withdrawn,
        ),
        ("credit_burned", "Credits that runs burned", totals.burned),
    ] {
        counter(encoder, name, help, None, value as f64)?;
    }
    for (name, help, value) in [
        (
            "credit_reserved",
            "Credits reserved for runs under way",
            totals.reserved,
        ),
        (
            "credit_balance",
            "Credits that all accounts have together",
            totals.balances,
        ),
    ] {
        gauge(encoder, name, help, None, value as f64)?;
    }
    Ok(())
}
