"""What is read of a file: which set of weights, under which names, and what is said where that is not clear."""

from __future__ import annotations

import itertools
import re
import shlex
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from timm.models._helpers import load_state_dict
from torch import Tensor

from hiermim_zoo import convert
from hiermim_zoo.checkpoints.files import Checkpoint, read_checkpoint
from hiermim_zoo.checkpoints.sets import SeveralSets, at, choose, find_sets
from hiermim_zoo.checkpoints.ways import Way, by_prefix, ways
from hiermim_zoo.checkpoints.wrappers import bare, bookkeeping, unwrapped
from hiermim_zoo.models.family import family_of

State = dict[str, Tensor]
ARCH = "hivit_atto"


def weights(fill: float) -> State:
    """A toy set: one number everywhere, so that a test sees which set was read."""
    return {"w": torch.full((2, 3), fill), "b": torch.full((2,), fill)}


def encoder(seed: int = 0) -> State:
    torch.manual_seed(seed)
    state = timm.create_model(ARCH, num_classes=0).state_dict()
    return {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in state.items()}


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def read(content: object, folder: Path, **how: str) -> Checkpoint:
    return read_checkpoint(saved(content, folder / "file.pth"), **how)


def same(state: State, expected: State) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


# ---- wrappers


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("module.blocks.3.norm1.weight", "blocks.3.norm1.weight"),
        ("_orig_mod.module.w", "w"),
        ("module._orig_mod.w", "w"),
        ("module.module._orig_mod.module.w", "w"),
        ("blocks.3._orig_mod.norm1.weight", "blocks.3.norm1.weight"),
        ("blocks.3._checkpoint_wrapped_module.norm1.weight", "blocks.3.norm1.weight"),
        (
            "_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.mlp.fc1.bias",
            "blocks.0.mlp.fc1.bias",
        ),
        ("model.module.cls_token", "model.cls_token"),
        ("module", "module"),  # a tensor's own
        ("module_list.0.w", "module_list.0.w"),
        ("my_orig_mod.w", "my_orig_mod.w"),
        ("w", "w"),
    ],
)
def test_wrappers_go_out_of_names_wherever_they_stand(name: str, expected: str) -> None:
    assert bare(name) == bare(expected) == expected
    assert list(unwrapped(clean_state_dict({name: torch.ones(1)}))) == [expected], "timm takes some of them off first"


def test_names_that_differ_by_wrappers_alone_are_refused(tmp_path: Path) -> None:
    state = {"blocks.0.module.w": torch.ones(2, 2), "blocks.0._orig_mod.w": torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"'blocks.0.module.w' and 'blocks.0._orig_mod.w' are both 'blocks.0.w'"):
        read(state, tmp_path)
    with pytest.raises(ValueError, match=r"both 'blocks\.0\.w'"):
        family_of(ARCH).native(state)
    assert same(read({"model": weights(1), "other": state}, tmp_path).state, weights(1)), "they are not what is read"


