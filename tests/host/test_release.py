"""Keys, bundles, manifests and signatures from the command line, and what each refuses."""

from __future__ import annotations

import ast
import hashlib
import json
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mpota import cli
from mpota.errors import MpotaError
from mpota.firmware.sample import build_app
from mpota.formats.bundle import Bundle
from mpota.formats.chain import head_first, head_last, make_chain, read_chain
from mpota.formats.manifest import Form, Manifest, Payload
from mpota.formats.payloads import KINDS
from mpota.formats.tar import Member, read_tar, read_tree, write_tar
from mpota.release.build import READERS, files_content
from mpota.resources import data_directory

Mpota = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mpota(capsys: pytest.CaptureFixture[str]) -> Mpota:
    """Run a command line; (exit code, standard output, standard error)."""

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a.pem, a.pub.pem, b.pem and b.pub.pem."""
    directory = tmp_path_factory.mktemp("keys")
    for name in ("a", "b"):
        with pytest.raises(SystemExit):
            cli.main(["keygen", str(directory / f"{name}.pem")])
    return directory


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A firmware, and a tree of files with what does not belong on a board."""
    (tmp_path / "app.bin").write_bytes(build_app("esp32", size=0x18000))
    source = tmp_path / "src"
    (source / "lib" / "__pycache__").mkdir(parents=True)
    (source / "main.py").write_text("import pump\n")
    (source / "lib" / "pump.py").write_text("def start():\n    '''Start.'''\n    return 1\n")
    (source / "lib" / "__pycache__" / "pump.pyc").write_bytes(b"x")
    return tmp_path


def bundle(mpota: Mpota, project: Path, *more: object) -> Path:
    target = project / "out.bundle"
    code, _, error = mpota(
        "bundle", project / "app.bin", "--files", project / "src", "--name", "pump",
        "--version", "2.1.0", "-o", target, *more,
    )  # fmt: skip
    assert code == 0, error
    return target


