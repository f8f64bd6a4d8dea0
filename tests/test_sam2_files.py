"""Files of SAM 2's image encoder: those of its authors, of timm and of transformers are read bit by bit, written back,
and whole checkpoints get another encoder while everything else stays as it is.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.hieradet_sam2 import HieraDet
from torch import Tensor, nn

from hiermim_zoo import convert
from hiermim_zoo.checkpoints.exchange import exchange, read_into
from hiermim_zoo.checkpoints.layouts import all_layouts, carry_over, find_layout
from hiermim_zoo.checkpoints.unconvert import left_out, to_published
from hiermim_zoo.models.family import family_named
from hiermim_zoo.models.hiera_sam2 import VARIANTS
from hiermim_zoo.models.shapes import without_memory

from .names import State, renamed

ARCH = "hiera_sam2_atto"
HEAD = r"(fc_norm|head)\..+"
TRUNK, BACKBONE = "image_encoder.trunk.", "vision_encoder.backbone."
SAM2_BESIDE = (
    "image_encoder.neck.convs.0.conv.weight", "memory_attention.layers.0.self_attn.q_proj.weight",
    "memory_attention.norm.bias", "memory_encoder.mask_downsampler.encoder.0.weight", "memory_encoder.out_proj.bias",
    "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "sam_prompt_encoder.no_mask_embed.weight",
    "sam_mask_decoder.transformer.layers.0.norm1.weight", "sam_mask_decoder.conv_s0.weight",
    "obj_ptr_proj.layers.0.bias", "obj_ptr_tpos_proj.weight", "mask_downsample.weight",
    "maskmem_tpos_enc", "no_mem_embed", "no_mem_pos_enc",
    "no_obj_ptr", "no_obj_embed_spatial",
)  # fmt: skip
HF_BESIDE = (
    "vision_encoder.neck.convs.0.weight", "memory_attention.layers.0.linear1.weight", "memory_encoder.projection.bias",
    "prompt_encoder.shared_embedding.positional_embedding", "prompt_encoder.mask_embed.conv1.weight",
    "mask_decoder.transformer.layers.0.layer_norm1.weight", "mask_decoder.iou_token.weight",
    "shared_image_embedding.positional_embedding", "object_pointer_proj.proj_in.weight", "mask_downsample.bias",
    "temporal_positional_encoding_projection_layer.weight", "no_memory_embedding", "no_memory_positional_encoding",
    "memory_temporal_positional_encoding", "no_object_pointer", "occlusion_spatial_embedding_parameter",
)  # fmt: skip


def beside(names: tuple[str, ...]) -> State:
    """Small tensors of several types: what a file has beside an encoder."""
    generator = torch.Generator().manual_seed(2)
    kinds = (torch.float32, torch.float64, torch.bfloat16)
    return {name: torch.randn(2, 3, generator=generator).to(kinds[i % 3]) for i, name in enumerate(names)}


@cache
def encoder(seed: int = 0, arch: str = ARCH, **args: Any) -> State:
    """An encoder with values that differ everywhere."""
    with without_memory():
        model = timm.create_model(arch, num_classes=0, **args)
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=generator) for name, t in model.state_dict().items()}


def trunk(state: Mapping[str, Tensor]) -> State:
    return {name: tensor for name, tensor in state.items() if not re.fullmatch(HEAD, name)}


def sam2(state: State) -> State:
    """The names of the authors."""
    return renamed(trunk(state), (r"mlp\.fc1", "mlp.layers.0"), (r"mlp\.fc2", "mlp.layers.1"), ("^", TRUNK))


def hf(state: State) -> State:
    """The names of transformers."""
    return renamed(
        trunk(state),
        (r"patch_embed\.proj", "patch_embed.projection"),
        (r"\.norm([12])", r".layer_norm\1"),
        (r"mlp\.fc1", "mlp.proj_in"),
        (r"mlp\.fc2", "mlp.proj_out"),
        ("^", BACKBONE),
    )


def timms(state: State) -> State:
    return renamed(state, (r"^head\.", "head.fc."), (r"^fc_norm\.", "head.norm."))


def classifier(state: State) -> State:
    return {**state, "head.weight": torch.randn(5, 192), "head.bias": torch.randn(5)}


def bare(prefix: str, state: State) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


KINDS: dict[str, tuple[str, Callable[[State], State]]] = {
    "SAM 2": ("sam2", lambda s: {**beside(SAM2_BESIDE), **sam2(s)}),
    "SAM 2, the trunk": ("sam2", lambda s: bare(TRUNK, sam2(s))),
    "timm": ("sam2_timm", timms),
    "timm, a classifier": ("sam2_timm", lambda s: timms(classifier(s))),
    "timm, the trunk": ("sam2_timm", trunk),
    "transformers": ("sam2_transformers", lambda s: {**beside(HF_BESIDE), **hf(s)}),
    "transformers, neck": (
        "sam2_transformers",
        lambda s: bare("vision_encoder.", {**beside(HF_BESIDE[:1]), **hf(s)}),
    ),
    "transformers, the trunk": ("sam2_transformers", lambda s: bare(BACKBONE, hf(s))),
    "own": ("sam2_own", lambda s: s),
    "own, a classifier": ("sam2_own", classifier),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[str, State]:
    """Name of the layout, and a file."""
    layout, rename = request.param
    return layout, rename(encoder())


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """The same names in the same order, with the same values in the same types."""
    return list(found) == list(wanted) and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in wanted.items()
    )


# ---- reading


def test_every_kind_is_of_one_layout(kind: tuple[str, State]) -> None:
    """Of all families': timm's names could also be those of a Hiera."""
    layout, state = kind
    assert [table.name for table in all_layouts() if table.fits(state) and not table.by_name] == [layout]


def test_every_tensor_is_carried_over_or_left_out_for_its_reason(kind: tuple[str, State]) -> None:
    layout, state = kind
    native = family_named("hiera_sam2").native(state)
    assert native.layout.name == layout
    assert all(torch.equal(native.state[name], tensor) for name, tensor in trunk(encoder()).items())
    left_out = {step.source for step in native.steps if step.action == "dropped"}
    assert left_out == state.keys() & {*SAM2_BESIDE, *HF_BESIDE, "neck.convs.0.weight"}
    assert len(native.state) == len(state) - len(left_out)

    swapped = {**state}
    first, second = (next(n for n in state if f"blocks.{i}." in n and n.endswith("attn.proj.bias")) for i in (2, 3))
    swapped[first], swapped[second] = state[second], state[first]
    wrong = family_named("hiera_sam2").native(swapped).state
    assert sum(not torch.equal(wrong[name], tensor) for name, tensor in trunk(encoder()).items()) == 2


def test_an_unknown_name_is_refused(kind: tuple[str, State]) -> None:
    for name in ("blocks.0.attn.extra", "no_such_table", "memory.weight"):
        with pytest.raises(ValueError, match=re.escape(f"'{name}'")):
            family_named("hiera_sam2").native({**kind[1], name: torch.ones(1)})


def test_a_hiera_and_its_file_are_told_apart(kind: tuple[str, State]) -> None:
    with pytest.raises(ValueError, match=f"the file is {kind[0]!r} .* no hiera checkpoint"):
        family_named("hiera").layout_of(kind[1])
    hiera = timm.create_model("hiera_atto").state_dict()
    with pytest.raises(ValueError, match=r"the file is 'hiera_own' .* no hiera_sam2 checkpoint"):
        family_named("hiera_sam2").layout_of(hiera)


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_timms_models_have_the_names_and_shapes_of_ours(size: str) -> None:
    with without_memory():
        theirs: Any = timm.create_model(f"sam2_hiera_{size}").state_dict()
        ours: Any = timm.create_model(f"hiera_sam2_{size}", num_classes=0).state_dict()
    native = family_named("hiera_sam2").native(theirs)
    assert native.layout.name == "sam2_timm"
    assert {n: t.shape for n, t in native.state.items()} == {n: t.shape for n, t in ours.items()}


def hieradet(state: State) -> nn.Module:
    """timm's class at our smallest size."""
    args = VARIANTS[ARCH]
    names = {"depths": "stages", "global_pos_size": "global_pos_size", "img_size": ""}
    model = HieraDet(**{to: v for n, v in args.items() if (to := names.get(n, n))}, num_classes=0)
    model.load_state_dict(state)
    return model.eval()


