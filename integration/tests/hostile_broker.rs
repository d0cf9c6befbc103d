//! Somebody has the broker's whole machine: its database, every key on it. They write orders of
//! their own into it. Nothing happens in the account, and whoever works with it is told.

use anyhow::{Context as _, Result};
use outstation_cli::context::Context as OutstationContext;
use outstation_cli::dev::ServiceName;
use outstation_cli::key;
use outstation_integration::{LONG, ONE_AT_A_TIME, World};
use outstation_protocol::model::Scaling;
use outstation_protocol::order::{Intent, Order};
use outstation_protocol::signing::{Signer, Signers, SigningKey};
use outstation_protocol::{Digest, Envelope, Generation};

/// What the thief makes of the order that was put honestly.
struct Forgery {
    what: &'static str,
    envelope: Envelope,
    generation: u64,
    refused: String,
}

fn raised(honest: &Envelope, generation: u64) -> Result<Order> {
    let mut order = Order::from_envelope(honest)?;
    if generation > 1 {
        order.parent = Some(honest.digest());
    }
    order.generation = Generation(generation);
    match &mut order.intent {
        Intent::Apply(spec) => spec.scaling = Scaling::Provisioned { desired_nodes: 9 },
        Intent::Destroy => unreachable!("it was applied"),
    }
    Ok(order)
}

fn forgeries(honest: &Envelope) -> Result<Vec<Forgery>> {
    let own = SigningKey::from_seed(&[9; 32]);
    let replaced = raised(honest, 1)?.into_envelope();
    let unsigned = raised(honest, 2)?.into_envelope();
    let mut copied = raised(honest, 3)?.into_envelope();
    copied.signatures.clone_from(&honest.signatures);
    let mut by_thief = raised(honest, 4)?.into_envelope();
    by_thief.sign(&own);
    let mut in_devs_name = raised(honest, 5)?.into_envelope();
    in_devs_name.sign(&own);
    in_devs_name.signatures[0].keyid.clone_from(&honest.signatures[0].keyid);
    let mut end = raised(honest, 6)?;
    end.intent = Intent::Destroy;
    let mut end = end.into_envelope();
    end.signatures.clone_from(&honest.signatures);

    let altered = "the signature of dev is not one over this order".to_owned();
    let stranger = format!("it is signed by {} only", own.public().id().short());
    Ok([
        ("the order itself, altered", replaced, 1, "was accepted with other bytes".to_owned()),
        ("unsigned", unsigned, 2, "nobody has signed it".to_owned()),
        ("with the signature of the honest one", copied, 3, altered.clone()),
        ("signed by the thief", by_thief, 4, stranger),
        ("signed by the thief in dev's name", in_devs_name, 5, altered.clone()),
        ("the group's end", end, 6, altered),
    ]
    .into_iter()
    .map(|(what, envelope, generation, refused)| Forgery { what, envelope, generation, refused })
    .collect())
}

/// As root on the broker's machine would: while it is down, by hand.
fn write_into_database(world: &World, forgery: &Forgery) -> Result<()> {
    let path = world.system.layout().state.join("broker/broker.db");
    let database = rusqlite::Connection::open(path)?;
    let digest: &Digest = &forgery.envelope.digest();
    let put_at: i64 = database.query_row("SELECT max(put_at) FROM orders", [], |row| row.get(0))?;
    database.execute(
        "INSERT OR REPLACE INTO orders (account, region, name, generation, digest, envelope, put_at)
         SELECT account, region, name, ?1, ?2, ?3, ?4 FROM orders LIMIT 1",
        rusqlite::params![
            i64::try_from(forgery.generation)?,
            digest.as_bytes().as_slice(),
            forgery.envelope.to_json(),
            put_at,
        ],
    )?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_no_signer_has_signed_do_nothing() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("hostile").await?;
    world.edit("desired_nodes=3", "desired_nodes=1")?;
    world.apply(1).await?;
    let honest = world.system.admin().await?.group(&world.group).await?.envelope;
    let before: Vec<String> =
        world.system.instances().await?.into_iter().map(|i| i.instance_id).collect();
    assert_eq!(before.len(), 1);

    let mut last = None;
    for forgery in forgeries(&honest)? {
        world.system.hold(ServiceName::Broker).await;
        write_into_database(&world, &forgery)?;
        world.system.release(ServiceName::Broker);
        let digest = forgery.envelope.digest();
        let group = world
            .system
            .wait_group(&world.group, LONG, |group| {
                group.refused.as_ref().is_some_and(|refused| refused.digest == digest)
            })
            .await
            .with_context(|| format!("{}\n{}", forgery.what, world.system.log_tails(20)))?;
        let refused = group.refused.context("awaited above")?;
        assert!(refused.message.contains(&forgery.refused), "{}: {refused:?}", forgery.what);
        let accepted = group.accepted.context("it was")?;
        assert_eq!(accepted.digest, honest.digest(), "{}", forgery.what);
        // Whoever works with the account is not led on by it either.
        let run = world.outstation(&["apply", ".", "--no-wait"])?;
        assert_eq!(run.code, 1, "{}: {run}", forgery.what);
        let told = format!(
            "the broker's newest order of {}, generation {} {digest}, cannot be trusted",
            world.group, forgery.generation
        );
        assert!(run.stderr.contains(&told), "{}: {run}", forgery.what);
        last = Some(digest);
    }

    // Nobody came, nobody went, and it is still dev's order that counts.
    let now: Vec<String> =
        world.system.instances().await?.into_iter().map(|i| i.instance_id).collect();
    assert_eq!(now, before);
    let run = world.outstation(&["destroy", "delay_tsg", "--yes", "--confirm-destroy", "1"])?;
    assert!(run.stderr.contains("cannot be trusted"), "{run}");

    // A person who has looked goes on above what the thief has written.
    let trust = last.context("there were some")?.to_string();
    world.edit("desired_nodes=1", "desired_nodes=2")?;
    let run = world.outstation(&["apply", ".", "--trust-order", &trust])?;
    assert_eq!(run.code, 0, "{run}");
    world.ready(2).await?;
    let run = world.outstation(&["describe", "delay_tsg"])?;
    assert!(run.stdout.contains("signed by    dev\n"), "{run}");
    assert!(run.stdout.contains("generation 7 "), "{run}");
    world.system.shutdown().await
}

