//! What an autoscaled group is kept at: average CPU, or any CloudWatch metric. The words are those of
//! AWS's target tracking.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// Average CPU utilization of the nodes.
    Cpu { percent: TargetValue },
    /// Twice the nodes halve it: a metric that does not fall so cannot be a target.
    Metric {
        namespace: String,
        name: String,
        statistic: Statistic,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        dimensions: BTreeMap<String, String>,
        value: TargetValue,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statistic {
    Average,
    Minimum,
    Maximum,
    SampleCount,
    Sum,
}

impl Statistic {
    pub const ALL: [Statistic; 5] = [
        Statistic::Average,
        Statistic::Minimum,
        Statistic::Maximum,
        Statistic::SampleCount,
        Statistic::Sum,
    ];

    /// As CloudWatch spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Statistic::Average => "Average",
            Statistic::Minimum => "Minimum",
            Statistic::Maximum => "Maximum",
            Statistic::SampleCount => "SampleCount",
            Statistic::Sum => "Sum",
        }
    }
}

/// A number that JSON, CloudWatch and a person write alike: from 0.000001 to 1e15, of at most 15
/// digits, so that it comes back from each of them as the same number.
#[derive(Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct TargetValue(f64);

/// Never NaN.
impl Eq for TargetValue {}

impl TargetValue {
    pub const LEAST: f64 = 1e-6;
    pub const MOST: f64 = 1e15;

    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for TargetValue {
    type Error = TargetError;

    fn try_from(value: f64) -> Result<TargetValue, TargetError> {
        let short = || format!("{value:.14e}").parse() == Ok(value);
        if (TargetValue::LEAST..=TargetValue::MOST).contains(&value) && short() {
            Ok(TargetValue(value))
        } else {
            Err(TargetError::Value { value: value.to_string() })
        }
    }
}

impl From<TargetValue> for f64 {
    fn from(value: TargetValue) -> f64 {
        value.0
    }
}

impl fmt::Debug for TargetValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for TargetValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What CloudWatch takes: API reference, MetricDatum and Dimension.
pub const METRIC_NAME_CHARS_MAX: usize = 255;
pub const DIMENSION_VALUE_CHARS_MAX: usize = 1024;
pub const DIMENSIONS_MAX: usize = 30;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("{value} is not a number from 0.000001 to 1e15 of at most 15 digits")]
    Value { value: String },
    #[error("{percent} % CPU is more than 100 %")]
    Percent { percent: TargetValue },
    #[error("without a node there is no CPU to measure: min_nodes must be at least 1")]
    NoNode,
    #[error("the metric's {field} {text:?} is not 1 to {max} printable ASCII characters")]
    Text { field: &'static str, text: String, max: usize },
    #[error("{count} dimensions are more than {DIMENSIONS_MAX}")]
    Dimensions { count: usize },
}

impl Target {
    pub(super) fn validate(&self, min_nodes: u32) -> Result<(), TargetError> {
        match self {
            Target::Cpu { percent } if percent.get() > 100.0 => {
                Err(TargetError::Percent { percent: *percent })
            }
            Target::Cpu { .. } if min_nodes == 0 => Err(TargetError::NoNode),
            Target::Cpu { .. } => Ok(()),
            Target::Metric { namespace, name, statistic: _, dimensions, value: _ } => {
                text("namespace", namespace, METRIC_NAME_CHARS_MAX)?;
                text("name", name, METRIC_NAME_CHARS_MAX)?;
                if dimensions.len() > DIMENSIONS_MAX {
                    return Err(TargetError::Dimensions { count: dimensions.len() });
                }
                for (name, value) in dimensions {
                    text("dimension", name, METRIC_NAME_CHARS_MAX)?;
                    text("dimension's value", value, DIMENSION_VALUE_CHARS_MAX)?;
                }
                Ok(())
            }
        }
    }
}

fn text(field: &'static str, text: &str, max: usize) -> Result<(), TargetError> {
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if printable && (1..=max).contains(&text.len()) && text.trim() == text {
        return Ok(());
    }
    Err(TargetError::Text { field, text: text.chars().take(80).collect(), max })
}

