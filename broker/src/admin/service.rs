//! The calls of the admin API, each from request to answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use outstation_api::admin as api;
use outstation_api::admin::admin_server::Admin;
use outstation_protocol::envelope::Envelope;
use outstation_protocol::ids::{DataPlaneName, RoleId, RoleName};
use outstation_protocol::order::Order;
use outstation_protocol::{AgentId, DataPlane, GroupName, TenantId};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::{error, info};

use super::convert;
use super::tail::Tail;
use crate::clock;
use crate::served::Served;
use crate::store::events::Filter;
use crate::store::orders::{Conflict, GroupRecord, PutVerdict};
use crate::store::planes::{Registration, Taken};
use crate::store::tokens::{JoinToken, OPEN_TOKENS_MAX};
use crate::store::{Change, Changed, Store, StoreError};

/// Of groups and of events together. One costs a task and at most [`WATCH_AHEAD_MAX`] groups, or
/// a batch of events.
const WATCHES_MAX: usize = 64;
/// Groups that wait for a slow watcher; what changes meanwhile is read when there is room.
const WATCH_AHEAD_MAX: usize = 16;
/// Events that wait for a slow reader; what comes meanwhile is read from the log when there is room.
const EVENTS_AHEAD_MAX: usize = 64;
/// A token that lies around for longer is forgotten rather than awaited.
const TOKEN_VALID_SECS_MAX: u32 = 7 * 24 * 3600;

