"""Encoded units to a trained model: batch, loss, step, checkpoint, export. The torchrun side; never imports Ray."""
