//! What users' functions do, and what must not come of it: each costs its own caller a clear answer, and
//! nobody else anything.

mod common;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use outstation_api::transform::row_result::Outcome;
use outstation_api::transform::value::Kind;
use outstation_api::transform::{CallRequest, CallResponse, Field, ListValue, Row, Value};
use prost::Message;
use tonic::{Code, Status};

const HEAD: &str = r#"
import ctypes, os, re, sys, threading, time
from outstation import Attribute, RequestSource, realtime_feature_view
from outstation.types import Field, Float64, Int64, String

x = RequestSource(schema=[Field("x", Int64)])
def view(**types):
    return realtime_feature_view(sources=[x], mode="python",
                                 features=[Attribute(name, dtype) for name, dtype in types.items()])
"#;

/// Name, body, what its caller is told (of the row, or of the call).
const FUNCTIONS: &[(&str, &str, Told)] = &[
    ("good", "return {'y': x['x'] + 1}", Told::Row("good.y")),
    ("raises", "raise KeyError('nothing there')", Told::Error("raises", "KeyError")),
    (
        "wrong_type",
        "return {'y': 'one'}",
        Told::Error("wrong_type", "must be Int64, not str 'one'"),
    ),
    ("no_dict", "return 7", Told::Error("no_dict", "instead of a dict")),
    ("missing", "return {}", Told::Error("missing", "did not return 'y'")),
    ("extra", "return {'y': 1, 'z': 2}", Told::Error("extra", "'z', which it does not declare")),
    ("too_large", "return {'y': 2 ** 63}", Told::Error("too_large", "outside of 64 bits")),
    ("not_whole", "return {'y': float('nan')}", Told::Error("not_whole", "must be Int64")),
    ("recursion", "return recursion(x)", Told::Error("recursion", "RecursionError")),
    ("exits", "sys.exit(3)", Told::Error("exits", "SystemExit")),
    ("interrupts", "raise KeyboardInterrupt", Told::Error("interrupts", "KeyboardInterrupt")),
    ("hard_exit", "os._exit(9)", Told::Call(Code::Aborted, "status 9")),
    ("segfault", "ctypes.string_at(0)", Told::Call(Code::Aborted, "signal 11")),
    ("kills_itself", "os.kill(os.getpid(), 9)", Told::Call(Code::Aborted, "signal 9")),
    ("forks", "os.fork(); return {'y': 1}", Told::Row("forks.y")),
    ("orphans", "os.fork() or time.sleep(600); return {'y': 1}", Told::Row("orphans.y")),
    (
        "threads",
        "threading.Thread(target=time.sleep, args=(600,)).start(); return {'y': 1}",
        Told::Row("threads.y"),
    ),
    (
        "loops",
        "\n    while True: pass",
        Told::Call(Code::DeadlineExceeded, "its worker has been ended"),
    ),
    (
        "loops_in_c",
        "return {'y': sum(range(10 ** 13))}",
        Told::Call(Code::DeadlineExceeded, "loops_in_c did not end"),
    ),
    ("sleeps", "time.sleep(600)", Told::Call(Code::DeadlineExceeded, "sleeps did not end")),
    (
        "prints",
        "print('x' * 10 ** 7); [print(n) for n in range(10 ** 4)]; return {'y': 1}",
        Told::Row("prints.y"),
    ),
    ("closes_low", "os.closerange(0, 64); return {'y': 1}", Told::Row("closes_low.y")),
    (
        "closes_all",
        "os.closerange(0, 4096); return {'y': 1}",
        Told::Either("closes_all.y", Code::Aborted),
    ),
];

