"""A plain ViT under anybody's names becomes the same HPViT."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from hiermim_zoo import convert
from hiermim_zoo.checkpoints.layouts import all_layouts
from hiermim_zoo.checkpoints.rules import check_fits
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.layers.position import resample_positions
from hiermim_zoo.models import hpvit, hpvit_verify
from hiermim_zoo.models.family import family_named
from hiermim_zoo.models.hpvit_verify import _plain_vit
from hiermim_zoo.models.shapes import without_memory

from .golden.case import differs, ends, golden
from .names import mmpretrain, transformers, transformers_in_memory, with_decoder, without

State = dict[str, Tensor]
IMAGES = Path(__file__).parents[1] / "examples" / "pictures"


def plain(**kwargs: Any) -> State:
    """A toy plain ViT of hpvit_atto's size, every value drawn, strong enough for attention to matter."""
    torch.manual_seed(11)
    shape: dict[str, Any] = {
        "img_size": 64,
        "patch_size": 16,
        "embed_dim": 96,
        "depth": 6,
        "num_heads": 3,
        "num_classes": 0,
    }
    model = VisionTransformer(**{**shape, **kwargs})
    return {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


ENCODERS: dict[str, tuple[str, Callable[[State], State]]] = {
    "MAE encoder": ("vit_timm", dict),
    "MAE with decoder": ("vit_mae", with_decoder),
    "class token classifier": (
        "vit_class_token",
        lambda s: {**s, "head.weight": torch.ones(5, 96), "head.bias": torch.ones(5)},
    ),
    "linear probe": (
        "vit_probe",
        lambda s: {
            **s,
            "head.0.running_mean": torch.ones(96),
            "head.0.running_var": torch.ones(96),
            "head.0.num_batches_tracked": torch.tensor(3),
            "head.1.weight": torch.ones(5, 96),
            "head.1.bias": torch.ones(5),
        },
    ),
    "transformers 4": ("vit_mae_transformers", lambda s: transformers(with_decoder(s))),
    "transformers 5": (
        "vit_mae_transformers",
        lambda s: transformers(with_decoder(s), "decoder.decoder_encoder.layer"),
    ),
    "transformers 5 in memory": ("vit_mae_transformers", lambda s: transformers_in_memory(with_decoder(s))),
    "transformers encoder": ("vit_mae_transformers", lambda s: without(transformers(s), "vit.")),
    "mmpretrain": ("vit_mae_mmpretrain", lambda s: mmpretrain(with_decoder(s))),
    "mmpretrain linear probe": (
        "vit_probe_mmpretrain",
        lambda s: {
            **mmpretrain(s),
            "neck.bn.running_mean": torch.ones(96),
            "neck.bn.running_var": torch.ones(96),
            "neck.bn.num_batches_tracked": torch.tensor(3),
            "head.layers.head.weight": torch.ones(5, 96),
            "head.layers.head.bias": torch.ones(5),
        },
    ),
    "mmpretrain class token classifier": (
        "vit_class_token_mmpretrain",
        lambda s: {
            **mmpretrain(s),
            "head.layers.head.weight": torch.ones(5, 96),
            "head.layers.head.bias": torch.ones(5),
        },
    ),
    "mmpretrain encoder": ("vit_mae_mmpretrain", lambda s: without(mmpretrain(s), "backbone.")),
}
FINETUNED: dict[str, tuple[str, Callable[[State], State]]] = {
    "MAE": ("vit_finetuned", dict),
    "mmpretrain": ("vit_finetuned_mmpretrain", mmpretrain),
    "no class token": (
        "hpvit_timm",
        lambda s: {n: t[:, 1:] if n == "pos_embed" else t for n, t in s.items() if n != "cls_token"},
    ),
}


def command(*args: object) -> None:
    convert.main([str(arg) for arg in args])


def converted(state: State, folder: Path, *more: object, top_key: str = "model") -> State:
    """What the command writes for a checkpoint."""
    torch.save({top_key: state}, folder / "plain.pth")
    command(folder / "plain.pth", "--model", "hpvit_atto", "-o", folder / "out", "--force", *more)
    return load_file(folder / "out" / "model.safetensors")


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# ---- one set of weights, many names


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_layout_of_the_same_weights_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    layout, rename = ENCODERS[kind]
    state = plain()
    written = converted(rename(state), tmp_path)
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["hiermim_zoo"]["layout"] == layout
    assert about["num_classes"] == 0
    encoder = {n: t for n, t in state.items() if n.startswith(("blocks.", "patch_embed."))}
    table = resample_positions(state["pos_embed"][:, 1:], [4, 4], [16, 16])
    fc_norm = {"fc_norm.weight": torch.ones(96), "fc_norm.bias": torch.zeros(96)}
    assert same(written, {**encoder, **fc_norm, "pos_embed": table})
    state["blocks.3.attn.qkv.bias"][100] += 1  # negative control
    assert not same(written, converted(rename(state), tmp_path))


@pytest.mark.parametrize("kind", FINETUNED)
def test_a_classifier_behind_mean_pooling_is_carried_over(kind: str, tmp_path: Path) -> None:
    layout, rename = FINETUNED[kind]
    state = plain(num_classes=5, global_pool="avg")
    written = converted(rename(state), tmp_path, "--verify")
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (about["hiermim_zoo"]["layout"], about["num_classes"]) == (layout, 5)
    assert tuple(about["pretrained_cfg"]["input_size"]) == (3, 64, 64)
    assert all(torch.equal(written[n], t) for n, t in state.items() if n not in ("pos_embed", "cls_token"))
    assert same(written, converted(state, tmp_path))
    assert same(
        converted(rename(state), tmp_path, "--num-classes", 0), {n: t for n, t in written.items() if "head." not in n}
    )


@pytest.mark.parametrize("kind", ENCODERS | FINETUNED)
def test_every_layout_is_one_and_only_one(kind: str) -> None:
    for kinds, state in ((ENCODERS, plain()), (FINETUNED, plain(num_classes=5, global_pool="avg"))):
        if kind in kinds:
            layout, rename = kinds[kind]
            known = [table for table in all_layouts() if not table.by_name]
            assert [table.name for table in known if table.fits(rename(state))] == [layout]


def test_what_conversion_writes_converts_again(tmp_path: Path) -> None:
    written = converted(plain(), tmp_path, "--pool", "conv", "--img-size", 96, 64)
    command(tmp_path / "out", "--model", "hpvit_atto", "-o", tmp_path / "again", "--verify")
    assert same(written, load_file(tmp_path / "again" / "model.safetensors"))
    assert timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).pool == "conv"


