//! AWS as others understand it: moto's KMS server, with signatures checked. `tests/foreign/moto_kms.sh` runs these.

use crate::SECRET;
use crate::child::Case;
use crate::cloud::names;

/// A caller as the script's environment describes it.
fn caller() -> (Case, String) {
    let of = |name: &str| {
        std::env::var(name).unwrap_or_else(|_| panic!("tests/foreign/moto_kms.sh sets {name}"))
    };
    let case = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"]
        .into_iter()
        .fold(Case::new("aws").at(&of("MOTO_ENDPOINT")), |case, name| {
            case.with(name, of(name))
        });
    (case, of("MOTO_KEY_ID"))
}

#[tokio::test]
#[ignore = "needs tests/foreign/moto_kms.sh"]
async fn moto_unwraps_what_it_wrapped_under_the_same_context_only() {
    let (caller, key) = caller();
    for context in ["", "lab=a"] {
        let caller = caller.clone().bound_to(context);
        let wrapped = caller.wrap(&key, &SECRET).await.expect("wrapped");
        assert_eq!(caller.unwrap(&wrapped).await.expect("unwrapped"), SECRET);
        let error = caller
            .bound_to("lab=b")
            .unwrap(&wrapped)
            .await
            .expect_err("another context");
        names(
            &error,
            &["aws KMS, unwrap", &key, "InvalidCiphertextException"],
        );
    }
}

#[tokio::test]
#[ignore = "needs tests/foreign/moto_kms.sh"]
async fn moto_refuses_a_wrong_secret() {
    let (caller, key) = caller();
    let error = caller
        .with("AWS_SECRET_ACCESS_KEY", "another")
        .wrap(&key, &SECRET)
        .await
        .expect_err("a wrong secret");
    // moto refuses in XML, where KMS speaks JSON: the status is all that is understood.
    names(&error, &["aws KMS, wrap", &key, "HTTP 403"]);
}
