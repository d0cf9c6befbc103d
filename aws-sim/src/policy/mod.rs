//! IAM: what the policies of a principal say of a call. Evaluated by iam-rs; [`checks`] says what AWS would ask it.
//! Principals without a policy may do everything.

pub mod checks;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use iam_rs::{
    Arn, Context, ContextValue, Decision, EvaluationOptions, IAMPolicy, IAMRequest,
    PolicyEvaluator, Principal, PrincipalId, Validate as _,
};
use serde::Serialize;

use crate::model::{AwsError, Code, Model};
use crate::wire::query::Params;
use checks::Check;

/// Different answers that are remembered for `/_sim/judged`: far beyond what a policy has statements times actions.
const JUDGED_MAX: usize = 4096;

/// Who is bound by which policies, and how their calls were judged.
#[derive(Debug, Default)]
pub struct Guard {
    /// By the principal's ARN.
    policies: BTreeMap<String, Policies>,
    /// By launch template id, where it differs from [`TemplateUse::default`].
    templates: BTreeMap<String, TemplateUse>,
    judged: BTreeSet<Judged>,
}

/// What using a launch template asks of the caller beyond its image and type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateUse {
    /// Instance profile and its role; otherwise the account's instance role under its own name.
    pub profile: Option<(String, String)>,
    /// Whether it tags instances and volumes.
    pub tags: bool,
}

/// A call, or what AWS checked because of it, and how it was judged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Judged {
    pub principal: String,
    /// The call that was made.
    pub call: String,
    /// What was checked; the call itself, or `ec2:RunInstances` and the like.
    pub action: String,
    /// The resource, groups by their name alone.
    pub resource: String,
    pub allowed: bool,
    /// The `Sid` of each statement that spoke, allowing and denying ones.
    pub statements: Vec<String>,
}

impl Guard {
    pub fn bind(&mut self, principal_arn: &str, policies: Policies) {
        self.policies.insert(principal_arn.to_owned(), policies);
    }

    pub fn template(&mut self, id: &str, used: TemplateUse) {
        self.templates.insert(id.to_owned(), used);
    }

    /// Each kind of answer once.
    pub fn judged(&self) -> impl Iterator<Item = &Judged> {
        self.judged.iter()
    }

    /// AWS's refusal, unless the principal's policies allow the call and everything that it entails.
    pub(crate) fn authorize(
        &mut self,
        principal_arn: &str,
        model: &Model,
        action: &str,
        params: &Params,
    ) -> Result<(), AwsError> {
        let Some(policies) = self.policies.get(principal_arn) else { return Ok(()) };
        for check in checks::of(model, &self.templates, action, params) {
            let verdict = policies.judge(&check);
            let judged = Judged {
                principal: principal_arn.to_owned(),
                call: action.to_owned(),
                action: check.action.clone(),
                resource: without_id(&check.resource),
                allowed: verdict.allowed,
                statements: verdict.statements.clone(),
            };
            if self.judged.len() < JUDGED_MAX {
                self.judged.insert(judged);
            }
            if !verdict.allowed {
                tracing::debug!(%check, statements = ?verdict.statements, "not allowed by policy");
                return Err(refusal(principal_arn, &check, verdict.denied));
            }
        }
        Ok(())
    }
}

/// A group by its name: the id is another one each time.
fn without_id(resource: &str) -> String {
    match resource.split(':').collect::<Vec<_>>()[..] {
        [.., "autoScalingGroup", _, name] => format!("autoScalingGroup:*:{name}"),
        _ => resource.to_owned(),
    }
}

/// AWS's wording. Of a launch template it says no more than that.
fn refusal(principal_arn: &str, check: &Check, denied: bool) -> AwsError {
    if let Some(template) = &check.template {
        let message = format!("You are not authorized to use launch template: {template}");
        return AwsError::new(Code::AccessDenied, message);
    }
    let because = match denied {
        true => "with an explicit deny in an identity-based policy".to_owned(),
        false => format!("because no identity-based policy allows the {} action", check.action),
    };
    // Actions that know no resources are named without one.
    let resource = match check.resource.ends_with(":*") {
        true => String::new(),
        false => format!("on resource: {} ", check.resource),
    };
    let message = format!(
        "User: {principal_arn} is not authorized to perform: {} {resource}{because}",
        check.action
    );
    AwsError::new(Code::AccessDenied, message)
}

/// All documents that are attached to one principal.
#[derive(Debug, Clone)]
pub struct Policies(PolicyEvaluator);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an IAM policy: {0}")]
pub struct NoPolicy(String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    /// By a statement, and not for want of one.
    pub denied: bool,
    pub statements: Vec<String>,
}

impl Policies {
    pub fn parse<'a>(documents: impl IntoIterator<Item = &'a str>) -> Result<Policies, NoPolicy> {
        let options = EvaluationOptions {
            stop_on_explicit_deny: false,
            collect_match_details: true,
            ..EvaluationOptions::default()
        };
        let parse = |text: &str| {
            let policy: IAMPolicy =
                serde_json::from_str(text).map_err(|error| NoPolicy(error.to_string()))?;
            policy.validate_result().map_err(|error| NoPolicy(error.to_string()))?;
            Ok(policy)
        };
        let policies = documents.into_iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Policies(PolicyEvaluator::with_policies(policies).with_options(options)))
    }

    /// What cannot be evaluated is refused, and says so among the statements.
    pub fn judge(&self, check: &Check) -> Verdict {
        let evaluated = check
            .request()
            .and_then(|request| self.0.evaluate(&request).map_err(|error| error.to_string()));
        match evaluated {
            Ok(result) => Verdict {
                allowed: result.decision == Decision::Allow,
                denied: result.decision == Decision::Deny,
                statements: result
                    .statement_details
                    .into_iter()
                    .filter(|statement| statement.conditions_satisfied)
                    .map(|statement| statement.sid.unwrap_or_default())
                    .collect(),
            },
            Err(error) => {
                tracing::error!(%check, error, "cannot be evaluated");
                Verdict { allowed: false, denied: false, statements: vec![error] }
            }
        }
    }
}

/// The value of a condition key.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    Texts(Vec<String>),
    Number(u32),
    Bool(bool),
}

impl Check {
    fn request(&self) -> Result<IAMRequest, String> {
        let mut context = Context::new();
        for (key, value) in &self.context {
            let value = match value {
                Value::Text(text) => ContextValue::String(text.clone()),
                Value::Texts(texts) => ContextValue::StringList(texts.clone()),
                Value::Number(number) => ContextValue::Number(f64::from(*number)),
                Value::Bool(yes) => ContextValue::Boolean(*yes),
            };
            context.insert(key.clone(), value);
        }
        let resource = Arn::parse(&self.resource).map_err(|error| error.to_string())?;
        // Identity-based policies name no principal: whose they are is decided before.
        let principal =
            Principal::Aws(PrincipalId::String("arn:aws:iam::123456789012:role/r".to_owned()));
        Ok(IAMRequest::new_with_context(principal, self.action.clone(), resource, context))
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.action, self.resource)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
