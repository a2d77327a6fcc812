"""Figures: what is drawn, and what is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lorica.errors import LoricaError
from lorica.report import (
    accuracy_curves,
    accuracy_matrix,
    accuracy_per_task,
    draw_all,
    growth,
    magnitudes,
    relative_distances,
    residuals,
    save,
    straight_lines,
    style,
)
from lorica.report.figures import Distances, Residuals, StraightLine, all_figures
from lorica.results import Result
from lorica.terminal import visible

MakeRun = Callable[..., Result]


def flat(tasks: int, value: float = 0.5) -> list[list[float]]:
    return [[value] * (t + 1) for t in range(tasks)]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def displayed(text: Text) -> str:
    """What is drawn of a text of matplotlib's: it takes \\$ for $, and what is between two others for mathematics."""
    shown, is_mathematics = text._preprocess_math(text.get_text())
    assert not is_mathematics
    return shown


def test_curves_are_means_over_seeds_with_a_band_where_there_are_several(two_seeds: list[Result]) -> None:
    figure = accuracy_curves(two_seeds)
    (axes,) = figure.axes
    sd_lora, o_lora = axes.lines
    np.testing.assert_allclose(sd_lora.get_xydata(), [[1, 80], [2, 70]])  # (0.9 + 0.7) / 2, (0.6 + 0.8) / 2
    np.testing.assert_allclose(o_lora.get_xydata(), [[1, 75], [2, 37.5]])
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(70 - 10 * 2**0.5)
    assert heights.max() == pytest.approx(80 + 10 * 2**0.5)
    assert legend(figure) == ["sd_lora", "o_lora"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tasks learned", "average accuracy (%)")


def test_every_one_of_many_methods_looks_different(make_run: MakeRun) -> None:
    figure = accuracy_curves([make_run(flat(2), f"method_{k}") for k in range(20)])
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == len(legend(figure)) == 20
    in_grey = [
        (line.get_marker(), line.get_linestyle(), line.get_markerfacecolor() == "white")
        for line in figure.axes[0].lines
    ]
    assert len(set(in_grey[:16])) == 16


def test_the_legend_lies_below_the_axes(make_run: MakeRun) -> None:
    figure = accuracy_curves([make_run(flat(2), f"a_method_with_a_long_name_{k}") for k in range(12)])
    figure.draw_without_rendering()
    axes, box = figure.axes[0].get_tightbbox(), figure.legends[0].get_window_extent()
    assert axes is not None
    assert box.y1 <= axes.y0
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert figure.axes[0].bbox.height > 150  # pixels at 100 dpi: the legend does not take the data's room


def test_final_accuracies_are_grouped_by_task_and_joined_to_those_of_the_new_task(two_seeds: list[Result]) -> None:
    figure = accuracy_per_task(two_seeds)
    (axes,) = figure.axes
    new, last = axes.lines[:2]
    np.testing.assert_allclose(last.get_xydata(), [[0.8, 65], [1.8, 75]])  # (0.5 + 0.8) / 2, (0.7 + 0.8) / 2
    np.testing.assert_allclose(new.get_xydata(), [[0.8, 80], [1.8, 75]])
    stems = axes.collections[0].get_segments()
    np.testing.assert_allclose(stems[0], [[0.8, 65], [0.8, 80]])
    assert len(axes.lines) == 4
    assert legend(figure) == ["sd_lora", "o_lora"]


def test_many_tasks_of_many_methods_go_in_panels(make_run: MakeRun) -> None:
    figure = accuracy_per_task([make_run(flat(20), f"method_{k}") for k in range(8)])  # 7 tasks to a panel
    assert [axes.get_xlim() for axes in figure.axes] == [(0.5, 7.5), (7.5, 14.5), (14.5, 21.5)]
    shown = [int(tick) for axes in figure.axes for tick in axes.get_xticks()]
    assert shown == list(range(1, 21))
    assert len(legend(figure)) == 8
    figure = accuracy_per_task([make_run(flat(11), f"method_{k}") for k in range(6)])  # not 10 and 1
    assert [axes.get_xlim() for axes in figure.axes] == [(0.5, 6.5), (6.5, 12.5)]


def test_figures_leave_out_incomplete_runs(two_seeds: list[Result], make_run: MakeRun) -> None:
    figure = accuracy_curves([*two_seeds, make_run([[0.9]], "l2p", tasks=2)])
    assert legend(figure) == ["sd_lora", "o_lora"]


@pytest.mark.parametrize("draw", [accuracy_curves, accuracy_per_task])
def test_without_a_complete_run_there_is_nothing_to_draw(draw: Callable[..., Figure], make_run: MakeRun) -> None:
    with pytest.raises(LoricaError, match="nothing to draw: expected at least one run that has learned all"):
        draw([make_run([[0.9]], tasks=2)])


def test_the_matrix_has_a_number_for_each_cell_up_to_12_tasks(make_run: MakeRun) -> None:
    figure = accuracy_matrix(make_run([[0.9], [0.514, 0.75]], variant="released_code", seed=4))
    axes, bar = figure.axes
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [
        ((1, 1), "90.0"),
        ((1, 2), "51.4"),
        ((2, 2), "75.0"),
    ]
    image = axes.images[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(image), [[False, True], [False, False]])
    np.testing.assert_allclose(np.ma.compressed(image), [90, 51.4, 75])
    assert axes.get_title() == "sd_lora (released_code), seed 4"
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("task tested", "tasks learned", "accuracy (%)")
    assert len(accuracy_matrix(make_run(flat(12))).axes[0].texts) == 78
    assert not accuracy_matrix(make_run(flat(13))).axes[0].texts


def test_magnitudes_are_darkest_after_the_last_task(two_seeds: list[Result]) -> None:
    figure = magnitudes(two_seeds[0])
    assert figure is not None
    first, last = figure.axes[0].lines
    np.testing.assert_allclose(first.get_xydata(), [[1, 1.0]])
    np.testing.assert_allclose(last.get_xydata(), [[1, 1.2], [2, 0.8]])
    assert sum(matplotlib.colors.to_rgb(last.get_color())) < sum(matplotlib.colors.to_rgb(first.get_color()))
    assert magnitudes(two_seeds[1]) is None


def test_dropped_directions_are_crosses_and_no_part_of_the_lines(make_run: MakeRun) -> None:
    figure = magnitudes(make_run(flat(3), magnitudes=[[1.0], [1.2, 0.0], [1.1, 0.0, 0.8]]))
    assert figure is not None
    *lines, crosses = figure.axes[0].lines
    np.testing.assert_allclose(lines[1].get_xydata(), [[1, 1.2]])
    np.testing.assert_allclose(lines[2].get_xydata(), [[1, 1.1], [3, 0.8]])
    assert (crosses.get_marker(), list(crosses.get_xdata())) == ("x", [2])
    assert "(×: dropped)" in figure.axes[0].get_title()


def keeping(run: Result, kept: list[list[int]]) -> Result:
    return Result(run.path, run.metrics.model_copy(update={"diagnostics": {"kept": kept}}))


def test_growth_is_the_mean_number_of_adapters_beside_the_accuracy(make_run: MakeRun) -> None:
    first = keeping(make_run([[0.9], [0.5, 0.7]], "sd_lora_kd"), [[0], [0]])
    second = keeping(make_run([[0.7], [0.5, 0.9]], "sd_lora_kd", seed=1), [[0], [0, 1]])
    figure = growth([first, second, make_run(flat(2), "lora"), keeping(make_run(flat(1), "gumbel", tasks=3), [[0]])])
    assert figure is not None
    left, right = figure.axes
    diagonal, line = left.lines
    np.testing.assert_allclose(diagonal.get_xydata(), [[1, 1], [2, 2]])
    np.testing.assert_allclose(line.get_xydata(), [[1, 1], [2, 1.5]])
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[1, 80], [2, 65]])  # (0.9 + 0.7) / 2; (0.6 + 0.7) / 2
    assert legend(figure) == ["sd_lora_kd"]
    assert growth([make_run(flat(2))]) is None


