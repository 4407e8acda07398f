//! Real links: first copy, final cut, promotion, and the way back of a host that crashed as primary.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use understudy_common::delta::{Answer, Frame, Identifiers};
use understudy_common::id::{Epoch, HostId, ServiceId};
use understudy_common::identity::{Credentials, Principal};
use understudy_common::spec::Consistency;
use understudy_common::wire::{self, CopyState, Peer, StreamKind};
use understudy_transport::Endpoint;

use super::pair::tree;
use crate::sync::scan::ScanSource;
use crate::sync::{Primary, PrimarySettings, Promoted, Shadow, ShadowSettings, ShadowStatus};

const PATIENCE: Duration = Duration::from_secs(60);

fn endpoints<const N: usize>() -> [Endpoint; N] {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate().expect("key");
    let ca = params.self_signed(&key).expect("CA").pem();
    let issuer = Issuer::new(params, key);
    std::array::from_fn(|at| {
        let host = at as u32 + 1;
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![Principal::Host(HostId(host)).dns_name()]).expect("name");
        let chain = params.signed_by(&key, &issuer).expect("signed").pem();
        let credentials =
            Credentials::from_pem(ca.as_bytes(), chain.as_bytes(), key.serialize_pem().as_bytes())
                .expect("sound");
        Endpoint::bind(([127, 0, 0, 1], 0).into(), &credentials).expect("bound")
    })
}

fn accept(endpoint: Endpoint, shadow: Shadow) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let shadow = shadow.clone();
            tokio::spawn(async move {
                let Ok(link) = incoming.handshake().await else {
                    return;
                };
                while let Ok(pending) = link.accept_bi().await {
                    if let Ok((_, sender, mut receiver)) = pending.kind().await {
                        // A refusal reaches the other side, which is where the test looks.
                        let Ok(Some(first)) = receiver.receive().await else {
                            return;
                        };
                        let _ = shadow.serve(link.principal(), first, sender, receiver).await;
                    }
                }
            });
        }
    })
}

struct Host {
    dir: PathBuf,
}

