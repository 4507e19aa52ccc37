//! The roles of callers. The calls themselves define what each role may do.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// A set of roles. An authenticated caller with the empty set may do nothing that needs a role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Roles {
    /// Owns claims: runs, fetches and revokes its own.
    pub submitter: bool,
    /// Reads everything public and all capsules.
    pub auditor: bool,
    /// Administers holdouts, credit and keys.
    pub operator: bool,
}

/// A word that is not a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a role is one of \"submitter\", \"auditor\" and \"operator\"")]
pub struct UnknownRole;

impl Roles {
    /// No role: every call that needs one is refused.
    pub const NONE: Self = Self {
        submitter: false,
        auditor: false,
        operator: false,
    };
    /// The submitter role and no other.
    pub const SUBMITTER: Self = Self {
        submitter: true,
        ..Self::NONE
    };
    /// Submitter and auditor: what an auditor token of the published daemon may do.
    pub const SUBMITTER_AUDITOR: Self = Self {
        auditor: true,
        ..Self::SUBMITTER
    };
    /// Submitter, auditor and operator together.
    pub const ALL: Self = Self {
        operator: true,
        ..Self::SUBMITTER_AUDITOR
    };

    /// The roles that are in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self {
            submitter: self.submitter || other.submitter,
            auditor: self.auditor || other.auditor,
            operator: self.operator || other.operator,
        }
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        !(self.submitter || self.auditor || self.operator)
    }
}

/// `submitter+auditor`; `none` for the empty set.
impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (self.submitter, "submitter"),
            (self.auditor, "auditor"),
            (self.operator, "operator"),
        ];
        let held: Vec<_> = names.iter().filter(|(held, _)| *held).collect();
        if held.is_empty() {
            return f.write_str("none");
        }
        for (at, (_, name)) in held.into_iter().enumerate() {
            write!(f, "{}{name}", if at == 0 { "" } else { "+" })?;
        }
        Ok(())
    }
}

/// Parses the output of `Display`, with the roles in any order.
impl FromStr for Roles {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        if text == "none" {
            return Ok(Self::NONE);
        }
        text.split('+').try_fold(Self::NONE, |roles, name| {
            let mut roles = roles;
            match name {
                "submitter" => roles.submitter = true,
                "auditor" => roles.auditor = true,
                "operator" => roles.operator = true,
                _ => return Err(UnknownRole),
            }
            Ok(roles)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_of_roles_reads_back_as_it_was_written() {
        for bits in 0..8 {
            let roles = Roles {
                submitter: bits & 1 != 0,
                auditor: bits & 2 != 0,
                operator: bits & 4 != 0,
            };
            assert_eq!(roles.to_string().parse(), Ok(roles));
        }
        assert_eq!(Roles::ALL.to_string(), "submitter+auditor+operator");
        assert_eq!(Roles::NONE.to_string(), "none");
    }

    #[test]
    fn a_word_that_is_no_role_is_refused() {
        for text in ["", "Operator", "agent", "submitter+", "submitter,auditor"] {
            assert_eq!(text.parse::<Roles>(), Err(UnknownRole), "{text}");
        }
    }
}
