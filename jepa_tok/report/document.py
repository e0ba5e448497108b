"""The frame of every page: one file that asks for nothing, neither script nor network; its own policy forbids both."""

from __future__ import annotations

from html import escape
from pathlib import Path

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


def document(title: str, body: str, footer: str) -> str:
    """A whole page; `body` and `footer` are HTML."""
    css = Path(__file__).with_name("page.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>\n{css}</style></head><body><main>\n'
        f"{body}<footer>{footer}</footer>\n</main></body></html>\n"
    )
