"""What ``benchmark --suite`` measures, as data: for each device its comparisons, in the order of their worth."""

from __future__ import annotations

from typing import NamedTuple

from ..layers.groups import METHODS
from ..training.graphs import CUDAGRAPHS
from .steps import TRACED, Side

DEFAULT, GRAPHS = "default", "reduce-overhead"  # modes of torch.compile; the second records CUDA graphs, too


class Goal(NamedTuple):
    """What a model is to reach, run in the way that suits it best."""

    of: str  # NAME[:MODE]
    measure: str  # a key of judging.MEASURES
    limit: float
    beside: str = ""  # NAME[:MODE] of the peer


class Comparison(NamedTuple):
    """Models in one setting. Each is put beside the peers that ran in the same way; see judging.same_way."""

    title: str
    ours: tuple[Side, ...]
    peers: tuple[Side, ...]
    batch: int
    img_size: tuple[int, int] | None = None
    rounds: int = 15
    goals: tuple[Goal, ...] = ()
    note: str = ""

    @property
    def sides(self) -> tuple[Side, ...]:
        """All models; first those that need no compiler, which is slow."""
        return tuple(sorted((*self.ours, *self.peers), key=lambda side: side.compile is not None))

    @property
    def needs_compiler(self) -> bool:
        return any(side.compile for side in self.sides)


class Reading(NamedTuple):
    """Photographs through the data loader of pre-training."""

    title: str
    pixels: tuple[int, int]  # width and height of a photograph
    batch: int
    batches: int  # that are timed
    note: str = ""


class Suite(NamedTuple):
    device: str
    amp: str
    product: int  # side of the matrices whose product is the peak
    rows: tuple[Comparison | Reading, ...]
    warmup: int
    sample: float  # seconds
    threads: int | None = None

    @property
    def goals(self) -> list[Goal]:
        return [goal for row in self.rows if isinstance(row, Comparison) for goal in row.goals]


def ways(spec: str, *compile: str | None) -> tuple[Side, ...]:
    return tuple(Side(spec, mode) for mode in compile or (None,))


def methods(name: str, *compile: str | None) -> tuple[Side, ...]:
    """Every way to group windows."""
    return tuple(side for method in METHODS for side in ways(f"{name},plan_method={method}:pretrain", *compile))


def compiled(row: Comparison, mode: str = DEFAULT, words: str = "compiled") -> Comparison:
    """All sides of a comparison through the compiler; its goals are those of the comparison itself."""
    ours, peers = (tuple(side._replace(compile=mode) for side in sides) for sides in (row.ours, row.peers))
    return row._replace(title=f"{row.title}, {words}", ours=ours, peers=peers, goals=())


def recorded(row: Comparison) -> Comparison:
    """All sides as CUDA graphs of the kernels that run without a compiler."""
    return compiled(row, CUDAGRAPHS, "as CUDA graphs")


# ---- what both suites have: names of models, rows

HIERA, HIERA_MAE = "hiera_base", "hiera_base:pretrain"
AUTHORS, AUTHORS_MAE = "hiera-transformer/hiera_base_224", "hiera-transformer/mae_hiera_base_224:pretrain"
OPTIM_MAE = "hiera-optim/mae_hiera_base_224:pretrain"
HIVIT_MAE = "hivit_base:pretrain"
SWIN, VIT, TIMM_HIERA = "swin_base_patch4_window7_224", "vit_base_patch16_224", "hiera_base_224"
SIMMIM = f"simmim/{SWIN}:pretrain"
GREEN, TWINS = "green_swin_base", "green_twins_large"
HPVIT = ("hpvit_base", "hpvit_base,window_size=0")
SAM2, TIMM_SAM2 = "hiera_sam2_tiny", "sam2_hiera_tiny"
CLIPS, AUTHORS_CLIPS = "hiera_base_video:pretrain", "hiera-transformer/mae_hiera_base_16x224:pretrain"

LOADER = Reading(
    "The data loader",
    pixels=(500, 375),
    batch=64,
    batches=12,
    note="JPEGs put together from the photographs that come with the package, read, decoded, cut at random and resized "
    "to 224 x 224 by one process.",
)
HPVIT_SMALL = Comparison(
    "HPViT-B and the plain ViT it is made from, inference at 224 x 224",
    ways(HPVIT[0]) + ways(HPVIT[1]),
    ways(VIT),
    batch=64,
)
HPVIT_LARGE = HPVIT_SMALL._replace(
    title="HPViT-B and the plain ViT it is made from, inference at 512 x 768", batch=8, img_size=(512, 768)
)
METHODS_NOTE = (
    "`pack` and `window` look at the mask, so they cannot be compiled. Without an argument, `pack` is used on CPUs and "
    "`sort` on GPUs and inside graphs."
)

