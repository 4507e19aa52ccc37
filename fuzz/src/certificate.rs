//! Client certificates, in DER.

use evidenceos_access::{IdentityKind, PeerCertificate, Policy, Roles, principal};
use sha2::{Digest as _, Sha256};

/// A certificate that is read has one printable name, is the same when it is read again, and has the roles that a rule
/// gives to its digest or its name.
pub fn check(der: &[u8]) {
    let Ok(peer) = PeerCertificate::read(der) else {
        return;
    };
    assert_eq!(PeerCertificate::read(der).as_ref(), Ok(&peer));
    let longer = [der, &[0]].concat();
    assert!(PeerCertificate::read(&longer).is_err(), "a byte too many");

    assert_eq!(peer.sha256, <[u8; 32]>::from(Sha256::digest(der)));
    assert_ne!(peer.serial.first(), Some(&0));
    assert!(!peer.name.is_empty());
    for name in peer.dns_names.iter().chain([&peer.name]) {
        assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?}");
    }
    let own = hex::encode(peer.sha256);
    if peer.kind == IdentityKind::Cert {
        assert_eq!(peer.name, own);
    }
    assert_eq!(
        peer.principal(),
        principal::certificate(peer.kind, &peer.name)
    );

    let roles = |selector: &str, value: &str| {
        let rule = format!("[[rule]]\n{selector} = {value:?}\nroles = [\"auditor\"]\n");
        // Some names of certificates are none of rules, such as `a:/` or `*.example`.
        Policy::parse("roles", &rule).map(|policy| policy.certificate(&peer))
    };
    let auditor = Roles {
        auditor: true,
        ..Roles::NONE
    };
    assert_eq!(roles("cert_sha256", &own), Ok(auditor));
    let by_name = match peer.kind {
        IdentityKind::Uri => roles("uri", &peer.name),
        IdentityKind::Dns => roles("dns", &peer.name),
        IdentityKind::Cert => return,
    };
    assert!(by_name.is_err() || by_name == Ok(auditor));
    // The other selector never names it.
    let other = match peer.kind {
        IdentityKind::Uri => roles("dns", &peer.name),
        _ => roles("uri", &peer.name),
    };
    assert!(other.is_err() || other == Ok(Roles::NONE));
}
