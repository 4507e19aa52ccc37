//! A module that is to become a tool: it is admitted, or refused with a reason.

use axum::{extract::Request, http::StatusCode};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use evidenceos_access::Misused;
use evidenceos_kernel::id::Digest;
use serde_json::Value;

use super::{
    Api, Known, MAX_MODULE_BODY, NoBody, SOON_S, Unknown,
    calls::{Care, Refused, whole_seconds},
    draft::Draft,
    parse::Body,
    read, says_too_large, status_of,
    wire::{Admission, Answer},
};

impl Api {
    pub(super) async fn admit(&self, request: Request) -> Answer<Admission> {
        self.try_admit(request)
            .await
            .unwrap_or_else(|refused| refused)
    }

    async fn try_admit(&self, request: Request) -> Result<Answer<Admission>, Refused<Admission>> {
        let too_large = || inadmissible(StatusCode::PAYLOAD_TOO_LARGE, "a module is at most 1 MiB");
        if says_too_large(request.headers(), MAX_MODULE_BODY) {
            return Err(too_large());
        }
        let misused = |misused: Misused| inadmissible(status_of(misused), misused.text());
        let Known {
            principal, body, ..
        } = self.known(request).map_err(|unknown| match unknown {
            Unknown::Caller => {
                let answer = inadmissible(StatusCode::UNAUTHORIZED, "the caller is not known");
                Answer {
                    challenge: true,
                    ..answer
                }
            }
            Unknown::Signature(why) => misused(why),
        })?;
        if let Err(wait) = self.rates.take(&principal.caller.tag) {
            let answer = inadmissible(StatusCode::TOO_MANY_REQUESTS, "too many calls");
            return Err(answer.retry_after(whole_seconds(wait)));
        }
        let bytes = read(body, MAX_MODULE_BODY)
            .await
            .map_err(|no_body| match no_body {
                NoBody::Misused(why) => misused(why),
                NoBody::TooLarge => too_large(),
                NoBody::Slow => inadmissible(StatusCode::REQUEST_TIMEOUT, "the body is too slow"),
                NoBody::Broken => inadmissible(StatusCode::BAD_REQUEST, "the body broke off"),
            })?;
        let candidate = Candidate::parse(&bytes)
            .map_err(|reason| inadmissible(StatusCode::BAD_REQUEST, reason))?;
        let module_hash = Digest::of(&candidate.module);
        // The check is linear in the module, but for a megabyte it delays other work on this
        // thread.
        let objection = tokio::task::spawn_blocking(move || candidate.objection())
            .await
            .unwrap_or_else(|panic| {
                tracing::error!(%panic, "checking a module failed");
                Some("the module cannot be checked".to_owned())
            });
        let draft = Draft::admission(&principal, module_hash, objection.is_none());
        let noted = self
            .note(Care::of(objection.is_some(), false), draft)
            .await
            .map_err(|_not_noted| {
                inadmissible(StatusCode::SERVICE_UNAVAILABLE, "it cannot be recorded")
                    .retry_after(SOON_S)
            })?;
        let body = Admission {
            admissible: objection.is_none(),
            reason: objection,
            receipt_hash: Some(noted.leaf.to_hex()),
            decision_id: Some(noted.id.to_string()),
        };
        Ok(Answer::new(StatusCode::OK, body))
    }
}

/// A refusal of a module.
pub(super) fn inadmissible(status: StatusCode, reason: &str) -> Answer<Admission> {
    let body = Admission {
        admissible: false,
        reason: Some(reason.to_owned()),
        receipt_hash: None,
        decision_id: None,
    };
    Answer::new(status, body)
}

/// A module that is to become a tool.
struct Candidate {
    module: Vec<u8>,
    exports: Vec<String>,
    fuel_limit: u64,
}

/// The most exports that a request may declare.
const MAX_EXPORTS: usize = 64;

impl Candidate {
    fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut body = Body::parse(bytes).map_err(|_| "the body is not a JSON object")?;
        let text = body.text("moduleBase64").ok().flatten();
        let text = text.ok_or("moduleBase64 is missing")?;
        // One published client sends the file's text unencoded; it then fails as an invalid module.
        let module = BASE64_STANDARD
            .decode(text.trim())
            .unwrap_or_else(|_not_base64| text.into_bytes());
        let exports = match body.take("declaredExports") {
            None => Vec::new(),
            Some(Value::Array(names)) if names.len() <= MAX_EXPORTS => names
                .into_iter()
                .map(|name| match name {
                    Value::String(name) => Ok(name),
                    _ => Err("declaredExports must be texts"),
                })
                .collect::<Result<_, _>>()?,
            Some(_) => return Err("declaredExports must be a list of at most 64 texts"),
        };
        let fuel_limit = match body.take("fuelLimit") {
            None => 1,
            Some(limit) => limit
                .as_u64()
                .ok_or("fuelLimit must be a positive integer")?,
        };
        Ok(Self {
            module,
            exports,
            fuel_limit,
        })
    }

    /// Why the module is refused; `None` if it is admitted.
    fn objection(&self) -> Option<String> {
        if self.fuel_limit == 0 {
            return Some("fuelLimit is 0: it could not run at all".to_owned());
        }
        if let Err(violations) = evidenceos_sandbox::check(&self.module) {
            let words: Vec<String> = violations.iter().map(ToString::to_string).collect();
            return Some(words.join("; "));
        }
        let present = evidenceos_sandbox::export_names(&self.module);
        let missing = self.exports.iter().find(|name| !present.contains(name))?;
        Some(format!("{missing:?} is declared and not exported"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_objected_to_in_words() {
        use evidenceos_sandbox::{Mode, PackOptions, pack};
        let module = pack(&PackOptions::new(&[0, 1], Mode::Judge));
        let good = BASE64_STANDARD.encode(module.expect("a module"));
        for (module, exports, objection) in [
            (good.as_str(), r#"["run","memory"]"#, None),
            (
                good.as_str(),
                r#"["ran"]"#,
                Some("\"ran\" is declared and not exported"),
            ),
            ("echo hello", "[]", Some("")),
            ("", "[]", Some("")),
        ] {
            let body = format!(
                r#"{{"moduleBase64":"{module}","declaredExports":{exports},"fuelLimit":1}}"#
            );
            let candidate = Candidate::parse(body.as_bytes()).expect("well formed");
            match (candidate.objection(), objection) {
                (None, None) => {}
                (Some(found), Some(expected)) => assert!(found.contains(expected), "{found}"),
                (found, expected) => panic!("{module} {exports}: {found:?}, not {expected:?}"),
            }
        }
    }
}