def test_residuals_of_dropped_directions_are_hollow() -> None:
    figure = residuals([Residuals("a", [2, 3], [1.0, 0.9], []), Residuals("b", [2, 3, 4], [0.9, 0.5, 0.7], [3])])
    (axes,) = figure.axes
    shown = [line for line in axes.lines if len(line.get_xdata())]
    np.testing.assert_allclose(shown[1].get_xydata(), [[2, 0.9], [3, 0.5], [4, 0.7]])
    assert shown[1].get_markevery() == [0, 2]
    np.testing.assert_allclose(shown[2].get_xydata(), [[3, 0.5]])
    assert shown[2].get_markerfacecolor() == "white"
    assert legend(figure) == ["a", "b"]
    assert "hollow" in axes.get_title()
    assert axes.get_ylim()[0] == 0
    assert residuals([Residuals("a", [2], [1.0], [])]).axes[0].get_title() == ""


def test_straight_lines_of_old_and_new_tasks_stand_beside_each_other() -> None:
    runs = [
        StraightLine("sd_lora", 3, [0.0, 0.5, 1.0], [0.8, 0.8, 0.79], [0.5, 0.7, 0.9]),
        StraightLine("lora", 3, [0.0, 0.5, 1.0], [0.8, 0.6, 0.45], [0.5, 0.8, 0.9]),
    ]
    figure = straight_lines(runs)
    old, new = figure.axes
    assert (old.get_title(), new.get_title()) == ("tasks 1 to 2, mean", "task 3 (new)")
    np.testing.assert_allclose(old.lines[1].get_xydata(), [[0, 80], [0.5, 60], [1, 45]])
    np.testing.assert_allclose(new.lines[0].get_xydata(), [[0, 50], [0.5, 70], [1, 90]])
    assert old.get_ylim() == new.get_ylim() == (40, 100)
    looks = {(line.get_linestyle(), line.get_marker()) for line in old.lines}
    assert len(looks) == len(legend(figure)) == 2  # told apart in grey


