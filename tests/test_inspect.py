"""`inspect`, with and without a profile: what is printed, what is drawn, and which errors a wrong call ends with."""

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_runs import DIGITS, MODEL, Fails, model
from matplotlib.image import imread
from rich.console import Console
from safetensors.torch import save_file

import run_search
from objectives.cost.closed_form import CostModel
from objectives.cost.spec import Cost
from objectives.frames import MeasuredFrames
from objectives.profile import Profile
from search.report.heat_map import heat_table, write_heat_maps
from search.report.site_grid import format_error, grid_of
from search.terminal.frame_tables import format_schedule, frame_tables
from spaces.sites import Operator, Site, Space

NAME, KWARGS = MODEL[1], MODEL[2:]
IMAGES = ["--dataset", "digits", "--calibration-size", "64", "--workers", "0", "--device", "cpu"]
SITES = (
    Site(name="blocks.0.attn.qk", branch="blocks.0.attn", kind="query_key", choices=(4, 8, 12, 16)),
    Site(name="blocks.0.mlp.hidden", branch="blocks.0.mlp", kind="ffn_hidden", choices=(8, 32, 64)),
    Site(name="blocks.1.attn.qk", branch="blocks.1.attn", kind="query_key", choices=(4, 8, 12, 16)),
)
SPACE = Space(name="made", branches={site.branch: (Operator(name=site.part, sites=(site,)),) for site in SITES})
ERRORS = {
    "blocks.0.attn.qk": {4: 0.1, 8: 0.01, 12: 0.001, 16: 0.0},
    "blocks.0.mlp.hidden": {8: 0.2, 32: 3e-5, 64: 0.0},
    "blocks.1.attn.qk": {4: 0.5, 8: 0.05, 12: 0.0, 16: 0.0},
}


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert run_search.main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


# The heat map


def test_a_cell_is_the_error_at_the_nearest_size() -> None:
    assert grid_of(ERRORS, SPACE, 0.5) == {"0": {"attn.qk": 0.01, "mlp.hidden": 3e-5}, "1": {"attn.qk": 0.05}}
    assert grid_of(ERRORS, SPACE, 0.75)["1"] == {"attn.qk": 0.0}


@pytest.mark.parametrize(
    ("error", "text"), [(0.0, "0"), (0.0123, "0.012"), (1.234, "1.23"), (0.00123, "1.2e-3"), (1.2e-10, "1.2e-10")]
)
def test_errors_are_short(error: float, text: str) -> None:
    assert format_error(error) == text


def test_the_terminal_s_heat_map_reads_without_colours() -> None:
    written = StringIO(), StringIO()
    for file, colours in zip(written, (None, "truecolor"), strict=True):
        console = Console(width=80, file=file, force_terminal=bool(colours), color_system=colours)  # type: ignore[arg-type]
        console.print(heat_table(ERRORS, SPACE, 0.5))
    text, coloured = (file.getvalue() for file in written)
    assert re.search(r"0 +│ +0\.010 +│ +3\.0e-5", text)
    assert re.search(r"1 +│ +0\.050 +│ +– ", text)
    assert "\x1b" not in text
    assert len(set(re.findall(r"48;2;(\d+;\d+;\d+)", coloured))) == 3


@pytest.mark.parametrize("errors", [ERRORS, {name: dict.fromkeys(found, 0.0) for name, found in ERRORS.items()}])
def test_the_picture_has_a_colour_per_cell(tmp_path: Path, errors: dict[str, dict[int, float]]) -> None:
    write_heat_maps(tmp_path / "profile.png", Profile(closed=errors, measured={}, images=0), SPACE, r"$\frac{ title")
    pixels = imread(tmp_path / "profile.png")[..., :3]
    colours, counts = np.unique((255 * pixels).round().reshape(-1, 3), axis=0, return_counts=True)
    large = {tuple(colour) for colour, count in zip(colours, counts, strict=True) if count > 1500 and len(set(colour)) > 1}
    # At the three shares: 0.001, 3e-5 and 0; 0.01, 3e-5 and 0.05; 0.1, 0.2 and 0.5. Nothing has the colour of the least.
    assert len(large) == (7 if errors is ERRORS else 1)


# On the command line


def test_inspect_needs_no_images(capsys: pytest.CaptureFixture[str]) -> None:
    text = inspected(capsys, NAME, *KWARGS)
    assert "blocks.0.attn.qk" in text
    assert "reachable" in text


