//! How the steps of one list are connected: `routes`, `after`, and the order in which they are listed.

use std::{collections::HashMap, sync::Arc};

use super::step::{After, Draft, Need};
use crate::{
    document::{reader::Reader, wording},
    model::graph::{Edge, Join, StepIndex},
    node::{ERROR, MAIN, Ports},
};

/// The most connections between the steps of one list.
const LINKS_MAX: usize = 10_000;

/// What leaves one step, and how it is entered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wired {
    pub(super) edges: Vec<Edge>,
    pub(super) join: Option<Join>,
    /// Whether something is said about its port `error`.
    pub(super) error_routed: bool,
}

/// A connection in the making.
struct Link<'a> {
    from: StepIndex,
    port: &'a str,
    to: StepIndex,
    slot: Option<usize>,
    /// Whether a `routes` leads along it. Only such links may lead back.
    routed: bool,
}

/// Connects the steps. The entry is index 0, the steps follow in the order of `drafts`. `None` when a fault was found.
pub(super) fn wire<'a>(
    drafts: &[Draft<'a>],
    elsewhere: &dyn Fn(&str) -> bool,
) -> Option<Vec<Wired>> {
    let faults = drafts.first()?.at.faults();
    let before = faults.len();
    let mut wiring = Wiring {
        drafts,
        elsewhere,
        index: HashMap::from([("trigger", 0)]),
        links: Vec::new(),
        linked: HashMap::new(),
        named: vec![false; drafts.len() + 1],
        wired: vec![Wired::default(); drafts.len() + 1],
    };
    for (at, draft) in drafts.iter().enumerate() {
        if let Some(id) = draft.id {
            wiring.index.entry(id).or_insert(at + 1);
        }
    }
    for step in 1..=drafts.len() {
        wiring.routes(step);
    }
    for step in 1..=drafts.len() {
        wiring.after(step);
    }
    for step in 1..=drafts.len() {
        if !wiring.named[step] {
            wiring.follow(step);
        }
    }
    if wiring.links.len() > LINKS_MAX {
        let message = format!("A list of steps should have at most {LINKS_MAX} connections");
        drafts.first()?.at.fault("too_long", message);
    }
    if faults.len() == before {
        wiring.enter_loops();
        wiring.check_cycles();
    }
    if faults.len() == before {
        wiring.check_reach();
    }
    (faults.len() == before).then(|| wiring.finish())
}

struct Wiring<'d, 'a> {
    drafts: &'d [Draft<'a>],
    elsewhere: &'d dyn Fn(&str) -> bool,
    index: HashMap<&'a str, StepIndex>,
    links: Vec<Link<'a>>,
    /// Where in `links` a connection is.
    linked: HashMap<(StepIndex, &'a str, StepIndex), usize>,
    /// Whether a `routes` names the step.
    named: Vec<bool>,
    wired: Vec<Wired>,
}

impl<'d, 'a> Wiring<'d, 'a> {
    /// The step itself. The entry has no draft.
    fn draft(&self, step: StepIndex) -> Option<&'d Draft<'a>> {
        step.checked_sub(1).map(|index| &self.drafts[index])
    }

