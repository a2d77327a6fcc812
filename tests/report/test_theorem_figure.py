"""The figure and the table of the experiment on Theorem 1, and the command that makes them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from lorica import cli
from lorica.report import save, theorem_figure
from lorica.terminal import Screen
from lorica.theorem import Experiment, Setting, experiment

SMALL = Setting(spectrum=(1.0, 0.4), epsilons=(0.1, 1e-2, 1e-3), rows=6, columns=5, rank=3, learning_rate=0.05)


@pytest.fixture(scope="module")
def result() -> Experiment:
    return experiment(SMALL)


def test_what_is_drawn(result: Experiment) -> None:
    figure = theorem_figure.draw(result)
    values, errors, bound, found = figure.axes
    assert all(axes.get_xlabel() and axes.get_ylabel() and axes.get_title() for axes in figure.axes)
    run = result.descents[1]
    assert run.epsilon == 1e-2
    np.testing.assert_allclose(values.lines[1].get_ydata(), run.singular_values[1:, 0])  # above the closed form
    np.testing.assert_allclose(errors.lines[1].get_xydata(), [[run.best_times[0], run.best_errors[0]]])
    line, points = bound.lines[2:4]
    assert points.get_ydata() == pytest.approx([run.best_errors[1] for run in result.descents])
    assert line.get_ydata() == pytest.approx(
        [run.best_errors[1] for run in result.descents[-1:]] * np.array([1e4, 1e2, 1])
    )
    assert [text.get_text() for text in found.texts] == ["1.00", "0.00", "0.00", "1.00"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0].endswith("(derived 0.86)")  # 2 (1 - 0.4) / 1.4
    assert len(legend) == 3


def test_components_differ_in_grey(result: Experiment) -> None:
    values = theorem_figure.draw(result).axes[0]
    measured = values.lines[1::2]
    assert len({line.get_linestyle() for line in measured}) == len(measured) == 2


def test_a_figure_without_a_fit(result: Experiment, tmp_path: Path) -> None:
    figure = theorem_figure.draw(replace(result, descents=result.descents[:1], fitted=np.full(2, np.nan)))
    assert "nan" not in figure.legends[0].get_texts()[0].get_text()
    pdf, png = save(figure, tmp_path / "theorem")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"/Subtype /Image" not in pdf.read_bytes()  # vectors throughout
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_table_has_errors_beside_their_terms(result: Experiment) -> None:
    console = Screen(width=80, file=StringIO())
    console.print(theorem_figure.to_rich(result))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    last = result.descents[-1].best_errors[1]
    assert f"{last:.1e}".replace("e-0", "e-") + " | 1.0e-6" in text  # (1e-3)^2
    assert "| 2.00" in text
    assert "…" not in text


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr("lorica.theorem.Setting", lambda seed: replace(SMALL, seed=seed))
    monkeypatch.setattr(cli, "console", Screen(width=120))
    monkeypatch.setattr(sys, "argv", ["lorica", "theorem", "--out", str(tmp_path / "new"), "--seed", "7"])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert not leaving.value.code
    assert "Least error" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"theorem.pdf", "theorem.png", "theorem.json"}
    written = json.loads((tmp_path / "new/theorem.json").read_text())
    assert written["setting"]["seed"] == 7
    assert written == json.loads(json.dumps(experiment(replace(SMALL, seed=7)).summary()))
