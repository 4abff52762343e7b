"""The notebooks run from top to bottom on a tiny budget, and are committed with their outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_every_source_has_its_notebook() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(path.stem for path in FOLDER.glob("*.py")) != []


# The longest tests of all: the workers share them.
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, marks=[pytest.mark.xdist_group(path.stem), *([pytest.mark.thorough] if i else [])], id=path.stem
        )
        for i, path in enumerate(NOTEBOOKS)
    ],
)
def test_runs_on_a_tiny_budget(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Budgets of five digits and more; learning_starts and the like have four.
            cell.source = re.sub(r"\b\d{2,}_000\b", "2_048", cell.source)
            cell.source = re.sub(r"\b\d+_000_000\b", "102_400", cell.source)
            cell.source = re.sub(r"total_timesteps=\d_000\b", "total_timesteps=300", cell.source)
            cell.source = re.sub(r"key\(0\), \d\)", "key(0), 2)", cell.source)
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_with_real_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
