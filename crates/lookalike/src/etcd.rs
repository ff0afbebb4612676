//! A client of etcd's own gRPC interface, as far as it is needed here, and the child process that serves it.
//!
//! In and out: keys and values as text (all that DM keeps there is text), lease ids, member lists. Several endpoints
//! are tried in turn; an error says which call failed and what the last one answered. Field numbers:
//! etcd api/etcdserverpb/rpc.proto and api/mvccpb/kv.proto.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::{Message, Oneof};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::tls;

const ANSWER_WITHIN: Duration = Duration::from_secs(3);
const CONNECT_WITHIN: Duration = Duration::from_secs(1);

#[derive(Clone, Message)]
pub(crate) struct Header {
    #[prost(uint64, tag = "2")]
    pub(crate) member_id: u64,
    #[prost(int64, tag = "3")]
    pub(crate) revision: i64,
}

#[derive(Clone, Message)]
pub(crate) struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) key: Vec<u8>,
    #[prost(int64, tag = "2")]
    pub(crate) create_revision: i64,
    #[prost(int64, tag = "3")]
    pub(crate) mod_revision: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub(crate) value: Vec<u8>,
}

#[derive(Clone, Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
}

#[derive(Clone, Message)]
pub(crate) struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<Header>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) kvs: Vec<KeyValue>,
}

#[derive(Clone, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
    #[prost(int64, tag = "3")]
    lease: i64,
}

#[derive(Clone, Message)]
struct DeleteRangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, Message)]
struct Compare {
    /// 0 equal, 1 greater, 2 less, 3 not equal.
    #[prost(int32, tag = "1")]
    result: i32,
    /// 1: the revision of creation; 0 if there is no such key.
    #[prost(int32, tag = "2")]
    target: i32,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(oneof = "Target", tags = "5")]
    value: Option<Target>,
}

#[derive(Clone, Oneof)]
enum Target {
    #[prost(int64, tag = "5")]
    CreateRevision(i64),
}

#[derive(Clone, Message)]
struct RequestOp {
    #[prost(oneof = "Op", tags = "2, 3")]
    op: Option<Op>,
}

#[derive(Clone, Oneof)]
enum Op {
    #[prost(message, tag = "2")]
    Put(PutRequest),
    #[prost(message, tag = "3")]
    Delete(DeleteRangeRequest),
}

#[derive(Clone, Message)]
struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
}

#[derive(Clone, Message)]
struct TxnResponse {
    #[prost(bool, tag = "2")]
    succeeded: bool,
}

#[derive(Clone, Message)]
struct LeaseGrantRequest {
    #[prost(int64, tag = "1")]
    ttl: i64,
}

#[derive(Clone, Message)]
struct LeaseGrantResponse {
    #[prost(int64, tag = "2")]
    id: i64,
}

#[derive(Clone, Message)]
struct LeaseId {
    #[prost(int64, tag = "1")]
    id: i64,
}

#[derive(Clone, Message)]
struct LeaseKeepAliveResponse {
    #[prost(int64, tag = "3")]
    ttl: i64,
}

#[derive(Clone, Message)]
struct Empty {}

#[derive(Clone, Message)]
pub(crate) struct EtcdMember {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) peer_urls: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub(crate) client_urls: Vec<String>,
}

#[derive(Clone, Message)]
struct MemberListResponse {
    #[prost(message, repeated, tag = "2")]
    members: Vec<EtcdMember>,
}

#[derive(Clone, Message)]
struct MemberAddRequest {
    #[prost(string, repeated, tag = "1")]
    peer_urls: Vec<String>,
}

#[derive(Clone, Message)]
struct MemberAddResponse {
    #[prost(message, repeated, tag = "3")]
    members: Vec<EtcdMember>,
}

#[derive(Clone, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, Message)]
struct MoveLeaderRequest {
    #[prost(uint64, tag = "1")]
    target: u64,
}

#[derive(Clone, Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreateRequest>,
}

#[derive(Clone, Message)]
struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    start_revision: i64,
}

#[derive(Clone, Message)]
pub(crate) struct WatchResponse {
    #[prost(bool, tag = "4")]
    pub(crate) canceled: bool,
    #[prost(message, repeated, tag = "11")]
    pub(crate) events: Vec<WatchEvent>,
}

#[derive(Clone, Message)]
pub(crate) struct WatchEvent {
    #[prost(message, optional, tag = "2")]
    pub(crate) kv: Option<KeyValue>,
}

/// A write within a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    Put(String, String),
    Delete(String),
}

#[derive(Debug, thiserror::Error)]
#[error("etcd {call}: {status}")]
pub(crate) struct EtcdError {
    call: &'static str,
    status: String,
}

/// Channels to every endpoint; the one that answered last comes first.
#[derive(Clone)]
pub(crate) struct Etcd {
    channels: Arc<Mutex<Vec<(String, Channel)>>>,
    preferred: Arc<AtomicUsize>,
}

