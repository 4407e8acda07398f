//! One fault or look-alike on one host of the test bed; started by `understudy_testbed::fault::Running`.

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    understudy_testbed::fault_child::run(&arguments)
}
