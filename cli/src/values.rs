//! JSON into rows and rows into JSON: by the schema where one is known, else by what JSON shows.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Number, Value as Json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use outstation_api::transform::value::Kind;
use outstation_api::transform::{Field, ListValue, MapValue, Row, Value};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("a row is not a JSON object but {found}")]
    NotAnObject { found: String },
    #[error("field {field:?} wants {wanted}, not {found}")]
    Mismatch { field: String, wanted: String, found: String },
    #[error("field {field:?} is not one of the target's: {known}")]
    Unknown { field: String, known: String },
    #[error("field {field:?} ({wanted}) is missing")]
    Missing { field: String, wanted: String },
    #[error("field {field:?} has the number {number}, which fits neither int64 nor float64")]
    Number { field: String, number: String },
}

/// Types by field name, as the manifest writes them: `"int64"`, `{"array": "string"}`, ….
pub type Schema<'a> = BTreeMap<&'a str, &'a Json>;

/// The schema's fields and no others: what is not known must be said to be null, for a name that
/// was mistyped would else be one silently.
pub fn row_from_json(json: &Json, schema: Option<&Schema<'_>>) -> Result<Row, ValueError> {
    let Json::Object(object) = json else {
        return Err(ValueError::NotAnObject { found: shown(json) });
    };
    let Some(schema) = schema else {
        let field = |(name, json): (&String, &Json)| {
            Ok(Field { name: name.clone(), value: Some(inferred(name, json)?) })
        };
        return Ok(Row { fields: object.iter().map(field).collect::<Result<_, _>>()? });
    };
    if let Some(field) = object.keys().find(|name| !schema.contains_key(name.as_str())) {
        let known = schema.keys().copied().collect::<Vec<_>>().join(", ");
        return Err(ValueError::Unknown { field: field.clone(), known });
    }
    let field = |(name, type_): (&&str, &&Json)| {
        let json = object.get(*name).ok_or_else(|| ValueError::Missing {
            field: (*name).to_owned(),
            wanted: type_name(type_),
        })?;
        Ok(Field { name: (*name).to_owned(), value: Some(typed(name, json, type_)?) })
    };
    Ok(Row { fields: schema.iter().map(field).collect::<Result<_, _>>()? })
}

/// Only the schema's fields, null where the object has none: for data whose columns are not made
/// for this target.
pub fn row_from_wider_json(json: &Json, schema: &Schema<'_>) -> Result<Row, ValueError> {
    let Json::Object(object) = json else {
        return Err(ValueError::NotAnObject { found: shown(json) });
    };
    let field = |(name, type_): (&&str, &&Json)| {
        let value = typed(name, object.get(*name).unwrap_or(&Json::Null), type_)?;
        Ok(Field { name: (*name).to_owned(), value: Some(value) })
    };
    Ok(Row { fields: schema.iter().map(field).collect::<Result<_, _>>()? })
}

fn typed(field: &str, json: &Json, type_: &Json) -> Result<Value, ValueError> {
    let mismatch = || ValueError::Mismatch {
        field: field.to_owned(),
        wanted: type_name(type_),
        found: shown(json),
    };
    if json.is_null() {
        return Ok(Value { kind: None });
    }
    let kind = if let Some(name) = type_.as_str() {
        match (name.to_ascii_lowercase().as_str(), json) {
            ("bool", Json::Bool(bool)) => Kind::BoolValue(*bool),
            ("int64", Json::Number(number)) => {
                Kind::Int64Value(number.as_i64().ok_or_else(mismatch)?)
            }
            ("float64", Json::Number(number)) => {
                Kind::Float64Value(number.as_f64().ok_or_else(mismatch)?)
            }
            ("float64", Json::String(text)) => {
                Kind::Float64Value(special_float(text).ok_or_else(mismatch)?)
            }
            ("string", Json::String(text)) => Kind::StringValue(text.clone()),
            ("bytes", Json::String(text)) => {
                Kind::BytesValue(BASE64.decode(text).map_err(|_| mismatch())?)
            }
            ("timestamp", Json::String(text)) => {
                Kind::TimestampValue(micros(text).ok_or_else(mismatch)?)
            }
            _ => return Err(mismatch()),
        }
    } else if let Some(element) = type_.get("array") {
        let items = json.as_array().ok_or_else(mismatch)?;
        let values = items.iter().map(|item| typed(field, item, element));
        Kind::ListValue(ListValue { values: values.collect::<Result<_, _>>()? })
    } else if let Some(value) = type_.get("map") {
        let object = json.as_object().ok_or_else(mismatch)?;
        let fields = object.iter().map(|(key, json)| {
            Ok(Field { name: key.clone(), value: Some(typed(field, json, value)?) })
        });
        Kind::MapValue(MapValue { fields: fields.collect::<Result<_, _>>()? })
    } else if let Some(members) = type_.get("struct").and_then(Json::as_array) {
        let object = json.as_object().ok_or_else(mismatch)?;
        let any = Json::Null;
        let type_of = |key: &str| {
            let member = members.iter().find(|member| member["name"] == key);
            member.map_or(&any, |member| &member["type"])
        };
        let fields = object.iter().map(|(key, json)| {
            Ok(Field { name: key.clone(), value: Some(typed(field, json, type_of(key))?) })
        });
        Kind::MapValue(MapValue { fields: fields.collect::<Result<_, _>>()? })
    } else {
        // A type that this release does not know: the server decides.
        return inferred(field, json);
    };
    Ok(Value { kind: Some(kind) })
}

