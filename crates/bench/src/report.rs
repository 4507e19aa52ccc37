//! The report: a table for people, an object for machines, and beside each target whether it was met.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::{
    against::Beside,
    charges::Charges,
    child::Usage,
    gate::{Asking, GateFigures},
    limits::Machine,
    load::{CALLS, Figures, HealthP95, Noop},
    proofs::Proofs,
    stats::Samples,
};

/// A figure between two readings of the disk.
#[derive(Debug, Clone)]
pub struct Bracketed<T> {
    pub figure: T,
    /// Median of an append of 4 KiB with fdatasync before and after, in microseconds.
    pub fdatasync_us: (f64, f64),
}

impl<T> Bracketed<T> {
    /// Whether the disk kept its speed.
    pub fn is_valid(&self) -> bool {
        let (before, after) = self.fdatasync_us;
        before.max(after) <= 2.0 * before.min(after)
    }
}

fn round_json(figures: &Figures) -> Value {
    let calls: serde_json::Map<String, Value> = CALLS
        .iter()
        .zip(&figures.calls)
        .map(|(name, samples)| ((*name).to_owned(), percentiles(samples.percentiles())))
        .collect();
    json!({
        "per_s": figures.per_s().round(),
        "lifecycles": figures.lifecycles,
        "calls_us": calls,
        "per_lifecycle": figures.usage.map(|usage| per_lifecycle(&usage, figures.lifecycles)),
    })
}

/// All figures of a benchmark.
#[derive(Debug, Default)]
pub struct Report {
    /// The figures of the machine alone.
    pub machine: Machine,
    /// A log of many entries.
    pub proofs: Option<Proofs>,
    /// A run of a cached guest, in microseconds.
    pub sandbox: Option<[f64; 3]>,
    /// Calls that do nothing.
    pub noop: Option<Noop>,
    /// Lives of claims, at each concurrency.
    pub lifecycles: Vec<Bracketed<Figures>>,
    /// Figures of this build and of another one, in turns.
    pub beside: Vec<Beside>,
    /// Claims in the large store.
    pub claims: u64,
    /// The daemon's memory with them.
    pub rss_bytes: u64,
    /// The same calls on a small store and on the large one, in turn.
    pub growth_small: Vec<Figures>,
    /// The rounds on the large store, in the order of `growth_small`.
    pub growth_large: Vec<Figures>,
    /// Health, alone and beside other load.
    pub health: Option<HealthP95>,
    /// Milliseconds from the start after SIGKILL until it served.
    pub restart_ms: Vec<f64>,
    /// Grants and charged runs.
    pub charges: Vec<Bracketed<Charges>>,
    /// The gate for agents.
    pub gate: Option<GateFigures>,
}

/// A target and the figure for it.
struct Check {
    what: String,
    found: String,
    demanded: String,
    met: bool,
    valid: bool,
}

impl Report {
    /// The report as JSON, for `--json`.
    pub fn to_json(&self) -> Value {
        json!({
            "machine": {
                "fdatasync_us": percentiles(self.machine.fdatasync_us),
                "ed25519_signatures_per_s": self.machine.signatures_per_s.round(),
                "noop_rpc_us": self.noop.map(|noop| percentiles(noop.alone_us)),
                "noop_rpc_per_s_at_64": self.noop.map(|noop| noop.per_s.round()),
            },
            "lifecycles": self.lifecycles.iter().map(|b| self.lifecycle_json(b)).collect::<Vec<_>>(),
            "against": self.beside.iter().map(Beside::to_json).collect::<Vec<_>>(),
            "large_store": {
                "claims": self.claims,
                "rss_bytes": self.rss_bytes,
                "restart_ms": self.restart_ms,
                "p50_ratio_by_call": self.growth().map(|ratios| named(&ratios)),
                "rows_read_per_lifecycle": [rows_read(&self.growth_small), rows_read(&self.growth_large)],
            },
            "health_p95_us": self.health.map(|health| json!({
                "idle": round2(health.idle_us),
                "beside_a_caller_of_health": round2(health.beside_health_us),
                "beside_a_writer": round2(health.beside_writer_us),
            })),
            "log": self.proofs.map(|proofs| json!({
                "entries": proofs.entries,
                "appended_per_s": proofs.appended_per_s.round(),
                "integrated_per_s": proofs.integrated_per_s.round(),
                "inclusion_us": percentiles(proofs.inclusion_us),
                "consistency_us": percentiles(proofs.consistency_us),
            })),
            "gate": self.gate.as_ref().map(gate_json),
            "charges": self.charges.iter().map(charges_json).collect::<Vec<_>>(),
            "sandbox_run_us": self.sandbox.map(percentiles),
            "checks": self.checks().iter().map(|check| json!({
                "what": check.what,
                "found": check.found,
                "demanded": check.demanded,
                "met": check.met,
                "valid": check.valid,
            })).collect::<Vec<_>>(),
        })
    }

