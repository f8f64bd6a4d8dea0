"""The masked autoencoder: one for every encoder of the protocol (MAE, arXiv 2111.06377; HiViT, arXiv 2205.14949,
section 3.3; Hiera, arXiv 2306.00989, appendix A).

    images --keep--> encoder --stages--> fusion --tokens--> decoder --pixels--> loss on what was hidden

Letters: B inputs; U units, K of them visible; t tokens of a unit in the last stage; N = U t decoder tokens in raster
order; C channels of a stage, D decoder width; P values of the patch of pixels under a decoder token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple
from timm.models import create_model
from torch import Tensor, nn

from .checkpoints.configs import CONFIG_KEY, read_config
from .checkpoints.files import find_file, read_checkpoint
from .checkpoints.folder import CONFIG_FILE, DECODER_FILE
from .commands.options.pretrain import PIXELS
from .geometry import from_units, sincos_table, to_units
from .layers.padding import check_images
from .masking import check_keep, random_keep
from .models import weights
from .models.conversion import Converted
from .models.decoder import EPS, FUSIONS, Decoder, raster, token_grid, xavier_uniform
from .models.family import families, family_of, view_of
from .models.going_on import INSTEAD, fit_decoder, fit_stem
from .models.recipes import Recipe
from .models.saved import check_buildable, check_encoder, saved_args
from .models.weights import folder_of
from .protocol import MaskableEncoder, PlanningEncoder, Visible

__all__ = ["MAEOutput", "MaskedAutoencoder", "Recipe", "create_mae"]

IMAGENET = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
LARGEST_DECODER = 100_000_000  # values of a new one that a file may ask for


class MAEOutput(NamedTuple):
    loss: Tensor  # [], float32
    pred: Tensor  # [B, N, P] in raster order, for visible tokens too
    hidden: Tensor  # bool [B, N]
    keep: Tensor  # int64 [B, K], the visible units


# ---- the autoencoder


class UnfitSize(ValueError):
    """Images of a size that is no whole number of mask units."""


class OtherTarget(ValueError):
    """The decoder of a folder predicts something else than is to be predicted."""


class MaskedAutoencoder(nn.Module):
    """Encoder, fusion and decoder; state-dict names ``encoder.*``, ``fusion.*``, ``decoder.*``.

    Args:
        encoder: of the protocol, or a plain VisionTransformer of timm.
        recipe: of its family (``family_of(arch).mae(arch)``), or one of your own.
        mask_ratio: share of units that are hidden, in (0, 1), if not the recipe's; int(U (1 - ratio)) stay visible.
        norm_pix: predict the pixels of a patch normalised by its own mean and (unbiased) variance, if not as the recipe
            says.

    Raises:
        ValueError: an encoder that cannot be masked, a ratio that hides nothing or everything.
    """

    def __init__(
        self, encoder: nn.Module, recipe: Recipe, mask_ratio: float | None = None, norm_pix: bool | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.view = encoder, view_of(encoder)
        self.plans = isinstance(encoder, PlanningEncoder)
        said: dict[str, Any] = {"mask_ratio": mask_ratio, "norm_pix": norm_pix}
        self.recipe = recipe = replace(recipe, **{key: value for key, value in said.items() if value is not None})
        if norm_pix is not None and recipe.target != PIXELS:
            raise ValueError(f"norm_pix={norm_pix} is about pixels, but {recipe.target} are predicted; leave it out")
        self.norm_pix = recipe.norm_pix
        layout = self.maskable.mask_layout
        self.layout = layout
        self.units = math.prod(layout.units)
        if math.isnan(recipe.mask_ratio):
            raise ValueError("mask_ratio=nan is no share of the units")
        self.kept = int(self.units * (1 - recipe.mask_ratio))
        if not 0 < recipe.mask_ratio < 1 or not 0 < self.kept < self.units:
            raise ValueError(
                f"mask_ratio={recipe.mask_ratio} keeps {self.kept} of {self.units} units; "
                "it must be in (0, 1) and keep some"
            )
        self.in_chans: int = encoder.in_chans  # type: ignore[assignment]
        self.fusion = FUSIONS[recipe.fusion](layout)
        # Pixels (and frames) of the patch that is predicted of a token.
        self.patch = (1, *layout.stride[1:]) if recipe.first_frame else layout.stride
        self.values = recipe.target_dim or math.prod(self.patch) * self.in_chans  # that are predicted of a token
        self.decoder = Decoder(recipe, layout, self.fusion.dim, self.values)

    @property
    def maskable(self) -> MaskableEncoder:
        """The encoder through the protocol."""
        encoder: Any = self.view(self.encoder) if self.view else self.encoder
        return encoder

    @property
    def planner(self) -> Callable[[Tensor], Any] | None:
        """The encoder's, see PlanningEncoder; None where it plans nothing."""
        return self.encoder.planner if self.plans else None  # type: ignore[return-value]

    @property
    def input_size(self) -> tuple[int, ...]:
        """Pixels (and frames) along each axis of the images that it was built for."""
        grid = token_grid(self.layout)
        return tuple(tokens * pixels for tokens, pixels in zip(grid, self.layout.stride, strict=True))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the activations of blocks again in the backward pass instead of keeping them.

        Raises:
            ValueError: the encoder cannot.
        """
        self.encoder.set_grad_checkpointing(enable)  # type: ignore[operator]
        self.decoder.grad_checkpointing = enable

    def forward(
        self, images: Tensor, keep: Tensor | None = None, plans: Any = None, features: Tensor | None = None
    ) -> MAEOutput:
        """Hide units, predict their pixels, or the features that a teacher has there.

        Args:
            images: [B, C, H, W], or clips [B, C, T, H, W]; normalised, of the size that the encoder was built for.
            keep: int64 [B, K], visible units, or [1, K], the same ones of every image; drawn at random where None.
            plans: what ``planner`` made of ``keep``, in a data loader's worker for instance; made here where None.
            features: [B, N, P] in raster order, what :class:`hiermim_zoo.teacher.Teacher` makes of the images; exactly
                where the recipe's target is not pixels.

        Returns:
            See MAEOutput. The loss is the mean squared error over the hidden tokens of the whole batch (over all
            tokens, if ``keep`` hides none), in float32.

        Raises:
            ValueError: another size, a ``keep``, plans or features that do not fit, or that nobody asks for.
        """
        self._check(images, features)
        if plans is not None and (keep is None or self.planner is None):
            why = "no keep that they were made of" if keep is None else f"{type(self.encoder).__name__} plans nothing"
            raise ValueError(f"plans cannot be used: {why}")
        batch = images.shape[0]
        if keep is None:
            own = batch if self.recipe.masks == "sample" else 1
            keep = random_keep(own, self.units, self.kept, device=images.device)
        if not isinstance(keep, Tensor):
            check_keep(keep, batch, self.units)
        if keep.ndim == 2 and len(keep) == 1 < batch:
            check_keep(keep, 1, self.units)
            if plans is None and self.plans:
                plans = self.encoder.plan(keep)  # type: ignore[operator]
            keep = keep.expand(batch, -1)
        encoder: Any = self.maskable
        visible: Visible = encoder.forward_visible(images, keep, *(() if plans is None else (plans,)))
        pred = self.decoder(self.fusion(visible.stages), visible.prefix, keep)  # [B, N, P]
        hidden = self._hidden(keep)
        with torch.autocast(images.device.type, enabled=False):
            target = self.target(images) if features is None else features.float()
            error = (pred.float() - target).square().mean(dim=-1)  # [B, N]
            count = hidden.shape[0] * hidden.shape[1] * (self.units - keep.shape[1]) // self.units
            loss = (error * hidden).sum() / count if count else error.mean()
        return MAEOutput(loss, pred, hidden, keep)

    def _check(self, images: Tensor, features: Tensor | None) -> None:
        check_images(images, self.in_chans, axes=len(self.layout.units))
        if images.shape[1:] != (self.in_chans, *self.input_size):
            raise ValueError(
                f"the autoencoder was built for [B, {', '.join(map(str, (self.in_chans, *self.input_size)))}], "
                f"got {list(images.shape)}; build it with another img_size"
            )
        if (features is None) != (self.recipe.target == PIXELS):
            given = "no features are given" if features is None else "features are given"
            raise ValueError(f"the autoencoder predicts {self.recipe.target}, but {given}")
        if features is not None and features.shape != (wanted := self._predicted_shape(len(images))):
            raise ValueError(f"features are {list(features.shape)}, those that are predicted {list(wanted)}")

    def _predicted_shape(self, batch: int) -> tuple[int, int, int]:
        return batch, math.prod(token_grid(self.layout)), self.values

    def blank_features(self, batch: int) -> Tensor | None:
        """Zeros in place of a teacher's features, to try a pass without one; None where pixels are predicted."""
        at = self.decoder.mask_token.device
        return None if self.recipe.target == PIXELS else torch.zeros(self._predicted_shape(batch), device=at)

    def _hidden(self, keep: Tensor) -> Tensor:
        """Bool [B, N] in raster order."""
        hidden = torch.ones(keep.shape[0], self.units, dtype=torch.bool, device=keep.device).scatter(1, keep, False)
        tokens = math.prod(self.layout.stages[-1].tokens)
        return raster(hidden[:, :, None, None].expand(-1, -1, tokens, 1), self.layout)[..., 0]

    def patches(self, images: Tensor) -> Tensor:
        """Pixels under each decoder token: [B, C, *sides] -> [B, N, P], in the order of the recipe."""
        x = to_units(self.predicted(images).movedim(1, -1), self.patch)  # [B, N, *p, C]
        return (x if self.recipe.pixel_order == "hwc" else x.movedim(-1, 2)).flatten(2)

    def predicted(self, images: Tensor) -> Tensor:
        """The part of the input that the decoder predicts: all of it, or the first of the frames under each token."""
        return images[:, :, :: self.layout.stride[0]] if self.recipe.first_frame else images

    def from_patches(self, patches: Tensor) -> Tensor:
        """The inverse of :meth:`patches`, up to the frames that are not predicted."""
        if self.recipe.pixel_order == "hwc":
            x = patches.unflatten(2, (*self.patch, self.in_chans))
        else:
            x = patches.unflatten(2, (self.in_chans, *self.patch)).movedim(2, -1)
        return from_units(x, token_grid(self.layout)).movedim(-1, 1)

    def target(self, images: Tensor) -> Tensor:
        """What is to be predicted of pixels: [B, N, P], float32."""
        x = self.patches(images.float())
        if not self.norm_pix:
            return x
        mean, scale = _statistics(x)
        return (x - mean) / scale

    @torch.no_grad()
    def reconstruct(self, images: Tensor, out: MAEOutput, statistics: str = "true", paste: bool = True) -> Tensor:
        """The images with their hidden parts filled in.

        Args:
            images: as given to the forward pass.
            out: its result.
            statistics: how normalised predictions become pixels again: "true" with each hidden patch's own mean and
                variance (which only whoever knows the original has), "visible" with the average of those of the image's
                visible patches.
            paste: put the input's own pixels where they are visible; else the prediction is shown there too.

        Returns:
            [B, C, H, W], float32, in the scale of the input. Of clips whose recipe predicts first frames alone,
            [B, C, T / 2, H, W]: frames 0, 2, 4, ...; the others are nowhere predicted.

        Raises:
            ValueError: unknown ``statistics``; no pixels are predicted.
        """
        if self.recipe.target != PIXELS:
            raise ValueError(f"there is nothing to draw: {self.recipe.target} are predicted, no pixels")
        if statistics not in ("true", "visible"):
            raise ValueError(f"statistics={statistics!r} is unknown, use 'true' or 'visible'")
        pixels, pred = self.patches(images.float()), out.pred.float()
        if self.norm_pix:
            mean, scale = _statistics(pixels)
            if statistics == "visible":
                shown = (~out.hidden).float()[..., None]
                mean, scale = ((s * shown).sum(1, keepdim=True) / shown.sum(1, keepdim=True) for s in (mean, scale))
            pred = pred * scale + mean
        return self.from_patches(torch.where(out.hidden[..., None], pred, pixels) if paste else pred)


