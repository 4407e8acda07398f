//! A syncthing of a host's own: its configuration, its process, and its REST interface on the host's loopback.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use understudy_testbed::{Host, Process, wait_for};

const GUI_PORT: u16 = 8384;
const PORT: u16 = 22_000;
const FOLDER: &str = "bench";
const KEY: &str = "understudy-bench";
const READY_MAX: Duration = Duration::from_secs(60);

/// Its certificate is what it is known by.
pub(super) struct Device(String);

/// Makes a home with a certificate.
pub(super) fn identity(host: &Host, home: &Path) -> Result<Device> {
    let run = |words: &[&str]| -> Result<String> {
        let mut command = host.command("syncthing")?;
        command.args(words).arg("--home").arg(home).env("HOME", home);
        let output = command.output().context("starting syncthing")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "syncthing: {}", said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    run(&["generate", "--no-default-folder", "--skip-port-probing"])?;
    Ok(Device(run(&["--device-id"])?))
}

/// Ended when dropped.
pub(super) struct Instance {
    host: Arc<Host>,
    device: String,
    _process: Process,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Completion {
    global_bytes: u64,
    need_bytes: u64,
    need_items: u64,
}

impl Instance {
    /// Shares `data` between the two devices, and looks for changes only when it is asked.
    pub(super) fn start(
        host: &Arc<Host>,
        home: &Path,
        data: &Path,
        devices: &[(&Device, Ipv4Addr); 2],
    ) -> Result<Self> {
        let own = devices
            .iter()
            .find(|(_, address)| *address == host.address())
            .context("the host is one of the two")?;
        host.run(&["mkdir", "-p", &data.join("0").to_string_lossy()])?;
        fs::write(
            host.path(home).join("config.xml"),
            configuration(host.address(), data, devices),
        )
        .context("the configuration of syncthing")?;
        let mut command = host.command("syncthing")?;
        command
            .args(["serve", "--no-browser", "--no-restart", "--no-upgrade", "--home"])
            .arg(home)
            .env("HOME", home);
        let instance = Self {
            host: Arc::clone(host),
            device: own.0.0.clone(),
            _process: host.spawn("syncthing", command)?,
        };
        wait_for("syncthing to answer", READY_MAX, || {
            instance.ask("GET", "system/ping").ok()
        })?;
        Ok(instance)
    }

    pub(super) fn device(&self) -> &str {
        &self.device
    }

    /// Looks for changes; returns when it knows them.
    pub(super) fn scan(&self) -> Result<()> {
        self.ask("POST", &format!("db/scan?folder={FOLDER}")).map(drop)
    }

    /// Whether another device has everything that this one knows of.
    pub(super) fn is_complete(&self, device: &str) -> Result<bool> {
        let there: Completion =
            self.tell("GET", &format!("db/completion?folder={FOLDER}&device={device}"))?;
        Ok(there.global_bytes > 0 && there.need_bytes == 0 && there.need_items == 0)
    }

    fn tell<T: DeserializeOwned>(&self, method: &str, what: &str) -> Result<T> {
        let body = self.ask(method, what)?;
        serde_json::from_str(&body).with_context(|| format!("{what}: {body}"))
    }

    /// HTTP/1.0, so that the answer ends with the connection.
    fn ask(&self, method: &str, what: &str) -> Result<String> {
        let mut stream = self.host.inside(|| {
            TcpStream::connect((Ipv4Addr::LOCALHOST, GUI_PORT)).context("connecting to syncthing")
        })?;
        write!(
            stream,
            "{method} /rest/{what} HTTP/1.0\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\nContent-Length: 0\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
        ensure!(
            head.lines().next().is_some_and(|line| line.contains(" 200 ")),
            "{what}: {head}"
        );
        Ok(body.to_owned())
    }
}

/// Finds the other device by its address alone and talks to nobody else. The marker that it wants in each folder is
/// one that is there, so that the folder stays as it is.
fn configuration(own: Ipv4Addr, data: &Path, devices: &[(&Device, Ipv4Addr); 2]) -> String {
    let mut shares = String::new();
    let mut known = String::new();
    for (Device(id), address) in devices {
        shares.push_str(&format!("<device id=\"{id}\"/>"));
        known.push_str(&format!(
            "<device id=\"{id}\" name=\"{address}\"><address>tcp://{address}:{PORT}</address></device>"
        ));
    }
    format!(
        "<configuration version=\"36\">\
         <folder id=\"{FOLDER}\" path=\"{}\" type=\"sendreceive\" rescanIntervalS=\"0\" fsWatcherEnabled=\"false\">\
         {shares}<markerName>0</markerName></folder>{known}\
         <gui enabled=\"true\" tls=\"false\"><address>127.0.0.1:{GUI_PORT}</address><apikey>{KEY}</apikey></gui>\
         <options><listenAddress>tcp://{own}:{PORT}</listenAddress>\
         <globalAnnounceEnabled>false</globalAnnounceEnabled><localAnnounceEnabled>false</localAnnounceEnabled>\
         <relaysEnabled>false</relaysEnabled><natEnabled>false</natEnabled><startBrowser>false</startBrowser>\
         <urAccepted>-1</urAccepted><crashReportingEnabled>false</crashReportingEnabled>\
         <autoUpgradeIntervalH>0</autoUpgradeIntervalH><setLowPriority>false</setLowPriority>\
         <reconnectionIntervalS>1</reconnectionIntervalS></options></configuration>\n",
        data.display()
    )
}
