"""Files that are nearly of a known kind: what is made of them by the command, or why they are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from hiermim_zoo import convert
from hiermim_zoo.checkpoints.layouts import all_layouts
from hiermim_zoo.checkpoints.rules import Copy, Refuse, Rename, Split, apply_rules, check_fits
from hiermim_zoo.layers.position import resample_bias_table, resample_positions
from hiermim_zoo.mae import create_mae
from hiermim_zoo.models.family import family_named
from hiermim_zoo.models.hivit import depths_of
from hiermim_zoo.models.shapes import without_memory

from .golden.case import golden
from .golden.fill import fill
from .names import State, mmpretrain, renamed, transformers, with_decoder


def vit(**kwargs: Any) -> State:
    """A plain ViT of hpvit_atto's size."""
    shape: dict[str, Any] = {"img_size": 64, "embed_dim": 96, "depth": 6, "num_heads": 3, "num_classes": 0}
    return filled(VisionTransformer(**{**shape, **kwargs}).state_dict())


def hivit(**kwargs: Any) -> State:
    """An encoder of hivit_atto as its authors' pre-training leaves it: no bias tables, no norm."""
    state = timm.create_model("hivit_atto", num_classes=0, rel_pos_bias=False, **kwargs).state_dict()
    return filled({name: tensor for name, tensor in state.items() if not name.startswith("fc_norm.")})


def filled(state: State) -> State:
    return {name: torch.from_numpy(fill(name, tuple(tensor.shape))) for name, tensor in state.items()}


def command(*args: object) -> None:
    convert.main([str(arg) for arg in args])


def converted(state: State, folder: Path, arch: str, *more: object) -> State:
    """What the command writes for a checkpoint."""
    torch.save({"model": state}, folder / "file.pth")
    command(folder / "file.pth", "--model", arch, "-o", folder / "out", "--force", *more)
    return load_file(folder / "out" / "model.safetensors")


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- rules


def test_rows_are_split_in_the_order_of_the_rule() -> None:
    rules = (Split(r"(\d)\.qk", r"\1.{}.w", ("q", "k"), "apart"), Copy(r"\d\.q\.w"))
    out, steps = apply_rules({"0.qk": torch.tensor([1, 2, 3, 4])}, rules, "toy")
    assert {name: tensor.tolist() for name, tensor in out.items()} == {"0.q.w": [1, 2], "0.k.w": [3, 4]}
    assert [tuple(step) for step in steps] == [("0.qk", "split", f"0.{part}.w", "apart") for part in "qk"]
    with pytest.raises(ValueError, match=r"'0\.qk' \[3\] cannot be split into 2"):
        apply_rules({"0.qk": torch.ones(3)}, rules, "toy")
    with pytest.raises(ValueError, match=r"'0\.qk' \[\] cannot be split"):
        apply_rules({"0.qk": torch.tensor(3)}, rules, "toy")
    with pytest.raises(ValueError, match=r"'0\.qk': another tensor of the layout 'toy' already became '0\.q\.w'"):
        apply_rules({"0.q.w": torch.ones(1), "0.qk": torch.ones(2)}, rules, "toy")


def test_a_prefix_is_taken_off_before_the_rules_look() -> None:
    rules = (Copy("a"), Rename("b", "c"))
    out, steps = apply_rules({"p.a": torch.ones(1), "b": torch.ones(2)}, rules, "toy", "p.")
    assert list(out) == ["a", "c"]
    assert [(step.source, step.action, step.target) for step in steps] == [
        ("p.a", "renamed", "a"),
        ("b", "renamed", "c"),
    ]
    with pytest.raises(ValueError, match=r"'p\.x' \[1\] is not part"):
        apply_rules({"p.x": torch.ones(1)}, rules, "toy", "p.")
    with pytest.raises(ValueError, match="already became 'a'"):
        apply_rules({"p.a": torch.ones(1), "a": torch.ones(1)}, rules, "toy", "p.")


def test_a_reason_is_said_before_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="no gains here"):
        apply_rules({"x": torch.ones(1), "gain": torch.ones(1)}, (Refuse("gain", "no gains here"),), "toy")


# ---- plain ViTs


