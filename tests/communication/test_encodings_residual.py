"""Error feedback: nothing of an update is lost, only late."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare_core import ConfigurationError, ModelState
from flare_core._model import Array
from flare_core.communication._encodings import (
    Encoded,
    Residual,
    decode_model,
    encode_model,
)

BF16 = np.dtype(ml_dtypes.bfloat16)
KEEP = 0.05
Sums = dict[str, Array]


def _model(seed: int = 0) -> ModelState:
    rng = np.random.default_rng(seed)
    return ModelState(
        {
            "double": rng.standard_normal(100),
            "half": rng.standard_normal(100).astype(np.float16),
            "brain": rng.standard_normal((4, 25)).astype(BF16),
            "single": rng.standard_normal(10_000).astype(np.float32),
        }
    )


def _trained(base: ModelState, seed: int) -> ModelState:
    step = _model(seed)
    return ModelState(
        {
            name: (array.astype(float) + 0.1 * step[name].astype(float)).astype(
                array.dtype
            )
            for name, array in base.items()
        }
    )


def _sent(
    values: ModelState, base: ModelState, residual: Residual, at: Path
) -> Encoded:
    return encode_model("topk", values, base, folder=at, keep=KEEP, residual=residual)


def _file(encoded: Encoded) -> memoryview:
    return memoryview(b"".join(encoded.frames))


def _arrived(encoded: Encoded, base: ModelState) -> ModelState:
    pieces = decode_model("topk", _file(encoded), base)
    return ModelState(
        {spec.name: values.reshape(spec.shape) for spec, _, values in pieces}
    )


def _added(sums: Sums, new: ModelState, old: ModelState) -> None:
    for name, array in new.items():
        sums[name] = sums[name] + (array.astype(float) - old[name].astype(float))


def _kept(folder: Path, model: ModelState) -> Sums:
    """Read what is committed, in the order of the file: all are encoded, so by name."""
    with Residual(folder, site="a", run="r").next_one(model.layout) as feedback:
        return {
            name: feedback.carried(model[name].size).reshape(model[name].shape)
            for name in sorted(model)
        }


def _zeros(model: ModelState) -> Sums:
    return {name: np.zeros(array.shape) for name, array in model.items()}


def test_what_was_sent_and_what_is_kept_are_what_was_trained(tmp_path: Path) -> None:
    base = _model()
    trained, sent = _zeros(base), _zeros(base)
    residual = Residual(tmp_path, site="a", run="r")
    for number in range(100):
        if number % 10 == 0:  # the site starts anew
            residual = Residual(tmp_path, site="a", run="r")
        values = _trained(base, number + 1)
        encoded = _sent(values, base, residual, tmp_path)
        arrived = _arrived(encoded, base)
        residual.commit()
        _added(trained, values, base)
        _added(sent, arrived, base)
        base = arrived

    kept = _kept(tmp_path, base)

    for name in base:
        assert np.abs(kept[name]).max() > 0
        np.testing.assert_allclose(
            sent[name] + kept[name], trained[name], rtol=0, atol=2.5e-14
        )


def test_the_error_is_what_is_kept_of_what_was_to_be_sent(tmp_path: Path) -> None:
    base = _model()
    residual = Residual(tmp_path, site="a", run="r")
    for number in (1, 2):
        values = _trained(base, number)
        before = _kept(tmp_path, base) if number == 2 else _zeros(base)
        encoded = _sent(values, base, residual, tmp_path)
        residual.commit()

    after = _kept(tmp_path, base)
    _added(before, values, base)
    norm = [
        sum(np.square(one).sum() for one in sums.values()) ** 0.5
        for sums in (after, before)
    ]
    assert encoded.error == pytest.approx(norm[0] / norm[1], rel=1e-9)


def test_without_a_commit_the_same_bytes_are_sent_again(tmp_path: Path) -> None:
    base, values = _model(), _trained(_model(), 1)
    residual = Residual(tmp_path, site="a", run="r")
    _sent(values, base, residual, tmp_path)
    residual.commit()

    first = _file(_sent(values, base, residual, tmp_path))
    again = _file(_sent(values, base, residual, tmp_path))
    restarted = Residual(tmp_path, site="a", run="r")
    after_a_restart = _file(_sent(values, base, restarted, tmp_path))
    restarted.commit()
    after_a_commit = _file(_sent(values, base, restarted, tmp_path))

    assert first == again == after_a_restart != after_a_commit


@pytest.mark.parametrize("commits", ["both", "the later process", "nobody"])
def test_an_accepted_update_of_a_process_that_died_is_committed_by_the_next_one(
    commits: str, tmp_path: Path
) -> None:
    base, values = _model(), _trained(_model(), 1)
    undisturbed = Residual(tmp_path / "undisturbed", site="a", run="r")
    first = _file(_sent(values, base, undisturbed, tmp_path))
    undisturbed.commit()
    expected = _file(_sent(values, base, undisturbed, tmp_path))

    dying = Residual(tmp_path, site="a", run="r")
    _sent(values, base, dying, tmp_path)
    if commits == "both":
        dying.commit()
    restarted = Residual(tmp_path, site="a", run="r")
    if commits != "nobody":
        restarted.commit_earlier()

    sent = _file(_sent(values, base, restarted, tmp_path))
    assert sent == (first if commits == "nobody" else expected)


def test_what_another_runs_update_left_is_not_committed(tmp_path: Path) -> None:
    base, values = _model(), _trained(_model(), 1)
    first = _file(_sent(values, base, Residual(tmp_path, site="a", run="r"), tmp_path))

    other = Residual(tmp_path, site="a", run="other")
    other.commit_earlier()

    assert _file(_sent(values, base, other, tmp_path)) == first


def test_a_second_commit_changes_nothing(tmp_path: Path) -> None:
    base, values = _model(), _trained(_model(), 1)
    residual = Residual(tmp_path, site="a", run="r")
    _sent(values, base, residual, tmp_path)
    residual.commit()
    before = _kept(tmp_path, base)

    Residual(tmp_path, site="a", run="r").commit()
    residual.commit()

    after = _kept(tmp_path, base)
    assert all((before[name] == after[name]).all() for name in base)


def test_an_update_that_failed_is_not_committed(tmp_path: Path) -> None:
    base, values = _model(), _trained(_model(), 1)
    residual = Residual(tmp_path, site="a", run="r")
    _sent(values, base, residual, tmp_path)
    residual.commit()
    before = (tmp_path / "a-r.residual").read_bytes()
    with pytest.raises(ValueError, match="keep"):
        encode_model("topk", values, base, folder=tmp_path, keep=2, residual=residual)

    residual.commit()

    assert (tmp_path / "a-r.residual").read_bytes() == before


def test_an_update_that_is_not_finite_spoils_no_later_one(tmp_path: Path) -> None:
    base = _model()
    values = {name: array.copy() for name, array in _trained(base, 1).items()}
    values["single"][:] = np.nan
    residual = Residual(tmp_path, site="a", run="r")
    _sent(ModelState(values), base, residual, tmp_path)
    residual.commit()

    kept = _kept(tmp_path, base)

    assert all(np.isfinite(array).all() for array in kept.values())
    assert np.abs(kept["double"]).max() > 0


def test_another_run_starts_from_nothing(tmp_path: Path) -> None:
    base, values = _model(), _trained(_model(), 1)
    first = Residual(tmp_path, site="a", run="first")
    encoded = _sent(values, base, first, tmp_path)
    first.commit()

    other = _sent(values, base, Residual(tmp_path, site="a", run="other"), tmp_path)

    assert _file(other) == _file(encoded)


def test_sites_do_not_share_a_residual(tmp_path: Path) -> None:
    base, values = _model(), _trained(_model(), 1)
    for site in "ab":
        residual = Residual(tmp_path / "new", site=site, run="r")
        _sent(values, base, residual, tmp_path)
        residual.commit()

    found = {path.name for path in (tmp_path / "new").iterdir()}

    assert found == {"a-r.residual", "b-r.residual"}


def test_a_residual_of_another_model_is_an_error(tmp_path: Path) -> None:
    residual = Residual(tmp_path, site="a", run="r")
    _sent(_trained(_model(), 1), _model(), residual, tmp_path)
    residual.commit()
    other = ModelState({"w": np.zeros(100)})

    with pytest.raises(
        ConfigurationError, match=r"a-r\.residual: expected layout .*del"
    ):
        _sent(other, other, residual, tmp_path)


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    residual = Residual(folder, site="a", run="r")
    base = ModelState({"w": np.zeros(64), "v": np.zeros(64)})
    _sent(ModelState({"w": np.ones(64), "v": np.ones(64)}), base, residual, folder)
    residual.commit()
    return folder / "a-r.residual"


@given(data=st.data(), how=st.sampled_from(["change", "cut", "append"]))
def test_a_damaged_residual_is_an_error(
    committed: Path, data: st.DataObject, how: str
) -> None:
    content = committed.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    match how:
        case "change":
            flipped = content[at] ^ data.draw(st.integers(1, 255))
            damaged = content[:at] + bytes([flipped]) + content[at + 1 :]
        case "cut":
            damaged = content[:at]
        case _:
            damaged = content + b"\0"
    path = committed.with_name("b-r.residual")
    path.write_bytes(damaged)
    base = ModelState({"w": np.zeros(64), "v": np.zeros(64)})

    with pytest.raises(ConfigurationError, match=r"b-r\.residual: .*; delete it"):
        _sent(base, base, Residual(committed.parent, site="b", run="r"), path.parent)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = _model()

    with pytest.raises(
        ConfigurationError, match=r"file: .*; updates are encoded there"
    ):
        encode_model("int8", model, model, folder=tmp_path / "file")
