//! Credit, budgets and the clock: what operators change, and what everybody may see of his own.

use std::{pin::Pin, sync::Arc};

use evidenceos_kernel::{
    account::{Account, Totals},
    bits::MicroBits,
    command::{Command, Reply},
    holdout::{Holdout, NarrowerBudgets},
    id::{HoldoutId, OwnerTag},
    refusal::{Refusal, Role},
};
use evidenceos_proto as wire;
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Status, metadata::MetadataMap};

use super::{
    Edge, parse,
    reads::page,
    render,
    status::{internal, invalid, not_found, refused, unavailable},
    unexpected,
};
use crate::{accounts::shows_all, auth::Principal};

/// Accounts in one message of a watch.
const PAGE: usize = 256;
/// Messages that wait for a slow watcher.
const WATCH_DEPTH: usize = 4;
/// The largest budget that a double carries exactly in millionths.
const MAX_BITS: f64 = 9_007_199_254.0;

/// Changed accounts as they come.
pub type Watched = Pin<Box<dyn Stream<Item = Result<wire::WatchAccountsResponse, Status>> + Send>>;

impl Edge {
    pub(super) async fn grant(
        &self,
        principal: &Principal,
        metadata: &MetadataMap,
        request: wire::GrantCreditRequest,
    ) -> Result<wire::GrantCreditResponse, Status> {
        let stamp = parse::stamp(metadata, principal, "GrantCredit", &request)?;
        let command = Command::GrantCredit {
            owner: self.owner_of(&request.principal_id)?,
            principal: request.principal_id,
            amount: request.amount,
            reason: request.reason,
        };
        match self.call(principal, stamp, command, None).await? {
            Reply::Credit(credit_balance) => Ok(wire::GrantCreditResponse { credit_balance }),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn set_credit_limit(
        &self,
        principal: &Principal,
        metadata: &MetadataMap,
        request: wire::SetCreditLimitRequest,
    ) -> Result<wire::SetCreditLimitResponse, Status> {
        let stamp = parse::stamp(metadata, principal, "SetCreditLimit", &request)?;
        let command = Command::SetCreditLimit {
            owner: self.owner_of(&request.principal_id)?,
            principal: request.principal_id,
            limit: request.limit,
        };
        match self.call(principal, stamp, command, None).await? {
            Reply::Credit(credit_limit) => Ok(wire::SetCreditLimitResponse { credit_limit }),
            other => Err(unexpected(&other)),
        }
    }

    fn owner_of(&self, principal_id: &str) -> Result<OwnerTag, Status> {
        if !(1..=256).contains(&principal_id.len()) || principal_id.chars().any(char::is_control) {
            return Err(invalid(
                "principal_id",
                "must be 1 to 256 bytes of text without control characters",
            ));
        }
        Ok(self.keys.owner_tag(principal_id))
    }

    /// Whose account a caller asks for, by tag and name; an empty name is his own.
    fn asked_for(
        &self,
        principal: &Principal,
        principal_id: &str,
    ) -> Result<(OwnerTag, String), Status> {
        if principal_id.is_empty() || principal_id == principal.name {
            return Ok((principal.caller.tag, principal.name.clone()));
        }
        if !principal.caller.operator {
            return Err(refused(&Refusal::RoleRequired(Role::Operator)));
        }
        Ok((self.owner_of(principal_id)?, principal_id.to_owned()))
    }

    pub(super) fn get_account(
        &self,
        principal: &Principal,
        request: &wire::GetAccountRequest,
    ) -> Result<wire::GetAccountResponse, Status> {
        let (owner, name) = self.asked_for(principal, &request.principal_id)?;
        let account = self.account_of(owner, &name)?;
        Ok(wire::GetAccountResponse {
            account: Some(account),
        })
    }

    /// An account as it is, or as it will be opened.
    fn account_of(&self, owner: OwnerTag, name: &str) -> Result<wire::Account, Status> {
        let found = self.readers.account(&owner).map_err(|e| internal(&e))?;
        let now = self.clock.now_unix_ms();
        let account = found.unwrap_or_else(|| self.accounting.open(0, owner, name, now));
        Ok(self.shown_account(&account))
    }

    fn shown_account(&self, account: &Account) -> wire::Account {
        wire::Account {
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
            storage_limit: self.accounting.storage_limit,
        }
    }

    pub(super) fn list_accounts(
        &self,
        _: &Principal,
        request: &wire::ListAccountsRequest,
    ) -> Result<wire::ListAccountsResponse, Status> {
        let (from, size) = page(request.page_size, &request.page_token, 0)?;
        let (accounts, totals) = self
            .readers
            .accounts_and_totals(from, size)
            .map_err(|error| internal(&error))?;
        let next_page_token = match accounts.last() {
            Some(last) if accounts.len() == size => (last.seq + 1).to_string(),
            _ => String::new(),
        };
        Ok(wire::ListAccountsResponse {
            accounts: accounts
                .iter()
                .map(|account| self.shown_account(account))
                .collect(),
            next_page_token,
            totals: Some(sums(&totals)),
        })
    }

    pub(super) fn watch_accounts(
        self: &Arc<Self>,
        principal: &Principal,
        request: &wire::WatchAccountsRequest,
    ) -> Result<Watched, Status> {
        let whose = if request.all {
            principal.caller.must_operate().map_err(|r| refused(&r))?;
            None
        } else {
            Some(self.asked_for(principal, &request.principal_id)?)
        };
        let (sender, receiver) = mpsc::channel(WATCH_DEPTH);
        tokio::spawn(Arc::clone(self).watch(whose, sender));
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }

    /// Tells how accounts are, then how they become. A watcher that falls behind is told all of it
    /// again, so that it costs no memory and misses no last change.
    async fn watch(
        self: Arc<Self>,
        whose: Option<(OwnerTag, String)>,
        sender: mpsc::Sender<Result<wire::WatchAccountsResponse, Status>>,
    ) {
        let mut changes = self.changed_accounts.subscribe();
        'all: loop {
            if self.tell_all(&whose, &sender).await.is_none() {
                return;
            }
            loop {
                let changed = tokio::select! {
                    () = sender.closed() => return,
                    changed = changes.recv() => changed,
                };
                let changed = match changed {
                    Ok(changed) => changed,
                    Err(RecvError::Lagged(_)) => continue 'all,
                    Err(RecvError::Closed) => return,
                };
                let of_interest = |account: &&Account| {
                    whose
                        .as_ref()
                        .is_none_or(|(owner, _)| *owner == account.owner)
                };
                let of_interest = changed.iter().filter(of_interest);
                let accounts: Vec<_> = of_interest
                    .map(|account| self.shown_account(account))
                    .collect();
                let message = wire::WatchAccountsResponse { accounts };
                if !message.accounts.is_empty() && sender.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        }
    }

    /// `None` where nobody listens any more.
    async fn tell_all(
        self: &Arc<Self>,
        whose: &Option<(OwnerTag, String)>,
        sender: &mpsc::Sender<Result<wire::WatchAccountsResponse, Status>>,
    ) -> Option<()> {
        let mut from = 0;
        loop {
            let one = whose.clone();
            let read = self.read(move |edge| match one {
                Some((owner, name)) => Ok((vec![edge.account_of(owner, &name)?], None)),
                None => {
                    let read = edge.readers.accounts(from, PAGE);
                    let accounts = read.map_err(|error| internal(&error))?;
                    let full = accounts.len() == PAGE;
                    let next = accounts.last().filter(|_| full).map(|last| last.seq + 1);
                    let shown = accounts.iter().map(|account| edge.shown_account(account));
                    Ok((shown.collect(), next))
                }
            });
            let (accounts, next) = match read.await {
                Ok(read) => read,
                Err(status) => {
                    // Who has gone away needs no reason.
                    let _ = sender.send(Err(status)).await;
                    return None;
                }
            };
            let message = wire::WatchAccountsResponse { accounts };
            sender.send(Ok(message)).await.ok()?;
            match next {
                Some(next) => from = next,
                None => return Some(()),
            }
        }
    }

    pub(super) async fn export_accounts(&self) -> Result<wire::ExportAccountsResponse, Status> {
        let shown = self.accounts_shown.clone();
        match shows_all(&self.done, shown).await {
            Ok(journal_seq) => Ok(wire::ExportAccountsResponse { journal_seq }),
            Err(_) => Err(unavailable(
                "the server is stopping; accounts.json is brought up to date as it ends",
            )),
        }
    }

    pub(super) fn pool_budgets(
        &self,
        _: &Principal,
        request: &wire::GetHoldoutPoolBudgetsRequest,
    ) -> Result<wire::GetHoldoutPoolBudgetsResponse, Status> {
        let scope = Scope::parse(&request.scope)?;
        let fixed = self.by_hex(&request.holdout_id)?;
        let read = self.readers.holdout(fixed.seq);
        let holdout = read
            .map_err(|error| internal(&error))?
            .ok_or_else(|| internal(&"a holdout of the catalog has no row"))?;
        Ok(wire::GetHoldoutPoolBudgetsResponse {
            budgets: Some(budgets(&holdout, scope)),
        })
    }

    pub(super) async fn set_pool_budgets(
        &self,
        principal: &Principal,
        metadata: &MetadataMap,
        request: wire::SetHoldoutPoolBudgetsRequest,
    ) -> Result<wire::SetHoldoutPoolBudgetsResponse, Status> {
        let scope = Scope::parse(&request.scope)?;
        let stamp = parse::stamp(metadata, principal, "SetHoldoutPoolBudgets", &request)?;
        let bits = request
            .new_k_bits_budget
            .map(|bits| amount("new_k_bits_budget", bits).map(|bits| (bits * 1e6) as u64))
            .transpose()?
            .map(MicroBits);
        let credit = request
            .new_access_credit_budget
            .map(|credit| amount("new_access_credit_budget", credit).map(|credit| credit as u64))
            .transpose()?;
        let command = Command::SetBudgets {
            holdout: self.by_hex(&request.holdout_id)?.id,
            narrower: NarrowerBudgets {
                sealed: bits.filter(|_| scope.has_global()),
                principal_answers: bits.filter(|_| scope.has_principals()),
                credit,
            },
        };
        match self.call(principal, stamp, command, None).await? {
            Reply::Holdout(holdout) => Ok(wire::SetHoldoutPoolBudgetsResponse {
                budgets: Some(budgets(&holdout, scope)),
            }),
            other => Err(unexpected(&other)),
        }
    }

    fn by_hex(&self, hex: &str) -> Result<Arc<Holdout>, Status> {
        let id = evidenceos_kernel::id::Digest::from_typed_hex(hex)
            .ok_or_else(|| invalid("holdout_id", "must be 64 hex digits"))?;
        self.catalog
            .by_id(HoldoutId(id.0))
            .ok_or_else(|| not_found("HOLDOUT_NOT_FOUND", "no holdout has this id"))
    }

    pub(super) async fn confirm_clock(
        &self,
        principal: &Principal,
    ) -> Result<wire::ConfirmClockResponse, Status> {
        principal.caller.must_operate().map_err(|r| refused(&r))?;
        let (from_unix_ms, to_unix_ms) = match self.clock.held() {
            Some(held) => (held.trusted_unix_ms, held.system_unix_ms),
            None => {
                let now = self.clock.now_unix_ms();
                return Ok(wire::ConfirmClockResponse {
                    from_unix_ms: now,
                    to_unix_ms: now,
                });
            }
        };
        let command = Command::ConfirmClock {
            from_unix_ms,
            to_unix_ms,
        };
        match self.call(principal, None, command, None).await? {
            Reply::Done => {
                self.clock.confirm();
                Ok(wire::ConfirmClockResponse {
                    from_unix_ms,
                    to_unix_ms,
                })
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// Which pools a budget is about, in the published words: those of the whole holdout are its
/// settlements, those of each principal his answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Global,
    PerPrincipal,
    Both,
}

impl Scope {
    fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "global" => Ok(Self::Global),
            "per_principal" => Ok(Self::PerPrincipal),
            "both" => Ok(Self::Both),
            _ => Err(invalid("scope", "must be global, per_principal or both")),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::PerPrincipal => "per_principal",
            Self::Both => "both",
        }
    }

    fn has_global(self) -> bool {
        self != Self::PerPrincipal
    }

    fn has_principals(self) -> bool {
        self != Self::Global
    }
}

fn amount(field: &str, amount: f64) -> Result<f64, Status> {
    if (0.0..=MAX_BITS).contains(&amount) {
        Ok(amount)
    } else {
        Err(invalid(field, "must be a number from 0 to 9007199254"))
    }
}

fn budgets(holdout: &Holdout, scope: Scope) -> wire::HoldoutPoolBudgets {
    let bits = if scope.has_global() {
        holdout.sealed_budget()
    } else {
        holdout.principal_answer_budget()
    };
    wire::HoldoutPoolBudgets {
        holdout_id: holdout.id.to_hex(),
        scope: scope.as_str().to_owned(),
        k_bits_budget: Some(bits.0 as f64 / 1e6),
        access_credit_budget: holdout.narrower.credit.map(|credit| credit as f64),
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