#[derive(Clone, Copy)]
enum Told {
    /// The name of its one feature.
    Row(&'static str),
    /// Function and a part of the message.
    Error(&'static str, &'static str),
    Call(Code, &'static str),
    Either(&'static str, Code),
}

fn request_of(target: &str, fields: Vec<Field>) -> Bytes {
    CallRequest { target: target.into(), rows: vec![Row { fields }] }.encode_to_vec().into()
}

fn field(name: &str, kind: Kind) -> Field {
    Field { name: name.into(), value: Some(Value { kind: Some(kind) }) }
}

/// The only row's outcome.
fn outcome(answer: &[u8]) -> Outcome {
    let mut results = CallResponse::decode(answer).unwrap().results;
    assert_eq!(results.len(), 1);
    results.remove(0).outcome.unwrap()
}

fn check(name: &str, told: Told, answer: Result<Bytes, Status>) {
    match (told, answer) {
        (Told::Row(feature) | Told::Either(feature, _), Ok(answer)) => match outcome(&answer) {
            Outcome::Row(row) => assert_eq!(row.fields[0].name, feature, "{name}"),
            Outcome::Error(error) => panic!("{name}: {error:?}"),
        },
        (Told::Error(function, message), Ok(answer)) => match outcome(&answer) {
            Outcome::Error(error) => {
                assert_eq!(error.function, function, "{name}: {error:?}");
                assert!(error.message.contains(message), "{name}: {error:?}");
            }
            Outcome::Row(row) => panic!("{name}: {row:?}"),
        },
        (Told::Call(code, message), Err(status)) => {
            assert_eq!(status.code(), code, "{name}: {status:?}");
            assert!(status.message().contains(name), "{name}: names it: {status:?}");
            assert!(status.message().contains(message), "{name}: {status:?}");
        }
        (Told::Either(_, code), Err(status)) => {
            assert_eq!(status.code(), code, "{name}: {status:?}")
        }
        (_, answer) => panic!("{name}: {answer:?}"),
    }
}

async fn serving(bundle: &Bundle) -> (Running, Channel) {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk").display().to_string();
    let server = start(bundle.path(), &["--python-path", &sdk, "--workers", "2"]).await;
    let channel = server.until_serving().await;
    (server, channel)
}

fn bundle() -> Bundle {
    let bundle = Bundle::new();
    let views = FUNCTIONS.iter().map(|(name, body, _)| {
        format!("@view(y=Int64)\ndef {name}(x):\n    {}\n", body.replace("; ", "\n    "))
    });
    bundle.write("features.py", &format!("{HEAD}{}", views.collect::<String>()));
    bundle
}

#[tokio::test]
async fn a_function_harms_its_own_caller_and_no_other() {
    let bundle = bundle();
    let (server, channel) = serving(&bundle).await;
    for (name, _, told) in FUNCTIONS {
        let bytes = request_of(name, vec![field("x", Kind::Int64Value(1))]);
        let timeout = match told {
            Told::Call(Code::DeadlineExceeded, _) => Duration::from_millis(500),
            _ => PATIENCE,
        };
        check(name, *told, call_bytes(&channel, bytes, Some(timeout)).await);
        let good = request_of("good", vec![field("x", Kind::Int64Value(1))]);
        check("good", Told::Row("good.y"), call_bytes(&channel, good, Some(PATIENCE)).await);
    }
    drop(server);
}

#[tokio::test]
async fn what_a_caller_can_send() {
    let bundle = bundle();
    let (_server, channel) = serving(&bundle).await;
    let mut nested = Kind::Int64Value(1);
    for _ in 0..1000 {
        nested = Kind::ListValue(ListValue { values: vec![Value { kind: Some(nested) }] });
    }
    let text = |text: &str| vec![field("x", Kind::StringValue(text.into()))];
    let not_utf8 = {
        let mut bytes = request_of("good", text("ab")).to_vec();
        let at = bytes.windows(2).position(|pair| pair == b"ab").unwrap();
        bytes[at] = 0xff;
        Bytes::from(bytes)
    };
    let cases = [
        (
            "a string for a number",
            request_of("good", text("1")),
            Told::Error("good", "must be Int64, not str '1'"),
        ),
        (
            "NaN for a whole number",
            request_of("good", vec![field("x", Kind::Float64Value(f64::NAN))]),
            Told::Error("good", "must be Int64"),
        ),
        ("no such field", request_of("good", vec![]), Told::Error("good", "needs field 'x'")),
        (
            "the largest number",
            request_of("good", vec![field("x", Kind::Int64Value(i64::MAX))]),
            Told::Error("good", "outside of 64 bits"),
        ),
    ];
    for (name, bytes, told) in cases {
        check(name, told, call_bytes(&channel, bytes, None).await);
    }
    let calls = [
        (
            "an unknown function",
            request_of("goood", vec![]),
            Code::NotFound,
            "no feature view or service 'goood'",
        ),
        (
            "nested 1,000 deep",
            request_of("good", vec![field("x", nested)]),
            Code::InvalidArgument,
            "64 deep",
        ),
        ("not UTF-8", not_utf8, Code::InvalidArgument, "not UTF-8"),
        (
            "no rows",
            CallRequest { target: "good".into(), rows: vec![] }.encode_to_vec().into(),
            Code::InvalidArgument,
            "without rows",
        ),
        (
            "64 MiB and a byte",
            Bytes::from(vec![0; (64 << 20) + 1]),
            Code::OutOfRange,
            "send fewer rows",
        ),
    ];
    for (name, bytes, code, message) in calls {
        let status = call_bytes(&channel, bytes, None).await.unwrap_err();
        assert_eq!(status.code(), code, "{name}: {status:?}");
        assert!(status.message().contains(message), "{name}: {status:?}");
    }
    // The largest that is taken: one string of nearly 64 MiB.
    let large = request_of("good", text(&"x".repeat((64 << 20) - 64)));
    check(
        "64 MiB",
        Told::Error("good", "must be Int64, not str"),
        call_bytes(&channel, large, Some(PATIENCE)).await,
    );
}
