"""The tiny encoders have the released layout, come out the same every time, and are not made twice."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from launch.make_encoders import ADDED, SPECIAL, EncodersError, make, make_tokenizer, read_captions


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_process_writes_the_same_bytes(encoders: Path, tmp_path: Path) -> None:
    script = Path(make.__code__.co_filename)
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "RAYON_NUM_THREADS": "2"}
    command = [sys.executable, script, tmp_path / "again"]
    ran = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=True)
    assert "written to" in ran.stdout
    assert files(tmp_path / "again") == files(encoders)


def test_what_is_there_from_the_same_inputs_is_kept(encoders: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in encoders.rglob("*")}
    assert not make(encoders)
    assert {path: path.stat().st_mtime_ns for path in encoders.rglob("*")} == before
    assert not [path for path in encoders.parent.iterdir() if path != encoders]


def test_other_pictures_give_another_vae_in_their_place(encoders: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).resize((300, 280), Image.Resampling.BICUBIC).save(pictures / "a.png")
    make(out, pictures=pictures)
    first = files(out)
    assert first["vae/config.json"] != files(encoders)["vae/config.json"]
    assert first["tokenizer/tokenizer.json"] == files(encoders)["tokenizer/tokenizer.json"]
    Image.fromarray(noise[::-1]).save(pictures / "b.png")
    assert make(out, pictures=pictures)
    assert files(out)["vae/config.json"] != first["vae/config.json"]


def test_a_folder_of_something_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    with pytest.raises(EncodersError, match=str(tmp_path)):
        make(tmp_path)
    assert (tmp_path / "vae" / "config.json").read_text() == "{}"


def test_no_pictures_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(EncodersError, match="--pictures"):
        make(tmp_path / "out", pictures=tmp_path / "none")
    assert not (tmp_path / "out").exists()


def test_the_scheduler_is_the_released_one(encoders: Path) -> None:
    config = json.loads((encoders / "scheduler" / "scheduler_config.json").read_text())
    assert config.pop("_diffusers_version")
    assert config == {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "invert_sigmas": False,
        "max_image_seq_len": 8192,
        "max_shift": 0.9,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "shift_terminal": 0.02,
        "stochastic_sampling": False,
        "time_shift_type": "exponential",
        "use_beta_sigmas": False,
        "use_dynamic_shifting": True,
        "use_exponential_sigmas": False,
        "use_karras_sigmas": False,
    }


def test_the_tokenizer_has_qwens_tokens_and_chat_template(encoders: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoders / "tokenizer")
    ids = tokenizer.convert_tokens_to_ids([*SPECIAL, *ADDED])
    assert ids == list(range(ids[0], ids[0] + len(SPECIAL) + len(ADDED)))
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer("<|im_start|>")["input_ids"] == [ids[1]]
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert said == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>What is this?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("text", ["a red cup of coffee, 1969", "写着“你好世界”的红色海报", "Ünïcode 🙂\tqzxv"])
def test_any_text_survives_the_tokenizer(text: str, encoders: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoders / "tokenizer")
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode())


def test_words_of_the_captions_become_tokens() -> None:
    with_them = make_tokenizer(["a quokka and a quokka"] * 3)
    assert len(with_them(" quokka")["input_ids"]) == 1
    assert len(make_tokenizer()(" quokka")["input_ids"]) > 1


def test_captions_are_read_from_text_files_tars_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\xff\xfe\n")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for name, raw in (("x.txt", b"three"), ("x.jpg", b"no caption"), ("y.txt", b"\xe5\x9b\x9b")):
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    (tmp_path / "picture.png").write_bytes(b"no caption")
    assert list(read_captions([tmp_path])) == ["one", "two", "three", "四"]
    assert list(read_captions([tmp_path / "b.tar"])) == ["three", "四"]
    with pytest.raises(EncodersError, match="nowhere"):
        list(read_captions([tmp_path / "nowhere"]))


def test_of_a_damaged_tar_the_captions_before_the_damage_are_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cut.tar", "w") as tar:
        for name, raw in (("x.txt", b"one"), ("x.jpg", bytes(4096))):
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    whole = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:2048])
    (tmp_path / "empty.tar").touch()
    (tmp_path / "no.tar").write_bytes(b"404 not found" * 100)
    (tmp_path / "z.txt").write_text("two")
    assert list(read_captions([tmp_path])) == ["one", "two"]