@pytest.mark.parametrize("rename", [dict, with_decoder, transformers, mmpretrain], ids=lambda f: f.__name__)
def test_the_last_norm_is_not_missed(rename: Any, tmp_path: Path) -> None:
    state = vit()
    stripped = {name: tensor for name, tensor in state.items() if not name.startswith("norm.")}
    written = converted(rename(stripped), tmp_path, "hpvit_atto")
    assert same(written, converted(rename(state), tmp_path, "hpvit_atto"))
    stripped["blocks.5.mlp.fc2.bias"] = stripped["blocks.5.mlp.fc2.bias"] + 1  # negative control
    assert not same(written, converted(rename(stripped), tmp_path, "hpvit_atto"))


@pytest.mark.parametrize(
    ("rename", "layout", "chans", "rows"),
    [
        (with_decoder, "vit_mae", 1, 64 * 8),  # AudioMAE
        (with_decoder, "vit_mae", 3, 14 * 14),  # fMoW-RGB, RETFound
        (lambda s: {**s, "fc_norm.weight": s["norm.weight"], "head.weight": s["norm.weight"]}, "vit_two_norms", 3, 196),
    ],
)
def test_maes_of_other_images_have_the_same_names(rename: Any, layout: str, chans: int, rows: int) -> None:
    state = vit(in_chans=chans) | {"pos_embed": torch.ones(1, rows + 1, 96)}
    native = family_named("hpvit").native(rename(state))
    assert native.layout.name == layout
    assert native.state["pos_embed"].shape == (1, rows, 96)
    assert native.state["patch_embed.proj.weight"].shape[1] == chans


def test_a_plain_vit_gets_a_new_norm_and_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {name: t for name, t in vit(embed_dim=192, depth=12).items() if not name.startswith("norm.")}
    written = converted(state, tmp_path, "vit_tiny_patch16_224")
    assert "initial values kept: norm.weight, norm.bias\n" in capsys.readouterr().out
    assert torch.equal(written["norm.weight"], torch.ones(192))
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("names", [dict, with_decoder], ids=["encoder", "with decoder"])
def test_of_two_norms_the_one_behind_pooling_is_kept(
    names: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fine_tuned = vit(num_classes=5, global_pool="avg")
    norm = {"norm.weight": torch.full((96,), 3.0), "norm.bias": torch.ones(96)}
    both = converted(names({**fine_tuned, **norm}), tmp_path, "hpvit_atto")
    assert (
        "dropped 2: norm over the tokens of pre-training; fc_norm stands behind mean pooling" in capsys.readouterr().out
    )
    assert same(both, converted(fine_tuned, tmp_path, "hpvit_atto"))
    assert all(
        torch.equal(both[f"{n}.{kind}"], fine_tuned[f"{n}.{kind}"])
        for n in ("fc_norm", "head")
        for kind in ("weight", "bias")
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dist_token", "a distilled DeiT has a second token"),
        ("head_dist.weight", "a distilled DeiT"),
        ("norm_pre.weight", "no norm before the first one, as CLIP's do"),
        ("attn_pool.latent", "pools by attention"),
        ("reg_token", "no place for register tokens"),
        ("blocks.0.gamma_1", "no layer scale"),
    ],
)
def test_what_no_model_here_can_hold_is_refused_with_the_reason(name: str, reason: str) -> None:
    for state in (vit(), {**vit(), "head.weight": torch.ones(5, 96), "head.bias": torch.ones(5)}, with_decoder(vit())):
        for family in ("hpvit", "vision_transformer"):
            with pytest.raises(ValueError, match=rf"tensor '{name}' \[2\]: .*{reason}"):
                family_named(family).native({**state, name: torch.ones(2)})


def beit() -> State:
    attention = {"blocks.0.attn.relative_position_bias_table": torch.ones(4, 3), "blocks.0.attn.q_bias": torch.ones(96)}
    return {name: t for name, t in vit().items() if name != "pos_embed"} | attention


