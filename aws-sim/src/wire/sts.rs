//! STS, as far as it says who called: GetCallerIdentity.

use super::query::Params;
use super::sigv4::Caller;
use super::xml::Xml;
use super::{Answer, unknown_action};
use crate::model::{AwsError, Model};

pub fn call(
    model: &Model,
    caller: &Caller,
    action: &str,
    params: &Params,
) -> Result<Answer, AwsError> {
    match action {
        "GetCallerIdentity" => {
            params.finish(action)?;
            let mut xml = Xml::fragment();
            xml.text("Arn", &caller.arn);
            xml.text("UserId", &caller.user_id);
            xml.text("Account", &model.config().account);
            Ok(Some(xml))
        }
        other => Err(unknown_action(other, "2011-06-15")),
    }
}
