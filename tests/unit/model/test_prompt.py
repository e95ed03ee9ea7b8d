"""Prompts encode as the pipelines encode them, with and without pictures."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline, QwenImagePipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from launch.make_encoders import _text_encoder, make_tokenizer
from model.pretrained import PretrainedError
from model.prompt import PromptEncoder, PromptError
from model.template import EDIT, EDIT_PLUS, EDIT_PREFIX, T2I_PREFIX, VAE_AREA, TemplateError, fitted

PROMPTS = [
    "a cat",
    "",
    " ",
    "A red coffee cup on a saucer with a silver spoon, warm light from the left. " * 4,
    "\n\nstarts with line breaks {and} braces {}",
    "蓝色的天空写着“你好世界”。",
    "a photo of the moon " * 40,
]
WORDS = ["a", "red", "cup", "moon", "天空", "你好", "{}", "\n", "photo of", "light,", "1984", "é", "  ", "Übermut"]
# Small pictures, so that twenty batches are quick; the released area has a test of its own.
SMALL = replace(EDIT, area=96 * 96), replace(EDIT_PLUS, area=64 * 96)


class Processor(Qwen2VLProcessor):
    """Without the video processor, which needs torchvision."""

    def __init__(self, image_processor: object, tokenizer: Qwen2Tokenizer, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


@pytest.fixture(scope="module")
def text_encoder(encoders: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(encoders / "text_encoder", dtype=torch.float32)


@pytest.fixture(scope="module")
def pipeline(encoders: Path, text_encoder: Qwen2_5_VLForConditionalGeneration) -> QwenImagePipeline:
    """The pipeline with its text parts alone."""
    return QwenImagePipeline(None, None, text_encoder, Qwen2Tokenizer.from_pretrained(encoders / "tokenizer"), None)


@pytest.fixture(scope="module")
def root(encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoders with the released edit pipelines' image processor."""
    folder = tmp_path_factory.mktemp("edit")
    for name in ("text_encoder", "tokenizer"):
        (folder / name).symlink_to(encoders / name)
    sides = {"shortest_edge": 3136, "longest_edge": 12845056}
    tokenizer = Qwen2Tokenizer.from_pretrained(encoders / "tokenizer")
    Processor(Qwen2VLImageProcessorPil(size=sides), tokenizer).save_pretrained(folder / "processor")
    return folder


@pytest.fixture(scope="module")
def editors(root: Path, text_encoder: Qwen2_5_VLForConditionalGeneration) -> tuple[object, object]:
    """The two edit pipelines with their text parts alone."""
    tokenizer = Qwen2Tokenizer.from_pretrained(root / "tokenizer")
    parts = text_encoder, tokenizer, Processor(Qwen2VLImageProcessorPil.from_pretrained(root / "processor"), tokenizer)
    return QwenImageEditPipeline(None, None, *parts, None), QwenImageEditPlusPipeline(None, None, *parts, None)


@contextmanager
def told_of_pictures(text_encoder: Qwen2_5_VLForConditionalGeneration) -> Iterator[None]:
    """The text encoder with the token types that diffusers' edit pipelines leave out under transformers 5."""
    plain = text_encoder.forward
    token = text_encoder.config.image_token_id
    text_encoder.forward = lambda input_ids, **other: plain(
        input_ids=input_ids, mm_token_type_ids=(input_ids == token).int(), **other
    )
    try:
        yield
    finally:
        del text_encoder.forward


