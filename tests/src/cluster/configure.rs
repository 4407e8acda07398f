//! What `understudy init` writes, moved onto the bed.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::Cluster;
use crate::Host;

const AGENT_PORT: u16 = 7401;
const COORDINATOR_PORT: u16 = 7400;

impl Cluster {
    pub(super) fn configure(&self, coordinator_more: &str) -> Result<()> {
        let mut init = self.operator.host().command(self.operator.program())?;
        init.arg("init").arg("--dir").arg(&self.config);
        for host in &self.hosts {
            let named = format!("{}={}:{AGENT_PORT}", host.name(), host.address());
            init.args(["--host", &named]);
        }
        for host in &self.coordinator_hosts {
            init.args(["--coordinator", &format!("{}:{COORDINATOR_PORT}", host.address())]);
        }
        let output = init.output().context("starting `understudy init`")?;
        ensure!(
            output.status.success(),
            "understudy init: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        for (n, host) in (1..).zip(&self.hosts) {
            self.configure_host(&self.config.join(format!("host-{n}.toml")), host)?;
        }
        for (n, host) in (1..).zip(&self.coordinator_hosts) {
            self.configure_coordinator(n, host, coordinator_more)?;
        }
        Ok(())
    }

    pub(super) fn configure_host(&self, file: &Path, host: &Host) -> Result<()> {
        let state = self.bed.disk_mount_point().join("understudy");
        fs::create_dir_all(host.path(&state))?;
        let cgroups = host.cgroups();
        let unified = cgroups.unified();
        let controller = |name: &str| cgroups.v1(name).unwrap_or_else(|| unified.clone());
        let disk = host.disk().context("the hosts have disks")?;
        edit(file, |text| {
            set(text, "state_dir", &state.display())?;
            set(text, "cgroup", &unified.display())?;
            text.push_str(&format!(
                "\n[telemetry.scope]\ncgroup = \"{}\"\nmemory = \"{}\"\ncpu = \"{}\"\ndevices = [\"{}\"]\nnetns = true\n",
                unified.display(),
                controller("memory").display(),
                controller("cpu").display(),
                disk.numbers(),
            ));
            Ok(())
        })
    }

    fn configure_coordinator(&self, n: usize, host: &Host, more: &str) -> Result<()> {
        let below = match host.disk() {
            Some(disk) => disk.mount_point(),
            None => self.bed.directory(),
        };
        let data = below.join(format!("coordinator-{n}"));
        edit(&self.config.join(format!("coordinator-{n}.toml")), |text| {
            set(text, "data_dir", &data.display())?;
            text.push_str(more);
            Ok(())
        })
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut String) -> Result<()>) -> Result<()> {
    let mut text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    change(&mut text)?;
    fs::write(path, text).with_context(|| path.display().to_string())
}

/// Gives the first `key = …` of a TOML text another string.
fn set(text: &mut String, key: &str, value: &impl std::fmt::Display) -> Result<()> {
    let mut done = false;
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            let found = !done
                && line
                    .strip_prefix(key)
                    .is_some_and(|rest| rest.trim_start().starts_with('='));
            done |= found;
            if found {
                format!("{key} = \"{value}\"")
            } else {
                line.to_owned()
            }
        })
        .collect();
    ensure!(done, "there is no `{key}` in what `understudy init` wrote");
    *text = lines.join("\n") + "\n";
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_key_of_a_configuration_changes() {
        let mut text = "id = 1\nstate_dir = \"/x\"  # why\n[t]\nstate_dir = \"/y\"\n".to_owned();
        set(&mut text, "state_dir", &"/z").expect("it is there");
        assert_eq!(text, "id = 1\nstate_dir = \"/z\"\n[t]\nstate_dir = \"/y\"\n");
        assert!(set(&mut text, "absent", &"").is_err());
    }
}