def create_mae(
    name: str,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    mask_ratio: float | None = None,
    norm_pix: bool | None = None,
    decoder: str = "load",
    recipe: Mapping[str, Any] | None = None,
    **model_kwargs: Any,
) -> MaskedAutoencoder:
    """The masked autoencoder of an architecture, with the recipe of its family.

    ``encoder.pretrained_cfg`` says mean and deviation of its images: of the weights it starts from, else the recipe's.

    Args:
        name: of this package ("hivit_base") or a plain ViT of timm ("vit_base_patch16_224"), with or without a tag.
        pretrained: start the encoder from pretrained weights; the decoder starts fresh, unless the tag is of timm's
            ViTs and has one ("vit_base_patch16_224.mae_in1k").
        checkpoint: a folder written by ``convert --mae`` or by pre-training; its encoder and decoder are loaded, and
            what it says of image size, channels and recipe holds where the arguments say nothing.
        mask_ratio: share of units that are hidden; default: that of the run which made the checkpoint, else the
            family's.
        norm_pix: see MaskedAutoencoder; default: as the checkpoint says, else True.
        decoder: "fresh" leaves the checkpoint's decoder alone (there need not be one).
        recipe: values in place of the family's ({"depth": 2, "dim": 128, "heads": 4}: a smaller decoder), see Recipe.
        **model_kwargs: of the encoder (img_size, in_chans, drop_path_rate, ...).

    Raises:
        ValueError: an unknown name, no recipe, no whole number of mask units, a checkpoint that does not fit.
    """
    if decoder not in ("load", "fresh"):
        raise ValueError(f"decoder={decoder!r} is unknown, use 'load' or 'fresh'")
    folder = None if checkpoint is None else Path(checkpoint)
    if pretrained and folder is None and (folder := folder_of(name)):
        name, pretrained = name.partition(".")[0], False
        decoder = decoder if (folder / DECODER_FILE).is_file() else "fresh"
    saved = NOTHING if folder is None else _saved(name, folder)
    chosen = recipe_of(name, {**saved.recipe, **(recipe or {})})
    _check_target(chosen, saved, folder if decoder == "load" else None)
    args = {"num_classes": 0, **chosen.encoder, **saved.args, **model_kwargs}
    if folder is not None and (saved.args or saved.recipe):
        build = partial(family_of(name).construct, name.partition(".")[0], **args)
        check_buildable(lambda: MaskedAutoencoder(build(), chosen), *_held(folder, decoder))
    encoder: Any = create_model(name, pretrained=pretrained, **args)
    fresh = not pretrained and folder is None
    if chosen.xavier and not pretrained:
        for part, module in encoder.named_modules():
            if part != "fc_norm":  # of no use before fine-tuning, which finds it as the family starts it
                xavier_uniform(module)
    mae = MaskedAutoencoder(encoder, chosen, mask_ratio, norm_pix)
    _check_units(mae, model_kwargs.get("img_size"))
    if chosen.fixed_positions:
        _fix_positions(mae, fresh)
    statistics = IMAGENET if chosen.imagenet and fresh else saved.statistics
    if statistics:
        encoder.pretrained_cfg = {**encoder.pretrained_cfg, **statistics}
    if folder is not None:
        _load(mae, name, folder, decoder, saved.size)
    return mae