    fn lifecycle_json(&self, bracketed: &Bracketed<Figures>) -> Value {
        let figures = &bracketed.figure;
        let mut json = round_json(figures);
        for (name, value) in [
            ("concurrency", json!(figures.concurrency)),
            ("modules", json!(figures.modules.to_string())),
            ("of_noop_rpcs", json!(self.share_of_noop(figures))),
            (
                "fdatasync_p50_us",
                json!([bracketed.fdatasync_us.0, bracketed.fdatasync_us.1]),
            ),
            ("valid", json!(bracketed.is_valid())),
        ] {
            json[name] = value;
        }
        json
    }

    /// Calls a second as a share of the rate of calls that do nothing.
    fn share_of_noop(&self, figures: &Figures) -> Option<f64> {
        let noop = self.noop?;
        Some(round2(figures.per_s() * CALLS.len() as f64 / noop.per_s))
    }

    /// The median of each call on the large store against the small one.
    fn growth(&self) -> Option<[f64; 5]> {
        let merged = |rounds: &[Figures], call: usize| {
            let mut all = Samples::default();
            rounds
                .iter()
                .for_each(|round| all.extend(&round.calls[call]));
            all.p50()
        };
        (!self.growth_small.is_empty() && !self.growth_large.is_empty()).then(|| {
            std::array::from_fn(|call| {
                round2(merged(&self.growth_large, call) / merged(&self.growth_small, call))
            })
        })
    }

    fn checks(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        let mut check = |what: String, found: String, demanded: &str, met: bool, valid: bool| {
            checks.push(Check {
                what,
                found,
                demanded: demanded.to_owned(),
                met,
                valid,
            });
        };
        for bracketed in &self.lifecycles {
            let figures = &bracketed.figure;
            let what = format!(
                "lifecycles/s, concurrency {}, {} modules",
                figures.concurrency, figures.modules
            );
            let least = match (figures.concurrency, figures.modules.to_string().as_str()) {
                (16, "shared") => 1_200.0,
                (64, "shared") => 2_000.0,
                (16, "distinct") => 500.0,
                _ => 0.0,
            };
            if least > 0.0 {
                check(
                    what,
                    format!("{:.0}", figures.per_s()),
                    &format!("≥ {least:.0}"),
                    figures.per_s() >= least,
                    bracketed.is_valid(),
                );
            }
            let Some(usage) = figures.usage else { continue };
            let lives = figures.lifecycles as f64;
            if figures.concurrency == 1 {
                // Counts do not depend on the speed of the disk.
                let commits = usage.counters.commits as f64 / lives;
                check(
                    "durable commits a lifecycle, concurrency 1".to_owned(),
                    format!("{commits:.2}"),
                    "≤ 5",
                    commits <= 5.01,
                    true,
                );
            }
            if figures.concurrency == 16 && figures.modules.to_string() == "shared" {
                let kib = usage.written_bytes as f64 / 1_024.0 / lives;
                check(
                    "KiB written a lifecycle, concurrency 16".to_owned(),
                    format!("{kib:.1}"),
                    "≤ 90",
                    kib <= 90.0,
                    true,
                );
            }
        }
        for beside in &self.beside {
            check(
                format!("{}, beside the other build's", beside.what),
                beside.found(),
                "≥ 0.95 ×",
                beside.ratio() >= 0.95,
                // Both builds took turns on one machine, so they had the same speed of disk.
                true,
            );
        }
        if let Some(ratios) = self.growth() {
            let worst = ratios.iter().copied().fold(0.0, f64::max);
            check(
                format!(
                    "p50 of each call, {} claims against 100, worst",
                    self.claims
                ),
                format!("{worst:.2} ×"),
                "≤ 1.3 ×",
                worst <= 1.3,
                true,
            );
            let (few, many) = (rows_read(&self.growth_small), rows_read(&self.growth_large));
            check(
                "rows read a lifecycle, small and large store".to_owned(),
                format!("{few:.2} and {many:.2}"),
                "equal",
                (few - many).abs() < 0.01,
                true,
            );
        }
        if self.rss_bytes > 0 {
            let mib = self.rss_bytes as f64 / 1_048_576.0;
            check(
                format!("MiB of memory after {} claims", self.claims),
                format!("{mib:.0}"),
                "≤ 128",
                mib <= 128.0,
                true,
            );
        }
        if !self.restart_ms.is_empty() {
            let worst = self.restart_ms.iter().copied().fold(0.0, f64::max);
            check(
                format!(
                    "ms from a start after SIGKILL to serving, {} claims, worst",
                    self.claims
                ),
                format!("{worst:.0}"),
                "≤ 300",
                worst <= 300.0,
                true,
            );
        }
        if let Some(proofs) = self.proofs {
            let worst = proofs.inclusion_us[2].max(proofs.consistency_us[2]) / 1e3;
            check(
                format!("ms for a proof in a log of {} entries, p99", proofs.entries),
                format!("{worst:.3}"),
                "≤ 0.3",
                worst <= 0.3,
                true,
            );
        }
        self.check_charges(&mut check);
        if let Some(health) = self.health {
            let ratio = health.beside_writer_us / health.idle_us;
            let found = format!(
                "{ratio:.2} × ({:.0} against {:.0} µs; beside a caller of Health {:.0} µs)",
                health.beside_writer_us, health.idle_us, health.beside_health_us
            );
            check(
                "Health p95 beside a busy writer".to_owned(),
                found,
                "≤ 2 ×",
                ratio <= 2.0,
                true,
            );
        }
        if let Some([p50, _, _]) = self.sandbox {
            check(
                "µs for a run of a cached guest on 1,000 items, p50".to_owned(),
                format!("{p50:.1}"),
                "≤ 100",
                p50 <= 100.0,
                true,
            );
        }
        if let Some(gate) = &self.gate {
            checks.extend(gate_checks(gate));
        }
        checks
    }