def test_timm_reads_what_is_written_for_it() -> None:
    model: Any = timm.create_model(ARCH, num_classes=0)
    state = encoder(1)
    theirs = hieradet(to_published(state, {}, find_layout("sam2_timm"), model))
    found = theirs.state_dict()
    assert same({name: found[name] for name in trunk(state)}, trunk(state))


# ---- transformers itself


def transformers_models() -> dict[str, Any]:
    """Randomly initialised, with the encoder of our smallest size."""
    library = pytest.importorskip("transformers", minversion="4.56")
    args = VARIANTS[ARCH]
    widths = [args["embed_dim"] * 2**stage for stage in range(4)]
    backbone = library.Sam2HieraDetConfig(
        hidden_size=args["embed_dim"],
        embed_dim_per_stage=widths,
        num_attention_heads=1,
        num_attention_heads_per_stage=[1, 2, 4, 8],
        blocks_per_stage=list(args["depths"]),
        global_attention_blocks=list(args["global_att_blocks"]),
        window_size_per_stage=list(args["window_spec"]),
        window_positional_embedding_background_size=list(args["global_pos_size"]),
        image_size=[args["img_size"]] * 2,
    )
    vision = library.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    )
    whole = library.Sam2Model(library.Sam2Config(vision_config=vision))
    return {"Sam2Model": whole, "Sam2VisionModel": whole.vision_encoder, "trunk": whole.vision_encoder.backbone}


