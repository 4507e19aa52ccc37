//! The child that the tests of the sandbox start, in place of the program that ships.

fn main() -> std::process::ExitCode {
    evidenceos_sandbox::serve_if_child().unwrap_or(std::process::ExitCode::FAILURE)
}