@pytest.mark.parametrize(
    ("state", "tells", "kind"),
    [
        (beit, "blocks.0.attn.relative_position_bias_table", "a BEiT or EVA"),
        (lambda: {**hivit(), "align_dim_16tofpn.weight": torch.ones(2)}, "align_dim_16tofpn.weight", "an iTPN"),
        (lambda: {**hivit(), "fpn_modules.0.norm1.bias": torch.ones(2)}, "fpn_modules.0.norm1.bias", "an iTPN"),
        (
            lambda: {**hivit(), "blocks.6.mlp.ffn_ln.weight": torch.ones(2)},
            "blocks.6.mlp.ffn_ln.weight",
            "a Fast-iTPN",
        ),
        (
            lambda: {"deit.embeddings.cls_token": torch.ones(1), "deit.embeddings.distillation_token": torch.ones(1)},
            "deit.embeddings.distillation_token",
            "a DeiT",
        ),
        (
            lambda: {"beit.embeddings.cls_token": torch.ones(1), "beit.encoder.layer.0.lambda_1": torch.ones(1)},
            "beit.encoder.layer.0.lambda_1",
            "a BEiT",
        ),
        (
            lambda: {
                "vision_model.embeddings.class_embedding": torch.ones(1),
                "vision_model.pre_layrnorm.weight": torch.ones(1),
            },
            "vision_model.embeddings.class_embedding",
            "a CLIP",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_strangers_are_named(state: Any, tells: str, kind: str) -> None:
    for family in ("hivit", "hpvit", "vision_transformer"):
        with pytest.raises(ValueError, match=rf"the file is of {kind}.*, as tensor '{re.escape(tells)}' tells: \w+"):
            family_named(family).native(state())


def test_files_that_are_read_are_no_strangers() -> None:
    """Negative control: none of the golden layouts is taken for one."""
    for file in (Path(__file__).parent / "golden").glob("*.json"):
        names = json.loads(file.read_text()).get("manifest")
        if names:
            fitting = [layout.name for layout in all_layouts() if layout.fits(names) and not layout.by_name]
            assert len(fitting) == 1, (file.name, fitting)
            readers = [
                name
                for name in ("hivit", "hpvit", "hiera", "green")
                for own in family_named(name).layouts
                if own.name == fitting[0]
            ]
            assert family_named(readers[0]).layout_of(names).name == fitting[0]


def prithvi(frames: int, side: int = 4, chans: int = 6) -> State:
    state = renamed(
        with_decoder(vit(in_chans=chans)), (r"^(mask_token|decoder_)", r"decoder.\1"), (r"^(?!decoder\.)", "encoder.")
    )
    state["encoder.patch_embed.proj.weight"] = torch.ones(96, chans, frames, 16, 16)
    state["encoder.pos_embed"] = torch.ones(1, frames * side * side + 1, 96)
    return state


def test_one_frame_of_satellite_images_is_an_image(tmp_path: Path) -> None:
    state = prithvi(1)
    written = converted(state, tmp_path, "hpvit_atto")
    assert written["patch_embed.proj.weight"].shape == (96, 6, 16, 16)
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).in_chans == 6
    bare = renamed(state, (r"^(encoder|decoder)\.", ""))  # the first version: MAE's names
    assert same(converted(bare, tmp_path, "hpvit_atto"), written)


@pytest.mark.parametrize(
    ("frames", "rows", "reason"),
    [
        (3, 48, r"'patch_embed.proj.weight' \[96, 6, 3, 16, 16\]: a stem of 3 frames"),
        (4, 64, r"a stem of 4 frames"),
        (1, 4 * 196, r"'pos_embed' \[1, 785, 96\]: 784 rows .* are 4 frames of 14 x 14 patches"),
        (1, 3 * 256, "are 3 frames of 16 x 16 patches"),
    ],
)
def test_several_frames_are_refused(frames: int, rows: int, reason: str) -> None:
    state = {**prithvi(frames), "encoder.pos_embed": torch.ones(1, rows + 1, 96)}
    for family in ("hpvit", "vision_transformer"):
        with pytest.raises(ValueError, match=reason):
            family_named(family).native(state)


@torch.inference_mode()
def test_transformers_itself_computes_the_same() -> None:
    case = golden("hf_vit_toy")
    config = case.about["config"]
    state = family_named("vision_transformer").native(case.state()).state
    shape = {
        "embed_dim": config["hidden_size"],
        "num_heads": 2,
        "depth": 2,
        "mlp_ratio": config["intermediate_size"] / 24,
    }
    model = VisionTransformer(img_size=32, num_classes=config["num_labels"], **shape).eval()
    model.load_state_dict(state)
    torch.testing.assert_close(model.forward_features(case.images()), case.outputs["tokens"], **case.tolerance)
    state["blocks.1.attn.qkv.weight"] = state["blocks.1.attn.qkv.weight"].roll(24, 0)  # key, query, value
    model.load_state_dict(state)
    difference = (model.forward_features(case.images()) - case.outputs["tokens"]).abs().max()
    assert difference > 100 * case.tolerance["atol"], "negative control"


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        ("manifest", "vit_class_token_transformers"),
        ("in_memory", "vit_class_token_transformers"),
        ("model", "vit_transformers"),
        ("masked", "vit_transformers"),
    ],
)
def test_names_that_transformers_writes_are_known(names: str, layout: str) -> None:
    shapes = golden("hf_vit_toy").about[names]
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    native = family_named("vision_transformer").native(state)
    assert native.layout.name == layout
    classes = 5 if "class_token" in layout else 0
    expected = VisionTransformer(img_size=32, embed_dim=24, depth=2, num_heads=2, mlp_ratio=2, num_classes=classes)
    check_fits(native.state, expected.state_dict(), model="the toy")
    state["vit.surprise"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"'vit\.surprise'"):
        family_named("vision_transformer").native(state)


