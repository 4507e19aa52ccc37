//! Claims in lists: by the start of an id, by name, holdout, owner and date.
//!
//! Owns which claims a caller may list, and how many one call reads. A filter with few matches must not read a
//! database from end to end: a page may be short, and says where the next call continues.

use std::{ops::RangeInclusive, sync::Arc};

use evidenceos_access::Principal;
use evidenceos_kernel::{
    claim::Claim,
    id::{ClaimId, HoldoutId, OwnerTag},
    refusal::{Refusal, Role},
};

use super::{Claims, ShownClaim, readable_of};
use crate::services::Error;

/// The fewest digits of an id's prefix: a shorter prefix would list a whole store.
pub const FEWEST_DIGITS: usize = 4;
/// The most claims that one call reads.
const MOST_LOOKED_AT: usize = 2_000;
/// Claims that are read together.
const READ_AT_ONCE: usize = 250;

/// The claims that a caller asks for.
#[derive(Debug, Default)]
pub struct Asked {
    /// Whether every principal's claims are asked for, not only the caller's own.
    pub all: bool,
    /// Only the claims of this principal.
    pub owner: Option<OwnerTag>,
    /// Only the claims with ids in this range.
    pub ids: Option<RangeInclusive<ClaimId>>,
    pub name: Option<String>,
    pub holdout: Option<HoldoutId>,
    /// Unix milliseconds.
    pub created_from: Option<u64>,
    /// Unix milliseconds, exclusive.
    pub created_before: Option<u64>,
}

impl Asked {
    fn has_filter(&self) -> bool {
        self.name.is_some()
            || self.holdout.is_some()
            || self.created_from.is_some()
            || self.created_before.is_some()
    }

    fn matches(&self, claim: &Claim) -> bool {
        let terms = &claim.terms;
        let created = claim.created_unix_ms;
        self.name
            .as_ref()
            .is_none_or(|name| *name == terms.claim_name)
            && self.holdout.is_none_or(|holdout| holdout == terms.holdout)
            && self.created_from.is_none_or(|from| created >= from)
            && self.created_before.is_none_or(|before| created < before)
    }
}

/// Some of them.
pub struct Page {
    /// The newest first; if ids are given by a prefix, in the order of the ids.
    pub claims: Vec<ShownClaim>,
    /// Where the next page begins; `None`: this is the last.
    pub before: Option<u64>,
}

/// The ids that begin with some hex digits, in either case; `None` if the digits cannot begin an id or are fewer
/// than [`FEWEST_DIGITS`].
#[must_use]
pub fn ids_that_begin(digits: &str) -> Option<RangeInclusive<ClaimId>> {
    let end = |padding: char| {
        let missing = 64usize.checked_sub(digits.len())?;
        let padding: String = std::iter::repeat_n(padding, missing).collect();
        ClaimId::from_typed_hex(&format!("{digits}{padding}"))
    };
    if digits.len() < FEWEST_DIGITS {
        return None;
    }
    Some(end('0')?..=end('f')?)
}

impl Claims {
    /// A page of claims, older than `before`: the caller's own, or every principal's with `all`.
    ///
    /// # Errors
    /// If a submitter asks for claims of others, or rows cannot be read.
    pub async fn list(
        self: &Arc<Self>,
        principal: &Principal,
        asked: Asked,
        before: u64,
        most: usize,
    ) -> Result<Page, Error> {
        let own = principal.caller.tag;
        let others = asked.all || asked.owner.is_some_and(|owner| owner != own);
        if others && readable_of(principal).is_some() {
            return Err(Refusal::RoleRequired(Role::Auditor).into());
        }
        let owner = if asked.all {
            asked.owner
        } else {
            Some(asked.owner.unwrap_or(own))
        };
        let claims = Arc::clone(self);
        let read = move || match &asked.ids {
            Some(ids) => claims.beginning(ids, owner, &asked, most),
            None => claims.older(owner, &asked, before, most),
        };
        self.rows.read(read).await
    }

    fn beginning(
        &self,
        ids: &RangeInclusive<ClaimId>,
        owner: Option<OwnerTag>,
        asked: &Asked,
        most: usize,
    ) -> Result<Page, Error> {
        let found = self.rows.readers.claims_by_id(owner, ids, most)?;
        let matching = found.into_iter().filter(|claim| asked.matches(claim));
        let claims = matching
            .map(|claim| self.shown(claim))
            .collect::<Result<_, _>>()?;
        Ok(Page {
            claims,
            before: None,
        })
    }

    fn older(
        &self,
        owner: Option<OwnerTag>,
        asked: &Asked,
        mut before: u64,
        most: usize,
    ) -> Result<Page, Error> {
        let mut claims = Vec::new();
        // Without a filter every claim that is read is shown.
        let at_once = if asked.has_filter() {
            READ_AT_ONCE
        } else {
            most
        };
        let mut looked_at = 0;
        while looked_at < MOST_LOOKED_AT {
            let found = self.rows.readers.claims(owner, before, at_once)?;
            let are_last = found.len() < at_once;
            for claim in found {
                if claims.len() >= most {
                    return Ok(Page {
                        claims,
                        before: Some(before),
                    });
                }
                looked_at += 1;
                before = claim.seq;
                if asked.matches(&claim) {
                    claims.push(self.shown(claim)?);
                }
            }
            if are_last {
                return Ok(Page {
                    claims,
                    before: None,
                });
            }
            if claims.len() >= most {
                break;
            }
        }
        Ok(Page {
            claims,
            before: Some(before),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_by_how_they_begin() {
        let within = |digits: &str, id: &str| {
            let id = ClaimId::from_hex(id).expect("an id");
            ids_that_begin(digits).map(|ids| ids.contains(&id))
        };
        let id = "3f2a".repeat(16);
        assert_eq!(within("3f2a", &id), Some(true));
        assert_eq!(within("3F2A3", &id), Some(true));
        assert_eq!(within(&id, &id), Some(true));
        assert_eq!(within("3f2b", &id), Some(false));
        for bad in ["", "3f2", "3f2g", "-3f2a", &"0".repeat(65)] {
            assert_eq!(ids_that_begin(bad), None, "{bad}");
        }
    }
}