def test_keygen_makes_what_espsecure_takes(mpota: Mpota, keys: Path, tmp_path: Path) -> None:
    assert (keys / "a.pem").stat().st_mode & 0o777 == 0o600
    done = subprocess.run(
        [sys.executable, "-m", "espsecure", "extract-public-key", "--version", "2", "--keyfile",
         keys / "a.pem", tmp_path / "public.pem"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "public.pem").read_bytes() == (keys / "a.pub.pem").read_bytes()


def test_keygen_never_overwrites(mpota: Mpota, keys: Path) -> None:
    before = (keys / "a.pem").read_bytes()
    code, _, error = mpota("keygen", keys / "a.pem")
    assert (code, "exists" in error) == (2, True)
    assert (keys / "a.pem").read_bytes() == before


def test_tar_lists_a_bundle(mpota: Mpota, project: Path, keys: Path) -> None:
    path = bundle(mpota, project, "--key", keys / "a.pem")
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["manifest.json", "manifest.sig", "app.bin", "files.tar"]
    made = Bundle.from_bytes(path.read_bytes())
    assert made.manifest.chip == "esp32"
    assert made.members["app.bin"] == (project / "app.bin").read_bytes()
    names = [member.name for member in read_tree(made.members["files.tar"])]
    assert names == ["lib", "lib/pump.py", "main.py"]


def test_the_same_release_gives_the_same_bytes(
    mpota: Mpota, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    first = bundle(mpota, project).read_bytes()
    assert bundle(mpota, project, "--force").read_bytes() == first


def test_a_tar_file_of_pythons_own_is_read(tmp_path: Path, project: Path) -> None:
    target = tmp_path / "x.tar"
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(project / "src" / "lib", "lib", recursive=False)
        archive.add(project / "src" / "lib" / "pump.py", "lib/pump.py")
    assert [m.name for m in read_tree(target.read_bytes())] == ["lib", "lib/pump.py"]


def test_long_names_are_split_as_tar_does(tmp_path: Path) -> None:
    name = "/".join(["directory-with-a-name"] * 7 + ["module.py"])
    parts = name.split("/")
    members = [Member("/".join(parts[:n]), b"", True) for n in range(1, len(parts))]
    data = write_tar([*members, Member(name, b"x")])
    assert [member.name for member in read_tar(data)][-1] == name
    (tmp_path / "x.tar").write_bytes(data)
    with tarfile.open(tmp_path / "x.tar") as archive:
        assert archive.getnames()[-1] == name
    with pytest.raises(MpotaError, match="too long"):
        write_tar([Member("x" * 101, b"")])


def test_modules_are_compiled_but_not_main(mpota: Mpota, project: Path) -> None:
    made = Bundle.from_bytes(bundle(mpota, project, "--mpy").read_bytes())
    members = {member.name: member.data for member in read_tree(made.members["files.tar"])}
    assert list(members) == ["lib", "lib/pump.mpy", "main.py"]
    assert members["lib/pump.mpy"].startswith(b"M\x06")


def test_the_manifest_says_which_modules_a_board_must_load(mpota: Mpota, project: Path) -> None:
    assert Bundle.from_bytes(bundle(mpota, project).read_bytes()).manifest.mpy == 0
    made = Bundle.from_bytes(bundle(mpota, project, "--mpy", "--force").read_bytes())
    assert (made.manifest.mpy, b'"x-mpy": 6' in made.manifest_bytes) == (6, True)


NATIVE = "import micropython\n@micropython.native\ndef f(x):\n    return x + 1\n"


def test_native_code_is_compiled_for_the_chip_of_the_firmware(mpota: Mpota, project: Path) -> None:
    (project / "src" / "lib" / "fast.py").write_text(NATIVE)
    for chip, architecture in (("esp32", 10), ("esp32c3", 11)):
        (project / "app.bin").write_bytes(build_app(chip, size=0x18000))
        made = Bundle.from_bytes(bundle(mpota, project, "--mpy", "--force").read_bytes())
        assert made.manifest.mpy == architecture << 10 | 3 << 8 | 6


def test_files_alone_are_compiled_for_a_firmware_that_is_named(mpota: Mpota, project: Path) -> None:
    (project / "src" / "lib" / "fast.py").write_text(NATIVE)
    alone = ("bundle", "--files", project / "src", "--name", "x", "--version", "1",
             "-o", project / "x.bundle")  # fmt: skip
    code, _, error = mpota(*alone, "--mpy")
    assert (code, "lib/fast.py" in error) == (1, True), error  # for which chip?
    code, _, error = mpota(*alone, "--mpy-for", project / "app.bin")
    assert code == 0, error
    made = Bundle.from_bytes((project / "x.bundle").read_bytes())
    assert (made.manifest.mpy, made.manifest.chip) == (0x2B06, None)


def test_an_mpy_cross_of_another_version_is_named(mpota: Mpota, project: Path) -> None:
    (project / "app.bin").write_bytes(build_app("esp32", size=0x18000, version="v1.18.0"))
    code, _, error = mpota(
        "bundle", project / "app.bin", "--files", project / "src", "--mpy", "--name", "x",
        "--version", "1", "-o", project / "x.bundle",
    )  # fmt: skip
    assert (code, (project / "x.bundle").exists()) == (2, False)
    assert "this mpy-cross writes .mpy v6, the board loads v5" in error


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            {"a": b"M\5\0\x1f"},
            "the modules are .mpy v5, MicroPython v1.26.1 in app.bin loads .mpy v6",
        ),
        ({"a": b"M\6\x2f\x1f"}, "the modules are .mpy v6.3 for rv32imc, MicroPython v1.26.1"),
        ({"a": b"M\6\0\x1f", "b": b"M\5\0\x1f"}, "'lib/a.mpy' is .mpy v6, 'lib/b.mpy' is .mpy v5"),
        ({"a": b"M\6\x2b\x1f", "b": b"M\6\x2f\x1f"}, "no board loads both of them"),
        ({"a": b"import x\n"}, "'lib/a.mpy' is no .mpy file"),
    ],
)
def test_modules_that_the_firmware_does_not_load_are_not_packed(
    mpota: Mpota, project: Path, modules: dict[str, bytes], message: str
) -> None:
    for name, data in modules.items():
        (project / "src" / "lib" / f"{name}.mpy").write_bytes(data)
    code, _, error = mpota(
        "bundle", project / "app.bin", "--files", project / "src", "--name", "x",
        "--version", "1", "-o", project / "x.bundle",
    )  # fmt: skip
    assert (code, message in error, (project / "x.bundle").exists()) == (1, True, False), error