def test_positions_of_a_plain_vit_are_square_whatever_the_target(tmp_path: Path) -> None:
    """8 x 2 patches of the target are as many as the 4 x 4 of the source, and mean something else."""
    state = plain()
    table = resample_positions(state["pos_embed"][:, 1:], [4, 4], [32, 8])
    assert torch.equal(converted(state, tmp_path, "--img-size", 128, 32)["pos_embed"], table)


def test_timm_itself_loads_a_plain_vit(tmp_path: Path) -> None:
    expected = converted(plain(), tmp_path)
    source = {"state_dict": transformers(plain()), "num_classes": 0}
    model = timm.create_model("hpvit_atto", pretrained=True, pretrained_cfg_overlay=source, num_classes=0)
    assert same(dict(model.state_dict()), expected)


# ---- the report


def test_what_became_of_every_tensor_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    converted(transformers(with_decoder(plain())), tmp_path)
    said = capsys.readouterr().out
    assert "36 joined" in said
    assert "resampled pos_embed [1, 16, 96] -> [1, 256, 96]" in said
    assert "patch embedding: kept, 16 x 16 pixels, stride 16 -> 4" in said
    assert "positions: 4 x 4 -> 16 x 16" in said
    assert "(row of the class token left out)" in said
    assert "dropped 1: pooling has no place for a class token" in said
    assert "dropped 2: norm over the tokens of pre-training" in said
    assert "decoder of the masked autoencoder" in said
    assert "initial values kept: fc_norm.weight, fc_norm.bias" in said
    command(tmp_path / "plain.pth", "--model", "hpvit_atto", "--dry-run")
    said = capsys.readouterr().out
    for part in ("query", "key", "value"):
        assert f"joined   vit.encoder.layer.5.attention.attention.{part}.bias -> blocks.5.attn.qkv.bias" in said
    converted({**plain(), "head.weight": torch.ones(5, 96), "head.bias": torch.ones(5)}, tmp_path)
    assert "dropped 2: classifier of the class token, of no use to mean pooling" in capsys.readouterr().out


