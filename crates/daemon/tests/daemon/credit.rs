//! Credit over the wire, and `accounts.json` beside it.

use std::{fs, path::Path, process::Command};

use evidenceos_daemon::Config;
use evidenceos_kernel::account::Accounting;
use evidenceos_proto as wire;
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{
    Client, Daemon, Directory, block_on, config, judged, predictions, refused, terms,
};

/// What `accounts.json` says of a principal.
fn listed(directory: &Path, principal: &str) -> Value {
    let bytes = fs::read(directory.join("accounts.json")).expect("it is there");
    let document: Value = serde_json::from_slice(&bytes).expect("it is JSON");
    document["accounts"][principal].clone()
}

async fn name_of(client: &mut Client) -> String {
    let request = client.request(wire::GetServerInfoRequest {});
    let info = client.inner.get_server_info(request).await;
    info.expect("answers").into_inner().principal
}

/// A daemon where new accounts have few credits.
async fn with_limit(credit_limit: u64) -> Daemon {
    let directory = Directory::new();
    let accounting = Accounting {
        credit_limit,
        ..Accounting::default()
    };
    let config = Config {
        accounting,
        ..config(directory.path())
    };
    let running = evidenceos_daemon::start(config).await.expect("starts");
    Daemon { running, directory }
}

#[test]
fn a_small_claim_costs_one_credit_and_the_file_follows() {
    block_on(async {
        let daemon = Daemon::start().await;
        let (mut operator, mut me) = (daemon.operator().await, daemon.submitter("me").await);
        operator.put_default("h").await;
        let name = name_of(&mut me).await;
        let fresh = me.account("").await.expect("one's own");
        assert_eq!(
            (fresh.credit_balance, fresh.principal_id.as_str()),
            (10_000, name.as_str())
        );
        let (claim, result) = me.run("c", "h", &judged(&predictions("h", 2))).await;
        assert_eq!(result.credit_burned, 1);
        let again = me.execute(&claim).await.expect("it has its result");
        assert_eq!(again, result);
        let (_, certified) = me.run("d", "h", &judged(&predictions("h", 20))).await;
        assert_eq!(certified.credit_burned, 5, "four bits, and a little more");
        operator.exported().await;
        let day = fresh.last_mint_day;
        assert_eq!(
            listed(daemon.directory.path(), &name),
            json!({
                "credit_balance": 9_994,
                "daily_mint_remaining": 10_000,
                "last_mint_day": day,
                "limits": { "credit_limit": 10_000, "daily_mint_limit": 10_000 },
                "burned_total": 6,
                "denied_total": 0
            })
        );
        let daemon = daemon.restart().await;
        let mut me = daemon.submitter("me").await;
        let found = me.account("").await.expect("one's own");
        assert_eq!(
            (found.credit_balance, found.burned_total, found.reserved),
            (9_994, 6, 0)
        );
        daemon.running.stop().await.expect("stops");
    });
}

#[test]
fn whoever_has_too_little_is_refused_and_a_grant_lets_him_through() {
    block_on(async {
        let daemon = with_limit(5).await;
        let (mut operator, mut me) = (daemon.operator().await, daemon.submitter("me").await);
        operator.put_default("h").await;
        let name = name_of(&mut me).await;
        let claim = me.sealed("c", "h", &judged(&predictions("h", 2))).await;
        let denied = me.with_id("once").execute(&claim).await;
        refused(
            denied,
            Code::ResourceExhausted,
            "INSUFFICIENT_CREDIT",
            "insufficient credit",
        );
        let again = me.with_id("once").execute(&claim).await;
        refused(
            again,
            Code::ResourceExhausted,
            "INSUFFICIENT_CREDIT",
            "insufficient credit",
        );
        assert_eq!(me.account("").await.expect("one's own").denied_total, 1);
        let beyond = operator.grant(&name, 100).await;
        refused(
            beyond,
            Code::ResourceExhausted,
            "BEYOND_CREDIT_LIMIT",
            "account limit",
        );
        assert_eq!(
            operator.limit(&name, 1_000).await.expect("an operator"),
            1_000
        );
        for _ in 0..2 {
            let granted = operator.with_id("grant").grant(&name, 100).await;
            assert_eq!(granted.expect("within the limit"), 105);
        }
        let result = me
            .with_id("twice")
            .execute(&claim)
            .await
            .expect("enough now");
        assert_eq!(result.credit_burned, 1);
        assert_eq!(me.account("").await.expect("one's own").credit_balance, 104);
        daemon.running.stop().await.expect("stops");
        assert_eq!(
            listed(daemon.directory.path(), &name)["credit_balance"],
            104
        );
    });
}

