//! Compiled code as the parent keeps it: bytes that it never interprets.

use crate::check::Role;
use crate::wire::{CodeKey, seal};

/// Compiled code, bound to the module it is made from and the engine that made it.
#[derive(Debug)]
pub(crate) struct Artifact {
    pub(crate) key: CodeKey,
    pub(crate) role: Role,
    pub(crate) seal: [u8; 32],
    pub(crate) code: Box<[u8]>,
}

impl Artifact {
    /// The memory of a piece of code beside its bytes.
    const OVERHEAD_BYTES: usize = 1 << 10;

    pub(crate) fn new(engine_id: &str, role: Role, key: CodeKey, code: Box<[u8]>) -> Self {
        Self {
            seal: seal(engine_id, role, &key, &code),
            key,
            role,
            code,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.code.len() + Self::OVERHEAD_BYTES
    }
}
