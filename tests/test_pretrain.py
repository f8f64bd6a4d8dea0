"""hiermim_zoo.pretrain: a run says what happened, and leaves an encoder that timm loads."""

from __future__ import annotations

import functools
import itertools
import json
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import hiermim_zoo
from hiermim_zoo import pretrain
from hiermim_zoo.layers import groups
from hiermim_zoo.mae import MAEOutput, MaskedAutoencoder, create_mae
from hiermim_zoo.training import optimizer as optim
from hiermim_zoo.training import pretraining, snapshots
from hiermim_zoo.training.defaults import family_values
from hiermim_zoo.training.run_log import read_log
from hiermim_zoo.training.schedule import Schedule

from .forks import Forks
from .runs import DECODER, SHORT, SMALL, TWIN, largest_difference, train, weights

Command = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def command(forked: Forks) -> Command:
    """The command in processes of its own; as torchrun starts it: tests/test_processes.py and tests/test_twins.py."""
    return functools.partial(forked.command, "hiermim_zoo.pretrain")


# ---- a run and what it leaves


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on digits, with looks."""
    output = tmp_path_factory.mktemp("runs") / "out"
    torch.set_num_threads(1)
    more = shlex.split("--batch-size 64 --epochs 2 --lr 2e-3 --look-every 1 --log-steps 5 --license mit")
    pretrain.main(["digits", *SMALL, "-o", str(output), *more])
    return output


def test_the_loss_falls(finished: Path) -> None:
    losses = [note["loss"] for note in read_log(finished) if "loss" in note]
    assert losses[-1] < 0.9 * losses[0]


def test_the_log_says_what_a_person_wants_to_know(finished: Path) -> None:
    notes = read_log(finished)
    lines = [note for note in notes if "loss" in note]
    assert [note["step"] for note in lines] == [*range(5, 46, 5), 46]
    assert all(note["images_s"] > 0 and note["gib"] > 0 and 0 <= note["waiting"] <= 1 for note in lines)
    assert lines[-1]["epoch"] == 2.0
    assert [note["step"] for note in notes if "knn" in note] == [23, 46]
    assert all(note["knn"] > 20 for note in notes if "knn" in note)  # chance is 10


def test_images_are_drawn_of_what_the_autoencoder_makes(finished: Path) -> None:
    drawn = sorted(finished.glob("looks/*.png"))
    assert [path.name for path in drawn] == ["step-00000023.png", "step-00000046.png"]
    first, second = (np.asarray(Image.open(path)) for path in drawn)
    assert first.shape == second.shape
    assert (first != second).any()


@pytest.mark.parametrize("masks", ["", "sample", "batch", "step"])
def test_images_of_a_micro_batch_or_a_step_share_a_mask_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masks: str
) -> None:
    seen: list[Tensor] = []
    forward = MaskedAutoencoder.forward

    def noted(mae: MaskedAutoencoder, images: Tensor, keep: Tensor, *more: Any, **named: Any) -> MAEOutput:
        seen.append(keep)
        return forward(mae, images, keep, *more, **named)

    monkeypatch.setattr(MaskedAutoencoder, "forward", noted)
    options = ("--masks", masks) if masks else ()
    train(tmp_path / "out", "--img-size", "64", "--steps", "2", "--accumulate", "2", *options)
    _, *parts = seen  # before them, one look at what is trained
    shared = masks in ("batch", "step")
    assert [len(part) for part in parts] == [1 if shared else 4] * 4  # one row: the same for all
    assert shared or bool((parts[0] != parts[0][:1]).any())
    assert not torch.equal(parts[0], parts[2])
    assert torch.equal(parts[0], parts[1]) == torch.equal(parts[2], parts[3]) == (masks == "step")
    assert create_mae("hivit_atto", checkpoint=tmp_path / "out" / "encoder").recipe.masks == (masks or "sample")


def test_the_exported_encoder_is_the_trained_one_bit_for_bit(finished: Path) -> None:
    trained = weights(finished)
    exported = load_file(finished / "encoder" / "model.safetensors")
    assert exported.keys() == {name.removeprefix("encoder.") for name in trained if name.startswith("encoder.")}
    assert all(torch.equal(tensor, trained[f"encoder.{name}"]) for name, tensor in exported.items())
    decoder = load_file(finished / "encoder" / "decoder.safetensors")
    assert {**{f"encoder.{name}": tensor for name, tensor in exported.items()}, **decoder}.keys() == trained.keys()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in decoder.items())


@torch.inference_mode()
def test_timm_loads_the_encoder_and_create_mae_the_whole(finished: Path) -> None:
    mae = create_mae("hivit_atto", checkpoint=finished / "encoder").eval()  # decoder and size as the folder says
    assert largest_difference(mae.state_dict(), weights(finished)) == 0
    model = timm.create_model(f"local-dir:{finished / 'encoder'}", pretrained=True, num_classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.forward_features(images), mae.encoder.forward_features(images))
    assert list(model.pretrained_cfg["input_size"]) == [3, 32, 32]


def test_the_card_holds_how_the_weights_came_about(finished: Path) -> None:
    card = (finished / "encoder" / "README.md").read_text()
    losses = [note["loss"] for note in read_log(finished) if "loss" in note]
    for words in (
        "license: mit",
        "| data | `digits` |",
        "| epochs | `2.0` |",
        f"`{round(losses[-1], 4)}`",
        "nearest neighbours",
    ):
        assert words in card


def test_a_finished_run_goes_on_as_the_start_of_another(finished: Path, tmp_path: Path) -> None:
    started = train(
        tmp_path / "out", "--checkpoint", finished / "encoder", "--lr", "0", "--weight-decay", "0", "--steps", "1"
    )
    assert largest_difference(started, weights(finished)) == 0


@pytest.mark.parametrize("option", ["--max-snapshots", "--keep"])  # the second is its old name
def test_only_the_last_snapshots_stay(tmp_path: Path, option: str) -> None:
    train(tmp_path / "out", "--steps", "5", "--save-steps", "1", option, "2")
    assert [snapshots.step_of(path) for path in snapshots.found(tmp_path / "out" / "checkpoints")] == [4, 5]


# ---- from Python


def test_the_second_run_of_a_process_is_what_its_command_is(command: Command, tmp_path: Path) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert hiermim_zoo.pretrain.run(data="digits", output=tmp_path / "a", **TWIN) == tmp_path / "a" / "encoder"
    more = {"masks": "batch", "betas": (0.9, 0.98), "model_kwargs": {"mlp_ratio": 3.0}}
    left = hiermim_zoo.pretrain.run(data="digits", output=tmp_path / "b", **TWIN, **more)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    files = {file.name: file.read_bytes() for file in left.iterdir()}
    assert {"model.safetensors", "decoder.safetensors", "config.json", "README.md"} == set(files)
    said = json.loads(files["config.json"])["hiermim_zoo"]["command"]
    assert said.startswith("python -m hiermim_zoo.pretrain digits --workers 0 --model hivit_atto --img-size 32 32 ")
    (tmp_path / "b").rename(tmp_path / "c")
    done = command(*shlex.split(said)[3:])
    assert done.returncode == 0, done.stderr
    assert {file.name: file.read_bytes() for file in left.iterdir()} == files


def test_a_run_that_is_not_complete_returns_its_snapshot(tmp_path: Path) -> None:
    left = pretrain.run(data="digits", output=tmp_path, **TWIN, stop_after=1)
    assert left == snapshots.found(tmp_path / "checkpoints")[0]
    assert snapshots.step_of(left) == 1


def test_a_thread_can_train(tmp_path: Path) -> None:
    left: list[Path] = []
    options = {"data": "digits", "output": tmp_path, **TWIN, "workers": 1}
    thread = threading.Thread(target=lambda: left.append(pretrain.run(**options)))
    thread.start()
    thread.join()
    assert left == [tmp_path / "encoder"]


AGAIN = """
import os, sys, time
import torch.distributed as dist
import hiermim_zoo
from hiermim_zoo.training import distributed
if os.environ["RANK"] == "0":  # where the others meet: it is the last to leave, and they have begun the next run
    part = distributed.stop
    distributed.stop = lambda: (time.sleep(1), part())
