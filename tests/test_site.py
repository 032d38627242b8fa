from pathlib import Path

import msgspec
import pytest

import flare_core as flare
from flare_core import Binding, ConfigurationError, Policy, Resources, Site


def _file(folder: Path, content: str) -> Path:
    path = folder / "site.toml"
    path.write_text(content)
    return path


def _bound(key: str) -> str:
    """Return a site file that binds a command, with one more key."""
    command = "" if key.startswith("command") else 'command = ["train.py"]\n'
    return f'name = "a"\n[runs.x]\n{command}{key}\n'


def test_a_site_file_says_who_and_where(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        'name = "hospital-a"\nserver = "tcp://10.0.0.1:5555"\n'
        "index = 2\ncount = 4\npatience_s = 5\n",
    )

    site = flare.site(path)

    assert site == Site(
        name="hospital-a",
        server="tcp://10.0.0.1:5555",
        index=2,
        count=4,
        patience_s=5.0,
        folder=str(tmp_path),
        file=str(path),
    )
    assert site.federated


@pytest.mark.parametrize(
    ("folder", "expected"), [("", "."), ("record", "record"), ("/var/x", "/var/x")]
)
def test_the_record_s_folder_is_relative_to_the_file(
    folder: str, expected: str, tmp_path: Path
) -> None:
    path = _file(tmp_path, f'name = "a"\nfolder = "{folder}"\n')

    assert Path(flare.site(path).folder) == tmp_path / expected


@pytest.mark.parametrize(
    ("spool", "expected"), [("run/spool", "run/spool"), ("/var/x", "/var/x")]
)
def test_the_server_s_spool_is_relative_to_the_file(
    spool: str, expected: str, tmp_path: Path
) -> None:
    path = _file(tmp_path, f'name = "a"\nspool = "{spool}"\n')

    assert Path(flare.site(path).spool) == tmp_path / expected


def test_a_site_shares_no_spool_unless_it_is_told_to(tmp_path: Path) -> None:
    assert flare.site(_file(tmp_path, 'name = "a"\n')).spool == ""


def test_the_environment_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLARE_SITE", str(_file(tmp_path, 'name = "b"\n')))

    assert flare.site().name == "b"


def test_a_file_given_by_hand_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLARE_SITE", "off")

    assert flare.site(_file(tmp_path, 'name = "c"\n')).name == "c"


