"""What the README shows is true: its code runs, its links lead to files, its loss lines are the losses."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_code_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a budget of a few updates and two seeds in place of many."""
    monkeypatch.chdir(tmp_path)
    short = (
        block.replace("500_000", "12_000")
        .replace("key(0), 8)", "key(0), 2)")
        .replace("num_episodes=100", "num_episodes=2")
    )
    assert short != block
    exec(compile(short, "README.md", "exec"), {"__name__": "readme"})


def test_links_lead_somewhere() -> None:
    targets = [
        target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("http")
    ]
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_loss_lines_are_the_losses() -> None:
    links = re.findall(r"\[`(\w+)`\]\((purerl/algorithms/\w+\.py)#L(\d+)\)", README)
    assert len(links) == len(list((ROOT / "purerl/algorithms").glob("[a-z]*.py")))
    for name, file, line in links:
        assert (ROOT / file).read_text().splitlines()[int(line) - 1].startswith(f"def {name}("), f"{file}#L{line}"