    fn label(&self, step: StepIndex) -> &'a str {
        self.draft(step)
            .map_or("trigger", |draft| draft.id.unwrap_or("?"))
    }

    fn find(&self, name: &str, at: &Reader<'a>) -> Option<StepIndex> {
        let found = self.index.get(name).copied();
        if found.is_none() && !at.faults().is_full() {
            let message = if (self.elsewhere)(name) {
                format!(
                    "The step `{name}` is in another list of steps: nothing leads into a `map` or out of one"
                )
            } else {
                let mut known: Vec<_> = self.index.keys().copied().collect();
                known.sort_unstable_by_key(|id| self.index[id]);
                let hint = wording::hint(name, known, "the steps are");
                format!("Unknown step `{name}`{hint}")
            };
            at.fault("value_error", message);
        }
        found
    }

    /// Whether the step may emit on the port. A fault where it cannot: of the name at `at` where that is the port.
    fn has_port(&self, step: StepIndex, port: &str, at: &Reader<'a>, named: bool) -> bool {
        let entry = Ports::Named(vec![MAIN.to_owned()]);
        let ports = match self.draft(step) {
            None => Some(&entry),
            Some(_) if port == ERROR => None,
            Some(draft) => draft.ports.as_ref(),
        };
        let Some(Ports::Named(names)) = ports else {
            return true;
        };
        if names.iter().any(|name| name == port) {
            return true;
        }
        let label = self.label(step);
        let hint = wording::hint(port, names.iter().map(String::as_str), "its ports are");
        let message = format!("The step `{label}` has no port `{port}`{hint}");
        match named {
            true => at.fault_of_name("value_error", message),
            false => at.fault("value_error", message),
        }
        false
    }

    fn link(&mut self, link: Link<'a>) {
        self.linked
            .insert((link.from, link.port, link.to), self.links.len());
        self.links.push(link);
    }

    fn after(&mut self, step: StepIndex) {
        let Some(after) = self.draft(step).and_then(|draft| draft.after.as_ref()) else {
            return;
        };
        let several = after.len() > 1;
        for (
            slot,
            After {
                step: name,
                port,
                at,
            },
        ) in after.iter().enumerate()
        {
            let Some(from) = self.find(name, at) else {
                continue;
            };
            if !self.has_port(from, port, at, false) {
                continue;
            }
            self.wired[from].error_routed |= *port == ERROR;
            let slot = several.then_some(slot);
            // A route along the same way says the same thing twice: it is one connection.
            match self.linked.get(&(from, port, step)) {
                Some(&route) => self.links[route].slot = slot,
                None => self.link(Link {
                    from,
                    port,
                    to: step,
                    slot,
                    routed: false,
                }),
            }
        }
    }

    fn routes(&mut self, from: StepIndex) {
        let routes = self
            .draft(from)
            .map(|draft| draft.routes.as_slice())
            .unwrap_or_default();
        for route in routes {
            self.wired[from].error_routed |= route.port == ERROR;
            let port_exists = self.has_port(from, route.port, &route.at, true);
            for (name, at) in &route.targets {
                let Some(to) = self.find(name, at) else {
                    continue;
                };
                if to == 0 {
                    at.fault("value_error", "The trigger cannot be led back to");
                    continue;
                }
                self.named[to] = true;
                if port_exists {
                    self.link(Link {
                        from,
                        port: route.port,
                        to,
                        slot: None,
                        routed: true,
                    });
                }
            }
        }
    }

    /// Lets a step follow the one listed before it, unless it has `after`.
    fn follow(&mut self, step: StepIndex) {
        let Some(draft) = self.draft(step).filter(|draft| draft.after.is_none()) else {
            return;
        };
        let from = step - 1;
        let before = self.draft(from);
        let ended = |draft: &Draft<'a>| {
            draft
                .routes
                .iter()
                .any(|route| route.port == MAIN && route.ends)
        };
        if before.is_some_and(ended) {
            return;
        }
        // A step without any port ends the run; what is listed behind it is never reached, which is no fault.
        if let Some(Ports::Named(ports)) = before.and_then(|before| before.ports.as_ref())
            && !ports.is_empty()
            && !ports.iter().any(|port| port == MAIN)
        {
            let label = self.label(from);
            let quoted = wording::join(ports.iter().map(|port| format!("`{port}`")), "and");
            let message = format!(
                "This step is listed after `{label}`, which has no port `main` but {quoted}: name it in that step's `routes`, or give it `after`"
            );
            return draft.at.fault("value_error", message);
        }
        self.link(Link {
            from,
            port: MAIN,
            to: step,
            slot: None,
            routed: false,
        });
    }

    /// A step that only routes from further on lead to is the head of a loop. It has to be entered once before it can
    /// be led back to, so it follows the step listed before it all the same.
    fn enter_loops(&mut self) {
        for step in 1..=self.drafts.len() {
            let led_back_to = |link: &Link<'a>| link.to == step && link.from >= step;
            let only_back = self
                .links
                .iter()
                .filter(|link| link.to == step)
                .all(led_back_to);
            if self.named[step] && only_back && !self.reached()[step] {
                self.follow(step);
            }
        }
    }

    /// Steps that wait for each other would never start: a way back must be a route.
    fn check_cycles(&self) {
        let targets = self.targets(|link| !link.routed);
        let waits: Vec<_> = (0..targets.len())
            .map(|step| reach(&targets, step))
            .collect();
        let mut reported = vec![false; waits.len()];
        for step in 1..waits.len() {
            if reported[step] || !waits[step][step] {
                continue;
            }
            let circle: Vec<_> = (step..waits.len())
                .filter(|&other| waits[step][other] && waits[other][step])
                .collect();
            circle.iter().for_each(|&member| reported[member] = true);
            let names = wording::join(
                circle
                    .iter()
                    .map(|&member| format!("`{}`", self.label(member))),
                "and",
            );
            let message = match circle.len() {
                1 => format!(
                    "The step {names} waits for itself; to repeat it, lead back through `routes`"
                ),
                _ => format!(
                    "The steps {names} wait for each other; this is a cycle without a loop: to repeat them, lead back through `routes`"
                ),
            };
            if let Some(draft) = self.draft(step) {
                draft.at.fault("value_error", message);
            }
        }
    }

    fn check_reach(&self) {
        let reached = self.reached();
        for (step, draft) in (1..).zip(self.drafts) {
            if !reached[step] {
                let message = "Nothing leads to this step: name it in `routes`, or give it `after`";
                draft.at.fault("value_error", message);
            }
        }
    }

    /// Which steps a way from the entry leads to.
    fn reached(&self) -> Vec<bool> {
        reach(&self.targets(|_| true), 0)
    }

    /// Where the links of each step lead.
    fn targets(&self, kept: impl Fn(&Link<'a>) -> bool) -> Vec<Vec<StepIndex>> {
        let mut targets = vec![Vec::new(); self.drafts.len() + 1];
        for link in self.links.iter().filter(|link| kept(link)) {
            targets[link.from].push(link.to);
        }
        targets
    }

    /// Routes come first, in the order written; then what follows by `after` or by order, as listed.
    fn finish(mut self) -> Vec<Wired> {
        self.links
            .sort_by_key(|link| if link.routed { 0 } else { link.to });
        for link in &self.links {
            self.wired[link.from].edges.push(Edge {
                port: link.port.into(),
                to: link.to,
                slot: link.slot,
            });
        }
        for step in 1..=self.drafts.len() {
            self.wired[step].join = self.join(step);
        }
        self.wired
    }

    fn join(&self, step: StepIndex) -> Option<Join> {
        let draft = self.draft(step)?;
        let after = draft.after.as_ref().filter(|after| after.len() > 1)?;
        let sources = after
            .iter()
            .filter_map(|after| Some((*self.index.get(after.step)?, Arc::from(after.port))));
        let need = match draft.join {
            None | Some((Need::All, _)) => None,
            Some((Need::Any, _)) => Some(1),
            Some((Need::Some(need), _)) => Some(need),
        };
        Some(Join {
            sources: sources.collect(),
            need,
        })
    }
}

/// Which steps a way of at least one link leads to.
fn reach(targets: &[Vec<StepIndex>], start: StepIndex) -> Vec<bool> {
    let mut seen = vec![false; targets.len()];
    let mut pending = targets[start].clone();
    while let Some(step) = pending.pop() {
        if !std::mem::replace(&mut seen[step], true) {
            pending.extend(&targets[step]);
        }
    }
    seen
}
