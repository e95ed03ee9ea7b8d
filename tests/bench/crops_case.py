"""Crops of photographs among the embeddings of an encoder: the cosine that tells them from other photographs, and what
is found above it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import pyarrow as pa
import torch
import transformers

from producer.operator.embedding import pack, stored
from producer.operator.encoder import Encoder

CONFUSED = 1e-4  # share of the pairs of different photographs that may lie above the cosine
_BATCH = 16
_DRAWS = 1000


class Found(NamedTuple):
    """Shares of the crops of one kind."""

    recall: float  # whose own photograph lies above the cosine
    low: float  # the recall's interval of 95 %
    high: float
    nearest: float  # whose own photograph is the nearest of all, at whatever cosine
    confused: float  # of the pairs of a crop and a photograph of something else, those above the cosine


def random_siglip(folder: Path, seed: int = 0) -> Path:
    """A small SigLIP that has learnt nothing, its weights drawn as transformers does before training."""
    words = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config={**words, "vocab_size": 64, "projection_size": 256, "bos_token_id": 1, "eos_token_id": 1},
        vision_config={
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
        },
    )
    transformers.SiglipImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.SiglipModel(config).save_pretrained(folder)
    return folder


def embedded(encoder: Encoder, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """The embeddings [n, width] of pictures, RGB uint8 [y, x, 3], as a curated set stores them and gives them back."""
    batches = [encoder.pictures(pictures[first : first + _BATCH]) for first in range(0, len(pictures), _BATCH)]
    return stored(pa.array([pack(one) for batch in batches for one in batch]))[1]


def cosines(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The cosine of each row of `others` [m, width] with each of `own` [n, width], [m, n]."""
    index = faiss.IndexFlatIP(own.shape[1])
    index.add(own)
    cosine, place = index.search(others, len(own))
    found = np.empty_like(cosine)
    np.put_along_axis(found, place, cosine, axis=1)
    return found


def least_cosine(between: np.ndarray, scenes: np.ndarray) -> float:
    """The cosine above which at most CONFUSED of the pairs of photographs lie, those of one scene aside.

    `between` [n, n] has the cosines of n photographs, `scenes` [n] what each shows.
    """
    pairs = between[np.triu(scenes[:, None] != scenes)]
    place = len(pairs) - 1 - int(CONFUSED * len(pairs))
    return float(np.partition(pairs, place)[place])


def crops_found(between: np.ndarray, crops: np.ndarray, scenes: np.ndarray) -> Found:
    """What is found of one kind of crop, from the cosines [n, n] of photographs, and of crop i with photograph j.

    The interval is of scenes drawn again, each with all its parts, and the cosine chosen again: parts of one photograph
    fail together, and the highest of the pairs decides on the cosine.
    """
    above, own = crops > least_cosine(between, scenes), np.arange(len(scenes))
    draw, members = np.random.default_rng(0), [np.flatnonzero(scenes == scene) for scene in np.unique(scenes)]
    recalls = []
    for _ in range(_DRAWS):
        rows = np.concatenate([members[one] for one in draw.integers(0, len(members), len(members))])
        least = least_cosine(between[np.ix_(rows, rows)], scenes[rows])
        recalls.append(float((crops[rows, rows] > least).mean()))
    low, high = np.quantile(recalls, (0.025, 0.975))
    return Found(
        recall=float(above[own, own].mean()),
        low=float(low),
        high=float(high),
        nearest=float((crops.argmax(axis=1) == own).mean()),
        confused=float(above[scenes[:, None] != scenes].mean()),
    )
