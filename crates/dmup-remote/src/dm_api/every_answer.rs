//! All readers of DM's answers at once, for tests with hostile input (`fuzz/`).

use dmup_core::topology::Topology;
use prost::Message as _;
use serde::de::DeserializeOwned;

use super::answers::{Members, Outcome, PerSource, Status};
use super::client::{is_not_yet, sources_in};
use super::code::DmCode;
use super::grpc;
use super::http::{beginning, said};
use super::seen::{Collected, assemble, build_in_status, health_in};

/// Reads bytes as every answer that DM can give, and puts them together as a look does. A panic is what is looked for.
pub fn read_as_every_answer(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    build_in_status(&text);
    health_in(&text);
    sources_in(&text);
    // Refusals: their code, and as much of their words as an error shows.
    DmCode::of(&text);
    is_not_yet(&text);
    said(&text);
    beginning(&text);
    json::<Outcome>(bytes);
    let members = json::<Members>(bytes);
    let shown = json::<PerSource>(bytes);
    let mut status = json::<Status>(bytes);
    if let Ok(answer) = grpc::QueryStatusResponse::decode(bytes) {
        status.sources.extend(Status::from(answer).sources);
    }
    let locks = grpc::ShowDdlLocksResponse::decode(bytes).map(|answer| answer.locks);
    drop(grpc::OperateTaskResponse::decode(bytes));
    drop(grpc::TransferSourceResponse::decode(bytes));
    let topology =
        "master_servers:\n  - host: 198.18.0.11\nworker_servers:\n  - host: 198.18.0.11\n";
    let instances = Topology::parse(topology).map(|it| it.instances()).unwrap_or_default();
    let collected = Collected {
        members,
        reports: status.sources,
        sources: shown.sources.into_iter().map(|it| (it.source, it.worker)).collect(),
        locks: locks.unwrap_or_default(),
        ..Collected::default()
    };
    drop(assemble(&instances, &collected));
}

fn json<T: DeserializeOwned + Default>(bytes: &[u8]) -> T {
    serde_json::from_slice(bytes).unwrap_or_default()
}
