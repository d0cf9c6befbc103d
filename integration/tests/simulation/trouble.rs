//! What breaks and comes back: processes, links, stores, clocks, rules; and the calm after it.

use std::path::{Path, PathBuf};

use outstation_agent::account::guardrails::DestroyPolicy;
use outstation_protocol::InstanceId;
use rand::Rng as _;

use crate::agent::{Agent, Pid};
use crate::broker::{Broker, copy_database};
use crate::cloud::FINAL_VERSION;
use crate::nodes::Node;
use crate::oracle::Rules;
use crate::world::{Event, START_UNIX_SECS, World, data_plane};

/// Short, so that a run of minutes sees replacements.
pub const NODE_PATIENCE_SECS: u64 = 40;

impl World {
    pub fn start_agent(&mut self, disk: &Path) {
        self.numbers += 1;
        let (pid, store) = (Pid(self.numbers), self.store());
        let unix_millis = (START_UNIX_SECS * 1000) + self.now_millis;
        let seed = self.random.random();
        match Agent::start(pid, &store, disk, self.now_millis, unix_millis, self.setup, seed) {
            Ok(agent) => {
                self.agents.insert(pid, agent);
                self.note(format_args!("{pid:?} starts"));
            }
            // A service manager tries again.
            Err(error) => {
                self.note(format_args!("an agent does not start: {error}"));
                self.after(5000, Event::StartAgent { disk: disk.to_owned() });
            }
        }
    }

    /// SIGKILL: the other end of the link notices by silence. A service manager starts it again.
    pub fn crash_agent(&mut self, pid: Pid) {
        if let Some(agent) = self.agents.remove(&pid) {
            self.conns.remove(&pid);
            self.note(format_args!("{pid:?} crashes"));
            let late = self.random.random_range(100..20_000);
            self.after(late, Event::StartAgent { disk: agent.disk });
        }
    }

    pub fn start_broker(&mut self, restored: bool) {
        if restored && self.backup().exists() {
            copy_database(&self.backup(), &self.database());
        }
        self.broker = Some(Broker::start(&self.database(), data_plane(), self.unix_secs()));
        self.note(format_args!("the broker starts, restored: {restored}"));
    }

    pub fn broker_crashes(&mut self) {
        self.stop_broker();
        let restored = self.weather.broker_restored && self.random.random_bool(0.5);
        let late = self.random.random_range(100..90_000);
        self.bring_the_broker_back(restored, late);
    }

    pub fn stop_broker(&mut self) {
        self.broker = None;
        self.note(format_args!("the broker dies"));
    }

    pub fn back_up_the_broker(&mut self) {
        copy_database(&self.database(), &self.backup());
        self.note(format_args!("the broker's database is backed up"));
    }

    pub fn bring_the_broker_back(&mut self, restored: bool, in_millis: u64) {
        self.after(in_millis, Event::StartBroker { restored });
    }

    /// Something breaks, or comes back.
    pub fn trouble(&mut self) {
        let weather = self.weather.clone();
        let pick = self.random.random_range(0..11);
        let first = self.agents.keys().next().copied();
        match pick {
            0 if weather.partitions => {
                self.link_cut_until_millis =
                    self.now_millis + self.random.random_range(1000..120_000);
                self.note(format_args!("the link is cut"));
            }
            1 if weather.agent_crashes => {
                if let Some(pid) = first {
                    self.crash_agent(pid);
                }
            }
            2 if weather.agent_replaced && self.agents.len() == 1 => {
                let disk = self.dir.path().join(format!("disk-{}", self.numbers));
                if self.random.random_bool(0.5)
                    && let Some(pid) = first
                {
                    self.agents.remove(&pid);
                    self.conns.remove(&pid);
                    self.note(format_args!("{pid:?} is gone for good"));
                }
                self.start_agent(&disk);
            }
            3 if weather.agent_replaced && self.agents.len() > 1 => {
                if let Some(pid) = first {
                    self.agents.remove(&pid);
                    self.conns.remove(&pid);
                    self.note(format_args!("{pid:?} is gone for good"));
                }
            }
            4 if weather.broker_crashes && self.broker.is_some() => {
                if self.random.random_bool(0.5) || !self.backup().exists() {
                    self.back_up_the_broker();
                }
                // At once, or between two of its next writes.
                if self.random.random_bool(0.5) {
                    self.broker_crashes();
                } else if let Some(broker) = &mut self.broker {
                    broker.dies_after_writes = Some(self.random.random_range(1..6));
                }
            }
            5 if weather.aws_outages => {
                self.aws_out_until_millis =
                    self.now_millis + self.random.random_range(1000..60_000);
                self.note(format_args!("AWS is out"));
            }
            6 if weather.machines_die => self.a_machine_dies(),
            7 if weather.clock_jumps => {
                let days: i64 = self.random.random_range(-86_400..86_400);
                for agent in self.agents.values() {
                    let shifted = (agent.clock.unix_millis() / 1000).saturating_add_signed(days);
                    agent.clock.set_unix_millis(shifted * 1000);
                }
                self.note(format_args!("the agents' clocks jump by {days} s"));
            }
            8 if weather.store_outages => self.toggle_store(),
            9 | 10 if weather.ailing_nodes => self.a_node_ails(pick == 10),
            _ => {}
        }
    }

