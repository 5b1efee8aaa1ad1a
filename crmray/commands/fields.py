"""`crmray fields`: metadata of the fields that predictions are written to."""

from __future__ import annotations

import argparse
from pathlib import Path

from crmray.errors import StorageError

FOLDER = "crmray-fields"


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "fields",
        help="metadata of the fields that write-back needs",
        description="Write deployable metadata (Metadata API format) for the fields that the tasks' predictions go to, "
        "the key of Tasks, and a permission set that lets the integration user write them.",
        epilog="examples: crmray fields org.yaml --to crmray-fields    crmray fields org.yaml --deploy",
    )
    parser.add_argument("org", metavar="ORG.yaml", help="the org file")
    parser.add_argument("--to", metavar="FOLDER", default=FOLDER, help=f"where to write it; default: {FOLDER}")
    parser.add_argument("--deploy", action="store_true", help="deploy it too, as the org file's user")
    parser.set_defaults(call=command)


def command(arguments: argparse.Namespace) -> int:
    """Write the files and say how to deploy them; returns the exit code."""
    from crmray.org import OpenOrg
    from crmray.salesforce import metadata_api, writeback
    from crmray.salesforce.fields import PERMISSION_SET

    org, folder = OpenOrg.load(arguments.org), Path(arguments.to)
    files = org.fields()
    for name, content in sorted(files.items()):
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}; give another folder with --to") from None
        print(path)
    print()
    if arguments.deploy:
        with writeback.connect(org.config) as client:
            print(f"deployed {metadata_api.deploy(client, files)} components to {client.url}; what is left to do:")
    else:
        print(f"sf project deploy start --metadata-dir {folder}")
    print(f"sf org assign permset --name {PERMISSION_SET}")
    return 0
