//! The control socket: what an operator on the same machine asks of a running daemon.
//!
//! `<data-dir>/control.sock`, mode 0600, answers only to its own user and root, which the kernel
//! tells. One JSON line comes in, JSON lines go out: progress, then how it ended. Nothing of it
//! is reachable over a network.
//!
//! | in | `{"command":"backup","destination":"/abs/path"}` |
//! |---|---|
//! | out, any number | `{"progress":{"stage":"database","done":256,"total":900}}` |
//! | out, last | `{"done":{…}}` or `{"failed":"…"}` |
//!
//! | in | `{"command":"health"}` |
//! |---|---|
//! | out | `{"health":"serving"}` |
//!
//! | in | `{"command":"reload"}` |
//! |---|---|
//! | out | `"reloaded"` or `{"failed":"…"}` |

mod client;
mod error;
mod server;
mod wire;

pub use self::{
    client::{back_up, condition, reload},
    error::ControlError,
    server::{Control, ReloadAsked},
    wire::{News, Order, SOCKET},
};