WRAPPED: dict[str, Callable[[str], str]] = {
    "ddp": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled ddp": lambda name: f"_orig_mod.module.{name}",
    "ddp of compiled": lambda name: f"module._orig_mod.{name}",
    "compiled blocks": lambda name: re.sub(r"(blocks\.\d+)\.", r"\1._orig_mod.", name),
    "fsdp with checkpoints": lambda name: (
        "_fsdp_wrapped_module."
        + re.sub(r"(blocks\.\d+)\.", r"\1._fsdp_wrapped_module._checkpoint_wrapped_module.", name)
    ),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_a_wrapped_model_converts_to_the_bits_of_the_bare_one(how: str, tmp_path: Path) -> None:
    """Both with convert and with timm's own loader, numbers among the tensors included."""
    state = encoder()
    wrapped = {WRAPPED[how](name): tensor for name, tensor in state.items()}
    file = saved({"state_dict": {**wrapped, "step": 7}}, tmp_path / "run.pth")
    assert same(converted(file, tmp_path / "out"), state)
    assert same(loaded_by_timm(file), state)
    wrapped["blocks.0._wrapped.norm2.weight"] = wrapped.pop(WRAPPED[how]("blocks.0.norm2.weight"))
    with pytest.raises(ValueError, match=r"'blocks\.0\._wrapped\.norm2\.weight'|fit no layout"):
        converted(saved({"state_dict": wrapped}, file), tmp_path / "again")


def converted(file: Path, folder: Path, **how: Any) -> State:
    convert.run(source=str(file), model=ARCH, output=str(folder), **how)
    return load_file(folder / "model.safetensors")


def loaded_by_timm(file: Path) -> State:
    """Through the filter that timm calls on pretrained weights; on those of ``checkpoint_path`` it calls none."""
    overlay = {"file": str(file), "num_classes": 0}
    return timm.create_model(ARCH, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay).state_dict()


# ---- bookkeeping


def test_numbers_among_the_tensors_are_left_out_and_named(tmp_path: Path) -> None:
    state: dict[str, Any] = {**weights(1), "module.n": 3, "best": 0.5, "none": None, "version": "1.2", "more": [1, 2]}
    state["acc"] = np.float64(82.1)
    found = read({"model": state, "epoch": 3}, tmp_path)
    assert same(found.state, weights(1))
    assert found.left_out == {
        "n": "a number (int), no tensor",
        "best": "a number (float), no tensor",
        "none": "None, no tensor",
        "version": "a text, no tensor",
        "more": "an object (list), no tensor",
        "acc": "an object of a library, no tensor",
    }
    assert not bookkeeping(weights(1))


# ---- sets of weights

EMA, MODEL, OTHER = weights(1), weights(2), weights(3)
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 3)}}, "param_groups": [{"lr": 0.1}]}
BY_NAME = {"state": {"w": {"step": 3, "exp_avg": torch.ones(2, 3), "exp_avg_sq": torch.ones(2, 3)}}}
SETS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {  # content, the set that is read, all of them
    "alone": (MODEL, "", ("",)),
    "model": ({"model": MODEL, "epoch": 3}, "model", ("model",)),
    "timm": ({"state_dict": MODEL, "state_dict_ema": EMA}, "state_dict_ema", ("state_dict", "state_dict_ema")),
    "average first": ({"model_ema": EMA, "model": MODEL, "optimizer": OPTIMIZER}, "model_ema", ("model_ema", "model")),
    "no average yet": ({"state_dict": MODEL, "state_dict_ema": None}, "state_dict", ("state_dict",)),
    "state_dict before model": ({"model": OTHER, "state_dict": MODEL}, "state_dict", ("model", "state_dict")),
    "both averages": ({"model_ema": OTHER, "state_dict_ema": EMA}, "state_dict_ema", ("model_ema", "state_dict_ema")),
    "beside an average": ({"model": MODEL, "ema": EMA}, "model", ("model", "ema")),
    "nested average": ({"model": MODEL, "ema": {"module": EMA, "decay": 0.9}}, "model", ("model", "ema.module")),
    "optimizer by name": ({"model": MODEL, "optimizer": BY_NAME}, "model", ("model",)),
    "moments by name": ({"model": MODEL, "optim": {"exp_avg": MODEL}}, "model", ("model",)),
}


@pytest.mark.parametrize("case", SETS)
def test_the_set_that_is_read_is_the_one_that_timm_takes(case: str, tmp_path: Path) -> None:
    content, key, sets = SETS[case]
    found = read(content, tmp_path)
    assert (found.top_key, found.sets) == (key, sets)
    assert same(found.state, content[key] if key else content)
    assert same(found.state, load_state_dict(str(found.path)))
    for other in sets:  # each can be had by name
        if other:
            chosen = read(content, tmp_path, key=other)
            assert (chosen.top_key, chosen.sets) == (other, sets)
            assert same(chosen.state, at(content, other))