#[test]
fn others_accounts_are_for_operators() {
    block_on(async {
        let daemon = Daemon::start().await;
        let (mut operator, mut me) = (daemon.operator().await, daemon.submitter("me").await);
        let mut other = daemon.submitter("other").await;
        operator.put_default("h").await;
        let names = [name_of(&mut me).await, name_of(&mut other).await];
        for client in [&mut me, &mut other] {
            client.create(terms("c", "h")).await.expect("created");
        }
        refused(
            other.account(&names[0]).await,
            Code::PermissionDenied,
            "ROLE_REQUIRED",
            "operator",
        );
        assert_eq!(
            operator
                .account(&names[0])
                .await
                .expect("an operator")
                .principal_id,
            names[0]
        );
        let mut found = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = operator.request(wire::ListAccountsRequest {
                page_size: 1,
                page_token,
            });
            let page = operator
                .inner
                .list_accounts(request)
                .await
                .expect("an operator");
            let page = page.into_inner();
            assert_eq!(page.totals.expect("sums").balances, 20_000);
            found.extend(
                page.accounts
                    .into_iter()
                    .map(|account| account.principal_id),
            );
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(found, names);
        daemon.running.stop().await.expect("stops");
    });
}

#[test]
fn a_watcher_sees_how_an_account_is_and_how_it_becomes() {
    block_on(async {
        let daemon = Daemon::start().await;
        let (mut operator, mut me) = (daemon.operator().await, daemon.submitter("me").await);
        operator.put_default("h").await;
        let request = me.request(wire::WatchAccountsRequest::default());
        let watched = me.inner.watch_accounts(request).await.expect("one's own");
        let mut watched = watched.into_inner();
        let first = watched.message().await.expect("open").expect("how it is");
        assert_eq!(first.accounts[0].credit_balance, 10_000);
        let all = wire::WatchAccountsRequest {
            all: true,
            ..Default::default()
        };
        let request = me.request(all.clone());
        let refused_all = me.inner.watch_accounts(request).await.map(drop);
        refused(
            refused_all,
            Code::PermissionDenied,
            "ROLE_REQUIRED",
            "operator",
        );
        let request = operator.request(all);
        let everybody = operator
            .inner
            .watch_accounts(request)
            .await
            .expect("an operator");
        let mut everybody = everybody.into_inner();
        everybody
            .message()
            .await
            .expect("open")
            .expect("how all are");
        me.run("c", "h", &judged(&predictions("h", 2))).await;
        for stream in [&mut watched, &mut everybody] {
            loop {
                let message = stream.message().await.expect("open").expect("a change");
                if message.accounts[0].burned_total == 1 {
                    break;
                }
            }
        }
        daemon.running.stop().await.expect("stops");
    });
}

#[test]
fn budgets_can_be_narrowed_up_to_what_is_registered() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        let holdout = client.put_default("h").await;
        let holdout_id = hex::encode(&holdout.holdout_id);
        let get = wire::GetHoldoutPoolBudgetsRequest {
            holdout_id: holdout_id.clone(),
            scope: "global".to_owned(),
        };
        let set = |bits, credit| wire::SetHoldoutPoolBudgetsRequest {
            holdout_id: holdout_id.clone(),
            scope: "global".to_owned(),
            new_k_bits_budget: bits,
            new_access_credit_budget: credit,
        };
        let request = client.request(get.clone());
        let found = client.inner.get_holdout_pool_budgets(request).await;
        let registered = found
            .expect("registered")
            .into_inner()
            .budgets
            .expect("budgets");
        assert_eq!(registered.access_credit_budget, None);
        let bits = registered.k_bits_budget.expect("a budget");
        let request = client.request(set(Some(bits + 1.0), None));
        let wider = client.inner.set_holdout_pool_budgets(request).await;
        refused(
            wider,
            Code::InvalidArgument,
            "INVALID_FIELD",
            "cannot exceed",
        );
        let request = client.request(set(Some(1.5), Some(5.0)));
        client
            .inner
            .set_holdout_pool_budgets(request)
            .await
            .expect("narrower");
        let request = client.request(get);
        let found = client.inner.get_holdout_pool_budgets(request).await;
        let narrower = found
            .expect("registered")
            .into_inner()
            .budgets
            .expect("budgets");
        assert_eq!(narrower.k_bits_budget, Some(1.5));
        assert_eq!(narrower.access_credit_budget, Some(5.0));
        let claim = client.sealed("c", "h", &judged(&predictions("h", 2))).await;
        let denied = client.execute(&claim).await;
        refused(
            denied,
            Code::ResourceExhausted,
            "LEAKAGE_BUDGET_EXHAUSTED",
            "settlement budget",
        );
        for (wrong, part) in [(f64::NAN, "number"), (-1.0, "number")] {
            let request = client.request(set(Some(wrong), None));
            let status = client.inner.set_holdout_pool_budgets(request).await;
            refused(status, Code::InvalidArgument, "INVALID_FIELD", part);
        }
        daemon.running.stop().await.expect("stops");
    });
}

