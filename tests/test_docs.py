"""The documentation: its snippets run, and each study page says what its algorithm's file and results say."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

import purerl
from benchmarks import docs as pages
from purerl import ppo
from purerl.run import cli

ROOT = Path(__file__).parent.parent
SNIPPETS = [
    pytest.param(block, id=f"{name}-{i}")
    for name in ("index", "how", "environments")
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{name}.md").read_text(), re.DOTALL))
]


@pytest.mark.thorough
@pytest.mark.parametrize("block", SNIPPETS)
def test_snippets_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a budget of a few updates."""
    monkeypatch.chdir(tmp_path)
    exec(compile(block.replace("100_000", "2_048").replace("10_000", "1_024"), "docs", "exec"), {"__name__": "docs"})


def test_recipes_for_clusters_are_well_formed() -> None:
    """As far as can be seen without a cluster: shell that parses, and flags that the command line knows."""
    text = (ROOT / "docs" / "how.md").read_text().partition("## train one seed on many devices")[2]
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True, timeout=10)
    text = re.sub(r"#SBATCH.*|--ntasks\S*", "", text)
    flags = set(re.findall(r"(?<=[ \n(`\"])--([a-z]+(?:-[a-z]+)*)(?=[ ,`\n])", text))
    fields = (*dataclasses.fields(cli.TrainOptions), *dataclasses.fields(ppo.Config))
    known = {field.name.replace("_", "-") for field in fields}
    assert {"coordinator", "num-processes", "process-id", "devices-per-seed", "resume"} <= flags
    assert flags - known == {"cpus-per-task"}  # SLURM's


@pytest.mark.thorough
def test_the_kubernetes_recipe_starts_as_many_processes_as_pods() -> None:
    yaml = pytest.importorskip("yaml")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "how.md").read_text(), re.DOTALL)
    service, job = yaml.safe_load_all(recipe)
    pods, (container,) = job["spec"], job["spec"]["template"]["spec"]["containers"]
    assert f"--num-processes {pods['completions']} " in container["args"][0]
    assert pods["completions"] == pods["parallelism"]
    first = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert f"--coordinator {first}:" in container["args"][0]
    assert pods["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}


@pytest.mark.parametrize("name", purerl.ALGORITHMS)
def test_a_study_page_is_its_file(name: str) -> None:
    """Every equation and departure of the docstring, each tagged function once, every field, every metric."""
    page, algorithm = pages.page(name), pages.module(name)
    lines = (algorithm.__doc__ or "").splitlines()
    tagged = {match[1]: pages.TAG.sub("", line).strip() for line in lines if (match := pages.TAG.search(line))}
    assert tagged
    for function, equation in tagged.items():
        definition = f"def {function.rpartition('.')[2]}("
        assert equation in page or pages.escape(equation) in page  # a tag may stand at the end of a sentence
        assert page.split("## One update")[0].count(definition) == 1 or function == "update"
    named = re.findall(r"^    (.*\S) \(([\w., ]+)\)$", (algorithm.__doc__ or "").partition("Departures from")[2], re.M)
    for text, names in named:
        assert f"- {pages.escape(f'{text} ({names})')}" in page and f"(`{names}`)" in page
    for field in algorithm.Config.__dataclass_fields__:
        assert f"| `{field}` |" in page
    for metric in pages.metric_names(name):
        assert f"| `{metric}` |" in page
    if name in pages.BEFORE:
        assert f"+++ {name}.py" in page and f"({pages.BEFORE[name]}.md)" in page


def test_every_explained_metric_is_one() -> None:
    known = {metric for name in purerl.ALGORITHMS for metric in pages.metric_names(name)}
    assert set(pages.explanations()) - known == {"eval_return", "end_error"}  # where they are asked for


def test_scores_and_bars_are_those_of_the_results() -> None:
    page = pages.results("ppo")
    (row,) = [row for row in pages.scores("ppo") if row["env"] == "CartPole-v1" and not row["variant"]]
    assert f"**CartPole-v1**: {float(row['mean']):,.2f} on average over the seeds 0-9" in page
    assert "the bar is 495 (above CleanRL's PPO" in page and "(ppo_CartPole-v1.png)" in page


def test_the_curriculum_has_each_problem() -> None:
    index = pages.index()
    assert all(f"]({name}.md)**: " in index for name in purerl.ALGORITHMS)
    assert "Actor-critic: the policy gradient is right only at the policy that gathered the data" in index


def test_text_is_shown_unchanged() -> None:
    assert pages.escape("max_a' Q(s', a') * 2 [ <b> ] (init, loss)") == (
        r"max\_a' Q(s', a') \* 2 \[ \<b\> \] (`init, loss`)"
    )


@pytest.mark.thorough
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Strictly: a dead link, a missing anchor or a name that is gone fails."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    built = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "how.html", "reference.html", *(f"algorithms/{n}.html" for n in purerl.ALGORITHMS)} <= built
    for path in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', path.read_text())
        assert not fetched, f"{path.name} loads {fetched}"
