"""Evaluating with the averaged weights in the place of those in training."""

from collections.abc import Iterator
from contextlib import contextmanager

from consumer.ema import Ema
from parallel.engine import Engine


@contextmanager
def ema_weights(engine: Engine, ema: Ema) -> Iterator[None]:
    """The engine's model computes with the average inside; on every rank at once, between steps.

    Weights, average and optimizer are afterwards what they were, to the bit. Inside, ranks may run different forwards,
    or none; `ema` holds the weights in training meanwhile, so nothing may be saved.
    """
    ema.swap(engine)
    try:
        engine.gather_parameters()
        yield
    finally:
        ema.swap(engine)
        engine.gather_parameters()