    fn check_charges(&self, check: &mut impl FnMut(String, String, &str, bool, bool)) {
        let of = |concurrency, many: bool| {
            let mut all = self.charges.iter();
            all.find(|b| b.figure.concurrency == concurrency && (b.figure.accounts > 1) == many)
        };
        if let Some(busy) = of(64, true) {
            let (figure, valid) = (&busy.figure, busy.is_valid());
            let accounts = figure.accounts;
            let [_, _, grants] = figure.grants.percentiles().map(|us| us / 1e3);
            let [_, _, runs] = figure.runs.percentiles().map(|us| us / 1e3);
            check(
                format!("charges/s, {accounts} accounts, concurrency 64"),
                format!("{:.0}", figure.per_s()),
                "≥ 6000",
                figure.per_s() >= 6_000.0,
                valid,
            );
            for (what, found, most) in [("grants", grants, 25.0), ("charged runs", runs, 40.0)] {
                check(
                    format!("ms for {what}, {accounts} accounts, concurrency 64, p99"),
                    format!("{found:.1}"),
                    &format!("≤ {most:.0}"),
                    found <= most,
                    valid,
                );
            }
            check(
                format!("ms that accounts.json is behind, {accounts} accounts, longest"),
                format!("{:.0}", figure.behind_ms),
                "≤ 1000",
                figure.behind_ms <= 1_000.0,
                valid,
            );
        }
        for (concurrency, most) in [(1, 1.2), (64, 1.5)] {
            if let (Some(one), Some(many)) = (of(concurrency, false), of(concurrency, true)) {
                let ratio = many.figure.runs.p50() / one.figure.runs.p50();
                check(
                    format!(
                        "p50 of a charged run, {} accounts against 1, concurrency {concurrency}",
                        many.figure.accounts
                    ),
                    format!("{ratio:.2} ×"),
                    &format!("≤ {most} ×"),
                    ratio <= most,
                    one.is_valid() && many.is_valid(),
                );
            }
        }
    }