def _check_target(recipe: Recipe, saved: _Saved, folder: Path | None) -> None:
    """Refuse a folder whose decoder is to be loaded and predicts something else."""
    if folder is not None and recipe.target != (had := saved.recipe.get("target", PIXELS)):
        raise OtherTarget(f"the decoder of {folder} predicts {had}, not {recipe.target}; a new one works: {INSTEAD}")


def _check_units(mae: MaskedAutoencoder, size: int | tuple[int, int] | None) -> None:
    """Refuse a size that the encoder rounded up to whole mask units."""
    own = mae.input_size[-2:]
    if size is not None and to_2tuple(size) != own:
        said, works = (" x ".join(map(str, sides)) for sides in (to_2tuple(size), own))
        raise UnfitSize(f"an image of {said} pixels is not a whole number of mask units; {works} is")


def assembled(converted: Converted) -> MaskedAutoencoder:
    """The autoencoder of a conversion that kept its decoder, around the very encoder of the conversion.

    Raises:
        ValueError: the decoder does not fit what is said of it.
    """
    mae = MaskedAutoencoder(converted.model, recipe_of(converted.arch, converted.recipe() or {}))
    state = fit_decoder(converted.native.decoder, mae, converted.native.size, f"the autoencoder of {converted.arch}")
    mae.load_state_dict({**mae.state_dict(), **state})
    return mae


