//! Priority on a processor: threads that serve go before threads that work in the background.

/// Niceness of background threads.
const BACKGROUND_NICENESS: i32 = 10;

/// Lowers the calling thread's priority below that of serving threads: a guest that computes for
/// seconds must not delay other callers.
pub fn yield_to_serving() {
    // Without the permission the thread keeps its priority.
    let _ = rustix::process::setpriority_process(None, BACKGROUND_NICENESS);
}
