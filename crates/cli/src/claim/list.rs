//! Lists of claims, and the search for a claim by the start of its id or by its name.

use clap::Args;
use evidenceos_proto as proto;
use prost::bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    client::Client,
    error::CliError,
    output::{Output, bits, table},
    paging::{PageArgs, Paged},
    render::{claim_json, state},
    units,
};

/// The fewest digits of an id that the server accepts.
const FEWEST_DIGITS: usize = 4;
/// The most claims that are named if a text fits several.
const MOST_NAMED: usize = 10;

/// The filters of a list of claims.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    evidenceos claim list --limit 20 --json\n  \
    evidenceos claim list --holdout tumours-2026 --since 2026-11-01\n  \
    evidenceos claim list --all --owner bearer:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
pub struct ListArgs {
    /// The claims of all principals; for operators and auditors.
    #[arg(long)]
    all: bool,
    /// Claims on one holdout: its name or id.
    #[arg(long, value_name = "NAME")]
    holdout: Option<String>,
    /// Claims with exactly this name.
    #[arg(long)]
    name: Option<String>,
    /// Claims whose ids begin with these digits: at least four hex digits.
    #[arg(long, value_name = "DIGITS")]
    id: Option<String>,
    /// Claims of one principal, given as a principal or as its tag in the log; for operators and
    /// auditors.
    #[arg(long, value_name = "PRINCIPAL")]
    owner: Option<String>,
    /// Created on this day (UTC) or later, or at this time: 2026-11-01, or 2026-11-01T12:00:00Z.
    #[arg(long, value_name = "DATE", value_parser = units::unix_ms)]
    since: Option<u64>,
    /// Created before this day or time.
    #[arg(long, value_name = "DATE", value_parser = units::unix_ms)]
    before: Option<u64>,
    #[command(flatten)]
    page: PageArgs,
}

impl ListArgs {
    /// Runs the command and returns what it prints.
    pub async fn run(self, client: &mut Client) -> Result<Output, CliError> {
        let request = proto::ListClaimsRequest {
            // Another principal's claims are among all claims.
            all: self.all || self.owner.is_some(),
            id_prefix: self.id.unwrap_or_default(),
            claim_name: self.name.unwrap_or_default(),
            holdout: self.holdout.unwrap_or_default(),
            owner: self.owner.unwrap_or_default(),
            created_from_unix_ms: self.since.unwrap_or(0),
            created_before_unix_ms: self.before.unwrap_or(0),
            ..Default::default()
        };
        let all = request.all;
        let is_filtered = request
            != proto::ListClaimsRequest {
                all,
                ..Default::default()
            };
        let paged = fetch(client, &request, self.page).await?;
        Ok(listed(paged, all, is_filtered))
    }
}

/// The claims that a request asks for, page by page. A page may be short, even empty, and have a next one.
async fn fetch(
    client: &mut Client,
    request: &proto::ListClaimsRequest,
    page: PageArgs,
) -> Result<Paged<proto::Claim>, CliError> {
    let mut paged = Paged::new(page);
    while let Some((page_size, page_token)) = paged.next() {
        let message = proto::ListClaimsRequest {
            page_size,
            page_token,
            ..request.clone()
        };
        let page = client.list_claims(message).await?;
        paged.take(page.claims, page.next_page_token);
    }
    Ok(paged)
}

fn listed(paged: Paged<proto::Claim>, all: bool, is_filtered: bool) -> Output {
    let claims = &paged.items;
    let json: Vec<Value> = claims.iter().map(claim_json).collect();
    let json = json!({ "claims": json, "next_page": paged.next_page() });
    if claims.is_empty() {
        let none = if is_filtered {
            "no claim matches"
        } else {
            "no claims yet; make one with `evidenceos claim run MODULE --holdout NAME`\n\
            If you had claims with an earlier token or certificate, ask an operator to name its principal in the rule of \
            the new one in the role policy."
        };
        return Output::new(json, none);
    }
    let mut headers = vec!["claim", "state", "holdout"];
    if all {
        headers.push("owner");
    }
    headers.extend(["created", "answers>", "threshold>", "index>", "id"]);
    let rows: Vec<Vec<String>> = claims.iter().map(|claim| row(claim, all)).collect();
    Output::new(json, format!("{}{}", table(&headers, &rows), paged.more()))
}

