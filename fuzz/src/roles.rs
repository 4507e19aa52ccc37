//! Role policies, as TOML: an operator writes them, and a hand slips.

use evidenceos_access::Policy;

/// A role policy that is taken keeps its text and is taken again. One that is refused names each problem after the file,
/// on one line.
pub fn check(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    match Policy::parse("roles.toml", text) {
        Ok(policy) => {
            assert_eq!(policy.text(), Some(text));
            let again = Policy::parse("roles.toml", text).expect("the same");
            for key_id in ["default", "ci"] {
                let roles = policy.hmac_key(key_id);
                assert_eq!(roles, again.hmac_key(key_id));
                assert_eq!(roles.to_string().parse(), Ok(roles));
            }
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            for problem in problems {
                assert!(problem.starts_with("roles.toml, "), "{problem:?}");
                assert!(!problem.contains('\n'), "{problem:?}");
            }
        }
    }
}
