"""Every code block of the documentation and of README.md runs here, or says in its first line why it does not.

A page is one fresh process in a folder of its own, and its blocks run from top to bottom:

    ```python                       run; names are shared down the page
    ```python file=NAME.py          added to that file
    ```console                      the lines after "$ " run in bash, the others are output
    ```console not-run: REASON      neither; how many of these there are is bounded
    ```console needs: bfloat16      a CPU that has no bfloat16 refuses the first command in one line that names it
    ```text                         no code

The folder holds a small `resnet50.onnx`, its input `image.npy`, `dynamic.onnx`, whose batch is open, and, where a page
names it, calumma's wheel. Budgets are cut to a second, races to two rounds, and idle threads sleep: what a page says is
run, not timed. pip has no network: what a page installs must be there already, in the versions that the page says.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from markdown_it import MarkdownIt

from calumma.core.contraction import BFLOAT16
from tests import isas
from tests.onnx_models import Model

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
MOST_NOT_RUN = 5
WHEEL = "calumma-*.whl"
DIRECTIVES = ("toctree", "eval-rst", "glossary", "include")
SHORTER = (
    (r"--budget \d+s", "--budget 1s"),
    (r"\bbudget=\d+", "budget=1"),
    (r"\bcalumma bench ", "calumma bench --rounds 2 "),
    (r"\bcalumma collect --budget \d+h", "calumma collect --families pointwise --configs 2 --trials 18"),
)
TIMEOUT_S = 300
REFUSED = (
    "done = __import__('subprocess').run({command!r}, shell=True, capture_output=True, text=True); "
    "assert done.returncode == 2 and {name!r} in done.stderr.splitlines()[-1], done"
)
"""A program of one line."""
_CODE = re.compile(r"^\s*(\$|import |from \S+ import |def |class |calumma |pip |python3? |make )", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced or indented block of a page."""

    page: Path
    line: int
    """Of its first line of content, counted from 1."""
    info: str
    content: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    @property
    def file(self) -> str | None:
        """The file that the content is added to."""
        return self.info.partition(" file=")[2] or None

    @property
    def reason_not_to_run(self) -> str:
        return self.info.partition(" not-run: ")[2]

    @property
    def instructions(self) -> str:
        """The instructions that the CPU needs for it, or nothing."""
        return self.info.partition(" needs: ")[2]

    @property
    def commands(self) -> str:
        """The lines after a prompt, with those that a backslash continues them on."""
        lines = self.content.splitlines()
        continued = [number > 0 and lines[number - 1].endswith("\\") for number in range(len(lines))]
        return "\n".join(
            line.removeprefix("$ ")
            for line, more in zip(lines, continued, strict=True)
            if more or line.startswith("$ ")
        )


def blocks(page: Path) -> Iterator[Block]:
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence" and token.map:
            yield Block(page, token.map[0] + 2, token.info.strip(), token.content)
        elif token.type == "code_block" and token.map:
            yield Block(page, token.map[0] + 1, "text", token.content)