weights.assemble = assembled  # so that what is fetched is tried as a whole


def recipe_of(name: str, changes: Mapping[str, Any]) -> Recipe:
    """The recipe of an architecture's family, with some values changed.

    Raises:
        ValueError: unknown architecture, family without recipe, unknown value.
    """
    try:
        own = family_of(name).mae(name)
    except ValueError as error:
        raise ValueError(f"{name} cannot be pre-trained by masking here: {error}") from error
    if own is None:
        able = ", ".join(family.name for family in families() if family.mae)
        raise ValueError(f"{name} cannot be pre-trained by masking here; there are recipes for {able}")
    return own.changed(changes, FUSIONS)


def complete_alone(mae: MaskedAutoencoder) -> nn.Module:
    """What of an autoencoder computes without a teacher: all of it, or where it predicts features its encoder."""
    return mae if mae.recipe.target == PIXELS else mae.encoder


def recipe_changes(name: str, recipe: Recipe) -> dict[str, Any]:
    """The values that are not those of the architecture's family: what a folder has to remember."""
    own = recipe_of(name, {})
    return {f.name: value for f in fields(Recipe) if (value := getattr(recipe, f.name)) != getattr(own, f.name)}


def decoder_state(mae: MaskedAutoencoder) -> dict[str, Tensor]:
    """The part of the state dict that is not the encoder's."""
    return {name: tensor for name, tensor in mae.state_dict().items() if not name.startswith("encoder.")}