def picture(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@torch.inference_mode()
def theirs(pipeline: object, prompts: list[str], **more: object) -> list[torch.Tensor]:
    states, mask = pipeline.encode_prompt(prompt=prompts, device=torch.device("cpu"), **more)  # type: ignore[attr-defined]
    return list(states) if mask is None else [row[seen.bool()] for row, seen in zip(states, mask, strict=True)]


def assert_equal(ours: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for mine, other in zip(ours, wanted, strict=True):
        assert mine.shape == other.shape
        assert (mine - other).abs().max() < 1e-4


def test_prompts_of_mixed_length_encode_as_in_the_pipeline(encoders: Path, pipeline: QwenImagePipeline) -> None:
    encoder = PromptEncoder(encoders, batch=3)
    assert_equal(encoder.encode(PROMPTS), theirs(pipeline, PROMPTS))


@pytest.mark.parametrize("seed", range(20))
def test_random_encoders_and_prompts_encode_as_in_the_pipeline(seed: int, encoders: Path, tmp_path: Path) -> None:
    draw = random.Random(seed)
    config = Qwen2_5_VLConfig.from_pretrained(encoders / "text_encoder")
    text = config.text_config
    text.num_key_value_heads = draw.choice([1, 2, 4])
    text.num_attention_heads = text.num_key_value_heads * draw.choice([1, 2])
    text.hidden_size = config.vision_config.out_hidden_size = 16 * text.num_attention_heads
    text.intermediate_size, text.num_hidden_layers = draw.choice([48, 80]), draw.choice([1, 2, 3])
    text.layer_types = ["full_attention"] * text.num_hidden_layers
    config.vision_config.depth = 1
    torch.manual_seed(seed)
    whole = Qwen2_5_VLForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path / "text_encoder")
    (tmp_path / "tokenizer").symlink_to(encoders / "tokenizer")
    prompts = [" ".join(draw.choices(WORDS, k=draw.choice([0, 1, 5, 30, 90]))) for _ in range(draw.randint(1, 9))]
    encoder = PromptEncoder(tmp_path, batch=draw.choice([1, 2, 4]), multiple=draw.choice([1, 8, 32]))
    peer = QwenImagePipeline(None, None, whole, Qwen2Tokenizer.from_pretrained(tmp_path / "tokenizer"), None)
    assert_equal(encoder.encode(prompts), theirs(peer, prompts))


@pytest.mark.parametrize("positions", ["grid", "line"])
@pytest.mark.parametrize("seed", range(20))
def test_edit_prompts_encode_as_in_the_pipelines(
    seed: int, positions: str, root: Path, editors: tuple, text_encoder: Qwen2_5_VLForConditionalGeneration
) -> None:
    draw = random.Random(seed)
    one, many = SMALL
    prompts = [draw.choice(PROMPTS[:6]) for _ in range(draw.randint(1, 4))]
    pictures = [
        [picture(draw.randint(20, 90), draw.randint(20, 90), k) for k in range(draw.randint(1, 3))] for _ in prompts
    ]
    encoder = PromptEncoder(root, batch=draw.choice([1, 3]), multiple=draw.choice([1, 32]), positions=positions)  # type: ignore[arg-type]
    single = encoder.encode(prompts, one, [shown[:1] for shown in pictures])
    several = encoder.encode(prompts, many, pictures)
    sized = [[fitted(each, many.area) for each in shown] for shown in pictures]
    with told_of_pictures(text_encoder) if positions == "grid" else contextmanager(lambda: iter([None]))():
        first = [fitted(shown[0], one.area) for shown in pictures]
        assert_equal(single, theirs(editors[0], prompts, image=first))
        for prompt, shown, mine in zip(prompts, sized, several, strict=True):
            assert_equal([mine], theirs(editors[1], [prompt], image=shown))


def test_the_two_ways_to_place_pictures_differ(root: Path) -> None:
    shown = [[picture(64, 64, 0)]]
    grid, line = (PromptEncoder(root, positions=way).encode(["red"], SMALL[0], shown)[0] for way in ("grid", "line"))  # type: ignore[arg-type]
    assert (grid - line).abs().max() > 1e-2


@pytest.mark.parametrize("size", [(1000, 1000), (1920, 1080), (333, 1000), (50, 40), (31, 700)])
def test_pictures_are_resized_as_in_the_pipelines(size: tuple[int, int], editors: tuple) -> None:
    shown = picture(*size, 0)
    for area in (EDIT.area, EDIT_PLUS.area):
        width, height = edit_plus.calculate_dimensions(area, size[0] / size[1])
        wanted = editors[1].image_processor.resize(shown, height, width)
        assert np.array_equal(np.asarray(fitted(shown, area)), np.asarray(wanted))


def test_the_areas_are_the_pipelines() -> None:
    assert (EDIT_PLUS.area, VAE_AREA) == (edit_plus.CONDITION_IMAGE_SIZE, edit_plus.VAE_IMAGE_SIZE)
    assert EDIT.area == 1024 * 1024


def test_pictures_take_the_published_number_of_tokens(root: Path) -> None:
    encoder = PromptEncoder(root)
    square = picture(64, 64, 0)
    # Two tokens around each picture and five at the end.
    assert len(encoder.encode([""], EDIT, [[square]])[0]) == 37 * 37 + 2 + 5
    words = len(encoder._ids(["Picture 1: "])[0]) + len(encoder._ids(["Picture 2: "])[0])
    assert len(encoder.encode([""], EDIT_PLUS, [[square, square]])[0]) == 2 * (196 + 2) + words + 5


def test_the_templates_are_the_pipelines_and_their_prefixes_are_counted(
    encoders: Path, pipeline: QwenImagePipeline, editors: tuple
) -> None:
    encoder = PromptEncoder(encoders)
    assert pipeline.prompt_template_encode.startswith(T2I_PREFIX + "{}")
    assert encoder.prefix == pipeline.prompt_template_encode_start_idx == 34
    one, many = editors
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    assert EDIT.text("dog", [1]) == one.prompt_template_encode.format("dog")
    assert EDIT_PLUS.text("dog", [1, 1]) == many.prompt_template_encode.format(
        f"Picture 1: {shown}Picture 2: {shown}dog"
    )
    assert len(encoder._ids([EDIT_PREFIX])[0]) == one.prompt_template_encode_start_idx == 64


def test_the_prefix_is_run_once(encoders: Path) -> None:
    encoder = PromptEncoder(encoders, multiple=1)
    run: list[int] = []
    encoder._net.layers[0].register_forward_pre_hook(lambda _, inputs: run.append(inputs[0].shape[1]))
    for _ in range(2):
        states = encoder.encode(["a cat"])[0]
    assert run == [34, len(states), len(states)]


def test_a_line_break_that_joins_the_prefixs_last_one_encodes_as_in_the_pipeline(tmp_path: Path) -> None:
    """The released tokenizer has tokens of several line breaks; the tiny one has none until it reads some."""
    tokenizer = make_tokenizer(["one\n\ntwo\n\nthree"] * 50)
    whole = _text_encoder(tokenizer)
    whole.save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    encoder, prompts = PromptEncoder(tmp_path, multiple=1), ["a cat", "\na cat", "\n\na cat", "a dog"]
    run: list[tuple[int, ...]] = []
    encoder._net.layers[0].register_forward_pre_hook(lambda _, inputs: run.append(inputs[0].shape[:2]))
    assert encoder._ids([T2I_PREFIX])[0] != encoder._ids([T2I_PREFIX + prompts[1]])[0][: encoder.prefix]
    states = encoder.encode(prompts)
    assert_equal(states, theirs(QwenImagePipeline(None, None, whole, tokenizer, None), prompts))
    joined, rest = max(len(states[k]) for k in (1, 2)), max(len(states[k]) for k in (0, 3))
    assert run == [(2, encoder.prefix + joined), (1, encoder.prefix), (2, rest)]


def test_the_vision_tower_waits_for_the_first_picture_and_sees_each_once(root: Path) -> None:
    encoder = PromptEncoder(root)
    encoder.encode(PROMPTS)
    assert encoder._vision is None
    shown = picture(40, 40, 0)
    encoder.encode(["a", "b"], SMALL[0], [[shown], [shown]])
    assert encoder._vision is not None
    seen: list[int] = []
    encoder._vision._net.register_forward_pre_hook(lambda *_: seen.append(1))
    positive, negative = encoder.encode(["a cat", " "], SMALL[1], [[shown, picture(30, 50, 1)], [shown]])
    assert len(seen) == 2
    assert len(positive) > len(negative)


def test_prompts_of_mixed_length_are_padded_little(encoders: Path) -> None:
    encoder, draw = PromptEncoder(encoders), random.Random(3)
    prompts = ["moon " * draw.randint(1, 200) for _ in range(64)]
    shapes: list[tuple[int, ...]] = []
    encoder._net.layers[0].register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[:2]))
    encoder.encode(prompts)
    run, used = sum(rows * width for rows, width in shapes[1:]), sum(encoder.lengths(prompts))
    assert shapes[0] == (1, 34)
    assert all(rows <= encoder.batch for rows, _ in shapes)
    assert used <= run < 1.2 * used