for output in sys.argv[1:]:
    hiermim_zoo.pretrain.run(data="digits", output=output, **{TWIN})
    assert not dist.is_initialized()
"""


@pytest.mark.slow
def test_processes_part_and_meet_again(forked: Forks, tmp_path: Path) -> None:
    outputs = [tmp_path / "a", tmp_path / "b"]
    done = forked.run(AGAIN.replace("{TWIN}", repr(TWIN)), *outputs, processes=2)
    assert done.returncode == 0, done.stderr
    assert largest_difference(*map(weights, outputs)) == 0


# ---- several processes


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(command: Command, tmp_path: Path) -> None:
    """One step of gradient descent at rate 1 turns gradients into weights; fully sharded ones are the same."""
    argv = ("--steps", "1", "--opt", "momentum", "--lr", "1", "--weight-decay", "0")
    one, other = train(tmp_path / "one", *argv), train(tmp_path / "other", *argv, "--seed", "1")
    for name, more in (("two", ()), ("spread", ("--fsdp",))):
        done = command("digits", *SMALL, *argv, *more, "-o", tmp_path / name, processes=2)
        assert done.returncode == 0, done.stderr
        assert largest_difference(weights(tmp_path / name), one) < 1e-6
    assert largest_difference(other, one) > 1e-3


GREEN = ("--model", "green_swin_atto", "--img-size", "64", "--mask-ratio", "0.5", "--model-kwargs", "depths=(2,1,1,1)")


@pytest.mark.slow
def test_window_attention_is_sharded_block_by_block(command: Command, tmp_path: Path) -> None:
    """Two processes see the masks of one with two passes."""
    argv = (*GREEN, "--steps", "1", "--opt", "momentum", "--lr", "1", "--weight-decay", "0")
    one, other = (train(tmp_path / seed, *argv, "--accumulate", "2", "--seed", seed) for seed in "01")
    for name, more in (("two", ()), ("spread", ("--fsdp",))):
        done = command("digits", *SMALL, *argv, *more, "-o", tmp_path / name, processes=2)
        assert done.returncode == 0, done.stderr
        assert largest_difference(weights(tmp_path / name), one) < 1e-6
    assert largest_difference(other, one) > 1e-3


# ---- work that depends on the masks alone


@pytest.mark.parametrize("masks", ["batch", "step", "sample"])
def test_plans_are_made_by_the_workers_and_change_nothing(
    tmp_path: Path, masks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole run at once, and in two halves whose workers plan: bit for bit."""
    made, pack = [], groups.METHODS["pack"]
    monkeypatch.setitem(groups.METHODS, "pack", lambda keep, geometry: made.append(len(keep)) or pack(keep, geometry))
    argv = (*GREEN, "--masks", masks, "--steps", "4", "--accumulate", "2")
    whole = train(tmp_path / "whole", *argv)
    patterns = len(made) // 9  # the first look at what is trained, and two parts of four steps
    assert made == [1] * patterns + [4 if masks == "sample" else 1] * 8 * patterns
    made.clear()
    train(tmp_path / "halves", *argv, "--stop-after", "2", "--workers", "2")
    assert len(made) == patterns
    resumed = train(tmp_path / "halves", *argv, "--resume", "auto", "--workers", "2")
    assert largest_difference(whole, resumed) == 0
    monkeypatch.setattr(pretraining, "planned_ahead", lambda *args: None)
    assert largest_difference(whole, train(tmp_path / "late", *argv)) == 0


