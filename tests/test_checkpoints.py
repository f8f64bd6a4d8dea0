"""Rules, layouts, and reading files that strangers wrote."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hiermim_zoo.checkpoints.files import read_checkpoint
from hiermim_zoo.checkpoints.layouts import all_layouts, find_layout
from hiermim_zoo.checkpoints.rules import Copy, Drop, Join, Refuse, Rename, Reshape, apply_rules, check_fits
from hiermim_zoo.models.family import family_named

from .golden.case import golden

CASES = {"hivit_tiny_sup": "hivit_supervised", "hivit_base_ft": "hivit_finetuned", "mae_hivit_base": "hivit_mae"}


def test_every_tensor_is_carried_over_or_dropped_for_a_reason() -> None:
    state = {"keep.me": torch.ones(1), "old.3.w": torch.ones(2, 3), "buffer": torch.zeros(1), "turn": torch.ones(2, 3)}
    rules = (
        Copy(r"keep\..*"),
        Rename(r"old\.(\d)\.w", r"new.\1"),
        Drop("buffer", "recomputed"),
        Reshape("turn", "turned", torch.t, "transposed"),
    )
    out, steps = apply_rules(state, rules, "toy")
    assert {n: tuple(t.shape) for n, t in out.items()} == {"keep.me": (1,), "new.3": (2, 3), "turned": (3, 2)}
    assert [(s.source, s.action, s.target, s.why) for s in steps] == [
        ("keep.me", "kept", "keep.me", ""),
        ("old.3.w", "renamed", "new.3", ""),
        ("buffer", "dropped", "", "recomputed"),
        ("turn", "reshaped", "turned", "transposed"),
    ]


def test_a_tensor_that_no_rule_covers_is_named() -> None:
    with pytest.raises(ValueError, match=r"'b' \[2\] is not part of the layout 'toy'"):
        apply_rules({"a": torch.ones(1), "b": torch.ones(2)}, (Copy("a"),), "toy")


def test_two_tensors_cannot_end_under_one_name() -> None:
    with pytest.raises(ValueError, match="another tensor of the layout 'toy' already became 'a'"):
        apply_rules({"a": torch.ones(1), "b": torch.ones(2)}, (Copy("a"), Rename("b", "a")), "toy")


def test_parts_are_joined_in_the_order_of_the_rule() -> None:
    rules = (Join(r"(\d)\.(?P<part>k|q)\.w", r"\1.qk", ("q", "k"), "stacked"),)
    state = {
        "0.k.w": torch.tensor([3, 4]),
        "0.q.w": torch.tensor([1, 2]),
        "1.q.w": torch.zeros(1),
        "1.k.w": torch.ones(1),
    }
    out, steps = apply_rules(state, rules, "toy")
    assert {name: tensor.tolist() for name, tensor in out.items()} == {"0.qk": [1, 2, 3, 4], "1.qk": [0, 1]}
    assert [(s.source, s.action, s.target, s.why) for s in steps[:2]] == [
        ("0.k.w", "joined", "0.qk", "stacked"),
        ("0.q.w", "joined", "0.qk", "stacked"),
    ]
    with pytest.raises(ValueError, match=r"'0\.k\.w' is missing"):
        apply_rules({"0.q.w": torch.ones(2)}, rules, "toy")
    with pytest.raises(ValueError, match=r"'0\.k\.w' is \[3\] in the checkpoint, but '0\.q\.w' is \[2\]"):
        apply_rules({"0.q.w": torch.ones(2), "0.k.w": torch.ones(3)}, rules, "toy")
    with pytest.raises(ValueError, match=r"'0\.q\.w': another tensor of 'toy' already became '0\.qk'"):
        apply_rules({**state, "0.qk": torch.ones(2)}, (*rules, Copy(".*")), "toy")


def test_what_would_change_the_function_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"'gain' \[2\]: no gains here"):
        apply_rules({"gain": torch.ones(2)}, (Refuse("gain", "no gains here"), Copy(".*")), "toy")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "'a'.*missing"),
        ({"a": 2, "b": 1}, "'b'.*no place"),
        ({"a": 3}, r"'a' is \[3\] in the checkpoint, but m has \[2\]"),
    ],
)
def test_what_does_not_fit_is_named(state: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_fits({n: torch.ones(k) for n, k in state.items()}, {"a": torch.ones(2)}, model="m")


@pytest.mark.parametrize(("case", "layout"), CASES.items())
def test_published_layouts_are_recognised_and_nothing_else_fits(case: str, layout: str) -> None:
    names = golden(case).about["manifest"]
    assert family_named("hivit").layout_of(names).name == layout
    assert [table.name for table in all_layouts() if table.fits(names)] == [layout]


def test_what_conversion_makes_is_recognised_as_our_own() -> None:
    """Of the encoder from pre-training: as one, until it is given the norm of a classifier."""
    for case in CASES:
        state = family_named("hivit").native(golden(case).state()).state
        if case == "mae_hivit_base":
            assert family_named("hivit").native(state).layout.name == "hivit_encoder"
            state |= {"fc_norm.weight": torch.ones(512), "fc_norm.bias": torch.zeros(512)}
        assert family_named("hivit").native(state).layout.name == "hivit_timm"


@pytest.mark.parametrize("case", CASES)
def test_an_unknown_tensor_in_a_known_layout_is_refused(case: str) -> None:
    """Negative control: one tensor renamed."""
    state = golden(case).state()
    state["blocks.1.mlp.fc3.weight"] = state.pop("blocks.1.mlp.fc1.weight")
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.fc3\.weight"):
        family_named("hivit").native(state)


def test_a_forced_layout_is_used_and_an_unknown_one_refused() -> None:
    state = golden("hivit_base_ft").state()
    with pytest.raises(ValueError, match="'relative_position_index'"):
        family_named("hivit").native(state, "hivit_timm")
    with pytest.raises(ValueError, match="'nope' is unknown, there are hivit_supervised"):
        find_layout("nope")
    with pytest.raises(ValueError, match="is of hivit, not of hiera"):
        family_named("hiera").native(state, "hivit_timm")


def test_a_resnet_fits_no_layout() -> None:
    import timm

    with pytest.raises(ValueError, match=r"conv1.*fit no layout of hivit"):
        family_named("hivit").layout_of(timm.create_model("resnet10t").state_dict())


# ---- files

STATE = {"w": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)}


@pytest.mark.parametrize("key", ["", "model", "state_dict", "model_state"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_state_dicts_are_found_where_training_code_puts_them(tmp_path: Path, key: str, suffix: str) -> None:
    content = {key: STATE, "epoch": 3, "args": argparse.Namespace(lr=0.1)} if key else STATE
    torch.save(content, tmp_path / f"file{suffix}")
    found = read_checkpoint(tmp_path / f"file{suffix}")
    assert found.top_key == key
    assert found.state.keys() == STATE.keys()
    assert all(torch.equal(found.state[n], STATE[n]) for n in STATE)


def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path) -> None:
    torch.save({"model": {f"module.{n}": t for n, t in STATE.items()}}, tmp_path / "file.pth")
    assert read_checkpoint(tmp_path / "file.pth").state.keys() == STATE.keys()


def test_a_folder_with_one_file_will_do(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors")
    assert torch.equal(read_checkpoint(tmp_path).state["w"], STATE["w"])
    torch.save(STATE, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"holds other\.pth, weights\.safetensors: name one"):
        read_checkpoint(tmp_path)
    save_file(STATE, tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path).path.name == "model.safetensors"


def test_a_yacs_node_beside_the_weights_is_read_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written with a class called yacs.config.CfgNode, read without one; whatever it defines, nothing of it runs."""
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")

    class CfgNode(dict):  # type: ignore[type-arg]
        pass

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    node = CfgNode(MODEL=CfgNode(TYPE="hivit"))
    node.__dict__["__immutable__"] = False
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", package)
        patch.setitem(sys.modules, "yacs.config", module)
        torch.save({"model": STATE, "config": node, "max_accuracy": 82.1}, tmp_path / "sup.pth")
    assert "yacs" not in sys.modules
    assert torch.equal(read_checkpoint(tmp_path / "sup.pth").state["w"], STATE["w"])


