"""Pictures to tokens of Qwen2.5-VL's language model, for edit prompts."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from model.pretrained import load_part


@dataclass(frozen=True, eq=False)
class Seen:
    """One picture as the language model takes it: `states` [h w, e] of `grid` (h, w) tokens."""

    states: Tensor
    grid: tuple[int, int]


class Vision:
    """The vision tower in `root`/text_encoder behind the image processor in `root`/processor.

    Pictures run one by one, so that the bits of each depend on it alone.
    """

    def __init__(self, root: Path, config: Qwen2_5_VLConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._processor = Qwen2VLImageProcessorPil.from_pretrained(root / "processor", local_files_only=True)
        self._net = load_part(
            Qwen2_5_VisionTransformerPretrainedModel,
            root / "text_encoder",
            config.vision_config,
            r"^(model\.)?visual\.",
            dtype,
        ).to(device)

    def see(self, picture: Image.Image) -> Seen:
        """`picture`, resized to whole tokens by the processor."""
        inputs = self._processor(images=[picture], return_tensors="pt")
        grid: Tensor = inputs["image_grid_thw"]
        merge = self._net.spatial_merge_size
        pixels = inputs["pixel_values"].to(self._net.device, self._net.dtype)
        states: Tensor = self._net(pixels, grid_thw=grid.to(self._net.device)).pooler_output
        _, height, width = grid[0].tolist()
        return Seen(states, (height // merge, width // merge))