    /// The report as tables for a terminal.
    pub fn to_table(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let [fsync, _, fsync99] = self.machine.fdatasync_us;
        writeln!(out, "This machine by itself")?;
        writeln!(
            out,
            "  append of 4 KiB + fdatasync   {fsync:.0} µs p50, {fsync99:.0} µs p99"
        )?;
        writeln!(
            out,
            "  Ed25519 signatures            {:.0}/s",
            self.machine.signatures_per_s
        )?;
        if let Some(noop) = self.noop {
            writeln!(
                out,
                "  no-op calls                   {:.0} µs p50 alone, {:.0}/s at 64",
                noop.alone_us[0], noop.per_s
            )?;
        }
        if !self.lifecycles.is_empty() {
            writeln!(
                out,
                "\nFull durable lifecycles (create, commit, seal, execute, fetch)"
            )?;
        }
        for bracketed in &self.lifecycles {
            let figures = &bracketed.figure;
            writeln!(
                out,
                "  {:>2} at a time, {:<8} modules: {:>5.0}/s = {:.2} of no-op calls{}",
                figures.concurrency,
                figures.modules.to_string(),
                figures.per_s(),
                self.share_of_noop(figures).unwrap_or(0.0),
                if bracketed.is_valid() {
                    ""
                } else {
                    "   INVALID: the disk changed its speed"
                },
            )?;
            for (name, samples) in CALLS.iter().zip(&figures.calls) {
                let [p50, p95, p99] = samples.percentiles();
                writeln!(
                    out,
                    "      {name:<8} p50 {p50:>7.0}  p95 {p95:>7.0}  p99 {p99:>7.0} µs"
                )?;
            }
            if let Some(usage) = figures.usage {
                let lives = figures.lifecycles as f64;
                writeln!(
                    out,
                    "      a lifecycle: {:.2} commits, {:.1} KiB written, {:.1} KiB read, {:.1} rows read, {:.0} µs of the daemon's processor; fdatasync {:.0} → {:.0} µs",
                    usage.counters.commits as f64 / lives,
                    usage.written_bytes as f64 / 1_024.0 / lives,
                    usage.read_bytes as f64 / 1_024.0 / lives,
                    usage.counters.rows_read as f64 / lives,
                    usage.cpu_s * 1e6 / lives,
                    bracketed.fdatasync_us.0,
                    bracketed.fdatasync_us.1,
                )?;
            }
        }
        if let Some(proofs) = self.proofs {
            writeln!(out, "\nA log of {} entries", proofs.entries)?;
            writeln!(
                out,
                "  appended {:.0}/s, written as tiles {:.0}/s",
                proofs.appended_per_s, proofs.integrated_per_s
            )?;
            for (name, [p50, p95, p99]) in [
                ("inclusion", proofs.inclusion_us),
                ("consistency", proofs.consistency_us),
            ] {
                writeln!(
                    out,
                    "  {name:<11} p50 {p50:>5.0}  p95 {p95:>5.0}  p99 {p99:>5.0} µs, self-verified"
                )?;
            }
        }
        if !self.charges.is_empty() {
            writeln!(out, "\nCharges (three grants to one settled run)")?;
        }
        for bracketed in &self.charges {
            let figure = &bracketed.figure;
            writeln!(
                out,
                "  {:>2} at a time, {:>6} accounts: {:>6.0}/s; accounts.json at most {:.0} ms behind{}",
                figure.concurrency,
                figure.accounts,
                figure.per_s(),
                figure.behind_ms,
                if bracketed.is_valid() {
                    ""
                } else {
                    "   INVALID: the disk changed its speed"
                },
            )?;
            for (name, samples) in [("grant", &figure.grants), ("run", &figure.runs)] {
                let [p50, p95, p99] = samples.percentiles();
                writeln!(
                    out,
                    "      {name:<8} p50 {p50:>7.0}  p95 {p95:>7.0}  p99 {p99:>7.0} µs"
                )?;
            }
        }
        if let Some(gate) = &self.gate {
            write_gate(gate, out)?;
        }
        writeln!(out, "\nDemands")?;
        for check in self.checks() {
            let verdict = match (check.valid, check.met) {
                (false, _) => "invalid",
                (true, true) => "met",
                (true, false) => "MISSED",
            };
            writeln!(
                out,
                "  {verdict:<8} {:<66} {} ({})",
                check.what, check.found, check.demanded
            )?;
        }
        Ok(())
    }
}

