use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn some(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).expect("not zero")
}

fn detector(rules: Rules) -> Detector {
    Detector::new(rules, some(64), some(64)).expect("rules that can be applied")
}

fn call(principal: u8, operation: u8, topic: u64, hash: u64) -> Call {
    Call {
        principal: OwnerTag([principal; 16]),
        operation: [operation; 16],
        topic,
        hash,
    }
}

/// Calls at one moment, and the first of them at which each level is reached.
#[test]
fn each_threshold_is_reached_at_its_number_and_not_before() {
    type Make = fn(u64) -> Call;
    let cases: [(&str, Make, [u64; 3]); 3] = [
        ("total", |_| call(1, 1, 1, 1), [20, 40, 80]),
        ("distinct hashes", |n| call(1, 1, 1, n), [10, 20, 40]),
        ("distinct topics", |n| call(1, 1, n, 1), [4, 8, 12]),
    ];
    for (what, make, [throttle, escalate, freeze]) in cases {
        let mut detector = detector(Rules::TOOL_CALLS);
        for n in 1..=freeze + 3 {
            let expected = match n {
                n if n >= freeze => Level::Freeze,
                n if n >= escalate => Level::Escalate,
                n if n >= throttle => Level::Throttle,
                _ => Level::Clean,
            };
            let seen = detector.observe(1_000, &make(n)).level;
            assert_eq!(seen, expected, "{what}: call {n}");
        }
    }
}

#[test]
fn a_call_stops_counting_when_its_window_has_passed() {
    let mut detector = detector(Rules::TOOL_CALLS);
    for n in 0..19 {
        detector.observe(1_000, &call(1, 1, 1, n % 2));
    }
    let just_before = detector.observe(30_999, &call(1, 1, 1, 1)).level;
    assert_eq!(just_before, Level::Throttle);
    let just_after = detector.observe(31_000, &call(1, 1, 1, 1)).level;
    assert_eq!(just_after, Level::Clean);
}

#[test]
fn principals_do_not_count_against_each_other() {
    let mut detector = detector(Rules::TOOL_CALLS);
    for n in 0..100 {
        detector.observe(1_000, &call(1, 1, n, n));
    }
    let other = detector.observe(1_000, &call(2, 1, 1, 1));
    assert_eq!((other.level, other.operation_calls), (Level::Clean, 1));
}

#[test]
fn an_operation_counts_on_after_its_window() {
    let mut detector = detector(Rules::TOOL_CALLS);
    for n in 0..5 {
        detector.observe(n * 60_000, &call(1, 7, 1, n % 3));
    }
    let seen = detector.observe(1_000_000, &call(1, 7, 1, 9));
    assert_eq!(
        (seen.level, seen.operation_calls, seen.operation_distinct),
        (Level::Clean, 6, 4)
    );
}

#[test]
fn ten_claims_in_a_minute_are_nobodys_concern() {
    let mut detector = detector(Rules::CLAIMS);
    for claim in 0..10u64 {
        for step in 0..2 {
            let at_ms = claim * 6_000 + step * 100;
            let seen = detector.observe(at_ms, &call(1, 1, 5, claim * 2 + step));
            assert_eq!(seen.level, Level::Clean);
        }
    }
}

#[test]
fn an_agent_that_works_all_day_is_clean() {
    let mut detector = detector(Rules::AGENT_CALLS);
    // Ten different calls a second, of many tools, for an hour.
    for n in 0..36_000 {
        let seen = detector.observe(n * 100, &call(1, 1, n % 40, n));
        assert_eq!(seen.level, Level::Clean, "{n}");
        assert!(seen.calls <= 300, "{n}");
    }
    // Twenty a second for half a minute are too many, however alike they are.
    let levels = (0..600).map(|n| detector.observe(10_000_000 + n, &call(2, 1, 1, 1)).level);
    assert_eq!(levels.last(), Some(Level::Throttle));
}

#[test]
fn whoever_is_denied_again_and_again_is_looked_at_for_a_while() {
    let mut detector = detector(Rules::AGENT_CALLS);
    let level = |detector: &mut Detector, at_ms| detector.observe(at_ms, &call(1, 1, 1, 1)).level;
    let denied = OwnerTag([1; 16]);
    for n in 0..19 {
        detector.denied(n * 1_000, denied);
    }
    assert_eq!(level(&mut detector, 19_000), Level::Clean);
    detector.denied(19_000, denied);
    assert_eq!(level(&mut detector, 20_000), Level::Escalate);
    // Another principal is not affected, and the first denial expires in its time.
    assert_eq!(
        detector.observe(20_000, &call(2, 1, 1, 1)).level,
        Level::Clean
    );
    assert_eq!(level(&mut detector, 299_999), Level::Escalate);
    assert_eq!(level(&mut detector, 300_000), Level::Clean);
    // The published rules do not count denials and keep none in memory.
    let mut published = Detector::new(Rules::TOOL_CALLS, some(64), some(64)).expect("rules");
    for n in 0..100 {
        published.denied(n, denied);
    }
    assert_eq!(level(&mut published, 100), Level::Clean);
}