def test_distances_are_a_triangle_with_w0_and_points_against_two_levels() -> None:
    distances = Distances("q and v", [0.2, 0.4], [[0.0, 0.3], [0.3, 0.0]], [[0.0, 1.0], [1.0, 0.0]], {})
    figure = relative_distances(distances)
    triangle, points = figure.axes[:2]
    assert [(text.get_position(), text.get_text()) for text in triangle.texts] == [
        ((0, 0), "0.20"),
        ((0, 1), "0.40"),
        ((1, 1), "0.30"),
    ]
    np.testing.assert_allclose(np.ma.compressed(triangle.images[0].get_array()), [0.2, 0.4, 0.3])
    assert [label.get_text() for label in triangle.get_xticklabels()] == ["$W_{0}$", "$W_{1}$"]
    assert [label.get_text() for label in triangle.get_yticklabels()] == ["$W_{1}$", "$W_{2}$"]
    np.testing.assert_allclose(points.lines[0].get_xydata(), [[1, 1.0]])
    assert [line.get_ydata()[0] for line in points.lines[2:]] == pytest.approx([2**0.5, 1])
    assert legend(figure) == [r"independent moves ($\sqrt{2}$)", "as far apart as from $W_0$ (1)"]


@pytest.mark.parametrize(
    ("first", "last", "ticks"),
    [
        (1, 1, [1]),
        (1, 12, list(range(1, 13))),
        (1, 20, list(range(2, 21, 2))),
        (8, 14, list(range(8, 15))),
        (1, 60, list(range(5, 61, 5))),
        (61, 120, list(range(65, 121, 5))),
    ],
)
def test_ticks_are_whole_tasks(first: int, last: int, ticks: list[int]) -> None:
    axes = Figure().add_subplot()
    style.number_tasks(axes, first, last)
    assert axes.get_xticks().tolist() == ticks


def test_a_figure_is_saved_as_pdf_and_png_and_nothing_else(tmp_path: Path, make_run: MakeRun) -> None:
    paths = save(accuracy_matrix(make_run(flat(1))), tmp_path / "new" / "rank_0.5")
    assert paths == [tmp_path / "new" / "rank_0.5.pdf", tmp_path / "new" / "rank_0.5.png"]
    assert paths[0].read_bytes().startswith(b"%PDF")
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    assert sorted((tmp_path / "new").iterdir()) == paths


