//! `evidenceos account`: reads and changes what principals may spend.
//!
//! Owns how an account is shown to users. Every number comes from the server unchanged.

use clap::{Args, Subcommand};
use evidenceos_proto as proto;
use serde_json::{Value, json};

use crate::{
    client::{Client, Connection},
    error::CliError,
    output::{Output, grouped, print_line, table},
    paging::{PageArgs, Paged},
    principal::{PrincipalAndCredits, PrincipalArgs},
};

/// The commands about accounts.
#[derive(Debug, Subcommand)]
pub enum AccountCommand {
    /// Show an account: yours, or a principal's.
    #[command(
        after_help = "Another principal's account needs the operator role.\n\n\
        Examples:\n  evidenceos account show\n  \
        evidenceos account show --uri spiffe://example.org/alice"
    )]
    Show(PrincipalArgs),
    /// List accounts, and the sums over all of them.
    #[command(
        after_help = "Examples:\n  evidenceos account list --limit 1000 --json\n  \
        evidenceos account list --principal bearer: --name nightly"
    )]
    List(ListArgs),
    /// Give a principal credit, up to its limit.
    #[command(
        after_help = "The reason and the amount go into the public log, under the principal's tag.\n\n\
        Example:\n  evidenceos account grant 500 --uri spiffe://example.org/alice --reason \"second quarter\" --wait"
    )]
    Grant(GrantArgs),
    /// Set the most credit that a principal may have; the server withdraws any credit above it.
    #[command(
        after_help = "Examples:\n  evidenceos account limit 20000 --uri spiffe://example.org/alice\n  \
        evidenceos account limit bearer:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 20000"
    )]
    Limit(LimitArgs),
    /// Print an account whenever it changes: yours, a principal's, or all.
    #[command(after_help = "Examples:\n  evidenceos account watch\n  \
        evidenceos account watch --all | jq .burned_total")]
    Watch {
        #[command(flatten)]
        of: PrincipalArgs,
        /// All accounts; needs the operator role.
        #[arg(long)]
        all: bool,
    },
}

/// Which accounts to list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Accounts of principals that begin so: mtls:, bearer:9f86, spiffe://example.org/.
    #[arg(long, value_name = "TEXT")]
    principal: Option<String>,
    /// Accounts of principals that the role policy calls so.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    page: PageArgs,
}

impl ListArgs {
    fn matches(&self, account: &proto::Account) -> bool {
        let begins = |text: &String| account.principal_id.starts_with(text.as_str());
        self.principal.as_ref().is_none_or(begins)
            && self.name.as_ref().is_none_or(|name| *name == account.name)
    }

    fn has_filter(&self) -> bool {
        self.principal.is_some() || self.name.is_some()
    }
}

/// A grant.
#[derive(Debug, Args)]
pub struct GrantArgs {
    #[command(flatten)]
    to: PrincipalAndCredits,
    /// Why, 1 to 256 bytes; public.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Return only once accounts.json shows the grant.
    #[arg(long)]
    wait: bool,
}

/// A limit.
#[derive(Debug, Args)]
pub struct LimitArgs {
    #[command(flatten)]
    of: PrincipalAndCredits,
}

impl AccountCommand {
    /// Runs the command and returns what it prints.
    pub async fn run(self, connection: &Connection) -> Result<Output, CliError> {
        let mut client = Client::connect(connection).await?;
        match self {
            // An empty name stands for the caller's own account.
            Self::Show(of) => show(&mut client, of.named()?.unwrap_or_default()).await,
            Self::List(args) => list(&mut client, args).await,
            Self::Grant(args) => args.run(&mut client).await,
            Self::Limit(args) => args.run(&mut client).await,
            Self::Watch { of, all } => {
                let principal = of.named()?;
                if all && principal.is_some() {
                    return Err(CliError::Usage(
                        "name a principal or give --all, not both".to_owned(),
                    ));
                }
                watch(&mut client, principal.unwrap_or_default(), all).await
            }
        }
    }
}

async fn account(client: &mut Client, principal_id: String) -> Result<proto::Account, CliError> {
    let reply = client
        .get_account(proto::GetAccountRequest { principal_id })
        .await?;
    Ok(reply.account.unwrap_or_default())
}

async fn show(client: &mut Client, principal: String) -> Result<Output, CliError> {
    let account = account(client, principal).await?;
    let free = account.credit_balance.saturating_sub(account.reserved);
    let rows = [
        ("principal", account.principal_id.clone()),
        ("name", account.name.clone()),
        ("tag in the log", hex::encode(&account.owner_tag)),
        (
            "credit",
            format!(
                "{} of at most {}; {} reserved by runs under way, {} to spend",
                grouped(account.credit_balance),
                grouped(account.credit_limit),
                grouped(account.reserved),
                grouped(free)
            ),
        ),
        (
            "a day gives back",
            format!("up to {}", grouped(account.daily_mint_limit)),
        ),
        ("burned so far", grouped(account.burned_total)),
        ("runs denied", grouped(account.denied_total)),
        (
            "storage",
            format!(
                "{} of at most {} bytes",
                grouped(account.stored_bytes),
                grouped(account.storage_limit)
            ),
        ),
    ];
    let text: Vec<String> = rows
        .iter()
        // A principal that the role policy does not name has no name to show.
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name:<17} {value}"))
        .collect();
    Ok(Output::new(account_json(&account), text.join("\n")))
}

