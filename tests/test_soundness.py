"""What is refused of strangers' files, and in which words."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hiermim_zoo  # noqa: F401
from hiermim_zoo import convert
from hiermim_zoo.checkpoints.card import hub_license, in_cell, model_card
from hiermim_zoo.checkpoints.files import read_checkpoint
from hiermim_zoo.checkpoints.soundness import check_kinds, check_sound, in_type
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.mae import create_mae, decoder_state
from hiermim_zoo.models.build import make_model
from hiermim_zoo.text import printable

W = torch.arange(6.0).reshape(2, 3)
ATTO = {"img_size": 32, "embed_dim": 16, "depths": (1, 1, 1), "num_heads": 1}


class Own(Tensor):
    """A tensor of somebody's own."""


def nested(**kwargs: Any) -> Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], **kwargs)


# Tensor -> what is said of it, after its name.
TENSORS: dict[str, tuple[Callable[[], Any], str]] = {
    "coo": (lambda: W.to_sparse(), r"is sparse (torch.sparse_coo); save it with .to_dense()"),
    "csr": (lambda: W.to_sparse_csr(), r"is sparse (torch.sparse_csr); save it with .to_dense()"),
    "quantised": (
        lambda: torch.quantize_per_tensor(W, 0.1, 0, torch.qint8),
        "is quantised (torch.qint8); save it with .dequantize()",
    ),
    "meta": (lambda: W.to("meta"), "has no values (it is on the device 'meta')"),
    "nested": (nested, "is nested: it has no shape"),
    "jagged": (lambda: nested(layout=torch.jagged), "is a NestedTensor, not a plain tensor"),
    "complex": (lambda: W.to(torch.complex64), "is complex64; weights are float16, bfloat16, float32, float64"),
    "float8": (lambda: W.to(torch.float8_e4m3fn), "is float8_e4m3fn; weights are float16, bfloat16, float32, float64"),
    "expanded": (
        lambda: torch.ones(1).expand(1000, 1000),
        "[1000, 1000] asks for 4000000 bytes, the file holds 4 of it",
    ),
    "overlapping": (
        lambda: torch.arange(9.0).as_strided((2, 3), (1, 1)),
        "[2, 3] with strides [1, 1] uses values more than once",
    ),
    "rows alike": (
        lambda: torch.arange(9.0).as_strided((2, 3), (0, 1)),
        "[2, 3] with strides [0, 1] uses values more than once",
    ),
    "no values": (lambda: torch.ones(0, 3), "is [0, 3]: an axis without values"),
    "turned sign": (
        lambda: torch.complex(W, W).conj().imag,
        "is a view whose sign is still to be turned; save it with .clone()",
    ),
    "NaN": (
        lambda: W / W,
        "[2, 3]: 1 value is NaN or infinite; use --allow-nonfinite to take them as they are",
    ),
    "infinite": (
        lambda: torch.tensor([float("inf"), 1.0, -float("inf")]),
        "[3]: 2 values are NaN or infinite; use --allow-nonfinite to take them as they are",
    ),
    "half NaN": (
        lambda: torch.full((4,), float("nan"), dtype=torch.float16),
        "[4]: 4 values are NaN or infinite; use --allow-nonfinite to take them as they are",
    ),
}
IGNORED = pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize", "ignore:The PyTorch API of nested")


