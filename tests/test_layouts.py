"""Every kind of file of a plain ViT and of a HiViT that people have: recognised, carried over bit by bit, written back.

One set of weights of each family is put under the names of every kind. What has to come out is that set again, whatever
the kind: the names that a kind leaves out or has beside are listed with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hiermim_zoo.checkpoints.layouts import Native, all_layouts, carry_over, find_layout
from hiermim_zoo.checkpoints.unconvert import to_published
from hiermim_zoo.mae import create_mae
from hiermim_zoo.models.family import family_named
from hiermim_zoo.models.hivit_model import HiViT

from .golden.fill import fill
from .names import State, mmpretrain, renamed, transformers, without

WIDTH, DEPTH, CLASSES, LATENT = 24, 2, 5, 16
VIT: dict[str, Any] = {"img_size": 64, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2, "num_classes": 0}
HIVIT: dict[str, Any] = {"depths": (1, 1, 2), "recipe": {"depth": 1, "dim": LATENT, "heads": 2}}
NORM, HEAD = r"norm\..*", r"(fc_norm|head)\..*"
DECODER = r"(fusion|decoder)\..*"


def filled(shapes: Mapping[str, Any]) -> State:
    return {name: torch.from_numpy(fill(name, tuple(shape))) for name, shape in shapes.items()}


def block(width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a block of a plain ViT."""
    parts = {
        "norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width),
        "norm2": (width,), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width),
    }  # fmt: skip
    return {f"{n}.{kind}": s if kind == "weight" else s[:1] for n, s in parts.items() for kind in ("weight", "bias")}


def decoder(latent: int, rows: int, values: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a decoder of one block, in this package's names."""
    linear = {"embed": (LATENT, latent), "norm": (LATENT,), "pred": (values, LATENT)}
    ends = {f"{n}.{kind}": s if kind == "weight" else s[:1] for n, s in linear.items() for kind in ("weight", "bias")}
    blocks = {f"blocks.0.{name}": shape for name, shape in block(LATENT).items()}
    shapes = {"mask_token": (1, 1, LATENT), "pos_embed": (1, rows, LATENT), **ends, **blocks}
    return {f"decoder.{name}": shape for name, shape in shapes.items()}


@cache
def weights(family: str) -> State:
    """All that a file of the family may hold, in its own names."""
    if family == "hivit":
        mae = create_mae("hivit_atto", **HIVIT)
        tables = {f"blocks.{i}.attn.relative_position_bias_table": (49, 3) for i in (6, 7)}
        own = {name.removeprefix("encoder."): tensor.shape for name, tensor in mae.state_dict().items()}
        return filled({**own, **tables, "head.weight": (CLASSES, 96), "head.bias": (CLASSES,)})
    blocks = {f"blocks.{i}.{name}": shape for i in range(DEPTH) for name, shape in block(WIDTH).items()}
    ends = {f"{name}.{kind}": (WIDTH,) for name in ("norm", "fc_norm") for kind in ("weight", "bias")}
    stem = {"patch_embed.proj.weight": (WIDTH, 3, 16, 16), "patch_embed.proj.bias": (WIDTH,)}
    tokens = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 17, WIDTH)}
    head = {"head.weight": (CLASSES, WIDTH), "head.bias": (CLASSES,)}
    return filled({**tokens, **stem, **blocks, **ends, **head, **decoder(WIDTH, 17, 768)})


@cache
def fresh(family: str) -> nn.Module:
    if family == "hivit":
        return timm.create_model("hivit_atto", depths=HIVIT["depths"], num_classes=0)
    return VisionTransformer(**VIT)


# ---- the names that others give


def mae(state: State) -> State:
    """MAE's code, and HiViT's: the decoder beside the encoder."""
    return renamed(
        state,
        (r"^fusion\.norm\.", "norm."),
        (r"^decoder\.mask_token", "mask_token"),
        (r"^decoder\.", "decoder_"),
    )


def prithvi(state: State) -> State:
    named = renamed(
        state,
        (r"^decoder\.(?!mask_token)", "decoder.decoder_"),
        (r"^(?!decoder\.)", "encoder."),
    )
    stem = "encoder.patch_embed.proj.weight"
    return named | {stem: named[stem][:, :, None]}


def own(state: State) -> State:
    return renamed(state, (r"^(?!(decoder|fusion)\.)", "encoder."))


def backbone(state: State) -> State:
    return renamed(state, (r"^", "backbone."))


def classifier(state: State) -> State:
    return renamed(transformers(state), (r"^head\.", "classifier."))


