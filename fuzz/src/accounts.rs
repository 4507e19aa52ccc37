//! `accounts.json`, edited by people and other programs.

use evidenceos_store::accounts::parse;
use serde_json::json;

/// The accounts of a file, written again, are the same accounts.
pub fn check(bytes: &[u8]) {
    let Ok(accounts) = parse(bytes) else {
        return;
    };
    let again = json!({ "accounts": accounts }).to_string();
    let again = parse(again.as_bytes()).expect("what was read");
    assert_eq!(again, accounts);
}
