//! The log over gRPC.

use evidenceos_proto as wire;
use prost::bytes::Bytes;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::Status;

use super::{
    call::{Call, Pieces},
    parse, render,
};
use crate::services::{Revocations, Services};

/// Entries in one reply.
const MAX_ENTRIES: u32 = 256;

/// `GetPublicKey`: the key with an id, or the signing key if no id is given.
pub fn public_key(
    services: &Services,
    request: &wire::GetPublicKeyRequest,
) -> Result<wire::GetPublicKeyResponse, Status> {
    let id = parse::maybe_digest("key_id", &request.key_id)?;
    let (public_key, vkey) = services.log.public_key(id)?;
    let key_id = evidenceos_kernel::id::Digest::of(&public_key);
    Ok(wire::GetPublicKeyResponse {
        ed25519_public_key: render::bytes(&public_key),
        key_id: render::bytes(key_id.as_bytes()),
        vkey,
    })
}

/// `ListLogKeys`: every key that signed the log, with the size from which it did.
pub fn keys(
    services: &Services,
    _: &wire::ListLogKeysRequest,
) -> Result<wire::ListLogKeysResponse, Status> {
    let keys = services.log.keys().into_iter().map(|shown| wire::LogKey {
        ed25519_public_key: render::bytes(&shown.key.public_key),
        key_id: render::bytes(shown.key.id.as_bytes()),
        vkey: shown.vkey,
        since_size: shown.key.since_size,
    });
    Ok(wire::ListLogKeysResponse {
        keys: keys.collect(),
    })
}

/// `GetSignedTreeHead`: the newest head that may be shown, in the published wire's form.
pub fn tree_head(
    services: &Services,
    _: &wire::GetSignedTreeHeadRequest,
) -> Result<wire::GetSignedTreeHeadResponse, Status> {
    let signed = render::head(&services.log.head());
    Ok(wire::GetSignedTreeHeadResponse {
        tree_size: signed.tree_size,
        root_hash: signed.root_hash,
        signature: signed.signature,
        key_id: signed.key_id,
        checkpoint: signed.checkpoint,
    })
}

/// `GetCheckpoint`: the newest head that may be shown, as a signed note.
pub fn checkpoint(
    services: &Services,
    _: &wire::GetCheckpointRequest,
) -> Result<wire::GetCheckpointResponse, Status> {
    let checkpoint = services.log.head().checkpoint.clone();
    Ok(wire::GetCheckpointResponse { checkpoint })
}

/// `GetInclusionProof`: the path from one entry to the root of a tree.
pub async fn inclusion(
    services: &Services,
    call: Call<wire::GetInclusionProofRequest>,
) -> Result<wire::GetInclusionProofResponse, Status> {
    let request = call.message;
    let proof = services
        .log
        .inclusion(request.leaf_index, request.tree_size)
        .await?;
    Ok(wire::GetInclusionProofResponse {
        leaf_hash: render::bytes(proof.leaf.as_bytes()),
        sibling_hashes: render::hashes(&proof.path),
        root_hash: render::bytes(proof.root.as_bytes()),
        tree_size: proof.size,
        checkpoint: proof.checkpoint.unwrap_or_default(),
    })
}

/// `GetConsistencyProof`: the path that proves one tree to be the beginning of another.
pub async fn consistency(
    services: &Services,
    call: Call<wire::GetConsistencyProofRequest>,
) -> Result<wire::GetConsistencyProofResponse, Status> {
    let (first, second) = (call.message.first_tree_size, call.message.second_tree_size);
    let proof = services.log.consistency(first, second).await?;
    Ok(wire::GetConsistencyProofResponse {
        consistent: true,
        first_root_hash: render::bytes(proof.old_root.as_bytes()),
        second_root_hash: render::bytes(proof.new_root.as_bytes()),
        path: render::hashes(&proof.path),
        checkpoint: proof.checkpoint.unwrap_or_default(),
    })
}

/// `ListEntries`: entries from an index on; a count of 0 asks for as many as fit into one reply.
pub async fn entries(
    services: &Services,
    call: Call<wire::ListEntriesRequest>,
) -> Result<wire::ListEntriesResponse, Status> {
    let most = match call.message.count {
        0 => MAX_ENTRIES,
        count => count.min(MAX_ENTRIES),
    };
    let (entries, tree_size) = services.log.entries(call.message.start, most).await?;
    Ok(wire::ListEntriesResponse {
        entries: entries.into_iter().map(Bytes::from).collect(),
        tree_size,
    })
}

/// `GetRevocationFeed`: a page of revocations after an index, with the head that covers them.
pub async fn revocations(
    services: &Services,
    call: Call<wire::GetRevocationFeedRequest>,
) -> Result<wire::GetRevocationFeedResponse, Status> {
    let page = services.log.revocations(call.message.after_index).await?;
    Ok(wire::GetRevocationFeedResponse {
        more: page.more,
        key_id: render::bytes(page.head.key_id.as_bytes()),
        signed_tree_head: Some(render::head(&page.head)),
        signature: signature(&page),
        entries: page.entries.iter().map(render::revocation).collect(),
    })
}

/// `WatchRevocations`: streams pages of revocations once a shown head covers them.
pub async fn watch_revocations(
    services: &Services,
    _: Call<wire::WatchRevocationsRequest>,
) -> Result<Pieces<wire::WatchRevocationsResponse>, Status> {
    let pages = ReceiverStream::new(services.log.watch_revocations());
    Ok(Box::pin(pages.map(|page| Ok(watched(&page?)))))
}

fn watched(page: &Revocations) -> wire::WatchRevocationsResponse {
    wire::WatchRevocationsResponse {
        key_id: render::bytes(page.head.key_id.as_bytes()),
        signed_tree_head: Some(render::head(&page.head)),
        signature: signature(page),
        entries: page.entries.iter().map(render::revocation).collect(),
    }
}

fn signature(page: &Revocations) -> Bytes {
    let signature = page.signature.as_ref();
    signature.map_or_else(Bytes::new, |signature| render::bytes(signature))
}
