//! The control socket: commands of an operator on the same machine to a running daemon.
//!
//! `<data-dir>/control.sock`, mode 0600, answers only its own user and root; the kernel tells which
//! user connects. One JSON line comes in, JSON lines go out: progress, then the result. The socket
//! is not reachable over a network.
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
