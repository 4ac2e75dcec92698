"""Private keys: never packed, whatever they are called, and encrypted where that is wanted."""

from __future__ import annotations

import base64
import functools
import os
import pty
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID
from mpota.formats.private_key import is_private_key
from mpota.formats.tar import Member, write_tar
from mpota.release.key_files import VARIABLE
from mpota.release.local_ca import LocalCa
from mpota.release.signing import PrivateKey, public_to_pem

from tests.support.firmware_files import (
    assert_refused,
    run,
    small_app,
    small_firmware,
)
from tests.support.real_files import REAL, real_firmware

PASSPHRASE = "correct horse, battery staple \N{GREEK SMALL LETTER ALPHA}"
_PEM, _DER = serialization.Encoding.PEM, serialization.Encoding.DER
_FORMATS = {
    "pkcs1": serialization.PrivateFormat.TraditionalOpenSSL,
    "pkcs8": serialization.PrivateFormat.PKCS8,
    "openssh": serialization.PrivateFormat.OpenSSH,
}


@functools.cache
def signing_key() -> PrivateKey:
    return PrivateKey.generate()


@functools.cache
def kinds() -> dict[str, bytes]:
    """Private keys of all kinds and forms, by name."""
    made = {
        "rsa": rsa.generate_private_key(public_exponent=65537, key_size=3072),
        "rsa-2048": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "ec-521": ec.generate_private_key(ec.SECP521R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
        "dsa": dsa.generate_private_key(key_size=2048),
    }
    found = {}
    for kind, key in made.items():
        for where, encoding in {"PEM": _PEM, "DER": _DER}.items():
            for name, form in _FORMATS.items():
                for password in (None, b"secret"):
                    lock: serialization.KeySerializationEncryption = (
                        serialization.BestAvailableEncryption(password)
                        if password
                        else serialization.NoEncryption()
                    )
                    try:
                        data = key.private_bytes(encoding, form, lock)
                    except (ValueError, TypeError, UnsupportedAlgorithm):
                        continue  # there is no such form
                    found[f"{kind} {where} {name} {'locked' if password else ''}"] = data
    for name in ("rsa", "ec"):
        key = made[name]
        assert isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey))
        for lock in (serialization.NoEncryption(), serialization.BestAvailableEncryption(b"x")):
            data = pkcs12.serialize_key_and_certificates(b"k", key, None, None, lock)
            found[f"{name} pkcs12 {type(lock).__name__}"] = data
    plain = found["rsa PEM pkcs8 "]
    found |= {
        "behind a certificate": certificate() + plain,
        "behind text": b"# keep this\n" * 10_000 + plain + b"\nthe end\n",
        "with carriage returns": plain.replace(b"\n", b"\r\n"),
        "in one line": plain.replace(b"\n", b"\\n"),
        "in a program": b'KEY = """' + plain + b'"""\n',
        "in a program by lines": b"".join(b'b"%s\\n"\n' % line for line in plain.splitlines()),
        "indented": plain.replace(b"\n", b"\n    "),
        "utf-16": plain.decode().encode("utf-16"),
        "utf-16 big-endian": plain.decode().encode("utf-16-be"),
        "base64 alone": base64.encodebytes(found["ec DER pkcs8 "]),
        "base64 url": base64.urlsafe_b64encode(found["rsa DER pkcs1 "]),
        "in a tar file": write_tar([Member("x", plain)]),
        "PuTTY": b"PuTTY-User-Key-File-3: ssh-rsa\nEncryption: none\nComment: a\n" + b"A" * 64,
        "PGP": b"-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: x\n\n" + b"A" * 64 + b"\n=abcd\n",
        "SSH2": b"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nComment: x\n" + b"A" * 70 + b"\n",
        "JWK": b'{"kty": "EC", "crv": "P-256", "x": "a", "d": "b"}',
        "JWK set": b'{"keys": [{"kty": "RSA", "n": "a", "e": "AQAB", "d": "b"}]}',
    }
    return found


@functools.cache
def certificate() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    now = datetime(2025, 1, 1)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(9999))
    return made.sign(key, hashes.SHA256()).public_bytes(_PEM)


def harmless() -> dict[str, bytes]:
    """What looks like a key, and is none."""
    signer = signing_key()
    loaded = x509.load_pem_x509_certificate(certificate())
    return {
        "public key": public_to_pem(signer.public),
        "public key DER": signer.public.to_der(),
        "certificate": certificate(),
        "certificate DER": loaded.public_bytes(_DER),
        "root DER": LocalCa.make().der,
        "signature": signer.sign(b"x").to_bytes(),
        "app": small_app(),
        "firmware": small_firmware(),
        "a marker alone": b"-----BEGIN RSA PRIVATE KEY-----\0-----END RSA PRIVATE KEY-----\0" * 3,
        "markers of a library": b"-----BEGIN EC PRIVATE KEY-----\0" + b"A" * 99,
        "a program": b'if b"-----BEGIN PRIVATE KEY-----" in data:\n    raise ValueError(data)\n',
        "words": b"A PRIVATE KEY is " + b"abcdefgh" * 20,
        "empty": b"",
        "zeros": bytes(4096),
        "numbers": bytes.fromhex("3006020100020101"),
        "json": b'{"kty": "RSA", "n": "a", "e": "AQAB"}',
        "deep json": b'"kty"' + b"[" * 60_000,
        "base64": base64.b64encode(b"no key at all, but a text of some length"),
    }