@pytest.mark.slow
def test_transformers_has_the_names_and_shapes_of_ours(tmp_path: Path) -> None:
    own = {n: t.shape for n, t in trunk(encoder()).items()}
    models = transformers_models()
    for model in models.values():
        native = family_named("hiera_sam2").native(model.state_dict())
        assert native.layout.name == "sam2_transformers"
        assert {n: t.shape for n, t in native.state.items()} == own
    models["Sam2Model"].save_pretrained(tmp_path)
    convert.run(source=tmp_path, model=ARCH, output=tmp_path / "ours")
    ours = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True, features_only=True)
    images = torch.randn(2, 3, 128, 128)
    with torch.inference_mode():
        theirs = models["trunk"].eval()(images).intermediate_hidden_states
        for level, wanted in zip(ours.eval()(images), theirs, strict=True):
            torch.testing.assert_close(level, wanted.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"window_size_per_stage": [8, 4, 14, 7]}, "window_size_per_stage 8 4 14 7, hiera_sam2_atto has 8 4 4 2"),
        ({"global_attention_blocks": [3]}, "global_attention_blocks 3, hiera_sam2_atto has 4"),
        ({"num_attention_heads_per_stage": [2, 4, 8, 16]}, "attention heads 2 4 8 16, hiera_sam2_atto has 1 2 4 8"),
        ({"hidden_act": "relu"}, "hidden_act relu, hiera_sam2_atto has gelu"),
        ({"num_query_pool_stages": 2}, "num_query_pool_stages 2, hiera_sam2_atto has 3"),
        ({"query_stride": [1, 1]}, "query_stride 1 1, hiera_sam2_atto has 2 2"),
        ({"patch_stride": [8, 8]}, "patch_stride 8 8, hiera_sam2_atto has 4 4"),
    ],
)
def test_what_a_configuration_says_otherwise_is_refused(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    """No tensor tells of it. Alone, in a vision model or in a whole SAM 2."""
    save_file(hf(encoder()), tmp_path / "model.safetensors")
    right = {"window_size_per_stage": [8, 4, 4, 2], "global_attention_blocks": [4], "num_attention_heads": 1}
    right |= {"num_attention_heads_per_stage": [1, 2, 4, 8], "hidden_act": "gelu", "layer_norm_eps": 1e-6}

    for wrap in (lambda c: c, lambda c: {"backbone_config": c}, lambda c: {"vision_config": {"backbone_config": c}}):
        (tmp_path / "config.json").write_text(json.dumps(wrap(right)))
        convert.run(source=tmp_path, model=ARCH, dry_run=True)
        (tmp_path / "config.json").write_text(json.dumps(wrap({**right, **said})))
        with pytest.raises(ValueError, match=message):
            convert.run(source=tmp_path, model=ARCH, dry_run=True)


def test_the_configuration_of_the_checkpoint_is_looked_at_too(folder: Path, tmp_path: Path) -> None:
    """Of the one that gets another encoder: with other windows the encoder would compute something else in it."""
    save_file({**hf(encoder()), **beside(HF_BESIDE)}, tmp_path / "model.safetensors")
    options = {"source": folder, "to": "sam2_transformers", "into": tmp_path, "output": tmp_path / "new.safetensors"}
    said = {"vision_config": {"backbone_config": {"window_size_per_stage": [8, 4, 14, 7]}}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"--into .*window_size_per_stage 8 4 14 7, hiera_sam2_atto has 8 4 4 2"):
        convert.run(**options)
    assert not (tmp_path / "new.safetensors").exists()
    said["vision_config"]["backbone_config"]["window_size_per_stage"] = [8, 4, 4, 2]
    (tmp_path / "config.json").write_text(json.dumps(said))
    convert.run(**options)
    assert (tmp_path / "new.safetensors").is_file()


@pytest.mark.parametrize("args", [{"global_att_blocks": [3]}, {"window_spec": [8, 4, 8, 4]}, {"num_heads": 2}], ids=str)
def test_what_no_tensor_tells_is_not_written(args: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    """Whoever reads the file would build the architecture as it is published."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    config["model_args"] = {**config.get("model_args", {}), **args}
    (other / "config.json").write_text(json.dumps(config))
    [name] = args
    for layout in ("sam2", "sam2_timm", "sam2_transformers"):
        with pytest.raises(ValueError, match=f"the model has {name} .* and {ARCH} .*, which no tensor tells"):
            convert.run(source=other, to=layout, output=tmp_path / "new.pt")
    assert not (tmp_path / "new.pt").exists()
    convert.run(source=folder, to="sam2", output=tmp_path / "new.pt")


# ---- there and back


@pytest.mark.parametrize("layout", ["sam2", "sam2_timm", "sam2_transformers"])
def test_what_is_written_is_read_again(layout: str) -> None:
    table, state = find_layout(layout), encoder(1)
    model = timm.create_model(ARCH, num_classes=0)
    there = to_published(state, {}, table, model)
    assert [other.name for other in all_layouts() if other.fits(there) and not other.by_name] == [layout]
    assert there.keys() >= {"sam2": sam2, "sam2_timm": timms, "sam2_transformers": hf}[layout](state).keys()
    again = carry_over(there, table, lambda native: ()).state
    assert same(trunk(again), trunk(state))
    other = to_published({**state, "blocks.3.norm1.bias": state["blocks.3.norm2.bias"]}, {}, table, model)
    assert not same(trunk(carry_over(other, table, lambda native: ()).state), trunk(state))

    left_behind = {} if layout == "sam2_timm" else {"fc_norm.weight", "fc_norm.bias"}
    assert {*left_out(state, table)} == {*left_behind}


# ---- into a whole checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of this package, as pre-training leaves it."""
    path = tmp_path_factory.mktemp("folder")
    save_file(encoder(1), path / "own.safetensors")
    convert.run(source=path / "own.safetensors", model=ARCH, output=path / "out")
    return path / "out"


def command(*args: object) -> None:
    convert.main([str(arg) for arg in args])


def test_the_authors_file_gets_another_encoder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything else of it stays: names, order, types, values, and what stands beside the weights."""
    weights = OrderedDict({**sam2(encoder()), **beside(SAM2_BESIDE)})
    weights[f"{TRUNK}pos_embed"] = nn.Parameter(weights[f"{TRUNK}pos_embed"])
    content = {"epoch": 7, "model": weights, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "names": ["a"]}}
    torch.save(content, tmp_path / "sam2.1_hiera_atto.pt")
    before = (tmp_path / "sam2.1_hiera_atto.pt").read_bytes()
    command(folder, "--to", "sam2", "--into", tmp_path / "sam2.1_hiera_atto.pt", "-o", tmp_path / "new.pt")
    printed = capsys.readouterr().out
    exchanged = len(trunk(encoder()))
    assert f"{exchanged} tensors exchanged (float32), {len(SAM2_BESIDE)} others as they were" in printed
    assert "left out, as an encoder is exchanged and no classifier: fc_norm.weight, fc_norm.bias" in printed

    assert (tmp_path / "sam2.1_hiera_atto.pt").read_bytes() == before
    new: Any = torch.load(tmp_path / "new.pt", weights_only=True)
    assert list(new) == ["epoch", "model", "optimizer"]
    assert type(new["model"]) is OrderedDict
    assert same(new["model"], {name: sam2(encoder(1)).get(name, tensor) for name, tensor in weights.items()})
    assert isinstance(new["model"][f"{TRUNK}pos_embed"], nn.Parameter)
    assert torch.equal(new["optimizer"]["state"][0].pop("exp_avg"), torch.ones(2))
    assert (new["epoch"], new["optimizer"]) == (7, {"state": {0: {}}, "names": ["a"]})
    assert not same(new["model"], weights)


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("transformers", {"who": "somebody"}),  # of several the library writes the order as it likes
        ("transformers, the trunk", None),
        ("timm, a classifier", {"format": "pt"}),
        ("SAM 2", None),
    ],
)
def test_files_of_safetensors_stay_what_they_are(
    name: str, metadata: dict[str, str] | None, folder: Path, tmp_path: Path
) -> None:
    """To the byte, where the encoder is the one that was there."""
    layout, rename = KINDS[name]
    content = rename(encoder())
    file, out = tmp_path / "model.safetensors", tmp_path / "new.safetensors"
    save_file(content, file, metadata)
    convert.run(source=folder, to=layout, into=file, output=out)
    back = {"sam2": sam2, "sam2_timm": trunk, "sam2_transformers": hf}[layout](encoder(1))
    back = bare(BACKBONE, back) if "pos_embed" in content else back
    assert same(load_file(out), {n: back.get(n, load_file(file)[n]) for n in load_file(file)})
    assert file.read_bytes() != out.read_bytes()

    save_file(encoder(), tmp_path / "own.safetensors")
    convert.run(source=tmp_path / "own.safetensors", model=ARCH, to=layout, into=file, output=out, force=True)
    assert file.read_bytes() == out.read_bytes()


def test_types_are_those_of_the_file(folder: Path, tmp_path: Path) -> None:
    half = {name: tensor.to(torch.bfloat16) for name, tensor in sam2(encoder()).items()}
    half[f"{TRUNK}pos_embed"] = half[f"{TRUNK}pos_embed"].double()
    torch.save({"model": renamed(half, ("^", "module."))}, tmp_path / "half.pt")  # as DistributedDataParallel has them
    convert.run(source=folder, to="sam2", into=tmp_path / "half.pt", output=tmp_path / "new.pt")
    new: Any = torch.load(tmp_path / "new.pt", weights_only=True)["model"]
    wanted = {f"module.{n}": t.to(half[n].dtype) for n, t in sam2(encoder(1)).items()}
    assert same(new, wanted)


def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    torch.save({"model": sam2(encoder())}, tmp_path / "sam2.pt")
    whole = read_into(tmp_path / "sam2.pt", find_layout("sam2"))
    with pytest.raises(ValueError, match=r"'blocks\.0\.lost' .* has no place"):
        exchange(whole, {**encoder(1), "blocks.0.lost": torch.ones(1)}, "ours")
    assert same(cast(State, whole.weights), sam2(encoder()))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"global_pos_size": (7, 7)},
            r"tensor 'image_encoder.trunk.pos_embed' is \[1, 24, 7, 7\] in .*sam2.pt, but \[1, 24, 4, 4\] in ",
        ),
        (
            {"embed_dim": 48},
            r"tensor 'image_encoder.trunk.pos_embed' is \[1, 48, 4, 4\] in .*sam2.pt, but \[1, 24, 4, 4\] in ",
        ),
        (
            {"depths": (1, 1, 4, 2), "global_att_blocks": ()},
            r"tensor 'image_encoder.trunk.blocks.5.attn.qkv.weight' is \[288, 96\] in .*sam2.pt, but \[576, 96\] in ",
        ),
        ({"depths": (1, 1, 3, 3), "global_att_blocks": ()}, r"blocks.7.norm1.weight' is \[192\] in .*, but missing in"),
        ({"depths": (1, 1, 3, 1), "global_att_blocks": ()}, r"'blocks.6.norm1.weight' \[192\] of .* has no place in"),
    ],
    ids=["background", "width", "depth", "deeper", "shallower"],
)
def test_another_trunk_is_refused_with_its_first_tensor(
    args: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    torch.save({"model": sam2(encoder(**args))}, tmp_path / "sam2.pt")
    with pytest.raises(ValueError, match=message):
        convert.run(source=folder, to="sam2", into=tmp_path / "sam2.pt", output=tmp_path / "new.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["sam2.pt"]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files, of which all but the first cannot get another encoder."""
    path = tmp_path_factory.mktemp("others")
    full = {**sam2(encoder()), **beside(SAM2_BESIDE)}
    torch.save({"model": full}, path / "sam2.pt")
    save_file(full, path / "sam2.safetensors")
    torch.save({"model": full, "ema": full}, path / "two.pt")
    torch.save({"model": full, "path": Path("x")}, path / "objects.pt")
    torch.save({"model": {name: tensor.to(torch.int8) for name, tensor in full.items()}}, path / "int8.pt")
    torch.save({"model": {**full, "extra": torch.ones(1)}}, path / "extra.pt")
    torch.save({"model": timms(encoder())}, path / "timm.pt")
    torch.save({"model": timm.create_model("hiera_atto").state_dict()}, path / "hiera.pt")
    torch.save({"model": beside(SAM2_BESIDE)}, path / "none.pt")
    (path / "sharded").mkdir()
    save_file(full, path / "sharded" / "model-00001-of-00001.safetensors")
    index = ", ".join(f'"{name}": "model-00001-of-00001.safetensors"' for name in full)
    (path / "sharded" / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{index}}}}}')
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--to sam2 --into sam2.pt -o sam2.pt --force", "-o .*sam2.pt is the file of --into, which stays as it is"),
        ("--to sam2 --into sam2.pt -o timm.pt", "timm.pt exists; use --force"),
        ("--to sam2 --into sam2.pt -o new.safetensors", "is a file of torch, and so is what is written: new.pt"),
        ("--to sam2 --into sam2.safetensors -o new.pt", "is a file of safetensors, .* written: new.safetensors"),
        ("--to sam2 --into nothing.pt -o new.pt", "--into: .*nothing.pt does not exist"),
        ("--to sam2 --into sharded -o new.safetensors", "a checkpoint in several files cannot be written again"),
        ("--to sam2 --into two.pt -o new.pt", "has tensors of sam2 under model and ema: keep one"),
        ("--to sam2 --into objects.pt -o new.pt", r"--into .*objects.pt asks for pathlib\S*Path, which could run code"),
        ("--to sam2 --into int8.pt -o new.pt", r"is \[1, 24, 4, 4\] of int8 in .*int8.pt, but \[1, 24, 4, 4\] in"),
        ("--to sam2 --into extra.pt -o new.pt", "--into .*extra.pt: tensor 'extra'"),
        ("--to sam2 --into timm.pt -o new.pt", "holds no encoder of sam2 .*: its names are those of sam2_timm"),
        ("--to sam2 --into hiera.pt -o new.pt", "holds no encoder of sam2 .*: its names are those of hiera_own"),
        ("--to sam2 --into none.pt -o new.pt", "holds no encoder of sam2 .*: its names are of no layout that is known"),
        (
            "--to sam2_own --into sam2.pt -o new.pt",
            "--into goes with --to sam2, sam2_timm, sam2_transformers; --to sam2_",
        ),
        ("--to nonsense --into sam2.pt -o new.pt", "layout 'nonsense' is unknown"),
        ("--into sam2.pt -o new", "--into .*sam2.pt belongs to --to LAYOUT"),
        ("--to sam2 --into sam2.pt -o new.pt --dtype float16", "says the types of the tensors: leave out --dtype"),
        ("--to sam2 --into sam2.pt -o new.pt --img-size 256", "--img-size 256 256 would resample them"),
    ],
    ids=lambda words: words[5:40],
)
def test_bad_input_is_refused_before_anything_is_written(words: str, message: str, folder: Path, others: Path) -> None:
    before = sorted(others.rglob("*"))
    paths = [str(others / word) if "." in word or word in ("sharded", "new") else word for word in words.split()]
    with pytest.raises(ValueError, match=message) as caught:
        convert.run(**arguments(paths), source=folder)
    assert "\n" not in str(caught.value)
    assert sorted(others.rglob("*")) == before