#[test]
fn time_that_goes_back_stands_still() {
    let mut detector = detector(Rules::TOOL_CALLS);
    for n in 0..19 {
        detector.observe(100_000 - n, &call(1, 1, 1, 1));
    }
    let seen = detector.observe(0, &call(1, 1, 1, 1)).level;
    assert_eq!(seen, Level::Throttle);
}

#[test]
fn the_quietest_principal_is_forgotten_first() {
    let mut detector = Detector::new(Rules::TOOL_CALLS, some(2), some(8)).expect("rules");
    for n in 0..19 {
        detector.observe(n, &call(1, 1, 1, 1));
        detector.observe(n, &call(2, 1, 1, 1));
    }
    detector.observe(20, &call(2, 1, 1, 1));
    detector.observe(20, &call(3, 1, 1, 1));
    assert_eq!(
        detector.observe(21, &call(2, 1, 1, 1)).level,
        Level::Throttle
    );
    assert_eq!(detector.observe(21, &call(1, 1, 1, 1)).level, Level::Clean);
}

#[test]
fn rules_that_cannot_be_applied_are_refused() {
    let good = Rules::TOOL_CALLS;
    let zero = Thresholds {
        total: 0,
        ..good.throttle
    };
    let cases = [
        (good, Ok(())),
        (Rules::CLAIMS, Ok(())),
        (
            Rules {
                window_ms: 0,
                ..good
            },
            Err(RulesError::Range),
        ),
        (
            Rules {
                throttle: zero,
                ..good
            },
            Err(RulesError::Range),
        ),
        (
            Rules {
                throttle: good.freeze,
                ..good
            },
            Err(RulesError::Order),
        ),
    ];
    for (rules, expected) in cases {
        assert_eq!(rules.check(), expected, "{rules:?}");
    }
}

/// The same detector without bounds on memory.
#[derive(Default)]
struct Naive {
    calls: Vec<(u64, Call)>,
}

impl Naive {
    fn observe(&mut self, rules: &Rules, now_ms: u64, call: Call) -> Observed {
        self.calls.push((now_ms, call));
        let in_window: Vec<_> = self
            .calls
            .iter()
            .filter(|(at, c)| c.principal == call.principal && at + rules.window_ms > now_ms)
            .collect();
        let distinct = |of: fn(&Call) -> u64| {
            let all: HashSet<u64> = in_window.iter().map(|(_, c)| of(c)).collect();
            all.len() as u32
        };
        let counted = Counted {
            total: in_window.len() as u32,
            distinct_hashes: distinct(|c| c.hash),
            distinct_topics: distinct(|c| c.topic),
        };
        let of_operation = self
            .calls
            .iter()
            .filter(|(_, c)| (c.principal, c.operation) == (call.principal, call.operation));
        let asked: HashSet<u64> = of_operation.clone().map(|(_, c)| c.hash).collect();
        Observed {
            level: rules.level(&counted),
            calls: counted.total.min(rules.freeze.total),
            operation_calls: of_operation.count() as u32,
            operation_distinct: (asked.len() as u32).min(rules.freeze.total),
        }
    }
}

proptest! {
    #[test]
    fn a_bounded_window_sees_what_an_endless_memory_sees(
        steps in prop::collection::vec((0u64..40, 0u8..3, 0u8..3, 0u64..6, 0u64..12), 1..200),
    ) {
        let thresholds = |total, distinct_hashes, distinct_topics| Thresholds {
            total, distinct_hashes, distinct_topics,
        };
        let rules = Rules {
            window_ms: 100,
            throttle: thresholds(4, 3, 2),
            escalate: thresholds(8, 5, 3),
            freeze: thresholds(12, 8, 5),
            ..Rules::TOOL_CALLS
        };
        let (mut bounded, mut naive) = (detector(rules), Naive::default());
        let mut now_ms = 0;
        for (pause_ms, principal, operation, topic, hash) in steps {
            now_ms += pause_ms;
            let call = call(principal, operation, topic, hash);
            prop_assert_eq!(
                bounded.observe(now_ms, &call),
                naive.observe(&rules, now_ms, call)
            );
        }
    }
}