fn inferred(field: &str, json: &Json) -> Result<Value, ValueError> {
    let kind = match json {
        Json::Null => return Ok(Value { kind: None }),
        Json::Bool(bool) => Kind::BoolValue(*bool),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(int), _) => Kind::Int64Value(int),
            (None, Some(float)) if !number.is_u64() => Kind::Float64Value(float),
            (None, Some(_) | None) => {
                let number = number.to_string();
                return Err(ValueError::Number { field: field.to_owned(), number });
            }
        },
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(items) => {
            let values = items.iter().map(|item| inferred(field, item));
            Kind::ListValue(ListValue { values: values.collect::<Result<_, _>>()? })
        }
        Json::Object(object) => {
            let fields = object.iter().map(|(key, json)| {
                Ok(Field { name: key.clone(), value: Some(inferred(field, json)?) })
            });
            Kind::MapValue(MapValue { fields: fields.collect::<Result<_, _>>()? })
        }
    };
    Ok(Value { kind: Some(kind) })
}

pub fn row_to_json(row: &Row) -> Map<String, Json> {
    fields_to_json(&row.fields)
}

fn fields_to_json(fields: &[Field]) -> Map<String, Json> {
    fields
        .iter()
        .map(|field| (field.name.clone(), field.value.as_ref().map_or(Json::Null, value_to_json)))
        .collect()
}

/// JSON has no NaN, bytes or times: those become texts that `typed` reads back.
fn value_to_json(value: &Value) -> Json {
    match &value.kind {
        None => Json::Null,
        Some(Kind::BoolValue(bool)) => Json::Bool(*bool),
        Some(Kind::Int64Value(int)) => Json::Number((*int).into()),
        Some(Kind::Float64Value(float)) => Number::from_f64(*float)
            .map_or_else(|| Json::String(special_text(*float).to_owned()), Json::Number),
        Some(Kind::StringValue(text)) => Json::String(text.clone()),
        Some(Kind::BytesValue(bytes)) => Json::String(BASE64.encode(bytes)),
        Some(Kind::TimestampValue(micros)) => Json::String(time_text(*micros)),
        Some(Kind::ListValue(list)) => list.values.iter().map(value_to_json).collect(),
        Some(Kind::MapValue(map)) => Json::Object(fields_to_json(&map.fields)),
    }
}

fn special_float(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

fn special_text(float: f64) -> &'static str {
    if float.is_nan() {
        "NaN"
    } else if float > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

fn micros(rfc3339: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(rfc3339, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1000).ok()
}

fn time_text(micros: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| micros.to_string())
}

fn type_name(type_: &Json) -> String {
    type_.as_str().map_or_else(|| type_.to_string(), ToOwned::to_owned)
}

/// A value as a message shows it, cut to 40 characters.
fn shown(json: &Json) -> String {
    let text = json.to_string();
    if text.chars().count() > 40 { text.chars().take(40).chain(['…']).collect() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn round_trip(json: Json, schema: Option<Json>) -> Result<Json, String> {
        let schema = schema.as_ref().and_then(Json::as_object).map(|schema| {
            schema.iter().map(|(name, type_)| (name.as_str(), type_)).collect::<Schema<'_>>()
        });
        row_from_json(&json, schema.as_ref())
            .map(|row| Json::Object(row_to_json(&row)))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn typed_values_survive_the_wire() {
        for (value, type_) in [
            (json!(true), json!("bool")),
            (json!(-7), json!("int64")),
            (json!(1.5), json!("float64")),
            (json!("NaN"), json!("Float64")),
            (json!("-Infinity"), json!("float64")),
            (json!("AA"), json!("string")),
            (json!("AAEC"), json!("bytes")),
            (json!("2013-01-01T05:00:00.25Z"), json!("timestamp")),
            (json!([1.0, null]), json!({"array": "float64"})),
            (json!({"a": 1}), json!({"map": "int64"})),
            (json!({"lat": 1.0}), json!({"struct": [{"name": "lat", "type": "float64"}]})),
            (Json::Null, json!("int64")),
        ] {
            let wanted = json!({"x": value});
            assert_eq!(round_trip(wanted.clone(), Some(json!({"x": type_}))), Ok(wanted));
        }
        // An integer is a fine float.
        assert_eq!(
            round_trip(json!({"x": 3, "y": null}), Some(json!({"x": "float64", "y": "string"}))),
            Ok(json!({"x": 3.0, "y": null}))
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_field() {
        for (json, schema, wanted) in [
            (json!([]), None, "a row is not a JSON object but []"),
            (json!({"x": "1"}), Some(json!({"x": "int64"})), "field \"x\" wants int64, not \"1\""),
            (json!({"x": 1.5}), Some(json!({"x": "int64"})), "field \"x\" wants int64, not 1.5"),
            (
                json!({"z": 1}),
                Some(json!({"x": "int64", "y": "int64"})),
                "field \"z\" is not one of the target's: x, y",
            ),
            (
                json!({"x": 1}),
                Some(json!({"x": "int64", "y": "float64"})),
                "field \"y\" (float64) is missing",
            ),
            (
                json!({"x": u64::MAX}),
                None,
                "field \"x\" has the number 18446744073709551615, which fits neither int64 nor float64",
            ),
        ] {
            assert_eq!(round_trip(json, schema), Err(wanted.to_owned()));
        }
    }

    #[test]
    fn without_a_schema_json_says_the_type() {
        let row =
            row_from_json(&json!({"a": 1, "b": 1.0, "c": {"d": [null]}}), None).expect("infers");
        let kind = |index: usize| row.fields[index].value.as_ref().and_then(|v| v.kind.clone());
        assert_eq!(kind(0), Some(Kind::Int64Value(1)));
        assert_eq!(kind(1), Some(Kind::Float64Value(1.0)));
        assert!(matches!(kind(2), Some(Kind::MapValue(_))));
    }
}
