"""The names that other projects give to the tensors of a plain ViT, from those of MAE's code."""

from __future__ import annotations

import re

import torch
from torch import Tensor

State = dict[str, Tensor]


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    """Every pattern replaced by its names, in order."""
    out = {}
    for name, tensor in state.items():
        for pattern, to in pairs:
            name = re.sub(pattern, to, name)
        out[name] = tensor
    return out


def with_decoder(state: State) -> State:
    """MAE's own names; one block of a decoder is as good as eight."""
    decoder = {f"decoder_blocks.0.{n[9:]}": t for n, t in state.items() if n.startswith("blocks.0.")}
    ends = {
        f"decoder_{part}.{kind}": torch.ones(3) for part in ("embed", "norm", "pred") for kind in ("weight", "bias")
    }
    return {**state, **decoder, **ends, "mask_token": torch.ones(1, 1, 8), "decoder_pos_embed": torch.ones(1, 17, 8)}


def split(state: State, parts: tuple[str, str, str]) -> State:
    """Query, key and value apart."""
    out = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            out.update({name.replace("attn.qkv", p): t for p, t in zip(parts, tensor.chunk(3), strict=True)})
        else:
            out[name] = tensor
    return out


def transformers(state: State, decoder: str = "decoder.decoder_layers") -> State:
    """The names in files of transformers."""
    return renamed(
        split(state, ("attention.attention.query", "attention.attention.key", "attention.attention.value")),
        (r"^(cls_token)", r"vit.embeddings.\1"),
        (r"^pos_embed", "vit.embeddings.position_embeddings"),
        (r"^patch_embed\.proj", "vit.embeddings.patch_embeddings.projection"),
        (r"^norm\.", "vit.layernorm."),
        (r"^blocks\.", "vit.encoder.layer."),
        (r"^(mask_token|decoder_pos_embed|decoder_(embed|norm|pred)\.)", r"decoder.\1"),
        (r"^decoder_blocks", decoder),
        (r"attn\.proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
        (r"norm1", "layernorm_before"),
        (r"norm2", "layernorm_after"),
    )


def transformers_in_memory(state: State) -> State:
    """The names that models of transformers 5 have."""
    return renamed(
        transformers(state),
        (r"encoder\.layer\.", "layers."),
        (r"attention\.attention\.(query|key|value)", lambda m: f"attention.{m[1][0]}_proj"),  # type: ignore[arg-type]
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"output\.dense", "mlp.fc2"),
    )


def mmpretrain(state: State) -> State:
    return renamed(
        state,
        (r"^(mask_token|decoder_pos_embed|decoder_(embed|pred)\.)", r"neck.\1"),
        (r"^decoder_norm", "neck.ln1"),
        (r"^decoder_blocks", "neck.decoder_blocks"),
        (r"^(cls_token|pos_embed|patch_embed)", r"backbone.\1"),
        (r"patch_embed\.proj", "patch_embed.projection"),
        (r"^blocks", "backbone.layers"),
        (r"norm([12])\.", r"ln\1."),
        (r"mlp\.fc1", "ffn.layers.0.0"),
        (r"mlp\.fc2", "ffn.layers.1"),
        (r"^norm", "backbone.ln1"),
        (r"^fc_norm", "backbone.ln2"),
        (r"^head", "head.fc"),
    )


def without(state: State, prefix: str) -> State:
    """A prefix taken off, and what does not have it left out."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