# ---- published layouts, complete

PUBLISHED = {
    "timm_vit_base_mae_layout": "vit_timm",
    "mae_vit_base": "vit_mae",
    "vit_base_mae_ft": "vit_finetuned",
    "hf_vit_mae_base_layout": "vit_mae_transformers",
}


def base(state: State) -> None:
    """Fit a checkpoint to hpvit_base, without memory for either."""
    native = family_named("hpvit").native(state)
    classes = len(native.state["head.weight"]) if "head.weight" in native.state else 0
    with without_memory():
        model = timm.create_model("hpvit_base", num_classes=classes)
    check_fits(hpvit.FAMILY.adapt(native, model), model.state_dict(), model="hpvit_base")


@pytest.mark.parametrize(("case", "layout"), PUBLISHED.items())
def test_published_files_are_converted_completely(case: str, layout: str) -> None:
    def state() -> State:
        return {name: torch.zeros(1).expand(shape) for name, shape in golden(case).about["manifest"].items()}

    assert family_named("hpvit").layout_of(state()).name == layout
    base(state())
    name = next(n for n in state() if re.search(r"\.3\..*(mlp\.fc1|intermediate\.dense)\.weight", n))
    native = "blocks.3.mlp.fc1.weight"
    for spoil, message in (
        (lambda s: s.update({name.replace("weight", "kernel"): s.pop(name)}), name.replace("weight", "kernel")),
        (lambda s: s.pop(name), f"'{native}' .* is missing"),
        (lambda s: s.update({name: torch.zeros(7, 768)}), rf"'{native}' is \[7, 768\]"),
    ):
        spoiled = state()
        spoil(spoiled)
        with pytest.raises(ValueError, match=message):
            base(spoiled)


def test_a_part_of_a_join_is_refused_by_its_own_name() -> None:
    key = "vit.encoder.layer.2.attention.attention.key.weight"
    state = transformers(plain())
    with pytest.raises(
        ValueError, match=rf"'{key}' is \[95, 96\] in the checkpoint, but '.*query\.weight' is \[96, 96\]"
    ):
        family_named("hpvit").native({**state, key: torch.ones(95, 96)})
    del state[key]
    with pytest.raises(ValueError, match=rf"tensor '{key}' is missing"):
        family_named("hpvit").native(state)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("blocks.0.ls1.gamma", "no layer scale"),
        ("reg_token", "no place for register tokens"),
        ("blocks.0.mlp.w12.weight", "no SwiGLU"),
        ("blocks.0.mlp.fc1_g.weight", "no SwiGLU"),
        ("vit.encoder.layer.0.layer_scale1.lambda1", "no layer scale"),
        ("vit.embeddings.register_tokens", "no place for register tokens"),
        ("backbone.layers.0.attn.gamma1.weight", "no layer scale"),
        ("backbone.layers.0.ffn.gamma2.weight", "no layer scale"),
        ("backbone.layers.0.ffn.w12.weight", "no SwiGLU"),
        ("blocks.0.attn.q_norm.weight", "is not part of the layout"),
    ],
)
def test_vits_that_compute_something_else_are_refused_with_the_reason(name: str, reason: str) -> None:
    state = plain()
    state = (
        transformers(state) if name.startswith("vit.") else mmpretrain(state) if name.startswith("backbone.") else state
    )
    with pytest.raises(ValueError, match=rf"tensor '{re.escape(name)}' \[96\].*{reason}"):
        family_named("hpvit").native({**state, name: torch.ones(96)})


def test_a_classifier_of_the_class_token_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("linear probe", "mmpretrain linear probe", "class token classifier"):
        caplog.clear()
        native = family_named("hpvit").native(ENCODERS[kind][1](plain()))
        assert not [n for n in native.state if n.startswith("head")]
        [record] = caplog.records
        assert record.levelname == "WARNING"
        assert "is left out" in record.getMessage()
    caplog.clear()
    family_named("hpvit").native(plain())
    assert not caplog.records