@pytest.mark.parametrize(
    "key",
    [
        "model_state",
        "model_state_dict",
        "net",
        "network",
        "params",
        "weights",
        "module",
        "teacher",
        "ema",
        "model.state_dict",
        "ema.module",
        "x",
    ],
)
def test_a_set_alone_is_read_under_any_key(key: str, tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3, "optimizer": OPTIMIZER, "scaler": {"scale": torch.ones(1)}}
    above, _, below = key.partition(".")
    content[above] = {below: encoder(), "decay": 0.9} if below else encoder()
    file = saved(content, tmp_path / "run.pth")
    found = read_checkpoint(file)
    assert (found.top_key, found.sets) == (key, (key,))
    assert same(converted(file, tmp_path / "out"), encoder())
    assert same(loaded_by_timm(file), encoder())


def test_timm_and_convert_agree_whatever_keys_there_are(tmp_path: Path) -> None:
    """Where timm's choice is a set of weights, it is ours; else the only set is read, or none."""
    keys, seen = ("model", "state_dict", "model_ema", "state_dict_ema"), set()
    for there in itertools.product((False, None, True), repeat=len(keys)):
        pairs = enumerate(zip(keys, there, strict=True))
        content = {key: weights(i) if is_there else None for i, (key, is_there) in pairs if is_there is not False}
        file = saved({"epoch": 1, **content}, tmp_path / "file.pth")
        sets = [key for key, value in content.items() if value]
        try:
            theirs = load_state_dict(str(file))
        except AttributeError:  # timm takes None
            theirs = {}
        if "w" in theirs:
            assert same(read_checkpoint(file).state, theirs)
        elif len(sets) == 1:
            assert read_checkpoint(file).top_key == sets[0]
        else:
            with pytest.raises(ValueError, match=r"--key NAME must say|holds no set of weights"):
                read_checkpoint(file)
        seen.add((len(sets), "w" in theirs))
    assert {(0, False), (1, False), (1, True), (2, True), (4, True)} <= seen


