"""A step of training: the host does not wait for the device in it, what is not finite is left out, memory is saved."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hiermim_zoo import benchmark, evaluate, masking, pretrain
from hiermim_zoo.commands.options.pretrain import PretrainOptions
from hiermim_zoo.commands.options.shared import COMPILE
from hiermim_zoo.data.batches import Batching
from hiermim_zoo.layers import groups
from hiermim_zoo.mae import create_mae
from hiermim_zoo.training import pretraining, snapshots
from hiermim_zoo.training.autoencoder import build_autoencoder
from hiermim_zoo.training.beginning import Beginning
from hiermim_zoo.training.defaults import family_values, followed
from hiermim_zoo.training.distributed import World, restored
from hiermim_zoo.training.finetuning import FineTune
from hiermim_zoo.training.graphs import RECORDING, hold_gradients, how
from hiermim_zoo.training.optimizer import decides_on_device, gradient_norm, make_optimizer, take_step
from hiermim_zoo.training.precision import chosen_amp, train_in
from hiermim_zoo.training.run_data import open_data
from hiermim_zoo.training.run_log import read_log
from hiermim_zoo.training.small import with_intervals

CPU = torch.device("cpu")
ARGV = shlex.split("digits --decoder-depth 1 --decoder-dim 32 --decoder-heads 2 --batch-size 8 --epochs 1 --warmup 0")
ARGV += shlex.split("--workers 0 --device cpu --look-every 0 --log-steps 1 --lr 1e-2")
HIVIT = shlex.split("--model hivit_atto --img-size 32")


def run_of(output: Path, *argv: str) -> pretraining.Run:
    """A run, ready for its steps."""
    options: PretrainOptions = pretrain.VERB.parse([*ARGV, *argv, "-o", str(output)])
    options = replace(options.filled(family_values(options.model)), amp="none")
    mae = build_autoencoder(options)
    data = open_data(options, mae, None)
    batching = Batching(len(data.source), options.batch_size, options.accumulate, 0, 1, options.seed)
    options = with_intervals(replace(options, recipe="paper"), batching.per_pass, batching.per_epoch)
    start = Beginning(options, None, followed(options.model, None), mae, data, batching)
    return pretraining.Run(start, World(0, 1, CPU))


def trained(output: Path, *argv: str) -> dict[str, torch.Tensor]:
    """The weights at the end of a run."""
    pretrain.main([*ARGV, *argv, "-o", str(output)])
    weights: dict[str, torch.Tensor] = snapshots.load(snapshots.found(output / "checkpoints")[-1])["model"]
    return weights


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- nothing waits


class Waits(TorchFunctionMode):
    """Notes whatever would make the host wait for a GPU, or copy to it from memory that is not pinned."""

    READS = (
        "item", "tolist", "numpy", "cpu", "nonzero", "argwhere", "unique", "masked_select", "__bool__", "__float__",
        "__int__", "__index__", "new_tensor", "tensor", "as_tensor", "from_numpy",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.READS and not (name == "as_tensor" and isinstance(args[0], torch.Tensor)):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Looks(TorchDispatchMode):
    """The same for kernels, whoever calls them."""

    KERNELS = ("_local_scalar_dense", "nonzero", "is_nonzero", "_unique2", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.KERNELS:
            self.found.append(name)
        masks = [index for index in args[1] if index is not None] if name in ("index", "index_put_") else []
        if any(index.dtype == torch.bool for index in masks):
            self.found.append(f"{name} with a mask")
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(found: list[str]) -> Iterator[None]:
    waits, looks = Waits(), Looks()
    with waits, looks:
        yield
    found += waits.found + looks.found


MODELS = {
    "hivit": "hivit_atto --img-size 32",
    "hiera": "hiera_atto --img-size 64",
    "green_swin": "green_swin_atto --img-size 64",
    "vit": "vit_tiny_patch16_224 --img-size 32 --mask-ratio 0.5",
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("more", ["", "--clip 1 --accumulate 2"], ids=["plain", "clipped"])
def test_the_host_does_not_wait_inside_a_step(
    tmp_path: Path, model: str, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, found = run_of(tmp_path, *shlex.split(f"--model {model} {more}")), []
    with run.recorded():
        run.step(1, [])  # makes the optimiser's state
        batches = [next(run.stream) for _ in range(run.options.accumulate)]
        run.stream = iter((images, columns, None) for images, columns, _ in batches)
        for module in (masking, groups):
            monkeypatch.setattr(module, "on_host", lambda keep: False)  # as if the mask were on a GPU
        with watched(found):
            run.step(2, [])
    assert found == []


@pytest.mark.parametrize("wait", [lambda loss: loss.item(), lambda loss: loss.new_tensor([1.0]), bool, torch.nonzero])
def test_a_wait_would_be_seen(tmp_path: Path, wait: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run, found = run_of(tmp_path, *HIVIT), []
    agree = pretraining.agree_on_step
    monkeypatch.setattr(pretraining, "agree_on_step", lambda loss, *rest: (wait(loss), agree(loss, *rest))[1])
    with run.recorded(), watched(found):
        run.stream = iter([next(run.stream)])
        found.clear()
        run.step(1, [])
    assert found


TUNE = {
    "model": "hivit_atto", "img_size": 32, "pretrained": False, "method": "finetune", "device": "cpu", "epochs": 1,
    "warmup": 0, "batch_size": 500, "workers": 0, "erase": 0.25, "seed": 1,
}  # fmt: skip


def test_the_host_does_not_wait_in_fine_tuning_either(monkeypatch: pytest.MonkeyPatch) -> None:
    step, found = FineTune._step, []

    def alone(self: Any, number: int) -> Any:
        whole = self.batches
        self.batches = iter([next(whole) for _ in range(self.settings.accumulate)])
        with watched(found if number else []):  # the first step makes the optimiser's state
            taken = step(self, number)
        self.batches = whole
        return taken

    monkeypatch.setattr(FineTune, "_step", alone)
    result = evaluate.run(data="digits", **TUNE, accumulate=2, clip=1.0, ema=0.9)
    assert result["settings"]["computed in"] == "float32"
    assert found == []


def test_numbers_that_come_a_step_late_are_those_of_their_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = trained(tmp_path / "now", *HIVIT, "--steps", "5", "--save-steps", "3")
    made = pretraining.Run.__init__

    def late(self: pretraining.Run, *args: Any) -> None:
        made(self, *args)
        self.behind = 1

    monkeypatch.setattr(pretraining.Run, "__init__", late)
    assert same(now, trained(tmp_path / "late", *HIVIT, "--steps", "5", "--save-steps", "3"))
    logs = [
        [(note["step"], note["loss"], note["lr"], note["norm"]) for note in read_log(tmp_path / name)]
        for name in ("now", "late")
    ]
    assert logs[0] == logs[1]
    assert [step for step, *_ in logs[0]] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_compiled_training_is_one_graph_and_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a step that follows a look at images nor the look itself makes another graph.

    The graph is run as it was traced: what Inductor would make of it takes minutes, and is torch's business.
    """
    argv = [
        *HIVIT,
        *shlex.split("--model-kwargs 'depths=(1, 0, 1)' --steps 3 --opt momentum --lr 0.1 --look-every 0.01"),
    ]
    plain = trained(tmp_path / "a", *argv)
    asked, compile = [], nn.Module.compile

    def traced(self: nn.Module, **how: Any) -> None:
        asked.append(how.pop("mode"))
        compile(self, **how, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", traced)
    counters.clear()  # of the tests before
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = trained(tmp_path / "b", *argv, "--compile", "reduce-overhead")
    assert len(list((tmp_path / "b" / "looks").iterdir())) == 2
    assert asked == ["reduce-overhead"]
    assert counters["stats"]["unique_graphs"] == 1
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=0, atol=1e-5)


