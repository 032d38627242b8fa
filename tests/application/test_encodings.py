from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Literal

import numpy as np
import pytest

import flare_core as flare
from flare_core.application import Published, RoundPlayed, RoundRecord
from flare_core.communication import Offer, Refused, Start
from site_scripts import (
    WAIT_S,
    Local,
    Stranger,
    add,
    hello,
    model,
    play,
    stream_id,
    wander,
)
from support import RunServer, SiteFile

_ROUNDS = 3
_NUM_BYTES = 400_000


def _initial() -> dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    return {"w": rng.standard_normal(_NUM_BYTES // 4, np.float32)}


def _played(
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
    encoding: flare.Encoding,
) -> tuple[flare.ModelState, list[RoundRecord]]:
    selection = flare.Selection(sites=2)
    server = run_server(
        flare.Plan(rounds=_ROUNDS, selection=selection, encoding=encoding)
    )
    sites = [
        pool.submit(play, site_file(name, server.endpoint), _initial(), wander(name))
        for name in "ab"
    ]
    first, second = (site.result(WAIT_S) for site in sites)
    assert server.result().error == ""  # only then is the final model on record
    *_, last = server.told(Published)
    assert first == second == last.weights  # however they came by their bits
    return first, [e.record for e in server.told(RoundPlayed)]


def test_a_lossless_encoding_changes_no_bit_and_sends_less(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    encoding = flare.Encoding(up="xor", down="xor")

    plain, as_they_are = _played(run_server, site_file, pool, flare.Encoding())
    encoded, records = _played(run_server, site_file, pool, encoding)

    assert encoded == plain
    assert [r.blake3 for r in records] == [r.blake3 for r in as_they_are]
    assert all(r.bytes_up < 0.8 * 2 * _NUM_BYTES for r in records)
    assert records[0].bytes_down > 2 * _NUM_BYTES  # the first one is told whole
    assert all(r.bytes_down < 0.8 * 2 * _NUM_BYTES for r in records[1:])
    assert {site.error_up for r in records for site in r.sites.values()} == {0}
    assert {r.error_down for r in records} == {0}


@pytest.mark.parametrize(
    ("name", "fraction", "error"), [("bf16", 0.51, 0.004), ("int8", 0.27, 0.03)]
)
def test_a_rounded_model_is_near_and_its_error_on_record(
    *,
    name: Literal["bf16", "int8"],
    fraction: float,
    error: float,
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
) -> None:
    encoding = flare.Encoding(up=name, down=name)

    plain, _ = _played(run_server, site_file, pool, flare.Encoding())
    rounded, records = _played(run_server, site_file, pool, encoding)

    moved = np.linalg.norm(plain["w"] - _initial()["w"])
    assert 0 < np.linalg.norm(rounded["w"] - plain["w"]) < 2 * error * moved
    assert all(r.bytes_up < fraction * 2 * _NUM_BYTES for r in records)
    assert all(r.bytes_down < fraction * 2 * _NUM_BYTES for r in records[1:])
    for record in records:
        assert 0 < record.error_down < error
        assert all(0 < site.error_up < error for site in record.sites.values())


def test_what_top_k_leaves_out_is_sent_in_later_rounds(
    run_server: RunServer, site_file: SiteFile
) -> None:
    def once(current: flare.ClientRound) -> Local:
        step = np.zeros(1_000, np.float32)
        if current.number == 0:
            step[:400] = np.arange(400, 0, -1)
        return {"w": current.weights["w"] + step}, 1

    encoding = flare.Encoding(up="topk", keep=0.1)
    server = run_server(flare.Plan(rounds=4, encoding=encoding))

    final = play(
        site_file("a", server.endpoint), {"w": np.zeros(1_000, np.float32)}, once
    )

    assert final["w"][:400].tolist() == list(range(400, 0, -1))


def test_an_update_told_against_another_model_is_refused(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    selection = flare.Selection(sites=2, quorum=1)
    encoding = flare.Encoding(up="int8")
    server = run_server(flare.Plan(rounds=1, selection=selection, encoding=encoding))
    a = pool.submit(play, site_file("a", server.endpoint), model(1), add(1))
    with closing(Stranger(server.endpoint)) as b:
        b.say(hello("b"))
        b.hear()
        b.propose(flare.ModelState(model(1)).layout)
        assert isinstance(b.hear(), Start)

        b.say(Offer(stream=stream_id(), num_bytes=9, round_number=0, base=stream_id()))

        answer = b.hear()
    assert isinstance(answer, Refused)
    assert answer.refusal.expected.startswith("weights told against the global model")
    assert a.result(WAIT_S)["w"].tolist() == [2]