def encoder_args(name: str, folder: Path) -> dict[str, Any]:
    """The arguments of the encoder that a folder says, which :func:`create_mae` takes too.

    Raises:
        ValueError: naming what cannot be taken from it.
    """
    return dict(_saved(name, folder).args)


class _Saved(NamedTuple):
    """What config.json of a folder says of an autoencoder."""

    recipe: Mapping[str, Any]  # values that are not the family's
    args: Mapping[str, Any]  # of the encoder
    size: Any  # height and width of the images
    statistics: Mapping[str, Any]  # mean and std of the images


NOTHING = _Saved({}, {}, None, {})


def _saved(name: str, folder: Path) -> _Saved:
    """What a folder says of recipe and encoder, and of the images that it was made for.

    Raises:
        ValueError: naming what cannot be taken from it.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        return NOTHING
    config = read_config(file)
    recipe, arch = config[CONFIG_KEY].get("recipe") or {}, name.partition(".")[0]
    try:
        recipe_of(name, recipe)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    saved_args(arch, {"model_args": recipe.get("encoder")}, file)
    args = saved_args(arch, config, file)
    cfg = config["pretrained_cfg"]
    chans, *size = cfg.get("input_size", (3,))
    statistics = {key: tuple(cfg[key]) for key in IMAGENET if cfg.get(key)}
    return _Saved(recipe, {**args, "in_chans": chans}, args.get("img_size") or tuple(size) or None, statistics)


def _held(folder: Path, decoder: str) -> tuple[int, Path]:
    """How many values the files of a folder can hold, of two bytes at least, or a fresh decoder may have; and the file
    that describes them.

    Raises:
        ValueError: the folder lacks one of them.
    """
    size = find_file(folder).stat().st_size
    if decoder == "fresh":
        return size // 2 + LARGEST_DECODER, folder / CONFIG_FILE
    return (size + _decoder_file(folder).stat().st_size) // 2, folder / CONFIG_FILE


def _decoder_file(folder: Path) -> Path:
    file = folder / DECODER_FILE
    if folder.exists() and not file.is_file():
        raise ValueError(f"{folder} holds no {DECODER_FILE}; convert with --mae, or start a new one: {INSTEAD}")
    return file


def _load(mae: MaskedAutoencoder, name: str, folder: Path, decoder: str, size: Any) -> None:
    """Load the folder that ``convert --mae`` or pre-training wrote."""
    file = _decoder_file(folder) if decoder == "load" else None
    encoder = family_of(name).load_filter(fit_stem(read_checkpoint(folder).state, mae.encoder), mae.encoder, size)
    check_encoder(encoder, mae.encoder.state_dict(), folder, name)
    mae.encoder.load_state_dict(encoder)
    if file is not None:
        state = fit_decoder(read_checkpoint(file).state, mae, size, f"the autoencoder of {name}")
        mae.load_state_dict({**mae.state_dict(), **state})


# ---- small things


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, [B, N, 1]; the variance is the unbiased one, as in the published
    code.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + EPS).sqrt()


def _fix_positions(mae: MaskedAutoencoder, fresh: bool) -> None:
    """Keep the encoder's table of positions from being trained.

    Args:
        fresh: no weights are loaded: the table is that of MAE (util/pos_embed.py), its row of a class token zero, and
            the class token is drawn anew.

    Raises:
        ValueError: the encoder has no such table.
    """
    encoder: Any = mae.encoder
    positions = getattr(encoder, "pos_embed", None)
    grid, prefix = token_grid(mae.layout), mae.layout.prefix
    if positions is None or len(grid) != 2 or positions.shape[1] != prefix + math.prod(grid):
        raise ValueError(f"recipe: fixed_positions: {type(encoder).__name__} has no pos_embed of a row for each token")
    positions.requires_grad_(False)
    if not fresh:
        return
    with torch.no_grad():
        positions[:, :prefix] = 0
        positions[:, prefix:] = sincos_table((grid[0], grid[1]), positions.shape[-1])
        if getattr(encoder, "cls_token", None) is not None:
            nn.init.normal_(encoder.cls_token, std=0.02)