def test_a_profile_of_a_model(capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path) -> None:
    arguments: list[str | Path] = [
        NAME,
        *KWARGS,
        "--checkpoint",
        checkpoint,
        *IMAGES,
        "--output",
        tmp_path / "out",
        "--profile",
    ]
    text = inspected(capsys, *arguments)
    assert "measuring one site at a time: begins" in text
    assert "errors measured on 64 calibration images at up to 3 sizes of every site" in text
    (path,) = (tmp_path / "out" / "factors").glob("*.profile.json")
    profile = Profile.load(path, path.name.partition(".")[0])
    assert profile is not None
    for site, errors in profile.errors.items():
        (row,) = re.findall(rf"^ *{re.escape(site)} .*", text, re.MULTILINE)
        quarter = min(errors, key=lambda size: (abs(size / max(errors) - 0.25), size))
        assert re.search(
            rf" {quarter} +{format_error(profile.closed[site][quarter])} +{format_error(errors[quarter])}\*? +−", row
        )
    assert f"{sum(map(len, profile.measured.values()))} sizes" in text
    assert f"picture: {tmp_path / 'out' / 'profile.png'}" in text.replace("\n", "")
    assert imread(tmp_path / "out" / "profile.png").std() > 0.05
    assert "measuring" not in inspected(capsys, *arguments)