def test_saving_under_a_file_says_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("")
    with pytest.raises(LoricaError, match="figures: cannot be made a folder: File exists"):
        save(Figure(), tmp_path / "figures" / "x")


def test_all_figures_of_several_runs(tmp_path: Path, two_seeds: list[Result]) -> None:
    paths = draw_all([*two_seeds, two_seeds[1]], tmp_path / "figures")
    assert sorted(path.name for path in paths if path.suffix == ".pdf") == [
        "accuracy_curves.pdf",
        "accuracy_matrix_o_lora_seed_0.pdf",
        "accuracy_matrix_o_lora_seed_0_run_2.pdf",
        "accuracy_matrix_sd_lora_seed_0.pdf",
        "accuracy_matrix_sd_lora_seed_1.pdf",
        "accuracy_per_task.pdf",
        "magnitudes_sd_lora_seed_0.pdf",
        "magnitudes_sd_lora_seed_1.pdf",
    ]
    assert sorted(paths) == sorted((tmp_path / "figures").iterdir())
    assert all(path.stat().st_size > 1000 for path in paths)


def test_all_figures_of_one_run_that_is_under_way(tmp_path: Path, make_run: MakeRun) -> None:
    paths = draw_all([make_run([[0.9]], tasks=2, magnitudes=[[1.0]])], tmp_path)
    assert [path.name for path in paths] == [
        "accuracy_matrix.pdf",
        "accuracy_matrix.png",
        "magnitudes.pdf",
        "magnitudes.png",
    ]


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path, two_seeds: list[Result]) -> None:
    before = dict(matplotlib.rcParams)
    save(accuracy_curves(two_seeds), tmp_path / "curves")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("label", ["$x_{", "$a$", r"\$", "100 %, $5", "_wren", "[red] {0}", "a\x1bb", "木"])
def test_labels_are_shown_as_they_are(label: str, tmp_path: Path, make_run: MakeRun) -> None:
    """No mathematics, nothing left out of the legend, and a box where the font has no letter."""
    runs = [make_run(flat(3), label), make_run(flat(3), "other")]
    lines = straight_lines([StraightLine(label, 2, [0.0, 1.0], [0.5, 0.5], [0.5, 0.5])])
    left = residuals([Residuals(label, [2, 3], [0.5, 0.5], []), Residuals("other", [2], [1.0], [])])
    apart = relative_distances(Distances(label, [1.0, 1.0], [[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], {}))
    for figure in (accuracy_curves(runs), accuracy_per_task(runs), lines, left):
        (first, *_) = figure.legends[0].get_texts()
        assert displayed(first).strip() == visible(label)
    assert displayed(apart._suptitle).strip() == visible(label)
    assert displayed(accuracy_matrix(runs[0]).axes[0].title).strip() == f"{visible(label)}, seed 0"
    save(left, tmp_path / "figure")
    all_figures(runs)  # names of files that can be


SETTINGS: list[dict[str, Any]] = [
    {"text.usetex": True},
    {"text.parse_math": False, "svg.fonttype": "path", "savefig.format": "svg", "figure.dpi": 3},
    {"axes.formatter.use_locale": True, "lines.linestyle": "none", "figure.constrained_layout.use": False},
    {"font.family": "no such font"},
    {
        "pdf.fonttype": 3,
        "savefig.bbox": "tight",
        "savefig.transparent": True,
        "axes.prop_cycle": "cycler('color', ['w'])",
    },
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_figures_do_not_depend_on_the_users_settings(
    settings: dict[str, Any], tmp_path: Path, two_seeds: list[Result]
) -> None:
    """A usetex in the matplotlibrc, say, needs LaTeX, and would end a run after its last task."""
    pictures = []
    for given in ({}, settings):
        with matplotlib.rc_context(given):
            _, png = save(accuracy_matrix(two_seeds[0]), tmp_path / "matrix")
            pictures.append(png.read_bytes())
    assert pictures[0] == pictures[1]