@IGNORED
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", TENSORS)
def test_what_is_no_plain_table_of_numbers_is_refused_by_name(kind: str, legacy: bool, tmp_path: Path) -> None:
    if legacy and kind in ("float8", "nested"):
        pytest.skip("the old format cannot hold it")
    make, words = TENSORS[kind]
    file = tmp_path / "w.pth"
    torch.save({"model": {"a.b": W, "c.d": make()}}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_checkpoint(file)
    assert str(error.value) == f"{file}: tensor 'c.d' {words}"


def test_a_tensor_of_a_class_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^here: tensor 'w' is a Own, not a plain tensor$"):
        check_sound({"w": W.as_subclass(Own)}, "here")
    with pytest.raises(ValueError, match=r"^here: tensor 'w' is no tensor but a int$"):
        check_sound({"w": 3}, "here")  # type: ignore[dict-item]


SOUND = {
    "transposed": W.T,
    "every other": torch.arange(12.0)[::2],
    "channels last": torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "shared": torch.arange(20.0)[5:11].reshape(2, 3),
    "parameter": torch.nn.Parameter(W),
    "one number": torch.tensor(1.0),
    "table of indices": torch.arange(6),
    "mask": torch.ones(2, dtype=torch.bool),
    "half": W.half(),
    "brain": W.bfloat16(),
    "double": W.double(),
    "large sum": torch.full((2,), 3e38),
    "large halves": torch.full((9,), 6e4, dtype=torch.float16),
    "axes of one": torch.ones(1, 1, 3).expand(1, 1, 3),
}


@pytest.mark.parametrize("legacy", [False, True])
def test_sound_tensors_come_out_as_they_are(legacy: bool, tmp_path: Path) -> None:
    torch.save(SOUND, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(tmp_path / "w.pth").state
    assert found.keys() == SOUND.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in SOUND.items())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (0, "holds a tensor whose name is 0 (int); names are strings"),
        (None, "holds a tensor whose name is None (NoneType); names are strings"),
        (b"w", "holds a tensor whose name is b'w' (bytes); names are strings"),
        (("w", 1), "holds a tensor whose name is ('w', 1) (tuple); names are strings"),
        ("", "holds a tensor whose name is empty"),
        ("a" * 300, "holds a tensor whose name has 300 characters; names have at most 255"),
        ("\x1b[2J", r"holds a tensor called '\x1b[2J'; names have printable characters alone"),
        ("\u202egnp", r"holds a tensor called '\u202egnp'; names have printable characters alone"),
        ("a\nb", r"holds a tensor called 'a\nb'; names have printable characters alone"),
    ],
)
def test_names_are_strings_that_can_be_printed(name: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check_sound({"w": W, name: W}, "here")
    assert str(error.value) == f"here {words}"
    for content in ({name: W, "w": W}, {"model": {"w": W, name: W}}):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=r"w\.pth holds ") as error:
            read_checkpoint(tmp_path / "w.pth")
        assert str(error.value).isprintable()


# ---- files of other kinds


def zipped(name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, w=np.ones(3))
    return out.getvalue()


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return out.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
KINDS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "LFS": ("w.pth", lambda: POINTER, "is a Git LFS pointer, not the file itself: fetch it with git lfs pull"),
    "LFS safetensors": (
        "w.safetensors", lambda: POINTER, "is a Git LFS pointer, not the file itself: fetch it with git lfs pull",
    ),
    "page": ("w.pth", lambda: b"\n<!DOCTYPE html>", "is a web page: the download failed, get the file again"),
    "error": ("w.bin", lambda: b"<?xml version='1.0'?>", "is a web page: the download failed, get the file again"),
    "gzip": ("w.pth", lambda: gzip.compress(b"x"), "is a gzip archive: unpack it"),
    "tar": ("w.pth", tar, "is a tar archive, no PyTorch checkpoint; unpack it"),
    "HDF5": ("w.pth", lambda: b"\x89HDF\r\n\x1a\n", "is an HDF5 file (of Keras, perhaps), which is not read here"),
    "npz": ("w.pth", npz, "is a NumPy archive without data.pkl, no PyTorch checkpoint: unpack it"),
    "ZIP": ("w.pth", lambda: zipped("a", b"b"), "is a ZIP archive without data.pkl, no PyTorch checkpoint: unpack it"),
    "torch": (
        "w.safetensors", lambda: zipped("a", b""), "is a file of torch or another ZIP archive: rename it to w.pth",
    ),
    "compressed": (
        "w.pth", lambda: zipped("a/data.pkl", b"\x80\x02" + bytes(10**6), zipfile.ZIP_DEFLATED),
        ": its part 'a/data.pkl' is compressed, which torch never does",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_other_kinds_are_called_by_their_names(kind: str, tmp_path: Path) -> None:
    name, make, words = KINDS[kind]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_checkpoint(tmp_path / name)
    assert str(error.value).replace(f"{tmp_path / name}", "").strip() == words


def test_a_real_torchscript_archive_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch.jit itself
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt is (a program|damaged)"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("part", ["data.pkl", "data/0"])
def test_a_changed_byte_is_found_by_its_checksum(part: str, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"w": torch.full((64,), 1.5)}, file)
    content = bytearray(file.read_bytes())
    at = content.find(b"FloatStorage" if part == "data.pkl" else b"\x00\x00\xc0\x3f")
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"w\.pth is damaged: its part 'w/{part}' has another checksum; get it again"):
        read_checkpoint(file)


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": W}, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(tmp_path / "w.pth").state["w"], W)


