"""What the layouts of plain ViTs share: which of them are read, what is refused, what may be missing."""

from __future__ import annotations

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..rules import Refuse, Rule

_ONLY = "only ViTs as MAE has them are read: "
NO_SUCH_VIT: tuple[Rule, ...] = (
    Refuse(r".*(\bls[12]\.gamma|layer_scale|\bgamma_?[12]\b).*", _ONLY + "blocks of this package have no layer scale"),
    Refuse(r".*(reg_token|register_token).*", _ONLY + "pooling has no place for register tokens"),
    Refuse(
        r".*(mlp\.(fc1_[gx]|w\d+|w12|weights_in|gate_proj|norm)|ffn\.w\d+)\b.*",
        _ONLY + "blocks of this package have a plain MLP, no SwiGLU",
    ),
    Refuse(
        r".*(dist_token|head_dist|distillation_(token|classifier)).*",
        _ONLY + "a distilled DeiT has a second token and a second classifier, which its blocks were trained with",
    ),
    Refuse(
        r"(norm_pre|pre_norm|ln_pre|pre_ln)\..*",
        _ONLY + "blocks of this package have no norm before the first one, as CLIP's do",
    ),
    Refuse(r"attn_pool\..*", _ONLY + "this one pools by attention, which no classifier here does"),
)
UNTRAINED = (r"fc_norm\.(weight|bias)", r"pools\.\d+\.(weight|bias)", r"norm\.(weight|bias)")
MAE_PREPROCESSING = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "interpolation": "bicubic"}

CLASS_TOKEN_HEAD = "classifier of the class token, of no use to mean pooling"
HEAD_DROPPED = "the classifier reads the class token, which mean pooling does not: it is left out, the encoder is kept"
PROBE = "linear probe, which reads the class token behind a batch norm"
PROBE_DROPPED = "the linear probe reads the class token behind a batch norm: it is left out, the encoder is kept"
