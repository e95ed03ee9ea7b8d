"""Heads: small networks from the embedding of a picture to one number.

A head is a folder with two files:

    model.safetensors   linear layers `weight` and `bias`; of several, the number before decides the order, whatever
                        stands ahead of it: layers.0.weight, layers.0.bias, layers.2.weight, ... One output at the end
    config.json         {"activation": "none", "encoder": "..."}: what lies between the layers, none, relu or gelu, and
                        the hash of the encoder's folder it was trained with; both may be left out

LAION's improved aesthetic predictor is such a stack, without activations, on CLIP ViT-L/14.
"""

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ValidationError

from producer.operator.encoder import Encoder
from producer.operator.pretrained import ModelError, check_weights, content_hash, read_config

_NAME = re.compile(r"(?:.*?\.)??(?:(?P<number>\d+)\.)?(?P<kind>weight|bias)")


class _Described(BaseModel, frozen=True, strict=True, extra="forbid"):
    activation: Literal["none", "relu", "gelu"] = "none"
    encoder: str = ""  # producer.operator.pretrained.content_hash of the encoder's folder; none: not checked


class Head:
    """The head in a folder, for the embeddings of an encoder; ModelError at once if they do not fit."""

    def __init__(self, setting: str, folder: Path, encoder: Encoder) -> None:
        """`setting` is the one that names the folder."""
        try:
            said = _Described.model_validate(read_config(setting, folder))
        except ValidationError as error:
            what = error.errors()[0]
            raise ModelError(f"{setting}: {folder}/config.json: {what['loc'][0]}: {what['msg']}") from None
        check_weights(setting, folder)
        self._activation = said.activation
        self._layers = _layers(setting, folder)
        first, last = self._layers[0][0].shape[1], self._layers[-1][0].shape[0]
        if first != encoder.width or last != 1:
            raise ModelError(
                f"{setting}: {folder} maps {first} numbers to {last}; the embeddings of {encoder.folder} have "
                f"{encoder.width}, and one number is wanted: give the head of this encoder, or the encoder of this head"
            )
        if said.encoder and said.encoder != (found := content_hash(encoder.folder)):
            raise ModelError(
                f"{setting}: {folder} was trained with the encoder {said.encoder[:12]}..., {encoder.folder} is "
                f"{found[:12]}...: its numbers would mean nothing"
            )

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """A number for each embedding [n, width]: float64 [n]."""
        seen = embeddings.astype(np.float64)
        for number, (weight, bias) in enumerate(self._layers):
            seen = (_activate(seen, self._activation) if number else seen) @ weight.T + bias
        return seen[:, 0]


def _layers(setting: str, folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    # Here, since this import takes seconds and most runs have no head; numpy would not read bfloat16.
    from safetensors.torch import load_file

    found: dict[int, dict[str, np.ndarray]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            parts = _NAME.fullmatch(name)
            if parts is None or tensor.ndim != (2 if parts["kind"] == "weight" else 1):
                raise ModelError(f"{setting}: {file} holds {name} {list(tensor.shape)}, no part of a linear layer")
            layer = found.setdefault(int(parts["number"] or 0), {})
            if parts["kind"] in layer:
                raise ModelError(f"{setting}: {file} holds {name} and another {parts['kind']} of the same layer")
            layer[parts["kind"]] = tensor.double().numpy()
    layers = [found[number] for number in sorted(found)]
    if not layers or any("weight" not in layer for layer in layers):
        raise ModelError(f"{setting}: {folder} holds no linear layers, or a bias without its weight")
    pairs = [(layer["weight"], layer.get("bias", np.zeros(len(layer["weight"])))) for layer in layers]
    widths = [weight.shape for weight, _ in pairs]
    for (outputs, _), (_, inputs) in pairwise(widths):
        if outputs != inputs:
            raise ModelError(f"{setting}: {folder} has layers of {widths}: {outputs} outputs meet {inputs} inputs")
    if any(len(bias) != len(weight) for weight, bias in pairs):
        raise ModelError(f"{setting}: {folder} has a bias of another length than its layer's {widths}")
    return pairs


def _activate(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "relu":
        return np.maximum(values, 0)
    if kind == "gelu":
        return 0.5 * values * (1 + np.vectorize(math.erf, otypes=[np.float64])(values / math.sqrt(2)))
    return values
