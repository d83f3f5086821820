"""Training: the LightningModule, optimizer and schedule, strategies, checkpoints."""