# ---- pickles that ask for more than they hold


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def called(name: str, *arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def storage(values: int) -> bytes:
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(values) + b"tQ"


DOUBLED = b"K\x01q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
PROGRAMS: dict[str, tuple[bytes, str]] = {
    "bytes": (
        called("builtins.bytearray", number(4 * 10**9)), "asks for memory by calling 'builtins.bytearray'; refused",
    ),
    "tensor": (called("torch.FloatTensor", number(10**9)), "asks for memory by calling 'torch.FloatTensor'; refused"),
    "hidden": (
        called("torch._tensor._rebuild_from_type_v2", b"cbuiltins\nbytearray\n", b"N", number(10**9) + b"\x85", b"N"),
        "asks for memory by calling 'builtins.bytearray'; refused",
    ),
    "storage": (storage(10**12), "declares 1000000000000 values"),
    "doubled": (b"](" + DOUBLED + b"e", "holds a tuple of more than 100000 parts or 200 levels; refused"),
    "doubled key": (b"}" + DOUBLED + b"K\x02s", "holds a tuple of more than 100000 parts or 200 levels; refused"),
    "deep": (b"N" + b"\x85" * 10**6, "holds a tuple of more than 100000 parts or 200 levels; refused"),
    "marks": (b"(" * 10**6, "is nested more than 200 levels deep; refused"),
}  # fmt: skip


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("kind", PROGRAMS)
def test_pickles_that_would_take_memory_or_never_end_are_not_begun(kind: str, archive: bool, tmp_path: Path) -> None:
    program, words = PROGRAMS[kind]
    program = b"\x80\x02" + program + b"."
    (tmp_path / "w.pth").write_bytes(zipped("w/data.pkl", program) if archive else program)
    with pytest.raises(ValueError, match=rf"w\.pth .*{words}$"):
        read_checkpoint(tmp_path / "w.pth")


def test_a_container_that_holds_itself_is_no_obstacle(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": {"w": W}, "log": []}
    content["me"] = content
    content["log"].append(content["log"])
    torch.save(content, tmp_path / "w.pth")
    assert torch.equal(read_checkpoint(tmp_path / "w.pth").state["w"], W)


# ---- values


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A folder with an encoder of a few kilobytes and its decoder."""
    torch.manual_seed(1)
    mae = create_mae("hivit_atto", recipe={"depth": 1, "dim": 16, "heads": 2}, **ATTO)
    save_file(mae.encoder.state_dict(), tmp_path / "model.safetensors")
    save_file(decoder_state(mae), tmp_path / "decoder.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "hivit_atto", "pretrained_cfg": {}, "model_args": ATTO})
    )
    return tmp_path


def changed(file: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    state = load_file(file)
    state[name] = change(state[name])
    save_file(state, file)


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[1] = value
        return tensor

    return change


def command(folder: Path, out: Path, *words: str) -> None:
    convert.main([str(folder), "--model", "hivit_atto", "-o", str(out), *words])


def test_values_that_are_not_finite_are_taken_by_those_who_insist(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, out = "blocks.0.mlp.fc1.weight", tmp_path / "out"
    changed(toy / "model.safetensors", name, with_value(float("nan")))
    with pytest.raises(ValueError, match=rf"tensor '{name}' \[.*\]: 1 value is NaN or infinite; use --allow-nonfinite"):
        command(toy, out)
    with pytest.raises(ValueError, match="leave out one of it and --allow-nonfinite"):
        command(toy, out, "--allow-nonfinite", "--verify")
    assert not out.exists()
    command(toy, out, "--allow-nonfinite")
    assert f"  not finite: 1 value of {name}\n" in capsys.readouterr().out
    assert load_file(out / "model.safetensors")[name].isnan().sum() == 1
    assert timm.create_model(f"local-dir:{out}", pretrained=True), "which they then have"
    made = convert.run(source=str(toy), model="hivit_atto", output=str(tmp_path / "twin"), allow_nonfinite=True)
    assert made == tmp_path / "twin"


@pytest.mark.parametrize(("dtype", "value", "limit"), [("float16", 1e6, "6.55e+04"), ("bfloat16", 3.4e38, "3.39e+38")])
@pytest.mark.parametrize("decoder", [False, True])
def test_what_a_narrow_type_cannot_hold_is_refused_before_anything_is_written(
    toy: Path, tmp_path: Path, dtype: str, value: float, limit: str, decoder: bool
) -> None:
    file, name = (
        ("decoder.safetensors", "decoder.embed.weight") if decoder else ("model.safetensors", "patch_embed.proj.bias")
    )
    changed(toy / file, name, with_value(value))
    with pytest.raises(ValueError, match=f"^tensor '{name}' holds ") as error:
        create_and_write(toy, tmp_path / "out", dtype)
    assert str(error.value).endswith(
        f"holds {value:.4g}, which is more than {dtype} can hold ({limit}); choose a wider --dtype"
    )
    assert not (tmp_path / "out").exists()
    create_and_write(toy, tmp_path / "out", "float32")
    assert load_file(tmp_path / "out" / file)[name].max() == torch.tensor(value)


def create_and_write(folder: Path, out: Path, dtype: str) -> None:
    from hiermim_zoo.checkpoints.folder import Contents, own_cfg, write_folder

    mae = create_mae("hivit_atto", checkpoint=folder, recipe={"depth": 1, "dim": 16, "heads": 2})
    mae.encoder.pretrained_cfg = own_cfg("hivit_atto", {}, "mit", 0, (3, 32, 32))
    contents = Contents(
        "hivit_atto", mae.encoder, {"license": "mit"}, "", ATTO, getattr(torch, dtype), decoder_state(mae)
    )
    write_folder(contents, out)


def test_a_double_that_no_model_can_hold_is_refused(toy: Path, tmp_path: Path) -> None:
    changed(toy / "model.safetensors", "patch_embed.proj.bias", lambda t: with_value(1e300)(t.double()))
    with pytest.raises(ValueError, match=r"tensor 'patch_embed\.proj\.bias' holds 1e\+300, which is more than float32"):
        command(toy, tmp_path / "out")


def test_types_are_cast_as_torch_does() -> None:
    assert torch.equal(in_type("w", W, torch.float16), W.half())
    assert in_type("w", torch.tensor([65519.0]), torch.float16) == 65504, "which is rounded, not lost"
    assert in_type("w", torch.tensor([float("inf")]), torch.float16).isinf(), "which was infinite before"
    assert torch.equal(in_type("w", torch.arange(3), torch.float32), torch.arange(3.0))


def test_integers_and_other_numbers_of_axes_are_named(toy: Path, tmp_path: Path) -> None:
    name = "blocks.0.mlp.fc1.weight"
    with pytest.raises(ValueError, match=r"^tensor 'w' is \[6\] in the checkpoint, but m has \[2, 3\]$"):
        check_kinds({"w": W.flatten()}, {"w": W}, model="m")
    with pytest.raises(ValueError, match=r"^tensor 'w' is float32 in the checkpoint, but m has int64$"):
        check_kinds({"w": W}, {"w": W.long()}, model="m")
    changed(toy / "model.safetensors", name, Tensor.long)
    words = rf"tensor '{name}' is int64 in the checkpoint, but .* has float32"
    with pytest.raises(ValueError, match=words):
        command(toy, tmp_path / "out")
    with pytest.raises(ValueError, match=words):
        create_mae("hivit_atto", checkpoint=toy, decoder="fresh")
    with pytest.raises(ValueError, match=words):
        make_model(f"local-dir:{toy}", pretrained=True)
    assert not (tmp_path / "out").exists()


def test_what_timm_loads_by_itself_is_checked_too(toy: Path) -> None:
    changed(toy / "model.safetensors", "blocks.0.mlp.fc1.weight", lambda t: t.to(torch.complex64))
    with pytest.raises(ValueError, match=r"^the checkpoint: tensor 'blocks\.0\.mlp\.fc1\.weight' is complex64"):
        timm.create_model(f"local-dir:{toy}", pretrained=True, num_classes=0)


def test_a_decoder_with_values_that_are_not_finite_is_refused(toy: Path) -> None:
    changed(toy / "decoder.safetensors", "decoder.embed.weight", with_value(float("inf")))
    with pytest.raises(ValueError, match=r"decoder\.safetensors: tensor 'decoder\.embed\.weight' .*: 1 value is NaN"):
        create_mae("hivit_atto", checkpoint=toy, recipe={"depth": 1, "dim": 16, "heads": 2})


# ---- configurations


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        ("model_args.depths", [10**9, 1, 1], r"model_args\.depths is \[1000000000, 1, \.\.\.\]; a whole number up to"),
        ("model_args.depths", [1, 1, 600], r"model_args\.depths is \[1, 1, \.\.\.\]; from 0 to 512 would work"),
        ("model_args.embed_dim", "16", r"model_args\.embed_dim is '16'; a whole number up to 65536 would work"),
        ("model_args.embed_dim", 32768, "the model that it describes has [0-9]+ values, its weights have "),
        ("model_args.embed_dim", 17, "no model can be built as it says: embed_dim=17 must be a multiple of 4"),
        ("model_args.num_heads", 0, "no model can be built as it says: "),
        ("model_args.img_size", 10**9, r"model_args\.img_size is 1000000000; a whole number up to 65536"),
        ("model_args.img_size", [32, 32, 32], r"model_args\.img_size is \[32, 32, \.\.\.\]; a whole number or two"),
        ("model_args.rel_pos_bias", 1, r"model_args\.rel_pos_bias is 1; true or false would work"),
        ("model_args.global_pool", "../x", r"model_args\.global_pool is '\.\./x'; one word would work"),
        ("model_args.device", "cuda", "model_args has 'device', which is no argument of a model; HiViT takes img_size"),
        ("model_args.\x1b[2J", 1, r"model_args has '\\\\x1b\[2J', which is no argument of a model"),
        ("pretrained_cfg", [], r"pretrained_cfg is \[\]; a mapping would work"),
        ("pretrained_cfg.num_classes", 10**12, r"pretrained_cfg\.num_classes is 1000000000000; a number from 0 to"),
        ("pretrained_cfg.input_size", [3, 32], r"pretrained_cfg\.input_size is \[3, 32\]; \[channels, height, width\]"),
        ("pretrained_cfg.std", [0, 1, 1], r"pretrained_cfg\.std is \[0, 1, \.\.\.\]; a list of positive numbers"),
        ("pretrained_cfg.interpolation", "best", r"pretrained_cfg\.interpolation is 'best'; nearest or bilinear or"),
        ("pretrained_cfg.label_names", ["a", 1], r"pretrained_cfg\.label_names is \['a', 1\]; a list of texts"),
        ("pretrained_cfg.license", "a\nb: c", r"pretrained_cfg\.license is 'a\\nb: c'; a short text would work"),
        ("hiermim_zoo.labels", {"kind": "boxes", "names": ["a"]}, r"labels is .*; a kind \(tags, values\) and the"),
        ("hiermim_zoo.labels", {"kind": "tags"}, r"labels is .*; a kind \(tags, values\) and the names of the outputs"),
        ("hiermim_zoo.labels", {"kind": "values", "names": ["a"], "mean": [1, 2]}, "as many numbers as names, not 2"),
        ("hiermim_zoo.recipe", 3, "config.json: recipe is 3; a mapping would work"),
        ("hiermim_zoo.recipe", {"depth": 0}, "config.json: recipe: depth is 0; from 1 to 512 would work"),
        ("hiermim_zoo.recipe", {"fusion": "glue"}, "recipe: 'glue' is unknown, there are last, concat, conv"),
        ("hiermim_zoo.recipe", {"pixel_order": "whc"}, "recipe: 'whc' is unknown, there are hwc, chw"),
        ("hiermim_zoo.recipe", {"width": 4}, "config.json: recipe has no 'width', it has fusion, "),
        ("hiermim_zoo.recipe", {"encoder": {"checkpoint_path": "x"}}, "model_args has 'checkpoint_path'"),
        ("hiermim_zoo.recipe", {"dim": 65536, "depth": 512}, "the model that it describes has [0-9]+ values"),
    ],
    ids=lambda value: None if isinstance(value, (list, dict, int)) else str(value)[:30],
)  # fmt: skip
def test_configurations_are_checked_key_by_key(toy: Path, tmp_path: Path, at: str, value: Any, words: str) -> None:
    file = toy / "config.json"
    config = json.loads(file.read_text())
    inner = config
    *path, last = at.split(".")
    for key in path:
        inner = inner.setdefault(key, {})
    inner[last] = value
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config\.json: .*{words}|{words}") as error:
        create_mae("hivit_atto", checkpoint=toy, decoder="fresh")
    assert str(error.value).isprintable()
    if not at.startswith("hiermim_zoo"):
        with pytest.raises(ValueError, match=words):
            command(toy, tmp_path / "out")
    if at.startswith("model_args"):
        with pytest.raises(ValueError, match=words):
            make_model(f"local-dir:{toy}")
    assert not (tmp_path / "out").exists()


# ---- where text of strangers ends


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain é 漢", "plain é 漢"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\r\nb\u2028c", r"a\r\nb\u2028c"),
        ("abc\u202egnp.exe", r"abc\u202egnp.exe"),
        ("\ud800", r"\ud800"),
        ("\u200b\ufeff", r"\u200b\ufeff"),
    ],
)
def test_nothing_moves_the_cursor(given: str, shown: str) -> None:
    assert printable(given) == shown
    assert repr(given).isprintable(), "which messages use for names"


def test_long_text_is_cut() -> None:
    assert printable("a" * 99, 10) == "aaaaaaa..."
    assert printable("a" * 10, 10) == "a" * 10


def test_a_card_holds_no_markup_of_strangers() -> None:
    model = timm.create_model("hivit_atto", num_classes=0)
    bad = "x`](http://evil) | <b>\n---\nlicense: mit"
    card = model_card(model, "hivit_atto", {"source": bad, "license": bad}, "Made by a test.")
    front = card.split("---\n")[1]
    assert front.splitlines()[-1] == f"license: {json.dumps(printable(bad))}"
    assert f"| source | `{in_cell(bad)}` |" in card.splitlines()
    assert "`" not in in_cell(bad)
    assert "|" not in in_cell(bad).replace("\\|", "")
    assert hub_license("cc-by-nc-4.0") == "cc-by-nc-4.0"
    assert hub_license("MIT, see LICENSE") == '"MIT, see LICENSE"'


def test_the_terminal_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise ValueError("two\nlines \x1b[2J \u202e")

    with pytest.raises(SystemExit):
        run_command(fails)
    assert capsys.readouterr().err == "error: two lines \\x1b[2J \\u202e\n"
