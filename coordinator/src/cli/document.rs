//! The coordinators' JSON documents as the CLI reads them. Fields that it does not know pass by.

use std::net::SocketAddr;

use serde::Deserialize;
use understudy_common::domain::Domain;

#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub leader: Option<u64>,
    #[serde(default)]
    pub coordinators: Vec<Coordinator>,
    #[serde(default)]
    pub hosts: Vec<Host>,
    #[serde(default)]
    pub services: Vec<Service>,
    pub prediction: Option<Prediction>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Coordinator {
    pub id: u64,
    pub role: String,
    pub term: Option<u64>,
    pub applied: Option<u64>,
    pub addr: Option<SocketAddr>,
    pub standing: Option<String>,
    #[serde(default)]
    pub reachable: bool,
    #[serde(default)]
    pub disk_full: bool,
    pub command_version: Option<u32>,
    #[serde(default)]
    pub software: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Host {
    pub id: u32,
    pub name: String,
    pub alive: bool,
    pub risk_bp: Option<u16>,
    #[serde(default)]
    pub safe_mode: bool,
    pub ebpf_source: Option<String>,
    #[serde(default)]
    pub domain: Domain,
    pub ebpf_programs: Option<u32>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Service {
    pub name: String,
    pub phase: String,
    pub epoch: u64,
    pub holder: Option<u32>,
    #[serde(default)]
    pub serving: bool,
    #[serde(default)]
    pub shadows: Vec<Shadow>,
    pub sync: Option<Sync>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Shadow {
    pub host: u32,
    pub copy: String,
    pub generation: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Sync {
    pub generations: u64,
    pub full_bytes: u64,
    pub delta_bytes: u64,
    pub lag_us_last: u64,
    pub freeze_us_p99: u64,
    pub unknown: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Prediction {
    pub state: String,
    pub why: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Events {
    pub events: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Event {
    pub seq: u64,
    pub at_ms: u64,
    pub kind: String,
    #[serde(default)]
    pub text: String,
}
