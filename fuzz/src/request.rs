//! Protobuf messages as the edge decodes them, behind the counter of fields.

use evidenceos_daemon::grpc::fuzz::{MOST_FIELDS, artifacts, is_let_through, older_terms, terms};
use evidenceos_proto as wire;
use prost::{
    Message,
    bytes::{Buf as _, Bytes},
    encoding::{DecodeContext, WireType, decode_key, skip_field},
};

/// The counter refuses exactly the messages with too many fields, groups and what is in them counted, and so agrees
/// with the decoder about where fields end. A message that decodes is as long again at most, and decodes again to the
/// same. Terms and artifacts that are taken keep their rules.
pub fn check(message: &[u8]) {
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).expect("short").to_be_bytes());
    body.extend(message);
    let passes = is_let_through([&body[..]]);
    for len in [1, 7, 64] {
        assert_eq!(
            is_let_through(body.chunks(len)),
            passes,
            "{len} bytes at once"
        );
    }
    let fields = fields_of(message);
    if let Some(fields) = fields {
        assert_eq!(passes, fields <= MOST_FIELDS, "{fields} fields");
    }
    let decodes = Decoding {
        message: Bytes::copy_from_slice(message),
        has_fields: fields.is_some(),
    };
    each(&decodes);
    if !passes {
        return;
    }
    if let Some(request) = decodes.message::<wire::CreateClaimV2Request>()
        && let Ok(terms) = terms(&request)
    {
        keep_rules(&terms);
    }
    if let Some(request) = decodes.message::<wire::CreateClaimRequest>()
        && let Ok(terms) = older_terms(&request)
    {
        keep_rules(&terms);
        assert!(terms.alpha_micros < 1_000_000);
    }
    if let Some(request) = decodes.message::<wire::CommitArtifactsRequest>() {
        assert!(request.artifacts.len() <= MOST_FIELDS);
        if let Ok((_, artifacts)) = artifacts(&request) {
            assert!(artifacts.len() <= 128);
            assert_eq!(artifacts.len(), request.artifacts.len());
        }
    }
}

fn keep_rules(terms: &evidenceos_kernel::claim::Terms) {
    assert!((1..=128).contains(&terms.claim_name.len()));
    assert!(!terms.claim_name.chars().any(char::is_control));
    assert!(terms.epoch_config_ref.len() <= 128);
    let public = [terms.epoch_size, terms.access_credit];
    let most = terms.max_answer_microbits.unwrap_or_default();
    assert!(public.iter().chain([&most]).all(|int| *int < 1 << 53));
    assert_eq!(terms.claim_id(), terms.clone().claim_id());
}

/// Fields at the top of a message, the ends of groups and what is in groups counted too; none if the decoder cannot
/// pass over them.
fn fields_of(mut message: &[u8]) -> Option<usize> {
    let mut fields = 0;
    while message.has_remaining() {
        let (tag, kind) = decode_key(&mut message).ok()?;
        fields += 1;
        if !matches!(kind, WireType::StartGroup | WireType::EndGroup) {
            skip_field(kind, tag, &mut message, DecodeContext::default()).ok()?;
        }
    }
    Some(fields)
}

struct Decoding {
    message: Bytes,
    has_fields: bool,
}

impl Decoding {
    fn message<M: Message + Default>(&self) -> Option<M> {
        M::decode(self.message.clone()).ok()
    }

    fn twice<M: Message + Default>(&self) {
        let Some(decoded) = self.message::<M>() else {
            return;
        };
        assert!(self.has_fields, "decoded, although its fields have no ends");
        // By their bytes: a float that is not a number is not equal to itself.
        let bytes = decoded.encode_to_vec();
        // A number alone may be written as a list of one.
        assert!(bytes.len() <= 2 * self.message.len() + 16);
        let again = M::decode(&bytes[..]).expect("what was encoded");
        assert_eq!(again.encode_to_vec(), bytes);
    }
}

/// The request of each method.
fn each(decoding: &Decoding) {
    decoding.twice::<wire::CreateClaimRequest>();
    decoding.twice::<wire::CreateClaimV2Request>();
    decoding.twice::<wire::CommitArtifactsRequest>();
    decoding.twice::<wire::FreezeRequest>();
    decoding.twice::<wire::FreezeGatesRequest>();
    decoding.twice::<wire::SealRequest>();
    decoding.twice::<wire::SealClaimRequest>();
    decoding.twice::<wire::ExecuteClaimRequest>();
    decoding.twice::<wire::ExecuteClaimV2Request>();
    decoding.twice::<wire::GetCapsuleRequest>();
    decoding.twice::<wire::FetchCapsuleRequest>();
    decoding.twice::<wire::RevokeClaimRequest>();
    decoding.twice::<wire::GetPublicKeyRequest>();
    decoding.twice::<wire::GetSignedTreeHeadRequest>();
    decoding.twice::<wire::GetInclusionProofRequest>();
    decoding.twice::<wire::GetConsistencyProofRequest>();
    decoding.twice::<wire::GetRevocationFeedRequest>();
    decoding.twice::<wire::WatchRevocationsRequest>();
    decoding.twice::<wire::GrantCreditRequest>();
    decoding.twice::<wire::SetCreditLimitRequest>();
    decoding.twice::<wire::SetHoldoutPoolBudgetsRequest>();
    decoding.twice::<wire::GetHoldoutPoolBudgetsRequest>();
    decoding.twice::<wire::GetAccountRequest>();
    decoding.twice::<wire::ListAccountsRequest>();
    decoding.twice::<wire::WatchAccountsRequest>();
    decoding.twice::<wire::ExportAccountsRequest>();
    decoding.twice::<wire::PutHoldoutRequest>();
    decoding.twice::<wire::RetireHoldoutRequest>();
    decoding.twice::<wire::OpenHoldoutRequest>();
    decoding.twice::<wire::WithdrawHoldoutRequest>();
    decoding.twice::<wire::ListHoldoutsRequest>();
    decoding.twice::<wire::GetHoldoutRequest>();
    decoding.twice::<wire::GetClaimRequest>();
    decoding.twice::<wire::ListClaimsRequest>();
    decoding.twice::<wire::FetchTraceRequest>();
    decoding.twice::<wire::GetCheckpointRequest>();
    decoding.twice::<wire::ListEntriesRequest>();
    decoding.twice::<wire::ListLogKeysRequest>();
    decoding.twice::<wire::RotateHoldoutKeyRequest>();
    decoding.twice::<wire::ConfirmClockRequest>();
    decoding.twice::<wire::HealthRequest>();
    decoding.twice::<wire::GetServerInfoRequest>();
}