    pub fn a_machine_dies(&mut self) {
        let up: Vec<InstanceId> =
            self.nodes.values().filter(|node| node.up).map(|node| node.instance.clone()).collect();
        if !up.is_empty() {
            let victim = up[self.random.random_range(0..up.len())].clone();
            self.note(format_args!("{victim} dies"));
            self.machine(&victim, false);
        }
    }

    pub fn a_node_ails(&mut self, is_mute: bool) {
        let up: Vec<&mut Node> = self.nodes.values_mut().filter(|node| node.up).collect();
        if !up.is_empty() {
            let pick = self.random.random_range(0..up.len());
            let Some(node) = up.into_iter().nth(pick) else { return };
            (node.is_ailing, node.is_mute) = (!is_mute, is_mute);
            let instance = node.instance.clone();
            self.note(format_args!("{instance} {}", if is_mute { "is mute" } else { "ails" }));
        }
    }

    pub fn orders_folder(&self) -> (PathBuf, PathBuf) {
        let state = self.store().join("state");
        (state.join("orders"), state.join("orders-away"))
    }

    /// The account store's `state/` cannot be reached, or can be again.
    pub fn toggle_store(&mut self) {
        let (there, away) = self.orders_folder();
        if away.exists() {
            // An agent may have made an empty one meanwhile; it wrote nothing there.
            let _ = std::fs::remove_file(&there);
            let _ = std::fs::remove_dir_all(&there);
            std::fs::rename(&away, &there).expect("the store comes back");
            self.note(format_args!("the account store is back"));
        } else if there.exists() {
            std::fs::rename(&there, &away).expect("the store goes");
            // Not a folder: neither read nor written, as a bucket that does not answer.
            std::fs::write(&there, b"").expect("the store goes");
            self.note(format_args!("the account store is away"));
        }
    }

    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        let text = if rules.valid {
            format!(
                "name_prefix = \"{prefix}\"\nnodes_per_group_max = {group}\nnodes_total_max = {total}\n\
                 unsigned_orders = \"dev\"\ndestroy = \"{destroy}\"\npause = {pause}\n\
                 subnets = {subnets:?}\n\
                 min_healthy_percent = {healthy}\nreplacements_per_hour = {replacements}\n\
                 node_patience_secs = {NODE_PATIENCE_SECS}\n{changes}\
                 [launch_template]\nname = \"outstation-node\"\nversion = {version}\n",
                healthy = rules.min_healthy_percent,
                replacements = rules.replacements_per_hour,
                version = rules.version,
                prefix = crate::oracle::PREFIX,
                group = rules.nodes_per_group_max,
                total = rules.nodes_total_max,
                destroy = match rules.destroy {
                    DestroyPolicy::Allow => "allow",
                    DestroyPolicy::Approve => "approve",
                    DestroyPolicy::Never => "never",
                },
                pause = rules.pause,
                changes = rules
                    .changes_per_hour
                    .map_or(String::new(), |rate| format!("changes_per_hour = {rate}\n")),
                subnets = crate::policy::SUBNETS,
            )
        } else {
            "a typing error".to_owned()
        };
        let path = self.store().join("guardrails/guardrails.toml");
        let beside = path.with_extension("new");
        std::fs::write(&beside, text).expect("written");
        std::fs::rename(&beside, &path).expect("written");
        self.note(format_args!("{rules:?}"));
        // `watch_guardrails` looks once a second; what it finds wakes the reconciler.
        for agent in self.agents.values() {
            let _ = agent.shared.refresh_guardrails();
        }
    }

    /// Faults stop: everything that was broken is mended, and one agent is left.
    pub fn calm_down(&mut self) {
        self.calm = true;
        self.link_cut_until_millis = self.now_millis;
        self.aws_out_until_millis = self.now_millis;
        if self.orders_folder().1.exists() {
            self.toggle_store();
        }
        while self.agents.len() > 1 {
            let Some((pid, _)) = self.agents.pop_first() else { break };
            self.conns.remove(&pid);
        }
        for agent in self.agents.values() {
            agent.clock.set_unix_millis(START_UNIX_SECS * 1000 + self.now_millis);
        }
        let rules = Rules {
            valid: true,
            pause: false,
            destroy: match self.weather.approvals {
                true => DestroyPolicy::Approve,
                false => DestroyPolicy::Allow,
            },
            nodes_per_group_max: 6,
            nodes_total_max: 100,
            changes_per_hour: None,
            version: if self.weather.images { FINAL_VERSION } else { 1 },
            ..self.rules
        };
        self.set_rules(rules);
        self.note(format_args!("faults stop"));
    }
}
