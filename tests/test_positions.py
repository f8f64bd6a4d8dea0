"""Learned positions of other sizes: by products of matrices, in every graph, and none at a model's own size."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

import hiermim_zoo  # noqa: F401
from hiermim_zoo.geometry import linear_weights
from hiermim_zoo.layers.position import resample_bias_table, resample_positions

GRIDS = [((14, 14), (16, 20)), ((4, 6), (1, 2)), ((7, 9), (7, 18)), ((1, 3), (5, 2)), ((56, 8), (40, 13))]


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_positions_are_those_of_timm(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = torch.randn(1, old[0] * old[1], 8)
    found = resample_positions(table, old, new)
    expected = resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # timm's own coordinates are rounded to float32
    grid = table.double().unflatten(1, old).permute(0, 3, 1, 2)
    exact = F.interpolate(grid, size=new, mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-6)
    other = F.interpolate(grid, size=new, mode="bicubic").flatten(2).mT
    assert (found - other).abs().max() > 1e-3, "negative control"


def test_positions_of_frames_are_resampled_frame_by_frame() -> None:
    """timm's function takes one table, and mixes the channels of several."""
    tables = torch.randn(3, 20, 8)
    found = resample_positions(tables, (4, 5), (6, 3))
    for one, table in zip(found, tables, strict=True):
        torch.testing.assert_close(one[None], resample_positions(table[None], (4, 5), (6, 3)))


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 3)), ((7, 7), (14, 14)), ((6, 2), (1, 5))])
def test_bias_tables_are_interpolated_over_the_offsets(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = torch.randn((2 * old[0] - 1) * (2 * old[1] - 1), 3)
    grid = table.T.reshape(1, 3, 2 * old[0] - 1, 2 * old[1] - 1).double()
    expected = F.interpolate(grid, size=[2 * s - 1 for s in new], mode="bicubic", align_corners=False)[0]
    torch.testing.assert_close(resample_bias_table(table, old, new).double(), expected.flatten(1).T, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("old", "new"), [(8, 4), (4, 8), (1, 3), (5, 7)])
def test_linear_weights_are_linear_interpolation(old: int, new: int) -> None:
    table = torch.randn(1, 3, old, dtype=torch.float64)
    torch.testing.assert_close(table @ linear_weights(old, new).T, F.interpolate(table, size=new, mode="linear"))


def test_half_precision_and_autocast_round_once() -> None:
    table = torch.randn(1, 16, 8)
    exact = resample_positions(table, (4, 4), (6, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resample_positions(table, (4, 4), (6, 5)), exact)
    half = table.bfloat16()
    assert torch.equal(
        resample_positions(half, (4, 4), (6, 5)), resample_positions(half.float(), (4, 4), (6, 5)).bfloat16()
    )


def test_gradients_pass_through_a_graph_that_leaves_the_size_open() -> None:
    """One graph for all sizes, the table's own among them, and the same gradients as without one."""
    table = torch.randn(1, 16, 8, requires_grad=True)

    def resampled(x: Tensor) -> Tensor:
        return resample_positions(table, (4, 4), x.shape).square().sum() + x.sum()

    graphs = CompileCounterWithBackend("aot_eager")
    graph = torch.compile(resampled, dynamic=True, fullgraph=True, backend=graphs)
    for size in ((5, 7), (4, 4), (6, 3)):
        x = torch.randn(size)
        (found,), (expected,) = (torch.autograd.grad(f(x), table) for f in (graph, resampled))
        torch.testing.assert_close(found, expected)
    assert graphs.frame_count == 1


def test_a_model_at_its_own_size_resamples_nothing() -> None:
    """Those of the other families: tests/neighbours."""
    model = timm.create_model("hivit_atto", depths=(1, 1, 1), num_classes=5).eval()

    def resamplings(side: int) -> int:
        program = torch.export.export(model, (torch.randn(1, 3, side, side),))
        return sum(node.kwargs.get("dtype") == torch.float64 for node in program.graph.nodes)

    assert resamplings(64) == 0
    assert resamplings(96) > 0, "negative control"
