//! Lists of revoked certificates, as PEM or DER: a certificate authority writes them.

use evidenceos_access::fuzz::revocation_lists;

/// The authority that signed the seeds, and a certificate of it that one of them revokes.
const AUTHORITY: &[u8] = include_bytes!("../seeds/certificate/authority.der");
const LEAF: &[u8] = include_bytes!("../seeds/certificate/submitter.der");

/// A list in DER is the same as PEM.
pub fn check(content: &[u8]) {
    let lists = revocation_lists(content, AUTHORITY, LEAF);
    let Some(lists) = lists else {
        return;
    };
    assert!(lists.count > 0);
    if content.first() == Some(&0x30) {
        assert_eq!(lists.count, 1);
        let pem = pem(content);
        assert_eq!(
            revocation_lists(pem.as_bytes(), AUTHORITY, LEAF),
            Some(lists)
        );
    }
}

fn pem(der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let base64 = STANDARD.encode(der);
    let lines: Vec<&str> = (0..base64.len())
        .step_by(64)
        .map(|start| &base64[start..base64.len().min(start + 64)])
        .collect();
    format!(
        "-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n",
        lines.join("\n")
    )
}
