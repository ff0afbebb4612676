//! See the library.

fn main() -> std::process::ExitCode {
    lookalike::run(std::env::args().collect())
}