class Evil:
    """Unpickled naively, it creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_from_a_file_ever_runs(tmp_path: Path, legacy: bool) -> None:
    trace = tmp_path / "trace"
    torch.save({"model": STATE, "args": Evil(trace)}, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"evil\.pth asks for posix\.system, which could run code"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not trace.exists()


def test_a_plain_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "evil.bin").write_bytes(pickle.dumps({"model": Evil(trace)}))
    with pytest.raises(ValueError, match=r"evil\.bin (asks for|is damaged)"):
        read_checkpoint(tmp_path / "evil.bin")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.pth", None, "does not exist"),
        ("empty.pth", b"", "is empty"),
        ("text.pth", b"These are not the weights you are looking for.\n" * 9, "is damaged or no PyTorch checkpoint"),
        ("text.safetensors", b"{}" * 99, r"is no complete \.safetensors file"),
        ("zip.pt", b"PK\x03\x04" + bytes(200), "is damaged or no PyTorch checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints_are_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        read_checkpoint(tmp_path / name)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(STATE, tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(ValueError, match=name):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [{"optimizer": {"lr": 1}}, [torch.ones(2)], {"model": {"a": 1}}])
def test_a_file_without_weights_is_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth holds no set of weights"):
        read_checkpoint(tmp_path / "odd.pth")
