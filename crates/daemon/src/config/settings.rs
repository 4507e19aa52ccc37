//! The settings as they are written: one list for flags, environment and file.
//!
//! Everything here is optional text or a number; [`super::Config`] decides what it means together.
//! The TOML file has the same names with `_` for `-`.

use std::path::PathBuf;

use clap::{Args, builder::BoolishValueParser};
use evidenceos_telemetry::trace::LogFormat;
use serde::{Deserialize, Serialize};

use super::{DurableDecisions, ProbeProfile};

/// Settings whose values are never shown.
pub const SECRETS: [&str; 8] = [
    "auth_token",
    "agent_tokens",
    "auditor_tokens",
    "auth_hmac_key",
    "hmac_keys",
    "hmac_shared_secret",
    "kms_mock_key_hex",
    "preflight_require_bearer_token",
];

/// All settings of the daemon.
// A table: one setting is three lines, whatever their length.
#[rustfmt::skip]
#[derive(Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where to serve gRPC: IP address and port [default: 127.0.0.1:50051]
    #[arg(long, env = "EVIDENCEOS_LISTEN", value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// Where to serve HTTP (preflight and health), or "off" [default: 127.0.0.1:8081]
    #[arg(long, alias = "preflight-http-listen", env = "EVIDENCEOS_PREFLIGHT_LISTEN", value_name = "IP:PORT")]
    pub preflight_listen: Option<String>,
    /// Where to serve metrics, or "off" [default: 127.0.0.1:9464]
    #[arg(long, env = "EVIDENCEOS_METRICS_LISTEN", value_name = "IP:PORT")]
    pub metrics_listen: Option<String>,
    /// Directory of everything durable [default: ./data]
    #[arg(long, env = "EVIDENCEOS_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Name of the log, at the first start only [default: evidenceos.local/ and the key's first 16 digits]
    #[arg(long, env = "EVIDENCEOS_LOG_ORIGIN", value_name = "NAME")]
    pub log_origin: Option<String>,
    /// What to log: error, warn, info, debug, trace, or a filter for parts [default: info]
    #[arg(long, env = "EVIDENCEOS_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// How to log [default: text]
    #[arg(long, env = "EVIDENCEOS_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// Send traces of calls to this collector, by OTLP over gRPC [default: no traces are sent]
    #[arg(long, env = "EVIDENCEOS_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Seconds for which a stop waits for runs under way [default: 20]
    #[arg(long, env = "EVIDENCEOS_DRAIN_SECONDS", value_name = "SECONDS")]
    pub drain_seconds: Option<u64>,
    /// How long the ports stay open after a stop was asked for, as 5s or 500ms, so that load balancers can go elsewhere [default: 0s]
    #[arg(long, env = "EVIDENCEOS_DRAIN_DELAY", value_name = "TIME")]
    pub drain_delay: Option<String>,
    /// Bytes that must be free on the data directory's disk for new work to be taken [default: 67108864]
    #[arg(long, env = "EVIDENCEOS_MIN_FREE_BYTES", value_name = "BYTES")]
    pub min_free_bytes: Option<u64>,
    /// What remembers the newest head of the log outside of the data directory: a directory (it exists, or ends in /), a file, the URL of the published log, or "none". Repeatable [default: the data directory with `.anchor/` appended]
    #[arg(id = "anchors", long = "anchor", env = "EVIDENCEOS_ANCHORS", value_delimiter = ',', value_name = "DIR/|FILE|URL")]
    pub anchors: Option<Vec<String>>,
    /// Sign even if no anchor answers, instead of being read-only until one does
    #[arg(long, env = "EVIDENCEOS_ANCHOR_OPTIONAL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    pub anchor_optional: Option<bool>,
    /// Begin the log of this name in an empty data directory with a key that existed before, if you are sure that the key has signed no log of this name; the log's first entry states it
    // On the command line alone: in a file or in the environment it would be there at the next start too.
    #[arg(long, value_name = "ORIGIN")]
    #[serde(skip)]
    pub begin_log: Option<String>,
    /// Serve a data directory without authentication although it was served with it before
    // On the command line alone, for the same reason.
    #[arg(long)]
    #[serde(skip)]
    pub serve_unprotected: bool,

    /// Certificate chain of the server, PEM; read again when it changes
    #[arg(long, env = "EVIDENCEOS_TLS_CERT", value_name = "FILE", help_heading = "TLS")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the server, PEM
    #[arg(long, env = "EVIDENCEOS_TLS_KEY", value_name = "FILE", help_heading = "TLS")]
    pub tls_key: Option<PathBuf>,
    /// Certificates of the authorities that client certificates must come from, PEM
    #[arg(long, env = "EVIDENCEOS_MTLS_CLIENT_CA", value_name = "FILE", help_heading = "TLS")]
    pub mtls_client_ca: Option<PathBuf>,
    /// Revoked client certificates: a CRL of each authority, PEM or DER, as /etc/evidenceos/clients.crl; read again when it changes. Repeatable
    #[arg(long, alias = "tls-client-crl", env = "EVIDENCEOS_MTLS_CLIENT_CRL", value_delimiter = ',', value_name = "FILE", help_heading = "TLS")]
    pub mtls_client_crl: Option<Vec<PathBuf>>,
    /// Serve gRPC only to clients with a certificate
    #[arg(long, env = "EVIDENCEOS_REQUIRE_CLIENT_CERT", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = "TLS")]
    pub require_client_cert: Option<bool>,
    /// Accept client certificates that do not state their purpose
    #[arg(long, env = "EVIDENCEOS_ALLOW_CLIENT_CERT_WITHOUT_EKU", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = "TLS")]
    pub allow_client_cert_without_eku: Option<bool>,
    /// Serve HTTP under TLS too, with the same certificate
    #[arg(long, env = "EVIDENCEOS_PREFLIGHT_TLS", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = "TLS")]
    pub preflight_tls: Option<bool>,
    /// Serve metrics under TLS too, with the same certificate
    #[arg(long, env = "EVIDENCEOS_METRICS_TLS", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = "TLS")]
    pub metrics_tls: Option<bool>,
    /// Seconds after which the daemon asks the client of a connection to connect again, on every port; calls under way may finish [default: 3600]
    #[arg(long, env = "EVIDENCEOS_MAX_CONNECTION_AGE", value_name = "SECONDS", help_heading = "TLS")]
    pub max_connection_age: Option<u64>,
    /// Seconds after its age in which calls of a connection may finish; then the daemon closes it, whatever its client does [default: 30]
    #[arg(long, env = "EVIDENCEOS_MAX_CONNECTION_AGE_GRACE", value_name = "SECONDS", help_heading = "TLS")]
    pub max_connection_age_grace: Option<u64>,
    /// Serve gRPC beyond loopback without TLS or without authentication
    #[arg(long, env = "EVIDENCEOS_INSECURE_ALLOW_PLAINTEXT", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = "TLS")]
    pub insecure_allow_plaintext: Option<bool>,
    /// Serve HTTP beyond loopback without TLS
    #[arg(long, env = "EVIDENCEOS_PREFLIGHT_ALLOW_PLAINTEXT", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = "TLS")]
    pub preflight_allow_plaintext: Option<bool>,

    /// Largest body of a tool call, in bytes [default: 1048576 / 16384]
    #[arg(long, env = "EVIDENCEOS_PREFLIGHT_MAX_BODY_BYTES", value_name = "BYTES", help_heading = "Preflight")]
    pub preflight_max_body_bytes: Option<usize>,
    /// Bearer token that the HTTP port demands. In a file it is not in the process list
    #[arg(long, env = "EVIDENCEOS_PREFLIGHT_REQUIRE_BEARER_TOKEN", hide_env_values = true, value_name = "TOKEN", help_heading = "Preflight")]
    pub preflight_require_bearer_token: Option<String>,
    /// The same, in a file
    #[arg(long, env = "EVIDENCEOS_PREFLIGHT_REQUIRE_BEARER_TOKEN_FILE", value_name = "FILE", help_heading = "Preflight")]
    pub preflight_require_bearer_token_file: Option<PathBuf>,
    /// Let a tool that can do no harm through if a decision could not be recorded and no policy is in force [default: true]
    #[arg(long, env = "EVIDENCEOS_PREFLIGHT_FAIL_OPEN_FOR_LOW_RISK", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = "Preflight")]
    pub preflight_fail_open_for_low_risk: Option<bool>,
    /// Tools that can do harm, with commas between them; only the letters and digits of a name count, in either case [default: exec,shell.exec,fs.write,fs.delete_tree,email.send,payment.charge; for agents also Bash,PowerShell,exec_command,shell,sh,terminal,run_command,Write,Edit,apply_patch]
    #[arg(long, env = "EVIDENCEOS_PREFLIGHT_HIGH_RISK_TOOLS", value_name = "TOOLS", help_heading = "Preflight")]
    pub preflight_high_risk_tools: Option<String>,
    /// Milliseconds that policies, and after them the disk, may take for a decision [default: 120]
    #[arg(long, env = "EVIDENCEOS_PREFLIGHT_TIMEOUT_MS", value_name = "MS", help_heading = "Preflight")]
    pub preflight_timeout_ms: Option<u64>,
    /// Tool calls a second of one principal, or "off"; 0 refuses all [default: 50]
    #[arg(long, env = "EVIDENCEOS_PREFLIGHT_RATE_LIMIT_RPS", value_name = "N", help_heading = "Preflight")]
    pub preflight_rate_limit_rps: Option<String>,
    /// Tool calls a second of all principals together, or "off"; 0 refuses all [default: off]
    #[arg(long, env = "EVIDENCEOS_PREFLIGHT_GLOBAL_RATE_LIMIT_RPS", value_name = "N", help_heading = "Preflight")]
    pub preflight_global_rate_limit_rps: Option<String>,
    /// Refuse a paramsHash that the daemon cannot reproduce, instead of noting that it is unverified
    #[arg(long, env = "EVIDENCEOS_PREFLIGHT_STRICT_HASH", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = "Preflight")]
    pub preflight_strict_hash: Option<bool>,
    /// Longest tool output that passes unshortened, in bytes of JSON [default: 1048576 / 4096]
    #[arg(long, env = "EVIDENCEOS_POSTFLIGHT_DEFAULT_MAX_OUTPUT_BYTES", value_name = "BYTES", help_heading = "Preflight")]
    pub postflight_default_max_output_bytes: Option<usize>,
    /// Characters of a longer output that are shown [default: 256]
    #[arg(long, env = "EVIDENCEOS_POSTFLIGHT_PREVIEW_CHARS", value_name = "N", help_heading = "Preflight")]
    pub postflight_preview_chars: Option<usize>,
    /// Which decisions are durable before they are answered: all, or guarded (those that stop something, and tools that can do harm) [default: guarded]
    #[arg(long, env = "EVIDENCEOS_DECISIONS_DURABLE", value_enum, value_name = "WHICH", help_heading = "Preflight")]
    pub decisions_durable: Option<DurableDecisions>,
    /// Days that records of decisions are kept; their roots stay in the log [default: 30]
    #[arg(long, env = "EVIDENCEOS_DECISIONS_KEEP_DAYS", value_name = "DAYS", help_heading = "Preflight")]
    pub decisions_keep_days: Option<u64>,

    /// The gate's defaults: for agents that work all day, or those of the published daemon, shown after the slash [default: agents]
    #[arg(long, env = "EVIDENCEOS_PROBE_PROFILE", value_enum, help_heading = "Probing")]
    pub probe_profile: Option<ProbeProfile>,
    /// Milliseconds for which a call counts [default: 30000]
    #[arg(long, env = "EVIDENCEOS_PROBE_WINDOW_MS", value_name = "MS", help_heading = "Probing")]
    pub probe_window_ms: Option<u64>,
    /// Tool calls within the window to throttle [default: 600 / 20]
    #[arg(long, env = "EVIDENCEOS_PROBE_THROTTLE_TOTAL", value_name = "N", help_heading = "Probing")]
    pub probe_throttle_total: Option<u32>,
    /// Different tool calls within the window to throttle [default: 600 / 10]
    #[arg(long, env = "EVIDENCEOS_PROBE_THROTTLE_UNIQUE_SEMANTIC", value_name = "N", help_heading = "Probing")]
    pub probe_throttle_unique_semantic: Option<u32>,
    /// Different tools within the window to throttle [default: 600 / 4]
    #[arg(long, env = "EVIDENCEOS_PROBE_THROTTLE_DISTINCT_TOPICS", value_name = "N", help_heading = "Probing")]
    pub probe_throttle_distinct_topics: Option<u32>,
    /// Tool calls within the window to escalate [default: 1200 / 40]
    #[arg(long, env = "EVIDENCEOS_PROBE_ESCALATE_TOTAL", value_name = "N", help_heading = "Probing")]
    pub probe_escalate_total: Option<u32>,
    /// Different tool calls within the window to escalate [default: 1200 / 20]
    #[arg(long, env = "EVIDENCEOS_PROBE_ESCALATE_UNIQUE_SEMANTIC", value_name = "N", help_heading = "Probing")]
    pub probe_escalate_unique_semantic: Option<u32>,
    /// Different tools within the window to escalate [default: 1200 / 8]
    #[arg(long, env = "EVIDENCEOS_PROBE_ESCALATE_DISTINCT_TOPICS", value_name = "N", help_heading = "Probing")]
    pub probe_escalate_distinct_topics: Option<u32>,
    /// Tool calls within the window to freeze [default: 2400 / 80]
    #[arg(long, env = "EVIDENCEOS_PROBE_FREEZE_TOTAL", value_name = "N", help_heading = "Probing")]
    pub probe_freeze_total: Option<u32>,
    /// Different tool calls within the window to freeze [default: 2400 / 40]
    #[arg(long, env = "EVIDENCEOS_PROBE_FREEZE_UNIQUE_SEMANTIC", value_name = "N", help_heading = "Probing")]
    pub probe_freeze_unique_semantic: Option<u32>,
    /// Different tools within the window to freeze [default: 2400 / 12]
    #[arg(long, env = "EVIDENCEOS_PROBE_FREEZE_DISTINCT_TOPICS", value_name = "N", help_heading = "Probing")]
    pub probe_freeze_distinct_topics: Option<u32>,
    /// Milliseconds after which a throttled submitter may try again [default: 3000]
    #[arg(long, env = "EVIDENCEOS_PROBE_THROTTLE_RETRY_AFTER_MS", value_name = "MS", help_heading = "Probing")]
    pub probe_throttle_retry_after_ms: Option<u64>,
    /// Levels at which a submitter of claims is throttled, recorded and frozen: "off", or calls/different/holdouts for each level [default: 600/300/64,1200/600/128,2400/1200/256, and no caller is frozen]
    #[arg(long, env = "EVIDENCEOS_PROBE_CLAIMS", value_name = "LEVELS", help_heading = "Probing")]
    pub probe_claims: Option<String>,

    /// The role policy: the roles of principals, and denied ones, TOML, as /etc/evidenceos/policy.toml; read again on SIGHUP
    #[arg(long, env = "EVIDENCEOS_AUTH_POLICY", value_name = "FILE", help_heading = "Identity")]
    pub auth_policy: Option<PathBuf>,
    /// One bearer token for all callers: submitter and auditor. In a file it is not in the process list
    #[arg(long, env = "EVIDENCEOS_AUTH_TOKEN", hide_env_values = true, value_name = "TOKEN", help_heading = "Identity")]
    pub auth_token: Option<String>,
    /// The same, in a file
    #[arg(long, env = "EVIDENCEOS_AUTH_TOKEN_FILE", value_name = "FILE", help_heading = "Identity")]
    pub auth_token_file: Option<PathBuf>,
    /// Bearer tokens of submitters, with commas between them
    #[arg(long, env = "EVIDENCEOS_AGENT_TOKENS", hide_env_values = true, value_name = "TOKENS", help_heading = "Identity")]
    pub agent_tokens: Option<String>,
    /// The same, in a file
    #[arg(long, env = "EVIDENCEOS_AGENT_TOKENS_FILE", value_name = "FILE", help_heading = "Identity")]
    pub agent_tokens_file: Option<PathBuf>,
    /// Bearer tokens of auditors, with commas between them
    #[arg(long, env = "EVIDENCEOS_AUDITOR_TOKENS", hide_env_values = true, value_name = "TOKENS", help_heading = "Identity")]
    pub auditor_tokens: Option<String>,
    /// The same, in a file
    #[arg(long, env = "EVIDENCEOS_AUDITOR_TOKENS_FILE", value_name = "FILE", help_heading = "Identity")]
    pub auditor_tokens_file: Option<PathBuf>,
    /// Secret with which callers sign calls, key id "default"
    #[arg(long, env = "EVIDENCEOS_AUTH_HMAC_KEY", hide_env_values = true, value_name = "SECRET", help_heading = "Identity")]
    pub auth_hmac_key: Option<String>,
    /// The same, in a file
    #[arg(long, env = "EVIDENCEOS_AUTH_HMAC_KEY_FILE", value_name = "FILE", help_heading = "Identity")]
    pub auth_hmac_key_file: Option<PathBuf>,
    /// Secrets with which callers sign calls: id:hex, with commas between them
    #[arg(long, env = "EVIDENCEOS_HMAC_KEYS", hide_env_values = true, value_name = "KEYS", help_heading = "Identity")]
    pub hmac_keys: Option<String>,
    /// The same, in a file
    #[arg(long, env = "EVIDENCEOS_HMAC_KEYS_FILE", value_name = "FILE", help_heading = "Identity")]
    pub hmac_keys_file: Option<PathBuf>,
    /// Secret with which callers sign calls, key id "default", beside --hmac-keys
    #[arg(long, env = "EVIDENCEOS_HMAC_SHARED_SECRET", hide_env_values = true, value_name = "SECRET", help_heading = "Identity")]
    pub hmac_shared_secret: Option<String>,
    /// The same, in a file
    #[arg(long, env = "EVIDENCEOS_HMAC_SHARED_SECRET_FILE", value_name = "FILE", help_heading = "Identity")]
    pub hmac_shared_secret_file: Option<PathBuf>,
    /// Accept signed calls without a timestamp: they can be replayed forever
    #[arg(long, env = "EVIDENCEOS_HMAC_TIMESTAMP_OPTIONAL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = "Identity")]
    pub hmac_timestamp_optional: Option<bool>,
    /// Accept calls signed for the path "/" instead of their own, as old clients send them
    #[arg(long, env = "EVIDENCEOS_HMAC_ACCEPT_ROOT_PATH", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = "Identity")]
    pub hmac_accept_root_path: Option<bool>,

    /// Where the log's key is: file or kms [default: file]
    #[arg(long, env = "EVIDENCEOS_KEY_PROVIDER", value_name = "PROVIDER", help_heading = "Keys")]
    pub key_provider: Option<String>,
    /// Directory of the signing keys [default: keys, in the data directory]
    #[arg(long, env = "EVIDENCEOS_KEY_DIR", value_name = "DIR", help_heading = "Keys")]
    pub key_dir: Option<PathBuf>,
    /// The key that signs, if the key directory holds several
    #[arg(long, env = "EVIDENCEOS_ACTIVE_KEY_ID", value_name = "KEY-ID", help_heading = "Keys")]
    pub active_key_id: Option<String>,
    /// Make a key at the first start even with TLS and authentication on
    #[arg(long, env = "EVIDENCEOS_GENERATE_KEY", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = "Keys")]
    pub generate_key: Option<bool>,
    /// Whose KMS: mock, aws, gcp or azure
    #[arg(long, env = "EVIDENCEOS_KMS_PROVIDER", value_name = "PROVIDER", help_heading = "Keys")]
    pub kms_provider: Option<String>,
    /// `<kms-key-resource>|<base64-ciphertext>`; the resource alone: the key never leaves the KMS
    #[arg(long, env = "EVIDENCEOS_KMS_KEY_ID", value_name = "KEY", help_heading = "Keys")]
    pub kms_key_id: Option<String>,
    /// The KMS key that signed before, to link the new one to it
    #[arg(long, env = "EVIDENCEOS_KMS_PREVIOUS_KEY_ID", value_name = "KEY", help_heading = "Keys")]
    pub kms_previous_key_id: Option<String>,
    /// The key id that must come out of the KMS
    #[arg(long, env = "EVIDENCEOS_KMS_EXPECT_KEY_ID", value_name = "KEY-ID", help_heading = "Keys")]
    pub kms_expect_key_id: Option<String>,
    /// The KMS key that wraps the key of the holdouts; without it that key is in a file
    #[arg(long, env = "EVIDENCEOS_KMS_HOLDOUT_KEY", value_name = "RESOURCE", help_heading = "Keys")]
    pub kms_holdout_key: Option<String>,
    /// What ciphertexts are bound to: name=value, with commas between them
    #[arg(long, env = "EVIDENCEOS_KMS_CONTEXT", value_name = "PAIRS", help_heading = "Keys")]
    pub kms_context: Option<String>,
    /// Another endpoint of the KMS: https, or http to loopback
    #[arg(long, env = "EVIDENCEOS_KMS_ENDPOINT", value_name = "URL", help_heading = "Keys")]
    pub kms_endpoint: Option<String>,
    /// Authorities that the KMS's certificate may come from, PEM
    #[arg(long, env = "EVIDENCEOS_KMS_CA_FILE", value_name = "FILE", help_heading = "Keys")]
    pub kms_ca_file: Option<PathBuf>,
    /// Seconds for one call of the KMS, credentials included [default: 30]
    #[arg(long, env = "EVIDENCEOS_KMS_TIMEOUT", value_name = "SECONDS", help_heading = "Keys")]
    pub kms_timeout: Option<u64>,
    /// The key of the mock KMS, 64 hex digits
    #[arg(long, env = "EVIDENCEOS_KMS_MOCK_KEY_HEX", hide_env_values = true, value_name = "HEX", help_heading = "Keys")]
    pub kms_mock_key_hex: Option<String>,
    /// Take the mock KMS with TLS and authentication on
    #[arg(long, env = "EVIDENCEOS_ALLOW_MOCK_KMS", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = "Keys")]
    pub allow_mock_kms: Option<bool>,
    /// Take policy oracles without a signature
    #[arg(long, env = "EVIDENCEOS_ALLOW_UNSIGNED_POLICIES", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = "Policies")]
    pub allow_unsigned_policies: Option<bool>,

    /// Let the kernel write the process's memory, keys included, when it crashes
    #[arg(long, env = "EVIDENCEOS_ALLOW_CORE_DUMPS", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = "Keys")]
    pub allow_core_dumps: Option<bool>,

    /// Credit of a new principal, and its credit limit [default: 10000]
    #[arg(long, env = "EVIDENCEOS_DEFAULT_CREDIT_LIMIT", value_name = "CREDITS", help_heading = "Credit")]
    pub default_credit_limit: Option<u64>,
    /// Credit limits of single principals: name=credits, with commas between them
    #[arg(long, env = "EVIDENCEOS_PRINCIPAL_CREDIT_LIMITS", value_name = "LIMITS", help_heading = "Credit")]
    pub principal_credit_limits: Option<String>,
    /// The most credit that a new principal gets back a day [default: its credit limit]
    #[arg(long, env = "EVIDENCEOS_DEFAULT_DAILY_MINT_LIMIT", value_name = "CREDITS", help_heading = "Credit")]
    pub default_daily_mint_limit: Option<u64>,
    /// The most bytes stored for one principal's claims [default: 4294967296]
    #[arg(long, env = "EVIDENCEOS_PRINCIPAL_STORAGE_LIMIT", value_name = "BYTES", help_heading = "Credit")]
    pub principal_storage_limit: Option<u64>,
    /// Days that the daemon keeps the module of an unexecuted claim; 0: for ever [default: 30]
    #[arg(long, env = "EVIDENCEOS_CLAIMS_KEEP_DAYS", value_name = "DAYS", help_heading = "Credit")]
    pub claims_keep_days: Option<u64>,
    /// Credits for a bit of leakage [default: 1]
    #[arg(long, env = "EVIDENCEOS_LAMBDA_K_PER_BIT", value_name = "DECIMAL", help_heading = "Credit")]
    pub lambda_k_per_bit: Option<String>,
    /// Credits for a unit of fuel [default: 0.000001]
    #[arg(long, env = "EVIDENCEOS_LAMBDA_CPU_PER_FUEL", value_name = "DECIMAL", help_heading = "Credit")]
    pub lambda_cpu_per_fuel: Option<String>,
    /// Credits for a Wasm page of 64 KiB [default: 0.001]
    #[arg(long, env = "EVIDENCEOS_LAMBDA_MEM_PER_WASM_PAGE", value_name = "DECIMAL", help_heading = "Credit")]
    pub lambda_mem_per_wasm_page: Option<String>,
    /// Credits for a byte of the module that runs, which is compiled for it [default: 0.000001]
    #[arg(long, env = "EVIDENCEOS_LAMBDA_CODE_PER_BYTE", value_name = "DECIMAL", help_heading = "Credit")]
    pub lambda_code_per_byte: Option<String>,

    /// TOML file with the same settings (listen = "…", data_dir = "…", …); flags and environment win
    #[arg(long, env = "EVIDENCEOS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}
