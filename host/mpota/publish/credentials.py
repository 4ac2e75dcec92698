"""Who publishes: credentials as people keep them for the tools of their cloud.

Looked for here, and asked for before anything else is done, because a client that finds none asks
the metadata address of the cloud that it believes to run in, which anyone in a network can answer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path

from mpota.errors import UsageError

_ELSEWHERE = "aws configure export-credentials --format env"
# Settings of a profile in place of keys: each needs a program or a server of its own.
_UNKNOWN_WAYS = ("sso_session", "sso_start_url", "credential_process", "role_arn", "login_session")


def find_aws(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Keys, region and endpoint, as options of obstore's S3Store.

    From the environment, else from the profile (AWS_PROFILE, "default") in the shared files, as
    the AWS command line has them. Raises UsageError if there are no keys.
    """
    name = environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE") or "default"
    profile = _aws_profile(name, environment)
    found = _aws_keys(environment, profile, name)
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    found["region"] = region or profile.get("region") or "us-east-1"
    if endpoint or profile.get("endpoint_url"):
        found["endpoint"] = endpoint or profile["endpoint_url"]
    return found


def _aws_keys(
    environment: Mapping[str, str], profile: Mapping[str, str], name: str
) -> dict[str, str]:
    if environment.get("AWS_ACCESS_KEY_ID"):
        source, prefix, where = environment, "AWS_", "the environment"
        keys = {key: key.upper() for key in ("access_key_id", "secret_access_key", "session_token")}
    else:
        source, prefix, where = profile, "aws_", f"the profile '{name}'"
        keys = {key: key for key in ("access_key_id", "secret_access_key", "session_token")}
    found = {key: source.get(prefix + word, "") for key, word in keys.items()}
    if found["access_key_id"] and found["secret_access_key"]:
        return {key: value for key, value in found.items() if value}
    if found["access_key_id"]:
        raise UsageError(f"{where} has an access key, and no secret to it")
    other = next((way for way in _UNKNOWN_WAYS if profile.get(way)), None)
    if other:
        raise UsageError(
            f"the profile '{name}' has '{other}' instead of keys, which mpota does not know",
            f"have them given to the environment: {_ELSEWHERE}",
        )
    raise UsageError(
        "there are no credentials for s3://",
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE and ~/.aws/credentials",
    )


def _aws_profile(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What the shared files say of a profile: both of them, credentials before config."""
    home = Path(environment.get("HOME") or Path.home())
    files = (
        ("AWS_CONFIG_FILE", home / ".aws" / "config", f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", home / ".aws" / "credentials", name),
    )
    found: dict[str, str] = {}
    for variable, default, section in files:
        path = Path(environment.get(variable) or default).expanduser()
        parser = ConfigParser(interpolation=None, strict=False)
        try:
            parser.read(path, encoding="utf-8")
        except (OSError, ConfigError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read '{path}': {type(error).__name__}") from None
        for title in (section, name):
            if parser.has_section(title):
                found |= dict(parser.items(title))
                break
    return found


# What the az command calls them: obstore has other names for these.
_AZ_NAMES = {"AZURE_STORAGE_ACCOUNT": "account_name", "AZURE_STORAGE_KEY": "account_key"}
# Sets of variables that obstore takes for credentials, each enough by itself.
_AZURE = (
    ("AZURE_STORAGE_KEY",),
    ("AZURE_STORAGE_ACCOUNT_KEY",),
    ("AZURE_STORAGE_ACCESS_KEY",),
    ("AZURE_STORAGE_SAS_KEY",),
    ("AZURE_STORAGE_SAS_TOKEN",),
    ("AZURE_STORAGE_TOKEN",),
    ("AZURE_STORAGE_CLIENT_ID", "AZURE_STORAGE_CLIENT_SECRET", "AZURE_STORAGE_TENANT_ID"),
    ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"),
)


def find_azure(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What obstore does not find in the environment by itself, as options of its AzureStore.

    Raises UsageError unless an account is named, and something lets somebody in.
    """
    names = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
    if not any(environment.get(name) for name in names):
        raise UsageError("there is no account for az://", "AZURE_STORAGE_ACCOUNT")
    if not any(all(environment.get(name) for name in names) for names in _AZURE):
        raise UsageError(
            "there are no credentials for az://", "AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN"
        )
    return {key: environment[name] for name, key in _AZ_NAMES.items() if environment.get(name)}


_GOOGLE_FILES = (
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
)


def check_google(environment: Mapping[str, str] = os.environ) -> None:
    """Raises UsageError unless there is a key of a service account, or who has logged in."""
    if environment.get("GOOGLE_SERVICE_ACCOUNT_KEY"):
        return
    home = Path(environment.get("HOME") or Path.home())
    own = home / ".config" / "gcloud" / "application_default_credentials.json"
    named = next((environment[name] for name in _GOOGLE_FILES if environment.get(name)), None)
    if not Path(named or own).expanduser().is_file():
        what = f"'{named}' is no file" if named else "there are no credentials for gs://"
        raise UsageError(
            what, "GOOGLE_APPLICATION_CREDENTIALS=FILE, or gcloud auth application-default login"
        )
