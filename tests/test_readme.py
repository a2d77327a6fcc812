"""The README's own method runs as it is printed there."""

import re
from pathlib import Path

import lorica

README = Path(__file__).parents[1] / "README.md"


def test_own_method_of_the_readme(six_classes, tmp_path) -> None:
    block = re.search(r"```python\n# my_method\.py\n(.*?)```", README.read_text(), re.DOTALL)
    assert block is not None
    (tmp_path / "my_method.py").write_text(block[1])
    result = lorica.run(
        "digits",
        method={"name": str(tmp_path / "my_method.py")},
        source=six_classes,
        out=tmp_path / "run",
        progress=False,
        fit={"epochs": 2, "batch_size": 8},
        stream={"tasks": 3},
    )
    assert len(result.accuracy) == 3
    assert result.acc > 1 / 3
