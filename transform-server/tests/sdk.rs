//! The server with the SDK's own worker and a real bundle.

mod common;

use std::path::Path;
use std::time::Duration;

use common::*;
use outstation_api::transform::row_result::Outcome;
use outstation_api::transform::value::Kind;
use outstation_api::transform::{CallRequest, CallResponse, Field, Row, Value};
use prost::Message;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

const FEATURES: &str = r#"
import os, sys, time
from outstation import (Attribute, Environment, FeatureService, ProvisionedScalingConfig, RequestSource,
                        TransformServerGroup, realtime_feature_view)
from outstation.types import Field, Float64

trip = RequestSource(schema=[Field("distance", Float64), Field("air_time", Float64)])

@realtime_feature_view(sources=[trip], mode="python", features=[Attribute("mph", Float64)])
def speed(trip):
    print("speed of", trip)
    return {"mph": trip["distance"] / (trip["air_time"] / 60)}

@realtime_feature_view(sources=[trip], mode="python", features=[Attribute("mph", Float64)])
def slow(trip):
    while True:
        pass

@realtime_feature_view(sources=[trip], mode="python", features=[Attribute("n", Float64)])
def reads_stdin(trip):
    return {"n": float(len(os.read(0, 100)) + len(sys.stdin.read()))}

Environment(name="env", requirements="requirements.txt")
TransformServerGroup(name="tsg", environment="env", scaling_config=ProvisionedScalingConfig(desired_nodes=1))
FeatureService(name="delay", features=[speed], transform_server_group="tsg")
"#;

async fn sdk(bundle: &Bundle) -> Running {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk").display().to_string();
    start(bundle.path(), &["--python-path", &sdk, "--workers", "2"]).await
}

fn trip(target: &str, air_times: &[f64]) -> bytes::Bytes {
    let field = |name: &str, number| Field {
        name: name.into(),
        value: Some(Value { kind: Some(Kind::Float64Value(number)) }),
    };
    let rows = air_times
        .iter()
        .map(|time| Row { fields: vec![field("distance", 100.0), field("air_time", *time)] });
    CallRequest { target: target.into(), rows: rows.collect() }.encode_to_vec().into()
}

fn outcomes(response: &[u8]) -> Vec<String> {
    let response = CallResponse::decode(response).unwrap();
    let outcome = |outcome: Option<Outcome>| match outcome {
        Some(Outcome::Row(row)) => row
            .fields
            .iter()
            .map(|field| match &field.value {
                Some(Value { kind: Some(Kind::Float64Value(number)) }) => {
                    format!("{}={number}", field.name)
                }
                other => format!("{}={other:?}", field.name),
            })
            .collect::<Vec<_>>()
            .join(" "),
        Some(Outcome::Error(error)) => format!("{} failed: {}", error.function, error.message),
        None => "nothing".into(),
    };
    response.results.into_iter().map(|result| outcome(result.outcome)).collect()
}

#[tokio::test]
async fn a_real_bundle() {
    let bundle = Bundle::new();
    bundle.write("features.py", FEATURES);
    bundle.write("requirements.txt", "");
    let server = sdk(&bundle).await;
    let channel = server.until_serving().await;
    for name in ["speed", "delay"] {
        assert_eq!(health(&channel, name).await, Ok(ServingStatus::Serving));
        let answer = call_bytes(&channel, trip(name, &[60.0, 0.0, 30.0]), None).await.unwrap();
        let outcomes = outcomes(&answer);
        assert_eq!(
            (&*outcomes[0], &*outcomes[2]),
            ("speed.mph=100", "speed.mph=200"),
            "{outcomes:?}"
        );
        assert!(
            outcomes[1].contains("speed failed") && outcomes[1].contains("ZeroDivisionError"),
            "{outcomes:?}"
        );
    }
    let status = call_bytes(&channel, trip("spede", &[1.0]), None).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("speed"), "says what there is: {status:?}");
    let status = call_bytes(&channel, trip("slow", &[1.0]), Some(Duration::from_millis(300)))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    let answer = call_bytes(&channel, trip("reads_stdin", &[1.0]), None).await.unwrap();
    assert_eq!(
        outcomes(&answer),
        ["reads_stdin.n=0"],
        "the worker's socket is not the function's stdin"
    );
}