# ---- GPUs

SHARE = 0.45  # of the peak of a matrix product, in a masked step

HIERA_STEP = Comparison(
    "Hiera-B, a step of masked pre-training",
    ways(HIERA_MAE),
    ways(AUTHORS_MAE),
    batch=128,
    note="19 of 49 units are visible.",
)
HIERA_RECORDED = HIERA_STEP._replace(
    title=f"{HIERA_STEP.title}, as CUDA graphs",
    ours=ways(HIERA_MAE, CUDAGRAPHS),
    goals=(Goal(HIERA_MAE, "speed", 2.5, AUTHORS_MAE), Goal(HIERA_MAE, "share", SHARE)),
    note="19 of 49 units are visible. hiera-transformer runs as it comes, since its masks cannot be recorded.",
)
HIERA_COMPILED = HIERA_RECORDED._replace(
    title=f"{HIERA_STEP.title}, compiled", ours=ways(HIERA_MAE, None, DEFAULT), goals=()
)
HIERA_OPTIM = Comparison(
    f"{HIERA_STEP.title}, beside hiera-optim",
    ways(HIERA_MAE, GRAPHS),
    ways(OPTIM_MAE, GRAPHS),
    batch=128,
    goals=(Goal(HIERA_MAE, "speed", 1.1, OPTIM_MAE),),
    note="Compiled, with CUDA graphs: the mode that the authors of hiera-optim recommend for training, with float32 "
    "weights as the others.",
)
STEPS = (
    Comparison(
        "GreenMIM's Swin-B, a step of masked pre-training",
        ways(f"{GREEN}:pretrain"),
        ways(SIMMIM),
        batch=128,
        goals=(
            Goal(f"{GREEN}:pretrain", "speed", 3.2, SIMMIM),
            Goal(f"{GREEN}:pretrain", "memory", 0.25, SIMMIM),
            Goal(f"{GREEN}:pretrain", "share", SHARE),
        ),
        note="12 of 49 units are visible, the same ones in all images. SimMIM hides as many and computes on all "
        "tokens; the authors of GreenMIM report 2.7 times its speed and 70 % less memory.",
    ),
    Comparison(
        "HiViT-B, a step of masked pre-training",
        ways(HIVIT_MAE),
        ways(SIMMIM) + ways(f"{VIT}:pretrain"),
        batch=128,
        goals=(Goal(HIVIT_MAE, "speed", 2.5, SIMMIM), Goal(HIVIT_MAE, "share", SHARE)),
        note="A quarter of the units is visible. SimMIM pre-trains Swin-B on all tokens; the authors of HiViT "
        "report 1.9 times its speed.",
    ),
    Comparison(
        "Inference",
        ways(HIERA) + ways("hivit_base"),
        ways(TIMM_HIERA) + ways(SWIN) + ways(VIT),
        batch=128,
        goals=(Goal(HIERA, "speed", 1.3, TIMM_HIERA),),
    ),
)
EAGER: tuple[Comparison, ...] = (
    *STEPS,
    HPVIT_SMALL,
    HPVIT_LARGE,
    Comparison(
        "GreenMIM's Swin-B, every way to group windows", methods(GREEN), ways(SIMMIM), batch=128, note=METHODS_NOTE
    ),
    Comparison(
        "GreenMIM's Twins-L, a step of masked pre-training, every way to group windows",
        ways(f"{TWINS}:pretrain") + methods(TWINS),
        ways("simmim/twins_svt_large:pretrain"),
        batch=64,
        note="12 of 49 units are visible. SimMIM hides as many and computes on all tokens.",
    ),
    Comparison(
        "Hiera-B for video, a step of masked pre-training",
        ways(CLIPS),
        ways(AUTHORS_CLIPS),
        batch=16,
        note="16 frames of 224 x 224; a tenth of the units is visible. An image here is a clip.",
    ),
)
# Compilers take most of the time of a run, so what needs none comes first.
GPU: tuple[Comparison | Reading, ...] = (
    HIERA_STEP,
    *EAGER,
    LOADER,
    HIERA_RECORDED,
    *map(recorded, STEPS),
    HIERA_COMPILED,
    HIERA_OPTIM,
    *map(compiled, EAGER),
)

# ---- CPUs

