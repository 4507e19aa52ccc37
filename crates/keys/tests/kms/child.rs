//! One operation of the library in a process of its own, whose environment is exactly what a test gives.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use evidenceos_keys::kms::{Kms, KmsError, KmsSettings};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

/// Where the child finds its [`Case`], and what its answer's line begins with.
const CASE: &str = "KMS_TEST_CASE";

/// Settings, and an operation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Case {
    provider: String,
    endpoint: Option<String>,
    ca_file: Option<PathBuf>,
    context: String,
    timeout_ms: u64,
    operation: String,
    key: String,
    message: Vec<u8>,
    #[serde(skip)]
    environment: Vec<(String, String)>,
}

/// What the child says.
type Answer = Result<Vec<u8>, String>;

impl Case {
    pub fn new(provider: &str) -> Self {
        Self {
            provider: provider.into(),
            timeout_ms: 30_000,
            ..Self::default()
        }
    }

    pub fn at(mut self, endpoint: &str) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// Where the SDK goes without our setting.
    pub fn at_default(mut self) -> Self {
        self.endpoint = None;
        self
    }

    pub fn trusting(mut self, ca_file: PathBuf) -> Self {
        self.ca_file = Some(ca_file);
        self
    }

    pub fn bound_to(mut self, context: &str) -> Self {
        self.context = context.into();
        self
    }

    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout_ms = timeout.as_millis().try_into().expect("short");
        self
    }

    /// A later value of the same variable wins.
    pub fn with(mut self, variable: &str, value: impl Into<String>) -> Self {
        self.environment.push((variable.into(), value.into()));
        self
    }

    pub async fn unwrap(&self, key: &str) -> Answer {
        self.run("unwrap", key, &[]).await
    }

    /// The key id to unwrap with.
    pub async fn wrap(&self, resource: &str, secret: &[u8]) -> Result<String, String> {
        let text = self.run("wrap", resource, secret).await?;
        Ok(String::from_utf8(text).expect("a key id is text"))
    }

    /// The public key and the signature.
    pub async fn sign(
        &self,
        resource: &str,
        message: &[u8],
    ) -> Result<([u8; 32], [u8; 64]), String> {
        let both = self.run("sign", resource, message).await?;
        let (public, signature) = both.split_first_chunk().expect("a public key");
        Ok((*public, signature.try_into().expect("a signature")))
    }

    async fn run(&self, operation: &str, key: &str, message: &[u8]) -> Answer {
        let case = Self {
            operation: operation.into(),
            key: key.into(),
            message: message.into(),
            ..self.clone()
        };
        let output = Command::new(std::env::current_exe().expect("this binary"))
            .args([
                "--ignored",
                "--exact",
                "child::one_operation",
                "--nocapture",
            ])
            .env_clear()
            .envs(self.environment.iter().cloned())
            .env(CASE, serde_json::to_string(&case).expect("JSON"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .expect("the child starts");
        let text = String::from_utf8_lossy(&output.stdout);
        let answer = text
            .lines()
            .find_map(|line| line.split_once(CASE))
            .map(|(_, json)| json);
        let answer = answer.unwrap_or_else(|| {
            panic!(
                "no answer in {text}{}",
                String::from_utf8_lossy(&output.stderr)
            )
        });
        serde_json::from_str(answer).expect("JSON")
    }
}

/// Does what the environment says, and prints what came of it.
#[tokio::test]
#[ignore = "the other tests start it as a child"]
async fn one_operation() {
    let Ok(case) = std::env::var(CASE) else {
        return;
    };
    let case: Case = serde_json::from_str(&case).expect("a case");
    let outcome = operate(&case).await.map_err(|error| error.to_string());
    println!("\n{CASE}{}", serde_json::to_string(&outcome).expect("JSON"));
}

async fn operate(case: &Case) -> Result<Vec<u8>, KmsError> {
    let kms = Kms::new(KmsSettings {
        context: case.context.parse().expect("a context"),
        endpoint: case.endpoint.clone(),
        ca_file: case.ca_file.clone(),
        timeout: Duration::from_millis(case.timeout_ms),
        ..KmsSettings::new(case.provider.parse().expect("a provider"))
    })?;
    match case.operation.as_str() {
        "unwrap" => Ok(kms
            .unwrap(&case.key.parse().expect("a key id"))
            .await?
            .to_vec()),
        "wrap" => {
            let secret = case.message.as_slice().try_into().expect("32 bytes");
            Ok(kms.wrap(&case.key, secret).await?.to_string().into_bytes())
        }
        _ => {
            let key = kms.signing_key(&case.key).await?;
            Ok([key.public_key().as_slice(), &key.sign(&case.message).await?].concat())
        }
    }
}