# ---- what is not finite


def test_a_step_that_is_not_finite_is_skipped_and_its_images_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agree, calls = pretraining.agree_on_step, []

    def second_is_bad(loss: Tensor, norm: Tensor, *args: Any) -> tuple[float, bool, int]:
        calls.append(loss)
        return agree(loss * (torch.nan if len(calls) == 2 else 1), norm, *args)

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(16):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
            folder / f"{i:02d}.png"
        )
    before = train(tmp_path / "short", "--steps", "2", "--epochs", "2", "--stop-after", "1", data=str(folder))
    monkeypatch.setattr(pretraining, "agree_on_step", second_is_bad)
    after = train(tmp_path / "out", "--steps", "2", "--epochs", "2", data=str(folder))
    assert largest_difference(before, after) == 0  # the second step changed nothing
    (listed,) = (tmp_path / "out" / "nonfinite").iterdir()
    assert "step 2:" in capsys.readouterr().err
    assert listed.name == "step-00000002-rank-0.txt"
    assert len({Path(line) for line in listed.read_text().splitlines()} & set(folder.iterdir())) == 8


def test_too_many_such_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"step \d+: 4 steps in a row were not finite \(--max-nonfinite 3\)"):
        train(tmp_path / "out", "--lr", "1e30", "--max-nonfinite", "3")


# ---- precision and speed


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_learns_the_same_more_or_less(tmp_path: Path, amp: str) -> None:
    full, mixed = train(tmp_path / "full", "--steps", "3"), train(tmp_path / "mixed", "--steps", "3", "--amp", amp)
    assert 0 < largest_difference(full, mixed) < 1e-2
    assert all(tensor.dtype == torch.float32 for tensor in mixed.values())