fn write_gate(gate: &GateFigures, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\nThe gate for agents, 64 connections")?;
    let line = |out: &mut String, name: &str, calls: &crate::gate::Calls| {
        let [p50, p95, p99] = calls.times.percentiles();
        writeln!(
            out,
            "  {name:<28} {:>7.0}/s ({:.2} of the no-op)  p50 {p50:>5.0}  p95 {p95:>5.0}  p99 {p99:>5.0} µs",
            calls.per_s(),
            calls.per_s() / gate.noop.per_s(),
        )
    };
    line(out, "a POST that does nothing", &gate.noop)?;
    for (asking, calls) in &gate.decisions {
        line(out, &asking.to_string(), calls)?;
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let [idle, after, more] = gate.rss_bytes;
    writeln!(
        out,
        "  memory: {:.0} MiB idle, {:.0} MiB after 1,000,000 callers, {:.0} MiB after 500,000 more",
        mib(idle),
        mib(after),
        mib(more)
    )
}

fn gate_json(gate: &GateFigures) -> Value {
    let calls = |calls: &crate::gate::Calls| {
        json!({
            "connections": calls.connections,
            "per_s": calls.per_s().round(),
            "of_noop": round2(calls.per_s() / gate.noop.per_s()),
            "us": percentiles(calls.times.percentiles()),
        })
    };
    let decisions: Vec<Value> = gate
        .decisions
        .iter()
        .map(|(asking, figure)| json!({ "asking": asking.to_string(), "figure": calls(figure) }))
        .collect();
    json!({
        "noop": calls(&gate.noop),
        "decisions": decisions,
        "alone_us": { "p50": round2(gate.alone_us.0), "p99": round2(gate.alone_us.1) },
        "alone_served_us_at_most": { "p50": round2(gate.served_us.0), "p99": round2(gate.served_us.1) },
        "rss_bytes": gate.rss_bytes,
    })
}

fn gate_checks(gate: &GateFigures) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut check = |what: String, found: String, demanded: &str, met: bool| {
        checks.push(Check {
            what,
            found,
            demanded: demanded.to_owned(),
            met,
            valid: true,
        });
    };
    for (asking, calls) in &gate.decisions {
        let share = calls.per_s() / gate.noop.per_s();
        let [_, _, p99] = calls.times.percentiles();
        match asking {
            Asking::Durable => check(
                format!("decisions/s, {asking}"),
                format!("{:.0}", calls.per_s()),
                ">= 8,000",
                calls.per_s() >= 8_000.0,
            ),
            Asking::Strangers => check(
                format!("decisions/s against a no-op POST, {asking}; p99"),
                format!("{share:.2}; {:.1} ms", p99 / 1e3),
                ">= 0.50; <= 3 ms",
                share >= 0.5 && p99 <= 3_000.0,
            ),
            Asking::OneCaller => check(
                format!("decisions/s against a no-op POST, {asking}"),
                format!("{share:.2}"),
                ">= 0.50",
                share >= 0.5,
            ),
        }
    }
    let ((client_p50, client_p99), (p50, p99)) = (gate.alone_us, gate.served_us);
    check(
        "a decision at concurrency 1 in the server: p50, p99 (as the client sees it)".to_owned(),
        format!("<= {p50:.0}, {p99:.0} µs ({client_p50:.0}, {client_p99:.0})"),
        "<= 60, 500 µs",
        p50 <= 60.0 && p99 <= 500.0,
    );
    let [idle, after, more] = gate
        .rss_bytes
        .map(|bytes| bytes as f64 / f64::from(1 << 20));
    check(
        "memory over idle after 1,000,000 callers; after 500,000 more".to_owned(),
        format!("{:.0}; {:.0} MiB", after - idle, more - idle),
        "<= 150 MiB, and flat",
        after - idle <= 150.0 && more - after <= 8.0,
    );
    checks
}

fn charges_json(bracketed: &Bracketed<Charges>) -> Value {
    let figure = &bracketed.figure;
    json!({
        "concurrency": figure.concurrency,
        "accounts": figure.accounts,
        "per_s": figure.per_s().round(),
        "grant_us": percentiles(figure.grants.percentiles()),
        "run_us": percentiles(figure.runs.percentiles()),
        "accounts_json_behind_ms": figure.behind_ms.round(),
        "fdatasync_p50_us": [bracketed.fdatasync_us.0, bracketed.fdatasync_us.1],
        "valid": bracketed.is_valid(),
    })
}

fn rows_read(rounds: &[Figures]) -> f64 {
    let lives: u64 = rounds.iter().map(|round| round.lifecycles).sum();
    let rows: u64 = rounds
        .iter()
        .filter_map(|round| round.usage)
        .map(|usage| usage.counters.rows_read)
        .sum();
    round2(rows as f64 / lives.max(1) as f64)
}

fn per_lifecycle(usage: &Usage, lives: u64) -> Value {
    let per = |amount: u64| round2(amount as f64 / lives as f64);
    json!({
        "commits": per(usage.counters.commits),
        "store_checkpoints": per(usage.counters.store_checkpoints),
        "log_files_synced": per(usage.counters.log_files_synced),
        "rows_read": per(usage.counters.rows_read),
        "written_bytes": per(usage.written_bytes).round(),
        "read_bytes": per(usage.read_bytes).round(),
        "daemon_cpu_us": round2(usage.cpu_s * 1e6 / lives as f64),
    })
}

fn percentiles([p50, p95, p99]: [f64; 3]) -> Value {
    json!({"p50": round2(p50), "p95": round2(p95), "p99": round2(p99)})
}

fn named(ratios: &[f64; 5]) -> Value {
    let named: serde_json::Map<String, Value> = CALLS
        .iter()
        .zip(ratios)
        .map(|(name, ratio)| ((*name).to_owned(), json!(ratio)))
        .collect();
    named.into()
}

fn round2(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