#[derive(Clone)]
pub struct AdminService {
    tenant: TenantId,
    served: Served,
    store: Store,
    watches: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl AdminService {
    pub fn new(
        tenant: TenantId,
        served: Served,
        store: Store,
        stopping: CancellationToken,
    ) -> AdminService {
        let watches = Arc::new(Semaphore::new(WATCHES_MAX));
        AdminService { tenant, served, store, watches, stopping }
    }

    /// A data plane of a request, if this broker serves it.
    async fn served(&self, raw: Option<api::DataPlane>) -> Result<DataPlane, Status> {
        let raw = raw.ok_or_else(|| Status::invalid_argument("the request names no data plane"))?;
        let data_plane = convert::read_data_plane(raw).map_err(|error| invalid(&error))?;
        self.check_served(&data_plane).await?;
        Ok(data_plane)
    }

    /// Runs a watch until it ends, its reader is gone, or the broker stops.
    fn spawn_watch<T: Send + 'static>(
        &self,
        sender: mpsc::Sender<Result<T, Status>>,
        watch: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), Status> {
        let permit = Arc::clone(&self.watches).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{WATCHES_MAX} watches are open already"))
        })?;
        let stopping = self.stopping.clone();
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = stopping.cancelled() => {
                    // Dropping the stream would look like its regular end.
                    let _ = sender.try_send(Err(Status::unavailable("the broker is restarting")));
                }
                () = sender.closed() => {}
                () = watch => {}
            }
        });
        Ok(())
    }

    async fn check_served(&self, data_plane: &DataPlane) -> Result<(), Status> {
        if self.served.contains(data_plane).await.map_err(internal)? {
            return Ok(());
        }
        let message = format!("this broker does not serve data plane {data_plane}");
        Err(Status::failed_precondition(message))
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn list_groups(
        &self,
        request: Request<api::ListGroupsRequest>,
    ) -> Result<Response<api::ListGroupsResponse>, Status> {
        let data_plane = self.served(request.into_inner().data_plane).await?;
        let records = self.store.groups(data_plane).await.map_err(internal)?;
        let groups = records.into_iter().map(convert::group).collect();
        Ok(Response::new(api::ListGroupsResponse { groups }))
    }

    async fn get_group(
        &self,
        request: Request<api::GetGroupRequest>,
    ) -> Result<Response<api::Group>, Status> {
        let request = request.into_inner();
        let data_plane = self.served(request.data_plane).await?;
        let name = GroupName::try_from(request.name).map_err(|error| invalid(&error))?;
        let missing = format!("no order for group {name} was ever put in data plane {data_plane}");
        let record = self.store.group(data_plane, name).await.map_err(internal)?;
        record
            .map(|record| Response::new(convert::group(record)))
            .ok_or_else(|| Status::not_found(missing))
    }

    type WatchGroupsStream = ReceiverStream<Result<api::Group, Status>>;

    async fn watch_groups(
        &self,
        request: Request<api::WatchGroupsRequest>,
    ) -> Result<Response<Self::WatchGroupsStream>, Status> {
        let request = request.into_inner();
        let data_plane = self.served(request.data_plane).await?;
        let only = only(request.name)?;
        let (groups, stream) = mpsc::channel(WATCH_AHEAD_MAX);
        let watch = Watch {
            store: self.store.clone(),
            changes: self.store.changes(),
            data_plane,
            only,
            groups: groups.clone(),
        };
        self.spawn_watch(groups, watch.run())?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type WatchEventsStream = ReceiverStream<Result<api::WatchEventsResponse, Status>>;

    async fn watch_events(
        &self,
        request: Request<api::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let request = request.into_inner();
        let data_plane = self.served(request.data_plane).await?;
        let filter =
            Filter { group: only(request.group)?, since_unix_secs: request.since_unix_secs };
        let (events, stream) = mpsc::channel(EVENTS_AHEAD_MAX);
        let tail = Tail {
            store: self.store.clone(),
            written: self.store.written(),
            data_plane,
            filter,
            follow: request.follow,
            events: events.clone(),
        };
        self.spawn_watch(events, tail.run(convert::read_after(request.after)))?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn put_order(
        &self,
        request: Request<api::PutOrderRequest>,
    ) -> Result<Response<api::PutOrderResponse>, Status> {
        let json = request.into_inner().envelope;
        let envelope = Envelope::from_json(&json).map_err(|error| invalid(&error))?;
        let order = Order::from_envelope(&envelope).map_err(|error| invalid(&error))?;
        if order.tenant != self.tenant {
            let message = format!(
                "the order is of tenant {}, this broker's is {}",
                order.tenant, self.tenant
            );
            return Err(Status::failed_precondition(message));
        }
        self.check_served(&order.data_plane).await?;

        let (group, generation, digest) =
            (order.group.clone(), order.generation, envelope.digest());
        let data_plane = order.data_plane.clone();
        let verdict =
            self.store.put_order(order, envelope, clock::unix_secs()).await.map_err(internal)?;
        match verdict {
            PutVerdict::Stored => {
                info!(%data_plane, %group, %generation, digest = %digest.short(), "order stored");
            }
            PutVerdict::StoredBefore => {}
            PutVerdict::Conflict(conflict) => {
                info!(%data_plane, %group, %generation, digest = %digest.short(), %conflict, "order not stored");
                return Err(conflicted(&conflict));
            }
        }
        let digest = digest.to_string();
        Ok(Response::new(api::PutOrderResponse { generation: generation.0, digest }))
    }

    async fn create_join_token(
        &self,
        request: Request<api::CreateJoinTokenRequest>,
    ) -> Result<Response<api::CreateJoinTokenResponse>, Status> {
        let request = request.into_inner();
        let data_plane = self.served(request.data_plane).await?;
        if !(1..=TOKEN_VALID_SECS_MAX).contains(&request.valid_secs) {
            let message = format!("valid_secs must be 1 to {TOKEN_VALID_SECS_MAX}");
            return Err(Status::invalid_argument(message));
        }
        let registered = self.store.registration(data_plane.clone()).await.map_err(internal)?;
        if let Some(Registration { name, role, .. }) = registered {
            let message = format!(
                "data plane {name} is registered with role {role}: its agents enroll with that, \
                 not with a join token"
            );
            return Err(Status::failed_precondition(message));
        }
        let token = JoinToken::generate();
        let now = clock::unix_secs();
        let expires_at_unix_secs = now + u64::from(request.valid_secs);
        let added = self
            .store
            .add_token(&token, data_plane.clone(), expires_at_unix_secs, now)
            .await
            .map_err(internal)?;
        if !added {
            let message = format!("{OPEN_TOKENS_MAX} unused join tokens are open already");
            return Err(Status::resource_exhausted(message));
        }
        info!(%data_plane, token = %token.id(), expires_at_unix_secs, "join token made");
        let token = token.reveal();
        Ok(Response::new(api::CreateJoinTokenResponse { token, expires_at_unix_secs }))
    }

    async fn list_agents(
        &self,
        _request: Request<api::ListAgentsRequest>,
    ) -> Result<Response<api::ListAgentsResponse>, Status> {
        let records = self.store.agents().await.map_err(internal)?;
        let agents = records.into_iter().map(convert::agent).collect();
        Ok(Response::new(api::ListAgentsResponse { agents }))
    }

    async fn revoke_agent(
        &self,
        request: Request<api::RevokeAgentRequest>,
    ) -> Result<Response<api::Agent>, Status> {
        let id = AgentId::try_from(request.into_inner().id).map_err(|error| invalid(&error))?;
        let missing = format!("there is no agent {id}");
        let revoked = self.store.revoke(id, clock::unix_secs()).await.map_err(internal)?;
        let revoked = revoked.ok_or_else(|| Status::not_found(missing))?;
        info!(agent = %revoked.id, data_plane = %revoked.data_plane, "agent revoked");
        Ok(Response::new(convert::agent(revoked)))
    }

    async fn add_data_plane(
        &self,
        request: Request<api::AddDataPlaneRequest>,
    ) -> Result<Response<api::RegisteredDataPlane>, Status> {
        let asked = request.into_inner().data_plane;
        let asked = asked.ok_or_else(|| Status::invalid_argument("no data plane is named"))?;
        let registered =
            self.store.register(read_registration(asked)?).await.map_err(internal)?.map_err(
                |taken| match taken {
                    Taken::Name(_) | Taken::DataPlane { .. } => {
                        Status::already_exists(taken.to_string())
                    }
                    Taken::TooMany => Status::resource_exhausted(taken.to_string()),
                },
            )?;
        let Registration { name, data_plane, role, role_id, .. } = &registered;
        info!(%name, %data_plane, %role, %role_id, "data plane registered");
        Ok(Response::new(convert::registration(registered)))
    }

    async fn list_data_planes(
        &self,
        _request: Request<api::ListDataPlanesRequest>,
    ) -> Result<Response<api::ListDataPlanesResponse>, Status> {
        let registered = self.store.registrations().await.map_err(internal)?;
        let configured = self.served.configured().iter();
        let by_token = configured
            .filter(|plane| registered.iter().all(|found| found.data_plane != **plane))
            .map(convert::data_plane)
            .collect();
        let registered = registered.into_iter().map(convert::registration).collect();
        Ok(Response::new(api::ListDataPlanesResponse { registered, by_token }))
    }

    async fn remove_data_plane(
        &self,
        request: Request<api::RemoveDataPlaneRequest>,
    ) -> Result<Response<api::RegisteredDataPlane>, Status> {
        let name = DataPlaneName::try_from(request.into_inner().name);
        let name = name.map_err(|error| invalid(&error))?;
        let missing = format!("no data plane is registered as {name}");
        let removed = self.store.unregister(name).await.map_err(internal)?;
        let removed = removed.ok_or_else(|| Status::not_found(missing))?;
        info!(name = %removed.name, data_plane = %removed.data_plane, "data plane removed");
        Ok(Response::new(convert::registration(removed)))
    }
}

fn read_registration(raw: api::RegisteredDataPlane) -> Result<Registration, Status> {
    let data_plane = raw
        .data_plane
        .ok_or_else(|| Status::invalid_argument("the request names no account and region"))?;
    Ok(Registration {
        name: DataPlaneName::try_from(raw.name).map_err(|error| invalid(&error))?,
        data_plane: convert::read_data_plane(data_plane).map_err(|error| invalid(&error))?,
        role: RoleName::try_from(raw.role).map_err(|error| invalid(&error))?,
        role_id: RoleId::try_from(raw.role_id).map_err(|error| invalid(&error))?,
        added_at_unix_secs: clock::unix_secs(),
    })
}

/// One watcher. It is sent states, not events: what changed twice while it was slow comes once.
struct Watch {
    store: Store,
    /// Subscribed before the first read.
    changes: broadcast::Receiver<Change>,
    data_plane: DataPlane,
    only: Option<GroupName>,
    groups: mpsc::Sender<Result<api::Group, Status>>,
}

/// What a watcher has not seen.
enum Unseen {
    All,
    Some(BTreeSet<GroupName>),
}

impl Watch {
    /// Until the watcher goes away.
    async fn run(mut self) {
        let mut unseen = Unseen::All;
        loop {
            let records = match self.read(unseen).await {
                Ok(records) => records,
                Err(error) => {
                    let _ = self.groups.send(Err(internal(error))).await;
                    return;
                }
            };
            for record in records {
                if self.groups.send(Ok(convert::group(record))).await.is_err() {
                    return;
                }
            }
            unseen = self.next().await;
        }
    }

    async fn read(&self, unseen: Unseen) -> Result<Vec<GroupRecord>, StoreError> {
        let names = match (unseen, &self.only) {
            (Unseen::All, None) => return self.store.groups(self.data_plane.clone()).await,
            (Unseen::All, Some(only)) => BTreeSet::from([only.clone()]),
            (Unseen::Some(names), _) => names,
        };
        let mut records = Vec::new();
        for name in names {
            records.extend(self.store.group(self.data_plane.clone(), name).await?);
        }
        Ok(records)
    }

    /// Waits for a change that concerns this watch, then takes all that are waiting.
    async fn next(&mut self) -> Unseen {
        let mut names = BTreeSet::new();
        while names.is_empty() {
            match self.changes.recv().await {
                Ok(change) => names.extend(self.concerning(change)),
                Err(RecvError::Lagged(_)) => return self.skip(),
                // The store is held by this watch: it cannot be gone.
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
        loop {
            match self.changes.try_recv() {
                Ok(change) => names.extend(self.concerning(change)),
                Err(TryRecvError::Lagged(_)) => return self.skip(),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return Unseen::Some(names),
            }
        }
    }

    fn concerning(&self, change: Change) -> Option<GroupName> {
        let group = match change.what {
            Changed::Order(group) | Changed::Answer(group) => group,
            Changed::AgentLeft | Changed::Access => return None,
        };
        let named = self.only.as_ref().is_none_or(|only| *only == group);
        (named && change.data_plane == self.data_plane).then_some(group)
    }

    /// Too far behind: everything is read again, so what waits need not be looked at.
    fn skip(&mut self) -> Unseen {
        self.changes = self.store.changes();
        Unseen::All
    }
}

/// The group that a request names; empty is all of them.
fn only(name: String) -> Result<Option<GroupName>, Status> {
    if name.is_empty() {
        return Ok(None);
    }
    GroupName::try_from(name).map(Some).map_err(|error| invalid(&error))
}

fn invalid(error: &dyn std::error::Error) -> Status {
    Status::invalid_argument(crate::chain(error))
}

fn conflicted(conflict: &Conflict) -> Status {
    match conflict {
        Conflict::Generation { .. } | Conflict::Parent { .. } | Conflict::Taken { .. } => {
            Status::aborted(conflict.to_string())
        }
        Conflict::TooManyGroups { .. } => Status::resource_exhausted(conflict.to_string()),
    }
}

/// The details are for our log, not for the caller.
pub(super) fn internal(error: StoreError) -> Status {
    error!(error = crate::chain(&error), hint = error.hint(), "the store failed");
    if error.is_disk_full() {
        return Status::resource_exhausted("the broker's disk is full: nothing was stored");
    }
    Status::internal("the broker's store failed; its log says why")
}
