//! The `evidenceos-daemon` program; see the library.

fn main() -> std::process::ExitCode {
    evidenceos_daemon::main()
}
