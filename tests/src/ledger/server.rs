//! The server: `understudy-ledger DIR PORT HOST-FILE`.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::store::Ledger;
use super::{APPEND, Answer, DUMP, PING, REQUEST_BYTES};

/// Further connections are closed at once.
const CONNECTIONS_MAX: usize = 64;
/// A client that is silent for so long was cut off.
const SILENCE_MAX: Duration = Duration::from_secs(20);

struct Server {
    ledger: Mutex<Ledger>,
    host: u8,
    incarnation: u64,
    connections: AtomicUsize,
}

/// Serves until the process is ended.
///
/// # Errors
/// When the ledger cannot be opened or the port cannot be had.
pub fn serve(arguments: &[String]) -> Result<()> {
    let [dir, port, host_file] = arguments else {
        bail!("understudy-ledger DIR PORT HOST-FILE");
    };
    let host = fs::read_to_string(host_file).with_context(|| host_file.clone())?;
    let mut random = [0; 8];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let server = Arc::new(Server {
        ledger: Mutex::new(Ledger::open(Path::new(dir))?),
        host: host.trim().parse().with_context(|| host_file.clone())?,
        incarnation: u64::from_le_bytes(random),
        connections: AtomicUsize::new(0),
    });
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port.parse()?))?;
    loop {
        let (stream, _) = listener.accept()?;
        if server.connections.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
            server.connections.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let server = Arc::clone(&server);
        thread::spawn(move || {
            // A client that went away is no trouble of the server's.
            let _ = server.answer_all(stream);
            server.connections.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

impl Server {
    fn answer_all(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        let mut request = [0; REQUEST_BYTES];
        loop {
            stream.read_exact(&mut request)?;
            let [kind, number @ ..] = request;
            let bytes = self.answer(kind, u64::from_le_bytes(number))?;
            stream.write_all(&bytes)?;
        }
    }

    fn answer(&self, kind: u8, number: u64) -> Result<Vec<u8>> {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let done = match kind {
            PING | DUMP => true,
            APPEND => match ledger.append(number) {
                Ok(()) => true,
                Err(why) => {
                    // The log may lie on the disk that is full.
                    let _ = writeln!(io::stderr(), "{number} was not appended: {why:#}");
                    false
                }
            },
            other => bail!("{other} is no request"),
        };
        let head = Answer {
            done,
            host: self.host,
            incarnation: self.incarnation,
            records: ledger.ids().len() as u64,
        };
        let mut bytes = head.encode().to_vec();
        if kind == DUMP {
            bytes.extend(ledger.ids().iter().flat_map(|id| id.to_le_bytes()));
        }
        Ok(bytes)
    }
}