@pytest.mark.parametrize("case", ["timm", "average first", "state_dict before model", "beside an average"])
def test_timm_and_convert_agree_on_files_with_several_sets(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, key, sets = SETS[case]
    real = {name: encoder(seed) if name in sets else content[name] for seed, name in enumerate(content)}
    file = saved(real, tmp_path / "run.pth")
    assert same(converted(file, tmp_path / "out"), real[key])
    assert same(timm.create_model(ARCH, num_classes=0, checkpoint_path=str(file)).state_dict(), real[key])
    other = next(name for name in sets if name != key)
    assert f"set     {key}; --key reads another: {other}\n" in capsys.readouterr().out
    assert same(converted(file, tmp_path / "other", key=other), real[other])
    assert f"set     {other}; --key reads another: {key}\n" in capsys.readouterr().out
    assert f'"key": "{other}"' in (tmp_path / "other" / "config.json").read_text()
    assert not same(real[key], real[other])


def test_several_sets_of_which_none_comes_first_are_refused(tmp_path: Path) -> None:
    content = {"teacher": weights(1), "student": weights(2), "epoch": 3}
    with pytest.raises(SeveralSets, match=r"--key NAME must say which .* is meant; there is teacher and student"):
        read(content, tmp_path)
    assert same(read(content, tmp_path, key="student").state, weights(2))
    with pytest.raises(ValueError, match=r"--key pupil: .*file\.pth has no such set.*; there is teacher and student"):
        read(content, tmp_path, key="pupil")
    with pytest.raises(ValueError, match=r"--key epoch: .* no such set of weights"):
        read(content, tmp_path, key="epoch")
    with pytest.raises(ValueError, match=r"--key model: .*; there is one without a key"):
        read(weights(1), tmp_path, key="model")


@pytest.mark.parametrize(
    "content",
    [
        OPTIMIZER,
        {"optimizer": OPTIMIZER},
        {"optimizer": {"exp_avg": weights(1)}},
        BY_NAME,
        {"scaler": {"scale": torch.ones(1), "growth": 2.0}},
        {"loss": {"center": torch.ones(9)}},
        {"model": {1: torch.ones(2, 2)}},
        {"deep": {"er": {"still": weights(1)}}},
    ],
    ids=["optimizer", "under a key", "moments", "by name", "scaler", "vector", "numbered", "deep"],
)
def test_what_looks_like_weights_is_none(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"file\.pth holds no set of weights: its keys are"):
        read(content, tmp_path)


def test_containers_that_hold_each_other_end() -> None:
    around: list[Any] = [1]
    for _ in range(60):
        around = [around, around]
    around.append(around)
    content = {"model": {**weights(1), "extra": around}}
    assert list(find_sets(content)) == ["model"]
    around.append(torch.ones(1))
    assert not find_sets(content), "a set has no containers with tensors"


def test_attributes_of_a_mapping_are_no_part_of_it(tmp_path: Path) -> None:
    """A file can give an OrderedDict attributes, called as its methods are."""
    state = OrderedDict(weights(1))
    state.__dict__.update(dict.fromkeys(("items", "keys", "values", "get", "update"), 5))
    content = OrderedDict(model=state, epoch=3)
    content.__dict__.update(state.__dict__)
    sets = find_sets(content)
    assert list(sets) == ["model"]
    assert same(unwrapped(sets["model"]), weights(1))
    for key in ("", "model"):
        assert choose(content, sets, tmp_path, key) == "model"
    content["extra"] = state
    assert list(find_sets(content)) == ["model", "extra"]
    with pytest.raises(ValueError, match="its keys are model, epoch"):
        choose(content, {}, tmp_path)


def test_a_mapping_under_very_many_keys_is_looked_at_once() -> None:
    none = {f"{i}": {"a": 1} for i in range(2000)}
    content = {f"{i}": none for i in range(2000)}
    assert not find_sets(content)
    content["model"] = weights(1)
    assert list(find_sets(content)) == ["model"]
    assert len(find_sets({f"{i}": weights(1) for i in range(2000)})) == 100


def test_a_key_can_have_dots_of_its_own_and_be_deep(tmp_path: Path) -> None:
    content = {"callbacks": {"EMA{'decay': 0.9}": {"state": {"w.average": weights(1)}}}, "state_dict": weights(2)}
    assert same(read(content, tmp_path, key="callbacks.EMA{'decay': 0.9}.state.w.average").state, weights(1))
    assert same(read(content, tmp_path).state, weights(2))


# ---- prefixes


@pytest.mark.parametrize("prefix", ["student.backbone", "student.backbone.", "student.module.backbone."])
def test_a_prefix_is_taken_off_and_the_rest_left_out(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = under("student.backbone.", encoder()) | under("student.head.", weights(1)) | {"center": torch.ones(1, 9)}
    file = saved({"state_dict": state, "epoch": 3}, tmp_path / "run.ckpt")
    assert same(converted(file, tmp_path / "out", prefix=prefix), encoder())
    why = "does not begin with --prefix student.backbone."
    said = capsys.readouterr().out
    assert f"left out 3: {why}\n" in said
    assert f"({why})" not in said
    assert '"prefix": "student.backbone."' in (tmp_path / "out" / "config.json").read_text()
    convert.run(source=str(file), model=ARCH, dry_run=True, prefix=prefix)
    said = capsys.readouterr().out
    assert all(f"left out {name} ({why})\n" in said for name in ("student.head.w", "student.head.b", "center"))


def test_a_prefix_that_nothing_begins_with_is_refused(tmp_path: Path) -> None:
    state = under("backbone.", weights(1)) | under("neck.", weights(2))
    with pytest.raises(
        ValueError, match=r"--prefix back\.: no name of a tensor begins so; they begin with backbone\., n"
    ):
        read(state, tmp_path, prefix="back")
    with pytest.raises(ValueError, match=r"--prefix \.: no name"):
        read(state, tmp_path, prefix=".")
    with pytest.raises(ValueError, match="they have no parts"):
        read(weights(1), tmp_path, prefix="backbone.")


# ---- what fits no layout is told how it could be read


def test_all_beginnings_are_tried() -> None:
    assert by_prefix(["a.b.w", "a.c.w", "w"]) == {
        "": ["a.b.w", "a.c.w", "w"], "a.": ["b.w", "c.w"], "a.b.": ["w"], "a.c.": ["w"],
    }  # fmt: skip
    names = {"ema": tuple(encoder()), "model": tuple(under("net.encoder.", encoder())), "loss": ("center",)}
    layouts = family_of(ARCH).layouts
    assert ways(names, layouts) == [Way("ema", "", "hivit_timm"), Way("model", "net.encoder.", "hivit_timm")]
    assert ways({"loss": ("center",)}, layouts) == []


FRAMEWORKS: dict[str, Callable[[State], dict[str, Any]]] = {
    "lightning": lambda s: {
        "state_dict": under("model.", s) | under("criterion.", weights(1)),
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "pytorch-lightning_version": "2.4.0",
    },
    "lightning, distilled": lambda s: {
        "state_dict": under("student.backbone.", s) | under("student.head.", weights(1))
    },
    "self-distillation": lambda s: {"teacher": under("module.backbone.", s), "epoch": 3, "optimizer": OPTIMIZER},
    "mmengine": lambda s: {
        "state_dict": OrderedDict(under("backbone.", s) | under("neck.", weights(1)) | under("bbox_head.", weights(2))),
        "meta": {"epoch": 3},
        "message_hub": {},
    },
    "deepspeed": lambda s: {"module": under("net.", s), "optimizer": None, "ds_config": {}},
    "beside a loss": lambda s: {"net": s, "dino_loss": {"center": torch.ones(1, 9)}},
    "the average fits alone": lambda s: {"model": under("other.", weights(1)), "ema": {"module": s}},
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_command_that_works_is_printed_and_nothing_is_guessed(framework: str, tmp_path: Path) -> None:
    file = saved(FRAMEWORKS[framework](encoder()), tmp_path / "the run.ckpt")
    with pytest.raises(ValueError, match="layout 'hivit_timm' fits with: ") as error:
        converted(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    command = str(error.value).partition(" fits with: ")[2]
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "hiermim_zoo.convert"]
    convert.main(words[3:])
    assert same(load_file(tmp_path / "out" / "model.safetensors"), encoder())


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_wrong_name_leaves_no_way(framework: str, tmp_path: Path) -> None:
    """Negative control: one name of the layout's signature is another."""
    state = encoder()
    state["patch_embed.normal.weight"] = state.pop("patch_embed.norm.weight")
    file = saved(FRAMEWORKS[framework](state), tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match="no set of weights of the file is of hivit, with or without a prefix"):
        converted(file, tmp_path / "out")


def test_all_ways_are_listed_where_there_are_several(tmp_path: Path) -> None:
    content = {name: under("backbone.", encoder(seed)) for seed, name in enumerate(("teacher", "student"))}
    file = saved(content, tmp_path / "dino.pth")
    with pytest.raises(ValueError, match="--key NAME must say") as error:
        converted(file, tmp_path / "out")
    found = re.findall(r"--key (\w+) --prefix (\S+)", str(error.value))
    assert found == [("teacher", "backbone."), ("student", "backbone.")]
    for seed, (key, prefix) in enumerate(found):
        assert same(converted(file, tmp_path / key, key=key, prefix=prefix), encoder(seed))


def test_key_and_prefix_go_with_to(tmp_path: Path) -> None:
    """MAE's names within another model become a file that MAE's authors read."""
    state = {"mask_token": torch.ones(1, 1, 8), "norm.weight": torch.ones(9), "norm.bias": torch.ones(9)}
    state |= {name: t for name, t in encoder().items() if "bias_table" not in name and "fc_norm" not in name}
    file = saved({"a": under("net.", state), "b": weights(1)}, tmp_path / "run.pth")
    how: dict[str, Any] = {"source": str(file), "model": ARCH, "to": "hivit_mae", "output": str(tmp_path / "back.pth")}
    with pytest.raises(ValueError, match=r"layout 'hivit_mae' fits with: .* --key a --prefix net\. "):
        convert.run(**how)
    convert.run(**how, key="a", prefix="net.")
    assert same(read_checkpoint(tmp_path / "back.pth").state, state)