def test_private_keys_of_all_kinds_are_recognised() -> None:
    missed = [name for name, data in kinds().items() if not is_private_key(data)]
    assert missed == []
    assert len(kinds()) > 50


def test_what_is_no_private_key_is_not_taken_for_one() -> None:
    assert [name for name, data in harmless().items() if is_private_key(data)] == []


@pytest.mark.parametrize("chip", REAL)
def test_firmware_with_a_tls_library_is_no_private_key(chip: str) -> None:
    assert not is_private_key(real_firmware(chip).read_bytes())


def options(folder: Path) -> dict[str, list[object]]:
    return {
        "files": ["--files", folder / "src"],
        "data": ["--data", f"romfs={folder / 'src' / 'lib' / 'notes.txt'}"],
        "certs": ["--certs", folder / "src" / "lib" / "notes.txt"],
        "compiled": ["--files", folder / "src", "--mpy"],
    }


@pytest.mark.parametrize("way", options(Path()))
@pytest.mark.parametrize("command", ["bundle", "manifest"])
def test_no_private_key_gets_into_a_release(
    command: str, way: str, tmp_path: Path, hostile: Callable[..., None]
) -> None:
    hostile()
    folder = tmp_path / "src" / "lib"
    folder.mkdir(parents=True)
    (tmp_path / "src" / "main.py").write_text("1\n")
    out = tmp_path / "out"
    chosen = ["rsa PEM pkcs8 ", "rsa PEM pkcs8 locked", "ec DER pkcs1 ", "ed25519 PEM openssh "]
    for name in (*chosen, "behind a certificate"):
        (folder / "notes.txt").write_bytes(kinds()[name])
        made = run(
            command, *options(tmp_path)[way], "--name", "x", "--version", "1.0", "-o", out
        )  # fmt: skip
        assert_refused(made, 1)
        assert "notes.txt' holds a private key" in made.err
        assert not out.exists()


def test_a_key_behind_an_app_does_not_get_into_a_release(tmp_path: Path) -> None:
    (tmp_path / "app.bin").write_bytes(small_app() + kinds()["rsa PEM pkcs8 "])
    made = run(
        "bundle", tmp_path / "app.bin", "--name", "x", "--version", "1", "-o", tmp_path / "o"
    )
    assert made.code == 1
    assert not (tmp_path / "o").exists()