impl Host {
    fn new(dir: &Path, name: &str) -> Self {
        let dir = dir.join(name);
        fs::create_dir_all(dir.join("data")).expect("fresh");
        Self { dir }
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    async fn primary(
        &self,
        host: u32,
        epoch: u64,
        promoted: Option<Promoted>,
        endpoint: &Endpoint,
    ) -> Primary {
        let settings = PrimarySettings {
            service: ServiceId(1),
            name: "s".to_owned(),
            epoch: Epoch(epoch),
            host: HostId(host),
            paths: vec![self.data()],
            state_dir: self.dir.join("state"),
            consistency: Consistency::Live,
            freeze_ms_max: 50,
            scrub_bytes_s: 0,
            freezer: None,
            source: Box::new(ScanSource::new(vec![self.data()])),
            start: promoted.map(|promoted| (promoted.generation, promoted.manifest)),
        };
        Primary::start(settings, endpoint.clone()).await.expect("started")
    }

    async fn shadow(&self) -> Shadow {
        let settings = ShadowSettings {
            service: ServiceId(1),
            name: "s".to_owned(),
            paths: vec![self.data()],
            state_dir: self.dir.join("state"),
            scrub_bytes_s: 64 << 20,
        };
        Shadow::open(settings).await.expect("opened")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_primary_comes_back_as_a_shadow_and_keeps_what_diverged_aside() {
    let dir = tempfile::Builder::new()
        .prefix("ussync")
        .tempdir_in("/dev/shm")
        .expect("tmpfs");
    let [one, two] = endpoints();
    let (a, b) = (Host::new(dir.path(), "a"), Host::new(dir.path(), "b"));
    fs::write(a.data().join("big"), vec![7; 3_000_000]).expect("written");

    let shadow = b.shadow().await;
    shadow.set_primary(HostId(1), Epoch(1));
    let serving = accept(two.clone(), shadow.clone());
    let mut primary = a.primary(1, 1, None, &one).await;
    primary.set_shadows(vec![Peer {
        host: HostId(2),
        addr: two.local_addr().expect("bound"),
    }]);
    let cut = primary.final_cut(PATIENCE).await.expect("cut");
    assert_eq!(cut.acked_by, [HostId(2)]);
    assert!(primary.status().borrow().figures.full_bytes >= 3_000_000);
    primary.stop().await;
    serving.abort();
    let promoted = shadow.promote(Epoch(2)).await.expect("ready");
    assert_eq!(promoted.generation, cut.generation);
    assert_eq!(tree(&a.data()), tree(&b.data()));

    // A lives on for a moment as if it had crashed as primary: nobody else has this.
    let lonely = a.primary(1, 1, None, &one).await;
    drop(lonely);
    fs::write(a.data().join("big"), b"only here").expect("written");
    let returned = a.shadow().await;
    assert_eq!(returned.status().borrow().copy, CopyState::Warming);
    returned.set_primary(HostId(2), Epoch(2));
    let _serving = accept(one.clone(), returned.clone());
    fs::write(b.data().join("new"), b"after the takeover").expect("written");
    let mut primary = b.primary(2, 2, Some(promoted), &two).await;
    primary.set_shadows(vec![Peer {
        host: HostId(1),
        addr: one.local_addr().expect("bound"),
    }]);
    let cut = primary.final_cut(PATIENCE).await.expect("cut");
    assert_eq!(cut.acked_by, [HostId(1)]);
    let mut status = returned.status();
    let ready = status.wait_for(|status| status.copy == CopyState::Ready);
    let found = tokio::time::timeout(PATIENCE, ready)
        .await
        .expect("in time")
        .expect("open")
        .clone();
    assert_eq!(found.generation, Some(cut.generation));
    assert_eq!(found.figures.diverged_files, 1);
    assert_eq!(tree(&a.data()), tree(&b.data()));
    let kept = a
        .dir
        .join("state/diverged/s")
        .join(cut.generation.to_string())
        .join("0/big");
    assert_eq!(fs::read(kept).expect("kept"), b"only here");
    let error = returned.promote(Epoch(1)).await.expect_err("older");
    assert!(error.to_string().contains("older"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_something_else_writes_to_a_copy_is_found_and_mended() {
    let dir = tempfile::Builder::new()
        .prefix("ussync")
        .tempdir_in("/dev/shm")
        .expect("tmpfs");
    let [one, two] = endpoints();
    let (a, b) = (Host::new(dir.path(), "a"), Host::new(dir.path(), "b"));
    fs::write(a.data().join("big"), vec![7; 300_000]).expect("written");
    let shadow = b.shadow().await;
    shadow.set_primary(HostId(1), Epoch(1));
    let _serving = accept(two.clone(), shadow.clone());
    let mut primary = a.primary(1, 1, None, &one).await;
    primary.set_shadows(vec![Peer {
        host: HostId(2),
        addr: two.local_addr().expect("bound"),
    }]);
    let mut status = shadow.status();
    let mut until = async |wanted: fn(&ShadowStatus) -> bool| {
        let reached = tokio::time::timeout(PATIENCE, status.wait_for(wanted)).await;
        reached.expect("in time").expect("open").clone()
    };
    until(|status| status.copy == CopyState::Ready).await;
    let file = fs::File::options()
        .write(true)
        .open(b.data().join("big"))
        .expect("there");
    file.write_all_at(b"not the primary's", 100_000).expect("written");
    until(|status| status.copy == CopyState::Warming).await;
    let mended = until(|status| status.copy == CopyState::Ready).await;
    assert_eq!(mended.figures.missed_writes, 1);
    assert_eq!(tree(&a.data()), tree(&b.data()));
    primary.stop().await;
}

/// The last answer to these frames.
async fn say(from: &Endpoint, to: &Endpoint, frames: &[Vec<u8>]) -> Option<Answer> {
    let addr = to.local_addr().expect("bound");
    let link = from.dial(addr, Principal::Host(HostId(2))).await.expect("known");
    let (mut sender, mut receiver) = link.open_bi(StreamKind::Sync).await.expect("open");
    for frame in frames {
        sender.send(frame).await.expect("sent");
    }
    sender.finish();
    let mut last = None;
    while let Ok(Ok(Some(raw))) = tokio::time::timeout(PATIENCE, receiver.receive()).await {
        last = Some(wire::decode::<Answer>(&raw).expect("sound"));
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_a_stranger_of_an_old_epoch_or_of_garbage_are_refused_and_cost_nothing() {
    let dir = tempfile::Builder::new()
        .prefix("ussync")
        .tempdir_in("/dev/shm")
        .expect("tmpfs");
    let [one, two, three] = endpoints();
    let (a, b) = (Host::new(dir.path(), "a"), Host::new(dir.path(), "b"));
    fs::write(a.data().join("file"), b"acknowledged").expect("written");
    let shadow = b.shadow().await;
    let serving = accept(two.clone(), shadow.clone());
    let peer = Peer {
        host: HostId(2),
        addr: two.local_addr().expect("bound"),
    };
    shadow.set_primary(HostId(1), Epoch(2));
    let mut primary = a.primary(1, 2, None, &one).await;
    primary.set_shadows(vec![peer]);
    let cut = primary.final_cut(PATIENCE).await.expect("cut");
    assert_eq!(cut.acked_by, [HostId(2)]);
    primary.stop().await;
    // An acknowledged generation is in the journal; the files follow.
    let begun = std::time::Instant::now();
    let times = |host: &Host| {
        let time = |path: PathBuf| fs::metadata(path).and_then(|known| known.modified()).ok();
        (time(host.data()), time(host.data().join("file")))
    };
    while times(&b) != times(&a) {
        assert!(begun.elapsed() < PATIENCE, "the checkpoint does not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = tree(&b.data());

    let hello = |epoch: u64| {
        wire::encode(&Frame::Hello {
            service: ServiceId(1),
            epoch: Epoch(epoch),
            identifiers: Identifiers::default(),
        })
        .to_vec()
    };
    let ops = wire::encode(&Frame::Ops(Vec::new())).to_vec();
    let cases: [(&str, &Endpoint, Vec<Vec<u8>>, &str); 4] = [
        ("another host", &three, vec![hello(2)], "host-1 is its primary"),
        ("an old epoch", &one, vec![hello(1)], "its epoch is e2"),
        ("garbage", &one, vec![hello(2), vec![0xA5; 300]], "not a valid"),
        ("no begin", &one, vec![hello(2), ops], "operations before a begin"),
    ];
    for (what, from, frames, expected) in cases {
        let answer = say(from, &two, &frames).await;
        assert!(
            matches!(&answer, Some(Answer::Refused { why }) if why.contains(expected)),
            "{what}: {answer:?}"
        );
    }
    let status = shadow.status().borrow().clone();
    assert_eq!(
        (status.copy, status.generation),
        (CopyState::Ready, Some(cut.generation))
    );
    assert_eq!(tree(&b.data()), before);
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_barrier_is_answered_once_the_shadows_have_what_was_written_before() {
    let dir = tempfile::Builder::new()
        .prefix("ussync")
        .tempdir_in("/dev/shm")
        .expect("tmpfs");
    let [one, two] = endpoints();
    let (a, b) = (Host::new(dir.path(), "a"), Host::new(dir.path(), "b"));
    let mut primary = a.primary(1, 1, None, &one).await;
    let alone = primary.barrier(PATIENCE).await.expect("a cut");
    assert!(alone.acked_by.is_empty(), "there is nobody to wait for");

    let shadow = b.shadow().await;
    shadow.set_primary(HostId(1), Epoch(1));
    let serving = accept(two.clone(), shadow.clone());
    primary.set_shadows(vec![Peer {
        host: HostId(2),
        addr: two.local_addr().expect("bound"),
    }]);
    let mut last = alone.generation;
    for n in 0..5_u8 {
        fs::write(a.data().join("file"), vec![n; 50_000]).expect("written");
        let cut = primary.barrier(PATIENCE).await.expect("a cut");
        assert_eq!(cut.acked_by, [HostId(2)]);
        assert!(cut.generation > last, "it was begun afterwards");
        last = cut.generation;
        // The files follow the acknowledgement.
        let begun = Instant::now();
        while tree(&a.data()) != tree(&b.data()) {
            assert!(begun.elapsed() < PATIENCE, "the copy is not that of {last}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    // It takes nothing any more.
    shadow.close().await;
    let limit = Duration::from_millis(200);
    fs::write(a.data().join("file"), b"nobody has this").expect("written");
    let cut = primary.barrier(limit).await.expect("a cut");
    assert!(cut.acked_by.is_empty(), "nobody took it: {cut:?}");
    primary.stop().await;
    serving.abort();
}
