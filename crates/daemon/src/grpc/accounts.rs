//! Credit over gRPC.

use std::sync::Arc;

use evidenceos_kernel::account::{Account, Totals};
use evidenceos_proto as wire;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::Status;

use super::{
    call::{Call, Pieces},
    parse, render,
};
use crate::services::{Services, Whose};

/// `GrantCredit`: adds credit to an account and answers what the account has then.
pub async fn grant(
    services: &Services,
    call: Call<wire::GrantCreditRequest>,
) -> Result<wire::GrantCreditResponse, Status> {
    let stamp = call.stamp("GrantCredit")?;
    let wire::GrantCreditRequest {
        principal_id,
        amount,
        reason,
        ..
    } = call.message;
    let granted = services
        .accounts
        .grant(&call.principal, stamp, principal_id, amount, reason);
    Ok(wire::GrantCreditResponse {
        credit_balance: granted.await?,
    })
}

/// `SetCreditLimit`: bounds an account's credit, reservations included.
pub async fn set_limit(
    services: &Services,
    call: Call<wire::SetCreditLimitRequest>,
) -> Result<wire::SetCreditLimitResponse, Status> {
    let stamp = call.stamp("SetCreditLimit")?;
    let request = call.message;
    let set =
        services
            .accounts
            .set_limit(&call.principal, stamp, request.principal_id, request.limit);
    Ok(wire::SetCreditLimitResponse {
        credit_limit: set.await?,
    })
}

/// `GetAccount`: an empty principal id names the caller's own account.
pub async fn get(
    services: &Services,
    call: Call<wire::GetAccountRequest>,
) -> Result<wire::GetAccountResponse, Status> {
    let of = &call.message.principal_id;
    let account = services.accounts.get(&call.principal, of).await?;
    Ok(wire::GetAccountResponse {
        account: Some(shown(services, &account)),
    })
}

/// `ListAccounts`: a page of accounts in the order in which they were opened, with the totals.
pub async fn list(
    services: &Services,
    call: Call<wire::ListAccountsRequest>,
) -> Result<wire::ListAccountsResponse, Status> {
    let request = call.message;
    let (from, size) = parse::page(request.page_size, &request.page_token)?;
    let (accounts, totals) = services.accounts.list(from.unwrap_or(0), size).await?;
    Ok(wire::ListAccountsResponse {
        next_page_token: match accounts.last() {
            Some(last) if accounts.len() == size => (last.seq + 1).to_string(),
            _ => String::new(),
        },
        accounts: accounts
            .iter()
            .map(|account| shown(services, account))
            .collect(),
        totals: Some(sums(&totals)),
    })
}

/// `WatchAccounts`: streams one account or all of them, as they are and as they change.
pub async fn watch(
    services: &Services,
    call: Call<wire::WatchAccountsRequest>,
) -> Result<Pieces<wire::WatchAccountsResponse>, Status> {
    let whose = if call.message.all {
        Whose::All
    } else {
        Whose::Of(&call.message.principal_id)
    };
    let changes = services.accounts.watch(&call.principal, whose).await?;
    let (storage_limit, names) = (
        services.accounts.storage_limit(),
        Arc::clone(&services.names),
    );
    let told = ReceiverStream::new(changes).map(move |changed| {
        let accounts = changed?;
        let accounts = accounts
            .iter()
            .map(|account| rendered(account, storage_limit, names.of(&account.owner)));
        Ok(wire::WatchAccountsResponse {
            accounts: accounts.collect(),
        })
    });
    Ok(Box::pin(told))
}

/// `ExportAccounts`: answers once `accounts.json` shows what was acknowledged before.
pub async fn export(
    services: &Services,
    _: Call<wire::ExportAccountsRequest>,
) -> Result<wire::ExportAccountsResponse, Status> {
    let journal_seq = services.accounts.export().await?;
    Ok(wire::ExportAccountsResponse { journal_seq })
}

fn shown(services: &Services, account: &Account) -> wire::Account {
    let storage_limit = services.accounts.storage_limit();
    rendered(account, storage_limit, services.names.of(&account.owner))
}

fn rendered(account: &Account, storage_limit: u64, name: String) -> wire::Account {
    wire::Account {
        name,
        principal_id: account.principal.clone(),
        owner_tag: render::bytes(account.owner.as_bytes()),
        credit_balance: account.unburned(),
        reserved: account.reserved,
        credit_limit: account.credit_limit,
        daily_mint_limit: account.daily_mint_limit,
        daily_mint_remaining: account.daily_mint_remaining,
        last_mint_day: account.last_mint_day,
        burned_total: account.burned_total,
        denied_total: account.denied_total,
        stored_bytes: account.stored_bytes,
        storage_limit,
    }
}

fn sums(totals: &Totals) -> wire::CreditTotals {
    let shown = |sum: u128| u64::try_from(sum).unwrap_or(u64::MAX);
    wire::CreditTotals {
        accounts: totals.accounts,
        initial: shown(totals.initial),
        minted: shown(totals.minted),
        granted: shown(totals.granted),
        withdrawn: shown(totals.withdrawn),
        burned: shown(totals.burned),
        reserved: shown(totals.reserved),
        balances: shown(totals.balances),
    }
}
