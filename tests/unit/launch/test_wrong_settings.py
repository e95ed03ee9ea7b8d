"""A fleet of wrong settings: each is refused before anything starts, by a message with its name, numbers and fix."""

import json
from pathlib import Path

import pytest

from consumer.released import ReleasedError, check_released
from launch.config import ConfigError, load
from launch.encoder_facts import latent_statistics
from launch.settings import Settings
from launch.trainable import check_trainable
from parallel.config import MeshConfig
from parallel.layers import check_fp8, check_provider
from parallel.mesh import MeshError, check
from producer.api.deal import DealError, deal
from producer.encode import EncoderError, require_folders

CONFIG = Path(__file__).parents[3] / "launch/configs/smoke.toml"

# Overrides of the smoke configuration, and what is said of them, whole.
WRONG = {
    # names
    "train.stepz=3": "train.stepz: no such setting; did you mean steps?",
    "modle.num_layers=3": "modle: no such setting; did you mean model?",
    "optim.warmup=3": "optim.warmup: no such setting",
    "optim=3": "optim: input should be an object, got 3",
    "seed": "override 'seed': write it as key.path=value",
    "run.dir.x=1": "override 'run.dir.x=1': dir is a value, not a table",
    "cache.path=${run.dri}/cache": "${run.dri}: no such setting in the file",
    "annotate.server.urll=x": "annotate.server.url: required, not set\nannotate.server.model: required, not set\n"
    "annotate.server.urll: no such setting; did you mean url?",
    # types
    "train.steps=1.5": "train.steps: input should be a valid integer, got 1.5",
    'train.steps="many"': "train.steps: input should be a valid integer, got 'many'",
    "run.seed=true": "run.seed: input should be a valid integer, got True",
    "mesh.sp=1": "mesh.sp: input should be a valid boolean, got 1",
    "optim.betas=[0.9]": "optim.betas.1: required, not set",
    # choices
    "optim.precision=fp16": "optim.precision: input should be 'bf16' or 'fp32', got 'fp16'",
    "mesh.provider=te": "mesh.provider: input should be 'megatron' or 'transformer_engine', got 'te'",
    "schedule.kind=linear": "schedule.kind: input should be 'constant', 'cosine' or 'wsd', got 'linear'",
    "source.kind=zip": "source.kind: input should be 'tars', 'parquet' or 'folder', got 'zip'",
    "encoder.device=gpu": "encoder.device: 'gpu' is no device; use cpu, cuda or cuda:1",
    "sample.device=gpu": "sample.device: 'gpu' is no device; use cpu, cuda or cuda:1",
    'annotate={server={url="http://far.example/v1", model="m"}}': "annotate.server.url: http://far.example/v1 sends "
    "key and pictures without TLS; use https://, or say annotate.server.plaintext=true in a network where nobody else "
    "is",
    'annotate.server={url="https://far.example/v1", model="m", key="sk-1"}': "annotate.server.key: give the NAME of an "
    "environment variable that holds the key, never the key itself",
    'annotate={server={url="https://far.example/v1", model="m"}, local={model="x"}}': "annotate: both server and local "
    "are set; choose one",
    # bounds
    "train.steps=0": "train.steps: input should be greater than 0, got 0",
    "optim.lr=-1": "optim.lr: input should be greater than 0, got -1",
    "optim.bucket_elements=0": "optim.bucket_elements: input should be greater than or equal to 1, got 0",
    "mesh.tp=0": "mesh.tp: input should be greater than or equal to 1, got 0",
    "ema.decay=1.0": "ema.decay: input should be less than 1, got 1.0",
    "checkpoint.every=0": "checkpoint.every: input should be greater than 0, got 0",
    "checkpoint.keep=0": "checkpoint.keep: input should be greater than or equal to 1, got 0",
    "flow.prompt_dropout=1.0": "flow.prompt_dropout: input should be less than 1, got 1.0",
    "schedule.min_ratio=2": "schedule.min_ratio: input should be less than or equal to 1, got 2",
    "recipe.units=0": "recipe.units: input should be greater than or equal to 1, got 0",
    "recipe.resolutions=[8]": "recipe.resolutions: [8] must be one or more sizes of 16 or above",
    "fleet.port=70000": "fleet.port: input should be less than or equal to 65535, got 70000",
    "fleet.host=": "fleet.host: string should have at least 1 character, got ''",
    "pull.prefetch=0": "pull.prefetch: input should be greater than or equal to 1, got 0",
    "cache.limit_bytes=-1": "cache.limit_bytes: input should be greater than or equal to 0, got -1",
    "encoder.max_text_tokens=4096": "encoder.max_text_tokens: input should be less than or equal to 1024, got 4096",
    # what types and bounds let through
    "optim.lr=nan": "optim.lr: must be a finite number, got nan",
    "optim.clip=inf": "optim.clip: must be a finite number, got inf",
    "optim.betas=[nan, 0.9]": "optim.betas.0: must be a finite number, got nan",
    "mesh.timeout_s=inf": "mesh.timeout_s: must be a finite number, got inf",
    "recipe.splits={raw=inf}": "recipe.splits.raw: must be a finite number, got inf",
    "recipe.thresholds={nsfw={min=nan}}": "recipe.thresholds.nsfw.min: must be a finite number, got nan",
    "checkpoint.path=": (
        "checkpoint.path: empty, which would be the current folder; give a path, or leave it out for its default"
    ),
    "train.start_from=": (
        "train.start_from: empty, which would be the current folder; give a path, or leave it out for its default"
    ),
    # settings that contradict each other
    "mesh.cp=2": "mesh.cp: 2 ranks would split the tokens of one sample, and attention is per rank; use 1",
    "mesh.tp=1 mesh.sp=true": "mesh.sp: splits tokens over tensor-parallel ranks, and mesh.tp is 1; set it false",
    "mesh.fp8=current": "mesh.fp8: current is Transformer Engine's; set mesh.provider=transformer_engine",
    "optim.overlap_grads=false": "optim.overlap_params: works on the buckets of optim.overlap_grads; set both",
    "schedule.total_steps=30": ("schedule.total_steps: 30 ends before train.steps 60; make it at least as many"),
    "schedule.warmup_steps=60": (
        "schedule.total_steps: 60 must exceed warmup_steps 60 + decay_steps 0 where kind is cosine"
    ),
    "schedule.kind=wsd": "schedule.decay_steps: 0 with kind wsd; wsd needs some, others have none",
    "flow.terminal=0.02": "flow.terminal: 0.02 belongs to a shift, and flow.shift is none; set one or 0",
    "flow.fixed_shift=3.0": (
        "flow.fixed_shift: 3.0 changes nothing while flow.shift is none; set flow.shift=fixed, or leave it out"
    ),
    "flow.density=uniform flow.std=2": (
        "flow.std: 2.0 changes nothing while flow.density is uniform; set flow.density=logit_normal, or leave it out"
    ),
    "flow.mode_scale=1.0": (
        "flow.mode_scale: 1.0 changes nothing while flow.density is logit_normal; "
        "set flow.density=mode, or leave it out"
    ),
    "model.attention_head_dim=47": (
        "model.axes_dims_rope: (8, 20, 20) must be even, above 0 and sum to attention_head_dim 47; they sum to 48"
    ),
    "model.in_channels=60": "model.in_channels: 60 must be out_channels 16 * patch_size 2 squared, 64",
    "model.guidance_embeds=true": ("model.guidance_embeds: true, but the reference has no such layer; set it to false"),
    "recipe.aspects=[square]": "recipe.aspects: input should be a valid array, got '[square]'",
    'recipe.aspects=["1:0"]': "recipe.aspects: ['1:0']; write aspects as width:height, like 3:2",
    "recipe.splits={}": "recipe.splits: {}; name at least one split, and give each a positive weight",
    "recipe.thresholds={nsfw={min=0.9,max=0.1}}": (
        "recipe.thresholds.nsfw: min 0.9 is above max 0.1: no score can pass"
    ),
    "recipe.validation_samples=3": ("recipe.validation_samples: 3 and validation_share 0.1 are both set; choose one"),
    "pull.wait_s=500 watchdog.hang_s=600": (
        "pull.wait_s: 500 s for a unit outlasts mesh.timeout_s 120 s, after which the other ranks give up; make it less"
    ),
    "pull.address=127.0.0.1:1": (
        "pull.registry: give the fleet's registry file here, or its coordinator's host:port in pull.address, "
        "and not both"
    ),
    'pull={address="trainer",wait_s=9}': "pull.address: 'trainer'; write it as host:port, like 10.0.0.1:7000",
    "fleet.heartbeat_s=20": (
        "fleet.lease_s: 15 s ends while a worker that speaks every fleet.heartbeat_s 20 s is well; "
        "make it more than twice that"
    ),
    'sample.sizes=["250x256"]': "sample.sizes: 250x256; both sides must be positive multiples of 16",
}


