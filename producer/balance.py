"""How equal the work of the ranks is: predicted where the plan is, held to where trainers say how many they are."""

import json
import logging

from producer.api.channel import RefusedError
from producer.api.deal import divisors
from producer.api.protocol import Hello
from producer.plan import Plan

log = logging.getLogger(__name__)


def predicted(plan: Plan) -> str:
    """JSON of the recipe's limit, and for each number of ranks what the costliest does beyond the mean."""
    ranks = {str(count): round(plan.imbalance(count), 4) for count in divisors(plan.units)}
    return json.dumps({"limit": plan.part(0).recipe.max_imbalance, "ranks": ranks}, sort_keys=True)


def said(ranks: int | str, imbalance: float) -> str:
    """For people."""
    return f"the costliest of {ranks} data-parallel ranks is predicted {imbalance:.1%} above the mean"


def lines(balance: str) -> list[str]:
    """What a fleet says of `predicted` at its start."""
    found = json.loads(balance or "{}")
    limit = found.get("limit", 0.0)
    return [
        said(count, share) + (f": refused, the limit is {limit:.1%}" if share > limit else "")
        for count, share in found.get("ranks", {}).items()
        if int(count) > 1
    ]


def hold(balance: str, hello: Hello) -> None:
    """RefusedError if the trainer's ranks are predicted to wait for each other longer than the recipe allows.

    Nothing is held of who does not say how many they are, or where nothing was predicted.
    """
    found = json.loads(balance or "{}")
    share = found.get("ranks", {}).get(str(hello.ranks))
    if share is None:
        return
    if share > found["limit"]:
        raise RefusedError(
            f"recipe.max_imbalance: {said(hello.ranks, share)}, the limit is {found['limit']:.1%}; use fewer ranks, "
            "more units a step, narrower captions, or raise the limit"
        )
    log.info("trainer %s: %s", hello.trainer, said(hello.ranks, share))