def test_a_module_that_does_not_compile_leaves_no_bundle(mpota: Mpota, project: Path) -> None:
    (project / "src" / "lib" / "bad.py").write_text("def\n")
    code, _, error = mpota(
        "bundle", "--files", project / "src", "--mpy", "--name", "x", "--version", "1",
        "-o", project / "out.bundle",
    )  # fmt: skip
    assert (code, "lib/bad.py" in error) == (1, True), error
    assert not (project / "out.bundle").exists()


def test_verify_names_the_signer(mpota: Mpota, project: Path, keys: Path) -> None:
    path = bundle(mpota, project, "--key", keys / "a.pem")
    code, said, _ = mpota("verify", path, "--key", keys / "b.pub.pem", "--key", keys / "a.pub.pem")
    assert code == 0
    assert "pump 2.1.0, whole, signed by" in said
    code, _, error = mpota("verify", path, "--key", keys / "b.pub.pem")
    assert (code, "none of the keys given" in error) == (1, True)
    code, said, _ = mpota("verify", path, "--json")
    assert json.loads(said)["signed_by"] is None


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--name", "a/b"], 1, "manifest has name 'a/b', it must be 1 to 64 letters, digits"),
        (["--version", "x"], 1, "manifest has version 'x', it must be one to four numbers"),
        (["--version", "1.\u0663"], 1, "it must be one to four numbers"),
        (["--counter", "-1"], 1, "manifest has counter '-1', it must be 0 to 2147483647"),
        (["--expires", "2020-01-01"], 2, "--expires 2020-01-01 is in the past"),
        (["--key", "app.bin"], 1, "app.bin: not a private key in PEM"),
        (["--add-key", "app.bin"], 1, "app.bin: not a key in PEM"),
    ],
)
def test_what_no_board_would_take_is_no_release(
    options: list[str],
    code: int,
    words: str,
    mpota: Mpota,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(project)
    release = ["--name", "pump", "--version", "1.0", "-o", "bad.bundle"]
    found, _, error = mpota("bundle", "app.bin", *release, *options)
    assert (found, words in error) == (code, True), error
    assert not (project / "bad.bundle").exists()


def test_a_key_is_made_whole_or_not_at_all(
    mpota: Mpota, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    code, _, error = mpota("keygen", tmp_path / "k.pem")
    assert (code, "No space left on device" in error) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_an_unsigned_bundle_does_not_verify(mpota: Mpota, project: Path, keys: Path) -> None:
    path = bundle(mpota, project)
    assert mpota("verify", path)[1].endswith("whole, not signed\n")
    assert json.loads(mpota("verify", path, "--json")[1])["signed"] is False
    code, _, error = mpota("verify", path, "--key", keys / "a.pub.pem")
    assert (code, "not signed" in error) == (1, True)


def test_every_flipped_byte_of_a_bundle_is_noticed(mpota: Mpota, project: Path, keys: Path) -> None:
    path = bundle(mpota, project, "--key", keys / "a.pem")
    data = path.read_bytes()
    missed = []
    for offset in range(0, len(data) - 1024, 997):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :])
        code, _, _ = mpota("verify", path, "--key", keys / "a.pub.pem")
        if code != 1:
            missed.append(offset)
    # Padding of the tar file is nobody's content.
    assert all(set(data[offset - 1 : offset + 2]) <= {0} for offset in missed), missed