def test_lengths_are_those_of_the_encoding(encoders: Path) -> None:
    encoder = PromptEncoder(encoders)
    assert encoder.lengths(PROMPTS) == [len(states) for states in encoder.encode(PROMPTS)]
    assert encoder.lengths([""]) == [5]
    assert encoder.lengths([]) == []
    assert encoder.encode([]) == []


def test_the_same_list_gives_the_same_bits(root: Path) -> None:
    encoder, again = PromptEncoder(root, batch=2), PromptEncoder(root, batch=2)
    encoder.encode(["something else before"])
    shown = [[picture(40 + k, 60, k)] for k in range(len(PROMPTS))]
    for template, pictures in (EDIT_PLUS, shown), (replace(EDIT_PLUS, prefix=T2I_PREFIX), shown):
        pairs = zip(encoder.encode(PROMPTS, template, pictures), again.encode(PROMPTS, template, pictures), strict=True)
        assert all(torch.equal(first, second) for first, second in pairs)
    assert all(torch.equal(*pair) for pair in zip(encoder.encode(PROMPTS), again.encode(PROMPTS), strict=True))


def test_a_prompt_beyond_the_limit_is_refused_with_both_numbers(root: Path) -> None:
    encoder = PromptEncoder(root, max_tokens=40)
    length = encoder.lengths(["cat " * 60])[0]
    with pytest.raises(PromptError, match=rf"'cat cat .* has {length} tokens, at most 40"):
        encoder.encode(["a dog", "cat " * 60])
    # A picture's tokens do not count.
    assert len(encoder.encode(["a dog"], EDIT_PLUS, [[picture(50, 50, 0)]])[0]) > 190


