"""Push a student, a fine-tuned model or an export to the Hugging Face Hub.

::

    stillhouse push DIR OWNER/NAME --dry-run      # what would become readable; sends nothing
    stillhouse push DIR OWNER/NAME                # a private repository; asks first
    stillhouse push DIR OWNER/NAME --public --yes

The repository is private unless you say ``--public``. The token is that of ``hf auth login``, or ``HF_TOKEN``. Pushed
again, files that have arrived are not sent twice, and nothing new makes no commit.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of its HTTP client
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented there

from cluster.artifacts import errors
from cluster.artifacts.errors import StageError
from cluster.artifacts.help_format import HelpFormatter
from eval.hub import publication
from eval.hub.publication import Publication

_ANSWERS = {
    400: "does not accept this: {message}",
    401: "does not accept the token: log in with hf auth login, or set HF_TOKEN to a valid one",
    403: "does not let this token write there: take one with write access, or another OWNER/NAME",
    409: "has another change of this repository at the same time: run the same command again",
    413: "finds the files too large: {message}",
    429: "has had too many requests: wait some minutes, and run the same command again",
}
_AGAIN = "run the same command again; what has arrived is not sent twice"


def main(arguments: Sequence[str] | None = None, prog: str = "stillhouse push") -> None:
    """The command line."""
    epilog = f"example: {prog} out/students/student me/my-student --dry-run"
    parser = argparse.ArgumentParser(
        prog=prog, formatter_class=HelpFormatter, description=(__doc__ or "").partition("\n")[0], epilog=epilog
    )
    folder = "a student, fine-tuned model or export; example: out/students/student"
    parser.add_argument("folder", metavar="DIR", type=Path, help=folder)
    repository = "repository on the Hub, made if it does not exist; example: me/my-student"
    parser.add_argument("repository", metavar="OWNER/NAME", help=repository)
    dry = "show what would become readable, and send nothing (default: send it)"
    parser.add_argument("--dry-run", action="store_true", help=dry)
    public = "publish in a repository that everyone can read (default: private)"
    parser.add_argument("--public", action="store_true", help=public)
    licence = "license where the card has none (default: that of the card); example: apache-2.0"
    parser.add_argument("--license", metavar="ID", help=licence)
    parser.add_argument("--yes", action="store_true", help="send without a question (default: ask)")
    options = parser.parse_args(arguments)
    with errors.errors_for_people():
        _check_name(options.repository)
        found = publication.of(options.folder, options.repository, options.license)
        print(f"{options.repository}: {'public' if options.public else 'private (--public shows it to everyone)'}")
        print("\n".join(found.lines()))
        if options.dry_run:
            return
        _confirm(options.yes)
        print(push(found, options.repository, public=options.public))


def push(found: Publication, repository: str, *, public: bool, api: HfApi | None = None) -> str:
    """Upload in one commit; returns the address of the repository.

    Raises:
        StageError: the Hub refuses or cannot be reached; says what to do.
    """
    api = api or HfApi()
    if not api.token and not huggingface_hub.get_token():
        raise StageError("no token of the Hub: log in with hf auth login, or set HF_TOKEN")
    with _one_line(api):
        with contextlib.suppress(RepositoryNotFoundError):
            private = bool(api.repo_info(repository).private)
            if not public and not private:
                raise StageError(f"{repository} exists and is public: give --public to publish there")
            if public and private:
                # Its earlier commits, which nobody looks at here, would become readable, too.
                raise StageError(
                    f"{repository} exists and is private: make it public at {api.endpoint}/{repository}/settings, or "
                    "leave --public out"
                )
        address = api.create_repo(repository, private=not public, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in found.contents().items()]
        api.create_commit(repository, operations, commit_message=f"Upload {found.made.kind} {found.made.identity[:12]}")
    return str(address)


def _check_name(repository: str) -> None:
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise StageError(f"{repository}: {str(error).partition(':')[0]}: write OWNER/NAME") from None
    if repository.count("/") != 1:
        raise StageError(f"{repository}: write OWNER/NAME, for example my-team/{repository}")


def _confirm(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise StageError("nothing is sent without an answer: give --yes, or --dry-run to look alone")
    try:
        answer = input("Send this? [y/N] ")
    except EOFError:  # Ctrl-D
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise StageError("nothing was sent")


@contextlib.contextmanager
def _one_line(api: HfApi) -> Iterator[None]:
    """Errors of the library as one line; none shows the token."""
    try:
        yield
    except (HTTPError, ConnectionError, TimeoutError, RuntimeError) as error:
        cause: BaseException = error
        # The library wraps what failed in an upload.
        while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise StageError(f"{api.endpoint} {_answer(cause)}") from None
        if isinstance(cause, OfflineModeIsEnabled):
            raise StageError("HF_HUB_OFFLINE is set: unset it to reach the Hub") from None
        if isinstance(cause, HTTPError | ConnectionError | TimeoutError):
            what = type(cause).__name__
            raise StageError(f"{api.endpoint} cannot be reached ({what}): {_AGAIN}") from None
        raise


def _answer(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status >= 500:
        return f"failed with {status}: {_AGAIN}"
    message = (error.server_message or "no reason given").partition("\n")[0]
    return _ANSWERS.get(status, "answered {status}: {message}").format(status=status, message=message)
