import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from flare_core import ConfigurationError, ProtocolError
from flare_core.communication import (
    Chunk,
    Commit,
    CorruptedError,
    Mailbox,
    Offer,
    Outgoing,
    Parcel,
    Want,
    _mailbox,
    _streams,
)

pytestmark = pytest.mark.usefixtures("small_chunks")

_NUMBERS = itertools.count(1)


class _Site:
    """What a site does: sends what it is asked for, then says that this was all."""

    def __init__(self, name: str, content: bytes, *, stream: bytes = b"") -> None:
        self.name = name
        self.content = content
        stream = stream or next(_NUMBERS).to_bytes(16, "little")
        self.offer = Offer(stream=stream, num_bytes=len(content), round_number=0)
        self.commit = Commit(stream=stream, digest=xxhash.xxh3_128_digest(content))
        self.in_flight: list[Chunk | Commit] = []
        self.granted = self.arrived = 0

    @property
    def need(self) -> int:
        return min(len(self.content), _streams.CHUNK_BYTES)

    @property
    def underway(self) -> int:
        return self.granted - self.arrived

    def hear(self, want: Want) -> None:
        assert want.stream == self.offer.stream
        assert want.start == self.granted < want.stop <= len(self.content)
        self.granted = want.stop
        outgoing = Outgoing([self.content])
        for offset, frames in outgoing.chunks(want.start, want.stop):
            self.in_flight.append(Chunk(want.stream, offset, frames))
        if want.stop == len(self.content):
            self.in_flight.append(self.commit)

    def break_off(self) -> None:
        self.in_flight.clear()
        self.granted = self.arrived

    def begin_anew(self) -> None:
        self.granted = self.arrived = 0

    def deliver(self, mailbox: Mailbox) -> Parcel | None:
        message = self.in_flight.pop(0)
        if isinstance(message, Commit):
            return mailbox.commit(self.name, message)
        mailbox.take(self.name, message)
        self.arrived += sum(map(len, message.frames))
        return None


def _named(*sites: _Site) -> dict[str, _Site]:
    return {site.name: site for site in sites}


def _hand_out(mailbox: Mailbox, sites: dict[str, _Site]) -> list[str]:
    """Tell the sites what is wanted, and return who was told, in order."""
    told = list(mailbox.wants())
    for name, want in told:
        sites[name].hear(want)
    return [name for name, _ in told]


def _play(mailbox: Mailbox, site: _Site) -> Parcel:
    """Send all that a site has to send; it is the only one."""
    while True:
        _hand_out(mailbox, _named(site))
        parcel = site.deliver(mailbox)
        if parcel is not None:
            return parcel