def mmpretrain_hivit(state: State) -> State:
    return renamed(state, (r"^absolute_pos_embed", "pos_embed"), (r"^", "backbone."))


class Kind(NamedTuple):
    layout: str
    write: Callable[[State], State]  # to the names of the kind
    lacks: str = ""  # pattern of the family's names that such a file does not have
    beside: Mapping[str, tuple[int, ...]] = MappingProxyType({})  # what is dropped
    words: str = ""  # of the reason
    back: bool = True  # there is a way back


def pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


PROBE = {
    "head.0.running_mean": (WIDTH,), "head.0.running_var": (WIDTH,), "head.0.num_batches_tracked": (1,),
    **pair("head.1", CLASSES, WIDTH),
}  # fmt: skip
NECK = {"neck.mask_token": (1, 1, 9), "neck.decoder_pos_embed": (1, 17, 9), **pair("neck.decoder_embed", 9, 96),
        **pair("neck.decoder_blocks.0.ln1", 9), **pair("neck.decoder_blocks.0.attn.qkv", 27, 9),
        **pair("neck.decoder_blocks.0.ffn.layers.0.0", 36, 9), **pair("neck.ln1", 9), **pair("neck.decoder_pred", 8, 9),
}  # fmt: skip
DETECTOR = {
    **pair("backbone.fpn1", 24), **pair("backbone.fpn4.1", 96), **pair("neck.lateral_convs.0.conv", 8, 24, 1, 1),
    **pair("rpn_head.rpn_conv", 8, 8, 3, 3), **pair("roi_head.bbox_head.fc_cls", 5, 8), **pair("bbox_head.fc", 5, 8),
}  # fmt: skip
TRACKER = {
    **pair("backbone.norm_", 96), "backbone.pos_embed_z": (1, 4, 96), "backbone.pos_embed_x": (1, 16, 96),
    **pair("box_head.conv1_ctr.0", 8, 96, 3, 3), **pair("decode_head.conv_seg", 5, 96, 1, 1),
}  # fmt: skip
INDEX = "attn.relative_position_index"
HEADS = r"head\..*"
MIM_HEAD = {"vit.embeddings.mask_token": (1, 1, WIDTH), **pair("decoder.0", 768, WIDTH, 1, 1)}
NO_HEAD_NO_DECODER = rf"{HEAD}|{DECODER}"
FC_NORM = r"fc_norm\..*"
CLASS_TOKEN = rf"{FC_NORM}|{DECODER}"
VIT_KINDS = {
    "MAE": Kind("vit_mae", mae, HEAD),
    "MAE without norm": Kind("vit_mae", mae, rf"{HEAD}|{NORM}"),
    "MAE with a head": Kind("vit_mae_class_token", mae, FC_NORM),
    "MAE fine-tuned": Kind("vit_mae_finetuned", mae, NORM),
    "MAE, two norms and a head": Kind("vit_mae_finetuned", mae),
    "encoder": Kind("vit_timm", dict, NO_HEAD_NO_DECODER),
    "encoder without norm": Kind("vit_timm", dict, rf"{NO_HEAD_NO_DECODER}|{NORM}"),
    "pre_logits and head": Kind(
        "vit_pre_logits",
        dict,
        NO_HEAD_NO_DECODER,
        {**pair("pre_logits.fc", WIDTH, WIDTH), **pair("head", CLASSES, WIDTH)},
        "with a layer more",
        False,
    ),
    "fine-tuned": Kind("vit_finetuned", dict, rf"{NORM}|{DECODER}"),
    "fine-tuned, no head": Kind("vit_finetuned", dict, rf"{NORM}|{DECODER}|{HEADS}"),
    "two norms and a head": Kind("vit_two_norms", dict, DECODER),
    "two norms": Kind("vit_two_norms", dict, rf"{DECODER}|{HEADS}"),
    "class token": Kind("vit_class_token", dict, CLASS_TOKEN),
    "linear probe": Kind("vit_probe", dict, NO_HEAD_NO_DECODER, PROBE, "behind a batch norm", False),
    "Prithvi": Kind("vit_prithvi", prithvi, HEAD),
    "Prithvi of dates and places": Kind(
        "vit_prithvi",
        prithvi,
        HEAD,
        {"encoder.temporal_embed_enc.scale": (1,), "decoder.location_embed_dec.scale": (1,)},
        "of date and place",
    ),
    "transformers' ViTMAE": Kind("vit_mae_transformers", lambda s: transformers(mae(s)), HEAD),
    "transformers' ViTMAE, encoder": Kind("vit_mae_transformers", lambda s: transformers(mae(s)), NO_HEAD_NO_DECODER),
    "transformers' classifier": Kind("vit_class_token_transformers", classifier, CLASS_TOKEN),
    "transformers' classifier with a pooler": Kind(
        "vit_class_token_transformers",
        classifier,
        CLASS_TOKEN,
        pair("vit.pooler.dense", WIDTH, WIDTH),
        "behind the class token",
    ),
    "transformers' ViTModel": Kind(
        "vit_transformers",
        lambda s: without(transformers(s), "vit."),
        NO_HEAD_NO_DECODER,
        pair("pooler.dense", WIDTH, WIDTH),
        "behind the class token",
        False,
    ),
    "transformers' masked image modelling": Kind(
        "vit_transformers", transformers, NO_HEAD_NO_DECODER, MIM_HEAD, "hidden patches|masked image modelling", False
    ),
    "mmpretrain": Kind("vit_mae_mmpretrain", lambda s: mmpretrain(mae(s)), HEAD),
    "mmpretrain, encoder without norm": Kind("vit_mae_mmpretrain", mmpretrain, rf"{NO_HEAD_NO_DECODER}|{NORM}"),
    "mmpretrain, class token": Kind(
        "vit_class_token_mmpretrain",
        lambda s: renamed(mmpretrain(s), (r"^head\.fc", "head.layers.head")),
        CLASS_TOKEN,
    ),
    "mmpretrain, fine-tuned": Kind("vit_finetuned_mmpretrain", mmpretrain, rf"{NORM}|{DECODER}"),
    "our autoencoder": Kind("vit_timm_autoencoder", own, HEAD, back=False),
}
TABLES = r".*bias_table"
HIVIT_KINDS = {
    "supervised": Kind(
        "hivit_supervised", dict, DECODER, {f"blocks.{i}.{INDEX}": (16, 16) for i in (6, 7)}, "integer index"
    ),
    "fine-tuned": Kind("hivit_finetuned", dict, DECODER, {"relative_position_index": (16, 16)}, "integer index"),
    "MAE": Kind("hivit_mae", mae, rf"{HEAD}|{TABLES}"),
    "encoder": Kind("hivit_encoder", dict, rf"{NO_HEAD_NO_DECODER}|{TABLES}"),
    "encoder with tables": Kind("hivit_encoder", dict, NO_HEAD_NO_DECODER),
    "detector": Kind(
        "hivit_backbone", backbone, rf"{NO_HEAD_NO_DECODER}|{TABLES}", DETECTOR, "norms of a detector|of the task"
    ),
    "segmenter": Kind(
        "hivit_backbone",
        backbone,
        NO_HEAD_NO_DECODER,
        {"backbone.relative_position_index": (16, 16), **pair("decode_head.conv_seg", 5, 8, 1, 1)},
        "integer index|of the task",
    ),
    "tracker": Kind(
        "hivit_backbone",
        backbone,
        rf"{NO_HEAD_NO_DECODER}|{TABLES}",
        TRACKER,
        "of another task|of a tracker's crops|of the task",
    ),
    "mmpretrain": Kind(
        "hivit_mae_mmpretrain",
        mmpretrain_hivit,
        rf"{NO_HEAD_NO_DECODER}|{TABLES}",
        NECK,
        "takes the first visible token for a class token",
    ),
    "our autoencoder": Kind("hivit_timm_autoencoder", own, rf"{TABLES}|{HEADS}", back=False),
}
KINDS = {
    **{f"ViT: {name}": ("vit", kind) for name, kind in VIT_KINDS.items()},
    **{f"HiViT: {name}": ("hivit", kind) for name, kind in HIVIT_KINDS.items()},
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def case(request: pytest.FixtureRequest) -> tuple[str, Kind]:
    return request.param


def meant(family: str, kind: Kind) -> State:
    """The part of a family's weights that a kind holds."""
    return {name: t for name, t in weights(family).items() if not (kind.lacks and re.fullmatch(kind.lacks, name))}


def file_of(family: str, kind: Kind) -> State:
    return kind.write(meant(family, kind)) | filled(kind.beside)


def read(state: State, layout: str) -> Native:
    table = find_layout(layout)
    return carry_over(state, table, lambda native: (), decoder=bool(table.decoder))


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_kind_is_of_one_layout(case: tuple[str, Kind]) -> None:
    family, kind = case
    known = [layout for layout in all_layouts() if not layout.by_name]
    assert [layout.name for layout in known if layout.fits(file_of(family, kind))] == [kind.layout]
    reader = family_named({"vit": "hpvit", "hivit": "hivit"}[family])
    assert reader.layout_of(file_of(family, kind)).name == kind.layout


def test_every_tensor_is_carried_over_or_left_out_for_its_reason(case: tuple[str, Kind]) -> None:
    family, kind = case
    native = read(file_of(family, kind), kind.layout)
    stem = "patch_embed.proj.weight"  # Prithvi's has an axis of frames until the family looks at it
    found = {**native.state, **native.decoder, stem: native.state[stem].view(weights(family)[stem].shape)}
    assert same(found, meant(family, kind))
    assert all(name.startswith(("fusion.", "decoder.")) for name in native.decoder)
    dropped = {step.source: step.why for step in native.steps if step.action == "dropped"}
    assert dropped.keys() == kind.beside.keys()
    assert all(re.search(kind.words, why) for why in dropped.values()), dropped


def test_a_name_that_is_wrong_is_refused(case: tuple[str, Kind]) -> None:
    """Negative control: of the last block's MLP, and one more name under the same prefix."""
    family, kind = case
    state = file_of(family, kind)
    encoder = [name for name in state if not name.startswith(("decoder", "neck", "decode_head"))]
    last = [name for name in encoder if re.search(r"(fc1|intermediate\.dense|layers\.0\.0)\.weight$", name)][-1]
    for wrong, old in ((f"{last}_x", last), (re.sub(r"\d+\..*", "surprise.weight", last), "")):
        spoiled = {name: tensor for name, tensor in state.items() if name != old} | {wrong: state[last]}
        with pytest.raises(ValueError, match=rf"tensor '{re.escape(wrong)}' .* is not part of the layout"):
            read(spoiled, kind.layout)


def test_what_is_read_is_written_back(case: tuple[str, Kind]) -> None:
    family, kind = case
    state, layout = file_of(family, kind), find_layout(kind.layout)
    native = read(state, kind.layout)
    if not kind.back:
        with pytest.raises(ValueError, match=f"--to {kind.layout}: only .* can be written"):
            to_published(native.state, native.decoder, layout, fresh(family))
        return
    if "Prithvi" in layout.about:
        native.state["patch_embed.proj.weight"] = native.state["patch_embed.proj.weight"][:, :, 0]
    back = to_published(native.state, native.decoder, layout, fresh(family))
    indices = {name for name in state if name.endswith("position_index") and layout.added}
    assert back.keys() - indices == state.keys() - kind.beside.keys()
    assert back.keys() >= indices
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items() if name not in indices)
    again = read(back, kind.layout)
    native = read(state, kind.layout)
    assert same(again.state, native.state)
    assert same(again.decoder, native.decoder)