CPU = (
    Comparison("HiViT-B and timm's ViT-B/16, inference", ways("hivit_base"), ways(VIT), batch=4),
    Comparison(
        "HiViT-B, pre-training with and without a mask",
        ways(HIVIT_MAE),
        ways("hivit_base:dense"),
        batch=8,
        rounds=5,
        note="A quarter of the units is visible, or all of them (dense).",
    ),
    Comparison(
        "Hiera-B, timm's Hiera-B and the package of its authors, inference",
        ways(HIERA) + ways(TIMM_HIERA),
        ways(AUTHORS),
        batch=4,
        rounds=11,
    ),
    Comparison(
        "Hiera-B and the package of its authors, a step of masked pre-training",
        ways(HIERA_MAE),
        ways(AUTHORS_MAE),
        batch=4,
        rounds=9,
        note="19 of 49 units are visible.",
    ),
    Comparison(
        "GreenMIM's Swin-B and SimMIM, every way to group windows",
        methods(GREEN),
        ways(SIMMIM),
        batch=8,
        rounds=5,
        note=f"A step with 12 of 49 units visible, the same ones in all images. {METHODS_NOTE}",
    ),
    LOADER,
    HPVIT_SMALL._replace(batch=2, rounds=7),
    HPVIT_LARGE._replace(batch=1, rounds=3),
    Comparison(
        "SAM 2's encoder (tiny) and timm's, inference at 896 x 896",
        ways(SAM2),
        ways(TIMM_SAM2),
        batch=1,
        rounds=7,
    ),
    Comparison(
        "SAM 2's encoder (tiny), pre-training with and without a mask at 512 x 512",
        ways(f"{SAM2}:pretrain"),
        ways(f"{SAM2}:dense"),
        batch=1,
        img_size=(512, 512),
        rounds=7,
        note="102 of 256 units are visible, or all of them (dense). The decoder computes all of them in both.",
    ),
)

SUITES = {
    "gpu": Suite("cuda", "bf16", 8192, GPU, warmup=3, sample=0.05),
    "cpu": Suite("cpu", "none", 2048, CPU, warmup=1, sample=0.0, threads=2),
}

# ---- rehearsals

_ONE = "(1,1,1,1)"
_FEW_BLOCKS = f",embed_dim=24,num_heads=1,stages={_ONE}"
_TINY_DECODER = ",decoder_embed_dim=24,decoder_depth=1,decoder_num_heads=1"
_TINY_SWIN = f"swin_tiny_patch4_window7_224,embed_dim=24,depths={_ONE},num_heads={_ONE}"
TOYS = {  # a tiny model of the same kind; names that are not here stay
    "hiera_base": "hiera_atto",
    "hiera_base_video": "hiera_atto_video",
    "hivit_base": "hivit_atto",
    "hpvit_base": "hpvit_atto",
    SAM2: "hiera_sam2_atto",
    TIMM_SAM2: f"{TIMM_SAM2},embed_dim=24,stages=(1,1,2,1),global_att_blocks=(3,)",
    "green_swin_base": "green_swin_atto",
    "green_twins_large": f"green_twins_small,depths={_ONE}",
    TIMM_HIERA: f"hiera_tiny_224{_FEW_BLOCKS}",
    SWIN: _TINY_SWIN,
    VIT: "vit_small_patch32_224,embed_dim=48,num_heads=1,depth=1",
    AUTHORS: "hiera-transformer/hiera_tiny_224,input_size=(64,64)",
    AUTHORS_MAE.partition(":")[0]: f"hiera-transformer/mae_hiera_tiny_224,input_size=(64,64){_TINY_DECODER}",
    AUTHORS_CLIPS.partition(":")[0]: f"hiera-transformer/mae_hiera_base_16x224{_FEW_BLOCKS}{_TINY_DECODER}",
    OPTIM_MAE.partition(":")[0]: f"hiera-optim/mae_hiera_tiny_224,input_size=(64,64){_TINY_DECODER}",
    f"simmim/{SWIN}": f"simmim/{_TINY_SWIN}",
    "simmim/twins_svt_large": f"simmim/twins_svt_small,embed_dims=(16,16,16,16),depths={_ONE},num_heads={_ONE}",
}


def rehearsed(suite: Suite) -> Suite:
    """The same rows at toy size: every model is replaced by a tiny one and takes few steps with 2 images; graphs are
    made, but no kernels for them.
    """
    rows = tuple(
        row._replace(batch=2, batches=2)
        if isinstance(row, Reading)
        else row._replace(
            ours=tuple(map(_toy, row.ours)),
            peers=tuple(map(_toy, row.peers)),
            batch=2,
            rounds=1,
            img_size=row.img_size and (64, 96),
            goals=tuple(goal._replace(of=_toy_name(goal.of), beside=_toy_name(goal.beside)) for goal in row.goals),
        )
        for row in suite.rows
    )
    return suite._replace(amp="auto", product=256, rows=rows, warmup=0, sample=0.0)


def _toy(side: Side) -> Side:
    return Side(_toy_name(side.spec), side.compile and TRACED + side.compile)


def _toy_name(spec: str) -> str:
    model, colon, mode = spec.partition(":")
    name, comma, given = model.partition(",")
    return f"{TOYS.get(name, name)}{comma}{given}{colon}{mode}"
