//! Who calls. A development server on loopback checks nobody: a call without credentials is
//! `anonymous` with every role, a call with a bearer token is a submitter of its own.
//!
//! Identity comes from nothing else: headers in which a client says who it is are not read.

use evidenceos_kernel::{command::Caller, id::Digest};
use tonic::{Status, metadata::MetadataMap};

use crate::{grpc::status, keys::Keys};

/// The longest bearer token, in bytes.
const MAX_TOKEN: usize = 4_096;

/// A caller, and the name that its tag was made from.
#[derive(Debug, Clone)]
pub struct Principal {
    /// Its name.
    pub name: String,
    /// What the kernel knows of it.
    pub caller: Caller,
}

/// The principal of a call.
///
/// # Errors
/// `UNAUTHENTICATED` where there is an `authorization` header that is no bearer token.
pub fn principal(keys: &Keys, metadata: &MetadataMap) -> Result<Principal, Status> {
    let Some(header) = metadata.get("authorization") else {
        let name = "anonymous".to_owned();
        let caller = Caller {
            tag: keys.owner_tag(&name),
            operator: true,
            auditor: true,
        };
        return Ok(Principal { name, caller });
    };
    let token = header
        .to_str()
        .ok()
        .and_then(|header| header.strip_prefix("Bearer "))
        .map(str::trim)
        .filter(|token| (1..=MAX_TOKEN).contains(&token.len()))
        .ok_or_else(|| status::unauthenticated("authorization must be \"Bearer\" and a token"))?;
    let name = format!("bearer:{}", Digest::of(token.as_bytes()));
    let caller = Caller {
        tag: keys.owner_tag(&name),
        operator: false,
        auditor: false,
    };
    Ok(Principal { name, caller })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_who_he_is_is_nobody_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let keys = Keys::open(directory.path(), None, None).expect("first start");
        let mut metadata = MetadataMap::new();
        let nobody = principal(&keys, &metadata).expect("anonymous");
        assert!(nobody.caller.operator);
        metadata.insert("x-client-cert-san", "operator".parse().expect("ascii"));
        metadata.insert("authorization", "Bearer secret".parse().expect("ascii"));
        let bearer = principal(&keys, &metadata).expect("a token");
        assert!(!bearer.caller.operator && !bearer.caller.auditor);
        assert_eq!(bearer.name.len(), "bearer:".len() + 64);
        assert_ne!(bearer.caller.tag, nobody.caller.tag);
        for bad in ["Basic x", "Bearer ", "secret"] {
            metadata.insert("authorization", bad.parse().expect("ascii"));
            assert!(principal(&keys, &metadata).is_err(), "{bad}");
        }
    }
}