def arguments(words: list[str]) -> dict[str, Any]:
    """The words of a command line as arguments of its twin."""
    found: dict[str, Any] = {}
    for word in words:
        if word.startswith("-"):
            name = {"-o": "output"}.get(word, word[2:].replace("-", "_"))
            found[name] = True
        else:
            found[name] = int(word) if word.isdigit() else word
    return found


def test_a_model_of_another_family_is_refused(others: Path, tmp_path: Path) -> None:
    options: Any = {"to": "sam2", "into": others / "sam2.pt", "output": tmp_path / "new.pt"}
    with pytest.raises(ValueError, match="--to sam2 is no layout of hivit, whose model hivit_atto is"):
        convert.run(source="hivit_atto.mae_cifar10", **options)


def test_a_folder_says_its_own_architecture(folder: Path, tmp_path: Path) -> None:
    """So --model can be left out; and without --into the encoder is written alone."""
    convert.run(source=folder, to="sam2", output=tmp_path / "trunk.pt")
    written: Any = torch.load(tmp_path / "trunk.pt", weights_only=True)
    assert list(written) == ["model"]
    assert {n: t.sum() for n, t in written["model"].items()} == {n: t.sum() for n, t in sam2(encoder(1)).items()}
    with pytest.raises(ValueError, match="--model ARCH is needed"):
        convert.run(source=tmp_path / "trunk.pt", output=tmp_path / "out")