def test_sign_replaces_signatures(mpota: Mpota, project: Path, keys: Path) -> None:
    path = bundle(mpota, project, "--key", keys / "a.pem")
    code, _, error = mpota("sign", path, "--key", keys / "b.pem", "-o", project / "b.bundle")
    assert code == 0, error
    assert mpota("verify", project / "b.bundle", "--key", keys / "b.pub.pem")[0] == 0
    assert mpota("verify", project / "b.bundle", "--key", keys / "a.pub.pem")[0] == 1
    made = Bundle.from_bytes((project / "b.bundle").read_bytes())
    assert made.manifest_bytes == Bundle.from_bytes(path.read_bytes()).manifest_bytes


def test_a_signature_made_by_espsecure_is_attached(mpota: Mpota, project: Path, keys: Path) -> None:
    path = bundle(mpota, project)
    code, manifest, _ = mpota("manifest", path)
    (project / "m.json").write_text(manifest)
    subprocess.run(
        [sys.executable, "-m", "espsecure", "sign-data", "--version", "2", "--keyfile",
         keys / "a.pem", "--output", project / "m.signed", project / "m.json"],
        check=True, capture_output=True,
    )  # fmt: skip
    out = project / "signed.bundle"
    code, _, error = mpota("sign", path, "--attach", project / "m.signed", "-o", out)
    assert code == 0, error
    assert mpota("verify", out, "--key", keys / "a.pub.pem")[0] == 0
    code, _, error = mpota("sign", out, "--attach", keys / "a.pem", "-o", project / "no.bundle")
    assert code == 1
    assert not (project / "no.bundle").exists()


def test_a_signed_app_verifies_with_espsecure(mpota: Mpota, project: Path, keys: Path) -> None:
    code, _, error = mpota("sign", project / "app.bin", "--key", keys / "a.pem")
    assert code == 0, error
    signed = project / "app-signed.bin"
    done = subprocess.run(
        [sys.executable, "-m", "espsecure", "verify-signature", "--version", "2", "--keyfile",
         keys / "a.pub.pem", signed],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert mpota("verify", signed, "--key", keys / "a.pub.pem")[0] == 0
    assert mpota("verify", signed, "--key", keys / "b.pub.pem")[0] == 1
    assert mpota("verify", project / "app.bin", "--key", keys / "a.pub.pem")[0] == 1


def test_a_release_is_published_as_files(mpota: Mpota, project: Path, keys: Path) -> None:
    out = project / "public"
    code, _, error = mpota(
        "manifest", project / "app.bin", "--files", project / "src", "--name", "pump",
        "--version", "2.1.0", "--key", keys / "a.pem", "--board", "Generic ESP32 module",
        "--from-version", "2.0", "--counter", "7", "--expires", "2030-01-31",
        "--add-key", keys / "b.pub.pem", "-o", out,
    )  # fmt: skip
    assert code == 0, error
    assert {p.name for p in out.iterdir()} == {
        "manifest.json", "manifest.sig", "app.bin", "files.tar"
    }  # fmt: skip
    manifest = Manifest.from_bytes((out / "manifest.json").read_bytes())
    assert [form.url for form in manifest.forms] == ["app.bin", "files.tar"]
    assert (manifest.counter, manifest.expires) == (7, "2030-01-31T00:00:00Z")
    assert len(manifest.add_keys) == 1
    assert mpota("verify", out / "manifest.json", "--key", keys / "a.pub.pem")[0] == 0
    (out / "app.bin").write_bytes(b"x")
    code, _, error = mpota("verify", out / "manifest.json", "--key", keys / "a.pub.pem")
    assert (code, "'app.bin' is 1 bytes" in error) == (1, True), error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--name", "x"], "needs --name and --version"),
        (["--name", "x", "--version", "one"], "version"),
        (["--name", "../x", "--version", "1"], "name"),
        (["--name", "x", "--version", "1"], "no payloads"),
        (["--name", "x", "--version", "1", "--files", "nowhere"], "not a directory"),
        (["--name", "x", "--version", "1", "--data", "romfs"], "LABEL=FILE"),
        (["--name", "x", "--version", "1", "--expires", "soon"], "not a time"),
        (["--name", "x", "--version", "1", "--counter", "-1", "--add-key", "a" * 64], "counter"),
        (["--name", "x", "--version", "1", "--add-key", "a" * 64, "--retire-key", "a" * 64],
         "same key"),
        (["--name", "x", "--version", "1", "--add-key", "a" * 64, "--key", "nowhere.pem"],
         "cannot read"),
    ],
)  # fmt: skip
def test_a_release_that_makes_no_sense_is_refused(
    mpota: Mpota, tmp_path: Path, options: list[str], words: str
) -> None:
    code, _, error = mpota("bundle", *options, "-o", tmp_path / "out.bundle")
    assert code in (1, 2)
    assert words in error
    assert not list(tmp_path.iterdir())