/// An account of the published daemon's making.
fn published(balance: u64) -> String {
    let account = json!({
        "credit_balance": balance,
        "daily_mint_remaining": 500,
        "last_mint_day": 20_000,
        "limits": { "credit_limit": 700, "daily_mint_limit": 500 },
        "burned_total": 42,
        "denied_total": 7
    });
    serde_json::to_string_pretty(&json!({ "accounts": { "anonymous": account } })).expect("JSON")
}

#[test]
fn a_file_of_the_published_daemon_is_imported_as_it_is() {
    block_on(async {
        let directory = Directory::new();
        fs::write(directory.path().join("accounts.json"), published(650)).expect("a free disk");
        let running = evidenceos_daemon::start(config(directory.path()))
            .await
            .expect("starts");
        let daemon = Daemon { running, directory };
        let mut client = daemon.operator().await;
        let account = client.account("anonymous").await.expect("an operator");
        assert_eq!((account.credit_balance, account.burned_total), (650, 42));
        assert_eq!((account.denied_total, account.credit_limit), (7, 700));
        let entries = client.entries().await;
        let last = String::from_utf8(entries.last().expect("two").clone()).expect("JSON");
        assert!(last.contains("accounts_imported"), "{last}");
        let daemon = daemon.restart().await;
        let mut client = daemon.operator().await;
        let account = client.account("anonymous").await.expect("an operator");
        assert_eq!(account.credit_balance, 650);
        assert_eq!(client.entries().await, entries, "imported once");
        daemon.running.stop().await.expect("stops");
    });
}

fn program(arguments: &[&str], directory: &Path) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_evidenceos-daemon"))
        .args(arguments)
        .arg("--data-dir")
        .arg(directory)
        .output()
        .expect("runs");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8(text).expect("text"),
    )
}

#[test]
fn an_edited_file_stops_the_start_and_both_ways_out_work() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        client.run("c", "h", &judged(&predictions("h", 2))).await;
        let Daemon { running, directory } = daemon;
        running.stop().await.expect("stops");
        let (path, start) = (directory.path(), || {
            evidenceos_daemon::start(config(directory.path()))
        });
        let file = path.join("accounts.json");
        let ours = fs::read_to_string(&file).expect("written at the stop");
        let edited = ours.replace("\"credit_balance\":9999", "\"credit_balance\":4321");
        assert_ne!(ours, edited);
        fs::write(&file, &edited).expect("a free disk");
        let error = start().await.err().expect("not ours").to_string();
        assert!(
            error.contains("accounts import") && error.contains("accounts export"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&file).expect("untouched"), edited);
        // Back to what the database has; the edited file is kept.
        let (fine, said) = program(&["accounts", "export"], path);
        assert!(fine && said.contains("accounts.json.replaced-"), "{said}");
        assert_eq!(fs::read_to_string(&file).expect("written"), ours);
        // And the other way.
        fs::write(&file, &edited).expect("a free disk");
        let (fine, said) = program(&["accounts", "import"], path);
        assert!(!fine && said.contains("--because"), "{said}");
        let (fine, said) = program(&["accounts", "import", "--because", "by hand"], path);
        assert!(
            fine && said.contains("1 changed") && said.contains("4321 after"),
            "{said}"
        );
        let running = start().await.expect("approved");
        let mut client = Client::connect(&running.grpc_address().to_string(), None).await;
        assert_eq!(
            client.account("").await.expect("one's own").credit_balance,
            4_321
        );
        running.stop().await.expect("stops");
        assert!(!path.join("accounts.import").exists());
        start()
            .await
            .expect("imported once")
            .stop()
            .await
            .expect("stops");
        // Another file than the approved one stops the start again.
        fs::write(&file, edited.replace("4321", "4322")).expect("a free disk");
        assert!(start().await.is_err());
        fs::write(&file, "not JSON").expect("a free disk");
        let (fine, said) = program(&["accounts", "import", "--because", "by hand"], path);
        assert!(!fine && said.contains("line 1"), "{said}");
        // Missing, it is written again.
        fs::remove_file(&file).expect("there");
        start()
            .await
            .expect("the database has all")
            .stop()
            .await
            .expect("stops");
        assert!(fs::read_to_string(&file).expect("written").contains("4321"));
    });
}