# --- passphrases


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key that only the passphrase opens; nothing gives it."""
    monkeypatch.setenv(VARIABLE, PASSPHRASE)
    path = tmp_path / "locked.pem"
    assert "(encrypted" in run("keygen", "--passphrase", path).out
    monkeypatch.delenv(VARIABLE)
    return path


def test_an_encrypted_key_says_nothing_to_who_has_not_its_passphrase(locked: Path) -> None:
    data = locked.read_bytes()
    assert data.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert locked.stat().st_mode & 0o777 == 0o600
    assert is_private_key(data)
    with pytest.raises(TypeError):
        serialization.load_pem_private_key(data, None)
    opened = serialization.load_pem_private_key(data, PASSPHRASE.encode())
    assert isinstance(opened, rsa.RSAPrivateKey)
    assert opened.key_size == 3072


def users(key: Path, folder: Path) -> dict[str, list[object]]:
    """Every command that reads a private key."""
    (folder / "src").mkdir(exist_ok=True)
    (folder / "src" / "main.py").write_text("1\n")
    (folder / "app.bin").write_bytes(small_app())
    what = ["--files", folder / "src", "--name", "x", "--version", "1.0"]
    run("bundle", *what, "-o", folder / "plain.bundle")
    return {
        "bundle": ["bundle", *what, "--key", key, "-o", folder / "made.bundle"],
        "bundle that adds it": ["bundle", *what, "--add-key", key, "-o", folder / "a.bundle"],
        "manifest": ["manifest", *what, "--key", key, "-o", folder / "public"],
        "sign a bundle": ["sign", folder / "plain.bundle", "--key", key, "-o", folder / "s"],
        "sign an app": ["sign", folder / "app.bin", "--key", key, "-o", folder / "signed"],
    }


def test_every_command_opens_it_by_a_file_or_by_the_environment(
    locked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(PASSPHRASE + "\r\nnot this\n")
    for command in users(locked, tmp_path).values():
        assert run(*command, "--passphrase-file", secret).code == 0
        (target,) = (Path(str(x)) for x, y in zip(command[1:], command, strict=False) if y == "-o")
        if target.is_dir():
            for path in target.iterdir():
                path.unlink()
        else:
            target.unlink()
        monkeypatch.setenv(VARIABLE, PASSPHRASE)
        assert run(*command).code == 0
        monkeypatch.delenv(VARIABLE)
    checked = run("verify", tmp_path / "made.bundle", "--key", tmp_path / "locked.pub.pem")
    assert "signed by" in checked.out
    checked = run("verify", tmp_path / "s", "--key", locked, "--passphrase-file", secret)
    assert "signed by" in checked.out


def test_without_it_or_with_a_wrong_one_every_command_says_so_and_writes_nothing(
    locked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = users(locked, tmp_path)
    before = sorted(tmp_path.iterdir())
    for command in (*commands.values(), ["verify", tmp_path / "plain.bundle", "--key", locked]):
        refused = run(*command)
        assert_refused(refused, 2)
        assert "locked.pem: the key is encrypted" in refused.err
        assert "--passphrase-file" in refused.err
        for wrong in ("wrong", PASSPHRASE + " "):
            monkeypatch.setenv(VARIABLE, wrong)
            refused = run(*command)
            assert_refused(refused, 1)
            assert "locked.pem: the passphrase is wrong" in refused.err
        monkeypatch.setenv(VARIABLE, "")
        assert_refused(run(*command), 2)
        monkeypatch.delenv(VARIABLE)
        assert sorted(tmp_path.iterdir()) == before


def test_a_key_that_is_not_encrypted_needs_none_and_ignores_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "plain.pem"
    assert "keep it secret" in run("keygen", key).out
    monkeypatch.setenv(VARIABLE, "anything")
    for command in users(key, tmp_path).values():
        assert run(*command).code == 0


@pytest.mark.parametrize("form", ["pkcs1", "pkcs8"])
def test_encrypted_keys_of_openssl_are_opened_as_well(form: str, tmp_path: Path) -> None:
    loaded = serialization.load_pem_private_key(signing_key().to_pem(), None)
    lock = serialization.BestAvailableEncryption(b"pass")
    path, secret = tmp_path / "k.pem", tmp_path / "secret"
    path.write_bytes(loaded.private_bytes(_PEM, _FORMATS[form], lock))
    secret.write_bytes(b"pass")
    for command in users(path, tmp_path).values():
        assert run(*command, "--passphrase-file", secret).code == 0


@pytest.mark.parametrize(
    ("typed", "code", "words"),
    [
        (["open sesame", "open sesame"], 0, "(encrypted"),
        (["open", "sesame", "sesame open", "sesame open"], 0, "(encrypted"),
    ],
)
def test_keygen_asks_for_a_passphrase_twice_at_a_terminal(
    typed: list[str], code: int, words: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mpota", "keygen", "--passphrase", str(tmp_path / "k.pem")]
    said, found = at_a_terminal(command, typed)
    assert (found, words in said) == (code, True), said
    assert typed[-1] not in said, "it is not shown"
    opened = serialization.load_pem_private_key(
        (tmp_path / "k.pem").read_bytes(), typed[-1].encode()
    )
    assert isinstance(opened, rsa.RSAPrivateKey)


def test_a_key_is_opened_at_a_terminal(locked: Path, tmp_path: Path) -> None:
    command = users(locked, tmp_path)["sign an app"]
    full = [sys.executable, "-m", "mpota", *map(str, command)]
    said, code = at_a_terminal(full, ["no"])
    assert (code, "the passphrase is wrong" in said) == (1, True)
    said, code = at_a_terminal(full, [PASSPHRASE])
    assert (code, "signed" in said) == (0, True), said


def test_without_a_terminal_keygen_does_not_ask_and_makes_nothing(tmp_path: Path) -> None:
    refused = run("keygen", "--passphrase", tmp_path / "k.pem")
    assert_refused(refused, 2)
    assert list(tmp_path.iterdir()) == []


def at_a_terminal(command: list[str], typed: list[str]) -> tuple[str, int]:
    """What a process prints on a terminal, and its exit code; a line is typed at each prompt."""
    child, master = pty.fork()
    if child == 0:
        os.execvp(command[0], command)
    lines = iter(typed)
    said = bytearray()
    prompts = 0
    try:
        while data := os.read(master, 1024):
            said += data
            if said.decode("utf-8", "replace").count(": ") > prompts and said.endswith(b": "):
                prompts = said.decode("utf-8", "replace").count(": ")
                os.write(master, next(lines).encode() + b"\n")
    except OSError:  # it has ended
        pass
    _, status = os.waitpid(child, 0)
    os.close(master)
    return said.decode("utf-8", "replace"), os.waitstatus_to_exitcode(status)
