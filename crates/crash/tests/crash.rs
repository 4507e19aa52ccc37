//! The daemon dies, by kill and by power cut, and starts again without a hand. Seeds are fixed, so
//! that a run says the same each time; `just crash` and `just power` go on with others.

use std::path::Path;

use evidenceos_crash::{
    Failed,
    campaign::{ROUNDS_OF_A_WORLD, Tools},
    ledger::Told,
    recorder::Recorder,
    world::{Tally, World},
};

/// Rounds with deaths at random moments, in a run of all tests.
const ROUNDS: u64 = 20;
/// Rounds in which the directory becomes read-only, in a run of all tests.
const READ_ONLY_ROUNDS: u64 = 8;
/// Power cuts, in a run of all tests.
const CUTS: u64 = 60;

fn with<T>(test: impl AsyncFnOnce(Tools<'_>) -> Result<T, Failed>) -> T {
    let home = tempfile::tempdir().expect("a directory");
    let recorder = Recorder::build(home.path()).expect("a C compiler");
    let tools = Tools {
        program: Path::new(env!("CARGO_BIN_EXE_evidenceos-crash")),
        recorder: &recorder,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    match runtime.block_on(test(tools)) {
        Ok(value) => value,
        Err(why) => panic!("{why}"),
    }
}

#[test]
fn deaths_at_random_moments_lose_nothing_and_double_nothing() {
    let tally = with(async |tools| {
        let mut all = Tally::default();
        for seed in 1..=ROUNDS / ROUNDS_OF_A_WORLD {
            all.add(&tools.random_world(seed, ROUNDS_OF_A_WORLD).await?);
        }
        Ok(all)
    });
    println!("{tally}");
    assert!(tally.rounds == ROUNDS && tally.deaths >= ROUNDS && tally.acknowledged > 0);
    assert!(
        tally.asked_again > 0,
        "no kill came between a call and its reply: {tally}"
    );
}

#[test]
fn deaths_and_faults_at_every_point_lose_nothing_and_double_nothing() {
    let tally = with(async |tools| tools.every_point(1).await);
    println!("{tally}");
}

#[test]
fn a_directory_that_becomes_read_only_loses_nothing_and_acknowledges_nothing() {
    let tally = with(async |tools| tools.read_only_world(1, READ_ONLY_ROUNDS).await);
    println!("{tally}");
    assert_eq!(tally.rounds, READ_ONLY_ROUNDS + 1);
}

#[test]
fn power_cuts_lose_nothing_that_was_acknowledged() {
    let cuts = with(async |tools| tools.power(1, CUTS).await);
    println!("{cuts}");
    assert!(cuts.images == CUTS && cuts.went_on > 0 && cuts.looked_for > 0);
}

/// What the checks are worth: a step that was acknowledged and is not there is found.
#[test]
fn a_lost_acknowledgement_is_found() {
    let why = with(async |tools| {
        let mut world = World::new(tools.program, tools.recorder, 1, false)?;
        world.begin().await?;
        world.load(60).await?;
        world.settle().await?;
        {
            let ledger = world.ledger();
            let mut ledger = ledger.lock();
            let mut revoked = ledger
                .lives()
                .find(|life| life.settled().is_some() && life.is_over() && life.length == 5)
                .cloned()
                .expect("a settled claim");
            revoked.length += 1;
            ledger.tell(&mut revoked, Told::Revoked(1));
        }
        Ok(world
            .settle()
            .await
            .expect_err("nobody has revoked it")
            .to_string())
    });
    assert!(why.contains("not revoked any more"), "{why}");
}
