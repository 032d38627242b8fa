"""Sites on the server's machine put their updates where it looks for them."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest

import flare_core as flare
from flare_core.application import Published, RoundPlayed, RoundRecord
from flare_core.communication import Join, Offer, Refused, Start, fill_file, pack
from proxy import Proxy
from site_scripts import (
    WAIT_S,
    Local,
    Stranger,
    Train,
    add,
    hello,
    plan,
    play,
    stream_id,
)
from support import RunningServer, RunServer, SiteFile

_NUM_BYTES = 400_000
_MODEL = {"w": np.random.default_rng(0).standard_normal(_NUM_BYTES // 4, np.float32)}
_ENCODINGS = {
    "as they are": flare.Encoding(),
    "int8": flare.Encoding(up="int8", down="int8"),
    "topk, xor": flare.Encoding(up="topk", keep=0.001, down="xor"),
}


def _train(site: str) -> Train:
    def train(current: flare.ClientRound) -> Local:
        rng = np.random.default_rng([current.number, *site.encode()])
        w = current.weights["w"]
        return {"w": w + np.float32(1e-3) * rng.standard_normal(len(w), np.float32)}, 1

    return train


def _records(server: RunningServer) -> list[RoundRecord]:
    return [e.record for e in server.events if isinstance(e, RoundPlayed)]


@pytest.mark.parametrize("encoding", _ENCODINGS.values(), ids=_ENCODINGS)
def test_a_shared_spool_changes_nothing_but_the_way(
    encoding: flare.Encoding,
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
) -> None:
    selection = flare.Selection(sites=2)
    three_rounds = flare.Plan(rounds=3, selection=selection, encoding=encoding)
    found = []
    for share in (False, True):
        server = run_server(three_rounds, share_spool=share)
        spool = server.server.spool if share else None
        with Proxy(server.endpoint) as proxy:
            sites = [
                pool.submit(
                    play,
                    site_file(name, proxy.endpoint, spool=spool),
                    _MODEL,
                    _train(name),
                )
                for name in "ab"
            ]
            weights = [site.result(WAIT_S) for site in sites]
        *_, last = [e for e in server.events if isinstance(e, Published)]
        assert weights == [last.weights] * 2
        assert server.result().error == ""
        assert not server.server.spool.exists()
        records = _records(server)
        found.append(
            [
                (r.blake3, r.bytes_up, r.bytes_down, r.sites["a"].error_up)
                for r in records
            ]
        )
        travelled = sum(proxy.passed.values())
        assert travelled < 50_000 if share else travelled > _NUM_BYTES

    over_the_wire, shared = found

    assert shared == over_the_wire
    assert len(shared) == 3


def test_a_site_may_share_it_and_another_not(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(plan(rounds=2), share_spool=True)
    files = [
        site_file("a", server.endpoint),
        site_file("b", server.endpoint, spool=server.server.spool),
    ]

    sites = [pool.submit(play, file, _MODEL, add(1)) for file in files]

    first, second = (site.result(WAIT_S) for site in sites)
    assert first == second
    assert {r.sites[s].bytes_down for r in _records(server) for s in "ab"} == {
        r.sites["a"].bytes_up for r in _records(server)
    }


def test_a_server_that_shares_nothing_says_so(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(plan(sites=1))

    with pytest.raises(flare.RefusedError, match=r"'a'.*says to share"):
        play(site_file("a", server.endpoint, spool=tmp_path), _MODEL, add(1))

    assert server.result().failed_site == "a"


def test_a_spool_that_is_not_the_server_s_is_found_out(
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    server = run_server(plan(), share_spool=True)
    spool = server.server.spool
    a = pool.submit(play, site_file("a", server.endpoint), _MODEL, add(1))
    other = site_file("b", server.endpoint, spool=tmp_path / "other")

    b = pool.submit(play, other, _MODEL, add(1))  # takes the model over the wire

    with pytest.raises(flare.RefusedError) as refused:
        b.result(WAIT_S)
    assert f"{spool / 'updates' / 'b.safetensors'}" in str(refused.value)
    assert "No such file" in str(refused.value)
    assert isinstance(a.exception(WAIT_S), flare.RunAbortedError)


def test_a_file_of_another_size_than_was_said_is_refused(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(plan(), share_spool=True)
    large = flare.ModelState(_MODEL)
    frames = pack(large)
    num_bytes = sum(map(len, frames))
    a = pool.submit(play, site_file("a", server.endpoint), _MODEL, add(1))
    with closing(Stranger(server.endpoint)) as b:
        b.join("b", large.layout)
        assert isinstance(b.hear(), Start)
        path = server.server.spool / "updates" / "b.safetensors"
        digest = fill_file(path, num_bytes - len(frames[-1]), frames[:-1])

        b.say(
            Offer(
                stream=stream_id(),
                num_bytes=num_bytes,
                round_number=0,
                num_examples=1,
                spooled=digest,
            )
        )

        refused = b.hear()
        assert isinstance(refused, Refused)
        assert refused.refusal.expected == f"{num_bytes:,} bytes in {path}"
    assert isinstance(a.exception(WAIT_S), flare.RunAbortedError)


def test_an_offer_that_is_repeated_after_a_break_counts_once(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(plan(rounds=1), share_spool=True)
    spool, session = server.server.spool, stream_id()
    large = flare.ModelState(_MODEL)
    frames = pack(large)
    num_bytes = sum(map(len, frames))
    a = pool.submit(play, site_file("a", server.endpoint, spool=spool), _MODEL, add(1))
    offer = Offer(
        stream=stream_id(), num_bytes=num_bytes, round_number=0, num_examples=3
    )
    with closing(Stranger(server.endpoint)) as before:
        before.say(hello("b", session=session))
        before.hear()
        before.say(Join(layout=large.layout))
        assert isinstance(before.hear(), Start)
        digest = fill_file(spool / "updates" / "b.safetensors", num_bytes, frames)
        offer = msgspec.structs.replace(offer, spooled=digest)
        before.say(offer)
        while not isinstance(before.hear(), Start):
            pass
    with closing(Stranger(server.endpoint)) as after:
        after.say(hello("b", session=session))
        after.say(offer)

        while not isinstance(heard := after.hear(), Start):
            pass
        assert heard.final

    (record,) = _records(server)
    assert record.num_examples == 1 + 3
    a.result(WAIT_S)
