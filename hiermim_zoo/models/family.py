"""What a family is: one record that says everything about it, and how an architecture finds its own.

    FAMILY = add_family(Family(name="hivit", variants=VARIANTS, layouts=LAYOUTS, ...))

    @FAMILY.register
    def hivit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module: ...

Nothing outside models/ and checkpoints/tables/ knows a family by its name: whoever needs to know something of an
architecture asks ``family_of(arch)``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from timm.models import is_model, list_models, model_entrypoint, register_model
from torch import Tensor, nn

from ..checkpoints.layout import Layout, own_autoencoder
from ..checkpoints.layouts import Native, add_layouts, carry_over, find_layout, recognise
from ..checkpoints.rules import Rule, check_fits
from ..checkpoints.sets import weights_in
from ..checkpoints.soundness import check_kinds, check_sound
from ..checkpoints.wrappers import unwrapped
from ..protocol import MaskableEncoder
from .grids import Sizes
from .recipes import FineTuning, Pretraining, Recipe, Rows

Entrypoint = Callable[..., nn.Module]
Made = TypeVar("Made", bound=Entrypoint)

# ---- what a hook is where a family has none of its own


def as_carried_over(state: dict[str, Tensor], native: Native, model: Any) -> dict[str, Tensor]:
    return state


def nothing_told(native: Native, arch: str) -> dict[str, Any]:
    return {}


def nothing_of(model: Any) -> Mapping[str, Any]:
    return {}


def no_more_rules(state: Mapping[str, Tensor], args: Mapping[str, Any]) -> Sequence[Rule]:
    return ()


def nothing_noted(native: Native, config: Mapping[str, Any], model: Any) -> dict[str, str]:
    return {}


def one_reading(native: Native) -> Mapping[str, Mapping[str, Tensor]]:
    return {}


def nothing_promised(native: Native, model: Any) -> str:
    return ""


def nothing_compared(
    state: Mapping[str, Tensor], model: Any, images: Tensor, size: int | tuple[int, int] | None
) -> str:
    return ""


def no_view(encoder: Any) -> MaskableEncoder | None:
    return None


# ---- the record


@dataclass(frozen=True)
class Choice:
    """An argument of the model that a conversion may choose: an option of ``convert``."""

    name: str  # of the argument; --NAME with hyphens
    help: str
    type: type = str  # bool: an option without a value
    many: bool = False  # one or more values
    among: tuple[str, ...] = ()  # the values that there are; any, where empty


@dataclass(frozen=True, kw_only=True)
class Family:
    """All that is particular to a family.

    Args:
        name: how messages call it, and ``list_models(family=...)``.
        variants: arguments of the model by architecture.
        construct: (architecture, **arguments of timm's builder and of the model) -> model. It looks for no weights:
            with ``pretrained=True`` it loads those that ``pretrained_cfg_overlay`` names.
        layouts: of checkpoints that it can read. Where it is pre-trained by masking, those of its own autoencoders are
            added.
        img_size: (checkpoint, sizes that it may be made for, arguments of the model that stand beside it) -> height and
            width in pixels of the images that it was made for.
        fit: (state dict in the family's names, the checkpoint that it comes from, model) -> the same fitted to the
            model: tables of other sizes resampled.
        checkpoint_args: arguments of the model that a checkpoint tells, where they are not the architecture's.
        loading_args: arguments of a model that decide what of a checkpoint it takes.
        more_rules: (state dict in the names of its layout, such arguments) -> rules that are applied to it then.
        notes: what report, card and configuration say of a conversion: (checkpoint, timm's ``pretrained_cfg`` beside
            it, model).
        readings: state dicts by name, where a checkpoint may be meant in several ways that its names do not tell.
        inflate: (checkpoint of images, architecture, how) -> checkpoint of clips.
        verify: what a conversion promises beyond equal tensors, checked; in words.
        similarity: (source, model, images [B, C, H, W], height and width of the source's images) -> how near their
            features are, in words.
        choices: arguments that a conversion may choose.
        view: an encoder of the family through the protocol, where its models have none of it; None for any other
            module.
        mae: its masked autoencoders.
        pretraining: how it is pre-trained.
        fine_tuning: how it is fine-tuned.
        fine_tuning_args: arguments of a model in fine-tuning, whatever those of its pre-training were.
        own: its models are this package's, not timm's.
    """

    name: str
    variants: Mapping[str, Mapping[str, Any]]
    construct: Callable[..., nn.Module]
    layouts: tuple[Layout, ...]
    img_size: Callable[[Native, Sizes, Mapping[str, Any]], tuple[int, int]]
    fit: Callable[[dict[str, Tensor], Native, Any], dict[str, Tensor]] = as_carried_over
    checkpoint_args: Callable[[Native, str], Mapping[str, Any]] = nothing_told
    loading_args: Callable[[Any], Mapping[str, Any]] = nothing_of
    more_rules: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Sequence[Rule]] = no_more_rules
    notes: Callable[[Native, Mapping[str, Any], Any], dict[str, str]] = nothing_noted
    readings: Callable[[Native], Mapping[str, Mapping[str, Tensor]]] = one_reading
    inflate: Callable[[Native, str, str], Native] | None = None
    verify: Callable[[Native, Any], str] = nothing_promised
    similarity: Callable[[Mapping[str, Tensor], Any, Tensor, int | tuple[int, int] | None], str] = nothing_compared
    choices: tuple[Choice, ...] = ()
    view: Callable[[Any], MaskableEncoder | None] = no_view
    mae: Rows[Recipe] = field(default_factory=Rows)
    pretraining: Rows[Pretraining] = field(default_factory=Rows)
    fine_tuning: Rows[FineTuning] = field(default_factory=Rows)
    fine_tuning_args: Mapping[str, Any] = field(default_factory=dict)
    own: bool = True

    def __post_init__(self) -> None:
        if self.mae:
            own = tuple(own_autoencoder(layout) for layout in self.layouts if layout.own)
            object.__setattr__(self, "layouts", (*self.layouts, *own))
        rows: tuple[Rows[Any], ...] = (self.mae, self.pretraining, self.fine_tuning)
        for arch in (arch for table in rows for arch in table):
            if arch not in self.variants:
                raise ValueError(f"family {self.name!r} has a recipe of {arch!r}, which is none of its architectures")

    def register(self, entrypoint: Made) -> Made:
        """Register an architecture with timm under the name of its function.

        Raises:
            ValueError: it is none of the variants, or somebody else already registered the name. (timm itself would
                overwrite theirs with a warning.)
        """
        name = entrypoint.__name__
        if name not in self.variants:
            raise ValueError(f"{name!r} is none of the variants of {self.name!r}: {', '.join(self.variants)}")
        if not is_model(name):
            register_model(entrypoint)
        elif (owner := model_entrypoint(name).__module__) != entrypoint.__module__:
            raise ValueError(f"the model name {name!r} is taken: {owner} registered it with timm")
        return self.adopt(entrypoint)

    def adopt(self, entrypoint: Made) -> Made:
        """Take an architecture in that is registered with timm."""
        _FAMILY_OF[entrypoint.__name__] = (model_entrypoint(entrypoint.__name__), self.name)
        return entrypoint

    def native(
        self,
        state: Mapping[str, Tensor],
        layout: str | None = None,
        *,
        decoder: bool = False,
        args: Mapping[str, Any] | None = None,
    ) -> Native:
        """Carry a checkpoint of any known layout over into the family's own names.

        Args:
            state: as read from the file; wrappers of frameworks are taken out of its names.
            layout: forces a layout instead of recognising it.
            decoder: keep the decoder of a masked autoencoder, apart from the encoder.
            args: of the model, as far as they decide what is carried over.

        Raises:
            ValueError: unknown layout, one of another family or without decoder, or a tensor that it does not know;
                NoLayout: none is recognised.
        """
        state = unwrapped(state)
        table = find_layout(layout) if layout else self.layout_of(state.keys())
        if table.name not in {own.name for own in self.layouts}:
            readers = " and ".join(f.name for f in families() if table.name in {own.name for own in f.layouts})
            raise ValueError(f"layout {table.name!r} is of {readers}, not of {self.name}")
        return carry_over(state, table, lambda native: self.more_rules(native, args or {}), decoder=decoder)

    def layout_of(self, names: Collection[str]) -> Layout:
        """The layout of a file with these tensor names.

        Raises:
            NoLayout: none fits, or one does that the family cannot read.
        """
        return recognise(names, self.layouts, self.name)

    def adapt(self, native: Native, model: Any) -> dict[str, Tensor]:
        """Fit a checkpoint to a model.

        What the layout says may be missing keeps its initial value; tables of other sizes are resampled. Stem and
        classifier are left for timm to adapt, where the models are this package's.

        Raises:
            ValueError: naming the first tensor that does not fit.
        """
        own, state = model.state_dict(), dict(native.state)
        check_kinds(state, own, model=f"this {type(model).__name__}")
        state |= {name: own[name] for name in native.layout.missed(own, state)}
        state = self.fit(state, native, model)
        cfg: Any = getattr(model, "pretrained_cfg", None) or {}
        stem, head = cfg.get("first_conv", "patch_embed.proj"), cfg.get("classifier", "head")
        adaptable = (f"{head}.weight", f"{head}.bias", f"{stem}.weight") if self.own else ()
        check_fits(state, own, adaptable, model=f"this {type(model).__name__}")
        return state

    def load_filter(
        self, state: Mapping[str, Tensor], model: Any, size: int | tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """Bring a checkpoint of any known layout into the form of ``model``; timm calls it when it loads weights.

        Args:
            state: a set of weights, or the content of a file under whose keys timm has not found one.
            model: to be loaded.
            size: height and width of the images that the checkpoint was made for; None: as timm knows of the model.

        Raises:
            ValueError: naming a tensor that is not sound; see :meth:`native` and :meth:`adapt`; SeveralSets: the file
                has several.
        """
        weights = unwrapped(weights_in(state))
        check_sound(weights, "the checkpoint", nonfinite=True)
        native = self.native(weights, args=self.loading_args(model))
        return self.adapt(native._replace(size=size), model)


# ---- all of them

# They survive importlib.reload, as timm's registry does.
_FAMILIES: dict[str, Family] = globals().get("_FAMILIES", {})
# Architecture -> its entry point, its family.
_FAMILY_OF: dict[str, tuple[Entrypoint, str]] = globals().get("_FAMILY_OF", {})


def add_family(family: Family) -> Family:
    """Make a family known, and the layouts of its checkpoints."""
    add_layouts(family.layouts)
    _FAMILIES[family.name] = family
    return family


def families() -> list[Family]:
    """All families, in the order in which they were added."""
    return list(_FAMILIES.values())


def family_named(name: str) -> Family:
    """The family of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in _FAMILIES:
        raise ValueError(f"family {name!r} is unknown, there are {', '.join(_FAMILIES)}")
    return _FAMILIES[name]


def family_of(name: str) -> Family:
    """The family of an architecture, by its registered entry point.

    Args:
        name: "arch" or "arch.tag".

    Raises:
        ValueError: timm knows no such architecture, or it is of no family of this package.
    """
    arch = check_arch(name)
    entrypoint, family = _FAMILY_OF.get(arch, (None, ""))
    if entrypoint is None or model_entrypoint(arch) is not entrypoint:
        raise ValueError(
            f"{arch} is a model of {model_entrypoint(arch).__module__}, not of this package; {_ours_like(arch)}"
        )
    return _FAMILIES[family]


def view_of(encoder: nn.Module) -> Callable[[Any], MaskableEncoder | None] | None:
    """What shows an encoder through the protocol; None where it is of the protocol itself.

    Raises:
        ValueError: it cannot be masked.
    """
    if isinstance(encoder, MaskableEncoder):
        return None
    for family in families():
        if family.view(encoder) is not None:
            return family.view
    raise ValueError(f"{type(encoder).__name__} cannot be masked: it has no forward_visible")


def _ours_like(arch: str) -> str:
    """Which of our architectures somebody may have meant who named another."""
    ours = [name for family in families() if family.own for name in family.variants]
    begins = [name for name in ours if arch.startswith(f"{name}_")]
    close = sorted(begins, key=len)[-1:] or difflib.get_close_matches(arch, ours, n=1)
    return f"ours is {close[0]!r}" if close else "hiermim_zoo.list_models() names ours"


def check_arch(name: str) -> str:
    """The architecture of "arch" or "arch.tag".

    Raises:
        ValueError: timm knows no such architecture, with the names that come close.
    """
    arch = name.partition(".")[0]
    if not is_model(arch):
        close = difflib.get_close_matches(arch, list_models(), n=3)
        hint = (
            f"did you mean {', '.join(close)}?"
            if close
            else "python -c 'import timm; print(timm.list_models())' lists them"
        )
        raise ValueError(f"model {arch!r} is unknown; {hint}")
    return arch