fn row(claim: &proto::Claim, with_owner: bool) -> Vec<String> {
    let result = claim.result.as_ref();
    let figure =
        |of: &dyn Fn(&proto::ExecuteClaimV2Response) -> String| result.map(of).unwrap_or_default();
    let mut cells = vec![
        claim.claim_name.clone(),
        state(claim.state),
        claim.holdout_ref.clone(),
    ];
    if with_owner {
        let tag = || claim.owner_tag_hex.chars().take(12).collect();
        let name = Some(claim.owner_name.clone()).filter(|name| !name.is_empty());
        cells.push(name.unwrap_or_else(tag));
    }
    cells.extend([
        units::utc(claim.created_unix_ms),
        figure(&|result| bits(result.charged_answer_microbits)),
        figure(&|result| bits(result.threshold_microbits)),
        figure(&|result| result.etl_index.to_string()),
        hex::encode(&claim.claim_id),
    ]);
    cells
}

/// Resolves a text to a claim: its id, the first digits of it, or its name. The caller's own claims come first; if
/// the caller may read all claims, those of others are searched as well.
pub async fn resolve(client: &mut Client, text: &str) -> Result<Bytes, CliError> {
    if let Ok(id) = units::id(text) {
        return Ok(id);
    }
    for all in [false, true] {
        let mut found = Vec::new();
        for request in requests(text, all) {
            match fetch(client, &request, PageArgs::first(MOST_NAMED)).await {
                Ok(claims) => found.extend(claims.items),
                // Only auditors and operators may read the claims of others.
                Err(CliError::Refused { code, .. }) if all && code == "FORBIDDEN" => {}
                Err(error) => return Err(error),
            }
        }
        found.dedup_by(|one, other| one.claim_id == other.claim_id);
        match &found[..] {
            [] => {}
            [claim] => return Ok(claim.claim_id.clone()),
            several => return Err(ambiguous(text, several)),
        }
    }
    Err(CliError::Failed(format!(
        "no claim {text:?}: neither its id nor its name begins so; `evidenceos claim list` shows your claims"
    )))
}

/// The possible meanings of a text: a name, and the start of an id.
fn requests(text: &str, all: bool) -> Vec<proto::ListClaimsRequest> {
    let base = proto::ListClaimsRequest {
        all,
        ..Default::default()
    };
    let mut requests = Vec::new();
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex && (FEWEST_DIGITS..=64).contains(&text.len()) {
        requests.push(proto::ListClaimsRequest {
            id_prefix: text.to_owned(),
            ..base.clone()
        });
    }
    requests.push(proto::ListClaimsRequest {
        claim_name: text.to_owned(),
        ..base
    });
    requests
}

fn ambiguous(text: &str, claims: &[proto::Claim]) -> CliError {
    let shown = claims.iter().map(|claim| {
        format!(
            "{}  {}  {}",
            hex::encode(&claim.claim_id),
            state(claim.state),
            claim.claim_name
        )
    });
    CliError::Usage(format!(
        "{text:?} could be any of {} claims; write more of the id:\n{}",
        claims.len(),
        crate::output::listed(shown)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_can_be_the_start_of_an_id_or_a_name() {
        let fields = |text: &str| -> Vec<(String, String)> {
            let requests = requests(text, false).into_iter();
            requests
                .map(|request| (request.id_prefix, request.claim_name))
                .collect()
        };
        let (none, text) = (String::new, str::to_owned);
        assert_eq!(
            fields("3f2a"),
            [(text("3f2a"), none()), (none(), text("3f2a"))]
        );
        assert_eq!(fields("3f2"), [(none(), text("3f2"))]);
        assert_eq!(fields("my-model"), [(none(), text("my-model"))]);
    }

    #[test]
    fn claims_that_fit_alike_are_named() {
        let claim = |byte: u8| proto::Claim {
            claim_id: vec![byte; 32].into(),
            claim_name: "m".to_owned(),
            ..Default::default()
        };
        let error = ambiguous("m", &[claim(1), claim(2)]).to_string();
        assert!(
            error.contains(&"01".repeat(32)) && error.contains(&"02".repeat(32)),
            "{error}"
        );
    }
}