def test_links_are_refused(project: Path) -> None:
    (project / "src" / "link.py").symlink_to(project / "src" / "main.py")
    with pytest.raises(MpotaError, match="is a link"):
        files_content([project / "src"])


def test_two_trees_may_not_have_the_same_file(project: Path) -> None:
    with pytest.raises(MpotaError, match=r"two directories have 'lib/pump\.py'"):
        files_content([project / "src", project / "src"])


def test_what_is_no_app_makes_no_bundle(mpota: Mpota, project: Path) -> None:
    (project / "app.bin").write_bytes(b"\x7fELF" * 1000)
    code, _, _ = mpota(
        "bundle", project / "app.bin", "--name", "x", "--version", "1", "-o", project / "o.bundle"
    )
    assert code == 1
    assert not (project / "o.bundle").exists()


# --- format 2

YEAR_2020 = 1577836800
SIZES = [1, 31, 4095, 4096, 4097, 8191, 8192, 8193, 12288, 12289, 16384, 50000]


def read_manifest(path: Path) -> Manifest:
    return Bundle.from_bytes(path.read_bytes()).manifest


def data_bundle(mpota: Mpota, directory: Path, data: bytes, *more: object) -> Path:
    (directory / "romfs.img").write_bytes(data)
    target = directory / "data.bundle"
    code, _, error = mpota(
        "bundle", "--data", f"romfs={directory / 'romfs.img'}", "--name", "pump",
        "--version", "2.1.0", "-o", target, "--force", *more,
    )  # fmt: skip
    assert code == 0, error
    return target


