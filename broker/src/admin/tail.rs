//! One reader of the event log. It is sent every event once, however slow it is: what it has not
//! taken stays in the log, and is read again when there is room.

use outstation_api::admin as api;
use outstation_api::admin::watch_events_response::What;
use outstation_protocol::DataPlane;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::convert;
use super::service::internal;
use crate::store::Store;
use crate::store::events::{After, Batch, Filter};

pub struct Tail {
    pub store: Store,
    pub written: watch::Receiver<()>,
    pub data_plane: DataPlane,
    pub filter: Filter,
    pub follow: bool,
    pub events: mpsc::Sender<Result<api::WatchEventsResponse, Status>>,
}

impl Tail {
    /// Until the reader goes away; without `follow`, until it has everything.
    pub async fn run(mut self, mut after: After) {
        let mut first = true;
        loop {
            // Marked as seen before reading: what is written from here on wakes us again.
            self.written.mark_unchanged();
            let batch =
                self.store.events(self.data_plane.clone(), self.filter.clone(), after.clone());
            let batch = match batch.await {
                Ok(batch) => batch,
                Err(error) => {
                    let _ = self.events.send(Err(internal(error))).await;
                    return;
                }
            };
            let (reached, newest) = (After::Cursor(batch.reached.clone()), batch.newest);
            // Once it has heard where it stands, a reader need not be told that nothing is new.
            if std::mem::take(&mut first) || after != reached {
                for message in messages(batch) {
                    let message = api::WatchEventsResponse { what: Some(message) };
                    if self.events.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
                after = reached;
            }
            if !newest {
                continue;
            }
            // The store is held by this reader: it cannot be gone.
            if !self.follow || self.written.changed().await.is_err() {
                return;
            }
        }
    }
}

fn messages(batch: Batch) -> Vec<What> {
    let Batch { gap, events, reached, newest } = batch;
    let gap = gap.map(|gap| What::Gap(convert::gap(gap)));
    let events = events.into_iter().map(|it| What::Event(convert::event(&reached.log, it)));
    let mut messages: Vec<What> = gap.into_iter().chain(events).collect();
    messages.push(What::Reached(convert::reached(reached, newest)));
    messages
}