def test_without_measuring_the_closed_form_is_shown(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    arguments: list[str | Path] = [
        "--checkpoint",
        checkpoint,
        *IMAGES,
        "--output",
        tmp_path / "out",
        "--profile",
        "--profile-images",
        "0",
    ]
    text = inspected(capsys, NAME, *KWARGS, *arguments)
    assert "closed-form errors, not measured" in text
    assert "in the median" not in text


def test_a_profile_of_a_run(capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    assert "measuring" in inspected(capsys, finished, "--profile"), "the search did not need it"
    before = {path: path.stat().st_mtime_ns for path in (finished / "factors").iterdir()}
    assert "measuring" not in inspected(capsys, finished, "--profile")
    assert {path: path.stat().st_mtime_ns for path in (finished / "factors").iterdir()} == before
    assert (finished / "profile.png").exists()
    assert "reachable" in inspected(capsys, finished)


def test_a_profile_needs_images(fails: Fails, tmp_path: Path) -> None:
    line = fails("inspect", NAME, *KWARGS, "--profile", "--output", tmp_path / "out")
    assert line == "error: no images: give --data-dir with an image folder, or --dataset with a timm data set name"
    assert not (tmp_path / "out").exists()


def test_a_profile_of_other_weights_is_not_put_into_a_run(fails: Fails, finished: Path, tmp_path: Path) -> None:
    other = model()
    other.get_parameter("head.bias").data += 1
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    line = fails("inspect", finished, "--checkpoint", tmp_path / "other.safetensors", "--profile")
    assert "was searched with other weights or images than these: choose another --output" in line


def test_another_profile_does_not_continue_a_run(fails: Fails, finished: Path, checkpoint: Path) -> None:
    line = fails("launch", *MODEL, "--checkpoint", checkpoint, *DIGITS, "--output", finished, "--profile-images", "32")
    assert "was searched with profile_images=512, not 32: choose another --output" in line


def test_a_negative_number_of_images_is_refused(fails: Fails) -> None:
    assert "profile_images must be at least 0, got -1" in fails("inspect", NAME, *IMAGES, "--profile-images", "-1")


# Tokens and branches


def test_sites_of_tokens_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a model of 16 patches and two blocks that reads its class token; blocks.1 has the tail."""
    text = inspected(capsys, NAME, *KWARGS)
    assert re.search(r"blocks\.0\.tokens +│ merge +│ patch tokens +│ +16 │ 8, 9 … 15, 16 \(9\)", text)
    assert re.search(r"blocks\.1\.tokens +│ merge +│ patch tokens +│ +16 │ 0, 8 … 15, 16 \(10\)", text)
    assert re.search(r"blocks\.0\.mlp\.branch +│ drop +│ branches +│ +1 │ 0, 1 ", text)


def test_schedules_and_sets_of_branches_are_shown(capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path) -> None:
    """Every measured one, with its divergence, and whether merging pays."""
    given: list[str | Path] = [NAME, *KWARGS, "--checkpoint", checkpoint, *IMAGES, "--output", tmp_path / "out", "--profile"]
    text = inspected(capsys, *given)
    assert "measuring merged tokens: begins" in text
    assert "measuring without whole branches: begins" in text
    (path,) = (tmp_path / "out" / "factors").glob("*.frames.json")
    content = json.loads(path.read_text())
    assert len(content["schedules"]) > 1
    for entry in content["schedules"]:
        shape = format_schedule(tuple(entry["tokens"]))
        assert re.search(rf"^ *{shape} +[\d.]+ % +{re.escape(format_error(entry['error']))} ", text, re.MULTILINE), shape
    for entry in content["dropped"]:
        assert re.search(rf"{entry['branch']} +[\d.]+ % +{re.escape(format_error(entry['error']))}", text)
    assert "merging tokens: " in text


def test_a_schedule_is_short() -> None:
    assert format_schedule((16, 16, 12, 12, 12, 0)) == "16×2 12×3 0"
    assert format_schedule((9, 8)) == "9 8"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (0.01, "merging tokens: 90.0 % of MACs at 0.010 nats; widths alone: 0.100"),
        (0.2, "merging tokens: alone it loses more than widths do at the same MACs; the search weighs both together"),
    ],
)
def test_whether_merging_pays_is_said(error: float, said: str) -> None:
    """The schedule saves 10 of 100 MACs; a width that saves 10 too loses 0.1, and one of 20 loses 0.3."""
    tokens = Site(name="blocks.0.tokens", branch="blocks.0", kind="tokens", choices=(2, 3, 4))
    width = Site(name="blocks.0.mlp.hidden", branch="blocks.0.mlp", kind="ffn_hidden", choices=(8, 9, 10))
    operator = Operator(name="cut", sites=(width,))
    space = Space(name="made", branches={width.branch: (operator,)}, tokens=(tokens,))

    def within(counts: tuple[int, ...]) -> CostModel:
        count = lambda sizes: (10.0 * sizes["hidden"], 1.0)  # noqa: E731
        whole: dict[Cost, float] = {"macs": {4: 100.0, 3: 90.0, 2: 85.0}[counts[0]], "params": 10.0}
        return CostModel({"macs": 100.0, "params": 10.0}, ((operator, count),), whole, counts, (tokens.name,), within)

    frames = MeasuredFrames(schedules={(4,): 0.0, (3,): error, (2,): 0.9}, dropped={}, images=8)
    *_, text = frame_tables(frames, space, within((4,)), {width.name: {8: 0.3, 9: 0.1, 10: 0.0}})
    assert text == said


# What launch refuses

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1,), "num_heads": (2,)}


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("vit_tiny_patch16_224", TINY, None),
        ("deit_tiny_distilled_patch16_224", TINY, None),
        ("deit3_small_patch16_224", TINY, None),
        ("eva_giant_patch14_224", TINY, None),
        ("vit_small_patch16_dinov3", TINY, None),
        ("beit_base_patch16_224", TINY, "blocks.0.attn (Attention) of Beit"),
        ("vit_relpos_small_patch16_224", TINY, "blocks.0.attn (RelPosAttention) of VisionTransformerRelPos"),
        ("samvit_base_patch16", {**TINY, "global_attn_indexes": (), "window_size": 0},
         "blocks.0.attn (Attention) of VisionTransformerSAM"),
        ("cait_xxs24_224", TINY, "blocks.0.attn (TalkingHeadAttn) of Cait"),
        ("hiera_tiny_224", {"stages": (1,), "q_pool": 0, "embed_dim": 32, "num_heads": 2, "mask_unit_attn": (True,)},
         "blocks.0.attn (MaskUnitAttention) of Hiera"),
        ("xcit_nano_12_p8_224", TINY, "no convolutional patch embedding"),
        ("mixer_s16_224", {"img_size": 32}, "MixerBlock has no separate"),
        ("swin_tiny_patch4_window7_224", SWIN, "no list of transformer blocks"),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}, "no list of transformer blocks"),
        ("pit_ti_224", {}, "no list of transformer blocks"),
        ("levit_128s", {}, "no list of transformer blocks"),
        ("mobilevit_xxs", {}, "no list of transformer blocks"),
    ],
)  # fmt: skip
def test_launch_and_inspect_take_the_same_models(
    name: str, sizes: dict[str, Any], words: str | None, capsys: pytest.CaptureFixture[str], fails: Fails, tmp_path: Path
) -> None:
    arguments: list[str | Path] = [
        name,
        "--num-classes",
        "10",
        "--model-kwargs",
        *(f"{key}={value}" for key, value in sizes.items()),
    ]
    launched = ["launch", "--model", *arguments, *DIGITS, "--output", tmp_path / "run", "--target", "flops=0.1%"]
    line = fails(*launched)  # the target is out of any model's reach, which is told last of all
    if words is None:
        assert "reachable" in inspected(capsys, *arguments)
        assert "target 'flops=0.1%'" in line
    else:
        assert words in line
        assert fails("inspect", *arguments) == line


def test_the_layer_that_is_counted_otherwise_is_named(fails: Fails) -> None:
    """17 tokens, 32 wide, 2 heads of 16: qkv of 32 x 96, proj of 32 x 32, and products of 17 x 17 tokens, 32 wide, twice."""
    line = fails("inspect", "beit_base_patch16_224", "--model-kwargs", *(f"{key}={value}" for key, value in TINY.items()))
    assert 17 * (32 * 96 + 32 * 32) + 2 * 17 * 17 * 32 == 88_128
    assert "88,128" in line
