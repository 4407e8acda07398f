//! A shadow loses its power: what it acknowledged is there when the lights come on.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::runtime::Runtime;
use understudy_agent::sync::scan::ScanSource;
use understudy_agent::sync::{Primary, PrimarySettings, Shadow, ShadowSettings};
use understudy_common::id::{Epoch, GenerationId, HostId, ServiceId};
use understudy_common::identity::{Credentials, Principal};
use understudy_common::spec::Consistency;
use understudy_common::wire::{CopyState, Peer};
use understudy_testbed::{Host, HostSpec, Testbed, skip_without_testbed, wait_for};
use understudy_transport::Endpoint;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const PATIENCE: Duration = Duration::from_secs(60);
/// Cuts at moments that nobody chose.
const ROUNDS: u64 = 3;
/// Bytes of a record: its number, over and over.
const RECORD: usize = 64;

fn credentials() -> Result<[Credentials; 2]> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate()?;
    let ca = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let of = |host| -> Result<Credentials> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec![Principal::Host(HostId(host)).dns_name()])?;
        let chain = params.signed_by(&key, &issuer)?.pem();
        let (ca, chain, key) = (ca.as_bytes(), chain.as_bytes(), key.serialize_pem());
        Ok(Credentials::from_pem(ca, chain, key.as_bytes())?)
    };
    Ok([of(1)?, of(2)?])
}

/// Both agents' engines in the shadow's host; the primary's files lie outside its disk.
struct Pair {
    primary: Primary,
    shadow: Shadow,
}

async fn pair(from: &Path, state: &Path, disk: &Path, epoch: u64) -> Result<Pair> {
    let [one, two] = credentials()?;
    let here = (ADDRESS, 0).into();
    let (one, two) = (Endpoint::bind(here, &one)?, Endpoint::bind(here, &two)?);
    let shadow = open(disk).await?;
    shadow.set_primary(HostId(1), Epoch(epoch));
    let (copy, incoming) = (shadow.clone(), two.clone());
    tokio::spawn(async move {
        while let Some(incoming) = incoming.accept().await {
            let Ok(link) = incoming.handshake().await else {
                return;
            };
            while let Ok(stream) = link.accept_bi().await {
                let Ok((_, sender, mut receiver)) = stream.kind().await else {
                    return;
                };
                let Ok(Some(first)) = receiver.receive().await else {
                    return;
                };
                // Its disk is going to fail.
                let _ = copy.serve(link.principal(), first, sender, receiver).await;
            }
        }
    });
    let settings = PrimarySettings {
        service: ServiceId(1),
        name: "s".to_owned(),
        epoch: Epoch(epoch),
        host: HostId(1),
        paths: vec![from.to_owned()],
        state_dir: state.to_owned(),
        consistency: Consistency::Live,
        freeze_ms_max: 50,
        scrub_bytes_s: 0,
        freezer: None,
        source: Box::new(ScanSource::new(vec![from.to_owned()])),
        start: None,
    };
    let mut primary = Primary::start(settings, one).await?;
    primary.set_shadows(vec![Peer {
        host: HostId(2),
        addr: two.local_addr()?,
    }]);
    Ok(Pair { primary, shadow })
}

async fn open(disk: &Path) -> Result<Shadow> {
    let settings = ShadowSettings {
        service: ServiceId(1),
        name: "s".to_owned(),
        paths: vec![disk.join("data")],
        state_dir: disk.join("state"),
        scrub_bytes_s: 0,
    };
    Ok(Shadow::open(settings).await?)
}

/// Appends numbered records until told to stop, and counts them.
fn write(file: PathBuf, count: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Result<()>> {
    std::thread::spawn(move || {
        let mut file = OpenOptions::new().create(true).append(true).open(file)?;
        while !stop.load(Ordering::SeqCst) {
            let n = count.load(Ordering::SeqCst);
            file.write_all(&[n as u8; RECORD])?;
            count.store(n + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })
}

/// Records that the shadow has surely acknowledged: those that were there two generations ago.
fn acknowledged(pair: &Pair, count: &AtomicU64) -> Result<u64> {
    let status = pair.primary.status();
    let count = count.load(Ordering::SeqCst);
    let cut = status.borrow().generation.map_or(0, |generation| generation.n);
    wait_for("the shadow to acknowledge", PATIENCE, || {
        let acked = status.borrow().acked.first().map(|(_, generation)| generation.n);
        acked.filter(|acked| *acked >= cut + 2)
    })?;
    Ok(count)
}

fn round(host: &Arc<Host>, from: &Path, disk: &Path, n: u64) -> Result<()> {
    let (count, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let file = from.join(format!("log{n}"));
    let state = from.with_file_name("state");
    let durable = host.inside(|| {
        let runtime = Runtime::new()?;
        let pair = runtime.block_on(pair(from, &state, disk, n))?;
        let writer = write(file, Arc::clone(&count), Arc::clone(&stop));
        let mut durable = 0;
        for _ in 0..5 * n {
            durable = acknowledged(&pair, &count)?;
        }
        host.cut_power()?;
        stop.store(true, Ordering::SeqCst);
        writer
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        runtime.block_on(pair.primary.stop());
        drop(pair.shadow);
        runtime.shutdown_timeout(PATIENCE);
        Ok(durable)
    })?;
    ensure!(durable > 0, "nothing was acknowledged");
    host.restore_power()?;
    let (copy, generation) = host.inside(|| {
        let shadow = Runtime::new()?.block_on(open(disk))?;
        let status = shadow.status().borrow().clone();
        Ok((status.copy, status.generation))
    })?;
    // Ready means that every byte was hashed and is that of the sealed generation.
    assert_eq!(copy, CopyState::Ready, "round {n}");
    assert!(generation.is_some_and(|found| found
        > GenerationId {
            epoch: Epoch(n),
            n: 0
        }));
    let there = fs::read(host.path(&disk.join("data")).join(format!("log{n}")))?;
    let records = there.len() as u64 / RECORD as u64;
    assert!(
        records >= durable,
        "round {n}: {records} of {durable} acknowledged records"
    );
    let whole = there
        .chunks(RECORD)
        .enumerate()
        .all(|(n, record)| record.iter().all(|byte| *byte == n as u8));
    assert!(
        whole,
        "round {n}: the records are those that were written, in their order"
    );
    Ok(())
}

#[test]
fn what_a_shadow_acknowledged_survives_its_power_cut() -> Result<()> {
    skip_without_testbed!();
    let mut bed = Testbed::start("shadowpower")?;
    let host = bed.add(HostSpec::new("b", ADDRESS).disk_mib(128))?;
    let home = tempfile::tempdir().context("a place for the primary")?;
    let from = home.path().join("from");
    fs::create_dir(&from)?;
    for n in 1..=ROUNDS {
        round(&host, &from, &bed.disk_mount_point(), n)?;
    }
    Ok(())
}