/// `http://host:port` (`https` with TLS) of etcd's client interface behind a dm-master's address `host:port`.
///
/// The real dm-master serves etcd on its own port; here etcd is a process of its own, 10 000 ports further.
pub(crate) fn client_url(master: &str) -> Option<String> {
    let bare = tls::bare(master).trim_end_matches('/');
    let (host, port) = bare.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let port = port.checked_add(10_000).unwrap_or_else(|| port - 10_000);
    Some(format!("{}://{host}:{port}", tls::scheme()))
}

impl Etcd {
    /// Connects lazily to the etcd of each master.
    pub(crate) fn of_masters<'a>(masters: impl IntoIterator<Item = &'a str>) -> Self {
        let etcd = Self { channels: Arc::default(), preferred: Arc::default() };
        for master in masters {
            etcd.add_master(master);
        }
        etcd
    }

    /// Adds the etcd of one more master, if it is not known.
    pub(crate) fn add_master(&self, master: &str) {
        let Some(url) = client_url(master) else { return };
        let Ok(endpoint) = tls::endpoint(&url) else { return };
        let mut channels = self.channels.lock().expect("no panic under this lock");
        if channels.iter().all(|(known, _)| *known != url) {
            channels.push((url, endpoint.connect_timeout(CONNECT_WITHIN).connect_lazy()));
        }
    }

    fn in_order(&self) -> Vec<(usize, Channel)> {
        let channels = self.channels.lock().expect("no panic under this lock");
        let first = self.preferred.load(Ordering::Relaxed);
        let count = channels.len();
        (0..count).map(|i| (first + i) % count).map(|i| (i, channels[i].1.clone())).collect()
    }

    async fn call<Req, Resp>(&self, path: &'static str, request: Req) -> Result<Resp, EtcdError>
    where
        Req: Message + Default + Clone + 'static,
        Resp: Message + Default + 'static,
    {
        let mut last = "no endpoint".to_owned();
        for (i, channel) in self.in_order() {
            match unary(channel, path, request.clone(), ANSWER_WITHIN).await {
                Ok(answer) => {
                    self.preferred.store(i, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(status) => last = format!("{:?}: {}", status.code(), status.message()),
            }
        }
        Err(EtcdError { call: path, status: last })
    }

    /// All keys that begin with `prefix`, from a member that has quorum.
    pub(crate) async fn range(&self, prefix: &str) -> Result<RangeResponse, EtcdError> {
        let request = RangeRequest { key: prefix.into(), range_end: prefix_end(prefix) };
        self.call("/etcdserverpb.KV/Range", request).await
    }

    /// Puts a key under a lease (0: none).
    pub(crate) async fn put(&self, key: &str, value: &str, lease: i64) -> Result<(), EtcdError> {
        let request = PutRequest { key: key.into(), value: value.into(), lease };
        self.call::<_, Empty>("/etcdserverpb.KV/Put", request).await.map(drop)
    }

    /// Writes all or nothing; `Ok(false)` if `while_exists` is gone.
    pub(crate) async fn write(
        &self,
        while_exists: Option<&str>,
        writes: Vec<Write>,
    ) -> Result<bool, EtcdError> {
        let compare = while_exists
            .map(|key| Compare {
                result: 3,
                target: 1,
                key: key.into(),
                value: Some(Target::CreateRevision(0)),
            })
            .into_iter()
            .collect();
        let success = writes
            .into_iter()
            .map(|write| match write {
                Write::Put(key, value) => Op::Put(PutRequest {
                    key: key.into_bytes(),
                    value: value.into_bytes(),
                    lease: 0,
                }),
                Write::Delete(key) => Op::Delete(DeleteRangeRequest { key: key.into_bytes() }),
            })
            .map(|op| RequestOp { op: Some(op) })
            .collect();
        let answer: TxnResponse =
            self.call("/etcdserverpb.KV/Txn", TxnRequest { compare, success }).await?;
        Ok(answer.succeeded)
    }

    /// A new lease.
    pub(crate) async fn grant(&self, ttl_s: i64) -> Result<i64, EtcdError> {
        let answer: LeaseGrantResponse =
            self.call("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { ttl: ttl_s }).await?;
        Ok(answer.id)
    }

    /// Gives a lease back, and with it every key under it.
    pub(crate) async fn revoke(&self, lease: i64) -> Result<(), EtcdError> {
        self.call::<_, Empty>("/etcdserverpb.Lease/LeaseRevoke", LeaseId { id: lease })
            .await
            .map(drop)
    }

    /// Renews a lease; `Ok(false)` if it has expired.
    pub(crate) async fn renew(&self, lease: i64) -> Result<bool, EtcdError> {
        const CALL: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
        let mut last = "no endpoint".to_owned();
        for (i, channel) in self.in_order() {
            let attempt = async {
                let mut answers: Streaming<LeaseKeepAliveResponse> =
                    stream(channel, CALL, LeaseId { id: lease }).await?;
                answers.message().await
            };
            match tokio::time::timeout(ANSWER_WITHIN, attempt).await {
                Ok(Ok(Some(answer))) => {
                    self.preferred.store(i, Ordering::Relaxed);
                    return Ok(answer.ttl > 0);
                }
                Ok(Ok(None)) => last = "closed without an answer".to_owned(),
                Ok(Err(status)) => last = status.message().to_owned(),
                Err(_) => last = "no answer in time".to_owned(),
            }
        }
        Err(EtcdError { call: CALL, status: last })
    }

    /// Events of all keys with `prefix` from a revision on.
    pub(crate) async fn watch(
        &self,
        prefix: &str,
        revision: i64,
    ) -> Result<Streaming<WatchResponse>, EtcdError> {
        const CALL: &str = "/etcdserverpb.Watch/Watch";
        let create = WatchCreateRequest {
            key: prefix.into(),
            range_end: prefix_end(prefix),
            start_revision: revision,
        };
        let mut last = "no endpoint".to_owned();
        for (_, channel) in self.in_order() {
            let request = WatchRequest { create: Some(create.clone()) };
            match tokio::time::timeout(ANSWER_WITHIN, stream(channel, CALL, request)).await {
                Ok(Ok(events)) => return Ok(events),
                Ok(Err(status)) => last = status.message().to_owned(),
                Err(_) => last = "no answer in time".to_owned(),
            }
        }
        Err(EtcdError { call: CALL, status: last })
    }

    /// All members of the group.
    pub(crate) async fn members(&self) -> Result<Vec<EtcdMember>, EtcdError> {
        let answer: MemberListResponse =
            self.call("/etcdserverpb.Cluster/MemberList", Empty {}).await?;
        Ok(answer.members)
    }

    /// If the member that answers leads in raft, another one of `members` does so afterwards. To be called with one
    /// endpoint.
    pub(crate) async fn hand_raft_over(&self, members: &[EtcdMember]) -> Result<(), EtcdError> {
        let status: StatusResponse =
            self.call("/etcdserverpb.Maintenance/Status", Empty {}).await?;
        let own = status.header.map_or(0, |header| header.member_id);
        match members.iter().find(|member| member.id != own) {
            Some(other) if status.leader == own => {
                let request = MoveLeaderRequest { target: other.id };
                self.call::<_, Empty>("/etcdserverpb.Maintenance/MoveLeader", request)
                    .await
                    .map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Adds a member by its peer URL; all members afterwards, the new one without a name.
    pub(crate) async fn add_member(&self, peer_url: &str) -> Result<Vec<EtcdMember>, EtcdError> {
        let request = MemberAddRequest { peer_urls: vec![peer_url.to_owned()] };
        let answer: MemberAddResponse =
            self.call("/etcdserverpb.Cluster/MemberAdd", request).await?;
        Ok(answer.members)
    }

    /// Removes a member for good.
    pub(crate) async fn remove_member(&self, id: u64) -> Result<(), EtcdError> {
        // A member's id is unsigned; the message is the same on the wire.
        self.call::<_, Empty>(
            "/etcdserverpb.Cluster/MemberRemove",
            LeaseId { id: id.cast_signed() },
        )
        .await
        .map(drop)
    }
}

fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// One call with one answer over a channel.
pub(crate) async fn unary<Req, Resp>(
    channel: Channel,
    path: &'static str,
    request: Req,
    within: Duration,
) -> Result<Resp, Status>
where
    Req: Message + 'static,
    Resp: Message + Default + 'static,
{
    let call = async {
        let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(64 << 20);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<Req, Resp>::default();
        grpc.unary(Request::new(request), PathAndQuery::from_static(path), codec).await
    };
    match tokio::time::timeout(within, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

/// Sends one message and keeps the stream open, as etcd's leases and watches want it.
async fn stream<Req, Resp>(
    channel: Channel,
    path: &'static str,
    request: Req,
) -> Result<Streaming<Resp>, Status>
where
    Req: Message + Unpin + 'static,
    Resp: Message + Default + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<Req, Resp>::default();
    let requests = OnceThenOpen(Some(request));
    grpc.streaming(Request::new(requests), PathAndQuery::from_static(path), codec)
        .await
        .map(tonic::Response::into_inner)
}

/// Yields its one message and never ends: a half-closed request would end etcd's answers too.
struct OnceThenOpen<T>(Option<T>);

impl<T: Unpin + Send> tonic::codegen::tokio_stream::Stream for OnceThenOpen<T> {
    type Item = T;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        match self.0.take() {
            Some(message) => std::task::Poll::Ready(Some(message)),
            None => std::task::Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_listens_ten_thousand_ports_from_its_master() {
        assert_eq!(client_url("198.18.0.11:8261").as_deref(), Some("http://198.18.0.11:18261"));
        assert_eq!(client_url("http://127.0.0.1:60000").as_deref(), Some("http://127.0.0.1:50000"));
        assert_eq!(client_url("nonsense"), None);
    }
}
