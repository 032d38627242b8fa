"""Real sites come to the simulation's model, by the very commands of the how-to."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, final

import pytest
from blake3 import blake3

from flare_core.management._deployment import ServerFolder

REPOSITORY = Path(__file__).parents[2]
HOW_TO = REPOSITORY / "docs" / "how-to" / "deploy-at-three-hospitals.md"
EXAMPLES = REPOSITORY / "examples"
BUNDLE = EXAMPLES / "unchanged_bundle"
BLOCK = re.compile(
    r"^```(?:(?P<console>console)|\{code-block\} toml\n:caption: (?P<file>[^\n]+))\n"
    r"(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PLACES = ("0.0.0.0:8470", "flare.example.org:8470")
"""What the reader has to replace, and the test does."""
OURS = {"FLARE_HOME", "PYTHONSAFEPATH"}
"""No reader has these: the second hides what stands beside a script."""
COMMAND_S = 120  # a framework is imported by three processes at once
LISTENS = "server listens at"
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),  # frameworks talk a lot when they load
]


class Step(NamedTuple):
    """What a reader does: a command, or lines at the end of a file."""

    command: str = ""
    file: str = ""
    lines: str = ""


@final
class Terminal:
    """A folder in which commands are typed, one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        mine = {name: os.environ[name] for name in os.environ if name not in OURS}
        self._environment = mine | {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",  # of a simulation's site and of a real one
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._behind: list[subprocess.Popen[str]] = []

    def type(self, command: str) -> str:
        """Run a line of bash and return what it said; with "&" do not wait for it."""
        if command.endswith(" &"):
            self._leave(command.removesuffix(" &"))
            return ""
        try:
            done = subprocess.run(
                ["/bin/bash", "-c", command],
                cwd=self._folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=COMMAND_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            pytest.fail(f"{command} takes too long\n{self._logs()}")
        assert done.returncode == 0, f"{command}\n{done.stdout}{self._logs()}"
        return done.stdout

    def close(self) -> None:
        """Wait for what ends by itself, then end the server, which does not."""
        for process in self._behind:
            if process.stdout is None:
                assert process.wait(COMMAND_S) == 0, self._logs()
        for process in self._behind:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(COMMAND_S) == 0

    def kill(self) -> None:
        """End all that is left of a test that went wrong."""
        for process in self._behind:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(COMMAND_S)

    def _leave(self, command: str) -> None:
        """Let it run; a server, which writes to no log, is waited for."""
        process = subprocess.Popen(
            ["/bin/bash", "-c", f"exec {command}"],
            cwd=self._folder,
            env=self._environment,
            stdout=None if ">" in command else subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._behind.append(process)
        if process.stdout is not None:
            assert any(line.startswith(LISTENS) for line in process.stdout)
            threading.Thread(target=drain, args=(process.stdout,)).start()

    def _logs(self) -> str:
        logs = self._folder.glob("*.log")
        return "\n".join(f"{log.name}: {log.read_text()}" for log in logs)


def drain(said: IO[str]) -> None:
    """Read what nobody will, so that it does not stand in the way."""
    with said:
        deque(said, maxlen=0)


@contextmanager
def terminal(folder: Path) -> Generator[Terminal]:
    """Yield a terminal; what was started in it has ended well, or the test has not."""
    opened = Terminal(folder)
    try:
        yield opened
        opened.close()
    finally:
        opened.kill()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short path, for a socket's sake, and the examples in it."""
    made = tmp_path_factory.mktemp("d")
    (made / "examples").symlink_to(EXAMPLES)
    return made


def steps(page: str) -> Iterator[Step]:
    """Yield what a page tells its reader to do."""
    for block in BLOCK.finditer(page):
        if block["console"]:
            lines = block["body"].splitlines()
            yield from (Step(one[2:]) for one in lines if one.startswith("$ "))
        else:
            file = block["file"].removeprefix("added to ")
            yield Step(file=file, lines=block["body"])


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def digest(record: Path) -> str:
    return blake3((record / "global.safetensors").read_bytes()).hexdigest()


def test_the_how_to_comes_to_the_model_of_its_rehearsal(folder: Path) -> None:
    page, address = HOW_TO.read_text(encoding="utf-8"), free_address()
    for place in PLACES:
        page = page.replace(place, address)
    said = {}

    with terminal(folder) as here:
        for step in steps(page):
            if step.command:
                said[step.command] = here.type(step.command)
            else:
                with (folder / step.file).open("a", encoding="utf-8") as file:
                    file.write(step.lines)

    assert digest(folder / "result") == digest(folder / "rehearsal")
    assert "heart-1: finished" in said["flare run watch heart-1 --home rita"]
    hashes = said["grep blake3 rehearsal/result.json result/result.json"]
    assert hashes.count(digest(folder / "result")) == 2
    assert ServerFolder(folder / "flare-server").settings().limits.strangers == 32


@pytest.mark.parametrize(
    ("rehearsed", "at_the_site", "share"),
    [
        pytest.param(
            EXAMPLES / "unchanged_huggingface.py",
            f"flare run --home SITE {EXAMPLES}/unchanged_huggingface.py",
            "--part {index} --parts 4",
            id="huggingface",
        ),
        pytest.param(
            BUNDLE / "run_bundle.py",
            f"env -C {BUNDLE} flare run --home SITE python -m monai.bundle run",
            f"--config_file {BUNDLE}/configs/train.json "
            "--part {index} --parts {count}",
            id="bundle",
        ),
    ],
)
def test_an_unchanged_script_at_two_sites_comes_to_the_simulations_model(
    rehearsed: Path, at_the_site: str, share: str, folder: Path
) -> None:
    plan = "rounds = 2\nschedule.every_n_steps = 1\nselection.sites = 2\n"
    (folder / "plan.toml").write_text(plan)

    with terminal(folder) as here:
        here.type(f"flare simulate {rehearsed} --plan plan.toml --run-dir s -- {share}")
        here.type("flare server init server --listen tcp://127.0.0.1:0")
        here.type("flare server start server &")
        here.type("flare run create plan.toml --name run-1 --home server")
        for index, site in enumerate(("hospital-a", "hospital-b")):
            here.type(f"flare invite {site} --out {site}.invitation --home server")
            here.type(f"flare accept {site}.invitation --home {site}")
            mine = share.replace("{index}", str(index)).replace("{count}", "2")
            command = at_the_site.replace("SITE", str(folder / site))
            here.type(f"{command} {mine} > {site}.log 2>&1 &")
        here.type("flare run watch run-1 --home server")
        here.type("flare run download run-1 result --home server")

    assert digest(folder / "result") == digest(folder / "s")
