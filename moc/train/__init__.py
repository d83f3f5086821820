"""One optimizer step and what is around it: the LightningModule, optimizers, schedules, strategies,
checkpoints.

In: a model, a phase, batches. Out: trained weights; ``StepResult``s for the callbacks; checkpoints
and boundaries. ``step`` and what it imports need torch alone.
"""
