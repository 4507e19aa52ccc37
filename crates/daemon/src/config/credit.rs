//! The settings of credit: the prices of runs, and what new accounts start with.

use std::collections::HashMap;

use evidenceos_kernel::account::{Accounting, MAX_CREDIT, Rate, Tariff};

use super::Settings;

/// Reads the settings of credit; problems are added to `problems`.
pub fn accounting(settings: &Settings, problems: &mut Vec<String>) -> Accounting {
    let default = Accounting::default();
    let mut rate = |flag: &str, text: &Option<String>, default: Rate| match text {
        None => default,
        Some(text) => text.parse().unwrap_or_else(|error| {
            problems.push(format!("--{flag} {text:?}: {error}"));
            default
        }),
    };
    let tariff = Tariff {
        per_bit: rate(
            "lambda-k-per-bit",
            &settings.lambda_k_per_bit,
            default.tariff.per_bit,
        ),
        per_fuel: rate(
            "lambda-cpu-per-fuel",
            &settings.lambda_cpu_per_fuel,
            default.tariff.per_fuel,
        ),
        per_page: rate(
            "lambda-mem-per-wasm-page",
            &settings.lambda_mem_per_wasm_page,
            default.tariff.per_page,
        ),
        per_module_byte: rate(
            "lambda-code-per-byte",
            &settings.lambda_code_per_byte,
            default.tariff.per_module_byte,
        ),
    };
    let mut limit = |flag: &str, asked: Option<u64>| {
        if asked.is_some_and(|asked| asked > MAX_CREDIT) {
            problems.push(format!("--{flag}: at most {MAX_CREDIT} credits"));
        }
        asked
    };
    Accounting {
        tariff,
        credit_limit: limit("default-credit-limit", settings.default_credit_limit)
            .unwrap_or(default.credit_limit),
        daily_mint_limit: limit(
            "default-daily-mint-limit",
            settings.default_daily_mint_limit,
        ),
        credit_limits: of_principals(settings.principal_credit_limits.as_deref(), problems),
        storage_limit: settings
            .principal_storage_limit
            .unwrap_or(default.storage_limit),
    }
}

/// `name=credits,…`; a name may contain `=`, as the names of certificates do.
fn of_principals(text: Option<&str>, problems: &mut Vec<String>) -> HashMap<String, u64> {
    let pairs = text.unwrap_or_default().split(',').map(str::trim);
    let mut limits = HashMap::new();
    for pair in pairs.filter(|pair| !pair.is_empty()) {
        let parsed = pair.rsplit_once('=').and_then(|(name, credits)| {
            let credits: u64 = credits.trim().parse().ok()?;
            Some((name.trim(), credits))
        });
        match parsed {
            Some((name, credits)) if (1..=256).contains(&name.len()) && credits <= MAX_CREDIT => {
                if limits.insert(name.to_owned(), credits).is_some() {
                    problems.push(format!("--principal-credit-limits: {name:?} is named twice"));
                }
            }
            _ => problems.push(format!(
                "--principal-credit-limits {pair:?}: give name=credits, at most {MAX_CREDIT} credits, with commas between them"
            )),
        }
    }
    limits
}
