//! What goes wrong in one run. Each kind of fault is in play or not, as the seed says: a run with all
//! of them at once finds less than many with a few.

use outstation_aws_sim::wire::faults::Fault;
use rand::Rng as _;
use rand::rngs::StdRng;

#[derive(Debug, Clone, Default)]
pub struct Weather {
    /// Of a message on the control link.
    pub lost: f64,
    pub repeated: f64,
    pub delay_max_millis: u64,
    pub partitions: bool,
    pub agent_crashes: bool,
    /// A crash right after an order was judged, and the ledger written, before anybody was told.
    pub crash_after_verdict: f64,
    /// A replaced agent starts with an empty disk, sometimes while the old one still runs.
    pub agent_replaced: bool,
    pub broker_crashes: bool,
    /// A broker that comes back may have an older database.
    pub broker_restored: bool,
    pub aws: Vec<(Fault, f64)>,
    pub aws_latency_max_millis: u64,
    /// AWS is not there at all for a while.
    pub aws_outages: bool,
    pub boots_fail: f64,
    pub machines_die: bool,
    pub hands: bool,
    pub autoscaling: bool,
    /// The AutoScaling groups are the customer's: a profile, not a fault, but it meets all of them.
    pub scale_only: bool,
    pub clock_jumps: bool,
    pub guardrail_edits: bool,
    pub store_outages: bool,
    /// The account's people change the image, and cancel or roll back refreshes by hand.
    pub images: bool,
    /// Nodes stop working, or stop talking.
    pub ailing_nodes: bool,
    /// An end waits for the account's people, who approve some, wrongly at times.
    pub approvals: bool,
    /// Changes are counted, and what comes too fast waits.
    pub change_rate: bool,
}

impl Weather {
    pub fn draw(random: &mut StdRng) -> Weather {
        let mut odds =
            |max: f64| if random.random_bool(0.5) { random.random::<f64>() * max } else { 0.0 };
        let (lost, repeated, crash_after_verdict, boots_fail) =
            (odds(0.2), odds(0.2), odds(0.3), odds(0.3));
        let aws = [
            Fault::Throttled,
            Fault::Contended,
            Fault::Unavailable,
            Fault::RequestLost,
            Fault::ReplyLost,
            Fault::Stale,
        ]
        .map(|fault| (fault, odds(0.15)))
        .into();
        let mut coin = || random.random_bool(0.5);
        Weather {
            lost,
            repeated,
            crash_after_verdict,
            boots_fail,
            aws,
            partitions: coin(),
            agent_crashes: coin(),
            agent_replaced: coin(),
            broker_crashes: coin(),
            broker_restored: coin(),
            aws_outages: coin(),
            machines_die: coin(),
            hands: coin(),
            autoscaling: coin(),
            scale_only: coin() && coin(),
            clock_jumps: coin(),
            guardrail_edits: coin(),
            store_outages: coin(),
            images: coin(),
            ailing_nodes: coin(),
            approvals: false,
            change_rate: false,
            delay_max_millis: random.random_range(1..2000),
            aws_latency_max_millis: random.random_range(1..1500),
        }
    }

    pub fn fault(&self, random: &mut StdRng) -> Option<Fault> {
        self.aws.iter().find(|(_, odds)| random.random::<f64>() < *odds).map(|(fault, _)| *fault)
    }
}