@pytest.mark.parametrize(
    ("template", "counts", "message"),
    [
        (EDIT, (0,), "has 0 pictures: its template takes one"),
        (EDIT, (2,), "has 2 pictures: its template takes one"),
        (EDIT_PLUS, (1, 0), "has 0 pictures: its template takes at least one"),
    ],
)
def test_pictures_that_do_not_fit_the_template_are_refused(
    template: object, counts: tuple[int, ...], message: str, root: Path
) -> None:
    small = replace(template, area=64 * 64)  # type: ignore[type-var]
    with pytest.raises(TemplateError, match=message):
        PromptEncoder(root).encode(["dog"] * len(counts), small, [[picture(9, 9, k) for k in range(n)] for n in counts])


def test_pictures_that_cannot_be_shown_are_refused(root: Path, encoders: Path) -> None:
    encoder, shown = PromptEncoder(root), picture(50, 50, 0)
    with pytest.raises(PromptError, match=r"'a <\|image_pad\|>'.* take it out"):
        encoder.encode(["a <|image_pad|>"], SMALL[0], [[shown]])
    with pytest.raises(TemplateError, match="2000x1 is too narrow"):
        encoder.encode(["a"], SMALL[0], [[picture(2000, 1, 0)]])
    with pytest.raises(PromptError, match="2 prompts with pictures for 1"):
        encoder.encode(["a", "b"], SMALL[0], [[shown]])
    with pytest.raises(PromptError, match="processor: no such folder"):
        PromptEncoder(encoders).encode(["a"], SMALL[0], [[shown]])


def test_neither_vision_tower_nor_head_is_kept(encoders: Path) -> None:
    names = {name.split(".")[0] for name, _ in PromptEncoder(encoders)._net.named_parameters()}
    assert names == {"embed_tokens", "layers", "norm"}


def renamed(root: Path, folder: Path, name: object) -> Path:
    """A copy of the encoders whose weights are named by `name`, and left out where it gives none."""
    for part in ("tokenizer", "processor"):
        (folder / part).symlink_to(root / part)
    (folder / "text_encoder").mkdir()
    config = (root / "text_encoder" / "config.json").read_text()
    (folder / "text_encoder" / "config.json").write_text(config)
    weights = load_file(root / "text_encoder" / "model.safetensors")
    kept = {name(key): value for key, value in weights.items() if name(key)}  # type: ignore[operator]
    save_file(kept, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    return folder


def test_newer_names_of_the_weights_load_too(root: Path, tmp_path: Path) -> None:
    def newer(key: str) -> str:
        return f"model.{key}" if key.startswith("visual.") else key.replace("model.", "model.language_model.")

    shown = [[picture(40, 60, 0)]]
    other = PromptEncoder(renamed(root, tmp_path, newer)).encode(["a cat"], SMALL[0], shown)[0]
    assert torch.equal(other, PromptEncoder(root).encode(["a cat"], SMALL[0], shown)[0])


def test_missing_weights_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"1 weights of Qwen2_5_VLTextModel are missing, first norm\.weight"):
        PromptEncoder(renamed(root, tmp_path, lambda key: "" if key == "model.norm.weight" else key))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="text_encoder"):
        PromptEncoder(tmp_path)