@pytest.mark.parametrize("by_hand", [True, False])
def test_off_is_a_single_site_without_a_server(
    by_hand: bool,  # noqa: FBT001 - pytest's
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLARE_SITE", "nowhere" if by_hand else "off")

    site = flare.site("off" if by_hand else None)

    assert not site.federated
    assert (site.index, site.count) == (0, 1)


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_federation_it_says_how_to_get_one(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv("FLARE_SITE", value)

    with pytest.raises(ConfigurationError, match=r"flare simulate .* `off`"):
        flare.site()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.toml: No such file"):
        flare.site(tmp_path / "gone.toml")


def test_a_folder_is_no_site_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Is a directory"):
        flare.site(tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "missing required field `name`"),
        ('name = "a"\nservr = "x"\n', "unknown field `servr`"),
        ('name = "a"\ncount = 0\n', r"\$\.count"),
        ('name = "a"\nindex = -1\n', r"\$\.index"),
        ('name = "a"\npatience_s = 0\n', r"\$\.patience_s"),
        ("name = 3\n", r"\$\.name"),
        ('name = "a"\nfile = "b"\n', "unknown field `file`"),
        ('name = "a"\n[policy]\nround = 1\n', "unknown field `round`"),
        ('name = "a"\n[policy]\nsmallest_cohort = 0\n', r"\$\.policy\.smallest_co"),
        ('name = "a"\n[policy]\nmost_rounds = 0\n', r"\$\.policy\.most_rounds"),
        ('name = "a"\n[policy]\nmost_bytes = 0\n', r"\$\.policy\.most_bytes"),
        ('name = "a"\n[policy]\nprivacy = "some"\n', r"\$\.policy\.privacy"),
        ('name = "a"\n[policy]\nplans = ["abc"]\n', r"\$\.policy\.plans"),
        ('name = "a"\n[policy]\nruns = "*"\n', r"\$\.policy\.runs"),
        ('name = "a"\n[resources]\ngpu = ["0"]\n', "unknown field `gpu`"),
        ('name = "a"\n[resources]\ngpus = ["0", "0"]\n', "gpus: .* each id once"),
        ('name = "a"\n[resources]\ngpus = ["0,1"]\n', r"\$\.resources\.gpus"),
        ('name = "a"\n[resources]\nconcurrent_runs = 0\n', "concurrent_runs"),
        ('name = "a"\nruns = ["x"]\n', r"\$\.runs"),
        ('name = "a"\n[runs."h-*"]\n', 'runs."h-\\*": .*`command`'),
        ('name = "a"\n[runs.x]\ncommand = []\n', r'runs."x": .*\$\.command'),
        ('name = "a"\n[runs.x]\ncommand = "sh"\n', r'runs."x": .*\$\.command'),
        (_bound("command = [1]"), r'runs."x": .*\$\.command'),
        (_bound("gpus = 1"), 'runs."x".gpus: expected at most 0'),
        (_bound("gpus = -1"), r'runs."x": .*\$\.gpus'),
        (_bound("restarts = -1"), r'runs."x": .*\$\.restarts'),
        (_bound("environment = {A = 1}"), r'runs."x": .*\$\.environment'),
        (_bound('environment = {"A=B" = "1"}'), r'runs."x": .*\$\.environment'),
        (_bound('environment = {A = "\\u0000"}'), r'runs."x": .*\$\.environment'),
        (_bound('comand = ["x"]'), 'runs."x": .*unknown field `comand`'),
        ("name = \n", "site.toml"),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_what_does_not(
    content: str, what: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=f"site.toml: .*{what}|{what}"):
        flare.site(_file(tmp_path, content))


@pytest.mark.parametrize(
    "name", ["", "../a", "a/b", ".hidden", "a b", "a" * 65, r"a\n", "é"]
)
def test_a_name_that_could_be_no_file_s_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\$\.name"):
        flare.site(_file(tmp_path, f'name = "{name}"\n'))


@pytest.mark.parametrize("name", ["a", "hospital-a.west_2", "7", "a" * 64])
def test_a_plain_name_is_taken(name: str, tmp_path: Path) -> None:
    assert flare.site(_file(tmp_path, f'name = "{name}"\n')).name == name


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(b'name = "\xff"')

    with pytest.raises(ConfigurationError, match=r"site\.toml: .*utf-8"):
        flare.site(path)


def test_a_site_file_says_what_the_site_allows(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        'name = "a"\n[policy]\nruns = ["tumour-*"]\ntensors = ["*", "!*.bias"]\n'
        'smallest_cohort = 3\nprivacy = "differential"\nmost_rounds = 10\n'
        f'most_bytes = 1_000\nplans = ["{"0" * 64}"]\n',
    )

    assert flare.site(path).policy == Policy(
        runs=("tumour-*",),
        tensors=("*", "!*.bias"),
        smallest_cohort=3,
        privacy="differential",
        most_rounds=10,
        most_bytes=1000,
        plans=("0" * 64,),
    )


def test_a_site_file_says_what_is_started_for_a_run(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        'name = "a"\n[resources]\ngpus = ["0", "GPU-8f/1"]\nconcurrent_runs = 2\n'
        '[runs."heart-*"]\ncommand = ["torchrun", "train.py", ""]\ngpus = 2\n'
        'folder = "work"\nenvironment = {DATA = "/data/heart"}\nrestarts = 3\n'
        '[runs.lung]\ncommand = ["lung.py"]\n',
    )

    site = flare.site(path)

    assert site.resources == Resources(gpus=("0", "GPU-8f/1"), concurrent_runs=2)
    assert site.runs == {
        "heart-*": Binding(
            command=("torchrun", "train.py", ""),
            gpus=2,
            folder="work",
            environment={"DATA": "/data/heart"},
            restarts=3,
        ),
        "lung": Binding(command=("lung.py",)),
    }


def test_a_site_declares_nothing_and_starts_nothing_by_itself(tmp_path: Path) -> None:
    site = flare.site(_file(tmp_path, 'name = "a"\n'))

    assert site.resources == Resources(gpus=(), concurrent_runs=1)
    assert site.runs == {}


def test_a_site_without_a_policy_allows_everything(tmp_path: Path) -> None:
    policy = flare.site(_file(tmp_path, 'name = "a"\n')).policy

    assert policy == Policy(runs=("*",), tensors=("*",), smallest_cohort=1, plans=())
    assert (policy.privacy, policy.most_rounds, policy.most_bytes) == (
        "none",
        None,
        None,
    )


@pytest.mark.parametrize(
    ("key", "expected"), [("keys/a.key", "keys/a.key"), ("/etc/a.key", "/etc/a.key")]
)
def test_the_site_s_key_is_relative_to_the_file(
    key: str, expected: str, tmp_path: Path
) -> None:
    site = flare.site(_file(tmp_path, f'name = "a"\nserver_key = "k"\nkey = "{key}"\n'))

    assert Path(site.key) == tmp_path / expected
    assert site.server_key == "k"


@pytest.mark.parametrize(
    ("variable", "expected"), [(None, "lung"), ("", "lung"), ("tumour", "tumour")]
)
def test_the_environment_names_the_run_before_the_file_does(
    variable: str | None,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is not None:
        monkeypatch.setenv("FLARE_RUN", variable)

    assert flare.site(_file(tmp_path, 'name = "a"\nrun = "lung"\n')).run == expected


def test_a_simulated_site_s_file_says_what_differs_only() -> None:
    assert msgspec.to_builtins(Site(name="a", index=1)) == {"name": "a", "index": 1}
