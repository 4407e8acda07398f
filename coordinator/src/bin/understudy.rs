//! `understudy`: the operator's command line.

fn main() -> std::process::ExitCode {
    understudy_coordinator::cli::main()
}
