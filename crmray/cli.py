"""The `crmray` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from crmray import __version__, log
from crmray.errors import CrmrayError

EPILOG = """examples:
  crmray init data/*.csv > org.yaml      draft an org file
  crmray check org.yaml                  what was found, what can run
  crmray up                              a Ray head on this machine
  crmray run org.yaml                    all stations, to live endpoints
  crmray submit tune churn --org org.yaml --scheduler asha
  crmray predict churn C00042 --explain
  crmray down

exit codes: 0 done; 2 the request, the org file, the data or the cluster is at fault, told in one line; 1 an error of
crmray itself, with a traceback
"""


class _Help(argparse.HelpFormatter):
    """Wraps text, but gives each example, set apart by four spaces, a line of its own."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if not text.startswith("example"):
            return super()._fill_text(text, width, indent)
        title, _, examples = text.partition(": ")
        return "\n  ".join([f"{title}:", *examples.split("    ")])


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    from crmray.commands import (
        demo,
        describe,
        doctor,
        fields,
        head,
        lake,
        orgfile,
        privacy,
        run,
        sandbox,
        serving,
        submit,
    )

    parser = argparse.ArgumentParser(
        prog="crmray",
        description="CRM history in; tuned, explained, served models out, on a Ray cluster.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"crmray {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (orgfile, describe, head, run, demo, submit, serving, sandbox, fields, lake, privacy, doctor):
        module.add(commands)
    for command in commands.choices.values():
        command.formatter_class = _Help
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    log.setup(json=False)  # for people, piped too: JSON lines are for the logs of jobs
    try:
        return arguments.call(arguments)
    except CrmrayError as error:
        print(f"crmray: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141


if __name__ == "__main__":
    sys.exit(main())