/// `CPU 60 %`, `Average Queue/Depth 100 {queue=a}`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Cpu { percent } => write!(f, "CPU {percent} %"),
            Target::Metric { namespace, name, statistic, dimensions, value } => {
                write!(f, "{} {namespace}/{name} {value}", statistic.as_str())?;
                if !dimensions.is_empty() {
                    let pairs: Vec<String> =
                        dimensions.iter().map(|(name, value)| format!("{name}={value}")).collect();
                    write!(f, " {{{}}}", pairs.join(", "))?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(target: serde_json::Value, min_nodes: u32) -> Result<String, String> {
        let target: Target = serde_json::from_value(target).map_err(|error| error.to_string())?;
        target.validate(min_nodes).map_err(|error| error.to_string())?;
        Ok(target.to_string())
    }

    #[test]
    fn targets_are_numbers_that_can_be_meant() {
        let metric = |value: f64| {
            json!({"type": "metric", "namespace": "Queue", "name": "Depth", "statistic": "Average",
                "dimensions": {"queue": "a"}, "value": value})
        };
        let cpu = |percent: f64| json!({"type": "cpu", "percent": percent});
        for (target, min_nodes, wanted) in [
            (cpu(60.0), 1, Ok("CPU 60 %")),
            (cpu(62.5), 1, Ok("CPU 62.5 %")),
            (cpu(0.0), 1, Err("0 is not a number from")),
            (cpu(100.1), 1, Err("100.1 % CPU is more than 100 %")),
            (cpu(60.0), 0, Err("min_nodes must be at least 1")),
            (metric(1e15), 0, Ok("Average Queue/Depth 1000000000000000 {queue=a}")),
            (metric(-1.0), 0, Err("-1 is not a number from")),
            (metric(0.123_456_789_012_345_67), 0, Err("of at most 15 digits")),
            (json!({"type": "cpu", "percent": 60, "max": 1}), 1, Err("unknown field `max`")),
            (json!({"type": "gpu"}), 1, Err("unknown variant `gpu`")),
        ] {
            match (check(target.clone(), min_nodes), wanted) {
                (Ok(text), Ok(wanted)) => assert_eq!(text, wanted),
                (Err(error), Err(words)) => assert!(error.contains(words), "{target}: {error}"),
                (other, wanted) => panic!("{target}: {other:?}, not {wanted:?}"),
            }
        }
    }

    #[test]
    fn a_metric_is_named_as_cloudwatch_can() {
        let with = |field: &str, value: serde_json::Value| {
            let mut target = json!({"type": "metric", "namespace": "Queue", "name": "Depth",
                "statistic": "Average", "value": 1.0});
            target[field] = value;
            check(target, 1).unwrap_or_default()
        };
        assert_eq!(with("statistic", json!("Sum")), "Sum Queue/Depth 1");
        for (field, value) in [
            ("namespace", json!("")),
            ("namespace", json!("n".repeat(256))),
            ("name", json!("Länge")),
            ("name", json!(" Depth")),
            ("statistic", json!("p99")),
            ("dimensions", json!({"": "x"})),
            ("dimensions", json!({"x": "v".repeat(1025)})),
        ] {
            assert_eq!(with(field, value.clone()), "", "{field} {value}");
        }
        let many: BTreeMap<String, String> =
            (0..31).map(|n| (n.to_string(), "x".to_owned())).collect();
        assert_eq!(with("dimensions", json!(many)), "");
    }

    #[test]
    fn a_value_comes_back_as_the_same_number() {
        for value in [1e-6, 0.1, 62.5, 0.000_123_456_789_012_345, 123_456_789_012_345.0, 1e15] {
            let value = TargetValue::try_from(value).expect("valid");
            let json = serde_json::to_string(&value).expect("a number");
            assert_eq!(serde_json::from_str::<TargetValue>(&json).ok(), Some(value), "{json}");
        }
    }
}