def test_what_an_hpvit_has_changed_has_no_way_back() -> None:
    model = timm.create_model("hpvit_atto", num_classes=0)
    for layout in ("vit_timm", "vit_mae_transformers", "vit_mae_mmpretrain", "vit_finetuned"):
        with pytest.raises(ValueError, match=f"--to {layout} needs what the source does not hold: .*cls_token"):
            to_published(model.state_dict(), {}, find_layout(layout), model)


def test_an_encoder_is_no_autoencoder_and_a_classifier_no_backbone() -> None:
    vit = {name: t for name, t in weights("vit").items() if not re.fullmatch(NO_HEAD_NO_DECODER, name)}
    with pytest.raises(ValueError, match="--to vit_mae needs a decoder"):
        to_published(vit, {}, find_layout("vit_mae"), fresh("vit"))
    hivit = {name: t for name, t in weights("hivit").items() if not re.fullmatch(DECODER, name)}
    with pytest.raises(ValueError, match=r"'head\.weight' .* is not part of the layout 'hivit_backbone'"):
        to_published(hivit, {}, find_layout("hivit_backbone"), fresh("hivit"))
    headless = {name: t for name, t in hivit.items() if not re.fullmatch(HEADS, name)}
    with pytest.raises(ValueError, match=r"'fc_norm\.weight' is trained, but the layout 'hivit_backbone' has no place"):
        to_published(headless, {}, find_layout("hivit_backbone"), fresh("hivit"))


def test_indices_are_those_of_the_grid() -> None:
    model: Any = fresh("hivit")
    assert isinstance(model, HiViT)
    table = find_layout("hivit_finetuned")
    assert table.added
    [index] = table.added(model).values()
    assert index.shape == (16, 16)
    # (row_i - row_j + 3) * 7 + (column_i - column_j + 3) of units 1 = (0, 1) and 14 = (3, 2)
    assert index[1, 14].item() == (0 - 3 + 3) * 7 + (1 - 2 + 3)
    assert index[14, 1].item() == (3 - 0 + 3) * 7 + (2 - 1 + 3)