class Uploads(RuleBasedStateMachine):
    """Whatever sites do, files hold what was sent, and little is under way at once."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.mailbox = Mailbox()
        self.sites: dict[str, _Site] = {}
        self.admitted: set[str] = set()

    @rule(
        name=st.sampled_from([f"{i:02}" for i in range(30)]),
        content=st.binary(min_size=3, max_size=60),
    )
    def offer(self, name: str, content: bytes) -> None:
        site = _Site(name, content)
        self.mailbox.open(name, site.offer, self.folder / name)
        self.sites[name] = site
        self.admitted.discard(name)
        self._hand_out()

    @precondition(lambda self: self.sites)
    @rule(data=st.data())
    def offer_again(self, data: st.DataObject) -> None:
        site = data.draw(st.sampled_from(list(self.sites.values())))
        site.break_off()
        self.mailbox.open(site.name, site.offer, self.folder / site.name)
        site.in_flight.append(site.commit)  # as it may be what was lost
        self._deliver(site)

    @precondition(lambda self: any(site.in_flight for site in self.sites.values()))
    @rule(data=st.data(), num_messages=st.integers(1, 9))
    def deliver(self, data: st.DataObject, num_messages: int) -> None:
        speaking = [site for site in self.sites.values() if site.in_flight]
        site = data.draw(st.sampled_from(speaking))
        for _ in range(min(num_messages, len(site.in_flight))):
            self._deliver(site)

    @precondition(lambda self: self.sites)
    @rule(data=st.data())
    def send_what_is_stale(self, data: st.DataObject) -> None:
        site = data.draw(st.sampled_from(list(self.sites.values())))
        other = bytes(15) + b"\xff"
        self.mailbox.take(site.name, Chunk(other, site.arrived, [b"of another"]))
        self.mailbox.take("stranger", Chunk(site.offer.stream, 0, [b"of no site"]))
        assert (
            self.mailbox.commit(site.name, Commit(stream=other, digest=other)) is None
        )
        if site.arrived < len(site.content):
            assert self.mailbox.commit(site.name, site.commit) is None
        self._hand_out()

    @precondition(lambda self: self.sites)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(self.sites)))
        self.mailbox.forget(name)
        del self.sites[name]
        self.admitted.discard(name)
        self._hand_out()

    def _deliver(self, site: _Site) -> None:
        parcel = site.deliver(self.mailbox)
        if parcel is not None:
            assert (parcel.site, parcel.offer) == (site.name, site.offer)
            assert bytes(parcel.contents()) == site.content
            assert self.mailbox.has(site.name, site.offer.stream)
            del self.sites[site.name]
            self.admitted.discard(site.name)
        self._hand_out()

    def _hand_out(self) -> None:
        waiting = self.sites.keys() - self.admitted
        told = _hand_out(self.mailbox, self.sites)
        new = sorted(waiting.intersection(told))
        self.admitted.update(new)
        assert new == sorted(waiting)[: len(new)]  # the first by name
        share = _mailbox._ROOM_BYTES // max(1, len(self.admitted))
        window = min(max(share, 8), _streams.WINDOW * 8)
        assert all(self.sites[name].underway <= window for name in told)

    @invariant()
    def only_those_are_admitted_for_whom_there_is_room(self) -> None:
        used = sum(self.sites[name].need for name in self.admitted)
        assert used <= _mailbox._ROOM_BYTES
        waiting = sorted(self.sites.keys() - self.admitted)
        assert not waiting or used + self.sites[waiting[0]].need > _mailbox._ROOM_BYTES

    @invariant()
    def who_waits_was_asked_for_nothing(self) -> None:
        waiting = self.sites.keys() - self.admitted
        assert not any(self.sites[name].granted for name in waiting)

    def teardown(self) -> None:
        try:
            while self.sites:  # nobody is left behind
                speaking = [site for site in self.sites.values() if site.in_flight]
                self._deliver(speaking[0])
        finally:
            self.mailbox.close()
            self.temporary.cleanup()


TestUploads = Uploads.TestCase
TestUploads.settings = settings(max_examples=40)


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    mailbox = Mailbox()
    yield mailbox
    mailbox.close()


@settings(max_examples=20)
@given(st.data(), st.sampled_from([1, 3, 16, 17, 40]))
def test_sites_that_begin_together_never_have_more_under_way_than_the_room(
    data: st.DataObject, num_sites: int
) -> None:
    sites = _named(*(_Site(f"{i:02}", bytes([i]) * 50) for i in range(num_sites)))
    mailbox = Mailbox()
    arrived: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, site in sites.items():
            mailbox.open(name, site.offer, Path(folder, name))
        while len(arrived) < num_sites:
            _hand_out(mailbox, sites)
            underway = sum(site.underway for site in sites.values())
            assert underway <= _mailbox._ROOM_BYTES
            speaking = [site for site in sites.values() if site.in_flight]
            site = data.draw(st.sampled_from(speaking))
            while site.in_flight:
                parcel = site.deliver(mailbox)
                if parcel is not None:
                    arrived[site.name] = bytes(parcel.contents())

    assert arrived == {name: site.content for name, site in sites.items()}


def test_room_is_given_by_name_whoever_came_first(
    mailbox: Mailbox, tmp_path: Path
) -> None:
    names = [f"{i:02}" for i in range(20)]
    sites = _named(*(_Site(name, bytes(8)) for name in names))
    for name in reversed(names):
        mailbox.open(name, sites[name].offer, tmp_path / name)

    assert _hand_out(mailbox, sites) == names[:8]
    assert _hand_out(mailbox, sites) == []
    for name in ("07", "03"):
        while sites[name].in_flight:
            parcel = sites[name].deliver(mailbox)
        assert parcel is not None
    assert _hand_out(mailbox, sites) == ["08", "09"]


def test_who_is_forgotten_leaves_its_room_to_others(
    mailbox: Mailbox, tmp_path: Path
) -> None:
    sites = _named(*(_Site(f"{i:02}", bytes(8)) for i in range(10)))
    for name, site in sites.items():
        mailbox.open(name, site.offer, tmp_path / name)
    _hand_out(mailbox, sites)

    mailbox.forget("08")  # which waits
    mailbox.forget("05")
    mailbox.forget("05")
    mailbox.forget("nobody")

    assert _hand_out(mailbox, sites) == ["09"]


def test_an_upload_that_is_offered_again_goes_on_where_it_was(
    mailbox: Mailbox, tmp_path: Path
) -> None:
    site = _Site("a", bytes(range(100)))
    path = tmp_path / "a"
    mailbox.open("a", site.offer, path)
    _hand_out(mailbox, _named(site))
    for _ in range(3):
        site.deliver(mailbox)
    site.break_off()

    mailbox.open("a", site.offer, path)

    ((name, want),) = mailbox.wants()
    assert (name, want.start) == ("a", 24)
    site.hear(want)
    assert bytes(_play(mailbox, site).contents()) == site.content
    assert path.read_bytes() == site.content


def test_another_upload_of_a_site_takes_the_place_of_the_first(
    mailbox: Mailbox, tmp_path: Path
) -> None:
    first, second = _Site("a", b"1" * 30), _Site("a", b"2" * 20)
    mailbox.open("a", first.offer, tmp_path / "a")
    _hand_out(mailbox, _named(first))
    first.deliver(mailbox)

    mailbox.open("a", second.offer, tmp_path / "a")

    first.deliver(mailbox)  # which is stale now
    assert bytes(_play(mailbox, second).contents()) == second.content
    assert mailbox.has("a", second.offer.stream)
    assert not mailbox.has("a", first.offer.stream)
    assert not mailbox.has("b", second.offer.stream)


def _damaged(site: _Site) -> _Site:
    """Return the site as the server hears it: with one bit changed."""
    other = _Site(site.name, b"\1" + site.content[1:], stream=site.offer.stream)
    other.commit = site.commit
    return other


@pytest.mark.parametrize("num_damaged", [0, 1, 2])
def test_what_was_changed_on_its_way_is_asked_for_again(
    num_damaged: int, mailbox: Mailbox, tmp_path: Path
) -> None:
    site = _Site("a", bytes(30))
    mailbox.open("a", site.offer, tmp_path / "a")

    for _ in range(num_damaged):
        damaged = _damaged(site)
        _hand_out(mailbox, _named(damaged))
        while damaged.in_flight:
            assert damaged.deliver(mailbox) is None

    assert bytes(_play(mailbox, site).contents()) == bytes(30)


def test_what_is_changed_again_and_again_is_given_up(
    mailbox: Mailbox, tmp_path: Path
) -> None:
    site = _Site("a", bytes(30))
    mailbox.open("a", site.offer, tmp_path / "a")
    for _ in range(2):
        damaged = _damaged(site)
        _hand_out(mailbox, _named(damaged))
        while damaged.in_flight:
            damaged.deliver(mailbox)
    damaged = _damaged(site)
    _hand_out(mailbox, _named(damaged))

    while isinstance(damaged.in_flight[0], Chunk):
        damaged.deliver(mailbox)

    with pytest.raises(CorruptedError):
        damaged.deliver(mailbox)

    assert not mailbox.has("a", site.offer.stream)


def test_more_than_was_asked_for_is_an_error(mailbox: Mailbox, tmp_path: Path) -> None:
    site = _Site("a", bytes(30))
    mailbox.open("a", site.offer, tmp_path / "a")

    with pytest.raises(ProtocolError, match="0 bytes were asked for, got 8"):
        mailbox.take("a", Chunk(site.offer.stream, 0, [bytes(8)]))


def test_a_short_update_needs_a_commit_only_and_no_file(mailbox: Mailbox) -> None:
    digest = xxhash.xxh3_128_digest(b"ab")
    offer = Offer(stream=bytes(16), num_bytes=2, round_number=0, short=b"ab")

    mailbox.open("a", offer, None)
    mailbox.open("a", offer, None)  # after a break
    assert not list(mailbox.wants())
    parcel = mailbox.commit("a", Commit(stream=bytes(16), digest=digest))

    assert parcel == Parcel("a", offer, None)
    assert bytes(parcel.contents()) == b"ab"


def test_a_short_update_goes_into_a_file_where_one_is_wanted(
    mailbox: Mailbox, tmp_path: Path
) -> None:
    digest = xxhash.xxh3_128_digest(b"ab")
    offer = Offer(stream=bytes(16), num_bytes=2, round_number=0, short=b"ab")
    path = tmp_path / "a"

    mailbox.open("a", offer, path)
    parcel = mailbox.commit("a", Commit(stream=bytes(16), digest=digest))

    assert parcel == Parcel("a", offer, path)
    assert path.read_bytes() == bytes(parcel.contents()) == b"ab"


def test_a_short_update_that_was_changed_is_given_up(mailbox: Mailbox) -> None:
    offer = Offer(stream=bytes(16), num_bytes=2, round_number=0, short=b"ab")
    mailbox.open("a", offer, None)

    with pytest.raises(CorruptedError):
        mailbox.commit("a", Commit(stream=bytes(16), digest=bytes(16)))


def test_a_file_that_cannot_be_had_is_said_and_its_site_is_not_known(
    mailbox: Mailbox, tmp_path: Path
) -> None:
    (tmp_path / "occupied").touch()
    site = _Site("a", bytes(30))

    with pytest.raises(ConfigurationError, match="cannot write 30 bytes to"):
        mailbox.open("a", site.offer, tmp_path / "occupied" / "a")

    assert not list(mailbox.wants())
    mailbox.forget("a")
