"""`distill-tune upload`: an exported folder onto a hub."""

import argparse

from distill_tune.config.files import local_path

_DESCRIPTION = """Upload an exported folder to a repository of the Hugging Face Hub, which is made if there is none.

  distill-tune upload exports/mine-hf me/mine
  distill-tune upload exports/mine-hf me/mine --private --revision v2
  HF_ENDPOINT=https://hub.example.org distill-tune upload exports/mine-hf me/mine

A folder whose checks have failed is refused, and one that names a secret or a base on this machine alone. What is there
already is not sent again: a call after one that stopped goes on. The token comes from --token or the environment
(HF_TOKEN); it is written nowhere. A hub without Xet storage wants HF_HUB_DISABLE_XET=1.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "upload",
        help="put an exported folder onto a hub",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=local_path, metavar="FOLDER")
    parser.add_argument("repository", metavar="OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="the repository, if it is made now")
    parser.add_argument("--revision", help="a branch, which is made if there is none")
    parser.add_argument("--token", help="one that may write; better in the environment")
    parser.set_defaults(function=_upload)


def _upload(options: argparse.Namespace) -> None:
    from distill_tune.export.upload import upload

    url = upload(
        options.folder, options.repository, private=options.private, revision=options.revision, token=options.token
    )
    print(url)
