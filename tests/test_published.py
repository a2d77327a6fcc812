"""Published numbers and recipes: every recipe is one and runs, and numbers stand beside runs of their own protocol
alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorica import published
from lorica.config import packaged_text, read_recipe
from lorica.data.benchmarks import find_benchmark
from lorica.methods import config_of, method_names
from lorica.report import notes, summarise, to_csv, to_latex, to_markdown
from lorica.report.document import Report, to_text
from lorica.report.html import to_html
from lorica.results import Metrics, Result
from lorica.run import default_folder, run

NAMES = list(published.recipe_names())
BACKBONE = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
# a short training of a few images takes these
SMALL = {"total_tasks": 2, "width": 32, "identity_epochs": 1, "alignment_epochs": 1}


def one_of_each() -> list[str]:
    """A recipe for each method of each source; its others differ in the data and in lengths and rates."""
    firsts: dict[tuple[str, str], str] = {}
    for name in NAMES:
        source, _, rest = name.partition("/")
        firsts.setdefault((source, rest.rpartition("-")[0]), name)
    return list(firsts.values())


def result(
    backbone: str = BACKBONE,
    *,
    source: str = "imagenet_r",
    classes: int = 200,
    tasks: int = 10,
    tested: int = 6000,
    **more: Any,
) -> Result:
    """A run whose accuracy is a half throughout."""
    each = classes // tasks
    recipe = {
        "method": {"name": "sd_lora", "variant": "paper"},
        "backbone": {"name": backbone} | more.pop("encoder", {}),
    }
    recipe |= {"data": {"source": source, "evaluate_on": "test"}, "evaluate": {"readout": "head"}}
    for section, values in more.items():
        recipe[section] = recipe.get(section, {}) | values
    metrics = Metrics(
        method="sd_lora",
        variant="paper",
        seed=0,
        tasks=[
            {"classes": [f"c{t * each + c}" for c in range(each)], "train": 8, "test": tested // tasks}
            for t in range(tasks)
        ],
        accuracy=[[0.5] * (t + 1) for t in range(tasks)],
        recipe=recipe,
        head_accuracy=None if recipe["evaluate"]["readout"] == "head" else [[0.5] * (t + 1) for t in range(tasks)],
    )
    return Result(None, metrics)


# ---- the files


def test_every_source_is_read_and_its_numbers_are_possible() -> None:
    assert {"sd_lora_paper", "sd_lora_code", "cl_lora_code", "ease_code", "ran_pac_code"} <= set(published.sources())
    for number in published.numbers():
        assert number.benchmark in published.CLASSES
        assert 0 < number.acc <= 100
        assert number.aaa is None or 0 < number.aaa <= 100
        assert number.tasks <= published.CLASSES[number.benchmark] / 2
        assert number.variant is None or number.variant in config_of(number.method).by_variant


def test_a_number_stands_once() -> None:
    keys = [(n.method, n.benchmark, n.tasks, n.backbone, n.source.title) for n in published.numbers()]
    assert len(keys) == len(set(keys))


def test_a_spread_is_of_a_number() -> None:
    for source in published.sources().values():
        for benchmark, by_tasks in source.spreads.items():
            for tasks, by_method in by_tasks.items():
                for method, errors in by_method.items():
                    assert len(source.numbers[benchmark][tasks][method]) == len(errors)


def test_a_number_has_its_spread_everywhere() -> None:
    (number,) = (n for n in published.numbers() if (n.method, n.benchmark) == ("full_finetune", "imagenet_a"))
    assert number.shown == "16.3 ± 7.9 / 30.0 ± 13.2"
    text = packaged_text("sd_lora_paper/full_finetune-imagenet_a") or ""
    assert "# Expected in 10 tasks: Acc / AAA 16.31 ± 7.89 / 30.04 ± 13.18 % (Table 3, " in text
    run = result(source="imagenet_a")
    for task, more in zip(run.tasks, (1, *[0] * 9), strict=True):
        task["test"] = 151 + 9 * more
    run.metrics.recipe["method"] = {"name": "full_finetune"}
    run = replace(run, metrics=run.metrics.model_copy(update={"method": "full_finetune", "variant": None}))
    assert r"& 16.3 $\pm$ 7.9 / 30.0 $\pm$ 13.2 \\" in to_latex(summarise([run]))
    (line,) = published.remarks([[run]])
    assert "; 5 seeds with standard errors; " in line


def test_a_stream_of_domains_is_beside_numbers_of_domains_alone() -> None:
    run = result("vit_base_patch16_224.augreg_in21k_ft_in1k", source="domainnet", stream={"by": "domain"})
    metrics = {"method": "ran_pac", "variant": None}
    method = {"name": "ran_pac", "tuning": "adapter", "width": 10000}
    run.metrics.recipe["method"] = method
    names = [f"c{number}" for number in range(345)]
    domains = [{"classes": names, "train": 8, "test": 176_743 // 6 + (t == 0)} for t in range(6)]
    groups = [task | {"classes": names[t::6]} for t, task in enumerate(domains)]

    def numbers_beside(by: str, tasks: list[Any]) -> list[float]:
        changed = run.metrics.model_copy(update={**metrics, "stream_by": by, "tasks": tasks})
        return [number.acc for number in published.beside([replace(run, metrics=changed)])[0]]

    assert numbers_beside("domain", domains) == [66.6]
    assert numbers_beside("class", groups) == []
    assert numbers_beside("domain", domains[:5]) == []


def test_the_two_accuracies_are_not_mixed_up() -> None:
    """The mean of accuracies from the first task on is above the last of them, or hardly below it."""
    for number in published.numbers():
        assert number.aaa is None or number.aaa > number.acc - 0.1, number


@pytest.mark.parametrize(
    ("method", "tasks", "expected"),
    [("sd_lora", 10, (77.34, 82.04)), ("sd_lora_rr", 20, (74.05, 80.65)), ("inf_lora", 5, (76.95, 81.81))],
)
def test_numbers_of_the_paper(method: str, tasks: int, expected: tuple[float, float]) -> None:
    (found,) = [
        n for n in published.numbers()
        if n.source.venue == "ICLR 2025" and (n.method, n.benchmark, n.tasks) == (method, "imagenet_r", tasks)
    ]  # fmt: skip
    assert (found.acc, found.aaa) == expected
    assert found.backbone == BACKBONE


# ---- recipes


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_its_source_says(name: str) -> None:
    recipe, text = read_recipe(name), packaged_text(name)
    source, _, rest = name.partition("/")
    method, _, benchmark = rest.rpartition("-")
    assert recipe.data.source == benchmark
    assert recipe.backbone.normalisation == "unit"
    assert recipe.backbone.name == published.sources()[source].backbone_on(benchmark)
    assert recipe.method.name == {"slca": "full_finetune", "sldc": "lora"}.get(method, method)
    assert recipe.method.name in method_names()
    assert (recipe.stream.seed is None) == (
        benchmark == "vtab" or source in ("inf_lora_code", "coda_prompt_code", "hide_prompt_code")
    )
    assert text is not None
    header = [line for line in text.splitlines() if line.startswith("#")]
    for what in (
        "# From: ",
        "# Expected",
        "# Backbone: ",
        "# Hardware and time: ",
        f"# Command: lorica run {name} data.root=",
    ):
        assert any(line.startswith(what) for line in header), what
    sizes = recipe.stream.classes_per_task
    assert recipe.stream.tasks or (isinstance(sizes, list) and sum(sizes) == published.CLASSES[benchmark])


def test_a_recipe_that_is_printed_is_the_same_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for name in NAMES:
        file.write_text(packaged_text(name) or "")
        assert read_recipe(file) == read_recipe(name)


def test_recipes_of_two_sources_do_not_share_a_folder() -> None:
    folders = {default_folder(name, read_recipe(name)) for name in NAMES}
    assert len(folders) == len(NAMES)
    assert Path("runs/sd_lora_paper/sd_lora-imagenet_r/sd_lora") in folders


def learn_two_steps(name: str, small_recipe: dict[str, Any], tmp_path: Path) -> Result:
    """The recipe's method, optimiser, augmentation and read-out on six classes in two tasks of 36 images, and a ViT of
    six blocks."""
    recipe = read_recipe(name)
    options = {key: value for key, value in SMALL.items() if getattr(recipe.method, key, None)}
    small = {f"method.{key}": value for key, value in options.items()}
    small |= {f"data.{key}": value for key, value in small_recipe["data"].items()}
    small |= {f"backbone.{key}": value for key, value in small_recipe["backbone"].items()}
    return run(
        recipe,
        out=tmp_path / "run",
        progress=False,
        **small,
        **{
            "stream.by": "class",
            "stream.tasks": 2,
            "stream.seed": None,
            "fit.epochs": 1,
            "fit.batch_size": 18,
            "snapshot_seconds": 0,
        },
    )


@pytest.mark.parametrize("name", one_of_each())
def test_a_recipe_runs_in_miniature(name: str, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    assert learn_two_steps(name, small_recipe, tmp_path).complete


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(one_of_each())))
def test_every_other_recipe_runs_in_miniature(name: str, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    assert learn_two_steps(name, small_recipe, tmp_path).complete


# ---- beside a run


def test_a_number_stands_beside_a_run_of_its_protocol() -> None:
    (number,), refused = published.beside([result()])
    assert (number.acc, number.aaa, number.where, refused) == (77.34, 82.04, "Table 2", [])
    rows = summarise([result()])
    assert "| Published Acc / AAA |" in to_markdown(rows)
    assert "| 77.3 / 82.0 |" in to_markdown(rows)
    assert "77.3 / 82.0 \\\\" in to_latex(rows)
    assert "published" not in to_csv(rows)
    assert any("ICLR 2025, Table 2; 5 seeds" in note for note in notes([result()]))


def test_reports_have_it_too() -> None:
    page, text = to_html(Report.of([result()])), to_text(Report.of([result()]), "markdown")
    for each in (page, text):
        assert "Published Acc / AAA" in each
        assert "77.3 / 82.0" in each
    assert "Published Acc" not in to_html(Report.of([result("deit_tiny_patch16_224")]))


@pytest.mark.parametrize("name", ["vit_base_patch16_224", BACKBONE])
def test_a_name_without_a_tag_is_what_timm_makes_of_it(name: str) -> None:
    assert len(published.beside([result(name)])[0]) == 1


@pytest.mark.parametrize(
    ("backbone", "more"),
    [
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", {}),
        ("vit_base_patch16_224.augreg_in21k", {}),
        ("deit_tiny_patch16_224", {}),
        (BACKBONE, {"encoder": {"image_size": 64}}),
    ],
)
def test_another_backbone_or_input_is_refused_by_name(backbone: str, more: dict[str, Any]) -> None:
    run = result(backbone, **more)
    shown, refused = published.beside([run])
    assert not shown
    assert [number.acc for number in refused] == [77.34]
    (line,) = published.remarks([[run]])
    assert line.startswith("Not shown beside sd_lora: what ICLR 2025 reports is of")
    assert backbone in line
    assert "Published Acc" not in to_markdown(summarise([run]))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, ""),
        ({"encoder": {"normalisation": "unit"}}, ""),
        ({"encoder": {"weights": "/mine.safetensors"}}, f" Ours has weights from a file; whether they are {BACKBONE} "),
        (
            {"encoder": {"normalisation": "backbone"}},
            " Its inputs have backbone.normalisation=unit, ours backbone.",
        ),
    ],
)
def test_what_is_not_known_to_be_the_same_is_said(more: dict[str, Any], said: str) -> None:
    (line,) = published.remarks([[result(**more)]])
    known, _, doubts = line.partition("mean over tasks).")
    assert known == "Published, sd_lora: 77.3 / 82.0 (ICLR 2025, Table 2; 5 seeds; "
    split = " ImageNet-R is divided in several ways; whether it is ours there is not known."
    assert doubts.startswith(said or split)
    assert doubts.endswith(split)
    (line,) = published.remarks([[result(source="cifar100", classes=100, tested=10_000)]])
    assert line.endswith(" mean over tasks).")


def test_splits_that_no_count_tells_apart_are_known() -> None:
    counts = {name: [(split.train, split.test) for split in find_benchmark(name).splits] for name in published.CLASSES}
    assert [name for name, each in counts.items() if len(set(each)) < len(each)] == list(published._DIVIDED)


@pytest.mark.parametrize(
    "more",
    [
        {"source": "image_folder"},
        {"classes": 100},
        {"tasks": 4},
        {"tested": 5990},
        {"data": {"evaluate_on": "validation"}},
        {"evaluate": {"readout": "discriminant"}},
    ],
)
def test_another_protocol_has_no_number(more: dict[str, Any]) -> None:
    assert published.beside([result(**more)]) == ([], [])


def test_a_variant_has_its_own_numbers() -> None:
    metrics = result().metrics.model_copy(update={"variant": "released_code"})
    metrics.recipe["method"]["variant"] = "released_code"
    (number,), _ = published.beside([replace(result(), metrics=metrics)])
    assert (number.acc, number.source.reading) == (78.17, "code")


@pytest.mark.parametrize(
    ("method", "options", "shown"),
    [
        ("ran_pac", {"tuning": "scale_and_shift", "width": 10000, "head_scale": 16.0}, [77.9]),
        ("ran_pac", {"tuning": "none", "width": 10000}, []),
        ("ran_pac", {"tuning": "scale_and_shift", "width": 500}, []),
        ("cl_lora", {"distillation": False}, []),
    ],
)
def test_an_ablation_has_no_published_number(method: str, options: dict[str, Any], shown: list[float]) -> None:
    run = result("vit_base_patch16_224.augreg_in21k_ft_in1k", tasks=40 if method == "cl_lora" else 10)
    run.metrics.recipe["method"] = {"name": method, **options}
    metrics = run.metrics.model_copy(update={"method": method, "variant": None})
    assert [number.acc for number in published.beside([replace(run, metrics=metrics)])[0]] == shown


def test_another_checkpoint_may_have_had_other_settings(tmp_path: Path) -> None:
    """EASE on CUB-200: each checkpoint's number stands beside its own settings, which the recipe's header has."""
    text = packaged_text("ease_code/ease-cub200") or ""
    (line,) = (line for line in text.splitlines() if line.startswith("# With "))
    name, *overrides = line.partition(": ")[2].split()
    assert name == "backbone.name=vit_base_patch16_224.augreg_in21k"
    recipe = read_recipe("ease_code/ease-cub200", [name, *overrides])
    assert (recipe.method.others_weight, recipe.method.backbone_weight) == (0.05, 0.0)  # type: ignore[attr-defined]
    assert (recipe.fit.learning_rate, recipe.fit.batch_size) == (0.008, 32)
    usual = {"others_weight": 0.005, "backbone_weight": 1.0}
    changed = {"others_weight": 0.05, "backbone_weight": 0.0}
    for backbone, options, acc in (("_ft_in1k", usual, 85.67), ("", changed, 86.81)):
        run = result(f"vit_base_patch16_224.augreg_in21k{backbone}", source="cub200", tasks=20, tested=2358 // 20 * 20)
        run.tasks[0]["test"] += 2358 % 20
        for each, shown in ((options, [acc]), ({"others_weight": 0.3, "backbone_weight": 1.0}, [])):
            run.metrics.recipe["method"] = {"name": "ease", **each}
            metrics = run.metrics.model_copy(update={"method": "ease", "variant": None})
            assert [number.acc for number in published.beside([replace(run, metrics=metrics)])[0]] == shown


def test_uneven_tasks_are_another_protocol() -> None:
    run = result(tasks=5)
    assert len(published.beside([run])[0]) == 1
    sizes = [160, *[10] * 4]
    tasks = [{"classes": [f"{t}-{c}" for c in range(size)], "train": 8, "test": 1200} for t, size in enumerate(sizes)]
    assert published.beside([replace(run, metrics=run.metrics.model_copy(update={"tasks": tasks}))]) == ([], [])


def test_what_is_known_of_benchmarks_is_known_alike() -> None:
    """Where data is looked at, and where numbers are compared."""
    for name in published.CLASSES:
        known = find_benchmark(name)
        assert known.classes == published.CLASSES[name]
        assert published._TESTED[name] in {split.test for split in known.splits}
