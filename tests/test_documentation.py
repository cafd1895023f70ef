"""What the documentation shows works: Python blocks and example scripts run, command lines are understood."""

import contextlib
import importlib.util
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from popflow.cli import app
from popflow.core import MissingExtraError
from popflow.registry import TASKS
from popflow.runs import Run

ROOT = Path(__file__).parents[1]
TEXTS = {page: page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
PAGES = [page for page, text in TEXTS.items() if "```python" in text]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def _hook(name):
    """A module of the documentation, which is no package."""
    found = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


SOURCES = _hook("sources")


def _blocks(language, text):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _commands(text):
    """Return the ``popflow`` command lines of a page, from its blocks and its inline code, and the options that stand alone in inline code."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    lines = "\n".join(_blocks("(?:text|bash|)", text)).replace("\\\n", " ").splitlines()
    shown = [shlex.split(line, comments=True)[1:] for line in (*lines, *inline) if re.match("popflow [a-z]", line)]
    return shown, [shlex.split(code) for code in inline if code.startswith("--")]


def test_the_reference_names_modules_that_exist():
    named = [name for page, text in TEXTS.items() if page.parent.name == "api" for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)]
    assert named
    assert [name for name in named if importlib.util.find_spec(name) is None] == []


class _Understood(BaseException):
    """A command line was read to the end, and its job would begin."""


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if _commands(text)[0]], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands(page, monkeypatch, tmp_path, capsys):
    """Command lines name a verb and its options, with values that the configuration accepts."""

    def opened(*_, **__):
        raise _Understood

    monkeypatch.setattr(Run, "open", opened)
    monkeypatch.setattr("popflow.cli.gallery.demonstrate", opened)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    for folder in ("two", "MODEL"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
    commands, alone = _commands(TEXTS[page])
    own = re.findall(r'Method\(name="(\w+)"', TEXTS[page])  # methods that the page itself defines
    jobs = [command for command in commands if command[0] in {*TASKS, "demo"} and len(command) > 1 and command[-1] not in own]
    if page.parent.name == "guides" and jobs:
        jobs += [[*jobs[0], *options] for options in alone]
    for job in jobs:
        for word in job:
            if re.fullmatch(r"(kernel:)?\w+\.(h5ad|npy|png|xyz)(:.*)?", word):
                (tmp_path / word.removeprefix("kernel:").partition(":")[0]).touch()
        with pytest.raises(_Understood):
            assert app.main(job) == 0, f"{' '.join(job)}: {capsys.readouterr().err}"
    for command in commands:
        if command not in jobs and command[0] not in own and command[-1] not in own:
            known: dict = getattr(get_command(app.build()), "commands", {})
            known[command[0]].make_context(command[0], command[1:], resilient_parsing=len(command) == 1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _run(page, _blocks("python", TEXTS[page]))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_notebook(notebook, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") for cell in cells), "clear the outputs before committing"
    with contextlib.redirect_stdout(None):
        _run(notebook, ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"])


def _run(source, blocks):
    """Run blocks one after another; an absent extra is a failure under CI and a skip elsewhere."""
    names: dict = {}
    try:
        with torch.random.fork_rng():  # a page may build layers as its readers do
            for block in blocks:
                exec(compile(block, str(source), "exec"), names)
    except MissingExtraError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_example(script, tmp_path):
    """With ``--quick`` where there is one: seconds, and all that is printed."""
    quick = ["--quick"] if '"--quick"' in script.read_text(encoding="utf-8") else []
    command = [sys.executable, str(script), *quick]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if "rdkit" in done.stderr and "popflow[chem]" in done.stderr and not os.environ.get("CI"):
        pytest.skip("rdkit is absent (extra chem)")
    assert done.returncode == 0, done.stderr
    assert done.stdout
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert not quick or spent < 15, f"--quick took {spent:.1f} s of one processor, wanted seconds"


@pytest.mark.parametrize(
    "script", [*ROOT.glob("examples/*_standalone.py"), *ROOT.glob("examples/hybrid_*.py")], ids=lambda script: script.name
)
def test_examples_fit_on_a_page_and_open_with_their_command(script):
    lines = script.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert any(f"python examples/{script.name}" in line for line in lines[:4]), "wanted the command in the first lines"


def _numbers(content):
    """All numbers in the JSON file of a benchmark: values, and those in its texts."""
    if isinstance(content, dict):
        return {number for key, value in content.items() for number in _numbers(value) | _numbers(str(key))}
    if isinstance(content, list):
        return {number for value in content for number in _numbers(value)}
    if isinstance(content, str):
        return {float(text) for text in re.findall(r"\d*\.?\d+(?:e-?\d+)?", content)}
    return {abs(float(content))} if isinstance(content, int | float) and not isinstance(content, bool) else set()


MEASURED = {path.stem: _numbers(json.loads(path.read_text())) for path in (ROOT / "benchmarks" / "results").glob("*.json")}


def _quoted(text):
    """Return the decimals in the tables of a page, each with the results named last before it in its section and its unit's factor."""
    found, name = [], None
    for line in text.splitlines():
        if line.startswith("## "):
            name = None
        name = next((named for named in reversed(re.findall(r"(\w+)\.(?:py|json)", line)) if named in MEASURED), name)
        if line.startswith("|") and name:
            for cell in line.split("|")[2:]:
                found += [(name, number, (1, 100) if "%" in cell else (1,)) for number in re.findall(r"(?<![\w.])\d*\.\d+(?!\w)", cell)]
    return found


QUOTING = [page for page in TEXTS if page.name != "results.md" and _quoted(TEXTS[page])]


@pytest.mark.parametrize("page", QUOTING, ids=lambda page: page.stem)
def test_figures_in_tables_are_those_of_the_benchmark(page):
    """To the digits that are printed."""
    wrong = [
        f"{number} ({name})"
        for name, number, scales in _quoted(TEXTS[page])
        if not any(
            abs(one * scale - float(number)) <= 0.5 * 10.0 ** -len(number.partition(".")[2]) + 1e-9
            for one in MEASURED[name]
            for scale in scales
        )
    ]
    assert wrong == []


def test_troubleshooting_quotes_messages_and_errors_that_exist():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "popflow").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a text over several lines is one
    text = TEXTS[ROOT / "docs" / "troubleshooting.md"]
    quoted = [words.strip(". ") for words in re.findall(r'"([^"]+)"', text)] + [
        f"class {name}" for name in re.findall(r"`(\w+Error)`", text)
    ]
    assert len(quoted) > 12
    assert [words for words in quoted if words not in source] == []


