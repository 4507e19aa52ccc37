//! Every change of a holdout's budgets is a log entry.

use evidenceos_kernel::{
    command::{Command, HoldoutCommand, Reply},
    holdout::NarrowerBudgets,
    record::BudgetsChanged,
};

use crate::world::{OPERATOR, World, bits};

fn set(world: &World, narrower: NarrowerBudgets) -> Command {
    HoldoutCommand::SetBudgets {
        holdout: world.holdout,
        narrower,
    }
    .into()
}

#[test]
fn a_change_is_an_entry_with_all_that_holds_from_then_on() {
    let mut world = World::new();
    let sealed = NarrowerBudgets {
        sealed: Some(bits(20)),
        ..NarrowerBudgets::default()
    };
    let credit = NarrowerBudgets {
        credit: Some(500),
        ..NarrowerBudgets::default()
    };
    for (asked, holds) in [
        (sealed, sealed),
        (
            credit,
            NarrowerBudgets {
                sealed: Some(bits(20)),
                ..credit
            },
        ),
    ] {
        let reply = world.ask(OPERATOR, set(&world, asked));
        assert!(matches!(reply, Ok(Reply::Holdout(h)) if h.narrower == holds));
        let entry = world.entries.last().expect("an entry");
        let changed = BudgetsChanged::parse(entry).expect("the change");
        assert_eq!((changed.holdout, changed.budgets), (world.holdout, holds));
    }
    assert_eq!(world.entries.len(), 3);
}

#[test]
fn what_changes_nothing_is_no_entry_and_what_widens_is_refused() {
    let mut world = World::new();
    world
        .ask(OPERATOR, set(&world, NarrowerBudgets::default()))
        .expect("nothing to change");
    let wider = NarrowerBudgets {
        sealed: Some(bits(65)),
        ..NarrowerBudgets::default()
    };
    assert!(world.ask(OPERATOR, set(&world, wider)).is_err());
    assert_eq!(world.entries.len(), 1);
}