# ---- HiViT


def test_an_encoder_without_norm_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = converted(hivit(), tmp_path, "hivit_atto", "--verify")
    said = capsys.readouterr().out
    assert "layout  hivit_encoder" in said
    assert "fc_norm.weight, fc_norm.bias" in said.partition("initial values kept:")[2]
    assert all(torch.equal(written[name], tensor) for name, tensor in hivit().items())
    backbone = {f"backbone.{name}": tensor for name, tensor in hivit().items()}
    assert same(converted({**backbone, "backbone.norm_.weight": torch.ones(96)}, tmp_path, "hivit_atto"), written)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_without_positions_nothing_is_built(prefix: str, tmp_path: Path) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in hivit().items() if name != "absolute_pos_embed"}
    with pytest.raises(ValueError, match=r"'absolute_pos_embed' \[1, \w+, channels\] is (missing|needed)"):
        converted(state, tmp_path, "hivit_atto")


def tables(rows: int, prefix: str = "backbone.") -> State:
    made = {f"blocks.{i}.attn.relative_position_bias_table": torch.zeros(rows, 3) for i in range(6, 10)}
    return {f"{prefix}{name}": tensor for name, tensor in {**hivit(), **filled(made)}.items()}


def test_tables_of_a_larger_grid_are_resampled_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tables((2 * 6 - 1) ** 2)  # a segmenter's crops of 6 x 6 units; positions are of 4 x 4
    written = converted(state, tmp_path, "hivit_atto")
    name = "blocks.6.attn.relative_position_bias_table"
    assert torch.equal(written[name], resample_bias_table(state[f"backbone.{name}"], (6, 6), (4, 4)))
    assert "relative positions: tables of 6 x 6 units beside positions of 4 x 4" in capsys.readouterr().out
    converted(tables(49), tmp_path, "hivit_atto")
    assert "relative positions" not in capsys.readouterr().out


def test_windows_smaller_than_the_grid_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'blocks\.6\..*bias_table' has 9 rows, those of windows of 2 x 2 units"):
        converted(tables(9), tmp_path, "hivit_atto")
    with pytest.raises(ValueError, match=r"'blocks\.6\..*bias_table' is \[10, 3\] in the checkpoint"):
        converted(tables(10), tmp_path, "hivit_atto")


def test_other_depths_are_told_and_can_be_chosen(tmp_path: Path) -> None:
    state = hivit(depths=(1, 1, 3))
    with pytest.raises(ValueError, match=r"stages of 1, 1, 3 blocks, the model has 1, 1, 4: --depths 1 1 3"):
        converted(state, tmp_path, "hivit_atto")
    written = converted(state, tmp_path, "hivit_atto", "--depths", 1, 1, 3, "--verify")
    assert len(timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).blocks) == len(
        {n.split(".")[1] for n in written if n.startswith("blocks")}
    )
    assert depths_of(vit()) is None


