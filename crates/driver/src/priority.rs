//! Who goes first on a processor: threads that serve, before those that work in the background.

/// Niceness of threads that nobody waits for at once.
const BACKGROUND_NICENESS: i32 = 10;

/// Makes the calling thread give way to those that serve: a guest that computes for seconds must
/// not delay other callers.
pub fn yield_to_serving() {
    // Without the right to it the thread works on as it was.
    let _ = rustix::process::setpriority_process(None, BACKGROUND_NICENESS);
}