# ---- steps that are left out


@pytest.mark.parametrize(("name", "on_device"), [("adamw", True), ("adam", True), ("lamb", False), ("momentum", False)])
def test_a_bad_step_changes_nothing(name: str, on_device: bool) -> None:
    model = nn.Linear(4, 3)
    optimizer = make_optimizer(model, name, 0.1, (0.9, 0.95))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert decides_on_device(optimizer) == on_device
    for group in optimizer.param_groups:
        group["lr"] = 0.1

    def everything() -> list[torch.Tensor]:
        states = [value for state in optimizer.state.values() for value in state.values()]
        return [x.clone() for x in (*model.parameters(), *states) if isinstance(x, torch.Tensor)]

    for _ in range(2):  # the first step that is taken makes the state
        model(torch.ones(1, 4)).sum().backward()
        take_step(optimizer, scaler, torch.tensor(False))
        before = everything()
        for p in model.parameters():
            p.grad = torch.full_like(p, torch.nan)
        take_step(optimizer, scaler, torch.tensor(True))
        assert all(map(torch.equal, before, everything()))
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        take_step(optimizer, scaler, torch.tensor(False))
        assert not any(map(torch.equal, before, everything()))


def test_a_run_of_another_device_goes_on_with_the_kernels_of_this_one(tmp_path: Path) -> None:
    argv = [*HIVIT, "--steps", "4"]
    trained(tmp_path, *argv, "--stop-after", "2")
    [file] = snapshots.found(tmp_path / "checkpoints")
    state = snapshots.load(file)
    assert state["optimizer"]["param_groups"]
    for group in state["optimizer"]["param_groups"]:
        assert group["fused"] is True
        group["fused"] = None  # of a device without such kernels, or of an older version
    run = run_of(tmp_path / "other", *argv)
    run.resume(snapshots.Begun(file, state))
    assert decides_on_device(run.optimizer)