fn account_json(account: &proto::Account) -> Value {
    json!({
        "principal_id": account.principal_id,
        "name": account.name,
        "owner_tag": hex::encode(&account.owner_tag),
        "credit_balance": account.credit_balance,
        "reserved": account.reserved,
        "credit_limit": account.credit_limit,
        "daily_mint_limit": account.daily_mint_limit,
        "daily_mint_remaining": account.daily_mint_remaining,
        "last_mint_day": account.last_mint_day,
        "burned_total": account.burned_total,
        "denied_total": account.denied_total,
        "stored_bytes": account.stored_bytes,
        "storage_limit": account.storage_limit,
    })
}

async fn list(client: &mut Client, args: ListArgs) -> Result<Output, CliError> {
    let mut paged = Paged::new(args.page.clone());
    let mut totals = proto::CreditTotals::default();
    while let Some((page_size, page_token)) = paged.next() {
        let message = proto::ListAccountsRequest {
            page_size,
            page_token,
        };
        let page = client.list_accounts(message).await?;
        // The last page has the newest totals.
        totals = page.totals.unwrap_or_default();
        let mut accounts = page.accounts;
        accounts.retain(|account| args.matches(account));
        paged.take(accounts, page.next_page_token);
    }
    let accounts = &paged.items;
    let json: Vec<Value> = accounts.iter().map(account_json).collect();
    let rows: Vec<Vec<String>> = accounts.iter().map(row).collect();
    let text = if rows.is_empty() && args.has_filter() {
        "no account matches".to_owned()
    } else if rows.is_empty() {
        "no accounts yet; one is opened with a principal's first claim".to_owned()
    } else {
        let headers = [
            "principal",
            "name",
            "credit>",
            "reserved>",
            "limit>",
            "burned>",
            "denied>",
        ];
        format!(
            "{}{}\n\n{} initial + {} minted + {} granted - {} withdrawn - {} burned - {} reserved = {} in {} accounts",
            table(&headers, &rows),
            paged.more(),
            grouped(totals.initial),
            grouped(totals.minted),
            grouped(totals.granted),
            grouped(totals.withdrawn),
            grouped(totals.burned),
            grouped(totals.reserved),
            grouped(totals.balances),
            grouped(totals.accounts),
        )
    };
    Ok(Output::new(
        json!({ "accounts": json, "totals": sums_json(&totals), "next_page": paged.next_page() }),
        text,
    ))
}

fn sums_json(totals: &proto::CreditTotals) -> Value {
    json!({
        "accounts": totals.accounts,
        "initial": totals.initial,
        "minted": totals.minted,
        "granted": totals.granted,
        "withdrawn": totals.withdrawn,
        "burned": totals.burned,
        "reserved": totals.reserved,
        "balances": totals.balances,
    })
}

fn row(account: &proto::Account) -> Vec<String> {
    vec![
        account.principal_id.clone(),
        account.name.clone(),
        grouped(account.credit_balance),
        grouped(account.reserved),
        grouped(account.credit_limit),
        grouped(account.burned_total),
        grouped(account.denied_total),
    ]
}

impl GrantArgs {
    async fn run(self, client: &mut Client) -> Result<Output, CliError> {
        let (principal, amount) = self.to.parsed()?;
        let granted = client
            .grant_credit(proto::GrantCreditRequest {
                principal_id: principal.clone(),
                amount,
                reason: self.reason,
            })
            .await?;
        if self.wait {
            client
                .export_accounts(proto::ExportAccountsRequest {})
                .await?;
        }
        let balance = granted.credit_balance;
        Ok(Output::new(
            json!({ "principal_id": principal, "credit_balance": balance }),
            format!("{principal} has {} credits now", grouped(balance)),
        ))
    }
}

impl LimitArgs {
    async fn run(self, client: &mut Client) -> Result<Output, CliError> {
        let (principal, limit) = self.of.parsed()?;
        set_limit(client, principal, limit).await
    }
}

async fn set_limit(client: &mut Client, principal: String, limit: u64) -> Result<Output, CliError> {
    let request = proto::SetCreditLimitRequest {
        principal_id: principal.clone(),
        limit,
    };
    let limit = client.set_credit_limit(request).await?.credit_limit;
    Ok(Output::new(
        json!({ "principal_id": principal, "credit_limit": limit }),
        format!("{principal} may have up to {} credits", grouped(limit)),
    ))
}

/// Prints one JSON object a line, so that a pipe can read it; ends with the server or the reader.
async fn watch(client: &mut Client, principal_id: String, all: bool) -> Result<Output, CliError> {
    let request = proto::WatchAccountsRequest { principal_id, all };
    client
        .watch_accounts(request, |account| {
            print_line(&account_json(account).to_string());
        })
        .await?;
    Ok(Output::new(Value::Null, "the server ended the watch"))
}
