"""A family is one record: a fifth one, made in this file alone, works everywhere; what is none is refused by name."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import _registry
from torch import Tensor, nn

import hiermim_zoo
from hiermim_zoo import convert, evaluate, pretrain
from hiermim_zoo.checkpoints import layouts
from hiermim_zoo.checkpoints.layout import HEAD, MAE_DECODER, MAE_DECODER_BACK, Layout
from hiermim_zoo.checkpoints.rules import Copy, Rename
from hiermim_zoo.layers.arguments import checked_size
from hiermim_zoo.layers.backbone import Backbone
from hiermim_zoo.layers.maps import maps_of_units
from hiermim_zoo.masking import gather_units
from hiermim_zoo.models import family as family_module
from hiermim_zoo.models.build import build_model, default_cfgs_for, timm_model
from hiermim_zoo.models.family import Choice, Family, add_family, family_of
from hiermim_zoo.models.recipes import FineTuning, Pretraining, Recipe, Rows
from hiermim_zoo.protocol import MaskLayout, Stage, Visible

UNIT = 16

# ---- the model file


class Patches(nn.Module):
    def __init__(self, img_size: tuple[int, int], in_chans: int, dim: int) -> None:
        super().__init__()
        self.patch_size = (UNIT, UNIT)
        self.proj = nn.Conv2d(in_chans, dim, UNIT, UNIT)
        self.set_size(img_size)

    def set_size(self, img_size: tuple[int, int]) -> None:
        self.img_size, self.grid_size = img_size, (img_size[0] // UNIT, img_size[1] // UNIT)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)  # [B, N, C]


class Toy(Backbone):
    """Patches under MLPs: each is a mask unit of one token."""

    masked_levels = 1

    def __init__(
        self,
        img_size: int | tuple[int, int] = 64,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = "avg",
        embed_dim: int = 16,
        gated: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.set_arguments(checked_size(img_size), in_chans, num_classes, global_pool, embed_dim, fixed=False)
        self.patch_embed = Patches(checked_size(img_size), in_chans, embed_dim)
        self.gated = gated
        self.blocks = nn.ModuleList(nn.Linear(embed_dim, embed_dim) for _ in range(2))
        self.add_head(0.0)
        self.feature_info = [{"num_chs": embed_dim, "reduction": UNIT, "module": "blocks.1"}]

    def no_weight_decay(self) -> set[str]:
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^patch_embed", "blocks": r"^blocks\.(\d+)"}

    @property
    def mask_layout(self) -> MaskLayout:
        return MaskLayout(self.patch_embed.grid_size, (Stage((1, 1), self.embed_dim),), (UNIT, UNIT))

    def _run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x).relu() * (x.sigmoid() if self.gated else 1)
        return x

    def forward_visible(self, images: Tensor, keep: Tensor) -> Visible:
        return Visible(None, (self._run(gather_units(self.patch_embed(images), keep))[:, :, None, None],))

    def forward_features(self, x: Tensor) -> Tensor:
        return self._run(self.patch_embed(x))

    def level_maps(self, x: Tensor, take: Any, count: int, norm: bool, keep: Tensor | None) -> Any:
        tokens = self.forward_features(x)
        return tokens, maps_of_units([tokens[:, :, None, None]], x.shape[2:], (UNIT, UNIT))


# ---- the table of its layouts

ENCODER = (Copy(r"patch_embed\.proj\.(weight|bias)"), Copy(r"blocks\.\d\.(weight|bias)"))
LAYOUTS = (
    Layout(
        "toy_authors",
        "its authors, with decoder",
        has=(r"stem\.weight", r"mlps\.0\.weight"),
        lacks=(),
        rules=(
            Rename(r"stem\.(weight|bias)", r"patch_embed.proj.\1"),
            Rename(r"mlps\.(\d)\.(weight|bias)", r"blocks.\1.\2"),
        ),
        may_be_missing=(r"fc_norm\.(weight|bias)",),
        decoder=MAE_DECODER,
        back=MAE_DECODER_BACK,
    ),
    Layout(
        "toy_own",
        "this package's own files",
        has=(r"blocks\.0\.weight", r"patch_embed\.proj\.weight", r"fc_norm\.weight"),
        lacks=("pos_embed",),
        rules=(*ENCODER, *HEAD),
        own=True,
    ),
)

# ---- the record

VARIANTS: dict[str, dict[str, Any]] = {"toy_nano": {}, "toy_wide": {"embed_dim": 32}}
default_cfgs = default_cfgs_for(
    {name: {"input_size": (3, 64, 64), "first_conv": "patch_embed.proj", "classifier": "head"} for name in VARIANTS}
)


def img_size(native: Any, sizes: Any, model_args: Mapping[str, Any]) -> tuple[int, int]:
    return next(size for size in sizes if size is not None)


def record() -> Family:
    def construct(variant: str, **kwargs: Any) -> nn.Module:
        return timm_model(Toy, variant, toy.load_filter, levels=1, **{**VARIANTS[variant], **kwargs})

    toy = Family(
        name="toy",
        variants=VARIANTS,
        construct=construct,
        layouts=LAYOUTS,
        img_size=img_size,
        choices=(Choice("gated", "gate each block", type=bool),),
        mae=Rows(Recipe(fusion="last", depth=1, dim=32, heads=2)),
        pretraining=Rows(Pretraining(blr=1e-3, epochs=2, batch=128, warmup=1)),
        fine_tuning=Rows(FineTuning(epochs=2, blr=1e-3, layer_decay=0.9, drop_path=0.0, batch=128, warmup=1)),
    )
    return toy


def toy_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return build_model("toy_nano", pretrained, **kwargs)


def toy_wide(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return build_model("toy_wide", pretrained, **kwargs)


@pytest.fixture(scope="module")
def toy() -> Iterator[Family]:
    """The family, known while the tests of this file run."""
    tables = [value for value in vars(_registry).values() if isinstance(value, (dict, set))]
    tables += [family_module._FAMILIES, family_module._FAMILY_OF, layouts._LAYOUTS]
    before = [copy.copy(table) for table in tables]
    family = add_family(record())
    for entrypoint in (toy_nano, toy_wide):
        family.register(entrypoint)
    yield family
    for table, saved in zip(tables, before, strict=True):
        table.clear()
        table.update(saved)


@pytest.fixture
def published(tmp_path: Path, toy: Family) -> Path:
    """A file as its authors would publish it."""
    mae = hiermim_zoo.create_mae("toy_nano")
    names = {"patch_embed.proj": "stem", "blocks": "mlps"}
    state = {}
    for name, tensor in mae.encoder.state_dict().items():
        for ours, theirs in names.items():
            if name.startswith(ours):
                state[name.replace(ours, theirs)] = tensor
    decoder = {name: t for name, t in mae.state_dict().items() if name.startswith("decoder.")}
    for name, tensor in decoder.items():
        part, _, rest = name.removeprefix("decoder.").partition(".")
        state["mask_token" if part == "mask_token" else f"decoder_{part}{'.' if rest else ''}{rest}"] = tensor
    torch.save({"model": state}, tmp_path / "toy.pth")
    return tmp_path / "toy.pth"


# ---- what it can do, nowhere named but here


def test_it_is_listed_and_found(toy: Family) -> None:
    assert hiermim_zoo.list_models(family="toy") == ["toy_nano", "toy_wide"]
    assert family_of("toy_wide") is toy
    assert timm.create_model("toy_wide", num_classes=3)(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    maps = timm.create_model("toy_nano", features_only=True)(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 4, 6)]


def test_its_checkpoints_convert(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert.main([str(published), "--model", "toy_nano", "-o", str(tmp_path / "out"), "--gated", "--verify"])
    assert "layout  toy_authors" in capsys.readouterr().out
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert torch.equal(model.patch_embed.proj.weight, torch.load(published)["model"]["stem.weight"])
    assert model.gated, "the choice of its family"
    with pytest.raises(ValueError, match="--pool is nothing that a conversion to toy_nano can choose"):
        convert.main([str(published), "--model", "toy_nano", "-o", str(tmp_path / "other"), "--pool", "conv"])


def test_its_decoder_is_kept(published: Path, tmp_path: Path) -> None:
    convert.main([str(published), "--model", "toy_nano", "--mae", "-o", str(tmp_path / "mae")])
    mae = hiermim_zoo.create_mae("toy_nano", checkpoint=tmp_path / "mae")
    assert torch.equal(mae.decoder.pred.weight, torch.load(published)["model"]["decoder_pred.weight"])


def test_it_is_pretrained_and_evaluated(tmp_path: Path, toy: Family, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["digits", "--model", "toy_nano", "-o", str(tmp_path / "run"), "--workers", "0", "--steps", "3"]
    pretrain.main([*arguments, "--look-every", "0", "--recipe", "paper"])
    note = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert note["step"] == 3
    assert "blocks.1.weight" in load_file(tmp_path / "run" / "encoder" / "model.safetensors")
    capsys.readouterr()
    for method in ("knn", "finetune"):
        evaluate.main(
            ["digits", "--model", f"local-dir:{tmp_path / 'run' / 'encoder'}", "--method", method, "--workers", "0"]
            + (["--recipe", "paper"] if method == "finetune" else [])
        )
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert 10 < result["top1"] <= 100
    assert result["settings"]["batch"] == 128, "its own recipe"


# ---- what a record refuses


def test_a_misspelt_hook_is_an_error_at_once(toy: Family) -> None:
    with pytest.raises(TypeError, match="similarty"):
        replace(toy, similarty=None)  # type: ignore[call-arg]


def test_a_recipe_of_an_unknown_architecture_is_refused(toy: Family) -> None:
    rows = Rows(None, {"toy_nona": Pretraining(blr=1.0)})
    with pytest.raises(ValueError, match="recipe of 'toy_nona'"):
        Family(name="x", variants=VARIANTS, construct=toy.construct, layouts=(), img_size=img_size, pretraining=rows)


def test_an_entry_point_that_is_no_variant_is_refused(toy: Family) -> None:
    def toy_huge(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return nn.Identity()

    with pytest.raises(ValueError, match="'toy_huge' is none of the variants of 'toy': toy_nano, toy_wide"):
        toy.register(toy_huge)


# ---- whose models are whose


@pytest.mark.parametrize(
    ("name", "ours"),
    [("hiera_tiny_224", "hiera_tiny"), ("hiera_base_abswin_256", "hiera_base"), ("twins_svt_large", "")],
)
def test_timms_models_are_refused_by_name(name: str, ours: str, tmp_path: Path) -> None:
    """timm has a module of the same last name; what counts is the registered entry point."""
    said = f"{name} is a model of {timm.model_entrypoint(name).__module__}, not of this package"
    said += f"; ours is '{ours}'" if ours else ""
    out = str(tmp_path / "out")
    for refused in (
        lambda: hiermim_zoo.create_mae(name),
        lambda: pretrain.main(["digits", "--model", name, "-o", out]),
        lambda: evaluate.main(["digits", "--model", name, "--method", "finetune"]),
        lambda: convert.main([str(tmp_path), "--model", name, "-o", out]),
    ):
        with pytest.raises(ValueError, match=said.replace(".", r"\.")):
            refused()
    assert not (tmp_path / "out").exists()


def test_a_module_of_our_familys_name_is_not_our_family(toy: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def somebodys_hivit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return nn.Identity()

    somebodys_hivit.__module__ = "their_zoo.hivit"
    monkeypatch.setitem(sys.modules, "their_zoo.hivit", type(sys)("their_zoo.hivit"))
    timm.models.register_model(somebodys_hivit)
    with pytest.raises(ValueError, match=r"somebodys_hivit is a model of their_zoo\.hivit"):
        family_of("somebodys_hivit")


def test_plain_vits_of_timm_are_a_family_and_their_deprecated_names_are_not() -> None:
    assert family_of("vit_base_patch16_224.mae").name == "vision_transformer"
    assert not family_of("vit_base_patch16_224").own
    assert "vision_transformer" not in {name.partition("_")[0] for name in hiermim_zoo.list_models()}
