"""Directories and buckets as stores, and whose credentials lead to a bucket."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from mpota.errors import MpotaError, UsageError
from mpota.publish.credentials import check_google, find_aws, find_azure
from mpota.publish.store import Directory, Store, open_store

from tests.support import releases, s3
from tests.support.published import mpota, write_bundle, write_keys

BIG = bytes(range(256)) * 40_000  # more than a store sends in one part, unless told to


@pytest.fixture(scope="module", name="server")
def _server() -> Iterator[str]:
    with s3.running() as url:
        yield url


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "directory":
        return Directory(tmp_path / "public")
    server: str = request.getfixturevalue("server")
    for name in s3.FOREIGN:
        monkeypatch.delenv(name)
    for name, value in s3.environment(server).items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{sha256(str(tmp_path).encode()).hexdigest()[:16]}"
    s3.make_bucket(server, bucket)
    return open_store(f"s3://{bucket}/pump")


def test_what_is_created_never_changes(store: Store) -> None:
    assert store.create("releases/a.bin", BIG)
    assert not store.create("releases/a.bin", b"other")
    found = store.get("releases/a.bin", len(BIG))
    assert found is not None
    assert found.data == BIG
    assert store.holds("releases/a.bin", BIG)
    assert not store.holds("releases/a.bin", BIG[::-1])
    assert not store.holds("releases/a.bin", b"other")
    assert not store.holds("releases/none.bin", b"")


def test_a_file_is_replaced_in_the_state_that_was_read_and_in_no_other(store: Store) -> None:
    assert store.replace("stable.channel", b"1", None)
    assert not store.replace("stable.channel", b"2", None)
    first = store.get("stable.channel", 10)
    assert first is not None
    assert store.replace("stable.channel", b"3", first.tag)
    assert not store.replace("stable.channel", b"4", first.tag)
    assert not store.replace("other.channel", b"5", first.tag)
    last = store.get("stable.channel", 10)
    assert last is not None
    assert (last.data, store.get("other.channel", 10)) == (b"3", None)


def test_of_many_at_once_one_wins(store: Store) -> None:
    assert store.replace("stable.channel", b"0", None)
    found = store.get("stable.channel", 10)
    assert found is not None
    won: list[int] = []

    def publish(number: int) -> None:
        if store.replace("stable.channel", b"%d" % number, found.tag):
            won.append(number)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = store.get("stable.channel", 10)
    assert last is not None
    assert [b"%d" % number for number in won] == [last.data]


def test_a_folder_is_listed_and_what_was_removed_is_gone(store: Store) -> None:
    assert list(store.list("")) == []
    for path in ("stable.channel", "releases/b.json", "releases/a.bin"):
        assert store.create(path, path.encode())
    assert [listed.path for listed in store.list("")] == ["stable.channel"]
    listed = sorted((one.path, one.size) for one in store.list("releases"))
    assert listed == [("releases/a.bin", 14), ("releases/b.json", 15)]
    store.delete("releases/a.bin")
    store.delete("releases/a.bin")
    assert [one.path for one in store.list("releases")] == ["releases/b.json"]


def test_what_is_larger_than_it_may_be_is_not_read(store: Store) -> None:
    assert store.create("stable.channel", b"12345")
    with pytest.raises(MpotaError, match=r"'stable\.channel' has more than 4 bytes"):
        store.get("stable.channel", 4)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "a\\b", "a/./b"])
def test_no_path_leads_out(store: Store, path: str) -> None:
    with pytest.raises(MpotaError, match="no path of a published file"):
        store.get(path, 10)
    with pytest.raises(MpotaError, match="no path of a published file"):
        store.create(path, b"x")


def test_a_bucket_says_how_long_files_may_be_kept(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment(server).items():
        monkeypatch.setenv(name, value)
    s3.make_bucket(server, "kept")
    store = open_store("s3://kept/pump")
    store.create("releases/a.json", b"{}")
    store.replace("stable.channel", b"x", None)
    with urllib.request.urlopen(f"{server}/kept/pump/releases/a.json", timeout=30) as answer:
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert answer.headers["Content-Type"] == "application/json"
    with urllib.request.urlopen(f"{server}/kept/pump/stable.channel", timeout=30) as answer:
        assert answer.headers["Cache-Control"] == "no-cache"


def test_a_bucket_that_is_not_there_is_named(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment(server).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="s3://no-such-bucket/pump: there is no such bucket"):
        open_store("s3://no-such-bucket/pump").create("a", b"x")


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"s3://bucket/pump: 'a': .*127\.0\.0\.1:9"):
        open_store("s3://bucket/pump").get("a", 1)


def test_a_file_where_a_directory_is_wanted_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UsageError, match="is not a directory"):
        open_store(str(tmp_path / "file"))
    (tmp_path / "dir" / "stable.channel").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"stable\.channel"):
        open_store(str(tmp_path / "dir")).get("stable.channel", 10)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("ftp://host/x", "is no place to publish in"),
        ("s3://", "is no bucket"),
        ("s3://key:secret@bucket/x", "is no bucket"),
        ("s3://bucket/x?y=1", "is no bucket"),
        ("s3://bucket/../x", "no path of a published file"),
    ],
)
def test_what_is_no_target_is_said(target: str, words: str) -> None:
    with pytest.raises(MpotaError, match=words):
        open_store(target)


# --- credentials -------------------------------------------------------------------------------


def aws_files(home: Path, credentials: str = "", config: str = "") -> dict[str, str]:
    (home / ".aws").mkdir()
    (home / ".aws" / "credentials").write_text(credentials)
    (home / ".aws" / "config").write_text(config)
    return {"HOME": str(home)}


def test_keys_of_the_environment_come_first(tmp_path: Path) -> None:
    environment = aws_files(tmp_path, "[default]\naws_access_key_id=a\naws_secret_access_key=b\n")
    assert find_aws(environment)["access_key_id"] == "a"
    environment |= {"AWS_ACCESS_KEY_ID": "c", "AWS_SECRET_ACCESS_KEY": "d"}
    assert find_aws(environment) == {
        "access_key_id": "c", "secret_access_key": "d", "region": "us-east-1",
    }  # fmt: skip


def test_a_profile_has_keys_region_and_endpoint(tmp_path: Path) -> None:
    environment = aws_files(
        tmp_path,
        "[pump]\naws_access_key_id=a\naws_secret_access_key=b%c\naws_session_token=t\n",
        "[profile pump]\nregion=eu-west-1\nendpoint_url=http://127.0.0.1:9\n",
    )
    assert find_aws(environment | {"AWS_PROFILE": "pump"}) == {
        "access_key_id": "a", "secret_access_key": "b%c", "session_token": "t",
        "region": "eu-west-1", "endpoint": "http://127.0.0.1:9",
    }  # fmt: skip
    found = find_aws(environment | {"AWS_PROFILE": "pump", "AWS_DEFAULT_REGION": "auto"})
    assert found["region"] == "auto"


@pytest.mark.parametrize(
    ("files", "given", "words"),
    [
        (("", ""), {}, "no credentials for s3://"),
        (("", ""), {"AWS_ACCESS_KEY_ID": "a"}, "the environment has an access key, and no secret"),
        (("[default]\naws_access_key_id=a\n", ""), {}, "the profile 'default' has an access key"),
        (("", "[default]\nsso_session=x\n"), {}, "has 'sso_session' instead of keys"),
        (("", "[profile p]\nrole_arn=x\n"), {"AWS_PROFILE": "p"}, "has 'role_arn' instead"),
        (("no section\n", ""), {}, "cannot read"),
        (("", ""), {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://x"}, "no credentials for s3://"),
    ],
)
def test_without_keys_it_ends_before_anybody_is_asked(
    tmp_path: Path, files: tuple[str, str], given: dict[str, str], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        find_aws(aws_files(tmp_path, *files) | given)


def test_azure_and_google_are_not_asked_without_credentials(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no account for az://"):
        find_azure({"AZURE_STORAGE_KEY": "b"})
    with pytest.raises(UsageError, match="no credentials for az://"):
        find_azure({"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_CLIENT_ID": "b"})
    assert find_azure({"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_SAS_KEY": "b"}) == {}
    assert find_azure({"AZURE_STORAGE_ACCOUNT": "a", "AZURE_STORAGE_KEY": "b"}) == {
        "account_name": "a", "account_key": "b"
    }  # fmt: skip
    home = {"HOME": str(tmp_path)}
    with pytest.raises(UsageError, match="no credentials for gs://"):
        check_google(home)
    with pytest.raises(UsageError, match="'none' is no file"):
        check_google(home | {"GOOGLE_APPLICATION_CREDENTIALS": "none"})
    (tmp_path / "key.json").touch()
    check_google(home | {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json")})


@pytest.mark.parametrize("scheme", ["s3", "az", "gs"])
def test_a_bucket_without_credentials_is_refused_before_a_client_of_its_cloud_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Which would ask the metadata address of the cloud that it believes to run in."""
    import obstore.store

    for name in s3.FOREIGN:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("S3Store", "AzureStore", "GCSStore"):
        monkeypatch.setattr(obstore.store, name, None)
    monkeypatch.chdir(tmp_path)
    write_keys(tmp_path)
    bundle = write_bundle(tmp_path / "a", "2.0.0", 5)
    done = mpota("publish", bundle, f"{scheme}://bucket/pump", "--key", "key.pem")
    assert done.code == 2
    assert f"for {scheme}://" in done.error
    assert "hint: " in done.error


def test_azure_and_google_take_what_their_users_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more can be said of them: there is no server to try them on."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "pumps")
    monkeypatch.setenv("AZURE_STORAGE_KEY", b64encode(b"k" * 32).decode())
    assert open_store("az://container/pump").name == "az://container/pump"
    account = {
        "type": "service_account", "client_email": "a@example.org", "private_key_id": "1",
        "private_key": releases.key().to_pem().decode(),
    }  # fmt: skip
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    assert open_store("gs://bucket/pump").name == "gs://bucket/pump"


def test_without_obstore_it_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "from mpota.cli import main\nmain(['channel', 'prune', 's3://b/x', '--key', sys.argv[1]])"
    )
    key = tmp_path / "key.pem"
    subprocess.run([sys.executable, "-m", "mpota", "keygen", key], check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", code, key], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "mpota: s3:// needs obstore\n  hint: pip install 'mpota[stores]'\n"
