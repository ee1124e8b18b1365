"""Rules of the whole repository, executed: what may be imported where, how long a file is, which words never occur."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgewm import paths

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # whose scripts find each other


def files(folders: tuple[str, ...], *endings: str) -> list[Path]:
    return sorted(p for folder in folders for end in endings for p in (ROOT / folder).rglob(f"*.{end}"))


SOURCES = files(("edgewm", "kernels", "benchmarks", "tests"), "py")
CODE = files(("edgewm", "kernels"), "py", "cc", "h")
MAX_LINES = 450

# Where the environment is read: nothing there changes a result.
ENVIRONMENT = {
    "edgewm/toolchain.py": "where compiled objects are kept, and the compiler's own process",
    "edgewm/distill/processes.py": "which of torchrun's processes this one is; together they do what one does",
}
CALLS = {
    "eval": re.compile(r"(?<![\w.])eval\("),
    "exec": re.compile(r"(?<![\w.])exec\("),
    "pickle": re.compile(r"\bpickle\.(load|loads|Unpickler)\b|\bfrom pickle import (load|loads|Unpickler)\b"),
    "shell=True": re.compile(r"shell\s*=\s*True"),
    "os.system": re.compile(r"\bos\.system\("),
    "allow_pickle": re.compile(r"allow_pickle\s*=\s*True"),
    "weights_only=False": re.compile(r"weights_only\s*=\s*False"),
    "torch.load without weights_only": re.compile(r"\btorch\.load\((?![^()]*(?:\([^()]*\)[^()]*)*weights_only=True)"),
    "bare except": re.compile(r"^\s*except\s*:", re.MULTILINE),
}
WORDS = re.compile(
    r"\b(TODO|FIXME|XXX|HACK)\b|\b(flaky|reruns)\b|/(?:work|root)/|/opt/\w*(wheels|pypi)"
    r"|\bissue #?\d+\b|\bthis session\b"
)
NAMES = re.compile(r"^class \w*(Manager|Helper|Handler|Utils?|Impl)\b", re.MULTILINE)
CORE = ("cli", "program", "ops", "expr", "arithmetic", "interp", "target", "host", "doctor", "paths", "errors")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python(code: str) -> str:
    """What a fresh interpreter prints; its warnings are errors."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def _without_this(files: list[Path]) -> list[Path]:
    return [p for p in files if p != Path(__file__).resolve()]


def test_core_imports_neither_torch_nor_triton() -> None:
    code = f"""
import sys
for module in {CORE!r}:
    __import__("edgewm." + module)
print([m for m in ("torch", "triton", "torch_world", "safetensors", "PIL", "rich") if m in sys.modules])
"""
    assert python(code) == "[]"


def test_importing_edgewm_needs_no_torch() -> None:
    code = "import sys, edgewm; print('torch' in sys.modules)"
    assert python(code) == "False"


# Reading models: capture and what it is made of.
TORCH = ("edgewm/models/", "edgewm/reference/", "edgewm/distill/", "edgewm/capture", "edgewm/aten", "edgewm/constants")


def test_torch_is_imported_at_the_top_only_where_it_belongs() -> None:
    for path in [p for p in SOURCES if name(p).startswith("edgewm/") and not name(p).startswith(TORCH)]:
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"torch", "triton"} & {n.split(".")[0] for n in names}, f"{name(path)} imports torch at its top"


def test_only_the_command_line_knows_the_command_line() -> None:
    own = {"edgewm/cli.py", "edgewm/cli_options.py", "edgewm/cli_verb.py", "edgewm/__main__.py"}
    for path in [p for p in SOURCES if name(p).startswith("edgewm/") and name(p) not in own]:
        assert not re.search(r"from \.+cli\w* import|edgewm\.cli|import click", path.read_text()), name(path)


@pytest.mark.parametrize("path", CODE, ids=name)
def test_a_file_is_one_idea(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: split it at its ideas"


def test_no_environment_variable_changes_a_result() -> None:
    pattern = re.compile(r"os\.environ|os\.getenv|\bgetenv\(")
    found = {name(p) for p in CODE if pattern.search(p.read_text())}
    assert found <= set(ENVIRONMENT)


@pytest.mark.parametrize("rule", CALLS)
def test_never_called(rule: str) -> None:
    assert [name(p) for p in _without_this(SOURCES) if CALLS[rule].search(p.read_text())] == []


def test_words_that_never_occur() -> None:
    documents = [ROOT / "Makefile"]
    documents += [p for pattern in ("*.md", "benchmarks/*.md", "edgewm/reference/*/*.md") for p in ROOT.glob(pattern)]
    documents += [*ROOT.glob("scripts/*.sh"), *ROOT.glob("targets/*.toml")]
    read = _without_this(sorted({*SOURCES, *CODE, *documents, ROOT / "pyproject.toml"}))
    assert [f"{name(p)}: {hit[0]}" for p in read for hit in WORDS.finditer(p.read_text())] == []
    assert [name(p) for p in SOURCES if NAMES.search(p.read_text())] == []


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md"])
def test_links_of_pages_lead_somewhere(page: str) -> None:
    file = ROOT / page
    local = [link for link in re.findall(r"\]\(([^)\s#]+)", file.read_text()) if "://" not in link]
    assert [link for link in local if not (file.parent / link).exists()] == []


def test_ruff_is_content() -> None:
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is missing; pip install 'edgewm[dev]'")
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "-q", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_data_is_found_beside_the_package() -> None:
    assert paths.TARGETS.is_dir() and paths.KERNELS.is_dir()


def test_data_is_found_inside_the_package(tmp_path: Path) -> None:
    inside = tmp_path / "edgewm" / "targets"
    inside.mkdir(parents=True)
    (tmp_path / "edgewm" / "paths.py").write_text((ROOT / "edgewm" / "paths.py").read_text())
    spec = importlib.util.spec_from_file_location("paths_of_a_wheel", tmp_path / "edgewm" / "paths.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert inside == module.TARGETS


def _tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_hold_what_was_measured() -> None:
    tables = _tables()
    found, shown = tables.rows(), []
    for page in tables.PAGES:
        text = page.read_text()
        shown += [block["name"] for block in tables.BLOCK.finditer(text)]
        assert text == tables.generated(text, found), "make tables"
    assert sorted(set(shown)) == sorted(shown) and {row["table"] for row in found} <= set(shown)


def test_tables_take_the_newest_line_of_a_name(tmp_path: Path) -> None:
    tables = _tables()
    (tmp_path / "laptop.jsonl").write_text(
        '{"table": "plan", "name": "edgewm", "ms": 20.0}\n\n{"table": "plan", "name": "edgewm", "ms": 9.5}\n'
        '{"table": "plan", "name": "eager", "ms": 1234.0, "command": "make bench"}\n'
    )
    text = tables.generated("a\n<!-- table: plan -->\nold\n<!-- end -->\nb\n", tables.rows(tmp_path))
    assert text == (
        "a\n<!-- table: plan -->\n| name | ms |\n| --- | --- |\n| edgewm | 9.5 |\n| eager | 1,234 |\n\n"
        "Measured on laptop with `make bench`.\n<!-- end -->\nb\n"
    )


def test_ci_runs_what_readme_says() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text() and "make demo" in (ROOT / "README.md").read_text()
