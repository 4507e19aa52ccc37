//! What holds for every cloud, tried against each.

use std::time::Duration;

use crate::SECRET;
use crate::child::Case;
use crate::cloud::{Server, Trouble, Troubles, names};

/// A cloud, and a caller whose credentials it takes.
pub struct Cloud<'l> {
    pub provider: &'static str,
    pub server: &'l Server,
    pub troubles: &'l Troubles,
    pub caller: Case,
    pub key: &'static str,
}

impl Cloud<'_> {
    /// An error names the provider, the endpoint and these parts.
    pub fn tells(&self, error: &str, parts: &[&str]) {
        names(
            error,
            &[&format!("{} KMS", self.provider), &self.server.url()],
        );
        names(error, parts);
    }

    /// A call that the cloud throttles so many times is tried again; one that it always throttles
    /// is told in its words.
    pub async fn throttles(&self, times: usize, says: &str) {
        let key = self.wrapped().await;
        self.troubles.are(vec![Trouble::Throttled; times]);
        assert_eq!(self.caller.unwrap(&key).await.expect("at last"), SECRET);
        self.troubles.are([Trouble::Throttled; 99]);
        let error = self.caller.unwrap(&key).await.expect_err("exhausted");
        self.tells(&error, &[self.key, says]);
    }

    /// A refusal is told in the words of the service; what is no key is told in ours.
    pub async fn refuses(&self, disabled: &str, expired: &str) {
        let key = self.wrapped().await;
        let short = "the plaintext has 31 bytes, and a key has 32";
        for (trouble, says) in [
            (Trouble::Disabled, disabled),
            (Trouble::Expired, expired),
            (Trouble::Short, short),
        ] {
            self.troubles.are([trouble; 9]);
            let error = self.caller.unwrap(&key).await.expect_err(says);
            self.tells(&error, &["unwrap", self.key, says]);
        }
    }

    /// A call that is never answered ends at its deadline.
    pub async fn is_silent(&self) {
        self.troubles.are([Trouble::Silence; 9]);
        let caller = self.caller.clone().within(Duration::from_secs(1));
        let error = caller.wrap(self.key, &SECRET).await.expect_err("silence");
        self.tells(&error, &["wrap", self.key, "no answer within 1s"]);
    }

    async fn wrapped(&self) -> String {
        self.caller.wrap(self.key, &SECRET).await.expect("wrapped")
    }
}
