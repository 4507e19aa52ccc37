//! Claims in lists: by the start of an id, by name, holdout, owner and date.
//!
//! Owns which claims a caller may list, and how many one call reads. A filter with few matches must not read a
//! database from end to end: a page may be short, and says where the next call continues.

use std::{fmt, ops::RangeInclusive, str::FromStr, sync::Arc};

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

    /// The place after this claim.
    fn place_of(&self, claim: &Claim) -> ListPlace {
        match self.ids {
            Some(_) => ListPlace::After(claim.id),
            None => ListPlace::Before(claim.seq),
        }
    }
}

/// A place in a list, where the next page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListPlace {
    /// The newest claims come first; continue with those older than the claim of this number.
    Before(u64),
    /// The claims come in the order of their ids; continue after this one.
    After(ClaimId),
}

/// A text that names no place.
#[derive(Debug, PartialEq, Eq)]
pub struct NoListPlace;

impl FromStr for ListPlace {
    type Err = NoListPlace;

    fn from_str(text: &str) -> Result<Self, NoListPlace> {
        match ClaimId::from_hex(text) {
            Some(id) => Ok(Self::After(id)),
            None => text.parse().map(Self::Before).map_err(|_| NoListPlace),
        }
    }
}

impl fmt::Display for ListPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Before(seq) => seq.fmt(f),
            Self::After(id) => id.fmt(f),
        }
    }
}

/// Some of the claims that a caller asked for.
#[derive(Debug)]
pub struct Page<C> {
    /// The newest first; if ids are given by a prefix, in the order of the ids.
    pub claims: Vec<C>,
    /// Where the next page begins; `None`: this is the last.
    pub next: Option<ListPlace>,
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
    /// A page of claims from a place on, or from the beginning: the caller's own, or every principal's with `all`.
    ///
    /// # Errors
    /// If a submitter asks for claims of others, or rows cannot be read.
    pub async fn list(
        self: &Arc<Self>,
        principal: &Principal,
        asked: Asked,
        from: Option<ListPlace>,
        most: usize,
    ) -> Result<Page<ShownClaim>, Error> {
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
        let read = move || {
            let page = page(&asked, from, most, |place, at_once| {
                claims.following(owner, &asked, place, at_once)
            })?;
            let shown = page.claims.into_iter().map(|claim| claims.shown(claim));
            Ok(Page {
                claims: shown.collect::<Result<_, Error>>()?,
                next: page.next,
            })
        };
        self.rows.read(read).await
    }

    /// The claims of an owner that follow a place, before any filter but that of ids.
    fn following(
        &self,
        owner: Option<OwnerTag>,
        asked: &Asked,
        place: Option<ListPlace>,
        most: usize,
    ) -> Result<Vec<Claim>, Error> {
        let readers = &self.rows.readers;
        let found = match (&asked.ids, place) {
            (None, Some(ListPlace::Before(seq))) => readers.claims(owner, seq, most),
            (None, _) => readers.claims(owner, u64::MAX, most),
            (Some(ids), Some(ListPlace::After(id))) => match id_after(id) {
                Some(first) => readers.claims_by_id(owner, &(first..=*ids.end()), most),
                None => return Ok(Vec::new()),
            },
            (Some(ids), _) => readers.claims_by_id(owner, ids, most),
        };
        Ok(found?)
    }
}

/// Reads on from a place until a page is full, the claims end, or enough were looked at.
fn page(
    asked: &Asked,
    from: Option<ListPlace>,
    most: usize,
    mut following: impl FnMut(Option<ListPlace>, usize) -> Result<Vec<Claim>, Error>,
) -> Result<Page<Claim>, Error> {
    // Without a filter every claim that is read is shown.
    let at_once = if asked.has_filter() {
        READ_AT_ONCE
    } else {
        most
    };
    let mut page = Page {
        claims: Vec::new(),
        next: from,
    };
    let mut looked_at = 0;
    while looked_at < MOST_LOOKED_AT && page.claims.len() < most {
        let found = following(page.next, at_once)?;
        let are_last = found.len() < at_once;
        for claim in found {
            if page.claims.len() >= most {
                return Ok(page);
            }
            looked_at += 1;
            page.next = Some(asked.place_of(&claim));
            if asked.matches(&claim) {
                page.claims.push(claim);
            }
        }
        if are_last {
            page.next = None;
            return Ok(page);
        }
    }
    Ok(page)
}

