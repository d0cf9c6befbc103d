//! What waits, in the order in which it will start: fair between targets by the time that their calls
//! take, and within a target between its callers.

use std::collections::{HashMap, VecDeque};

use crate::admission::{CallerId, RequestId, TargetId};
use crate::shares::Shares;

#[derive(Debug, Default)]
pub struct Queue {
    targets: HashMap<TargetId, TargetQueue>,
    order: Shares<TargetId>,
    len: usize,
}

#[derive(Debug, Default)]
struct TargetQueue {
    callers: HashMap<CallerId, VecDeque<RequestId>>,
    order: Shares<CallerId>,
    len: usize,
}

/// Where a request waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub target: TargetId,
    pub caller: CallerId,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn len_of(&self, target: TargetId) -> usize {
        self.targets.get(&target).map_or(0, |queue| queue.len)
    }

    pub fn push(&mut self, flow: Flow, request: RequestId) {
        self.flow(flow).push_back(request);
    }

    /// Given to a worker that ended before it started it: it waits where it waited before.
    pub fn push_front(&mut self, flow: Flow, request: RequestId) {
        self.flow(flow).push_front(request);
    }

    fn flow(&mut self, flow: Flow) -> &mut VecDeque<RequestId> {
        self.len += 1;
        let target = self.targets.entry(flow.target).or_default();
        if target.len == 0 {
            self.order.join(flow.target);
        }
        target.len += 1;
        let waiting = target.callers.entry(flow.caller).or_default();
        if waiting.is_empty() {
            target.order.join(flow.caller);
        }
        waiting
    }

    /// The request whose turn it is, among targets that may start one.
    pub fn next(&self, may_start: impl Fn(TargetId) -> bool) -> Option<(Flow, RequestId)> {
        let target = self.order.in_turn().find(|target| may_start(*target))?;
        let queue = self.targets.get(&target)?;
        let caller = queue.order.in_turn().next()?;
        let request = queue.callers.get(&caller)?.front()?;
        Some((Flow { target, caller }, *request))
    }

    /// The first of the flow starts, and will cost its target's share and its caller's so much.
    pub fn start(&mut self, flow: Flow, cost: u64, weight: u32) {
        let Some(target) = self.targets.get_mut(&flow.target) else { return };
        target.order.charge(flow.caller, cost);
        self.order.charge(flow.target, (cost / u64::from(weight.max(1))).max(1));
        if let Some(request) = target.callers.get(&flow.caller).and_then(VecDeque::front).copied() {
            self.remove(flow, request);
        }
    }

    /// It does not wait any more.
    pub fn remove(&mut self, flow: Flow, request: RequestId) {
        let Some(target) = self.targets.get_mut(&flow.target) else { return };
        let Some(waiting) = target.callers.get_mut(&flow.caller) else { return };
        let Some(at) = waiting.iter().position(|waits| *waits == request) else { return };
        waiting.remove(at);
        if waiting.is_empty() {
            target.callers.remove(&flow.caller);
            target.order.leave(flow.caller);
        }
        target.len -= 1;
        self.len -= 1;
        if target.len == 0 {
            // A target's queue stays: the targets are those of a bundle, and what its callers owe is here.
            self.order.leave(flow.target);
        }
    }

    /// How many targets share the workers.
    pub fn active_targets(&self) -> usize {
        self.order.active()
    }

    /// The newest request of whoever has the most waiting, and how many that are.
    pub fn newest_of_longest(&self) -> Option<(Flow, RequestId, usize)> {
        let longest = self.targets.iter().max_by_key(|(target, queue)| (queue.len, **target))?;
        let (target, queue) = longest;
        let (caller, waiting) =
            queue.callers.iter().max_by_key(|(caller, waiting)| (waiting.len(), **caller))?;
        Some((Flow { target: *target, caller: *caller }, *waiting.back()?, waiting.len()))
    }
}
