//! `understudy token`: makes, lists and revokes join tokens. The secret is made here; the cluster
//! gets only its hash.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use clap::Subcommand;
use serde::Deserialize;
use serde_json::json;
use understudy_common::identity::fingerprint;
use understudy_common::wire::Operate;

use super::ask::Cluster;
use super::table::{duration, render};
use super::{CliError, show};
use crate::token::{self, JoinToken, SECRET_BYTES};

const RANDOM: &str = "/dev/urandom";

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct TokenArgs {
    /// How long it can be used: 90s, 15m, 2h or 7d at most.
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = ttl_ms)]
    ttl: u64,
    /// The only name that the host may join with. With the name of a known host the newcomer
    /// becomes that host, and its certificates so far are refused.
    #[arg(long, value_name = "HOST")]
    name: Option<String>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// The tokens, spent ones included.
    List,
    /// Let nobody use a token any more.
    Revoke { number: u64 },
}

#[derive(Debug, Deserialize)]
struct Tokens {
    tokens: Vec<Token>,
}

#[derive(Debug, Deserialize)]
struct Token {
    number: u64,
    name: Option<String>,
    state: String,
    host: Option<u32>,
    expires_in_ms: u64,
}

pub(super) async fn run(cluster: &mut Cluster, args: TokenArgs, json: bool) -> Result<(), CliError> {
    match args.action {
        None => issue(cluster, args.ttl, args.name, json).await,
        Some(Action::List) => {
            let document = cluster.ask(Operate::Tokens).await?.unwrap_or_default();
            list(&document, json)
        }
        Some(Action::Revoke { number }) => {
            let answer = cluster.ask(Operate::RevokeToken { number }).await?;
            show::done(answer.as_deref(), &format!("token {number} is revoked"), json);
            Ok(())
        }
    }
}

async fn issue(cluster: &mut Cluster, ttl_ms: u64, name: Option<String>, json: bool) -> Result<(), CliError> {
    let secret = secret()?;
    let config = cluster.config();
    let token = JoinToken {
        secret,
        ca: fingerprint(config.credentials.ca()),
        coordinators: config.coordinators.iter().map(|member| member.addr).collect(),
    };
    let hash = token::hash(&secret);
    cluster.ask(Operate::IssueToken { hash, name, ttl_ms }).await?;
    let text = token.to_text();
    if json {
        println!("{}", json!({ "token": text, "expires_in_ms": ttl_ms }));
    } else {
        println!("{text}");
        let life = duration(ttl_ms.saturating_mul(1_000));
        eprintln!("for one host, within {life}: understudy join TOKEN --dir /etc/understudy");
    }
    Ok(())
}

fn secret() -> Result<[u8; SECRET_BYTES], CliError> {
    let mut secret = [0; SECRET_BYTES];
    File::open(RANDOM)
        .and_then(|mut random| random.read_exact(&mut secret))
        .map_err(|source| CliError::Read {
            path: PathBuf::from(RANDOM),
            source,
        })?;
    Ok(secret)
}

fn list(document: &str, json: bool) -> Result<(), CliError> {
    if json {
        println!("{document}");
        return Ok(());
    }
    let tokens: Tokens = serde_json::from_str(document)?;
    if tokens.tokens.is_empty() {
        println!("no tokens: understudy token");
        return Ok(());
    }
    let rows: Vec<_> = tokens.tokens.iter().map(row).collect();
    print!(
        "{}",
        render(&["token", "for", "state", "host", "expires in"], &rows)
    );
    Ok(())
}

fn row(token: &Token) -> Vec<String> {
    let left = match token.state.as_str() {
        "open" => duration(token.expires_in_ms.saturating_mul(1_000)),
        _ => "-".to_owned(),
    };
    vec![
        token.number.to_string(),
        token.name.clone().unwrap_or_else(|| "any".to_owned()),
        token.state.clone(),
        token.host.map_or("-".to_owned(), |host| format!("host-{host}")),
        left,
    ]
}

/// `15m` in milliseconds.
fn ttl_ms(text: &str) -> Result<u64, String> {
    let units = [("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    units
        .iter()
        .find_map(|(unit, ms)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*ms))
        .ok_or_else(|| format!("`{text}` is not a time, like 15m"))
}

#[cfg(test)]
mod tests {
    use super::ttl_ms;

    #[test]
    fn times_are_read_with_their_units() {
        for (text, ms) in [
            ("90s", 90_000),
            ("15m", 900_000),
            ("2h", 7_200_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(ttl_ms(text), Ok(ms));
        }
        for text in ["", "15", "m", "-1m", "99999999999999999999d", "1.5h"] {
            assert!(ttl_ms(text).is_err(), "{text}");
        }
    }
}
