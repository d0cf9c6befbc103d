//! The real thing: `aws-sim serve`, launchers in their namespaces, the AWS SDK for Rust as the client, and deaths.

#[path = "common/process.rs"]
mod process;

use aws_credential_types::Credentials;
use aws_sdk_autoscaling::config::{BehaviorVersion, Region, retry::RetryConfig};
use aws_sdk_autoscaling::error::ProvideErrorMetadata as _;
use aws_sdk_autoscaling::types::{LaunchTemplateSpecification, LifecycleHookSpecification, Tag};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use process::{ACCESS_KEY, SECRET, Serve, TOKEN, imds, processes};

fn autoscaling(serve: &Serve) -> aws_sdk_autoscaling::Client {
    let config = aws_sdk_autoscaling::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .endpoint_url(serve.url())
        .credentials_provider(Credentials::new(
            ACCESS_KEY,
            SECRET,
            Some(TOKEN.to_owned()),
            None,
            "test",
        ))
        .retry_config(RetryConfig::disabled())
        .build();
    aws_sdk_autoscaling::Client::from_conf(config)
}

fn sts(serve: &Serve, key: &str, secret: &str, token: &str) -> aws_sdk_sts::Client {
    let config = aws_sdk_sts::Config::builder()
        .behavior_version(aws_sdk_sts::config::BehaviorVersion::latest())
        .region(aws_sdk_sts::config::Region::new("eu-central-1"))
        .endpoint_url(serve.url())
        .credentials_provider(Credentials::new(key, secret, Some(token.to_owned()), None, "test"))
        .build();
    aws_sdk_sts::Client::from_conf(config)
}

async fn create(
    client: &aws_sdk_autoscaling::Client,
    name: &str,
    desired: i32,
    heartbeat: Option<i32>,
) {
    let hook = heartbeat.map(|secs| {
        LifecycleHookSpecification::builder()
            .lifecycle_hook_name("outstation-drain")
            .lifecycle_transition("autoscaling:EC2_INSTANCE_TERMINATING")
            .default_result("CONTINUE")
            .heartbeat_timeout(secs)
            .build()
    });
    let tag =
        Tag::builder().key("outstation:group").value("delay").propagate_at_launch(true).build();
    client
        .create_auto_scaling_group()
        .auto_scaling_group_name(name)
        .launch_template(
            LaunchTemplateSpecification::builder()
                .launch_template_name("outstation-node")
                .version("1")
                .build(),
        )
        .min_size(0)
        .max_size(10)
        .desired_capacity(desired)
        .availability_zones("eu-central-1a")
        .tags(tag)
        .set_lifecycle_hook_specification_list(hook.map(|hook| vec![hook]))
        .send()
        .await
        .unwrap();
}

/// A user-data script whose processes are recognised by `marker`: one that stays behind, and the service itself.
fn script(marker: &str) -> String {
    format!(
        "[ -e left ] || {{ touch left; sh -c 'sleep 3600; : {marker} left' & }}\nexec sh -c 'sleep 3600; : {marker} service'\n"
    )
}

#[tokio::test]
async fn the_sdk_creates_scales_drains_and_deletes() {
    let mut serve = Serve::start(100, &script("sdk-test"));
    let client = autoscaling(&serve);
    create(&client, "outstation-delay", 2, Some(300)).await;
    let lines = serve.in_service(2);
    assert_eq!(
        imds(&lines[0].imds, "meta-data/tags/instance/outstation:group").as_deref(),
        Some("delay")
    );
    assert_eq!(
        imds(&lines[0].imds, "meta-data/instance-id").as_deref(),
        Some(lines[0].instance_id.as_str())
    );
    assert_eq!(lines[0].group, "outstation-delay");
    assert!(lines[0].address.starts_with("127.100."));

    // What IMDS hands out is good for STS, and says which instance it is.
    let role: serde_json::Value = serde_json::from_str(
        &imds(&lines[0].imds, "meta-data/iam/security-credentials/outstation-node").unwrap(),
    )
    .unwrap();
    let field = |name: &str| role[name].as_str().unwrap();
    let who = sts(&serve, field("AccessKeyId"), field("SecretAccessKey"), field("Token"))
        .get_caller_identity()
        .send()
        .await
        .unwrap();
    assert_eq!(
        who.arn(),
        Some(
            format!(
                "arn:aws:sts::123456789012:assumed-role/outstation-node/{}",
                lines[0].instance_id
            )
            .as_str()
        )
    );
    assert_eq!(who.user_id(), Some(format!("AROAEXAMPLENODE:{}", lines[0].instance_id).as_str()));
    assert_eq!(who.account(), Some("123456789012"));
    let denied =
        sts(&serve, "ASIAUNKNOWN", "x", "y").get_caller_identity().send().await.unwrap_err();
    assert_eq!(denied.code(), Some("InvalidClientTokenId"));

    // Errors carry AWS's codes.
    let refused = client
        .delete_auto_scaling_group()
        .auto_scaling_group_name("outstation-delay")
        .send()
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some("ResourceInUse"));
    let refused = client
        .set_desired_capacity()
        .auto_scaling_group_name("outstation-delay")
        .desired_capacity(11)
        .send()
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some("ValidationError"));

    // Scale in: the instance waits, knows it through IMDS, is completed, is gone with all its processes.
    client
        .set_desired_capacity()
        .auto_scaling_group_name("outstation-delay")
        .desired_capacity(1)
        .send()
        .await
        .unwrap();
    let leaving = serve.until("one waits", |serve| {
        serve.instances().into_iter().find(|line| line.lifecycle_state == "Terminating:Wait")
    });
    serve.until("its IMDS says so", |_| {
        imds(&leaving.imds, "meta-data/autoscaling/target-lifecycle-state")
            .filter(|state| state == "Terminated")
    });
    client
        .complete_lifecycle_action()
        .auto_scaling_group_name("outstation-delay")
        .lifecycle_hook_name("outstation-drain")
        .instance_id(&leaving.instance_id)
        .lifecycle_action_result("CONTINUE")
        .send()
        .await
        .unwrap();
    let left = serve.in_service(1);
    assert_ne!(left[0].instance_id, leaving.instance_id);
    assert!(imds(&leaving.imds, "meta-data/instance-id").is_none());
    let described = client
        .describe_auto_scaling_groups()
        .auto_scaling_group_names("outstation-delay")
        .send()
        .await
        .unwrap();
    let group = &described.auto_scaling_groups()[0];
    assert_eq!((group.desired_capacity(), group.instances().len()), (Some(1), 1));

    client
        .delete_auto_scaling_group()
        .auto_scaling_group_name("outstation-delay")
        .force_delete(true)
        .send()
        .await
        .unwrap();
    serve.until("nothing is left", |_| processes("sdk-test").is_empty().then_some(()));
}

