//! Which earlier item an item descends from: what `$('step').item` gives.

use std::{collections::HashMap, sync::Arc};

use super::{Delivery, Execution, Finished, Input, RunKey};
use crate::{
    expression::{References, StepOutput},
    item::{Items, PairedItem},
};

impl Execution {
    /// What the expressions of a visit in progress may see of other steps: of those they name that have run.
    pub fn step_outputs(
        &self,
        key: RunKey,
        references: &References,
    ) -> HashMap<Arc<str>, StepOutput> {
        let Some(run) = self.runs.get(&key) else {
            return HashMap::new();
        };
        let mut outputs = HashMap::new();
        if references.any_step {
            let mut frame = Some(key.frame);
            while let Some(index) = frame {
                let at = self.frame(index);
                for (step, state) in at.body.steps.iter().zip(&at.steps) {
                    if let Some(latest) = &state.latest {
                        outputs
                            .entry(step.id.clone())
                            .or_insert_with(|| output_for(latest, &run.inputs));
                    }
                }
                frame = at.parent.map(|(map, _)| map.frame);
            }
        }
        for name in &references.steps {
            if let Some((id, latest)) = self.find_finished(key.frame, name) {
                outputs
                    .entry(id)
                    .or_insert_with(|| output_for(&latest, &run.inputs));
            }
        }
        outputs
    }

    /// The latest visit to a step, in this frame or one around it.
    fn find_finished(&self, frame: usize, name: &str) -> Option<(Arc<str>, Arc<Finished>)> {
        let at = self.frame(frame);
        if let Some(step) = at.body.find(name) {
            return Some((
                at.body.steps[step].id.clone(),
                at.steps[step].latest.clone()?,
            ));
        }
        let (map, _) = at.parent?;
        self.find_finished(map.frame, name)
    }
}

/// A step's output and the pairing of the current items with it. Where the current items descend from another
/// visit or port than the latest's first, that one is what the step gave *them*.
fn output_for(latest: &Arc<Finished>, inputs: &[Input]) -> StepOutput {
    let Some(input) = inputs.first() else {
        return StepOutput {
            items: latest.items(),
            paired: Arc::default(),
        };
    };
    let ancestors: Vec<Option<(Items, u32)>> = (0..input.items.len())
        .map(|index| ancestor(latest, input, index))
        .collect();
    let items = ancestors
        .iter()
        .flatten()
        .next()
        .map_or_else(|| latest.items(), |(items, _)| items.clone());
    let paired = ancestors
        .into_iter()
        .map(|found| {
            found
                .filter(|(of, _)| Arc::ptr_eq(of, &items))
                .map(|(_, index)| index)
        })
        .collect();
    StepOutput {
        items,
        paired: Arc::new(paired),
    }
}

/// The item of `target`'s step that item `index` of `input` descends from: its list and its place in it.
fn ancestor(target: &Finished, input: &Input, index: usize) -> Option<(Items, u32)> {
    let (mut delivery, mut offset) = locate(input, index)?;
    loop {
        let from = &delivery.from;
        if (from.frame, from.step) == (target.frame, target.step) {
            return Some((delivery.items().clone(), offset as u32));
        }
        let paired = match delivery.items().get(offset)?.paired_item {
            Some(paired) => paired,
            // With a single input item there is only one it can have come from.
            None if from.inputs.len() == 1 && from.inputs[0].items.len() == 1 => {
                PairedItem { item: 0, input: 0 }
            }
            None => return None,
        };
        (delivery, offset) = locate(
            from.inputs.get(paired.input as usize)?,
            paired.item as usize,
        )?;
    }
}

/// Which delivery brought item `index` of an input, and its place there.
fn locate(input: &Input, index: usize) -> Option<(&Delivery, usize)> {
    let mut offset = index;
    for delivery in &input.segments {
        let len = delivery.items().len();
        if offset < len {
            return Some((delivery, offset));
        }
        offset -= len;
    }
    None
}
