"""`crmray forget` and `crmray vault rotate`: erase persons, change keys."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from crmray import config
from crmray.errors import ConfigError
from crmray.storage import Lake


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    forgetting = commands.add_parser(
        "forget",
        help="erase persons or accounts",
        description="Erases them from every run of the lake, the vault and caches of this machine, keeps the next pull "
        "from bringing them back, retires versions that hold their rows and lists those trained with them. Killed, the "
        "same command completes the work.",
        epilog="example: crmray forget org.yaml 0035e000001AbCdQAE    crmray forget org.yaml --file ids.txt",
    )
    forgetting.add_argument("org", metavar="ORG.yaml", help="the org file")
    forgetting.add_argument("ids", nargs="*", metavar="ID", help="record ids of contacts, leads, accounts or persons")
    forgetting.add_argument("--file", metavar="F", help="a file with one id a line; - for standard input")
    forgetting.set_defaults(call=forget_command)
    vault = commands.add_parser(
        "vault",
        help="change the key of the vault",
        description="`rotate` writes the table from pseudonym to record id anew with privacy.vault_key; until then the "
        "keys under privacy.previous_vault_keys open it.",
        epilog="example: crmray vault rotate org.yaml",
    )
    vault.add_argument("action", choices=("rotate",), help="rotate: encrypt all of it with the current key")
    vault.add_argument("org", metavar="ORG.yaml", help="the org file")
    vault.set_defaults(call=vault_command)


def forget_command(arguments: argparse.Namespace) -> int:
    """Erase, and print what was done."""
    from crmray.forget import forget

    org = config.load(arguments.org)
    receipt = forget(org, Lake.of(org), [*arguments.ids, *_listed(arguments.file)])
    told = receipt.manifest()
    for name, count in sorted(told["rows"].items()):
        print(f"{name}  {count} rows erased")
    for version in told["retired"]:
        print(f"{version}  retired: it held their rows; train again")
    for version in told["trained_with"]:
        print(f"{version}  was trained with them; train without them and publish with --force 'without the forgotten'")
    if not any(told["rows"].values()):
        print("no row was about them: look at the ids, unless they were never pulled; the next pulls leave them out")
    print(f"{told['asked']} asked for; receipt {receipt.run_id}. The next pull is a full one.")
    print("What was written back to their records stays there until the records are deleted or emptied.")
    return 0


def _listed(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--file {path}: {error}, expected a text file with one id a line") from None
    return text.split()


def vault_command(arguments: argparse.Namespace) -> int:
    """Write the vault anew."""
    from crmray.privacy import Vault

    org = config.load(arguments.org)
    written = Vault.open(org, Lake.of(org)).rotate()
    print(f"{written} files written with the current key; privacy.previous_vault_keys can go")
    return 0