def script(page: Path) -> str:
    """The page as a program whose line numbers are the page's own."""
    lines = page.read_text().splitlines()
    program = [""] * len(lines)
    for block in blocks(page):
        if block.reason_not_to_run:
            continue
        if block.file is not None:
            code = [f"print({block.content!r}, file=open({block.file!r}, 'a'))"]
        elif block.instructions and isas.target().dot_product(BFLOAT16) is None:
            code = [REFUSED.format(command=block.commands.splitlines()[0], name=block.instructions)]
        elif block.language == "console":
            command = ["bash", "-euo", "pipefail", "-c", block.commands]
            code = [f"__import__('subprocess').run({command!r}, check=True)"]
        elif block.language == "python":
            code = block.content.splitlines()
        else:
            continue
        program[block.line - 1 : block.line - 1 + len(code)] = code
    text = "\n".join(program)
    for long, short in SHORTER:
        text = re.sub(long, short, text)
    return text


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def network(batch: int | str) -> onnx.ModelProto:
    """A small CNN over [batch, 3, 224, 224] called `input`; ten classes."""
    model = Model()
    x = model.op("Relu", model.conv(model.input(1, 3, 224, 224), (3, 16), 3, strides=[8, 8]))
    x = model.op("Relu", model.conv(x, (16, 32), 3, strides=[2, 2]))
    x = model.op("Flatten", model.op("GlobalAveragePool", x))
    proto = onnx.load_from_string(model.bytes(model.linear(x, (32, 10))))
    source = proto.graph.input[0].name
    for node in proto.graph.node:
        node.input[:] = ["input" if operand == source else operand for operand in node.input]
    proto.graph.input[0].name = "input"
    if isinstance(batch, str):
        del proto.graph.value_info[:]
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = batch
    return proto


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a page runs: models, an input, and an empty home."""
    work = tmp_path / "work"
    work.mkdir()
    onnx.save(network(1), work / "resnet50.onnx")
    onnx.save(network("batch"), work / "dynamic.onnx")
    np.save(work / "image.npy", np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32))
    return work


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=TIMEOUT_S)
    (found,) = folder.glob(WHEEL)
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if script(page).strip()], ids=name)
def test_the_blocks_of_a_page_run(page: Path, folder: Path, request: pytest.FixtureRequest) -> None:
    if WHEEL in script(page):
        shutil.copy(request.getfixturevalue("wheel"), folder)
    program = folder.parent / f"{page.stem}.py"
    program.write_text(script(page))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "CALUMMA_DB": str(folder.parent / "records.sqlite"),
        "CALUMMA_CACHE": str(folder.parent / "cache"),
        "CALUMMA_CACHE_MB": "1000",
        "XDG_DATA_HOME": str(folder.parent / "data"),
        "TVM_THREAD_POOL_SPIN_COUNT": "0",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", program],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{name(page)} (line numbers are the page's)\n{done.stdout[-8000:]}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks(page):
        if block.language.startswith("{"):
            assert block.language.strip("{}") in DIRECTIVES, f"{block}: directive {block.language} may hide code"
        elif block.language == "text":
            assert not _CODE.search(block.content), f"{block}: this is code: mark it python or console"
        else:
            assert block.language in ("python", "console"), f"{block}: mark it python, console or text"
            assert block.reason_not_to_run or block.language == "python" or block.commands, f"{block}: no command"


def test_blocks_that_do_not_run_are_few_and_say_why() -> None:
    skipped = [block for page in PAGES for block in blocks(page) if block.reason_not_to_run]
    assert all(len(block.reason_not_to_run.split()) >= 3 for block in skipped)
    assert len(skipped) <= MOST_NOT_RUN, "\n".join(map(str, skipped))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_benchmarks_that_are_named_exist(page: Path) -> None:
    common = (ROOT / "benchmarks" / "output.py").read_text()
    for block in blocks(page):
        for module, arguments in re.findall(r"python -m benchmarks\.(\w+)([^#\n]*)", block.content):
            source = ROOT / "benchmarks" / f"{module}.py"
            assert source.is_file(), f"{block}: there is no benchmark {module}"
            for option in re.findall(r"--[\w-]+", arguments):
                assert f'"{option}"' in source.read_text() + common, f"{block}: benchmark {module} has no {option}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "docs"], ids=name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    """The site's build checks links between its own pages, anchors included; this one those from outside it."""
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
        assert (page.parent / link).exists(), f"{name(page)} links to {link}, which is not there"


def test_a_program_keeps_the_lines_of_its_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```console\n$ echo a \\\n    b\na b\n```\n\n```python\nx = 1\n\nassert x == 2\n```\n")
    program = script(page).splitlines()
    assert (
        program[3]
        == "__import__('subprocess').run(['bash', '-euo', 'pipefail', '-c', 'echo a \\\\\\n    b'], check=True)"
    )
    assert program[11] == "assert x == 2"
    done = subprocess.run([sys.executable, "-"], input="\n".join(program), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "line 12" in done.stderr and done.stdout == "a b\n"
