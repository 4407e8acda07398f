//! `understudy events`: pages through the events, and follows them.

use std::time::Duration;

use understudy_common::wire::Operate;

use super::ask::Cluster;
use super::document::{Event, Events};
use super::{CliError, show};

/// How often a follower asks for more.
const FOLLOW: Duration = Duration::from_millis(500);

/// Prints events after `after`. JSON is one document, or one event a line when following.
pub(super) async fn run(
    cluster: &mut Cluster,
    mut after: u64,
    follow: bool,
    json: bool,
) -> Result<(), CliError> {
    let mut all = Vec::new();
    loop {
        let page = cluster.ask(Operate::Events { after }).await?.unwrap_or_default();
        let page: Events = serde_json::from_str(&page)?;
        let empty = page.events.is_empty();
        for value in page.events {
            let event: Event = serde_json::from_value(value.clone())?;
            after = after.max(event.seq);
            match (json, follow) {
                (true, false) => all.push(value),
                (true, true) => println!("{value}"),
                (false, _) => println!("{}", show::event(&event)),
            }
        }
        if empty && !follow {
            break;
        }
        if empty {
            tokio::time::sleep(FOLLOW).await;
        }
    }
    if json {
        println!("{}", serde_json::json!({ "events": all }));
    }
    Ok(())
}