def test_a_first_step_that_is_left_out_leaves_a_fresh_optimiser() -> None:
    """The second step is then the first one."""
    torch.manual_seed(0)
    a, b = nn.Linear(4, 3), nn.Linear(4, 3)
    b.load_state_dict(a.state_dict())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for model, verdicts in ((a, (True, False)), (b, (False,))):
        optimizer = make_optimizer(model, "adamw", 0.1, (0.9, 0.95))
        for bad in verdicts:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = 0.1
            (model(torch.ones(1, 4)).sum() * (torch.nan if bad else 1)).backward()
            take_step(optimizer, scaler, torch.tensor(bad))
    assert same(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("most", [None, 0.5, 100.0])
def test_gradients_are_scaled_only_where_asked(most: float | None) -> None:
    model = nn.Linear(4, 3)
    model(torch.ones(1, 4)).sum().backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    norm = gradient_norm(model.parameters(), most)
    torch.testing.assert_close(norm, torch.cat([g.flatten() for g in before]).norm())
    after = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    torch.testing.assert_close(after, torch.tensor(most) if most == 0.5 else norm)


# ---- memory


def test_checkpointed_blocks_give_the_same_bits(tmp_path: Path) -> None:
    argv = shlex.split("--model hiera_atto --img-size 64 --drop-path 0.3 --steps 2")
    assert same(trained(tmp_path / "a", *argv), trained(tmp_path / "b", *argv, "--grad-checkpointing"))


@pytest.mark.parametrize("name", ["hivit_atto", "hiera_atto", "green_swin_atto", "vit_tiny_patch16_224"])
def test_no_block_keeps_its_activations(name: str) -> None:
    mae = create_mae(name, recipe={"depth": 2, "dim": 32, "heads": 2}, img_size=64, mask_ratio=0.5)
    images = torch.randn(1, 3, 64, 64)

    def kept() -> int:
        values = 0

        def pack(x: torch.Tensor) -> torch.Tensor:
            nonlocal values
            values += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            mae(images)
        return values

    before = kept()
    mae.set_grad_checkpointing()
    assert kept() < 0.5 * before
    mae.set_grad_checkpointing(False)
    assert kept() == before


# ---- precision, graphs


def test_auto_is_bf16_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert chosen_amp("auto", CPU) == "none"
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        assert chosen_amp("auto", gpu) == ("bf16" if able else "none")
    assert [chosen_amp(amp, gpu) for amp in ("none", "bf16", "fp16")] == ["none", "bf16", "fp16"]


def test_products_in_tf32_are_said_and_end_with_the_command() -> None:
    before = torch.get_float32_matmul_precision()
    with restored():
        assert train_in(CPU, "none") == "float32"
        assert torch.get_float32_matmul_precision() == before
        assert train_in(torch.device("cuda"), "none") == "float32, float32 products in TF32"
        assert torch.get_float32_matmul_precision() == "high" != before
    assert torch.get_float32_matmul_precision() == before


def test_a_run_says_how_it_computes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "out", *HIVIT, "--steps", "1")
    assert "computed in float32" in capsys.readouterr().err