def test_mmpretrains_own_base_is_read_completely() -> None:
    family = family_named("hivit")
    shapes = golden("mmpretrain_mae_hivit_base_layout").about["manifest"]
    state: dict[str, Tensor] = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    native = family.native(state)
    assert native.layout.name == "hivit_mae_mmpretrain"
    assert depths_of(native.state) == (2, 2, 24)
    with without_memory():
        model = timm.create_model("hivit_base", depths=(2, 2, 24), num_classes=0)
        check_fits(family.adapt(native, model), model.state_dict(), model="hivit_base")
        with pytest.raises(ValueError, match="--depths 2 2 24"):
            family.adapt(native, timm.create_model("hivit_base", num_classes=0))
    with pytest.raises(ValueError, match="holds no decoder that can be kept"):
        family.native(state, decoder=True)


def test_a_decoder_of_other_targets_is_only_left_out(tmp_path: Path) -> None:
    """SARATR-X predicts maps of gradients: the encoder is a HiViT's, the decoder is not of its autoencoder."""
    mae = create_mae("hivit_atto")
    names = ((r"^encoder\.", ""), (r"^fusion\.", ""), (r"^decoder\.mask", "mask"), (r"^decoder\.", "decoder_"))
    state = {n: t for n, t in renamed(filled(mae.state_dict()), *names).items() if not n.startswith("fc_norm")}
    state["decoder_pred.weight"], state["decoder_pred.bias"] = torch.ones(256, 512), torch.ones(256)
    written = converted(state, tmp_path, "hivit_atto")
    assert torch.equal(written["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc1.weight"])
    with pytest.raises(ValueError, match=r"'decoder\.pred\.weight' is \[256, 512\] in the checkpoint, but the autoenc"):
        converted(state, tmp_path, "hivit_atto", "--mae")


# ---- and back, by the command


@pytest.mark.parametrize("layout", ["vit_timm", "vit_mae_transformers", "vit_mae_mmpretrain"])
def test_a_plain_vit_goes_to_whoever_wants_it(layout: str, tmp_path: Path) -> None:
    arch = ("--model", "vit_tiny_patch16_224")
    written = converted(vit(embed_dim=192, depth=12), tmp_path, arch[1])
    command(tmp_path / "out", *arch, "--to", layout, "-o", tmp_path / "back.bin")
    command(tmp_path / "back.bin", *arch, "-o", tmp_path / "again")
    assert same(load_file(tmp_path / "again" / "model.safetensors"), written)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["hiermim_zoo"]["layout"] == layout
    with pytest.raises(ValueError, match="--to vit_prithvi needs a decoder"):
        command(tmp_path / "out", *arch, "--to", "vit_prithvi", "-o", tmp_path / "prithvi.bin")


@pytest.mark.parametrize("layout", ["hivit_supervised", "hivit_finetuned"])
def test_a_hivit_goes_back_to_its_authors(layout: str, tmp_path: Path) -> None:
    model = timm.create_model("hivit_atto", num_classes=5)
    written = converted(filled(model.state_dict()), tmp_path, "hivit_atto")
    command(tmp_path / "out", "--model", "hivit_atto", "--to", layout, "-o", tmp_path / "back.pth")
    command(tmp_path / "back.pth", "--model", "hivit_atto", "-o", tmp_path / "again")
    assert same(load_file(tmp_path / "again" / "model.safetensors"), written)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["hiermim_zoo"]["layout"] == layout


def test_a_size_that_is_asked_for_is_resampled_in_every_kind(tmp_path: Path) -> None:
    table = hivit()["absolute_pos_embed"]
    expected = resample_positions(table, [4, 4], [6, 6])
    for prefix in ("", "backbone."):
        state = {f"{prefix}{name}": tensor for name, tensor in hivit().items()}
        assert torch.equal(converted(state, tmp_path, "hivit_atto", "--img-size", 96)["absolute_pos_embed"], expected)
