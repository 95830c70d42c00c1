"""The progress line of a run, on standard error."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from espalier_client.load.runner import Outcome


class ProgressLine:
    """An Observer that draws a bar while it is entered. Quiet when standard error is no terminal."""

    def __init__(self, requests: int) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("requests", total=requests, note="")
        self._in_flight = 0
        self._failed = 0
        self._tokens = 0

    def __enter__(self) -> "ProgressLine":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self) -> None:
        self._in_flight += 1
        self._show()

    def generated(self, tokens: int) -> None:
        self._tokens += tokens
        self._show()

    def finished(self, outcome: Outcome) -> None:
        self._in_flight -= 1
        self._failed += outcome.code != "OK"
        self._show(advance=1)

    def _show(self, advance: int = 0) -> None:
        note = f"{self._in_flight} in flight, {self._tokens:,} tokens"
        if self._failed:
            note += f", [red]{self._failed} failed[/red]"
        self._progress.update(self._task, advance=advance, note=note)