/// The id that comes after one; none after the last.
fn id_after(id: ClaimId) -> Option<ClaimId> {
    let mut bytes = id.0;
    for byte in bytes.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(ClaimId(bytes));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use evidenceos_kernel::testing;

    use super::*;

    /// Claims of one store, every fourth with the name that is asked for.
    fn store(claims: u64) -> BTreeMap<ClaimId, Claim> {
        let claims = (0..claims).map(|seq| {
            let mut claim = testing::claim(seq, testing::owner(1));
            claim.terms.claim_name = if seq % 4 == 0 { "asked" } else { "other" }.to_owned();
            (claim.id, claim)
        });
        claims.collect()
    }

    /// Every page of a list, through the text of the place where each ends.
    fn pages(asked: &Asked, store: &BTreeMap<ClaimId, Claim>, most: usize) -> Vec<Vec<ClaimId>> {
        let following = |place: Option<ListPlace>, at_once: usize| {
            let after = |id: &ClaimId| match place {
                Some(ListPlace::After(last)) => id_after(last).is_some_and(|first| first <= *id),
                _ => true,
            };
            let mut found: Vec<Claim> = store.values().cloned().collect();
            match &asked.ids {
                Some(ids) => found.retain(|claim| ids.contains(&claim.id) && after(&claim.id)),
                None => {
                    found.sort_by_key(|claim| std::cmp::Reverse(claim.seq));
                    if let Some(ListPlace::Before(seq)) = place {
                        found.retain(|claim| claim.seq < seq);
                    }
                }
            }
            found.truncate(at_once);
            Ok(found)
        };
        let (mut pages, mut from) = (Vec::new(), None);
        loop {
            let page = page(asked, from, most, following).expect("read");
            pages.push(page.claims.iter().map(|claim| claim.id).collect());
            let Some(next) = page.next else { return pages };
            assert_ne!(Some(next), from, "a page goes on");
            from = Some(next.to_string().parse().expect("a place"));
        }
    }

    #[test]
    fn each_list_shows_every_match_once_page_by_page() {
        let store = store(5_000);
        let all = || Some(ClaimId([0; 32])..=ClaimId([0xff; 32]));
        for (ids, name) in [
            (None, None),
            (None, Some("asked")),
            (all(), None),
            (all(), Some("asked")),
            (ids_that_begin(&"f".repeat(64)), None),
        ] {
            let asked = Asked {
                ids,
                name: name.map(str::to_owned),
                ..Asked::default()
            };
            let within = |id: &ClaimId| asked.ids.as_ref().is_none_or(|ids| ids.contains(id));
            let expected: Vec<ClaimId> = store
                .values()
                .filter(|claim| within(&claim.id) && asked.matches(claim))
                .map(|claim| claim.id)
                .collect();
            for most in [1_usize, 10, 500] {
                // One row at a time is slow to show here, and no other case than ten.
                if most == 1 && asked.ids.is_none() {
                    continue;
                }
                let pages = pages(&asked, &store, most);
                assert!(pages.iter().all(|page| page.len() <= most), "{asked:?}");
                let mut shown = pages.concat();
                if asked.ids.is_none() {
                    shown.sort_unstable();
                }
                assert!(shown == expected, "{asked:?}, {most} at a time");
            }
        }
    }

    #[test]
    fn a_place_is_read_as_it_is_written() {
        let id = ClaimId([0xab; 32]);
        for place in [
            ListPlace::Before(0),
            ListPlace::Before(u64::MAX),
            ListPlace::After(id),
        ] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for bad in ["", "-1", "3f2a", &"g".repeat(64)] {
            assert_eq!(bad.parse::<ListPlace>(), Err(NoListPlace), "{bad}");
        }
    }

    #[test]
    fn the_last_id_has_none_after_it() {
        let id = |last: [u8; 2]| {
            let mut bytes = [0xff; 32];
            bytes[30..].copy_from_slice(&last);
            ClaimId(bytes)
        };
        assert_eq!(id_after(id([0, 0])), Some(id([0, 1])));
        assert_eq!(id_after(id([0, 0xff])), Some(id([1, 0])));
        assert_eq!(id_after(id([0xff, 0xff])), None);
    }

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