@pytest.mark.parametrize("size", SIZES)
def test_a_chain_gives_its_content_and_nothing_else(size: int) -> None:
    content = random.Random(size).randbytes(size)
    chained, link = make_chain(head_last(content))
    assert head_first(read_chain(chained, link)) == content
    pieces = -(-size // 4096)
    assert len(chained) == size + 32 * (pieces - 1)
    assert 1 <= len(chained) % 4128 <= 4096
    assert hashlib.sha256(chained[:4128]).digest() == link
    for at in range(0, len(chained), 97):
        damaged = chained[:at] + bytes([chained[at] ^ 1]) + chained[at + 1 :]
        with pytest.raises(MpotaError, match=f"in frame {at // 4128}"):
            read_chain(damaged, link)
    for other in (chained[:-1], chained + b"x", chained[4128:], chained + chained, b""):
        with pytest.raises(MpotaError):
            read_chain(other, link)
    for sent in (chained[:4128], chained[: len(chained) // 4128 * 4128]):
        if sent != chained:
            with pytest.raises(MpotaError):
                read_chain(sent, link)


def test_the_first_two_sectors_come_last() -> None:
    content = b"a" * 4096 + b"b" * 4096 + b"c" * 5000
    assert head_last(content) == b"c" * 5000 + b"a" * 4096 + b"b" * 4096
    assert head_last(content[:8192]) == content[:8192]


def test_data_is_chained_and_needs_a_board_that_knows_it(
    mpota: Mpota, project: Path, keys: Path
) -> None:
    data = bytes(range(256)) * 100
    path = data_bundle(mpota, project, data, "--key", keys / "a.pem")
    made = Bundle.from_bytes(path.read_bytes())
    (payload,) = made.manifest.payloads
    assert (payload.size, payload.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    (form,) = payload.forms
    assert (form.encoding, form.member) == ("chained", "romfs.bin.chained")
    assert form.chain == hashlib.sha256(made.members[str(form.member)][:4128]).hexdigest()
    document = json.loads(made.manifest_bytes)
    assert (document["format"], document["ota"]) == (2, "0.2.0")
    assert mpota("verify", path, "--key", keys / "a.pub.pem")[0] == 0
    assert "romfs" in mpota("manifest", path)[1]


def test_compressed_data_is_chained_too_where_that_is_smaller(mpota: Mpota, project: Path) -> None:
    (form,) = read_manifest(data_bundle(mpota, project, b"mpota" * 9000, "--compress")).forms
    assert (form.encoding, form.member) == ("chained-deflate", "romfs.bin.chained-deflate")
    assert form.size < 1000
    noise = random.Random(1).randbytes(20000)
    (form,) = read_manifest(data_bundle(mpota, project, noise, "--compress")).forms
    assert form.encoding == "chained"


@pytest.mark.parametrize("compress", [False, True])
def test_published_data_is_verified_down_to_its_content(
    mpota: Mpota, project: Path, keys: Path, compress: bool
) -> None:
    (project / "romfs.img").write_bytes(b"some content " * 2000)
    out = project / "public"
    code, _, error = mpota(
        "manifest", "--data", f"romfs={project / 'romfs.img'}", "--name", "pump",
        "--version", "1", "--key", keys / "a.pem", "-o", out, *["--compress"] * compress,
    )  # fmt: skip
    assert code == 0, error
    manifest = Manifest.from_bytes((out / "manifest.json").read_bytes())
    (form,) = manifest.forms
    assert {p.name for p in out.iterdir()} == {"manifest.json", "manifest.sig", form.url}
    assert mpota("verify", out / "manifest.json", "--key", keys / "a.pub.pem")[0] == 0


def exchanged(path: Path, **fields: object) -> bytes:
    """The bundle with other values in its one form, its member and the rest as they were."""
    made = Bundle.from_bytes(path.read_bytes())
    document = json.loads(made.manifest_bytes)
    payload = document["payloads"][0]
    for name, value in fields.items():
        where = payload if name.startswith("content_") else payload["encoded"][0]
        where[name.removeprefix("content_")] = value
    members = [Member("manifest.json", json.dumps(document).encode())]
    return write_tar(members + [Member(name, data) for name, data in made.members.items()])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"chain": "0" * 64}, "chained stream is damaged in frame 0"),
        ({"chain": "0" * 63}, "chain '000"),
        ({"chain": None}, "no 'chain'"),
        ({"content_sha256": "0" * 64}, "decoded, has SHA-256"),
        ({"content_size": 12000}, "are no chained stream of 12,000 bytes"),
        ({"encoding": "chained-deflate"}, "encoded payload"),
        ({"encoding": "deflate"}, "an unknown field 'chain'"),
        ({"size": 4128}, "4,128 bytes are no chained stream"),
    ],
)
def test_a_chain_that_does_not_fit_its_manifest_is_refused(
    mpota: Mpota, project: Path, fields: dict[str, object], words: str
) -> None:
    path = data_bundle(mpota, project, b"some content " * 1000)
    path.write_bytes(exchanged(path, **fields))
    code, _, error = mpota("verify", path)
    assert (code, words in error) == (1, True), error


def test_empty_data_makes_no_bundle(mpota: Mpota, project: Path) -> None:
    (project / "romfs.img").write_bytes(b"")
    code, _, error = mpota(
        "bundle", "--data", f"romfs={project / 'romfs.img'}", "--name", "x", "--version", "1",
        "-o", project / "o.bundle",
    )  # fmt: skip
    assert (code, "romfs.img' is empty" in error) == (1, True), error
    assert not (project / "o.bundle").exists()


