"""Settings: bounds, files, and which file a mount gets."""

from pathlib import Path

import pytest

from torrentfs.config import (
    MountConfiguration,
    convert,
    find_mount_file,
    format_address,
    load,
    load_mount,
    parse_address,
    setting_names,
)
from torrentfs.errors import UsageError


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of /etc/torrentfs."""
    monkeypatch.setenv("TORRENTFS_CONFIG_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rubbish": 1}, "rubbish: there is no such setting"),
        ({"node": {"swarm": {"listn": ":1"}}}, "did you mean node.swarm.listen?"),
        ({"read_deadline_s": 3}, "did you mean mount.read_deadline_s?"),
        ({"mount": {"requests_max": "many"}}, "mount.requests_max: expected int, got str"),
        ({"mount": {"requests_max": 0}}, "mount.requests_max: expected int >= 1"),
        ({"mount": {"read_deadline_s": 0}}, "mount.read_deadline_s"),
        ({"peers": [1]}, "peers[0]"),
        ({"mount": {"foo": 1}}, "mount.foo: there is no such setting; did you mean mount."),
        ({"mount": {"source": "foo bar"}}, "mount.source: spaces, commas and backslashes cannot be in it"),
        ({"node": 3}, "node: expected object"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(values: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        convert(values, MountConfiguration, "alice.toml")

    assert str(caught.value).startswith("alice.toml: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_seconds_are_seconds_too() -> None:
    assert convert({"mount": {"read_deadline_s": 3}}, MountConfiguration, "f").mount.read_deadline_s == 3.0


def test_defaults_are_within_their_own_bounds() -> None:
    import msgspec

    defaults = msgspec.to_builtins(MountConfiguration())

    assert convert(defaults, MountConfiguration, "defaults") == MountConfiguration()


def test_every_setting_of_a_mount_is_in_the_admins_handbook() -> None:
    handbook = (Path(__file__).parent.parent / "docs/admin.md").read_text()
    names = setting_names(MountConfiguration)
    groups = {name for name in names if any(other.startswith(f"{name}.") for other in names)}

    missing = {name for name in names if f"`{name}`" not in handbook}

    assert missing - groups <= {"mountpoint", "ldap"}


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    file = tmp_path / "alice.toml"
    file.write_text('repository = "file:///srv/alice"\ntrust = "root.json"\ncache = "/var/cache/x"\n')

    configuration = load_mount(file)

    assert configuration.trust == str(tmp_path / "root.json")
    assert configuration.cache == "/var/cache/x"
    assert configuration.mountpoint == ""


@pytest.mark.parametrize("content", [b"not toml", b"\xff\xfe", b"#" * (1 << 21)])
def test_a_file_that_is_no_toml_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "alice.toml"
    file.write_bytes(content)

    with pytest.raises(UsageError, match=r"alice\.toml"):
        load(file, MountConfiguration)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "none.toml", MountConfiguration)


def test_the_file_with_the_mountpoints_last_name_comes_first(directory: Path) -> None:
    (directory / "other.toml").write_text('mountpoint = "/opt/alice"')
    (directory / "alice.toml").write_text("")

    assert find_mount_file(Path("/opt/alice")) == directory / "alice.toml"


def test_a_file_that_names_the_mountpoint_is_found(directory: Path) -> None:
    (directory / "a.toml").write_text('mountpoint = "/opt/atlas"')
    (directory / "b.toml").write_text('mountpoint = "/opt/alice"')

    assert find_mount_file(Path("/opt/alice")) == directory / "b.toml"


def test_a_file_with_the_last_name_that_names_another_mountpoint_is_not_taken(directory: Path) -> None:
    (directory / "alice.toml").write_text('mountpoint = "/srv/alice"')

    assert find_mount_file(Path("/opt/alice")) is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:6881", ("127.0.0.1", 6881)),
        ("seed.example.org:1", ("seed.example.org", 1)),
        ("[::1]:0", ("::1", 0)),
    ],
)
def test_addresses_are_read_and_written(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address
    assert format_address(*address) == text


@pytest.mark.parametrize(
    "text", ["", "host", ":1", "host:", "host:x", "host:70000", "::1:5", "a b:1", "http://x:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)