def test_pictures_are_light():
    """Those of the first page and of the methods load at once."""
    pictures = [picture for picture in (ROOT / "docs").rglob("*") if picture.suffix in {".svg", ".png"}]
    assert len(pictures) >= 10
    assert [picture.name for picture in pictures if picture.stat().st_size > 60_000] == []


METHODS = sorted((ROOT / "docs" / "methods").glob("*.md"))


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_a_method_has_its_code_and_its_figures(page):
    """Code from the source, enough to read and not too much; a table with figures of a benchmark."""
    links = list(SOURCES.LINK.finditer(TEXTS[page]))
    assert 10 <= sum(len(SOURCES.shown(link[2], link[1].split(", ")).splitlines()) for link in links) <= 60
    assert page in QUOTING
    assert "src/popflow" not in SOURCES.LINK.sub("", TEXTS[page]), "a link to a source file stands alone between empty lines"


def test_the_code_of_a_page_is_that_of_the_source():
    page = SOURCES.on_page_markdown("A.\n\n[Population.ess](../../src/popflow/core/population.py)\n\nB.\n")
    assert page.startswith('A.\n\n```python title="src/popflow/core/population.py"\ndef ess(self')
    assert page.count('"""') == 2
    assert page.endswith("```\n\nB.\n")
    with pytest.raises(LookupError, match=r"core/population\.py defines no Population\.mood"):
        SOURCES.shown("popflow/core/population.py", ["Population.mood"])


def test_figures_are_looked_up():
    assert sum(len(_quoted(TEXTS[page])) for page in QUOTING) > 900
    name = "guidance"
    assert [number for _, number, _ in _quoted(f"`{name}.py`\n\n| a 1.5 | 0.123 | 7 ± .5 |")] == ["0.123", ".5"]
    assert not any(abs(one - 0.98765) < 5e-6 for one in MEASURED[name])


def test_populations_are_the_same_bits_on_two_processes(torchrun, tmp_path):
    """The commands of the guide to several machines."""
    script, files = ROOT / "examples" / "sample_many_populations.py", [tmp_path / f"{count}.json" for count in (1, 2)]
    for count, file in enumerate(files, 1):
        torchrun(script, "--quick", "--out", file, processes=count)
    assert len(json.loads(files[0].read_text())) == 20
    assert files[0].read_bytes() == files[1].read_bytes()