@pytest.mark.parametrize(
    ("kind", "tag", "said"),
    [
        ("MAE with decoder", "", "masked autoencoding (MAE)"),
        ("linear probe", "", "masked autoencoding (MAE)"),
        ("MAE encoder", "mae", "masked autoencoding (MAE)"),
        ("MAE encoder", "dino", "not MAE (tag dino), which the paper builds on"),
        ("class token classifier", "augreg_in21k", "not MAE (tag augreg_in21k), which the paper builds on"),
        (
            "class token classifier",
            "",
            "not MAE (the source has a classifier of the class token), which the paper builds on",
        ),
        ("MAE encoder", "", "not stated in the source; the paper builds on MAE"),
    ],
)
def test_the_card_says_how_the_plain_vit_was_trained(kind: str, tag: str, said: str, tmp_path: Path) -> None:
    """A repository of timm's, with its own licence."""
    (tmp_path / "repo").mkdir()
    state = {n: t.clone() for n, t in ENCODERS[kind][1](plain()).items()}
    save_file(state, tmp_path / "repo" / "model.safetensors")
    own = {"tag": tag, "license": "apache-2.0", "mean": [0.5] * 3, "input_size": [3, 64, 64]}
    (tmp_path / "repo" / "config.json").write_text(json.dumps({"architecture": "vit_toy", "pretrained_cfg": own}))
    command(tmp_path / "repo", "--model", "hpvit_atto", "-o", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| pre-training of the plain ViT | `{said}` |" in card
    assert "license: apache-2.0\n" in card
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["hiermim_zoo"]["pre-training of the plain ViT"] == said
    assert (config["pretrained_cfg"]["license"], config["pretrained_cfg"]["mean"]) == ("apache-2.0", [0.5] * 3)


@pytest.mark.parametrize(("kind", "warned"), [("transformers encoder", True), ("mmpretrain encoder", False)])
def test_the_card_warns_of_two_licences(kind: str, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Others say another licence of MAE's weights than their authors; the card of such files says so."""
    save_file({n: t.clone() for n, t in ENCODERS[kind][1](plain()).items()}, tmp_path / "model.safetensors")
    out = tmp_path / "out"
    command(tmp_path / "model.safetensors", "--model", "hpvit_atto", "--license", "apache-2.0", "-o", out)
    said = "cards of facebook/vit-mae-* say apache-2.0, but MAE's authors say cc-by-nc-4.0"
    assert (f"About the licence: the {said}" in (out / "README.md").read_text()) == warned
    assert (f"about the licence: the {said}" in capsys.readouterr().out) == warned
    assert ("license note" in json.loads((out / "config.json").read_text())["hiermim_zoo"]) == warned


# ---- the class token


def test_the_class_token_can_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = converted(plain(), tmp_path, "--class-token", "--window-size", 8, "--verify")
    said = capsys.readouterr().out
    assert "features are those of the plain ViT with its class token" in said
    assert "its row of the position table added" in said
    state = plain()
    assert torch.equal(written["cls_embed"], state["cls_token"] + state["pos_embed"][:, :1])
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert (model.class_token, model.window_size) == (True, 8)
    command(tmp_path / "out", "--model", "hpvit_atto", "-o", tmp_path / "again", "--verify")
    assert same(written, load_file(tmp_path / "again" / "model.safetensors"))
    source = {"state_dict": plain(), "num_classes": 0}
    model = timm.create_model(
        "hpvit_atto", pretrained=True, pretrained_cfg_overlay=source, num_classes=0, class_token=True
    )
    assert same(dict(model.state_dict()), written)


@pytest.mark.slow
@torch.inference_mode()
def test_published_fine_tuned_weights_give_the_published_outputs() -> None:
    """Through the layout into timm's plain ViT, and into an HPViT without pooling that keeps the class token."""
    case = golden("vit_base_mae_ft")
    native = family_named("hpvit").native(case.state(), args={"class_token": True})
    shape: dict[str, Any] = {"depths": (12,), "patch_stride": 16, "window_size": 0, "class_token": True}
    with without_memory():
        flat: Any = timm.create_model("hpvit_base", num_classes=1000, **shape).eval()
        bare = timm.create_model("hpvit_base", num_classes=1000, **{**shape, "class_token": False}).eval()
    flat.load_state_dict(native.state, assign=True)
    plain_vit = _plain_vit(native, flat)
    tokens, images = plain_vit.forward_features(case.images()), case.images()
    torch.testing.assert_close(ends(tokens, 8), case.outputs["tokens"], **case.tolerance)
    torch.testing.assert_close(plain_vit.forward_head(tokens), case.outputs["pooled"], **case.tolerance)
    torch.testing.assert_close(flat(images), case.outputs["logits"], **case.tolerance)
    # Negative controls: the token dropped; one row of a weight in the wrong place.
    bare.load_state_dict(family_named("hpvit").native(case.state()).state, assign=True)
    assert differs(bare(images), case.outputs["logits"], case.tolerance)
    flat.blocks[5].attn.proj.weight.copy_(flat.blocks[5].attn.proj.weight.roll(1, 0))
    assert differs(flat(images), case.outputs["logits"], case.tolerance)


def test_how_near_the_features_still_are_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1 where nothing was changed; less behind pooling; nothing where there is no plain ViT to compare with."""

    def said(*more: object) -> float:
        converted(plain(), tmp_path, "--verify", *more)
        [line] = [x for x in capsys.readouterr().out.splitlines() if x.startswith("cosine similarity")]
        return float(re.search(r"images: (\S+) at 1/16", line)[1])  # type: ignore[index]

    assert -1 <= said("--images", IMAGES / "cat") < 0.99
    assert said() != said("--pool", "conv", "--window-size", 4)
    model: Any = timm.create_model("hpvit_atto", depths=(6,), patch_stride=16, class_token=True, num_classes=0)
    model.load_state_dict(hpvit.FAMILY.adapt(family_named("hpvit").native(plain(), args={"class_token": True}), model))
    assert "block 6, on 2 images: 1.000 at 1/16" in hpvit.similarity(plain(), model, torch.randn(2, 3, 64, 64))
    assert hpvit.similarity(dict(model.state_dict()), model, torch.randn(2, 3, 64, 64)) == ""


def test_images_on_which_nothing_is_compared_are_refused(tmp_path: Path) -> None:
    """An HPViT that is one already, and a family that has no such question."""
    converted(plain(), tmp_path)
    torch.save(timm.create_model("hivit_atto", num_classes=0).state_dict(), tmp_path / "hivit.pth")
    for source, arch in ((tmp_path / "out", "hpvit_atto"), (tmp_path / "hivit.pth", "hivit_atto")):
        command(source, "--model", arch, "-o", tmp_path / arch, "--verify")
        with pytest.raises(ValueError, match=r"--images .*cat: of this source --verify compares nothing on images"):
            command(source, "--model", arch, "-o", tmp_path / "refused", "--verify", "--images", IMAGES / "cat")
    assert not (tmp_path / "refused").exists()


# ---- what the command lets one choose


def test_pooling_and_depths_are_remembered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    converted(plain(), tmp_path, "--pool", "conv", "--depths", 2, 1, 2, 1, "--verify")
    said = capsys.readouterr().out
    assert "convolutional pooling equals averaging" in said
    assert "features are those of the plain ViT without class token" in said
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_args"] == {"pool": "conv", "depths": [2, 1, 2, 1]}
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert (model.pool, model.depths) == ("conv", (2, 1, 2, 1))
    assert same(dict(model.state_dict()), load_file(tmp_path / "out" / "model.safetensors"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "hpvit_atto", "--pool", "max"], "--pool max is not one of avg, conv"),
        (["--model", "hpvit_atto", "--depths", "1", "1", "2", "1"], r"'blocks\.5\.norm1\.weight' .* has no place"),
        (["--model", "hpvit_atto", "--depths", "1", "1", "4", "1"], r"'blocks\.6\.norm1\.weight' .* is missing"),
        (["--model", "hivit_atto", "--pool", "conv"], "--pool is nothing that a conversion to hivit_atto can choose"),
        (["--model", "green_swin_atto", "--depths", "1", "1", "4"], "--depths is nothing"),
        (["--model", "hivit_atto"], "which is no hivit checkpoint"),
        (["--model", "hpvit_atto", "--window-size", "-3"], "window_size=-3 must be at least 1"),
        (
            ["--model", "hivit_atto", "--class-token"],
            "--class-token is nothing that a conversion to hivit_atto can choose",
        ),
        (["--model", "hpvit_atto", "--images", "here"], "--images here belongs to --verify"),
        (["--model", "hivit_atto", "--window-size", "7"], "--window-size is nothing"),
        (["--install", "hpvit_base.mae_in1k", "--pool", "conv"], "leave out --pool"),
        (["--model", "hpvit_atto", "--mae"], "holds no decoder"),
        (["--model", "hpvit_base"], r"'blocks\.6\.norm1\.weight' .* is missing"),
    ],
)
def test_bad_choices_are_one_line(
    tmp_path: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(plain(), tmp_path / "plain.pth")
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: command(tmp_path / "plain.pth", "-o", tmp_path / "out", *args))
    line, *more = capsys.readouterr().err.strip().splitlines()
    assert len(more) == ("--install" in args), "which -o, given here to all, excludes"
    assert stop.value.code == 2
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


def test_a_decoder_has_no_place_in_a_model_that_is_not_pretrained(tmp_path: Path) -> None:
    torch.save(with_decoder(plain()), tmp_path / "mae.pth")
    with pytest.raises(ValueError, match="hpvit_atto cannot be pre-trained by masking"):
        command(tmp_path / "mae.pth", "--model", "hpvit_atto", "--mae", "-o", tmp_path / "out")


def test_trained_pooling_does_not_become_an_average(tmp_path: Path) -> None:
    converted(plain(), tmp_path, "--pool", "conv")
    with pytest.raises(ValueError, match=r"'pools\.0\.\w+' .* has no place"):
        command(tmp_path / "out", "--model", "hpvit_atto", "--pool", "avg", "-o", tmp_path / "avg")


def test_what_conversion_promises_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls: a pooling that is no mean, and other heads than those of the plain ViT."""
    native = family_named("hpvit").native(plain())
    model = timm.create_model("hpvit_atto", pool="conv", num_classes=0)
    model.load_state_dict(hpvit.FAMILY.adapt(native, model))
    assert "equals averaging" in hpvit.verify(native, model)
    model.pools[0].weight.data[0] = 0.5
    with pytest.raises(ValueError, match="pool='conv' computes something else than pool='avg'"):
        hpvit.verify(native, model)
    model.pools[0].weight.data[0] = 0.25
    twin = hpvit_verify._twin

    def other_heads(model: Any, **kwargs: Any) -> Any:
        return twin(model, **kwargs, **({"num_heads": 6} if "depths" in kwargs else {}))

    monkeypatch.setattr(hpvit_verify, "_twin", other_heads)
    with pytest.raises(ValueError, match="without pooling the blocks compute something else than the plain ViT"):
        hpvit.verify(native, model)


def test_half_precision_and_gray_images(tmp_path: Path) -> None:
    written = converted(plain(in_chans=1), tmp_path, "--dtype", "bfloat16", "--pool", "conv", "--verify")
    assert {t.dtype for t in written.values()} == {torch.bfloat16}
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).in_chans == 1


def test_safetensors_and_state_dict_keys_are_read_too(tmp_path: Path) -> None:
    expected = converted(plain(), tmp_path)
    assert same(converted(mmpretrain(plain()), tmp_path, top_key="state_dict"), expected)
    save_file(transformers(plain()), tmp_path / "hub.safetensors")
    command(tmp_path / "hub.safetensors", "--model", "hpvit_atto", "-o", tmp_path / "hub")
    assert same(load_file(tmp_path / "hub" / "model.safetensors"), expected)


@pytest.mark.slow
def test_a_published_file_of_the_base_size_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MAE's fine-tuned classifier, values made up: command (small images: faster), verification, timm, one image."""
    case = golden("vit_base_mae_ft")
    file = tmp_path / "mae_finetuned_vit_base.pth"
    case.publish(file)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "0000.jpg").symlink_to(IMAGES / "cat" / "0000.jpg")
    args = ("--model", "hpvit_base", "--pool", "conv", "--img-size", 112, "-o", tmp_path / "out")
    command(file, *args, "--verify", "--images", tmp_path / "one")
    assert "features are those of the plain ViT without class token" in capsys.readouterr().out
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    state = case.state()
    assert torch.equal(model.head.weight, state["head.weight"])
    assert torch.equal(model.blocks[11].mlp.fc2.weight, state["blocks.11.mlp.fc2.weight"])
    with torch.inference_mode():
        assert torch.isfinite(model(torch.randn(1, 3, 112, 112))).all()