def settings(*overrides: str) -> Settings:
    return load(Settings, CONFIG, list(overrides))


def test_the_settings_that_are_bent_here_are_right_by_themselves() -> None:
    check_trainable(settings())


@pytest.mark.parametrize("overrides", WRONG)
def test_a_wrong_setting_is_refused_by_its_own_message(overrides: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(*overrides.replace(", ", ",").split(" "))
    assert str(refused.value) == WRONG[overrides]


def test_no_two_of_them_are_told_the_same() -> None:
    assert len(set(WRONG.values())) == len(WRONG) > 50


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        settings("optim.lr=inf", "mesh.cp=2", "train.metrics=", "modle.x=1", "ema.decay=7")
    assert sorted(line.split(":")[0] for line in str(refused.value).splitlines()) == [
        *("ema.decay", "mesh.cp", "modle", "optim.lr", "train.metrics")
    ]


@pytest.mark.parametrize("flag", ["use_layer3d_rope", "use_additional_t_cond"])
def test_training_layered_weights_is_refused_while_no_source_has_layers(flag: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_trainable(settings(f"model.{flag}=true"))
    assert str(refused.value) == (
        f"model.{flag}: true, but no source gives training its layers and their classes; such weights are for "
        f"sampling alone: set model.{flag}=false"
    )


@pytest.mark.parametrize(
    ("tp", "world", "said"),
    [
        (3, 3, "mesh.tp: 3 does not divide num_heads 4; use 1, 2 or 4"),
        (8, 8, "mesh.tp: 8 does not divide num_heads 4; use 1, 2 or 4"),
        (4, 6, "mesh.tp: 4 does not divide the 6 ranks of this job; start a multiple of 4 ranks"),
    ],
)
def test_a_layout_that_fits_neither_heads_nor_ranks_is_refused(tp: int, world: int, said: str) -> None:
    tree = settings(f"mesh.tp={tp}")
    with pytest.raises(MeshError) as refused:
        check(tree.mesh, num_heads=tree.model.num_attention_heads, world=world)
    assert str(refused.value) == said


def test_units_that_ranks_cannot_share_evenly_are_refused_with_counts_that_would_do() -> None:
    with pytest.raises(DealError) as refused:
        deal(settings("recipe.units=6").recipe.units, 4, 0)
    assert str(refused.value) == (
        "4 data-parallel ranks cannot share 6 units a step evenly: use 1, 2, 3 or 6 ranks, or change recipe.units"
    )


def test_transformer_engine_where_it_cannot_run_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    config = MeshConfig(provider="transformer_engine", fp8="current")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MeshError, match=r"^mesh.provider: transformer_engine is not installed; on .* mesh.provider=meg"
    ):
        check_provider(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        MeshError, match=r"^mesh.provider: transformer_engine needs CUDA, .*; set mesh.provider=megatron"
    ):
        check_provider(config)


@pytest.mark.parametrize(
    ("recipe", "capability", "said"),
    [
        ("current", (8, 0), "mesh.fp8: current needs compute capability 8.9, this device has 8.0; use none"),
        ("mxfp8", (9, 0), "mesh.fp8: mxfp8 needs compute capability 10.0, this device has 9.0; use none or current"),
    ],
)
def test_fp8_on_a_device_without_it_is_refused_with_both_capabilities(
    recipe: str, capability: tuple[int, int], said: str
) -> None:
    with pytest.raises(MeshError) as refused:
        check_fp8(recipe, capability)
    assert str(refused.value) == said


def encoder_folder(root: Path, channels: int = 16, width: int = 64) -> Path:
    for name, config in (
        ("vae", {"z_dim": channels, "latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}),
        ("text_encoder", {"hidden_size": width}),
    ):
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(config))
    return root


def test_encoders_that_are_not_there_or_do_not_fit_the_model_are_named(tmp_path: Path) -> None:
    model, root = settings().model, encoder_folder(tmp_path / "fit")
    latent_statistics(root, model)
    for folder, said in (
        (Path("/nowhere"), "encoder.root: /nowhere/vae/config.json: No such file or directory; point encoder.root at"),
        (encoder_folder(tmp_path / "b", channels=4), f"model.out_channels: 16, but {tmp_path}/b/vae has 4 latent"),
        (encoder_folder(tmp_path / "c", width=32), f"model.joint_attention_dim: 64, but {tmp_path}/c/text_encoder giv"),
    ):
        with pytest.raises(ConfigError) as refused:
            latent_statistics(folder, model)
        assert str(refused.value).startswith(said)
    with pytest.raises(
        EncoderError, match=r"^encoder.root: .*/tokenizer is missing or empty; set it to .*make_encoder"
    ):
        require_folders(root)


def test_starting_weights_that_are_not_there_or_of_another_model_are_named(tmp_path: Path) -> None:
    model = settings().model
    with pytest.raises(ReleasedError, match=r"^/nowhere/config.json: No such file or directory; give a folder"):
        check_released(Path("/nowhere"), model)
    (tmp_path / "config.json").write_text(json.dumps(model.released() | {"num_layers": 7}))
    with pytest.raises(ReleasedError) as refused:
        check_released(tmp_path, model)
    assert str(refused.value) == (
        f"model.num_layers: 4, but {tmp_path}/config.json says 7; set model.num_layers to that"
    )