@pytest.mark.parametrize("mode", RECORDING)
def test_gradients_of_several_passes_lie_outside_of_graphs(mode: str) -> None:
    model = nn.Linear(4, 3)
    assert not hold_gradients(model.parameters(), mode, 1)
    assert not hold_gradients(model.parameters(), None, 2)
    assert all(p.grad is None for p in model.parameters())
    assert hold_gradients(model.parameters(), mode, 2)
    places = [p.grad.data_ptr() for p in model.parameters() if p.grad is not None]
    for _ in range(2):
        model(torch.ones(1, 4)).sum().backward()
    assert [p.grad.data_ptr() for p in model.parameters() if p.grad is not None] == places
    assert model.bias.grad is not None
    assert model.bias.grad.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "command",
    [
        (pretrain, "digits --model hivit_atto -o out --device cpu"),
        (evaluate, "digits --train digits --model hivit_atto --method finetune --device cpu"),
        (benchmark, "hivit_atto --device cpu"),
    ],
)
def test_graphs_of_a_gpu_are_not_recorded_elsewhere(command: tuple[Any, str]) -> None:
    """torch would run each step as it is, unnoticed."""
    verb, words = command
    with pytest.raises(ValueError, match="--compile cudagraphs records what a GPU does, and cpu is none"):
        verb.main([*words.split(), "--compile", "cudagraphs"])


def test_modes_are_those_of_torch_and_its_backend() -> None:
    assert [how(mode) for mode in COMPILE] == [*({"mode": mode} for mode in COMPILE[:-1]), {"backend": "cudagraphs"}]
    assert set(RECORDING) < set(COMPILE)


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        (["--compile", "digits"], "default"),
        (["digits", "--compile"], "default"),
        (["--compile", "max-autotune", "digits"], "max-autotune"),
        (["--compile=reduce-overhead", "digits"], "reduce-overhead"),
        (["digits"], None),
    ],
)
def test_a_mode_may_be_left_out_wherever_compile_stands(words: list[str], mode: str | None) -> None:
    options = pretrain.VERB.parse([*words, "--model", "hivit_atto", "-o", "out"])
    assert (options.data, options.compile) == ("digits", mode)
    with pytest.raises(ValueError, match="fastest"):
        pretrain.VERB.parse(["digits", "--compile", "fastest", "--model", "hivit_atto", "-o", "out"])


def test_a_run_that_diverges_leaves_a_log_that_is_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"step 3: 2 steps in a row were not finite \(--max-nonfinite 1\)"):
        trained(tmp_path, *HIVIT, *shlex.split("--steps 9 --lr 1e30 --max-nonfinite 1"))

    def refuse(word: str) -> None:
        raise AssertionError(word)

    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"] is None, line["norm"] is None) for line in lines] == [
        (1, False, False),
        (2, True, True),
        (3, True, True),
    ]
