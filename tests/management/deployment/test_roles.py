"""The one table of who may do what."""

from typing import get_args

import msgspec
import pytest
from typer.testing import CliRunner

from flare_core.communication import (
    Enrol,
    ReadRun,
    Request,
    RunFile,
)
from flare_core.management._deployment import MAY, ROLES
from flare_core.management._deployment._roles import Act, act_of
from flare_core.management.cli import app

_REQUESTS: tuple[type[msgspec.Struct], ...] = get_args(Request)


def _some(request: type[msgspec.Struct]) -> msgspec.Struct:
    """Return a request with anything in it: its act is that of its kind."""
    given = {
        field.name: "x" for field in msgspec.structs.fields(request) if field.required
    }
    return request(**given)


@pytest.mark.parametrize("request_", _REQUESTS, ids=lambda one: one.__name__)
def test_every_request_is_an_act_of_the_table_but_to_enrol(
    request_: type[msgspec.Struct],
) -> None:
    act = act_of(_some(request_))  # type: ignore[arg-type]  # one of the union

    assert (act is None) is (request_ is Enrol)
    assert act is None or act in MAY


@pytest.mark.parametrize("file", get_args(RunFile))
def test_the_model_is_downloaded_and_the_rest_of_a_record_is_seen(
    file: RunFile,
) -> None:
    expected = Act.DOWNLOAD if file.endswith(".safetensors") else Act.SEE

    assert act_of(ReadRun(run="demo", file=file)) is expected


def test_the_table_says_of_every_act_who_may_do_it() -> None:
    assert set(MAY) == set(Act)
    assert MAY[Act.TAKE_PART] == {"site"}
    assert MAY[Act.MEMBERS] == {"admin"}
    assert MAY[Act.CREATE] == MAY[Act.DOWNLOAD] == {"admin", "researcher"}
    assert MAY[Act.SEE] == {"admin", "researcher", "observer"}
    assert MAY[Act.OWN_KEY] == set(ROLES)


def test_flare_roles_prints_the_table() -> None:
    printed = CliRunner().invoke(app, ["roles"], env={"COLUMNS": "120"}).output

    for act in Act:
        (line,) = (one for one in printed.splitlines() if str(act) in one)
        cells = [cell.strip() for cell in line.replace("│", "|").split("|")[2:-1]]
        assert cells == ["yes" if role in MAY[act] else "-" for role in ROLES]
