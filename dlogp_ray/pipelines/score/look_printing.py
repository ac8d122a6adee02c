"""What was seen of a corpus, for people: tokens as the policies will see them, and warnings."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from dlogp_ray.pipelines.score.look import CorpusLook, FileLook, Piece, RowLook
from dlogp_ray.visible import visible

_MOST = 200
"""Tokens of a prompt or a response: of more, those at the beginning and at the end."""
_LINE_ENDS = {"\n": "⏎\n", "\t": "→"}


def print_look(look: CorpusLook, console: Console) -> None:
    """Print files, their first rows as tokens, and what one who knows such corpora would ask."""
    for file in look.files:
        _print_file(file, console)
    if look.more:
        console.print(f"and {look.more:,} more files, which were not looked at", highlight=False)
    if not look.warnings:
        console.print("nothing to warn of", highlight=False)
    for warning in look.warnings:
        _print(f"warning: {warning}", console, "yellow")


def _print_file(file: FileLook, console: Console) -> None:
    of = f", format {file.format}" if file.format else ""
    _print(f"{file.uri}{of}: the first {file.rows:,} rows", console, "bold")
    for name, theirs in file.mapped.items():
        _print(f"  {name} is {theirs}", console)
    for what, spread in (("prompt", file.prompt_tokens), ("response", file.response_tokens)):
        if spread is not None:
            least, mean, most = spread
            _print(f"  {what}: {least:,} to {most:,} tokens, {mean:,.0f} on average", console)
    for status, (count, why) in file.rejected.items():
        _print(f"  rejected {count:,} {status}: {why}", console, "red")
    for row in file.shown:
        _print_row(row, console)
    console.print()


def _print_row(row: RowLook, console: Console) -> None:
    said = [f"{name} {value}" for name, value in _facts(row) if value is not None]
    _print(f"  {row.place}: {', '.join(said)}", console, "bold")
    if row.error is not None:
        _print(f"  {row.status}: {row.error}", console, "red")
        return
    for what, pieces in (("prompt", row.prompt), ("response", row.response)):
        _print(f"  {what}, {len(pieces):,} tokens:", console)
        console.print(_tokens(pieces), highlight=False, soft_wrap=True)


def _facts(row: RowLook) -> list[tuple[str, object]]:
    return [
        ("sample_id", row.sample_id),
        ("generator", row.generator),
        ("group_id", row.group_id),
        ("reward", row.reward),
    ]


def _tokens(pieces: Sequence[Piece]) -> Text:
    """Special tokens in «», masked ones in ⟦⟧ and dimmed."""
    text = Text("    ")
    half = _MOST // 2
    left_out = len(pieces) - _MOST
    for at, piece in enumerate(pieces):
        if left_out > 0 and half <= at < half + left_out:
            if at == half:
                text.append(f" … {left_out:,} tokens … ", "italic")
            continue
        shown = visible(piece.text)
        for character, spelled in _LINE_ENDS.items():
            shown = shown.replace(character, spelled)
        shown = shown.replace("\n", "\n    ")
        if piece.special:
            shown = f"«{shown}»"
        if piece.masked:
            shown = f"⟦{shown}⟧"
        style = "dim" if piece.masked else "bold magenta" if piece.special else ""
        text.append(shown, style)
    return text


def _print(line: str, console: Console, style: str = "") -> None:
    console.print(Text(visible(line), style), highlight=False, soft_wrap=True)