def test_a_plain_vit_is_trained_too(tmp_path: Path) -> None:
    argv = ("--model", "vit_tiny_patch16_224", "--img-size", "32", "64", "--steps", "2", "--mask-ratio", "0.5")
    kwargs = ("--model-kwargs", "embed_dim=96", "depth=2", "num_heads=3")
    pretrain.main(["digits", *argv, *kwargs, *DECODER, *SHORT, "-o", str(tmp_path / "out")])
    trained = weights(tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out' / 'encoder'}", pretrained=True, num_classes=0)
    assert all(torch.equal(tensor, trained[f"encoder.{name}"]) for name, tensor in model.state_dict().items())


def test_what_the_loss_does_not_reach_keeps_its_value(tmp_path: Path) -> None:
    trained = train(tmp_path / "out", "--steps", "2", "--lr", "1e-2")
    assert torch.equal(trained["encoder.fc_norm.weight"], torch.ones(96))
    assert not torch.equal(trained["fusion.norm.weight"], torch.ones_like(trained["fusion.norm.weight"]))


# ---- the schedule


def test_the_rate_rises_linearly_and_falls_like_a_cosine() -> None:
    schedule = Schedule(100, 10, 1.0, 0.1)
    rates = [schedule.at(step) for step in range(101)]
    assert rates[:11] == pytest.approx([i / 10 for i in range(11)])
    assert rates[55] == pytest.approx(0.55)  # half-way down from 1 to 0.1
    assert rates[100] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize(("warmup", "total"), [(0, 4), (1, 4), (2, 4), (10, 12), (100, 1000)])
def test_a_schedule_that_is_ahead_does_not_spoil_short_runs(warmup: int, total: int) -> None:
    """It begins with a fifth of the peak at most, and does not come back to a tenth of it."""
    rates = [Schedule(total, warmup, 1.0, ahead=50).at(step) for step in range(total)]
    assert rates[0] <= 0.2 or not warmup
    assert rates[-1] < max(0.1, Schedule(total, warmup, 1.0).at(total - 1) + 1e-9)
    assert max(rates) > 0.8


def test_a_run_that_ends_in_its_warm_up_is_ahead_too() -> None:
    assert [Schedule(3, 100, 1.0, ahead=5).at(step) for step in range(3)] == pytest.approx([0.05, 0.06, 0.07])


def test_recipes_of_the_papers_apply_where_nothing_is_said(tmp_path: Path) -> None:
    options = pretrain.VERB.parse(["digits", "--model", "vit_base_patch16_224", "-o", str(tmp_path)])
    filled = options.filled(family_values(options.model))
    assert (filled.epochs, filled.batch_size, filled.warmup, filled.lr) == (1600, 4096, 40, pytest.approx(2.4e-3))
    assert filled.betas == (0.9, 0.95)
    assert (options.epochs, options.lr) == (None, None)


def test_biases_and_norms_have_no_weight_decay_positions_and_mask_token_have() -> None:
    mae = create_mae("hivit_atto", recipe={"depth": 1, "dim": 32, "heads": 2})
    groups = optim.make_optimizer(mae, "adamw", 0.05, (0.9, 0.95)).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in mae.named_parameters():
        if parameter.requires_grad:
            assert (id(parameter) in decayed) == (parameter.ndim > 1), name


def test_a_run_is_remembered_by_those_that_go_on_from_it(tmp_path: Path) -> None:
    """Its share of hidden units, its decoder and its way of sharing masks, ever again, unless told otherwise."""
    short = ("digits", "--model", "hivit_atto", "--img-size", "32", *SHORT, "--steps", "1")
    pretrain.main([*short, *DECODER, "-o", str(tmp_path / "a"), "--mask-ratio", "0.5", "--masks", "batch"])
    go_on = (*short, "--checkpoint")
    pretrain.main([*go_on, str(tmp_path / "a" / "encoder"), "-o", str(tmp_path / "b")])
    for run in "ab":
        mae = create_mae("hivit_atto", checkpoint=tmp_path / run / "encoder")
        assert (mae.kept, mae.units) == (2, 4)
        assert (mae.recipe.mask_ratio, mae.recipe.masks, mae.recipe.depth, mae.recipe.dim) == (0.5, "batch", 1, 32)
    assert create_mae("hivit_atto", checkpoint=tmp_path / "b" / "encoder", mask_ratio=0.75).kept == 1
    pretrain.main([*go_on, str(tmp_path / "b" / "encoder"), "-o", str(tmp_path / "c"), "--mask-ratio", "0.75"])
    config = json.loads((tmp_path / "c" / "encoder" / "config.json").read_text())
    assert config["hiermim_zoo"]["recipe"] == {
        "depth": 1,
        "dim": 32,
        "heads": 2,
        "masks": "batch",
    }  # 0.75 is the family's


def test_unknown_values_of_a_recipe_are_refused() -> None:
    with pytest.raises(ValueError, match="recipe has no 'width'"):
        create_mae("hivit_atto", recipe={"width": 3})


def test_a_log_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert read_log(tmp_path) == [{"step": 1}]