/// One person, or whoever has their key, is not enough where the account says two.
#[tokio::test(flavor = "multi_thread")]
async fn two_have_to_sign_where_the_account_says_so() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("cosign").await?;
    world.edit("desired_nodes=3", "desired_nodes=1")?;
    let layout = world.system.layout();
    let bobs_key = layout.state.join("bob.pem");
    let bob = Signer {
        name: "bob".to_owned().try_into().map_err(anyhow::Error::msg)?,
        key: key::create(&bobs_key)?.public(),
    };
    let rules = std::fs::read_to_string(layout.guardrails())?;
    let two = rules
        .replace("threshold = 1\nkeys = [\n", "threshold = 2\nkeys = [\n  BOB,\n")
        .replace("BOB", &format!("{{ name = \"bob\", key = \"{}\" }}", bob.key));
    assert_ne!(two, rules);
    std::fs::write(layout.guardrails(), two)?;
    let mut context = OutstationContext::read(&world.system.context_path())?;
    let known = context.signers.clone().context("dev's")?;
    let signers = known.signers().cloned().chain([bob]).collect();
    context.signers = Some(Signers::new(2, signers)?);
    let (devs, bobs) = (layout.state.join("devs.toml"), layout.state.join("bobs.toml"));
    context.write(&devs)?;
    context.signing_key = Some(bobs_key);
    context.write(&bobs)?;
    let (devs, bobs) = (devs.display().to_string(), bobs.display().to_string());
    let file = layout.state.join("orders.ndjson").display().to_string();

    let apply: &[&str] = &["apply", ".", "--context", &devs];
    let out: &[&str] = &["apply", ".", "--context", &devs, "--out", &file];
    let put: &[&str] = &["order", "put", &file, "--context", &devs];
    let sign: &[&str] = &["order", "sign", &file, "--context", &bobs];
    let sign_yes: &[&str] = &["order", "sign", &file, "--context", &bobs, "--yes"];
    for (arguments, code, stdout, stderr) in [
        (apply, 1, "", "2 signers have to sign, and you are one"),
        (put, 1, "", "read the orders"),
        (out, 0, "1 order written to", ""),
        (out, 1, "", "is there already, and is not overwritten"),
        (put, 1, "", "cannot be put yet: it is signed by dev only, and 2 signers have to"),
        (sign, 1, "1 group to create", "nobody can be asked whether this is to be signed"),
        (sign_yes, 0, "generation 1 signed by bob, dev; 2 of 2", ""),
        (put, 0, "converged", ""),
        // It is there now; nobody signs it a second time as if it were news.
        (sign_yes, 1, "", "generation 1 of delay_tsg does not follow what is there now"),
    ] {
        let run = world.outstation(arguments)?;
        assert_eq!(run.code, code, "{arguments:?}: {run}");
        assert!(run.stdout.contains(stdout), "{arguments:?}: {run}");
        assert!(run.stderr.contains(stderr), "{arguments:?}: {run}");
    }
    world.ready(1).await?;
    let run = world.outstation(&["describe", "delay_tsg", "--context", &devs])?;
    assert!(run.stdout.contains("signed by    bob, dev\n"), "{run}");

    // The same with a context that believes one signer enough: the account does not.
    world.edit("desired_nodes=1", "desired_nodes=2")?;
    let run = world.outstation(&["apply", "."])?;
    assert_eq!(run.code, 1, "{run}");
    let refused = "refused by signature: it is signed by dev only, and 2 signers have to";
    assert!(run.stderr.contains(refused), "{run}");
    assert_eq!(world.system.instances().await?.len(), 1);

    // A file that was changed on its way is noticed by whoever signs it next.
    let text = std::fs::read_to_string(&file)?;
    let mut envelope = Envelope::from_json(text.trim().as_bytes())?;
    envelope.payload = raised(&envelope, 1)?.into_envelope().payload;
    std::fs::write(&file, envelope.to_json())?;
    let run = world.outstation(put)?;
    assert!(run.stderr.contains("is not one over this order"), "{run}");
    world.system.shutdown().await
}
