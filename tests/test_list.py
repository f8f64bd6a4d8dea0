"""Which weights there are: the command ``list``, ``hiermim_zoo.list_models``, licences, and what cards say of them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors import safe_open

import hiermim_zoo
from hiermim_zoo.checkpoints import catalogue, manifest
from hiermim_zoo.checkpoints.card import licensing
from hiermim_zoo.checkpoints.layouts import find_layout
from hiermim_zoo.checkpoints.licenses import COMMERCIAL, commercial_use
from hiermim_zoo.checkpoints.manifest import Weights
from hiermim_zoo.commands import cataloguing
from hiermim_zoo.commands.listing import HEADS
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.list import main, run
from hiermim_zoo.models.family import family_of
from hiermim_zoo.models.listing import architectures

ROOT = Path(__file__).parents[1]
ALL = list(manifest.records())
EMBEDDED = [name for name, row in manifest.records().items() if row.file]
OURS = [name for name, row in manifest.records().items() if not row.timm]
FREE = ("apache-2.0", "mit")
# A licence that forbids commercial use may hold for these, too.
CONTESTED = ["hivit_base.mae_in1k_ft_in1k", "hivit_base.mae_in1k", "hiera_lite.mae_distill_in1k_ft_in1k"]


def names(**options: Any) -> list[str]:
    return [record["name"] for record in run(**options)]


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    main(words)
    return capsys.readouterr().out


# ---- the command


def test_the_table_has_a_line_for_each_set_of_weights_and_fits(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys).splitlines()
    assert [line.split()[0] for line in lines[: len(ALL) + 1]] == ["weights", *ALL]
    assert max(map(len, lines)) <= 120
    assert lines[0].split() == list(HEADS)
    [hiera] = (line for line in lines if line.startswith("hiera_tiny.mae_in1k_ft"))
    said = "hiera_tiny.mae_in1k_ft_in1k 27.9 M ~112 MB cc-by-nc-4.0 no 82.8 0.875 authors web"
    assert " ".join(hiera.split()) == said
    [hivit] = (line for line in lines if line.startswith("hivit_small.sup"))
    assert " ".join(hivit.split()).endswith("~150 MB mit yes 83.5 - VMamba Drive")


def test_records_are_what_json_says(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(patterns="hiera_tiny.mae_in1k_ft_in1k", json=True)
    assert capsys.readouterr().out == ""
    assert json.loads(printed(capsys, "hiera_tiny.mae_in1k_ft_in1k", "--json")) == found
    [record] = found
    assert record["accuracies"] == [
        {"top1": 82.8, "by": "the authors", "crop": 0.875},
        {"top1": 82.786, "by": "timm", "crop": 0.9},
    ]
    assert (record["parameters"], record["bytes"], record["here"]) == (27_910_216, None, None)
    assert (record["commercial_use"], record["license"]) == (False, "cc-by-nc-4.0")
    [embedded] = run(patterns="hivit_atto.mae_cifar10")
    assert Path(embedded["here"]).stat().st_size == embedded["bytes"]
    assert embedded["commercial_use"] is True


@pytest.mark.parametrize(
    "pattern", ["hivit*", "hiera_base", "*.mae_in1k", "hpvit_*.mae_*_ft_*", "green_swin_base_win14"]
)
def test_patterns_are_timms(pattern: str) -> None:
    theirs = {name for name in timm.list_models(pattern, pretrained=True) if name in ALL}
    assert theirs
    found = [name for name in names(patterns=pattern) if name in OURS]
    assert found == [name for name in ALL if name in theirs], "in the order of the manifest"


def test_options_choose_together() -> None:
    assert names(patterns=("hivit_base", "hivit_atto")) == [
        name for name in ALL if name.startswith(("hivit_base.", "hivit_atto."))
    ]
    assert names(family="green") == [name for name in ALL if name.startswith("green_")]
    assert names(license="CC-by-nc*", family="hpvit") == [
        f"hpvit_{size}.mae_in1k{end}" for end in ("", "_ft_in1k") for size in ("base", "large", "huge")
    ]
    assert names(here=True) == EMBEDDED
    assert names(commercial=True) == [
        name for name in ALL if manifest.records()[name].license in FREE and name not in CONTESTED
    ]
    million = manifest.parameters()["hiera_tiny.mae_in1k"] / 1e6
    assert names(size=(million, million)) == ["hiera_tiny.mae_in1k"], "both ends count"


def test_weights_and_models_are_of_the_same_families() -> None:
    for name in OURS:
        row = manifest.records()[name]
        assert row.family == family_of(row.arch).name, name


def test_what_is_in_the_store_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIERMIM_WEIGHTS", str(tmp_path))
    assert "hiera_tiny" not in hiermim_zoo.list_models(here=True)
    (tmp_path / "hiera_tiny.mae_in1k.safetensors").write_bytes(b"")
    assert names(here=True, patterns="hiera_*") == [
        name for name in ALL if name.startswith("hiera_atto") or name == "hiera_tiny.mae_in1k"
    ]
    assert catalogue.where(manifest.records()["hiera_tiny.mae_in1k"]) == "here"
    assert catalogue.where(manifest.records()["hiera_tiny.mae_in1k"], look=False) == "web"
    assert "hiera_tiny" in hiermim_zoo.list_models(here=True)
    assert "hiera_tiny.mae_in1k" not in hiermim_zoo.list_models(here=False, pretrained=True)
    assert "hiera_tiny.mae_in1k_ft_in1k" in hiermim_zoo.list_models(here=False, pretrained=True)


def test_options_that_leave_nothing_are_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(lambda: main(["--commercial", "--size", "100", "150"]))
    out, err = capsys.readouterr()
    assert out.split() == list(HEADS)
    [line] = err.splitlines()
    assert f"there are {len(ALL)}: hivit*, hpvit*, hiera*, hiera_sam2*, green*, vit*" in line
    assert printed(capsys, "--commercial", "--size", "100", "150", "--json") == "[]\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patterns": "hivit"}, "PATTERN hivit fits no weights; near it are hivit_small, hivit_base, hivit_atto"),
        ({"patterns": "hiera_bse"}, "PATTERN hiera_bse fits no weights; near it are hiera_base, "),
        ({"patterns": ("hivit*", "qqq")}, "PATTERN qqq fits no weights; there are hivit*, "),
        (
            {"family": "resnet"},
            "--family resnet: no weights are of it; there are hivit, hpvit, hiera, hiera_sam2, green, vit",
        ),
        ({"license": "gpl*"}, "--license gpl*: no weights have it; there are apache-2.0, cc-by-nc-4.0, mit"),
        ({"size": (3, 1)}, "--size 3 1: the first number must not be above the second"),
    ],
)
def test_names_that_fit_nothing_are_refused(
    options: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        run(**options)
    words = [word for name, value in options.items() for word in ([] if name == "patterns" else [f"--{name}"])]
    values = [v for value in options.values() for v in (value if isinstance(value, tuple) else (value,))]
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main([*words, *map(str, values)]))
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert said in line


def test_parameters_are_those_of_the_files() -> None:
    """Counted on models without values; the files hold the values."""
    assert list(manifest.parameters()) == ALL
    for name in EMBEDDED:
        with safe_open(ROOT / "weights" / manifest.records()[name].file, "pt") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118 # no mapping
        values, counted = sum(map(math.prod, shapes)), manifest.parameters()[name]
        if manifest.records()[name].classes:
            assert values == counted, name
        else:  # what pre-training does not train, such as tables of positions, may be missing
            assert 0.99 * counted < values <= counted, name


# ---- list_models


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize(
    ("filter", "excluded"),
    [
        ("", ""),
        ("hiera*", ""),
        ("hiera*", "*video*"),
        (["hivit_*", "*swin*"], ["*atto*"]),
        ("*.mae_in1k", ""),
        ("vit*", ""),
    ],
)
def test_list_models_is_timms_of_our_models(filter: Any, excluded: Any, pretrained: bool) -> None:
    theirs = timm.list_models(filter, pretrained=pretrained, exclude_filters=excluded)
    ours = set(architectures())
    found = hiermim_zoo.list_models(filter, pretrained=pretrained, exclude_filters=excluded)
    assert found == [name for name in theirs if name.partition(".")[0] in ours]
    assert bool(found) == (filter != "vit*" and (pretrained or filter != "*.mae_in1k"))


def test_list_models_is_in_natural_order() -> None:
    found = hiermim_zoo.list_models("green_swin_*", pretrained=True)
    assert found.index("green_swin_base.mae_in1k") < found.index("green_swin_base_win14.mae_in1k")
    assert found[0].startswith("green_swin_atto")


def test_list_models_knows_licences() -> None:
    allowed = hiermim_zoo.list_models(commercial=True, pretrained=True)
    assert {manifest.records()[name].license for name in allowed} == set(FREE)
    forbidden = hiermim_zoo.list_models(commercial=False, pretrained=True)
    assert {manifest.records()[name].license for name in forbidden} == {"cc-by-nc-4.0"}
    assert sorted([*allowed, *forbidden, *CONTESTED]) == sorted(OURS)
    assert hiermim_zoo.list_models("hivit*", license="mit") == ["hivit_base", "hivit_small"]


# ---- licences and cards


def test_every_licence_of_the_manifest_is_in_the_table() -> None:
    for row in manifest.records().values():
        assert row.license in COMMERCIAL, row.name
    assert all(allowed is not True for license, allowed in COMMERCIAL.items() if "-nc" in license)
    assert commercial_use("Apache-2.0") is True
    assert commercial_use("see the file LICENSE") is None
    assert [commercial_use("mit", also) for also in ("", "apache-2.0", "cc-by-nc-4.0")] == [True, True, None]


def test_the_cards_list_what_may_be_used_commercially() -> None:
    text = cataloguing.commercial()
    table, _, asked = text.partition("\nOf these it is not clear")
    assert re.findall(r"^\| \[([\w.]+)\]", table, re.MULTILINE) == names(commercial=True)
    assert re.findall(r"\[([\w.]+)\]", asked) == CONTESTED


def test_links_of_the_cards_lead_to_their_sections() -> None:
    text = (ROOT / "MODEL_CARDS.md").read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert set(links) <= headings
    assert len(set(links)) == len(ALL)


def test_each_card_has_three_lines_that_make_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    text = "\n".join(map(cataloguing.section, manifest.records().values()))
    whole: list[tuple[str, bool]] = []
    monkeypatch.setattr(timm, "create_model", lambda arch, pretrained: asked.append((arch, pretrained)))
    monkeypatch.setattr(hiermim_zoo, "create_mae", lambda arch, pretrained: whole.append((arch, pretrained)))
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        assert len(list(filter(None, code.splitlines()))) == 3 - ("local-dir:DIR" in code or "create_mae" in code)
        exec(code, {})
    assert asked == [(name if name in OURS else "local-dir:DIR", True) for name in ALL]
    made = re.findall(r"hiermim_zoo\.convert (\S+) (--mae )?-o DIR\n```\n", text)
    with_decoder = [name for name in ALL if name not in OURS and "_ft_" not in name]
    assert [name for name, _ in made] == [name for name in ALL if name not in OURS]
    assert [name for name, mae in made if mae] == with_decoder
    assert whole == [(name, True) for name in with_decoder]


def test_figures_say_their_crop() -> None:
    """All of them but those whose source does not."""
    silent = [row.name for row in manifest.records().values() for one in row.accuracies if one.crop is None]
    assert silent == [
        "hivit_small.sup_in1k",
        "hiera_lite.mae_distill_in1k_ft_in1k",
        "green_swin_base_win6.simmim_mm_in1k_ft_in1k",
    ]
    for row in manifest.records().values():
        assert all(f"{one.top1:g} % (crop " in cataloguing.section(row) for one in row.accuracies)
        if row.file and row.top1:
            assert row.top1_crop == timm.get_pretrained_cfg(row.name).crop_pct, "measured by evaluate"


@pytest.mark.parametrize(("size", "top1"), [("base", 83.664), ("large", 85.952), ("huge", 86.928)])
def test_the_plain_vits_figures_are_no_figures_of_what_is_made_of_them(size: str, top1: float) -> None:
    row = manifest.records()[f"hpvit_{size}.mae_in1k_ft_in1k"]
    assert row.accuracies == ()
    assert f"The plain ViT reaches {top1} % top-1 with a crop of 0.875 (the authors)" in row.note


def test_a_card_warns_of_licences() -> None:
    assert licensing("apache-2.0", "") == ""
    assert "non-commercial use only (cc-by-nc-4.0)" in licensing("cc-by-nc-4.0", "")
    assert "No licence is stated" in licensing("unstated", "")
    note = find_layout("vit_mae_transformers").license_note
    assert licensing("apache-2.0", note) == f"\nAbout the licence: {note}\n"
    assert "cards of facebook/vit-mae-* say apache-2.0, but MAE's authors say cc-by-nc-4.0" in note
    for layout in ("vit_timm", "vit_mae", "vit_mae_mmpretrain"):
        assert find_layout(layout).license_note == ""
    for row in manifest.records().values():
        said = cataloguing.section(row)
        both = "facebookresearch/mae" in row.source and "_ft_" not in row.name
        assert ("say apache-2.0" in said) == both, row.name
        taken = "sunsmarterjie zhangxiaosong18 LayneH microsoft/SimMIM MAE-Lite"
        assert ("The file states no licence" in said) == any(one in row.source for one in taken.split()), row.name
        assert ("ask the authors before commercial use" in said) == (row.name in CONTESTED), row.name


@pytest.mark.parametrize(
    ("bytes", "said"), [(1_234, "0.00 MB"), (2_051_584, "2.05 MB"), (85_600_000, "85.6 MB"), (2_540_000_000, "2.54 GB")]
)
def test_sizes_in_words(bytes: int, said: str) -> None:
    row = Weights("a.b", "o/a", "layout", "mit", "us", "1", bytes=bytes)
    assert catalogue.size_of(row, None) == said
    assert catalogue.size_of(Weights("a.b", "o/a", "layout", "mit", "us", "1"), 25_000_000) == "~100 MB"
    assert catalogue.size_of(Weights("a.b", "o/a", "layout", "mit", "us", "1"), None) == "-"


def test_tags_of_timms_own_models_say_what_loads_them(capsys: pytest.CaptureFixture[str]) -> None:
    """``timm.create_model`` refuses them; what is said instead works without classes, or by way of a folder."""
    shown = {one["name"]: one["load"] for one in run(patterns="*")}
    capsys.readouterr()
    for name, row in manifest.records().items():
        by_timm = f'timm.create_model("{name}", pretrained=True)'
        assert (shown[name] == by_timm) == (not row.timm)
        assert not row.timm or ("create_mae" in shown[name]) == (not row.classes)
    for pattern, said in (("vit*", True), ("hivit*", False)):
        main([pattern])
        out = capsys.readouterr().out
        assert ("timm.create_model knows no such tags" in out) == said
        assert ('timm.create_model("local-dir:DIR", pretrained=True)' in out) == said