def test_a_release_that_uses_nothing_new_has_format_1(mpota: Mpota, project: Path) -> None:
    made = Bundle.from_bytes(bundle(mpota, project, "--compress").read_bytes())
    document = json.loads(made.manifest_bytes)
    assert (document["format"], "ota" in document) == (1, False)


def test_a_downgrade_is_allowed_by_the_manifest(mpota: Mpota, project: Path) -> None:
    path = bundle(mpota, project, "--allow-downgrade")
    document = json.loads(Bundle.from_bytes(path.read_bytes()).manifest_bytes)
    assert (document["format"], document["ota"], document["allow_downgrade"]) == (2, "0.2.0", True)
    assert read_manifest(path).allow_downgrade
    assert not read_manifest(bundle(mpota, project, "--force")).allow_downgrade


def test_the_counter_is_the_seconds_since_2020(
    mpota: Mpota, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    before = int(time.time()) - YEAR_2020
    counter = read_manifest(bundle(mpota, project)).counter
    assert before <= counter <= int(time.time()) - YEAR_2020
    assert read_manifest(bundle(mpota, project, "--force", "--counter", "7")).counter == 7
    assert read_manifest(bundle(mpota, project, "--force", "--counter", "0")).counter == 0
    for epoch, expected in ((YEAR_2020, 0), (YEAR_2020 + 0x7FFFFFFF, 0x7FFFFFFF)):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(epoch))
        assert read_manifest(bundle(mpota, project, "--force")).counter == expected


@pytest.mark.parametrize(
    "epoch",
    ["0", str(YEAR_2020 - 1), str(YEAR_2020 + 0x80000000), "", "-1", "soon", "1.5", "9" * 40],
)
def test_a_date_that_gives_no_counter_makes_no_bundle(
    mpota: Mpota, project: Path, monkeypatch: pytest.MonkeyPatch, epoch: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    options = ["bundle", project / "app.bin", "--name", "x", "--version", "1"]
    code, _, error = mpota(*options, "-o", project / "o.bundle")
    assert (code, "SOURCE_DATE_EPOCH" in error) == (2, True), error
    assert not (project / "o.bundle").exists()
    assert mpota(*options, "-o", project / "o.bundle", "--counter", "3")[0] == 0


@pytest.mark.parametrize(
    ("number", "needs", "words"),
    [
        (3, "0.3.1", "format 3 for ota 0.3.1"),
        (3, None, "format 3 for ota of a later version"),
        (2, "0.2.1", "format 2 for ota 0.2.1"),
        (2, None, "format 2 has no 'ota'"),
    ],
)
def test_a_manifest_of_a_later_version_is_refused_by_its_number(
    number: int, needs: str | None, words: str
) -> None:
    document = {"format": number, "name": "x", "version": "1", "future": True, "payloads": []}
    if needs:
        document["ota"] = needs
    with pytest.raises(MpotaError, match=words):
        Manifest.from_bytes(json.dumps(document).encode())


def test_a_small_bundle_does_not_unpack_to_gigabytes() -> None:
    from mpota.formats.bundle import decode
    from mpota.formats.frames import Frame, Frames, deflate

    size = 65 << 20
    frames = Frames(size, (Frame(deflate(b"x"), 65 << 8),)).to_bytes()
    payload = Payload("certs", size, "0" * 64, ())
    with pytest.raises(MpotaError, match="at most"):
        decode(Form(len(frames), "0" * 64, encoding="deflate"), payload, frames, "it")


def test_every_kind_of_payload_is_made_at_the_desk_and_known_on_boards() -> None:
    assert READERS.keys() == KINDS.keys()
    source = data_directory("device") / "ota" / "manifest.py"
    on_boards = {
        name.id: ast.literal_eval(node.value)
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
        for name in node.targets
        if isinstance(name, ast.Name)
    }
    assert on_boards["_KINDS"] == tuple(KINDS)
