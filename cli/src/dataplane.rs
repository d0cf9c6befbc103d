//! `outstation dataplane`: which accounts enroll with which IAM role.

use std::process::ExitCode;

use outstation_api::admin::{DataPlane, ListDataPlanesResponse, RegisteredDataPlane};

use crate::admin::Admin;
use crate::args::{DataPlaneAdd, DataPlaneVerb};
use crate::context::Context;
use crate::message::print;
use crate::show::table;

pub async fn run(context: &Context, verb: DataPlaneVerb) -> anyhow::Result<ExitCode> {
    let admin = Admin::connect(context).await?;
    match verb {
        DataPlaneVerb::Add(DataPlaneAdd { name, account, region, role, role_id }) => {
            let asked = RegisteredDataPlane {
                name: name.into(),
                data_plane: Some(DataPlane { account: account.into(), region: region.into() }),
                role: role.into(),
                role_id: role_id.into(),
                added_at_unix_secs: 0,
            };
            let added = admin.add_data_plane(asked).await?;
            print(format_args!(
                "{}: agents of {} enroll with role {} ({})\n",
                added.name,
                named(added.data_plane.as_ref()),
                added.role,
                added.role_id
            ));
        }
        DataPlaneVerb::List(verb) => {
            let found = admin.data_planes().await?;
            if verb.json {
                print(format_args!("{}\n", json(&found)));
            } else {
                print(format_args!("{}", rows(&found)));
            }
        }
        DataPlaneVerb::Remove(verb) => {
            let removed = admin.remove_data_plane(verb.name.into()).await?;
            print(format_args!(
                "{}: no agent of {} enrolls with role {} any more\n",
                removed.name,
                named(removed.data_plane.as_ref()),
                removed.role
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn named(data_plane: Option<&DataPlane>) -> String {
    data_plane.map_or("-".into(), |plane| format!("{}/{}", plane.account, plane.region))
}

fn rows(found: &ListDataPlanesResponse) -> String {
    let registered = found.registered.iter().map(|plane| {
        let place = named(plane.data_plane.as_ref());
        vec![plane.name.clone(), place, plane.role.clone(), plane.role_id.clone()]
    });
    let by_token = found
        .by_token
        .iter()
        .map(|plane| vec!["-".into(), named(Some(plane)), "(join token)".into(), "-".into()]);
    let rows: Vec<Vec<String>> = registered.chain(by_token).collect();
    table::render(&["NAME", "DATA PLANE", "ROLE", "ROLE ID"], &rows)
}

fn json(found: &ListDataPlanesResponse) -> String {
    let place = |plane: Option<&DataPlane>| {
        let plane = plane.cloned().unwrap_or_default();
        (plane.account, plane.region)
    };
    let registered = found.registered.iter().map(|plane| {
        let (account, region) = place(plane.data_plane.as_ref());
        serde_json::json!({
            "name": plane.name,
            "account": account,
            "region": region,
            "role": plane.role,
            "role_id": plane.role_id,
            "added_at_unix_secs": plane.added_at_unix_secs,
        })
    });
    let by_token = found.by_token.iter().map(|plane| {
        serde_json::json!({"account": plane.account, "region": plane.region, "join_token": true})
    });
    let all: Vec<serde_json::Value> = registered.chain(by_token).collect();
    serde_json::to_string_pretty(&all).expect("plain values always serialize")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_how_the_agents_of_each_enroll() {
        let plane =
            |account: &str| DataPlane { account: account.into(), region: "eu-central-1".into() };
        let found = ListDataPlanesResponse {
            registered: vec![RegisteredDataPlane {
                name: "prod".into(),
                data_plane: Some(plane("123456789012")),
                role: "outstation-agent".into(),
                role_id: "AROAABCDEFGHIJKLMNOPQ".into(),
                added_at_unix_secs: 7,
            }],
            by_token: vec![plane("210987654321")],
        };
        assert_eq!(
            rows(&found),
            "NAME  DATA PLANE                 ROLE              ROLE ID\n\
             prod  123456789012/eu-central-1  outstation-agent  AROAABCDEFGHIJKLMNOPQ\n\
             -     210987654321/eu-central-1  (join token)      -\n"
        );
        let json: serde_json::Value = serde_json::from_str(&json(&found)).expect("JSON");
        assert_eq!(json[0]["role_id"], "AROAABCDEFGHIJKLMNOPQ");
        assert_eq!(json[1]["join_token"], true);
    }
}