#[tokio::test]
async fn a_killed_launcher_takes_everything_along_and_is_replaced() {
    let marker = "kill-test";
    let mut serve = Serve::start(101, &script(marker));
    create(&autoscaling(&serve), "g", 1, None).await;
    let first = serve.in_service(1).remove(0);
    serve.until("its processes run", |_| (processes(marker).len() == 2).then_some(()));
    let before = processes(marker);

    // Outage: the simulation stands still, the instance's IMDS does not.
    let sim = Pid::from_raw(i32::try_from(serve.child.id()).unwrap());
    kill(sim, Signal::SIGSTOP).unwrap();
    assert_eq!(
        imds(&first.imds, "meta-data/instance-id").as_deref(),
        Some(first.instance_id.as_str())
    );
    kill(sim, Signal::SIGCONT).unwrap();

    kill(Pid::from_raw(first.launcher_pid.unwrap()), Signal::SIGKILL).unwrap();
    serve.until("all of it is dead", |_| {
        (!before.keys().any(|pid| processes(marker).contains_key(pid))).then_some(())
    });
    let second = serve.until("it is replaced", |serve| {
        serve.instances().into_iter().find(|line| {
            line.instance_id != first.instance_id && line.lifecycle_state == "InService"
        })
    });
    assert_ne!(second.address, first.address);
    assert!(imds(&first.imds, "meta-data/instance-id").is_none(), "its IMDS ended with it");
}

#[tokio::test]
async fn the_service_is_restarted_and_what_it_left_behind_lives_on() {
    let marker = "restart-test";
    let mut serve = Serve::start(102, &script(marker));
    create(&autoscaling(&serve), "g", 1, None).await;
    let line = serve.in_service(1).remove(0);
    let of = |kind: &str| processes(&format!("{marker} {kind}")).keys().copied().next();
    let (service, left) = serve.until("both run", |_| Some((of("service")?, of("left")?)));
    kill(Pid::from_raw(service), Signal::SIGKILL).unwrap();
    let again = serve.until("the service is back", |_| of("service").filter(|pid| *pid != service));
    assert_ne!(again, service);
    assert_eq!(of("left"), Some(left));
    assert_eq!(serve.instances()[0].instance_id, line.instance_id, "the same instance");
    let log = std::fs::read_to_string(
        serve.dir.path().join(format!("aws-sim/instances/{}.log", line.instance_id)),
    )
    .unwrap();
    assert!(log.contains("user data was ended by SIGKILL; again in 100 ms"), "{log}");
}

#[tokio::test]
async fn nothing_outlives_the_simulation_however_it_ends() {
    for (net, how) in [(103, Signal::SIGKILL), (104, Signal::SIGTERM), (105, Signal::SIGINT)] {
        let marker = format!("end-test-{net}");
        // Deaf to SIGTERM, so that only the kernel ends it.
        let mut serve = Serve::start(net, &format!("trap '' TERM\n{}", script(&marker)));
        create(&autoscaling(&serve), "g", 2, Some(300)).await;
        let lines = serve.in_service(2);
        serve.until("all run", |_| (processes(&marker).len() == 4).then_some(()));
        kill(Pid::from_raw(i32::try_from(serve.child.id()).unwrap()), how).unwrap();
        let status = serve.child.wait().unwrap();
        assert_eq!(status.success(), how != Signal::SIGKILL, "{how}: {status}");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let launchers = |id: &str| processes(&format!("launcher\0--instance\0{id}")).len();
        while !processes(&marker).is_empty()
            || lines.iter().any(|line| launchers(&line.instance_id) > 0)
        {
            assert!(
                std::time::Instant::now() < deadline,
                "{how}: {:?} outlived the simulation",
                processes(&marker)
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(imds(&lines[0].imds, "meta-data/instance-id").is_none());
    }
}

#[test]
fn a_port_in_use_is_said_in_two_lines() {
    let serve = Serve::start(106, "exec sleep 1\n");
    let output = process::serve(&serve.dir.path().join("sim.toml")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines.len() == 2
            && lines[0].starts_with("error: cannot listen on")
            && lines[1].starts_with("hint: "),
        "{said}"
    );
}
